//! One range of memory that processes share, cut into chunks.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::mapping::HUGE_PAGE_BYTES;
use crate::sync::{Mutex, lock};
use crate::width::to_usize;
use crate::{Access, BLOCK_BYTES, Error, Fault, Mapping, Result};
use serde::{Deserialize, Serialize};

/// What errors about the arena name as their path: it has no name in any file system.
const NAME: &str = "memfd:quick_model_loader";

/// The default size of a chunk: small models waste little, large ones have few pieces.
pub const CHUNK_BYTES: u64 = 16 << 20;

/// Linux 5.14.
const MADV_POPULATE_WRITE: i32 = 23;
/// Linux 6.1.
const MADV_COLLAPSE: i32 = 25;
/// How often a huge page is asked for that the kernel says it may have another time.
const COLLAPSE_ATTEMPTS: u32 = 3;

/// What the arena's memory is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PageKind {
    /// Huge pages that the administrator set aside.
    HugeTlb,
    /// Huge pages that the kernel assembled on demand.
    Collapsed,
    /// Small pages: loads are slower by a factor of up to three.
    Small,
}

impl PageKind {
    /// A word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::HugeTlb => "hugetlb",
            Self::Collapsed => "collapsed",
            Self::Small => "small",
        }
    }
}

/// Shared memory in chunks, and how to look at it.
///
/// Nothing is ever moved. A chunk gets its pages when it is prepared, and keeps them.
#[derive(Debug)]
pub struct Arena {
    file: OwnedFd,
    /// The same memory, for those who may not write to it.
    read_only: OwnedFd,
    base: Mapping,
    chunk_bytes: u64,
    kind: PageKind,
    prepared: Vec<Mutex<bool>>,
    prepared_bytes: AtomicU64,
    huge_bytes: AtomicU64,
}

impl Arena {
    /// An arena of at least `capacity_bytes` in chunks of `chunk_bytes` (a multiple of the huge page size). What pages
    /// it can have is tried out; `huge_pages` false takes small ones without trying.
    ///
    /// # Errors
    ///
    /// [`Fault::Io`] where the memory cannot be had; [`Fault::Capacity`] if the machine has less.
    pub fn new(capacity_bytes: u64, chunk_bytes: u64, huge_pages: bool) -> Result<Self> {
        let capacity_bytes = capacity_bytes
            .checked_next_multiple_of(chunk_bytes)
            .filter(|bytes| u32::try_from(bytes / chunk_bytes).is_ok());
        let machine_bytes = machine_bytes();
        let Some(bytes) = capacity_bytes.filter(|bytes| *bytes <= machine_bytes) else {
            let needed_bytes = capacity_bytes.unwrap_or(u64::MAX);
            return Err(Error::new(
                Path::new(NAME),
                Fault::Capacity { needed_bytes, capacity_bytes: machine_bytes },
            ));
        };
        if huge_pages && let Ok(arena) = Self::with(bytes, chunk_bytes, PageKind::HugeTlb) {
            return Ok(arena);
        }
        let mut arena = Self::with(bytes, chunk_bytes, PageKind::Small)?;
        if huge_pages && arena.probe_collapse() {
            arena.kind = PageKind::Collapsed;
        }
        Ok(arena)
    }

    fn with(bytes: u64, chunk_bytes: u64, kind: PageKind) -> Result<Self> {
        let fail = |action| move |source| Error::io(Path::new(NAME), action, source);
        let file = create_memfd(c"quick_model_loader", kind == PageKind::HugeTlb).map_err(fail("create"))?;
        let sized = File::from(file.try_clone().map_err(fail("duplicate"))?);
        sized.set_len(bytes).map_err(fail("size"))?;
        Self::over(file, chunk_bytes, kind)
    }

    /// The arena in a memory file that another process made, with all that is in it.
    ///
    /// # Errors
    ///
    /// [`Fault::Io`] where it cannot be mapped, or is none.
    pub fn over(file: OwnedFd, chunk_bytes: u64, kind: PageKind) -> Result<Self> {
        let fail = |action| move |source| Error::io(Path::new(NAME), action, source);
        let sized = File::from(file.try_clone().map_err(fail("duplicate"))?);
        let bytes = sized.metadata().map_err(fail("stat"))?.len();
        let whole = bytes > 0 && chunk_bytes > 0 && bytes.is_multiple_of(chunk_bytes);
        if !whole || u32::try_from(bytes / chunk_bytes).is_err() {
            return Err(fail("map")(io::ErrorKind::InvalidData.into()));
        }
        let link = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        let read_only = File::open(link).map_err(fail("reopen"))?.into();
        let mut base = Mapping::reserve(bytes).map_err(fail("map"))?;
        base.place(0, bytes, file.as_fd(), 0, Access::Shared).map_err(fail("map"))?;
        let prepared = (0..bytes / chunk_bytes).map(|_| Mutex::new(false)).collect();
        let (prepared_bytes, huge_bytes) = (AtomicU64::new(0), AtomicU64::new(0));
        Ok(Self { file, read_only, base, chunk_bytes, kind, prepared, prepared_bytes, huge_bytes })
    }

