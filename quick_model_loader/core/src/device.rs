//! Copies from the arena to a CUDA device, on the caller's stream.
//!
//! From an arena that is registered the device reads by itself; from others the bytes go through a ring of pinned
//! buffers.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use crate::copy::pieces_of;
use crate::cuda::Primary;
use crate::stream_copy::stream_copy;
use crate::width::to_usize;
use crate::{Arena, Error, Mapping, Move, Plan, Result};

/// Drivers refuse to register very large ranges in one call.
const REGISTER_BYTES: u64 = 64 << 30;
/// The size of a pinned buffer, and how many there are: while one is filled the others are read.
const STAGING_BYTES: u64 = 8 << 20;
const STAGING_BUFFERS: usize = 4;
/// The longest distance from row to row that every device takes.
const MAX_PITCH_BYTES: u64 = (1 << 31) - 1;

/// A file's number, which all processes that have the file see.
pub type ArenaId = u64;

/// Where an entry lies.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    /// Which arena.
    pub arena: ArenaId,
    /// The entry's chunks in it, in order.
    pub chunks: &'a [u32],
    /// The size of a chunk.
    pub chunk_bytes: u64,
    /// The entry's bytes side by side.
    pub view: &'a Mapping,
}

/// The number of the file behind `fd`.
///
/// # Errors
///
/// [`Fault::Io`](crate::Fault::Io).
pub fn arena_id(fd: BorrowedFd<'_>) -> Result<ArenaId> {
    // SAFETY: all zeroes are a valid `stat`.
    let mut status: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one structure.
    let code = unsafe { libc::fstat(fd.as_raw_fd(), &raw mut status) };
    if code == 0 {
        Ok(status.st_ino)
    } else {
        Err(Error::io(Path::new(""), "stat", std::io::Error::last_os_error()))
    }
}

/// Memory that stays mapped while it is registered.
#[derive(Debug)]
pub enum Base {
    /// This process's own arena.
    Own(Arc<Arena>),
    /// A mapping of another's.
    Other(Mapping),
}

impl Base {
    fn mapping(&self) -> &Mapping {
        match self {
            Self::Own(arena) => arena.base(),
            Self::Other(mapping) => mapping,
        }
    }
}

/// A CUDA device.
#[derive(Debug)]
pub struct Device {
    primary: Arc<Primary>,
    registered: Mutex<HashMap<ArenaId, Registration>>,
    staging: Mutex<Option<Staging>>,
}

impl Device {
    /// Device number `ordinal` of the driver in `library`.
    ///
    /// # Errors
    ///
    /// [`Fault::NoCuda`](crate::Fault::NoCuda) or [`Fault::Cuda`](crate::Fault::Cuda).
    pub fn open(library: &str, ordinal: u32) -> Result<Self> {
        let primary = Arc::new(Primary::open(library, ordinal)?);
        Ok(Self { primary, registered: Mutex::default(), staging: Mutex::default() })
    }

    /// Pins an arena for as long as this device is open, so that copies go straight to the device. Every page of an
    /// arena gets its memory by this. Nothing happens if it is registered already.
    ///
    /// # Errors
    ///
    /// [`Fault::Cuda`](crate::Fault::Cuda); then copies go through pinned buffers, as before.
    pub fn register(&self, id: ArenaId, base: Base) -> Result<()> {
        let mut registered = self.registered.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Vacant(place) = registered.entry(id) {
            place.insert(Registration::new(&self.primary, base)?);
        }
        Ok(())
    }

