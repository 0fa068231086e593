//! What hostile bytes do to the reader: an error each time, never a panic.

use proptest::collection::vec;
use proptest::prelude::*;

use super::error::FormatError;
use super::parse::{Header, parse};
use super::value::{Array, Value};
use super::write::{GgufWriter, WriteError};
use crate::quant::GgmlType;

/// A file of under 1 KB with every value type, nested arrays and three tensors.
fn sample() -> Vec<u8> {
    let mut w = GgufWriter::new();
    for (i, value) in sample_values().into_iter().enumerate() {
        w.add(&format!("key.{i}"), value).unwrap();
    }
    w.add_tensor("a.weight", &[3], GgmlType::F32).unwrap();
    w.add_tensor("b.weight", &[32, 2, 2], GgmlType::Q8_0)
        .unwrap();
    w.add_tensor("c.weight", &[4, 1], GgmlType::F16).unwrap();
    written(&w)
}

fn sample_values() -> Vec<Value> {
    let inner = Array::Array(vec![Array::U8(vec![1, 2]), Array::String(vec!["é".into()])]);
    vec![
        Value::U8(1),
        Value::I8(-1),
        Value::U16(2),
        Value::I16(-2),
        Value::U32(3),
        Value::I32(-3),
        Value::F32(0.5),
        Value::Bool(true),
        Value::String("text".into()),
        Value::U64(u64::MAX),
        Value::I64(i64::MIN),
        Value::F64(-0.25),
        Value::Array(Array::Array(vec![inner, Array::F64(vec![])])),
        Value::Array(Array::Bool(vec![true, false])),
        Value::Array(Array::I16(vec![-7])),
    ]
}

fn written(w: &GgufWriter) -> Vec<u8> {
    let mut bytes = Vec::new();
    let data = |t: &super::PlannedTensor, out: &mut dyn std::io::Write| {
        out.write_all(&vec![7; usize::try_from(t.bytes).unwrap()])
    };
    let n = w.write_to(&mut bytes, data).unwrap();
    assert_eq!(n, bytes.len() as u64);
    bytes
}

/// A header by hand, for what the writer refuses to write.
struct Raw(Vec<u8>);

impl Raw {
    fn new(version: u32, tensors: u64, keys: u64) -> Self {
        let mut raw = Raw(b"GGUF".to_vec());
        raw.u32(version).u64(tensors).u64(keys);
        raw
    }

    fn u32(&mut self, v: u32) -> &mut Self {
        self.0.extend(v.to_le_bytes());
        self
    }

    fn u64(&mut self, v: u64) -> &mut Self {
        self.0.extend(v.to_le_bytes());
        self
    }

    fn text(&mut self, v: &str) -> &mut Self {
        self.u64(v.len() as u64).0.extend(v.as_bytes());
        self
    }

    fn tensor(&mut self, name: &str, dims: &[u64], ty: u32, offset: u64) -> &mut Self {
        self.text(name).u32(dims.len() as u32);
        dims.iter().for_each(|&d| {
            self.u64(d);
        });
        self.u32(ty).u64(offset)
    }

    /// Parsed with `data` bytes after the header.
    fn parse(&self, data: usize) -> Result<Header, FormatError> {
        let mut bytes = self.0.clone();
        bytes.resize(bytes.len().next_multiple_of(32) + data, 0);
        parse(&bytes)
    }
}

fn one_tensor(dims: &[u64], ty: u32, offset: u64) -> Result<Header, FormatError> {
    Raw::new(3, 1, 0).tensor("t", dims, ty, offset).parse(256)
}

#[test]
fn everything_written_is_read_back() {
    let header = parse(&sample()).unwrap();
    assert_eq!(header.version, 3);
    for (i, value) in sample_values().into_iter().enumerate() {
        assert_eq!(header.metadata[&format!("key.{i}")], value);
    }
    let names: Vec<_> = header.tensors.iter().map(|t| t.name.as_str()).collect();
    assert_eq!(names, ["a.weight", "b.weight", "c.weight"]);
    assert_eq!(header.tensors[1].dims, [32, 2, 2]);
    assert_eq!(header.tensors[1].bytes, 4 * 34);
    assert!(header.tensors.iter().all(|t| t.offset.is_multiple_of(32)));
}

