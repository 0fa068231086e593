//! The head of a GGUF file, parsed from untrusted bytes. Every count, offset and length is checked
//! before it is used; nothing here does I/O.

use std::collections::{BTreeMap, HashSet};

use super::cursor::Cursor;
use super::error::FormatError;
use super::value::{Array, Value, ValueType};
use crate::quant::{GgmlType, UnknownType};

/// The alignment of tensor data in files that do not state one.
pub const DEFAULT_ALIGNMENT: u64 = 32;

pub(super) const ALIGNMENT_KEY: &str = "general.alignment";
pub(super) const LEAST_ALIGNMENT: u64 = 8;
pub(super) const MOST_ALIGNMENT: u64 = 1 << 20;
pub(super) const MOST_DIMENSIONS: usize = 4;
const MAGIC: [u8; 4] = *b"GGUF";
/// The header of the largest published model is 6 MB; this bounds what a hostile one can allocate.
const MOST_HEADER_BYTES: u64 = 64 << 20;
const MOST_TENSORS: u64 = 1 << 20;
const MOST_KEYS: u64 = 1 << 16;
const MOST_ELEMENTS: u64 = 1 << 22;
const MOST_NAME_BYTES: u64 = 1 << 10;
const MOST_STRING_BYTES: u64 = 16 << 20;
const MOST_NESTING: usize = 4;
/// What a foreign count may reserve at once; beyond it memory grows with the bytes really read.
const MOST_RESERVED: usize = 1 << 12;
/// Length, value type and the shortest value.
const LEAST_KEY_BYTES: u64 = 8 + 4 + 1;
/// Name length, dimension count, one dimension, type, offset.
const LEAST_TENSOR_BYTES: u64 = 8 + 4 + 8 + 4 + 8;

/// What the head of a GGUF file says, checked against the file's length.
#[derive(Clone, Debug, PartialEq)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// Tensors begin at multiples of so many bytes.
    pub alignment: u64,
    /// Where tensor data starts, in bytes from the start of the file.
    pub data_start: u64,
    /// Keys and values.
    pub metadata: BTreeMap<String, Value>,
    /// In file order.
    pub tensors: Vec<RawTensor>,
}

/// One entry of the tensor table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawTensor {
    /// Unique in the file, without control characters.
    pub name: String,
    /// Fastest first, 1 to 4 of them, none is 0.
    pub dims: Vec<u64>,
    /// The type, or its id where this engine cannot read it.
    pub ty: Result<GgmlType, UnknownType>,
    /// In bytes from the start of the file.
    pub offset: u64,
    /// 1 where the type cannot be read, and so the size is not known.
    pub bytes: u64,
}

/// Reads the head of a GGUF file (version 2 or 3, little-endian).
///
/// `file` is the whole file; only its header is looked at, so a mapping costs no more than the
/// header's pages. What comes back is consistent: all tensors of known type lie inside of the
/// file, aligned, as whole rows of whole blocks, and none overlaps another.
///
/// # Errors
/// Anything that is not so. Never panics, and never allocates more than a small multiple of the
/// header's own bytes.
pub fn parse(file: &[u8]) -> Result<Header, FormatError> {
    parse_head(file, file.len() as u64)
}

/// As [`parse`], for the first bytes of a file of `length` bytes whose tensors may be elsewhere.
///
/// # Errors
/// As [`parse`]; also if `head` ends inside of the header.
pub fn parse_head(head: &[u8], length: u64) -> Result<Header, FormatError> {
    let mut cursor = Cursor::new(head, MOST_HEADER_BYTES);
    if head.len() < MAGIC.len() || cursor.array::<4>("the magic")? != MAGIC {
        return Err(FormatError::Magic);
    }
    let version = cursor.u32("the version")?;
    match version {
        2 | 3 => {}
        swapped if (1..=3).contains(&swapped.swap_bytes()) => return Err(FormatError::BigEndian),
        other => return Err(FormatError::Version(other)),
    }
    let tensor_count = cursor.u64("the tensor count")?;
    let key_count = cursor.u64("the key count")?;
    check_count(
        "the tensor count",
        tensor_count,
        MOST_TENSORS,
        LEAST_TENSOR_BYTES,
        &cursor,
    )?;
    check_count(
        "the key count",
        key_count,
        MOST_KEYS,
        LEAST_KEY_BYTES,
        &cursor,
    )?;

    let metadata = read_metadata(&mut cursor, key_count)?;
    let alignment = alignment(&metadata)?;
    let mut tensors = read_tensors(&mut cursor, tensor_count)?;
    let data_start = cursor
        .position()
        .checked_next_multiple_of(alignment)
        .ok_or_else(|| cursor.truncated("the padding before the tensors"))?;
    place(&mut tensors, data_start, alignment, length)?;
    Ok(Header {
        version,
        alignment,
        data_start,
        metadata,
        tensors,
    })
}

fn check_count(
    what: &'static str,
    count: u64,
    most: u64,
    least_bytes: u64,
    cursor: &Cursor<'_>,
) -> Result<(), FormatError> {
    if count > most {
        return Err(FormatError::Count {
            what,
            count,
            limit: most,
        });
    }
    // Neither factor exceeds 2^24, so the product fits.
    cursor.check_follow(what, count, least_bytes)
}