    /// Starts the copies of `plan` on `stream`, after what the stream has to do already. Returns when they are
    /// submitted; `keep` is held until they are done.
    ///
    /// # Errors
    ///
    /// [`Fault::Cuda`](crate::Fault::Cuda); then what was submitted before is waited for.
    ///
    /// # Safety
    ///
    /// The targets must be valid addresses of the device, and nobody else's, until the transfer is done; `keep` must
    /// keep the entry's bytes as they are.
    pub unsafe fn copy<K>(
        &self,
        plan: &Plan,
        origin: &Origin<'_>,
        stream: u64,
        keep: K,
    ) -> Result<Transfer<K>> {
        let event = self.primary.event()?;
        // From here on the transfer waits for whatever was submitted when it is dropped.
        let mut transfer =
            Transfer { primary: Arc::clone(&self.primary), event, stream, is_done: false, keep };
        let base = {
            let registered = self.registered.lock().unwrap_or_else(PoisonError::into_inner);
            registered.get(&origin.arena).map(Registration::address)
        };
        let submitted = match base {
            // SAFETY: as the caller promised.
            Some(base) => unsafe { self.copy_directly(plan, origin, base, stream) },
            // SAFETY: likewise.
            None => unsafe { self.copy_through_buffers(plan, origin.view, stream) },
        };
        let recorded = self.primary.record(event, stream);
        if recorded.is_err() {
            // Without its event the stream is waited for. Should that fail too, the context is lost, and nobody reads.
            let _ = self.primary.finish(stream);
            transfer.is_done = true;
        }
        submitted.and(recorded).map(|()| transfer)
    }

    /// # Safety
    ///
    /// As for [`Device::copy`]; the arena is registered and begins at `base`.
    unsafe fn copy_directly(&self, plan: &Plan, origin: &Origin<'_>, base: u64, stream: u64) -> Result<()> {
        for whole in plan.moves() {
            for (offset, part) in split_at_chunks(*whole, origin.chunks, origin.chunk_bytes) {
                let from = to_usize(base + offset) as *const u8;
                // SAFETY: the part lies in one run of the entry's chunks, which the lease keeps; the caller vouches for
                // the target.
                unsafe { self.primary.copy(from, &part, stream) }?;
            }
        }
        Ok(())
    }

    /// # Safety
    ///
    /// As for [`Device::copy`].
    unsafe fn copy_through_buffers(&self, plan: &Plan, view: &Mapping, stream: u64) -> Result<()> {
        let mut staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        if staging.is_none() {
            *staging = Some(Staging::new(&self.primary)?);
        }
        let Some(staging) = staging.as_mut() else { return Ok(()) };
        for piece in plan.moves().iter().flat_map(|whole| pieces_of(*whole)).flat_map(split_long_rows) {
            staging.copy(&self.primary, &piece, view, stream)?;
        }
        Ok(())
    }
}

/// Pieces of at most a buffer's size: a long row is cut.
fn split_long_rows(piece: Move) -> Vec<Move> {
    if piece.bytes() <= STAGING_BYTES {
        return vec![piece];
    }
    // `pieces_of` puts several rows together only while they are short.
    (0..piece.rows)
        .flat_map(|row| {
            let (from, to) = (piece.from + row * piece.from_pitch, piece.to + row * piece.to_pitch);
            let row_bytes = piece.row_bytes;
            pieces_of(Move { from, to, row_bytes, rows: 1, from_pitch: row_bytes, to_pitch: row_bytes })
        })
        .collect()
}

/// The move in parts that lie in one run of chunks each, with the offset of each in the arena.
fn split_at_chunks(whole: Move, chunks: &[u32], chunk_bytes: u64) -> Vec<(u64, Move)> {
    let mut parts = Vec::new();
    let mut row = 0;
    while row < whole.rows {
        let from = whole.from + row * whole.from_pitch;
        let to = whole.to + row * whole.to_pitch;
        let (offset, run_bytes) = run_at(from, chunks, chunk_bytes);
        let is_flat = whole.from_pitch <= MAX_PITCH_BYTES && whole.to_pitch <= MAX_PITCH_BYTES;
        let fitting = if run_bytes < whole.row_bytes {
            0
        } else {
            ((run_bytes - whole.row_bytes) / whole.from_pitch + 1).min(whole.rows - row)
        };
        if fitting > 1 && is_flat {
            parts.push((offset, Move { from, to, rows: fitting, ..whole }));
            row += fitting;
        } else {
            split_row(Move { from, to, rows: 1, ..whole }, chunks, chunk_bytes, &mut parts);
            row += 1;
        }
    }
    parts
}

