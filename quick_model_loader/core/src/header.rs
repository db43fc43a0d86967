//! The header of one safetensors file: eight bytes of length, then JSON, then the tensors' data without gaps.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::json::Pairs;
use crate::{Dtype, Error, Fault, HeaderFault, Result};

/// The longest header that the format allows.
pub const MAX_HEADER_BYTES: u64 = 100_000_000;

/// The little-endian length in front of the JSON.
const LENGTH_BYTES: u64 = 8;

const METADATA: &str = "__metadata__";

/// One tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tensor {
    /// Its name, unique within a checkpoint.
    pub name: String,
    /// The type of its elements.
    pub dtype: Dtype,
    /// Its extent per dimension; empty for a scalar.
    pub shape: Vec<u64>,
    /// Which bytes of the file hold it, counted from the file's beginning.
    pub range: Range<u64>,
}

/// A validated header.
///
/// Invariant: the tensors' ranges follow each other without gap or overlap from `bytes` to the end of the file, and
/// each is as long as dtype and shape say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Where the header ends and the data begins.
    pub bytes: u64,
    /// The tensors in the order of their data.
    pub tensors: Vec<Tensor>,
    /// The free-form texts under `__metadata__`.
    pub metadata: Vec<(String, String)>,
}

/// A tensor as the JSON has it; unknown keys are left alone, as the reference implementation does.
#[derive(Deserialize)]
struct RawTensor {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl Header {
    /// Reads and validates the header of `file`, whose length is `file_bytes`; `path` is for the messages.
    ///
    /// # Errors
    ///
    /// [`Fault::Header`] if a rule of the format is broken, [`Fault::Truncated`] if the file is shorter than the header
    /// says, [`Fault::Io`] if it cannot be read.
    pub fn read(path: &Path, file: &File, file_bytes: u64) -> Result<Self> {
        if file_bytes < LENGTH_BYTES {
            return Err(Error::new(path, Fault::Header(HeaderFault::NoLength(file_bytes))));
        }
        let mut length = 0_u64.to_le_bytes();
        file.read_exact_at(&mut length, 0).map_err(|source| Error::io(path, "read", source).at_offset(0))?;
        let json_bytes = u64::from_le_bytes(length);
        let too_long = || Error::new(path, Fault::Header(HeaderFault::TooLong(json_bytes)));
        if json_bytes > MAX_HEADER_BYTES {
            // Most files that are not safetensors end up here; say so when the text is plainly something else.
            let mut first = [0];
            let is_header = file.read_at(&mut first, LENGTH_BYTES).is_ok() && first == *b"{";
            return Err(if is_header {
                too_long()
            } else {
                Error::new(path, Fault::Header(HeaderFault::NoBrace)).at_offset(LENGTH_BYTES)
            });
        }
        if json_bytes > file_bytes - LENGTH_BYTES {
            let fault =
                Fault::Truncated { expected_bytes: LENGTH_BYTES + json_bytes, actual_bytes: file_bytes };
            return Err(Error::new(path, fault).at_offset(file_bytes));
        }
        let mut json = vec![0; usize::try_from(json_bytes).map_err(|_| too_long())?];
        file.read_exact_at(&mut json, LENGTH_BYTES)
            .map_err(|source| Error::io(path, "read", source).at_offset(LENGTH_BYTES))?;
        Self::parse(path, &json, file_bytes)
    }

