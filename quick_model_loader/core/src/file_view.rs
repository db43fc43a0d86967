//! A file's pages in the page cache, read where they lie.
//!
//! A copy from there can go past the processor's caches, which read(2) does not offer and which is a third faster. But
//! a mapped file that is truncated kills whoever touches the pages that are gone (`SIGBUS`). So they are touched under
//! a read lease only (fcntl(2), `F_SETLEASE`): while it is held nobody has the file open for writing, and whoever wants
//! to open it so, or to truncate it, waits in the kernel until the lease is given back. That is as soon as the pieces
//! that are being copied (8 MiB each) are done. (The kernel waits 45 s for that, unless it is told otherwise.) Before a
//! piece is copied its pages are mapped by `MADV_POPULATE_READ`, which tells of a disk that fails instead of killing.
//! Where there is no lease to be had (files of another user, network file systems, files that are open for writing)
//! files are read, not mapped.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::stream_copy::stream_copy;
use crate::width::to_usize;
use crate::{Access, Mapping};

/// Pieces of smaller files are not worth a mapping: the kernel reads a file ahead in pieces that grow from one page up,
/// and until they have grown mapping page by page costs more than the copy saves.
const MIN_FILE_BYTES: u64 = if cfg!(test) { 512 << 10 } else { 64 << 20 };

/// File systems whose files change through this machine's kernel only, so that its leases hold:
/// ext2 to ext4, XFS, Btrfs, F2FS and memory.
const LOCAL: [u32; 5] = [0xEF53, 0x5846_5342, 0x9123_683E, 0xF2F5_2010, 0x0102_1994];

/// `fcntl(2)`: which signal tells of a lease that is to end. One number on all architectures; the libc crate lacks it.
const F_SETSIG: i32 = 10;

/// One file, seen by the threads that load it.
#[derive(Debug, Default)]
pub struct FileView {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Pieces being copied. Invariant: the lease is held if and only if there is one.
    readers: usize,
    view: Option<Arc<Mapping>>,
    refused: bool,
}

/// One piece being copied.
struct Reading<'a> {
    of: &'a FileView,
    file: &'a File,
    view: Arc<Mapping>,
}

impl FileView {
    /// Copies `range` of `file`, which has `file_bytes` bytes, to `target`; `false` if it must be read instead (nothing
    /// was written then).
    ///
    /// # Safety
    ///
    /// The memory from `target` on must be valid for writes, and nobody else's, for as many bytes as the range has.
    pub unsafe fn copy(&self, file: &File, file_bytes: u64, range: &Range<u64>, target: *mut u8) -> bool {
        let bytes = range.end - range.start;
        if file_bytes < MIN_FILE_BYTES {
            return false;
        }
        let Some(reading) = self.enter(file, file_bytes) else { return false };
        if reading.view.advise(range.start, bytes, libc::MADV_POPULATE_READ).is_err() {
            // An old kernel, or a page that cannot be had: reading will tell.
            self.lock().refused = true;
            return false;
        }
        let source = reading.view.address().wrapping_add(to_usize(range.start));
        // SAFETY: `advise` checked that the range lies in the view and mapped its pages, and the lease keeps them from
        // being taken away while `reading` lives; the caller vouches for the target, which is no file mapping of ours.
        unsafe { stream_copy(source, target, to_usize(bytes)) };
        true
    }

    /// Takes part in the lease; `None` if there is none, or if somebody waits for its end.
    fn enter<'a>(&'a self, file: &'a File, file_bytes: u64) -> Option<Reading<'a>> {
        let mut state = self.lock();
        if state.refused {
            return None;
        }
        if state.readers == 0 {
            if take_lease(file).is_err() {
                state.refused = true;
                return None;
            }
        } else if !is_leased(file) {
            return None;
        }
        // From here on dropping this gives the lease back, if it is the last one.
        state.readers += 1;
        let view = state.view_of(file, file_bytes);
        drop(state);
        let view = view.inspect_err(|_| self.leave(file, true)).ok()?;
        Some(Reading { of: self, file, view })
    }

