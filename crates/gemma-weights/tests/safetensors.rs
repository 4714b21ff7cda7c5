//! The strict reader of safetensors files, against each lie a header can tell and against the reference library.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking, its helpers too")]

use std::collections::HashMap;
use std::path::Path;

use bytes::Bytes;
use gemma_weights::{Dtype, Error, SafetensorsFault as Fault, StoredTensor, parse_safetensors, read_safetensors};
use safetensors::tensor::TensorView;

/// A file with this header and so many bytes of data.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend((0..data).map(|i| i as u8));
    file
}

fn parse(bytes: Vec<u8>) -> Result<std::collections::BTreeMap<String, StoredTensor>, Error> {
    parse_safetensors(Path::new("model.safetensors"), &Bytes::from(bytes))
}

/// The fault of a file, after checking that its message is one line that names the file.
fn fault(bytes: Vec<u8>) -> Fault {
    let error = parse(bytes).expect_err("the file is damaged");
    let text = error.to_string();
    assert!(text.starts_with("model.safetensors: damaged") && !text.contains('\n') && text.len() < 1000, "{text}");
    match error {
        Error::Safetensors { fault, .. } => fault,
        other => panic!("{other:?}"),
    }
}

#[test]
fn tensors_are_slices_of_the_file() {
    let header = r#"{"__metadata__": {"format": "pt"},
        "b": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [8, 20]},
        "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        "empty": {"dtype": "F16", "shape": [0, 7], "data_offsets": [8, 8]},
        "one": {"dtype": "F16", "shape": [], "data_offsets": [20, 22]}}   "#;
    let bytes = Bytes::from(file(header, 22));
    let tensors = parse_safetensors(Path::new("x"), &bytes).unwrap();
    assert_eq!(tensors.keys().collect::<Vec<_>>(), ["a", "b", "empty", "one"]);
    let b = &tensors["b"];
    assert_eq!((Dtype::of_format(b.format).unwrap(), b.shape.as_slice(), b.elements()), (Dtype::Bf16, &[2, 3][..], 6));
    assert_eq!(b.bytes, bytes[bytes.len() - 14..bytes.len() - 2]);
    assert_eq!(b.bytes.as_ptr(), bytes[bytes.len() - 14..].as_ptr(), "no copy");
    assert_eq!(tensors["empty"].elements(), 0);
    assert_eq!(tensors["one"].shape, [0; 0]);
}

#[test]
fn values_come_back_as_f32() {
    let header = r#"{"w": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}"#;
    let mut bytes = file(header, 0);
    bytes.extend([0x80, 0x3f, 0x20, 0xc0]);
    assert_eq!(parse(bytes).unwrap()["w"].to_f32(), [1.0, -2.5]);
}