    /// The size of a chunk.
    #[must_use]
    pub const fn chunk_bytes(&self) -> u64 {
        self.chunk_bytes
    }

    /// The number of chunks.
    #[must_use]
    pub fn chunk_count(&self) -> u32 {
        // Checked at birth.
        u32::try_from(self.prepared.len()).unwrap_or(u32::MAX)
    }

    /// The size of the whole.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.base.bytes()
    }

    /// What its pages are, as far as the probe could tell.
    #[must_use]
    pub const fn kind(&self) -> PageKind {
        self.kind
    }

    /// How much of it has pages.
    #[must_use]
    pub fn prepared_bytes(&self) -> u64 {
        self.prepared_bytes.load(Ordering::Relaxed)
    }

    /// How much of that has huge ones.
    #[must_use]
    pub fn huge_bytes(&self) -> u64 {
        self.huge_bytes.load(Ordering::Relaxed)
    }

    /// The whole of it, in the order of the chunks; for registering with devices.
    #[must_use]
    pub const fn base(&self) -> &Mapping {
        &self.base
    }

    /// The memory itself, for a process that is to go on with it.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// The descriptor that other processes get: it cannot be mapped for writing.
    #[must_use]
    pub fn read_only_fd(&self) -> BorrowedFd<'_> {
        self.read_only.as_fd()
    }

    /// Gives a chunk its pages, unless it has them. Others that want the same chunk wait.
    ///
    /// # Errors
    ///
    /// [`Fault::Io`] if there is no memory for it.
    pub fn prepare(&self, chunk: u32) -> Result<()> {
        let Some(prepared) = self.prepared.get(chunk as usize) else { return Ok(()) };
        let mut prepared = lock(prepared);
        if !*prepared {
            let fail = |source| Error::io(Path::new(NAME), "populate", source);
            let huge_bytes = self.populate(u64::from(chunk) * self.chunk_bytes).map_err(fail)?;
            self.huge_bytes.fetch_add(huge_bytes, Ordering::Relaxed);
            self.prepared_bytes.fetch_add(self.chunk_bytes, Ordering::Relaxed);
            *prepared = true;
        }
        Ok(())
    }

    /// Chunks side by side in a mapping of `bytes` bytes.
    ///
    /// # Errors
    ///
    /// [`Fault::Io`].
    pub fn view(&self, chunks: &[u32], bytes: u64, access: Access) -> Result<Mapping> {
        let file = if access == Access::Shared { self.file.as_fd() } else { self.read_only.as_fd() };
        map_chunks(file, chunks, self.chunk_bytes, bytes, access)
            .map_err(|source| Error::io(Path::new(NAME), "map", source))
    }

    /// Populates the chunk at `offset`; returns how many bytes of it got huge pages.
    fn populate(&self, offset: u64) -> io::Result<u64> {
        let mut huge_bytes = 0;
        match self.kind {
            PageKind::HugeTlb => {
                self.base.advise(offset, self.chunk_bytes, MADV_POPULATE_WRITE)?;
                return Ok(self.chunk_bytes);
            }
            PageKind::Collapsed => huge_bytes = self.collapse_all(offset),
            PageKind::Small => {}
        }
        if huge_bytes < self.chunk_bytes {
            self.base.advise(offset, self.chunk_bytes, MADV_POPULATE_WRITE)?;
        }
        Ok(huge_bytes)
    }

    /// Makes the chunk at `offset` huge pages as far as they can be had; returns how many bytes that is.
    fn collapse_all(&self, offset: u64) -> u64 {
        let pages = || (offset..offset + self.chunk_bytes).step_by(to_usize(HUGE_PAGE_BYTES));
        // An untouched file has nothing to collapse: the kernel wants one page of each.
        let touched = pages().try_for_each(|page| self.base.advise(page, BLOCK_BYTES, MADV_POPULATE_WRITE));
        // All at once, because every call has the kernel wait for all processors.
        if touched.is_ok() && self.base.advise(offset, self.chunk_bytes, MADV_COLLAPSE).is_ok() {
            return self.chunk_bytes;
        }
        pages().filter(|page| self.collapse(*page)).count() as u64 * HUGE_PAGE_BYTES
    }

    /// Makes the 2 MiB at `offset` one huge page.
    fn collapse(&self, offset: u64) -> bool {
        if self.base.advise(offset, BLOCK_BYTES, MADV_POPULATE_WRITE).is_err() {
            return false;
        }
        for _ in 0..COLLAPSE_ATTEMPTS {
            match self.base.advise(offset, HUGE_PAGE_BYTES, MADV_COLLAPSE) {
                Ok(()) => return true,
                Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {}
                Err(_) => return false,
            }
        }
        false
    }

    fn probe_collapse(&self) -> bool {
        self.bytes() >= HUGE_PAGE_BYTES && self.collapse(0)
    }
}