    fn leave(&self, file: &File, refuse: bool) {
        let mut state = self.lock();
        state.refused |= refuse;
        state.readers -= 1;
        if state.readers == 0 {
            give_back_lease(file);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // What the lock guards is whole between any two statements.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The mapping, which must lie within the file as it is now; the caller holds the lease.
    fn view_of(&mut self, file: &File, file_bytes: u64) -> io::Result<Arc<Mapping>> {
        if file.metadata()?.len() < file_bytes {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(view) = &self.view {
            return Ok(Arc::clone(view));
        }
        let mut view = Mapping::reserve(file_bytes)?;
        view.place(0, file_bytes, file.as_fd(), 0, Access::ReadOnly)?;
        Ok(Arc::clone(self.view.insert(Arc::new(view))))
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.of.leave(self.file, false);
    }
}

/// Takes a read lease, without a signal when somebody wants it broken: that is asked before each piece.
fn take_lease(file: &File) -> io::Result<()> {
    if !is_local(file) {
        return Err(io::ErrorKind::Unsupported.into());
    }
    // The default signal would end the process. This one is ignored by default, and below nobody is named to get it.
    control(file, F_SETSIG, libc::SIGURG)?;
    control(file, libc::F_SETLEASE, libc::F_RDLCK)?;
    control(file, libc::F_SETOWN, 0).inspect_err(|_| give_back_lease(file))?;
    Ok(())
}

/// Whether the lease is held, and nobody waits for its end.
fn is_leased(file: &File) -> bool {
    control(file, libc::F_GETLEASE, 0).is_ok_and(|kind| kind == libc::F_RDLCK)
}

fn give_back_lease(file: &File) {
    // It can only fail if there is no lease, and then there is nothing to give back.
    let _ = control(file, libc::F_SETLEASE, libc::F_UNLCK);
}

fn control(file: &File, command: i32, argument: i32) -> io::Result<i32> {
    // SAFETY: the descriptor is open as long as `file` lives; these commands take a number and touch no memory.
    let answer = unsafe { libc::fcntl(file.as_raw_fd(), command, argument) };
    if answer == -1 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

fn is_local(file: &File) -> bool {
    let mut facts = std::mem::MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the structure has the C library's layout and outlives the call, which fills it in.
    if unsafe { libc::fstatfs(file.as_raw_fd(), facts.as_mut_ptr()) } != 0 {
        return false;
    }
    // SAFETY: the call succeeded, so it filled the structure in.
    let kind = unsafe { facts.assume_init() }.f_type;
    u32::try_from(kind).is_ok_and(|kind| LOCAL.contains(&kind))
}

#[cfg(test)]
#[cfg(not(miri))]
mod tests {
    use std::fs::{self, File, OpenOptions};
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use super::{FileView, MIN_FILE_BYTES, is_leased};
    use crate::width::to_usize;

    const PIECE: u64 = 100_000;

    fn content() -> Vec<u8> {
        (0..MIN_FILE_BYTES + 777).map(|place| u8::try_from(place * 31 % 251).unwrap()).collect()
    }

    /// A file of `content()` on the disk of the sources, if a lease can be had there.
    fn file(name: &str) -> Option<(tempfile::TempDir, File)> {
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        fs::write(folder.path().join(name), content()).unwrap();
        let file = File::open(folder.path().join(name)).unwrap();
        if let Err(error) = super::take_lease(&file) {
            eprintln!("not tested: no lease to be had here: {error}");
            return None;
        }
        super::give_back_lease(&file);
        Some((folder, file))
    }

    fn copy(view: &FileView, file: &File, range: &std::ops::Range<u64>) -> Option<Vec<u8>> {
        let mut target = vec![0_u8; to_usize(range.end - range.start)];
        // SAFETY: the vector has as many bytes as the range.
        unsafe { view.copy(file, content().len() as u64, range, target.as_mut_ptr()) }.then_some(target)
    }

    #[test]
    fn pieces_are_what_the_file_holds_and_the_lease_ends_with_them() {
        let Some((_folder, file)) = file("pieces") else { return };
        let view = FileView::default();
        for range in [0..PIECE, 4096..content().len() as u64] {
            let found = copy(&view, &file, &range).unwrap();
            assert_eq!(found, content()[to_usize(range.start)..to_usize(range.end)]);
            assert!(!is_leased(&file));
        }
    }

    #[test]
    fn a_file_that_is_open_for_writing_is_left_to_be_read() {
        let Some((folder, file)) = file("written") else { return };
        let _writer = OpenOptions::new().write(true).open(folder.path().join("written")).unwrap();
        assert!(copy(&FileView::default(), &file, &(0..PIECE)).is_none());
    }

    #[test]
    fn a_file_that_shrank_is_left_to_be_read() {
        let Some((folder, file)) = file("shrunk") else { return };
        let view = FileView::default();
        assert!(copy(&view, &file, &(0..PIECE)).is_some());
        OpenOptions::new().write(true).open(folder.path().join("shrunk")).unwrap().set_len(5000).unwrap();
        assert!(copy(&view, &file, &(0..PIECE)).is_none());
    }

    #[test]
    fn who_wants_to_truncate_waits_for_the_pieces_under_way_and_no_new_ones_begin() {
        let Some((folder, file)) = file("raced") else { return };
        let view = FileView::default();
        let bytes = content().len() as u64;
        let reading = view.enter(&file, bytes).unwrap();
        let path = folder.path().join("raced");
        let (done, truncated) = mpsc::channel();
        let writer = thread::spawn(move || {
            OpenOptions::new().write(true).open(path).unwrap().set_len(0).unwrap();
            done.send(()).unwrap();
        });
        while is_leased(&file) {
            thread::yield_now(); // until the writer waits for the lease's end
        }
        assert!(view.enter(&file, bytes).is_none());
        assert!(truncated.recv_timeout(Duration::from_millis(1)).is_err());
        assert_eq!(file.metadata().unwrap().len(), bytes);
        drop(reading);
        truncated.recv().unwrap();
        writer.join().unwrap();
        assert!(copy(&view, &file, &(0..PIECE)).is_none());
    }
}