fn read_metadata(
    cursor: &mut Cursor<'_>,
    count: u64,
) -> Result<BTreeMap<String, Value>, FormatError> {
    let mut metadata = BTreeMap::new();
    for _ in 0..count {
        let key = name(cursor, "a metadata key")?;
        let ty = value_type(cursor, &key)?;
        let value = read_value(cursor, &key, ty)?;
        if metadata.contains_key(&key) {
            return Err(FormatError::DuplicateKey { key });
        }
        metadata.insert(key, value);
    }
    Ok(metadata)
}

/// Names end up in messages of one line, so they must not break it.
fn name(cursor: &mut Cursor<'_>, what: &'static str) -> Result<String, FormatError> {
    let offset = cursor.position();
    let name = cursor.string(MOST_NAME_BYTES, what)?;
    if name.chars().any(char::is_control) {
        return Err(FormatError::ControlCharacter { what, offset });
    }
    Ok(name)
}

fn value_type(cursor: &mut Cursor<'_>, key: &str) -> Result<ValueType, FormatError> {
    let id = cursor.u32("a value type")?;
    ValueType::from_id(id).ok_or_else(|| FormatError::ValueType {
        key: key.to_owned(),
        id,
    })
}

fn read_bool(cursor: &mut Cursor<'_>, key: &str) -> Result<bool, FormatError> {
    match cursor.array::<1>(VALUE)? {
        [0] => Ok(false),
        [1] => Ok(true),
        [byte] => Err(FormatError::Bool {
            key: key.to_owned(),
            byte,
        }),
    }
}

const VALUE: &str = "a metadata value";

fn read_value(c: &mut Cursor<'_>, key: &str, ty: ValueType) -> Result<Value, FormatError> {
    Ok(match ty {
        ValueType::U8 => Value::U8(u8::from_le_bytes(c.array(VALUE)?)),
        ValueType::I8 => Value::I8(i8::from_le_bytes(c.array(VALUE)?)),
        ValueType::U16 => Value::U16(u16::from_le_bytes(c.array(VALUE)?)),
        ValueType::I16 => Value::I16(i16::from_le_bytes(c.array(VALUE)?)),
        ValueType::U32 => Value::U32(u32::from_le_bytes(c.array(VALUE)?)),
        ValueType::I32 => Value::I32(i32::from_le_bytes(c.array(VALUE)?)),
        ValueType::F32 => Value::F32(f32::from_le_bytes(c.array(VALUE)?)),
        ValueType::Bool => Value::Bool(read_bool(c, key)?),
        ValueType::String => Value::String(c.string(MOST_STRING_BYTES, VALUE)?),
        ValueType::Array => Value::Array(read_array(c, key, MOST_NESTING)?),
        ValueType::U64 => Value::U64(u64::from_le_bytes(c.array(VALUE)?)),
        ValueType::I64 => Value::I64(i64::from_le_bytes(c.array(VALUE)?)),
        ValueType::F64 => Value::F64(f64::from_le_bytes(c.array(VALUE)?)),
    })
}

/// Numbers of a fixed width, taken from the file in one piece.
fn numbers<const N: usize, T>(
    cursor: &mut Cursor<'_>,
    count: u64,
    decode: fn([u8; N]) -> T,
) -> Result<Vec<T>, FormatError> {
    let bytes = cursor.take(count * N as u64, VALUE)?;
    let (elements, _) = bytes.as_chunks::<N>();
    Ok(elements.iter().map(|&element| decode(element)).collect())
}

fn read_array(c: &mut Cursor<'_>, key: &str, depth: usize) -> Result<Array, FormatError> {
    let Some(depth) = depth.checked_sub(1) else {
        return Err(FormatError::Nesting {
            key: key.to_owned(),
            limit: MOST_NESTING,
        });
    };
    let ty = value_type(c, key)?;
    let n = c.u64("an array length")?;
    check_count("an array length", n, MOST_ELEMENTS, ty.least_bytes(), c)?;
    Ok(match ty {
        ValueType::U8 => Array::U8(numbers(c, n, u8::from_le_bytes)?),
        ValueType::I8 => Array::I8(numbers(c, n, i8::from_le_bytes)?),
        ValueType::U16 => Array::U16(numbers(c, n, u16::from_le_bytes)?),
        ValueType::I16 => Array::I16(numbers(c, n, i16::from_le_bytes)?),
        ValueType::U32 => Array::U32(numbers(c, n, u32::from_le_bytes)?),
        ValueType::I32 => Array::I32(numbers(c, n, i32::from_le_bytes)?),
        ValueType::F32 => Array::F32(numbers(c, n, f32::from_le_bytes)?),
        ValueType::U64 => Array::U64(numbers(c, n, u64::from_le_bytes)?),
        ValueType::I64 => Array::I64(numbers(c, n, i64::from_le_bytes)?),
        ValueType::F64 => Array::F64(numbers(c, n, f64::from_le_bytes)?),
        ValueType::Bool => Array::Bool(repeat(n, || read_bool(c, key))?),
        ValueType::String => Array::String(repeat(n, || c.string(MOST_STRING_BYTES, VALUE))?),
        ValueType::Array => Array::Array(repeat(n, || read_array(c, key, depth))?),
    })
}

