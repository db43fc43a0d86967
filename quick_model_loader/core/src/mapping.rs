//! Ranges of this process's address space.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{self, NonNull};

use crate::width::to_usize;

/// The size of a huge page; mappings begin at multiples of it, so that huge pages can be mapped as such.
pub const HUGE_PAGE_BYTES: u64 = 2 << 20;

/// What may be done with mapped memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reads and writes, seen by every process that maps the same memory.
    Shared,
    /// Reads only; a write is a segmentation fault.
    ReadOnly,
    /// Reads, and writes that this process alone sees: a page that is written to is copied.
    CopyOnWrite,
}

/// A range of addresses that is unmapped when dropped.
///
/// Invariant: the range belongs to this object alone, from `reserve` on.
#[derive(Debug)]
pub struct Mapping {
    address: NonNull<u8>,
    bytes: u64,
}

// SAFETY: a mapping is as valid on one thread as on another; it hands out raw pointers only.
unsafe impl Send for Mapping {}
// SAFETY: as above; shared access reads two immutable fields.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Takes a range of addresses, inaccessible as yet, that begins at a multiple of the huge page size.
    ///
    /// # Errors
    ///
    /// The operating system's, `ENOMEM` above all.
    pub fn reserve(bytes: u64) -> io::Result<Self> {
        let too_large = || io::Error::from_raw_os_error(libc::ENOMEM);
        let padded = bytes.checked_add(HUGE_PAGE_BYTES).ok_or_else(too_large)?;
        let padded = to_usize(padded);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let start = unsafe { libc::mmap(ptr::null_mut(), padded, libc::PROT_NONE, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = start.cast::<u8>();
        let head = start.align_offset(to_usize(HUGE_PAGE_BYTES));
        let address = start.wrapping_add(head);
        let kept = to_usize(round_up_to_page(bytes));
        unmap(start, head);
        unmap(address.wrapping_add(kept), padded - head - kept);
        let address = NonNull::new(address).ok_or_else(too_large)?;
        Ok(Self { address, bytes })
    }

    /// Puts `bytes` bytes of `file` from `file_offset` on at `offset` of the range.
    ///
    /// # Errors
    ///
    /// The operating system's; `EINVAL` if the range does not hold the part.
    pub fn place(
        &mut self,
        offset: u64,
        bytes: u64,
        file: BorrowedFd<'_>,
        file_offset: u64,
        access: Access,
    ) -> io::Result<()> {
        let invalid = || io::Error::from_raw_os_error(libc::EINVAL);
        let end = offset.checked_add(bytes).ok_or_else(invalid)?;
        if end > round_up_to_page(self.bytes) {
            return Err(invalid());
        }
        let address = self.address.as_ptr().wrapping_add(to_usize(offset));
        let length = to_usize(bytes);
        let file_offset = libc::off_t::try_from(file_offset).map_err(|_| invalid())?;
        let (protection, sharing) = match access {
            Access::Shared => (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED),
            Access::ReadOnly => (libc::PROT_READ, libc::MAP_SHARED),
            Access::CopyOnWrite => {
                (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_NORESERVE)
            }
        };
        let flags = sharing | libc::MAP_FIXED;
        // SAFETY: the part lies in this mapping's own range, which nobody has a reference into while `self` is
        // borrowed exclusively.
        let placed =
            unsafe { libc::mmap(address.cast(), length, protection, flags, file.as_raw_fd(), file_offset) };
        if placed == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Forbids writing from now on.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub fn make_read_only(&self) -> io::Result<()> {
        // SAFETY: the range is this mapping's own, and its owner wants writes to fault.
        let code = unsafe { libc::mprotect(self.address.as_ptr().cast(), self.length(), libc::PROT_READ) };
        if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Gives the kernel advice on a part of the range.
    ///
    /// # Errors
    ///
    /// The operating system's; `EINVAL` if the range does not hold the part.
    pub fn advise(&self, offset: u64, bytes: u64, advice: i32) -> io::Result<()> {
        let invalid = || io::Error::from_raw_os_error(libc::EINVAL);
        let end = offset.checked_add(bytes).filter(|end| *end <= self.bytes).ok_or_else(invalid)?;
        let address = self.address.as_ptr().wrapping_add(to_usize(offset));
        let length = to_usize(end - offset);
        // SAFETY: the part lies in this mapping's own range; no advice given here discards content.
        let code = unsafe { libc::madvise(address.cast(), length, advice) };
        if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Where the range begins.
    #[must_use]
    pub const fn address(&self) -> *mut u8 {
        self.address.as_ptr()
    }

    /// How long it is.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The length that is really mapped: whole pages.
    fn length(&self) -> usize {
        to_usize(round_up_to_page(self.bytes))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        unmap(self.address.as_ptr(), self.length());
    }
}

/// Pages are 4 KiB here as for direct I/O; larger ones only leave a gap behind.
fn round_up_to_page(bytes: u64) -> u64 {
    bytes.next_multiple_of(crate::BLOCK_BYTES)
}

fn unmap(address: *mut u8, bytes: usize) {
    if bytes > 0 {
        // SAFETY: only ever called with parts of a mapping's own range that nothing refers to any more. It fails for
        // want of memory only, and then the range stays mapped, which harms nobody.
        unsafe { libc::munmap(address.cast(), bytes) };
    }
}

#[cfg(test)]
#[cfg(not(miri))]
mod tests {
    use super::{Access, HUGE_PAGE_BYTES, Mapping};
    use std::fs::File;
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::slice;

    fn content(mapping: &Mapping) -> &[u8] {
        // SAFETY: the tests look only at parts that they placed before.
        unsafe { slice::from_raw_parts(mapping.address(), usize::try_from(mapping.bytes()).unwrap()) }
    }

    fn file(content: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        file
    }

    #[test]
    fn parts_of_a_file_appear_in_any_order() {
        let file = file(&[vec![1; 4096], vec![2; 4096], vec![3; 4096]].concat());
        let mut mapping = Mapping::reserve(8192).unwrap();
        assert_eq!(mapping.address().addr() as u64 % HUGE_PAGE_BYTES, 0);
        mapping.place(0, 4096, file.as_fd(), 8192, Access::ReadOnly).unwrap();
        mapping.place(4096, 4096, file.as_fd(), 0, Access::ReadOnly).unwrap();
        assert_eq!(content(&mapping), [vec![3; 4096], vec![1; 4096]].concat());
        assert!(mapping.place(4096, 8192, file.as_fd(), 0, Access::ReadOnly).is_err());
        assert!(mapping.advise(4096, 8192, libc::MADV_NORMAL).is_err());
    }

    #[test]
    fn copy_on_write_leaves_the_file_alone() {
        let file = file(&[7; 4096]);
        let mut mapping = Mapping::reserve(4096).unwrap();
        mapping.place(0, 4096, file.as_fd(), 0, Access::CopyOnWrite).unwrap();
        // SAFETY: the byte was just mapped, writable.
        unsafe { mapping.address().write(9) };
        assert_eq!(content(&mapping)[..2], [9, 7]);
        let mut other = Mapping::reserve(4096).unwrap();
        other.place(0, 4096, file.as_fd(), 0, Access::Shared).unwrap();
        other.make_read_only().unwrap();
        assert_eq!(content(&other)[0], 7);
    }

    #[test]
    fn absurd_sizes_are_refused() {
        assert_eq!(Mapping::reserve(u64::MAX).unwrap_err().raw_os_error(), Some(libc::ENOMEM));
        assert_eq!(Mapping::reserve(1 << 60).unwrap_err().raw_os_error(), Some(libc::ENOMEM));
    }
}
