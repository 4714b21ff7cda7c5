//! Where the image of a JPEG file ends.
//!
//! Phones append a video to a photo, or leave the end marker out; programs pad files. Decoders stop where the image is
//! complete, so a file is cut off only when the image is.

/// The end of a JPEG image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// An end marker, and how many bytes come up to it and with it.
    Marker(usize),
    /// No end marker after a scan.
    Missing,
}

/// Start of scan, which entropy-coded data follows.
const SOS: u8 = 0xda;
/// End of image.
const EOI: u8 = 0xd9;

/// Walks the segments from the front to the first end marker after a scan. A thumbnail, or bytes that look like a marker
/// inside a segment, are passed over with their segment.
pub(crate) fn end(jpeg: &[u8]) -> End {
    let mut at = 2;
    let mut scanned = false;
    while let Some(marker) = next_marker(jpeg, &mut at, scanned) {
        match marker {
            EOI if scanned => return End::Marker(at),
            // markers without a length
            0x01 | 0xd0..=0xd7 | 0xd8 | EOI => continue,
            _ => {}
        }
        let Some(&[high, low]) = jpeg.get(at..at + 2).and_then(|bytes| bytes.first_chunk::<2>()) else { break };
        at += usize::from(u16::from_be_bytes([high, low])).max(2);
        scanned |= marker == SOS;
    }
    End::Missing
}

/// The next marker at or after `at`, which moves behind it. In entropy-coded data, `FF 00` is a byte of the data.
fn next_marker(jpeg: &[u8], at: &mut usize, in_data: bool) -> Option<u8> {
    loop {
        let found = *at + jpeg.get(*at..)?.iter().position(|byte| *byte == 0xff)?;
        let code = *jpeg.get(found + 1)?;
        // fill bytes may stand in front of a marker
        *at = found + if code == 0xff { 1 } else { 2 };
        if code != 0xff && code != 0 && !(in_data && (0xd0..=0xd7).contains(&code)) {
            return Some(code);
        }
    }
}

/// The file without an end marker, completed in two ways that decode to different images unless the image was complete
/// before: what follows the data is used for nothing then.
pub(crate) fn completions(jpeg: &[u8]) -> [Vec<u8>; 2] {
    const MORE: usize = 4096;
    let completed = |fill: &dyn Fn(usize) -> u8| {
        let mut bytes = jpeg.to_vec();
        bytes.extend((0..MORE).map(fill));
        bytes.extend([0xff, EOI]);
        bytes
    };
    [completed(&|_| 0), completed(&|index| ((index * 167 + 13) % 251) as u8)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_the_first_marker_after_a_scan() {
        let head = [0xff, 0xd8, 0xff, 0xe1, 0, 6, 0xff, 0xd9, 0xff, 0xda]; // a segment that holds markers
        let scan = [0xff, 0xff, 0xda, 0, 3, 9, 1, 2, 0xff, 0, 3, 0xff, 0xd0, 4];
        let whole = [&head[..], &scan, &[0xff, 0xd9]].concat();
        assert_eq!(end(&whole), End::Marker(whole.len()));
        let appended = [&whole[..], &[0, 0, 0xff, 0xda, 0xff, 0xd8, 0xff, 0xd9]].concat();
        assert_eq!(end(&appended), End::Marker(whole.len()));
        for length in 0..whole.len() {
            assert_eq!(end(&whole[..length]), End::Missing, "{length}");
        }
        let two_scans = [&head[..], &scan, &scan, &[0xff, 0xd9]].concat();
        assert_eq!(end(&two_scans), End::Marker(two_scans.len()));
        assert_eq!(end(&[0xff, 0xd8, 0xff, 0xd9]), End::Missing);
        assert_eq!(end(&[0xff; 1000]), End::Missing);
    }
}
