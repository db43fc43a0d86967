//! Whether a range of a file lies in the page cache.

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;

/// `cachestat(2)` (Linux 6.5) has one number on all architectures but Alpha, which Rust does not support.
const SYS_CACHESTAT: libc::c_long = 451;

/// How many places of a range are probed where the kernel will not say what it holds.
const PROBES: u64 = 4;

#[repr(C)]
struct CachestatRange {
    offset: u64,
    bytes: u64,
}

/// Counts of pages.
#[repr(C)]
#[derive(Default)]
struct Cachestat {
    cached: u64,
    dirty: u64,
    writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

/// Whether all of `range` (not empty) is cached, so that reading it costs a copy and no disk access.
///
/// The answer is a hint: it may be out of date when it arrives, and a wrong one costs time only.
pub fn is_cached(file: &File, range: &Range<u64>) -> bool {
    cachestat(file, range).unwrap_or_else(|| probe(file, range))
}

/// Asks the kernel; `None` where it does not know the call, or will not tell (foreign files, containers).
fn cachestat(file: &File, range: &Range<u64>) -> Option<bool> {
    let page_bytes = page_bytes()?;
    let pages = range.end.div_ceil(page_bytes) - range.start / page_bytes;
    let request = CachestatRange { offset: range.start, bytes: range.end - range.start };
    let mut answer = Cachestat::default();
    // SAFETY: both structures have the kernel's layout and outlive the call, which writes to `answer` only.
    let code =
        unsafe { libc::syscall(SYS_CACHESTAT, file.as_raw_fd(), &raw const request, &raw mut answer, 0_u32) };
    (code == 0).then_some(answer.cached >= pages)
}

/// Reads single bytes, at even distances, that only the page cache may supply.
///
/// This rather than mincore(2), which since Linux 5.2 answers "all cached" for files that the caller may not write to.
fn probe(file: &File, range: &Range<u64>) -> bool {
    let last = range.end.saturating_sub(1);
    let step = (last - range.start) / (PROBES - 1);
    (0..PROBES).map(|probe| range.start + probe * step).chain([last]).all(|offset| {
        let Ok(offset) = libc::off64_t::try_from(offset) else { return false };
        let mut byte = 0_u8;
        let buffer = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
        // SAFETY: one buffer of one byte, which outlives the call.
        let count =
            unsafe { libc::preadv2(file.as_raw_fd(), &raw const buffer, 1, offset, libc::RWF_NOWAIT) };
        count == 1
    })
}

fn page_bytes() -> Option<u64> {
    // SAFETY: sysconf reads a constant.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(bytes).ok().filter(|bytes| *bytes > 0)
}

#[cfg(test)]
mod tests {
    use super::{cachestat, is_cached, probe};
    use std::io::Write;

    #[test]
    fn a_file_just_written_is_cached() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![7; 100_000]).unwrap();
        for range in [0..1, 0..100_000, 99_999..100_000, 5_000..9_000] {
            assert!(is_cached(&file, &range), "{range:?}");
            assert!(probe(&file, &range), "{range:?}");
            assert_ne!(cachestat(&file, &range), Some(false), "{range:?}");
        }
    }

    #[test]
    fn a_hole_is_not_cached() {
        let file = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        file.set_len(1 << 20).unwrap();
        assert_ne!(cachestat(&file, &(0..1 << 20)), Some(true));
    }
}
