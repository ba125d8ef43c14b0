//! Packed columns: a `bytes` field that holds little-endian u32 or f32 values, and what can be wrong with one.

/// A message that breaks the contract of `worker.proto`. Names the field and what it should have been.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("{field} has {bytes} bytes, which is not a whole number of 4-byte values")]
    Ragged { field: &'static str, bytes: usize },
    #[error("{field} has {actual} entries, but {expected} are due")]
    Length { field: &'static str, expected: usize, actual: usize },
    #[error("{field}[{index}] is {value}: {problem}")]
    Value { field: &'static str, index: usize, value: u64, problem: &'static str },
    #[error("{field}[{index}] is missing")]
    Missing { field: &'static str, index: usize },
}

pub(crate) fn pack(values: impl ExactSizeIterator<Item = u32>) -> Vec<u8> {
    let mut column = Vec::with_capacity(values.len() * 4);
    for value in values {
        column.extend_from_slice(&value.to_le_bytes());
    }
    column
}

pub(crate) fn pack_f32(values: impl ExactSizeIterator<Item = f32>) -> Vec<u8> {
    pack(values.map(f32::to_bits))
}

pub(crate) fn unpack<'a>(
    field: &'static str,
    column: &'a [u8],
) -> Result<impl ExactSizeIterator<Item = u32> + Clone + use<'a>, Malformed> {
    let (values, rest) = column.as_chunks::<4>();
    if !rest.is_empty() {
        return Err(Malformed::Ragged { field, bytes: column.len() });
    }
    Ok(values.iter().map(|bytes| u32::from_le_bytes(*bytes)))
}

/// Like [`unpack`], for a column whose length is known.
pub(crate) fn unpack_exactly<'a>(
    field: &'static str,
    column: &'a [u8],
    expected: usize,
) -> Result<impl ExactSizeIterator<Item = u32> + Clone + use<'a>, Malformed> {
    let values = unpack(field, column)?;
    check_length(field, expected, values.len())?;
    Ok(values)
}

pub(crate) fn unpack_f32_exactly<'a>(
    field: &'static str,
    column: &'a [u8],
    expected: usize,
) -> Result<impl ExactSizeIterator<Item = f32> + use<'a>, Malformed> {
    Ok(unpack_exactly(field, column, expected)?.map(f32::from_bits))
}

pub(crate) fn check_length(field: &'static str, expected: usize, actual: usize) -> Result<(), Malformed> {
    if actual == expected { Ok(()) } else { Err(Malformed::Length { field, expected, actual }) }
}
