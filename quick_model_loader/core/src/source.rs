//! An open file, readable through the page cache and, where the file system agrees, past it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::file_view::FileView;
use crate::width::to_usize;
use crate::{BLOCK_BYTES, Direct, Error, Fault, Identity, Result, residency, round_up_to_block};

/// How many bytes came which way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadBytes {
    pub direct: u64,
    pub buffered: u64,
}

/// Opens a regular file for reading and says which one it is; `flags` are passed on to open(2).
///
/// # Errors
///
/// [`Fault::NotACheckpoint`] for anything but a regular file, [`Fault::Io`] if it cannot be opened.
pub fn open_regular(path: &Path, flags: i32) -> Result<(File, Identity)> {
    let not_regular = || Error::new(path, Fault::NotACheckpoint("not a regular file"));
    // Asked before opening, because opening a device may have effects; asked again after, because it may be replaced
    // in between. O_NONBLOCK: opening a pipe must not wait for a writer.
    let metadata = fs::metadata(path).map_err(|source| Error::io(path, "open", source))?;
    if !metadata.is_file() {
        return Err(not_regular());
    }
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags | libc::O_NONBLOCK)
        .open(path)
        .map_err(|source| Error::io(path, "open", source))?;
    let metadata = file.metadata().map_err(|source| Error::io(path, "stat", source))?;
    if metadata.is_file() { Ok((file, Identity::of(&metadata))) } else { Err(not_regular()) }
}

/// Fails if `found` is not the file that was `expected`, or if that was written to.
///
/// # Errors
///
/// [`Fault::Changed`].
pub fn check_unchanged(path: &Path, expected: &Identity, found: &Identity) -> Result<()> {
    if found == expected {
        Ok(())
    } else if found.is_same_file(expected) {
        Err(Error::new(path, Fault::Changed("modified")))
    } else {
        Err(Error::new(path, Fault::Changed("replaced")))
    }
}

/// A file open for a load.
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    file_bytes: u64,
    buffered: File,
    view: FileView,
    direct: Option<File>,
    /// Set once a direct read was refused, so that every later job is spared the attempt.
    direct_refused: AtomicBool,
}

impl Source {
    /// Opens `path`, which must still be the file `expected`.
    ///
    /// # Errors
    ///
    /// [`Fault::Changed`] if it is not, else as [`open_regular`].
    pub fn open(path: &Path, expected: &Identity, try_direct: bool) -> Result<Self> {
        let (buffered, found) = open_regular(path, 0)?;
        check_unchanged(path, expected, &found)?;
        let mut direct = None;
        if try_direct {
            match open_regular(path, libc::O_DIRECT) {
                Ok((file, found)) => {
                    check_unchanged(path, expected, &found)?;
                    direct = Some(file);
                }
                // The file system has no direct I/O; the buffered file serves.
                Err(error) if error.errno().is_some_and(is_refusal) => {}
                Err(error) => return Err(error),
            }
        }
        let (path, file_bytes) = (path.to_owned(), expected.bytes);
        let (view, direct_refused) = (FileView::default(), AtomicBool::new(false));
        Ok(Self { path, file_bytes, buffered, view, direct, direct_refused })
    }

    /// Reads `range`, which is not empty, to `address`: past the page cache as far as `direct` and the file system
    /// agree, else through it.
    ///
    /// # Errors
    ///
    /// [`Fault::Truncated`] or [`Fault::Io`], with the byte that could not be read.
    ///
    /// # Safety
    ///
    /// The memory from `address` on must be valid for writes, and nobody else's, for as many bytes as the range has;
    /// if `direct` is not [`Direct::Never`], then for whole blocks of them, and range and address begin at blocks.
    pub unsafe fn read_range(
        &self,
        range: &Range<u64>,
        address: *mut u8,
        direct: Direct,
    ) -> Result<ReadBytes> {
        let mut counts = ReadBytes::default();
        let is_cached = direct != Direct::Always && residency::is_cached(&self.buffered, range);
        // SAFETY: the caller vouches for the memory.
        if is_cached && unsafe { self.view.copy(&self.buffered, self.file_bytes, range, address) } {
            counts.buffered = range.end - range.start;
            return Ok(counts);
        }
        let mut handle = self.direct().filter(|_| !is_cached && direct != Direct::Never);
        let mut offset = range.start;
        while offset < range.end {
            let wanted_bytes = range.end - offset;
            let place = address.wrapping_add(to_usize(offset - range.start));
            let result = if let Some(handle) = handle {
                // Whole blocks: the last one may reach past the file's end, into its padding.
                let request = round_up_to_block(wanted_bytes).unwrap_or(wanted_bytes);
                // SAFETY: the caller vouches for whole blocks of the range, and this is what is left of it.
                unsafe { read_at(handle, place, to_usize(request), offset) }
            } else {
                // SAFETY: the caller vouches for the range, and this is what is left of it.
                unsafe { read_at(&self.buffered, place, to_usize(wanted_bytes), offset) }
            };
            match result {
                Ok(0) => {
                    let fault = Fault::Truncated { expected_bytes: self.file_bytes, actual_bytes: offset };
                    return Err(Error::new(&self.path, fault).at_offset(offset));
                }
                Ok(count) => {
                    // A file that grew may fill its padding; that is noticed at the end.
                    let count = (count as u64).min(wanted_bytes);
                    *(if handle.is_some() { &mut counts.direct } else { &mut counts.buffered }) += count;
                    offset += count;
                    // A direct read that stopped inside a block cannot be continued as one.
                    handle = handle.filter(|_| offset.is_multiple_of(BLOCK_BYTES));
                }
                Err(error) if handle.is_some() && self.refuse_direct(&error) => handle = None,
                Err(error) => return Err(Error::io(&self.path, "read", error).at_offset(offset)),
            }
        }
        Ok(counts)
    }

    /// The file past the page cache, unless that is refused.
    fn direct(&self) -> Option<&File> {
        self.direct.as_ref().filter(|_| !self.direct_refused.load(Ordering::Relaxed))
    }

    /// Takes note that a direct read failed with `error`; `false` if that is no refusal of direct reads as such.
    fn refuse_direct(&self, error: &io::Error) -> bool {
        let refused = error.raw_os_error().is_some_and(is_refusal);
        if refused {
            self.direct_refused.store(true, Ordering::Relaxed);
        }
        refused
    }
}

/// How file systems say that they cannot read past the page cache (or not with this alignment).
fn is_refusal(errno: i32) -> bool {
    errno == libc::EINVAL || errno == libc::EOPNOTSUPP
}

/// Reads at most `bytes` bytes at `offset` of `file` to `address`; returns how many, 0 at the end of the file.
///
/// # Safety
///
/// `bytes` bytes from `address` must be valid for writes, and nothing else may access them meanwhile.
unsafe fn read_at(file: &File, address: *mut u8, bytes: usize, offset: u64) -> io::Result<usize> {
    let offset =
        libc::off64_t::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EOVERFLOW))?;
    loop {
        // SAFETY: the caller vouches for the memory; the descriptor is open as long as `file` lives.
        let count = unsafe { libc::pread64(file.as_raw_fd(), address.cast(), bytes, offset) };
        if let Ok(count) = usize::try_from(count) {
            return Ok(count);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
