//! Which bytes of an entry go where: whole tensors, parts of them, several into one target.
//!
//! Pure arithmetic: it knows no memory and no devices.

use crate::{Checkpoint, Error, Fault, PlacementFault, Result, Tensor};

/// The part of a tensor that is wanted: some elements of one dimension, all of the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    Whole,
    /// The elements `begin` up to `end` of dimension `dim`.
    Range {
        /// The dimension.
        dim: usize,
        /// The first element.
        begin: u64,
        /// The element after the last.
        end: u64,
    },
    /// The share of `rank` when dimension `dim` is cut into `world` equal parts.
    Share {
        /// The dimension.
        dim: usize,
        /// Which part.
        rank: u64,
        /// How many parts.
        world: u64,
    },
}

/// A wish: a part of a tensor, packed, at an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The tensor's name.
    pub tensor: String,
    /// Which part of it.
    pub part: Part,
    /// Where it goes, in the host's memory or a device's.
    pub address: u64,
    /// How much room there is.
    pub capacity_bytes: u64,
    /// The distance from row to row in the target, if rows do not follow each other there. A row is what is contiguous
    /// in the part: for a cut through dimension `d` everything from `d` on.
    pub pitch_bytes: Option<u64>,
}

/// Equal rows to be moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// Where the first row begins in the entry.
    pub from: u64,
    /// Where it goes.
    pub to: u64,
    /// How long a row is.
    pub row_bytes: u64,
    /// How many there are.
    pub rows: u64,
    /// The distance from row to row in the entry.
    pub from_pitch: u64,
    /// The distance from row to row in the target.
    pub to_pitch: u64,
}

impl Move {
    /// How many bytes it moves.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.row_bytes * self.rows
    }

    /// Whether `next` only goes on where this ends, on both sides.
    fn is_continued_by(&self, next: &Self) -> bool {
        self.rows == 1
            && next.rows == 1
            && self.from + self.row_bytes == next.from
            && self.to.checked_add(self.row_bytes) == Some(next.to)
    }
}

/// All moves of a copy, in the order of their sources, neighbours joined.
#[derive(Clone, Debug)]
pub struct Plan {
    checkpoint: Checkpoint,
    moves: Vec<Move>,
    bytes: u64,
}

impl Plan {
    /// Works out how to fulfil `placements`, tensors of `checkpoint`.
    ///
    /// # Errors
    ///
    /// [`Fault::Placement`], with the tensor.
    pub fn new(checkpoint: &Checkpoint, placements: &[Placement]) -> Result<Self> {
        let tensors: std::collections::HashMap<&str, (usize, &Tensor)> =
            checkpoint.tensors().map(|(file, tensor)| (tensor.name.as_str(), (file, tensor))).collect();
        let mut moves = Vec::with_capacity(placements.len());
        for placement in placements {
            let fail = |fault| {
                Error::new(checkpoint.path(), Fault::Placement(fault)).for_tensor(placement.tensor.clone())
            };
            let (file, tensor) =
                *tensors.get(placement.tensor.as_str()).ok_or_else(|| fail(PlacementFault::UnknownTensor))?;
            let start = checkpoint.offset_of(file, tensor);
            let part = rows_of(tensor, start, placement).map_err(fail)?;
            moves.extend(part.filter(|part| part.bytes() > 0));
        }
        moves.sort_by_key(|part| part.from);
        let bytes = moves.iter().map(Move::bytes).sum();
        Ok(Self { checkpoint: checkpoint.clone(), moves: join(moves), bytes })
    }

    /// What is copied from.
    #[must_use]
    pub const fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The moves, in the order of their sources.
    #[must_use]
    pub fn moves(&self) -> &[Move] {
        &self.moves
    }