    /// Validates `json`, the header's text without its length, of a file of `file_bytes` bytes.
    ///
    /// # Errors
    ///
    /// As [`Header::read`], without [`Fault::Io`].
    pub fn parse(path: &Path, json: &[u8], file_bytes: u64) -> Result<Self> {
        let fail = |fault| Error::new(path, Fault::Header(fault));
        if json.first() != Some(&b'{') {
            return Err(fail(HeaderFault::NoBrace).at_offset(LENGTH_BYTES));
        }
        let text = std::str::from_utf8(json).map_err(|error| {
            fail(HeaderFault::NotUtf8(error)).at_offset(LENGTH_BYTES + error.valid_up_to() as u64)
        })?;
        let entries: Pairs<&RawValue> =
            serde_json::from_str(text).map_err(|error| fail(HeaderFault::Json(error)))?;
        if let Some(name) = entries.duplicate() {
            return Err(fail(HeaderFault::DuplicateName).for_tensor(name.to_owned()));
        }
        let bytes = LENGTH_BYTES + json.len() as u64;
        let mut metadata = Vec::new();
        let mut tensors = Vec::with_capacity(entries.0.len());
        for (name, value) in entries.0 {
            if name == METADATA {
                metadata = parse_metadata(value).map_err(|fault| fail(fault).for_tensor(name))?;
            } else {
                let tensor = parse_tensor(&name, value).map_err(|fault| fail(fault).for_tensor(name))?;
                tensors.push(tensor);
            }
        }
        tensors.sort_by_key(|tensor| (tensor.range.start, tensor.range.end));
        check_coverage(path, &mut tensors, bytes, file_bytes)?;
        Ok(Self { bytes, tensors, metadata })
    }
}

fn parse_metadata(value: &RawValue) -> std::result::Result<Vec<(String, String)>, HeaderFault> {
    let pairs: Pairs<String> = serde_json::from_str(value.get()).map_err(HeaderFault::Json)?;
    if pairs.duplicate().is_some() {
        return Err(HeaderFault::DuplicateName);
    }
    Ok(pairs.0)
}

/// Checks what one tensor's entry says of itself; its range is still relative to the data.
fn parse_tensor(name: &str, value: &RawValue) -> std::result::Result<Tensor, HeaderFault> {
    let raw: RawTensor = serde_json::from_str(value.get()).map_err(HeaderFault::Json)?;
    let Some(dtype) = Dtype::from_name(&raw.dtype) else {
        return Err(HeaderFault::UnknownDtype(raw.dtype));
    };
    let elements = raw.shape.iter().try_fold(1_u64, |product, &extent| product.checked_mul(extent));
    let bits = elements.and_then(|elements| elements.checked_mul(dtype.bits()));
    let (Some(elements), Some(bits)) = (elements, bits) else {
        return Err(HeaderFault::Overflow(raw.shape));
    };
    if bits % 8 != 0 {
        return Err(HeaderFault::PartialByte { elements, dtype: dtype.name() });
    }
    let expected_bytes = bits / 8;
    let (begin, end) = raw.data_offsets;
    let Some(span_bytes) = end.checked_sub(begin) else {
        return Err(HeaderFault::Reversed { begin, end });
    };
    if span_bytes != expected_bytes {
        let (dtype, shape) = (dtype.name(), raw.shape);
        return Err(HeaderFault::WrongSize { span_bytes, expected_bytes, dtype, shape });
    }
    Ok(Tensor { name: name.to_owned(), dtype, shape: raw.shape, range: begin..end })
}

/// Checks that the sorted tensors fill the file's data exactly, and makes their ranges relative to the file.
fn check_coverage(path: &Path, tensors: &mut [Tensor], header_bytes: u64, file_bytes: u64) -> Result<()> {
    let data_bytes = file_bytes.saturating_sub(header_bytes);
    let mut previous_end = 0;
    for tensor in tensors {
        let Range { start: begin, end } = tensor.range;
        let fault = if begin < previous_end {
            Some(Fault::Header(HeaderFault::Overlap { begin, previous_end }))
        } else if begin > previous_end {
            Some(Fault::Header(HeaderFault::Hole { begin, previous_end }))
        } else if end > data_bytes {
            let expected_bytes = header_bytes.saturating_add(end);
            Some(Fault::Truncated { expected_bytes, actual_bytes: file_bytes })
        } else {
            None
        };
        if let Some(fault) = fault {
            let offset = header_bytes.saturating_add(begin);
            return Err(Error::new(path, fault).for_tensor(tensor.name.clone()).at_offset(offset));
        }
        // No overflow: both ends are at most `data_bytes`, and `header_bytes + data_bytes` is the file's length.
        tensor.range = header_bytes + begin..header_bytes + end;
        previous_end = end;
    }
    if previous_end < data_bytes {
        let fault = HeaderFault::TrailingBytes(data_bytes - previous_end);
        return Err(Error::new(path, Fault::Header(fault)).at_offset(header_bytes + previous_end));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::Header;
    use crate::{Error, Fault, HeaderFault};
    use proptest::prelude::*;
    use safetensors::SafeTensors;

    fn parse(json: &str, data_bytes: usize) -> Result<Header, Error> {
        Header::parse(Path::new("m.safetensors"), json.as_bytes(), (8 + json.len() + data_bytes) as u64)
    }

    fn entry(dtype: &str, shape: &str, begin: u64, end: u64) -> String {
        format!(r#"{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
    }

    fn one(dtype: &str, shape: &str, begin: u64, end: u64) -> String {
        format!(r#"{{"a":{}}}"#, entry(dtype, shape, begin, end))
    }

    #[test]
    fn tensors_come_in_the_order_of_their_data() {
        let json = format!(
            r#"{{"__metadata__":{{"format":"pt"}},"b":{},"a":{},"empty":{}}}   "#,
            entry("F32", "[2]", 4, 12),
            entry("F4", "[8]", 0, 4),
            entry("F16", "[0,7]", 12, 12)
        );
        let header = parse(&json, 12).unwrap();
        let data = 8 + json.len() as u64;
        assert_eq!(header.bytes, data);
        let found: Vec<_> = header.tensors.iter().map(|t| (t.name.as_str(), t.range.clone())).collect();
        assert_eq!(
            found,
            [("a", data..data + 4), ("b", data + 4..data + 12), ("empty", data + 12..data + 12)]
        );
        assert_eq!(header.metadata, [("format".to_owned(), "pt".to_owned())]);
    }

    #[test]
    fn every_broken_rule_has_its_own_fault() {
        use HeaderFault as F;
        macro_rules! faults {
            ($($json:expr, $bytes:expr => $pattern:pat, $tensor:expr;)*) => {$(
                let error = parse(&$json, $bytes).expect_err(&$json);
                assert!(matches!(error.fault(), Fault::Header($pattern)), "{}: {error}", $json);
                assert_eq!(error.tensor(), $tensor, "{}", $json);
            )*};
        }
        let twice = format!(r#"{{"a":{0},"a":{0}}}"#, entry("U8", "[1]", 0, 1));
        let overlap = format!(r#"{{"a":{},"b":{}}}"#, entry("U8", "[2]", 0, 2), entry("U8", "[2]", 1, 3));
        let same = format!(r#"{{"a":{0},"b":{0}}}"#, entry("U8", "[2]", 0, 2));
        let hole = format!(r#"{{"a":{},"b":{}}}"#, entry("U8", "[2]", 0, 2), entry("U8", "[2]", 3, 5));
        let none = Option::<&str>::None;
        faults! {
            "", 0 => F::NoBrace, none;
            " {}", 0 => F::NoBrace, none;
            "[]", 0 => F::NoBrace, none;
            "{", 0 => F::Json(_), none;
            "{}x", 0 => F::Json(_), none;
            "{}", 3 => F::TrailingBytes(3), none;
            r#"{"a":1}"#, 0 => F::Json(_), Some("a");
            r#"{"a":{"dtype":"U8","shape":[1]}}"#, 1 => F::Json(_), Some("a");
            r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1,2]}}"#, 1 => F::Json(_), Some("a");
            r#"{"__metadata__":{"x":1}}"#, 0 => F::Json(_), Some("__metadata__");
            r#"{"__metadata__":{"x":"1","x":"2"}}"#, 0 => F::DuplicateName, Some("__metadata__");
            twice, 1 => F::DuplicateName, Some("a");
            one("F7", "[1]", 0, 1), 1 => F::UnknownDtype(_), Some("a");
            one("U8", "[-1]", 0, 1), 1 => F::Json(_), Some("a");
            one("U8", "[1.0]", 0, 1), 1 => F::Json(_), Some("a");
            one("U8", "[4294967296,4294967296]", 0, 1), 1 => F::Overflow(_), Some("a");
            one("F64", "[18446744073709551615]", 0, 1), 1 => F::Overflow(_), Some("a");
            one("F4", "[3]", 0, 1), 1 => F::PartialByte { .. }, Some("a");
            one("U8", "[1]", 1, 0), 1 => F::Reversed { .. }, Some("a");
            one("F32", "[1]", 0, 3), 3 => F::WrongSize { .. }, Some("a");
            one("U8", "[1]", 1, 2), 2 => F::Hole { .. }, Some("a");
            overlap, 3 => F::Overlap { .. }, Some("b");
            same, 2 => F::Overlap { .. }, Some("b");
            hole, 5 => F::Hole { .. }, Some("b");
        }
    }

    #[test]
    fn a_file_shorter_than_its_header_says_is_truncated() {
        let error = parse(&one("U8", "[9]", 0, 9), 8).unwrap_err();
        assert!(matches!(error.fault(), Fault::Truncated { .. }), "{error}");
        assert_eq!(error.tensor(), Some("a"));
        let absurd = parse(&one("U8", "[1152921504606846976]", 0, 1 << 60), 8).unwrap_err();
        assert!(matches!(absurd.fault(), Fault::Truncated { .. }), "{absurd}");
    }

    /// Headers that are nearly right: the small alphabet of names, types and numbers makes collisions likely.
    fn nearly_right() -> impl Strategy<Value = String> {
        let number = prop_oneof![0_u64..6, Just(u64::MAX), Just(1 << 32)];
        let dtype = prop::sample::select(vec!["U8", "F16", "F32", "F4", "F6_E2M3", "X1"]);
        let shape = prop::collection::vec(number.clone(), 0..3);
        let tensor = ("[abc]", dtype, shape, number.clone(), number);
        prop::collection::vec(tensor, 0..4).prop_map(|tensors| {
            let entries: Vec<_> = tensors
                .iter()
                .map(|(name, dtype, shape, begin, end)| {
                    format!(r#""{name}":{}"#, entry(dtype, &format!("{shape:?}"), *begin, *end))
                })
                .collect();
            format!("{{{}}}", entries.join(","))
        })
    }

    /// Headers that are right, then damaged in one byte or not at all.
    fn damaged() -> impl Strategy<Value = (Vec<u8>, usize)> {
        let sizes = prop::collection::vec(0_u64..4, 0..4);
        (sizes, prop::option::of((any::<prop::sample::Index>(), any::<u8>()))).prop_map(|(sizes, damage)| {
            let mut end = 0;
            let entries: Vec<_> = sizes
                .iter()
                .enumerate()
                .map(|(number, size)| {
                    let begin = end;
                    end += size * 2;
                    format!(r#""t{number}":{}"#, entry("BF16", &format!("[{size}]"), begin, end))
                })
                .collect();
            let mut json = format!("{{{}}}", entries.join(",")).into_bytes();
            if let Some((place, byte)) = damage {
                let place = place.index(json.len());
                json[place] = byte;
            }
            (json, usize::try_from(end).unwrap())
        })
    }

    /// We accept nothing that the reference implementation refuses, and refuse more only where the format's text is
    /// stricter than its implementation.
    fn agrees_with_the_reference(json: &[u8], data_bytes: usize) -> Result<(), TestCaseError> {
        let mut file = (json.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(json);
        file.resize(file.len() + data_bytes, 0);
        let reference = SafeTensors::deserialize(&file);
        match Header::parse(Path::new("m"), json, file.len() as u64) {
            Ok(header) => {
                let reference = reference.map_err(|error| TestCaseError::fail(error.to_string()))?;
                prop_assert_eq!(header.tensors.len(), reference.len());
            }
            Err(error) => {
                let stricter =
                    matches!(error.fault(), Fault::Header(HeaderFault::DuplicateName | HeaderFault::NoBrace));
                prop_assert!(stricter || reference.is_err(), "only we refuse: {}", error);
            }
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn nearly_right_headers_agree_with_the_reference(json in nearly_right(), data_bytes in 0_usize..8) {
            agrees_with_the_reference(json.as_bytes(), data_bytes)?;
        }

        #[test]
        fn damaged_headers_agree_with_the_reference((json, data_bytes) in damaged()) {
            agrees_with_the_reference(&json, data_bytes)?;
        }

        #[test]
        fn noise_agrees_with_the_reference(noise in prop::collection::vec(any::<u8>(), 0..64)) {
            agrees_with_the_reference(&noise, 0)?;
        }
    }
}