/// One row in parts that lie in one run of chunks each.
fn split_row(row: Move, chunks: &[u32], chunk_bytes: u64, parts: &mut Vec<(u64, Move)>) {
    let mut done = 0;
    while done < row.row_bytes {
        let (offset, run_bytes) = run_at(row.from + done, chunks, chunk_bytes);
        let bytes = run_bytes.min(row.row_bytes - done);
        if bytes == 0 {
            // The plan is of another entry: nothing of it lies here.
            return;
        }
        let (from, to) = (row.from + done, row.to + done);
        parts
            .push((offset, Move { from, to, row_bytes: bytes, rows: 1, from_pitch: bytes, to_pitch: bytes }));
        done += bytes;
    }
}

/// Where byte `from` of an entry lies in the arena, and how many bytes from there on lie side by side.
fn run_at(from: u64, chunks: &[u32], chunk_bytes: u64) -> (u64, u64) {
    let first = usize::try_from(from / chunk_bytes).unwrap_or(usize::MAX);
    let Some((start, rest)) = chunks.get(first..).and_then(<[u32]>::split_first) else { return (0, 0) };
    let within = from % chunk_bytes;
    let neighbours = rest.iter().zip(*start + 1..).take_while(|(chunk, expected)| *chunk == expected).count();
    (u64::from(*start) * chunk_bytes + within, (neighbours as u64 + 1) * chunk_bytes - within)
}

/// Copies under way. Dropping it waits for them.
#[derive(Debug)]
pub struct Transfer<K> {
    primary: Arc<Primary>,
    event: u64,
    stream: u64,
    is_done: bool,
    /// Held until the copies are done: the fields are dropped after `drop` has waited.
    #[expect(dead_code, reason = "held, not used")]
    keep: K,
}

impl<K> Transfer<K> {
    /// Whether all is copied.
    ///
    /// # Errors
    ///
    /// [`Fault::Cuda`](crate::Fault::Cuda): what the copies failed of.
    pub fn is_done(&self) -> Result<bool> {
        Ok(self.is_done || self.primary.has_happened(self.event)?)
    }

    /// Waits until all is copied.
    ///
    /// # Errors
    ///
    /// As [`Transfer::is_done`].
    pub fn wait(&self) -> Result<()> {
        if self.is_done { Ok(()) } else { self.primary.wait(self.event) }
    }

    /// The event that happens when all is copied, for other streams to wait for.
    #[must_use]
    pub const fn event(&self) -> u64 {
        self.event
    }

    /// The stream that the copies are on.
    #[must_use]
    pub const fn stream(&self) -> u64 {
        self.stream
    }
}

impl<K> Drop for Transfer<K> {
    fn drop(&mut self) {
        // A device that failed reads no more: then there is nothing to wait for.
        let _ = self.wait();
        self.primary.destroy(self.event);
    }
}

/// A pinned arena.
#[derive(Debug)]
struct Registration {
    primary: Arc<Primary>,
    base: Base,
    pieces: Vec<u64>,
}

impl Registration {
    fn new(primary: &Arc<Primary>, base: Base) -> Result<Self> {
        if let Base::Own(arena) = &base {
            // Pinning populates, and what is populated by that has small pages.
            (0..arena.chunk_count()).try_for_each(|chunk| arena.prepare(chunk))?;
        }
        let is_read_only = matches!(base, Base::Other(_));
        let mut registration = Self { primary: Arc::clone(primary), base, pieces: Vec::new() };
        let (start, bytes) = (registration.base.mapping().address(), registration.base.mapping().bytes());
        let mut offset = 0;
        while offset < bytes {
            let length = REGISTER_BYTES.min(bytes - offset);
            let address = start.wrapping_add(to_usize(offset));
            // SAFETY: the mapping stays until `drop` has unregistered its pieces.
            unsafe { primary.register(address, to_usize(length), is_read_only) }?;
            registration.pieces.push(offset);
            offset += length;
        }
        Ok(registration)
    }

    fn address(&self) -> u64 {
        self.base.mapping().address().addr() as u64
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        for piece in &self.pieces {
            // It fails only where the whole context is lost already.
            let _ = self.primary.unregister(self.base.mapping().address().wrapping_add(to_usize(*piece)));
        }
    }
}

/// Pinned buffers, used in turn.
#[derive(Debug)]
struct Staging {
    buffers: Vec<Buffer>,
    next: usize,
}