    /// How many bytes they move in all.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// Makes one move of those that continue each other.
fn join(moves: Vec<Move>) -> Vec<Move> {
    let mut joined: Vec<Move> = Vec::with_capacity(moves.len());
    for next in moves {
        match joined.last_mut() {
            Some(last) if last.is_continued_by(&next) => {
                last.row_bytes += next.row_bytes;
                last.from_pitch = last.row_bytes;
                last.to_pitch = last.row_bytes;
            }
            _ => joined.push(next),
        }
    }
    joined
}

/// The dimension that is cut and its elements; `None` for a whole tensor.
fn cut(tensor: &Tensor, part: Part) -> std::result::Result<Option<(usize, u64, u64)>, PlacementFault> {
    let shape = || tensor.shape.clone();
    let (dim, begin, end) = match part {
        Part::Whole => return Ok(None),
        Part::Range { dim, begin, end } => (dim, begin, end),
        Part::Share { dim, rank, world } => {
            let extent = *tensor
                .shape
                .get(dim)
                .ok_or_else(|| PlacementFault::NoSuchDimension { dim, shape: shape() })?;
            let each = extent.checked_div(world).filter(|each| each * world == extent);
            let each = each.ok_or_else(|| PlacementFault::Uneven { dim, parts: world, shape: shape() })?;
            let begin = rank.saturating_mul(each);
            // A rank beyond the last one lies out of range, even where every share is empty.
            if rank >= world {
                let end = begin.saturating_add(each);
                return Err(PlacementFault::OutOfRange { dim, begin, end, shape: shape() });
            }
            (dim, begin, begin + each)
        }
    };
    let extent =
        *tensor.shape.get(dim).ok_or_else(|| PlacementFault::NoSuchDimension { dim, shape: shape() })?;
    if begin > end || end > extent {
        return Err(PlacementFault::OutOfRange { dim, begin, end, shape: shape() });
    }
    Ok(Some((dim, begin, end)))
}

/// The rows of one placement; `None` if it is empty.
fn rows_of(
    tensor: &Tensor,
    start: u64,
    placement: &Placement,
) -> std::result::Result<Option<Move>, PlacementFault> {
    let dtype = tensor.dtype;
    // Products of extents and bits fit in 64 bits: the header was checked.
    let whole_bytes = tensor.range.end - tensor.range.start;
    let (skip, row_bytes, rows, from_pitch) = match cut(tensor, placement.part)? {
        _ if whole_bytes == 0 => return Ok(None),
        None => (0, whole_bytes, 1, whole_bytes),
        Some((dim, begin, end)) => {
            let inner = tensor.shape.iter().skip(dim + 1).product::<u64>() * dtype.bits();
            let rows = tensor.shape.iter().take(dim).product::<u64>();
            let pitch = whole_bytes / rows;
            let (skip, row) = (begin * inner, (end - begin) * inner);
            let is_whole = pitch * rows == whole_bytes && skip % 8 == 0 && row % 8 == 0;
            if !is_whole {
                return Err(PlacementFault::PartialByte { dtype: dtype.name() });
            }
            (skip / 8, row / 8, rows, pitch)
        }
    };
    if row_bytes == 0 {
        return Ok(None);
    }
    let to_pitch = placement.pitch_bytes.unwrap_or(row_bytes);
    if to_pitch < row_bytes {
        return Err(PlacementFault::Pitch { row_bytes, pitch_bytes: to_pitch });
    }
    let needed_bytes = to_pitch.checked_mul(rows - 1).and_then(|bytes| bytes.checked_add(row_bytes));
    let needed_bytes = needed_bytes.unwrap_or(u64::MAX);
    if needed_bytes > placement.capacity_bytes {
        return Err(PlacementFault::Capacity { needed_bytes, capacity_bytes: placement.capacity_bytes });
    }
    if placement.address == 0 {
        return Err(PlacementFault::Null);
    }
    let is_one_run = rows == 1 || (row_bytes == from_pitch && row_bytes == to_pitch);
    let (row_bytes, rows) = if is_one_run { (row_bytes * rows, 1) } else { (row_bytes, rows) };
    let (from_pitch, to_pitch) = if is_one_run { (row_bytes, row_bytes) } else { (from_pitch, to_pitch) };
    Ok(Some(Move { from: start + skip, to: placement.address, row_bytes, rows, from_pitch, to_pitch }))
}

#[cfg(test)]
mod tests {
    use super::{Move, Part, Placement, rows_of};
    use crate::{Dtype, PlacementFault, Tensor};
    use proptest::prelude::*;

    fn tensor(dtype: Dtype, shape: &[u64]) -> Tensor {
        let bytes = shape.iter().product::<u64>() * dtype.bits() / 8;
        Tensor { name: "t".to_owned(), dtype, shape: shape.to_vec(), range: 100..100 + bytes }
    }

    fn place(part: Part) -> Placement {
        Placement { tensor: "t".to_owned(), part, address: 4096, capacity_bytes: 1 << 40, pitch_bytes: None }
    }

    fn rows(tensor: &Tensor, part: Part) -> Result<Option<Move>, PlacementFault> {
        rows_of(tensor, 100, &place(part))
    }

