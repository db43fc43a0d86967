//! Lengths on disk are `u64`, lengths in memory `usize`; here the two are the same.

#[cfg(not(target_pointer_width = "64"))]
compile_error!("models do not fit into a 32-bit address space");

/// The same number.
#[expect(clippy::cast_possible_truncation, reason = "both have 64 bits")]
pub const fn to_usize(bytes: u64) -> usize {
    bytes as usize
}