/// `count` elements whose width is not known beforehand.
fn repeat<T>(
    count: u64,
    mut read: impl FnMut() -> Result<T, FormatError>,
) -> Result<Vec<T>, FormatError> {
    let reserve = usize::try_from(count).map_or(MOST_RESERVED, |n| n.min(MOST_RESERVED));
    let mut out = Vec::with_capacity(reserve);
    for _ in 0..count {
        out.push(read()?);
    }
    Ok(out)
}

fn alignment(metadata: &BTreeMap<String, Value>) -> Result<u64, FormatError> {
    let Some(value) = metadata.get(ALIGNMENT_KEY) else {
        return Ok(DEFAULT_ALIGNMENT);
    };
    let number = value.integer().and_then(|n| u64::try_from(n).ok());
    match number {
        Some(n) if n.is_power_of_two() && (LEAST_ALIGNMENT..=MOST_ALIGNMENT).contains(&n) => Ok(n),
        _ => Err(FormatError::Alignment {
            found: value
                .integer()
                .map_or_else(|| value.type_name(), |n| n.to_string()),
            least: LEAST_ALIGNMENT,
            most: MOST_ALIGNMENT,
        }),
    }
}

/// The tensor table; offsets are still relative to the data section.
fn read_tensors(cursor: &mut Cursor<'_>, count: u64) -> Result<Vec<RawTensor>, FormatError> {
    let mut seen = HashSet::new();
    repeat(count, || {
        let tensor = read_tensor(cursor)?;
        if !seen.insert(tensor.name.clone()) {
            return Err(FormatError::DuplicateTensor {
                tensor: tensor.name,
            });
        }
        Ok(tensor)
    })
}

fn read_tensor(cursor: &mut Cursor<'_>) -> Result<RawTensor, FormatError> {
    const WHAT: &str = "the tensor table";
    let name = name(cursor, "a tensor name")?;
    let dimensions = cursor.u32(WHAT)?;
    if dimensions == 0 || dimensions as usize > MOST_DIMENSIONS {
        return Err(FormatError::Dimensions {
            tensor: name,
            dimensions,
        });
    }
    let dims = repeat(dimensions.into(), || cursor.u64(WHAT))?;
    if dims.contains(&0) {
        return Err(FormatError::ZeroDimension { tensor: name, dims });
    }
    let ty = GgmlType::from_id(cursor.u32(WHAT)?);
    let offset = cursor.u64(WHAT)?;
    let bytes = match ty {
        Ok(ty) => tensor_bytes(&name, &dims, ty)?,
        Err(_) => 1,
    };
    Ok(RawTensor {
        name,
        dims,
        ty,
        offset,
        bytes,
    })
}

/// Bytes of a tensor whose rows are `dims[0]` long.
pub(super) fn tensor_bytes(name: &str, dims: &[u64], ty: GgmlType) -> Result<u64, FormatError> {
    let row = dims.first().copied().unwrap_or(0);
    let block = ty.block_elements();
    if !row.is_multiple_of(block as u64) {
        let tensor = name.to_owned();
        return Err(FormatError::PartialBlock {
            tensor,
            row,
            ty: ty.name(),
            block,
        });
    }
    let mut bytes = ty.row_bytes(row);
    for &n in dims.iter().skip(1) {
        bytes = bytes.and_then(|b| b.checked_mul(n));
    }
    bytes.ok_or_else(|| FormatError::TooLarge {
        tensor: name.to_owned(),
        dims: dims.to_vec(),
    })
}

/// Makes offsets absolute and checks that tensors lie aligned, inside of the file, and apart.
fn place(
    tensors: &mut [RawTensor],
    data_start: u64,
    alignment: u64,
    length: u64,
) -> Result<(), FormatError> {
    for t in tensors.iter_mut() {
        if !t.offset.is_multiple_of(alignment) {
            let (tensor, offset) = (t.name.clone(), t.offset);
            return Err(FormatError::Misaligned {
                tensor,
                offset,
                alignment,
            });
        }
        let start = data_start.checked_add(t.offset);
        let end = start.and_then(|s| s.checked_add(t.bytes));
        match (start, end) {
            (Some(start), Some(end)) if end <= length => t.offset = start,
            _ => {
                let end = end.unwrap_or(u64::MAX);
                return Err(FormatError::OutsideFile {
                    tensor: t.name.clone(),
                    end,
                    length,
                });
            }
        }
    }
    let mut order: Vec<&RawTensor> = tensors.iter().collect();
    order.sort_unstable_by_key(|t| t.offset);
    for pair in order.windows(2) {
        // All ends were checked above, so the sum does not overflow.
        if pair[0].offset + pair[0].bytes > pair[1].offset {
            let (first, second) = (pair[0].name.clone(), pair[1].name.clone());
            return Err(FormatError::Overlap { first, second });
        }
    }
    Ok(())
}