impl Staging {
    fn new(primary: &Arc<Primary>) -> Result<Self> {
        let buffers: Result<_> = (0..STAGING_BUFFERS).map(|_| Buffer::new(primary)).collect();
        Ok(Self { buffers: buffers?, next: 0 })
    }

    fn copy(&mut self, primary: &Primary, piece: &Move, view: &Mapping, stream: u64) -> Result<()> {
        let count = self.buffers.len().max(1);
        let Some(buffer) = self.buffers.get(self.next % count) else { return Ok(()) };
        self.next += 1;
        // The device may still be reading what was here before.
        primary.wait(buffer.event)?;
        for row in 0..piece.rows {
            let from = piece.from + row * piece.from_pitch;
            if from.checked_add(piece.row_bytes).is_none_or(|end| end > view.bytes()) {
                return Ok(());
            }
            let source = view.address().wrapping_add(to_usize(from)).cast_const();
            let target = buffer.address.wrapping_add(to_usize(row * piece.row_bytes));
            // SAFETY: the source was checked to lie in the view; a piece is at most as long as a buffer.
            unsafe { stream_copy(source, target, to_usize(piece.row_bytes)) };
        }
        let packed = Move { from_pitch: piece.row_bytes, ..*piece };
        // SAFETY: the buffer is left alone until its event; the caller of `Device::copy` vouches for the target.
        unsafe { primary.copy(buffer.address, &packed, stream) }?;
        primary.record(buffer.event, stream)
    }
}

/// Pinned memory, and the event that says that the device has read it.
#[derive(Debug)]
struct Buffer {
    primary: Arc<Primary>,
    address: *mut u8,
    event: u64,
}

// SAFETY: pinned memory is as good on one thread as on another, and whoever has the buffer has it alone.
unsafe impl Send for Buffer {}

impl Buffer {
    fn new(primary: &Arc<Primary>) -> Result<Self> {
        let event = primary.event()?;
        match primary.allocate(to_usize(STAGING_BYTES)) {
            Ok(address) => Ok(Self { primary: Arc::clone(primary), address, event }),
            Err(error) => {
                primary.destroy(event);
                Err(error)
            }
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // If waiting fails the context is lost, and nobody reads any more.
        let _ = self.primary.wait(self.event);
        // SAFETY: the last copy from it is done.
        let _ = unsafe { self.primary.free(self.address) };
        self.primary.destroy(self.event);
    }
}

#[cfg(test)]
mod tests {
    use super::{run_at, split_at_chunks};
    use crate::Move;
    use proptest::prelude::*;

    #[test]
    fn runs_end_where_chunks_part() {
        let chunks = [4, 5, 1];
        assert_eq!(run_at(0, &chunks, 10), (40, 20));
        assert_eq!(run_at(13, &chunks, 10), (53, 7));
        assert_eq!(run_at(25, &chunks, 10), (15, 5));
        assert_eq!(run_at(30, &chunks, 10), (0, 0));
    }

    proptest! {
        #[test]
        fn every_byte_is_moved_from_where_it_lies(
            chunks in prop::sample::subsequence((0_u32..12).collect::<Vec<_>>(), 6).prop_shuffle(),
            from in 0_u64..20, row_bytes in 1_u64..9, gap in 0_u64..4, rows in 1_u64..4,
        ) {
            let whole = Move { from, to: 1000, row_bytes, rows, from_pitch: row_bytes + gap, to_pitch: row_bytes + 1 };
            let mut moved = Vec::new();
            for (offset, part) in split_at_chunks(whole, &chunks, 10) {
                for row in 0..part.rows {
                    for byte in 0..part.row_bytes {
                        moved.push((offset + row * part.from_pitch + byte, part.to + row * part.to_pitch + byte));
                    }
                }
            }
            let mut expected = Vec::new();
            for row in 0..rows {
                for byte in 0..row_bytes {
                    let place = from + row * whole.from_pitch + byte;
                    let chunk = chunks[usize::try_from(place / 10).unwrap()];
                    expected.push((u64::from(chunk) * 10 + place % 10, 1000 + row * whole.to_pitch + byte));
                }
            }
            prop_assert_eq!(moved, expected);
        }
    }
}