#[test]
fn truncation_at_any_length_is_an_error() {
    let bytes = sample();
    for length in 0..bytes.len() {
        let error = parse(&bytes[..length]).unwrap_err();
        assert!(!error.to_string().contains('\n'));
    }
}

#[test]
fn flipping_any_bit_never_panics_and_keeps_tensors_inside() {
    let mut bytes = sample();
    for i in 0..bytes.len() {
        for bit in 0..8 {
            bytes[i] ^= 1 << bit;
            if let Ok(header) = parse(&bytes) {
                let end = bytes.len() as u64;
                assert!(header.tensors.iter().all(|t| t.offset + t.bytes <= end));
            }
            bytes[i] ^= 1 << bit;
        }
    }
}

#[test]
fn version_2_is_read_and_others_are_named() {
    assert_eq!(Raw::new(2, 0, 0).parse(0).unwrap().version, 2);
    assert_eq!(Raw::new(1, 0, 0).parse(0), Err(FormatError::Version(1)));
    assert_eq!(Raw::new(4, 0, 0).parse(0), Err(FormatError::Version(4)));
    assert_eq!(
        Raw::new(3u32.swap_bytes(), 0, 0).parse(0),
        Err(FormatError::BigEndian)
    );
    assert_eq!(parse(b"plain text, no model"), Err(FormatError::Magic));
    assert_eq!(parse(b""), Err(FormatError::Magic));
}

#[test]
fn absurd_counts_are_refused_before_anything_is_allocated() {
    for (tensors, keys) in [
        (u64::MAX, 0),
        (0, u64::MAX),
        (1 << 40, 1),
        (1000, 0),
        (0, 1000),
    ] {
        assert!(
            Raw::new(3, tensors, keys).parse(64).is_err(),
            "{tensors} {keys}"
        );
    }
    for count in [u64::MAX, 1 << 62, 1 << 40, 1 << 21] {
        for ty in 0..13 {
            let array = Raw::new(3, 0, 1)
                .text("k")
                .u32(9)
                .u32(ty)
                .u64(count)
                .parse(64);
            assert!(array.is_err(), "{count} of type {ty}");
        }
        assert!(
            Raw::new(3, 0, 1)
                .text("k")
                .u32(8)
                .u64(count)
                .parse(64)
                .is_err()
        );
        assert!(Raw::new(3, 0, 1).u64(count).parse(64).is_err());
    }
}

#[test]
fn deep_nesting_is_refused() {
    let mut raw = Raw::new(3, 0, 1);
    raw.text("deep").u32(9);
    for _ in 0..10_000 {
        raw.u32(9).u64(1);
    }
    assert!(matches!(raw.parse(64), Err(FormatError::Nesting { .. })));
}

#[test]
fn bad_values_name_their_key() {
    let with = |ty: u32, tail: &[u8]| {
        let mut raw = Raw::new(3, 0, 1);
        raw.text("the.key").u32(ty).0.extend(tail);
        raw.parse(64).unwrap_err().to_string()
    };
    assert!(with(13, &[]).contains("the.key"));
    assert!(with(7, &[2]).contains("the.key"));
    let broken = Raw::new(3, 0, 1).text("a\nb").u32(4).u32(1).parse(0);
    assert!(matches!(broken, Err(FormatError::ControlCharacter { .. })));
    let twice = Raw::new(3, 0, 2)
        .text("k")
        .u32(4)
        .u32(1)
        .text("k")
        .u32(4)
        .u32(1)
        .parse(0);
    assert_eq!(twice, Err(FormatError::DuplicateKey { key: "k".into() }));
}

#[test]
fn alignment_must_be_a_sane_power_of_two() {
    let with = |alignment: u32| {
        Raw::new(3, 0, 1)
            .text("general.alignment")
            .u32(4)
            .u32(alignment)
            .parse(0)
    };
    assert_eq!(with(64).unwrap().alignment, 64);
    for bad in [0, 1, 3, 33, 1 << 21, u32::MAX] {
        assert!(
            matches!(with(bad), Err(FormatError::Alignment { .. })),
            "{bad}"
        );
    }
    let text = Raw::new(3, 0, 1)
        .text("general.alignment")
        .u32(8)
        .text("32")
        .parse(0);
    assert!(text.unwrap_err().to_string().contains("string"));
}

