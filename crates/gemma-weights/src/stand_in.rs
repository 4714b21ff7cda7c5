//! What lies in place of a file: the pointer of a version control, a web page, an archive.
//!
//! A clone without Git LFS and a download from the wrong link leave such files behind under the right names.

/// Bytes that tell the kind of a file.
pub(crate) const KIND_BYTES: usize = 64;

/// What a file is that came in place of another, by how it begins, and what to do about it: the pointer of Git LFS, a web page,
/// an archive. `None` for anything else.
pub fn stand_in(begin: &[u8]) -> Option<[&'static str; 2]> {
    const GIT_LFS: &[u8] = b"version https://git-lfs.github.com/spec/";
    let begin = &begin[..begin.len().min(KIND_BYTES)];
    let page = |mark: &str| {
        let text = begin.trim_ascii_start();
        text.get(..mark.len()).is_some_and(|text| text.eq_ignore_ascii_case(mark.as_bytes()))
    };
    match begin {
        _ if begin.starts_with(GIT_LFS) => {
            Some(["a Git LFS pointer", "run `git lfs pull` in its folder, or fetch it again"])
        }
        _ if page("<!doctype html") || page("<html") => {
            Some(["a web page", "take the download link of the file, not the link of its page"])
        }
        [0x1f, 0x8b, 8, ..] => Some(["a gzip archive", "unpack it"]),
        [b'P', b'K', 3, 4, ..] => Some(["a zip archive, or a model in PyTorch's format", "unpack or convert it"]),
        _ => None,
    }
}

/// The same for a file that should be text.
pub(crate) fn other_text(begin: &[u8]) -> Option<[&'static str; 2]> {
    let utf_16 = matches!(begin, [0xff, 0xfe, ..] | [0xfe, 0xff, ..]);
    utf_16.then_some(["text in UTF-16", "save it in UTF-8"]).or_else(|| stand_in(begin))
}

/// A text without the byte order mark that some editors put in front.
pub(crate) fn without_mark(mut text: Vec<u8>) -> Vec<u8> {
    const MARK: &[u8] = "\u{feff}".as_bytes();
    if text.starts_with(MARK) {
        text.drain(..MARK.len());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_in_place_of_a_file_is_known_by_its_beginning() {
        let what = |begin: &[u8]| stand_in(begin).map(|[what, _]| what);
        assert_eq!(what(b"version https://git-lfs.github.com/spec/v1\noid sha256:0"), Some("a Git LFS pointer"));
        assert_eq!(what(b"\n<!DOCTYPE html><html>"), Some("a web page"));
        assert_eq!(what(b"\x1f\x8b\x08"), Some("a gzip archive"));
        assert_eq!(other_text(&[0xff, 0xfe, b'{', 0]), Some(["text in UTF-16", "save it in UTF-8"]));
        for sound in [&b"{}"[..], b"", b"GGUF", b"\x08\0\0\0\0\0\0\0{}      ", b"<"] {
            assert_eq!((what(sound), other_text(sound)), (None, None), "{sound:?}");
        }
    }

    #[test]
    fn a_byte_order_mark_is_no_text() {
        assert_eq!(without_mark("\u{feff}{}".into()), b"{}");
        assert_eq!(without_mark(b"{}".to_vec()), b"{}");
    }
}
