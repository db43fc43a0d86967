//! Copies past the caches.
//!
//! A plain store first fetches the line that it is about to overwrite; a non-temporal one does not, which saves a third
//! of the memory traffic of a copy too large for the caches.

use std::ptr;

/// Below this a copy is left to `memcpy`: what was just written will be wanted soon.
const MIN_BYTES: usize = 16 << 10;

/// Copies `bytes` bytes; large copies bypass the caches.
///
/// # Safety
///
/// As for [`ptr::copy_nonoverlapping`]: the source is valid for reads, the target for writes, and they do not overlap.
pub unsafe fn stream_copy(source: *const u8, target: *mut u8, bytes: usize) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    if bytes >= MIN_BYTES {
        let head = target.align_offset(x86::LINE_BYTES);
        let lines = (bytes - head) / x86::LINE_BYTES;
        let tail = head + lines * x86::LINE_BYTES;
        // SAFETY: the head is shorter than the copy, being shorter than a line.
        unsafe { ptr::copy_nonoverlapping(source, target, head) };
        // SAFETY: the lines lie between head and tail, hence in both ranges, and `head` aligned the target.
        unsafe { x86::copy_lines(source.wrapping_add(head), target.wrapping_add(head), lines) };
        // SAFETY: what is left of both ranges.
        unsafe {
            ptr::copy_nonoverlapping(source.wrapping_add(tail), target.wrapping_add(tail), bytes - tail);
        };
        return;
    }
    // SAFETY: as the caller promised.
    unsafe { ptr::copy_nonoverlapping(source, target, bytes) };
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
mod x86 {
    use std::arch::x86_64::{
        __m128i, __m256i, _mm_loadu_si128, _mm_sfence, _mm_stream_si128, _mm256_loadu_si256,
        _mm256_stream_si256,
    };

    /// A cache line.
    pub const LINE_BYTES: usize = 64;

    /// Copies whole lines.
    ///
    /// # Safety
    ///
    /// `lines` lines from `source` are valid for reads, and from `target`, which is aligned to a line, for writes; they
    /// do not overlap.
    pub unsafe fn copy_lines(source: *const u8, target: *mut u8, lines: usize) {
        if std::arch::is_x86_feature_detected!("avx") {
            // SAFETY: the processor has AVX; the rest is the caller's promise.
            unsafe { copy_lines_avx(source, target, lines) };
        } else {
            // SAFETY: every x86-64 has SSE2; the rest is the caller's promise.
            unsafe { copy_lines_sse2(source, target, lines) };
        }
        // Other threads must see the lines before they see that the copy is over.
        // SAFETY: every x86-64 has SSE.
        unsafe { _mm_sfence() };
    }

    /// # Safety
    ///
    /// As for [`copy_lines`], on a processor with AVX.
    #[target_feature(enable = "avx")]
    #[expect(
        clippy::cast_ptr_alignment,
        reason = "sources are loaded unaligned, targets are aligned to a line"
    )]
    #[expect(clippy::multiple_unsafe_ops_per_block, reason = "one line is moved in one breath")]
    unsafe fn copy_lines_avx(source: *const u8, target: *mut u8, lines: usize) {
        let mut from = source.cast::<__m256i>();
        let mut to = target.cast::<__m256i>();
        for _ in 0..lines {
            // SAFETY: `from` and `to` stay within the lines that the caller vouches for; a line is two vectors.
            unsafe {
                let first = _mm256_loadu_si256(from);
                let second = _mm256_loadu_si256(from.add(1));
                _mm256_stream_si256(to, first);
                _mm256_stream_si256(to.add(1), second);
            }
            from = from.wrapping_add(2);
            to = to.wrapping_add(2);
        }
    }

    /// # Safety
    ///
    /// As for [`copy_lines`].
    #[expect(
        clippy::cast_ptr_alignment,
        reason = "sources are loaded unaligned, targets are aligned to a line"
    )]
    unsafe fn copy_lines_sse2(source: *const u8, target: *mut u8, lines: usize) {
        let mut from = source.cast::<__m128i>();
        let mut to = target.cast::<__m128i>();
        for _ in 0..4 * lines {
            // SAFETY: `from` stays within the lines that the caller vouches for; a line is four vectors.
            let vector = unsafe { _mm_loadu_si128(from) };
            // SAFETY: likewise `to`, which is aligned to a vector because the first one is aligned to a line.
            unsafe { _mm_stream_si128(to, vector) };
            from = from.wrapping_add(1);
            to = to.wrapping_add(1);
        }
    }

    #[cfg(test)]
    mod tests {
        #[test]
        fn both_ways_copy_every_byte() {
            let source: Vec<u8> = (0..1000).map(|number| u8::try_from(number % 251).unwrap()).collect();
            for copy in [super::copy_lines, super::copy_lines_sse2] {
                let mut target = vec![0_u8; 1024];
                let start = target.as_ptr().align_offset(super::LINE_BYTES);
                // SAFETY: 14 lines are 896 bytes: 3 + 896 <= 1000, and start + 896 < 64 + 896 <= 1024.
                unsafe { copy(source.as_ptr().wrapping_add(3), target.as_mut_ptr().wrapping_add(start), 14) };
                assert_eq!(target[start..start + 896], source[3..899]);
                assert!(target[..start].iter().chain(&target[start + 896..]).all(|byte| *byte == 0));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{MIN_BYTES, stream_copy};

    #[test]
    fn any_alignment_and_size() {
        let source: Vec<u8> = (0..2 * MIN_BYTES).map(|number| u8::try_from(number % 253).unwrap()).collect();
        for (from, to, bytes) in [
            (0, 0, 0),
            (1, 2, 100),
            (0, 0, MIN_BYTES - 1),
            (0, 0, MIN_BYTES),
            (3, 5, MIN_BYTES),
            (7, 1, MIN_BYTES + 777),
            (0, 63, 2 * MIN_BYTES - 64),
        ] {
            let mut target = vec![0xAA_u8; 2 * MIN_BYTES + 128];
            // SAFETY: both vectors are longer than the largest offset and size together.
            unsafe {
                stream_copy(source.as_ptr().wrapping_add(from), target.as_mut_ptr().wrapping_add(to), bytes);
            };
            assert_eq!(target[to..to + bytes], source[from..from + bytes]);
            assert!(target[..to].iter().chain(&target[to + bytes..]).all(|byte| *byte == 0xAA));
        }
    }
}
