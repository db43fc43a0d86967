//! Copies from an entry to memory of the caller's.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::stream_copy::stream_copy;
use crate::width::to_usize;
use crate::{Cancel, Error, Fault, Mapping, Move, Plan, Result};

/// What a thread copies at a time.
const PIECE_BYTES: u64 = 4 << 20;

/// More threads than this were never faster: memory is the limit.
const MAX_DEFAULT_THREADS: usize = 8;

/// Does what `plan` says, from `view` (the entry that it was made for) to addresses of this process, on `threads`
/// threads (by default one per core, at most 8). Returns when all is copied.
///
/// # Errors
///
/// [`Fault::Cancelled`] if `cancel` is set meanwhile; then some is copied.
///
/// # Safety
///
/// The targets of the plan must be valid for writes from any thread, and nobody else's, until the call returns; they
/// must not overlap each other or the view.
pub unsafe fn copy(
    plan: &Plan,
    view: &Mapping,
    threads: Option<NonZeroUsize>,
    cancel: &Cancel,
) -> Result<()> {
    let pieces: Vec<Move> = plan.moves().iter().flat_map(|whole| pieces_of(*whole)).collect();
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
            if cancel.is_cancelled() {
                return;
            }
            // SAFETY: the piece is a part of a move of the plan, which is the caller's to vouch for.
            unsafe { copy_rows(piece, view) };
        }
    };
    let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let threads = threads.map_or(cores.min(MAX_DEFAULT_THREADS), NonZeroUsize::get);
    thread::scope(|scope| {
        for _ in 1..threads.min(pieces.len()) {
            if thread::Builder::new().spawn_scoped(scope, work).is_err() {
                // The threads that could be started do the work.
                break;
            }
        }
        work();
    });
    if cancel.is_cancelled() {
        return Err(Error::new(plan.checkpoint().path(), Fault::Cancelled));
    }
    Ok(())
}

/// The move cut into pieces for several threads.
pub fn pieces_of(whole: Move) -> impl Iterator<Item = Move> {
    let is_run = whole.rows == 1;
    // A run is cut into bytes, rows are kept whole.
    let (units, unit_bytes) = if is_run { (whole.row_bytes, 1) } else { (whole.rows, whole.row_bytes) };
    let step = (PIECE_BYTES / unit_bytes).max(1);
    (0..units.div_ceil(step)).map(move |number| {
        let begin = number * step;
        let count = step.min(units - begin);
        if is_run {
            let (from, to) = (whole.from + begin, whole.to + begin);
            Move { from, to, row_bytes: count, from_pitch: count, to_pitch: count, ..whole }
        } else {
            let (from, to) = (whole.from + begin * whole.from_pitch, whole.to + begin * whole.to_pitch);
            Move { from, to, rows: count, ..whole }
        }
    })
}

/// # Safety
///
/// As for [`copy`].
unsafe fn copy_rows(piece: &Move, view: &Mapping) {
    for row in 0..piece.rows {
        let from = piece.from + row * piece.from_pitch;
        // The plan was made for this view; this keeps another one from being read past its end.
        if from.checked_add(piece.row_bytes).is_none_or(|end| end > view.bytes()) {
            return;
        }
        let source = view.address().wrapping_add(to_usize(from)).cast_const();
        let target = to_usize(piece.to + row * piece.to_pitch) as *mut u8;
        // SAFETY: the source was checked to lie in the view; the caller vouches for the target.
        unsafe { stream_copy(source, target, to_usize(piece.row_bytes)) };
    }
}

#[cfg(test)]
mod tests {
    use super::{PIECE_BYTES, pieces_of};
    use crate::Move;

    #[test]
    fn pieces_cover_the_whole() {
        let run_bytes = 2 * PIECE_BYTES + 5;
        let run = Move {
            from: 7,
            to: 9,
            row_bytes: run_bytes,
            rows: 1,
            from_pitch: run_bytes,
            to_pitch: run_bytes,
        };
        let pieces: Vec<_> = pieces_of(run).collect();
        assert_eq!(pieces.len(), 3);
        assert_eq!(pieces.iter().map(Move::bytes).sum::<u64>(), run_bytes);
        assert_eq!(pieces.last().unwrap().from, 7 + 2 * PIECE_BYTES);
        let rows = Move {
            from: 0,
            to: 0,
            row_bytes: PIECE_BYTES - 1,
            rows: 3,
            from_pitch: PIECE_BYTES,
            to_pitch: 2 * PIECE_BYTES,
        };
        let pieces: Vec<_> = pieces_of(rows).collect();
        assert_eq!(
            pieces.iter().map(|piece| (piece.rows, piece.from)).collect::<Vec<_>>(),
            [(1, 0), (1, PIECE_BYTES), (1, 2 * PIECE_BYTES)]
        );
        let wide = Move { row_bytes: 3 * PIECE_BYTES, from_pitch: 3 * PIECE_BYTES, ..rows };
        assert_eq!(pieces_of(wide).count(), 3);
    }
}