#[test]
fn bad_tensors_are_refused_by_name() {
    assert!(one_tensor(&[64], 0, 0).is_ok());
    assert!(matches!(
        one_tensor(&[], 0, 0),
        Err(FormatError::Dimensions { .. })
    ));
    assert!(matches!(
        one_tensor(&[1; 5], 0, 0),
        Err(FormatError::Dimensions { .. })
    ));
    assert!(matches!(
        one_tensor(&[4, 0], 0, 0),
        Err(FormatError::ZeroDimension { .. })
    ));
    assert!(matches!(
        one_tensor(&[33], 8, 0),
        Err(FormatError::PartialBlock { .. })
    ));
    assert!(matches!(
        one_tensor(&[4], 0, 31),
        Err(FormatError::Misaligned { .. })
    ));
    assert!(matches!(
        one_tensor(&[65], 0, 0),
        Err(FormatError::OutsideFile { .. })
    ));
    assert!(matches!(
        one_tensor(&[4], 0, 256),
        Err(FormatError::OutsideFile { .. })
    ));
    assert!(matches!(
        one_tensor(&[4], 0, u64::MAX - 31),
        Err(FormatError::OutsideFile { .. })
    ));
    for dims in [
        &[u64::MAX][..],
        &[1 << 40, 1 << 40],
        &[32, u64::MAX],
        &[1 << 62, 4, 1, 1],
    ] {
        assert!(
            matches!(one_tensor(dims, 0, 0), Err(FormatError::TooLarge { .. })),
            "{dims:?}"
        );
    }
    let pair = |name: &str, offset| {
        Raw::new(3, 2, 0)
            .tensor("t", &[16], 0, 0)
            .tensor(name, &[16], 0, offset)
            .parse(256)
    };
    assert!(pair("u", 64).is_ok());
    assert_eq!(
        pair("u", 32),
        Err(FormatError::Overlap {
            first: "t".into(),
            second: "u".into()
        })
    );
    assert_eq!(
        pair("t", 64),
        Err(FormatError::DuplicateTensor { tensor: "t".into() })
    );
}

#[test]
fn a_tensor_of_foreign_type_is_kept_with_its_id() {
    let header = Raw::new(3, 2, 0)
        .tensor("t", &[16], 0, 0)
        .tensor("mtp.0.e_proj.weight", &[64, 64], 2, 64)
        .parse(256)
        .unwrap();
    assert_eq!(header.tensors[1].ty.unwrap_err().0, 2);
    let inside = Raw::new(3, 2, 0)
        .tensor("t", &[16], 0, 0)
        .tensor("x", &[64], 2, 32)
        .parse(256);
    assert!(matches!(inside, Err(FormatError::Overlap { .. })));
}

#[test]
fn the_writer_refuses_what_the_reader_refuses() {
    let mut w = GgufWriter::new();
    w.add("k", Value::U8(1)).unwrap();
    assert!(w.add("k", Value::U8(1)).is_err());
    w.add_tensor("t", &[4], GgmlType::F32).unwrap();
    for (name, dims) in [
        ("t", &[4][..]),
        ("a", &[]),
        ("b", &[0]),
        ("c", &[u64::MAX, 9]),
    ] {
        assert!(w.add_tensor(name, dims, GgmlType::F32).is_err(), "{name}");
    }
    assert!(w.add_tensor("q", &[31], GgmlType::Q8_0).is_err());
    for bad in [0, 4, 48, 1 << 21] {
        assert!(GgufWriter::new().with_alignment(bad).is_err(), "{bad}");
    }
    assert!(w.add("general.alignment", Value::U32(64)).is_err());
    let short = w.write_to(std::io::sink(), |_, out| out.write_all(&[0; 15]));
    assert!(matches!(
        short,
        Err(WriteError::Length {
            expected: 16,
            written: 15,
            ..
        })
    ));
}