#[test]
fn truncated_files() {
    for len in 0..8 {
        assert!(matches!(fault(vec![0; len]), Fault::TooShort { bytes } if bytes == len as u64));
    }
    let whole = file(r#"{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}"#, 16);
    assert!(parse(whole.clone()).is_ok());
    for len in 8..whole.len() {
        let fault = fault(whole[..len].to_vec());
        assert!(matches!(fault, Fault::HeaderLength { .. } | Fault::OutOfRange { .. }), "{len}: {fault:?}");
    }
}

#[test]
fn a_header_of_ten_gigabytes_in_a_file_of_one_kilobyte() {
    for claimed in [1020, 10_000_000_000, 100_000_001, u64::MAX, u64::MAX - 7, 1 << 63] {
        let mut bytes = file("{}", 1014);
        bytes[..8].copy_from_slice(&claimed.to_le_bytes());
        assert!(matches!(fault(bytes), Fault::HeaderLength { available: 1016, .. }), "{claimed}");
    }
}

#[test]
fn a_header_beyond_the_limit_of_the_format() {
    // the file is as long as it claims, but sparse
    let temporary = tempfile::NamedTempFile::new().unwrap();
    temporary.as_file().set_len(8 + 100_000_001).unwrap();
    std::io::Write::write_all(&mut temporary.as_file(), &100_000_001_u64.to_le_bytes()).unwrap();
    let error = read_safetensors(temporary.path()).unwrap_err();
    assert!(matches!(error, Error::Safetensors { fault: Fault::HeaderLimit { .. }, .. }), "{error}");
}

#[test]
fn headers_that_are_not_what_the_format_says() {
    let deep = format!("{{\"a\": {}", "[".repeat(100_000));
    for header in [
        "",
        "   ",
        "null",
        "[]",
        "{",
        "{]",
        "not json",
        "{\"a\": 1}",
        "{\"a\": {}}",
        "\u{feff}{}",
        &deep,
        r#"{"a": {"dtype": "F32", "shape": [1]}}"#,
        r#"{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}"#,
        r#"{"a": {"dtype": "F32", "shape": [1.5], "data_offsets": [0, 4]}}"#,
        r#"{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, -4]}}"#,
        r#"{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}"#,
        r#"{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 2, 4]}}"#,
        r#"{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 18446744073709551616]}}"#,
        r#"{"a": {"dtype": "F32", "shape": [1], "shape": [1], "data_offsets": [0, 4]}}"#,
        r#"{"__metadata__": {"format": 1}}"#,
        r#"{} {}"#,
    ] {
        let fault = fault(file(header, 4));
        assert!(matches!(fault, Fault::HeaderJson { .. }), "{header:.40}: {fault:?}");
    }
    let mut not_utf8 = file("{\"ab\": 1}", 0);
    not_utf8[10] = 0xff;
    assert!(matches!(fault(not_utf8), Fault::HeaderJson { .. }));
}

/// A header of (name, dtype, shape, begin, end).
fn header(tensors: &[(&str, &str, &str, u64, u64)]) -> String {
    let entries: Vec<String> = tensors
        .iter()
        .map(|(name, dtype, shape, begin, end)| {
            format!(r#""{name}": {{"dtype": "{dtype}", "shape": {shape}, "data_offsets": [{begin}, {end}]}}"#)
        })
        .collect();
    format!("{{{}}}", entries.join(", "))
}

#[test]
fn a_name_that_stands_twice() {
    let twice = header(&[("a", "F32", "[1]", 0, 4), ("a", "F32", "[1]", 4, 8)]);
    assert!(matches!(fault(file(&twice, 8)), Fault::Duplicate { tensor } if tensor == "a"));
}

#[test]
fn offsets_out_of_range() {
    for (begin, end) in [(0, 12), (8, 4), (1 << 40, (1 << 40) + 4), (u64::MAX - 3, u64::MAX), (4, u64::MAX)] {
        let lying = header(&[("w", "F32", "[1]", begin, end)]);
        assert!(matches!(fault(file(&lying, 8)), Fault::OutOfRange { available: 8, .. }), "{begin}..{end}");
    }
}

#[test]
fn sizes_that_overflow() {
    for shape in ["[4294967296, 4294967296]", "[18446744073709551615]", "[9223372036854775808, 2, 0]"] {
        let lying = header(&[("w", "F32", shape, 0, 8)]);
        assert!(matches!(fault(file(&lying, 8)), Fault::Overflow { .. }), "{shape}");
    }
    let axes = header(&[("w", "F32", "[1, 1, 1, 1, 1, 1, 1, 1, 1]", 0, 4)]);
    assert!(matches!(fault(file(&axes, 4)), Fault::Axes { axes: 9, .. }));
}

#[test]
fn shapes_that_need_another_number_of_bytes() {
    for (dtype, shape) in
        [("F32", "[1]"), ("F32", "[3]"), ("F32", "[]"), ("F32", "[0]"), ("BF16", "[3]"), ("F16", "[2, 3]")]
    {
        let lying = header(&[("w", dtype, shape, 0, 8)]);
        assert!(matches!(fault(file(&lying, 8)), Fault::ByteLength { found: 8, .. }), "{dtype} {shape}");
    }
}

#[test]
fn overlaps_and_holes() {
    let overlap = header(&[("a", "F32", "[2]", 0, 8), ("b", "F32", "[1]", 4, 8)]);
    let found = fault(file(&overlap, 8));
    assert!(matches!(&found, Fault::Overlap { first, second } if first == "a" && second == "b"), "{found:?}");
    let same = header(&[("a", "F32", "[2]", 0, 8), ("b", "F32", "[2]", 0, 8)]);
    assert!(matches!(fault(file(&same, 8)), Fault::Overlap { .. }));
    let inside = header(&[("a", "F32", "[2]", 0, 8), ("b", "F32", "[0]", 4, 4)]);
    assert!(matches!(fault(file(&inside, 8)), Fault::Overlap { .. }));

    let before = header(&[("a", "F32", "[1]", 4, 8)]);
    assert!(matches!(fault(file(&before, 8)), Fault::Hole { begin: 0, end: 4 }));
    let between = header(&[("a", "F32", "[1]", 0, 4), ("b", "F32", "[1]", 8, 12)]);
    assert!(matches!(fault(file(&between, 12)), Fault::Hole { begin: 4, end: 8 }));
    let after = header(&[("a", "F32", "[1]", 0, 4)]);
    assert!(matches!(fault(file(&after, 9)), Fault::Hole { begin: 4, end: 9 }));
    assert!(matches!(fault(file("{}", 1)), Fault::Hole { begin: 0, end: 1 }));
}

#[test]
fn types_that_are_not_supported_are_named_with_their_tensor() {
    for dtype in ["I64", "F64", "F8_E4M3", "BOOL", "f32", "", "F32\\n"] {
        let error = parse(file(&header(&[("model.positions", dtype, "[1]", 0, 8)]), 8)).unwrap_err();
        assert!(matches!(error, Error::UnsupportedDtype { .. }), "{dtype}: {error}");
        let text = error.to_string();
        assert!(text.contains("model.positions") && text.contains(dtype) && !text.contains('\n'), "{text}");
    }
}

#[test]
fn files_of_the_reference_library_are_read_alike() {
    let data: Vec<u8> = (0..=255).collect();
    let views: HashMap<String, TensorView<'_>> = [
        ("a.weight", safetensors::Dtype::BF16, vec![4, 6], 0..48),
        ("b.weight", safetensors::Dtype::F32, vec![2, 2, 3], 48..96),
        ("c", safetensors::Dtype::F16, vec![], 96..98),
        ("d", safetensors::Dtype::F16, vec![0], 0..0),
    ]
    .into_iter()
    .map(|(name, dtype, shape, range)| (name.to_owned(), TensorView::new(dtype, shape, &data[range]).unwrap()))
    .collect();
    let written = safetensors::serialize(&views, None).unwrap();
    let tensors = parse(written).unwrap();
    assert_eq!(tensors.len(), views.len());
    for (name, view) in &views {
        assert_eq!(tensors[name].shape, view.shape());
        assert_eq!(tensors[name].bytes, view.data());
    }
}

#[test]
fn whatever_is_accepted_the_reference_library_accepts_too() {
    let good =
        file(&header(&[("a", "F32", "[1, 2]", 0, 8), ("b", "BF16", "[3]", 8, 14), ("c", "F16", "[0]", 14, 14)]), 14);
    let mut accepted = 0;
    // every byte replaced by some that matter in JSON and numbers
    for position in 0..good.len() {
        for byte in [0, b'0', b'1', b'8', b'9', b'"', b'[', b'}', b',', b' ', b'b', 0x80, 0xff] {
            let mut changed = good.clone();
            changed[position] = byte;
            if let Ok(tensors) = parse(changed.clone()) {
                accepted += 1;
                let theirs = safetensors::SafeTensors::deserialize(&changed)
                    .unwrap_or_else(|error| panic!("byte {position} = {byte}: they say {error}"));
                assert_eq!(theirs.len(), tensors.len());
                for (name, tensor) in tensors {
                    assert_eq!(theirs.tensor(&name).unwrap().data(), tensor.bytes, "{name}");
                }
            }
        }
    }
    assert!(accepted > 14 * 13, "at least every change of the data is accepted");
}

#[test]
fn what_is_not_a_regular_file_is_not_mapped() {
    let folder = tempfile::tempdir().unwrap();
    for path in [folder.path().to_owned(), folder.path().join("none.safetensors")] {
        let error = read_safetensors(&path).unwrap_err();
        assert!(matches!(error, Error::Read { .. }), "{error}");
    }
}
