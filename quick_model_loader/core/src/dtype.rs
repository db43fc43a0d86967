//! The element types of the safetensors format.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Declares the enum, its names and its sizes in one table, so that they cannot disagree.
macro_rules! dtypes {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $bits:literal;)*) => {
        /// An element type; the names are the format's own.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Dtype { $($(#[$doc])* $variant,)* }

        impl Dtype {
            /// Every type of the format.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The name the file uses, for example `BF16`.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Bits per element; below 8 for the packed types.
            #[must_use]
            pub const fn bits(self) -> u64 {
                match self { $(Self::$variant => $bits,)* }
            }

            /// The type of that name, if the format has one.
            #[must_use]
            pub fn from_name(name: &str) -> Option<Self> {
                match name { $($name => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

dtypes! {
    /// One byte per truth value.
    Bool = "BOOL", 8;
    /// Four-bit float (MXFP4), two per byte.
    F4 = "F4", 4;
    /// Six-bit float, 2 exponent bits, packed.
    F6E2M3 = "F6_E2M3", 6;
    /// Six-bit float, 3 exponent bits, packed.
    F6E3M2 = "F6_E3M2", 6;
    /// Unsigned byte.
    U8 = "U8", 8;
    /// Signed byte.
    I8 = "I8", 8;
    /// Eight-bit float, 5 exponent bits.
    F8E5M2 = "F8_E5M2", 8;
    /// Eight-bit float, 4 exponent bits.
    F8E4M3 = "F8_E4M3", 8;
    /// Eight-bit power of two, the scale of the MX types.
    F8E8M0 = "F8_E8M0", 8;
    /// Eight-bit float, 4 exponent bits, no negative zero.
    F8E4M3Fnuz = "F8_E4M3FNUZ", 8;
    /// Eight-bit float, 5 exponent bits, no negative zero.
    F8E5M2Fnuz = "F8_E5M2FNUZ", 8;
    /// Signed 16-bit integer.
    I16 = "I16", 16;
    /// Unsigned 16-bit integer.
    U16 = "U16", 16;
    /// IEEE half precision.
    F16 = "F16", 16;
    /// Brain float.
    Bf16 = "BF16", 16;
    /// Signed 32-bit integer.
    I32 = "I32", 32;
    /// Unsigned 32-bit integer.
    U32 = "U32", 32;
    /// IEEE single precision.
    F32 = "F32", 32;
    /// Complex number of two single-precision parts.
    C64 = "C64", 64;
    /// IEEE double precision.
    F64 = "F64", 64;
    /// Signed 64-bit integer.
    I64 = "I64", 64;
    /// Unsigned 64-bit integer.
    U64 = "U64", 64;
}

impl Serialize for Dtype {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Dtype {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = <&str>::deserialize(deserializer)?;
        Self::from_name(name).ok_or_else(|| D::Error::custom(format!("unknown dtype {name:?}")))
    }
}

#[cfg(test)]
mod tests {
    use super::Dtype;

    #[test]
    fn names_and_sizes_are_those_of_the_reference_implementation() {
        for dtype in Dtype::ALL {
            assert_eq!(Dtype::from_name(dtype.name()), Some(*dtype));
            let reference: safetensors::Dtype =
                serde_json::from_value(serde_json::Value::from(dtype.name())).unwrap();
            assert_eq!(dtype.bits(), reference.bitsize() as u64, "{}", dtype.name());
        }
        assert_eq!(Dtype::from_name("f32"), None);
    }
}