#[test]
fn another_alignment_round_trips() {
    let mut w = GgufWriter::new().with_alignment(256).unwrap();
    w.add_tensor("a", &[1], GgmlType::F32).unwrap();
    w.add_tensor("b", &[1], GgmlType::F32).unwrap();
    let header = parse(&written(&w)).unwrap();
    assert_eq!(header.alignment, 256);
    assert!(header.tensors.iter().all(|t| t.offset.is_multiple_of(256)));
}

fn array() -> impl Strategy<Value = Array> {
    let leaf = prop_oneof![
        vec(any::<u8>(), 0..9).prop_map(Array::U8),
        vec(any::<i8>(), 0..9).prop_map(Array::I8),
        vec(any::<u16>(), 0..9).prop_map(Array::U16),
        vec(any::<i32>(), 0..9).prop_map(Array::I32),
        vec(any::<u32>(), 0..9).prop_map(Array::U32),
        vec(-1e9f32..1e9, 0..9).prop_map(Array::F32),
        vec(any::<bool>(), 0..9).prop_map(Array::Bool),
        vec(".{0,9}", 0..9).prop_map(Array::String),
        vec(any::<u64>(), 0..9).prop_map(Array::U64),
        vec(any::<i64>(), 0..9).prop_map(Array::I64),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| vec(inner, 0..4).prop_map(Array::Array))
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..400)) {
        let _ = parse(&bytes);
        let mut headed = b"GGUF\x03\0\0\0".to_vec();
        headed.extend(&bytes);
        let _ = parse(&headed);
    }

    #[test]
    fn arbitrary_bytes_behind_small_counts_never_panic(
        tensors in 0u64..4, keys in 0u64..4, bytes in vec(any::<u8>(), 0..300),
    ) {
        let mut raw = Raw::new(3, tensors, keys);
        raw.0.extend(&bytes);
        let _ = raw.parse(64);
    }

    #[test]
    fn overwritten_stretches_never_panic(
        at in 0usize..1000, patch in vec(prop_oneof![Just(0u8), Just(0xff), any::<u8>()], 1..12),
    ) {
        let mut bytes = sample();
        let at = at % bytes.len();
        for (slot, byte) in bytes[at..].iter_mut().zip(patch) {
            *slot = byte;
        }
        let _ = parse(&bytes);
    }

    #[test]
    fn any_value_round_trips(
        arrays in vec(array(), 0..4), text in ".{0,40}", number in any::<i64>(),
    ) {
        let mut w = GgufWriter::new();
        for (i, array) in arrays.iter().enumerate() {
            w.add(&format!("a{i}"), Value::Array(array.clone())).unwrap();
        }
        w.add("text", Value::String(text.clone())).unwrap();
        w.add("number", Value::I64(number)).unwrap();
        let header = parse(&written(&w)).unwrap();
        for (i, array) in arrays.into_iter().enumerate() {
            prop_assert_eq!(&header.metadata[&format!("a{i}")], &Value::Array(array));
        }
        prop_assert_eq!(&header.metadata["text"], &Value::String(text));
        prop_assert_eq!(&header.metadata["number"], &Value::I64(number));
    }

    #[test]
    fn any_tensor_table_round_trips(shapes in vec((vec(1u64..5, 1..5), 0usize..12), 0..6)) {
        let mut w = GgufWriter::new();
        for (i, (dims, ty)) in shapes.iter().enumerate() {
            let ty = GgmlType::ALL[*ty];
            let mut dims = dims.clone();
            dims[0] *= ty.block_elements() as u64;
            w.add_tensor(&format!("t{i}"), &dims, ty).unwrap();
        }
        let header = parse(&written(&w)).unwrap();
        prop_assert_eq!(header.tensors.len(), w.tensors().len());
        for (read, planned) in header.tensors.iter().zip(w.tensors()) {
            prop_assert_eq!(&read.name, &planned.name);
            prop_assert_eq!(&read.dims, &planned.dims);
            prop_assert_eq!(read.ty, Ok(planned.ty));
            prop_assert_eq!(read.offset, header.data_start + planned.offset);
            prop_assert_eq!(read.bytes, planned.bytes);
        }
    }
}