/// Maps chunks of the arena behind `file` side by side; neighbours in the arena become one piece.
///
/// # Errors
///
/// The operating system's.
pub fn map_chunks(
    file: BorrowedFd<'_>,
    chunks: &[u32],
    chunk_bytes: u64,
    bytes: u64,
    access: Access,
) -> io::Result<Mapping> {
    let whole_bytes = chunks.len() as u64 * chunk_bytes;
    if bytes > whole_bytes {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let mut mapping = Mapping::reserve(whole_bytes)?;
    let mut offset = 0;
    for run in chunks.chunk_by(|left, right| left.checked_add(1) == Some(*right)) {
        let Some(first) = run.first() else { continue };
        let run_bytes = run.len() as u64 * chunk_bytes;
        mapping.place(offset, run_bytes, file, u64::from(*first) * chunk_bytes, access)?;
        offset += run_bytes;
    }
    Ok(mapping)
}

/// A file in memory without a name: gone with its last descriptor and mapping, whatever happens to this process.
///
/// # Errors
///
/// The operating system's.
pub fn create_memfd(name: &std::ffi::CStr, huge: bool) -> io::Result<OwnedFd> {
    let flags = libc::MFD_CLOEXEC | if huge { libc::MFD_HUGETLB | libc::MFD_HUGE_2MB } else { 0 };
    // SAFETY: `name` is a C string that outlives the call.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// How much memory the machine has.
fn machine_bytes() -> u64 {
    // SAFETY: sysconf reads a constant.
    let pages = unsafe { libc::sysconf(libc::_SC_PHYS_PAGES) };
    // SAFETY: likewise.
    let page_bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(pages).unwrap_or(0).saturating_mul(u64::try_from(page_bytes).unwrap_or(0))
}

#[cfg(test)]
#[cfg(not(miri))]
mod tests {
    use super::{Arena, HUGE_PAGE_BYTES, PageKind};
    use crate::width::to_usize;
    use crate::{Access, Fault};

    #[test]
    fn views_show_the_chunks_in_the_order_asked_for() {
        let arena = Arena::new(4 * HUGE_PAGE_BYTES, HUGE_PAGE_BYTES, true).unwrap();
        assert_eq!(arena.chunk_count(), 4);
        for chunk in 0..4 {
            arena.prepare(chunk).unwrap();
            arena.prepare(chunk).unwrap();
        }
        assert_eq!(arena.prepared_bytes(), arena.bytes());
        if arena.kind() == PageKind::Small {
            assert_eq!(arena.huge_bytes(), 0);
        }
        let chunks = [3, 0, 1];
        let view = arena.view(&chunks, 2 * HUGE_PAGE_BYTES + 5, Access::Shared).unwrap();
        for place in 0..3_u8 {
            let offset = usize::from(place) * usize::try_from(HUGE_PAGE_BYTES).unwrap();
            // SAFETY: the view has three chunks.
            unsafe { view.address().wrapping_add(offset).write(place + 1) };
        }
        let seen = |chunk: u64| {
            // SAFETY: the base has four chunks.
            unsafe { arena.base().address().wrapping_add(to_usize(chunk * HUGE_PAGE_BYTES)).read() }
        };
        assert_eq!([seen(3), seen(0), seen(1), seen(2)], [1, 2, 3, 0]);
        assert!(arena.view(&[0], HUGE_PAGE_BYTES + 1, Access::ReadOnly).is_err());
    }

    #[test]
    fn readers_cannot_map_it_for_writing() {
        let arena = Arena::new(1, HUGE_PAGE_BYTES, false).unwrap();
        assert_eq!((arena.bytes(), arena.kind()), (HUGE_PAGE_BYTES, PageKind::Small));
        let fd = arena.read_only_fd();
        assert!(super::map_chunks(fd, &[0], HUGE_PAGE_BYTES, 1, Access::Shared).is_err());
        assert!(super::map_chunks(fd, &[0], HUGE_PAGE_BYTES, 1, Access::ReadOnly).is_ok());
        assert!(super::map_chunks(fd, &[0], HUGE_PAGE_BYTES, 1, Access::CopyOnWrite).is_ok());
    }

    #[test]
    fn more_than_the_machine_has_is_refused() {
        for bytes in [u64::MAX, 1 << 50] {
            let error = Arena::new(bytes, HUGE_PAGE_BYTES, true).unwrap_err();
            assert!(matches!(error.fault(), Fault::Capacity { .. }), "{error}");
        }
    }
}