    #[test]
    fn rows_and_columns() {
        let matrix = tensor(Dtype::Bf16, &[6, 8]);
        let one = |from, row_bytes| Move {
            from,
            to: 4096,
            row_bytes,
            rows: 1,
            from_pitch: row_bytes,
            to_pitch: row_bytes,
        };
        assert_eq!(rows(&matrix, Part::Whole).unwrap(), Some(one(100, 96)));
        assert_eq!(rows(&matrix, Part::Share { dim: 0, rank: 1, world: 3 }).unwrap(), Some(one(132, 32)));
        assert_eq!(
            rows(&matrix, Part::Share { dim: 1, rank: 1, world: 2 }).unwrap(),
            Some(Move { from: 108, to: 4096, row_bytes: 8, rows: 6, from_pitch: 16, to_pitch: 8 })
        );
        assert_eq!(rows(&matrix, Part::Range { dim: 1, begin: 0, end: 8 }).unwrap(), Some(one(100, 96)));
        assert_eq!(rows(&matrix, Part::Range { dim: 1, begin: 3, end: 3 }).unwrap(), None);
        assert_eq!(
            rows(&tensor(Dtype::F32, &[0, 4]), Part::Share { dim: 1, rank: 0, world: 2 }).unwrap(),
            None
        );
    }

    #[test]
    fn what_cannot_be_is_refused() {
        use PlacementFault as F;
        let matrix = tensor(Dtype::Bf16, &[6, 8]);
        let packed = tensor(Dtype::F4, &[3, 6]);
        macro_rules! faults {
            ($($tensor:expr, $part:expr => $fault:pat,)*) => {$(
                let found = rows(&$tensor, $part).unwrap_err();
                assert!(matches!(found, $fault), "{found}");
            )*};
        }
        faults! {
            matrix, Part::Share { dim: 2, rank: 0, world: 2 } => F::NoSuchDimension { .. },
            matrix, Part::Range { dim: 2, begin: 0, end: 0 } => F::NoSuchDimension { .. },
            matrix, Part::Share { dim: 0, rank: 0, world: 4 } => F::Uneven { .. },
            matrix, Part::Share { dim: 0, rank: 0, world: 0 } => F::Uneven { .. },
            matrix, Part::Share { dim: 0, rank: 3, world: 3 } => F::OutOfRange { .. },
            matrix, Part::Range { dim: 0, begin: 2, end: 1 } => F::OutOfRange { .. },
            matrix, Part::Range { dim: 0, begin: 2, end: 7 } => F::OutOfRange { .. },
            packed, Part::Range { dim: 1, begin: 1, end: 3 } => F::PartialByte { .. },
            packed, Part::Share { dim: 1, rank: 0, world: 2 } => F::PartialByte { .. },
        }
        let refused = |change: fn(&mut Placement)| {
            let mut wish = place(Part::Share { dim: 1, rank: 1, world: 2 });
            change(&mut wish);
            rows_of(&matrix, 100, &wish).unwrap_err()
        };
        assert!(matches!(refused(|wish| wish.address = 0), F::Null));
        assert!(matches!(refused(|wish| wish.pitch_bytes = Some(7)), F::Pitch { .. }));
        assert!(matches!(refused(|wish| wish.capacity_bytes = 47), F::Capacity { needed_bytes: 48, .. }));
        assert!(matches!(refused(|wish| wish.pitch_bytes = Some(u64::MAX)), F::Capacity { .. }));
    }

    proptest! {
        /// Compared with taking the elements one by one.
        #[test]
        fn every_element_goes_where_indexing_says(
            shape in prop::collection::vec(1_u64..5, 1..4),
            dim in 0_usize..3,
            bounds in (0_u64..5, 0_u64..5),
            gap in 0_u64..3,
        ) {
            let dim = dim.min(shape.len() - 1);
            let (begin, end) = (bounds.0.min(bounds.1).min(shape[dim]), bounds.0.max(bounds.1).min(shape[dim]));
            let source = tensor(Dtype::U8, &shape);
            let inner: u64 = shape[dim + 1..].iter().product();
            let row = (end - begin) * inner;
            let mut wish = place(Part::Range { dim, begin, end });
            wish.pitch_bytes = Some(row + gap);
            let found = rows_of(&source, 0, &wish).unwrap();
            let mut moved = Vec::new();
            if let Some(part) = found {
                for line in 0..part.rows {
                    for byte in 0..part.row_bytes {
                        moved.push((part.from + line * part.from_pitch + byte, part.to - 4096 + line * part.to_pitch + byte));
                    }
                }
            }
            let mut expected = Vec::new();
            for element in 0..shape.iter().product::<u64>() {
                let (line, index, rest) = (element / (shape[dim] * inner), element / inner % shape[dim], element % inner);
                if (begin..end).contains(&index) {
                    expected.push((element, line * (row + gap) + (index - begin) * inner + rest));
                }
            }
            prop_assert_eq!(moved, expected);
        }
    }
}
