//! What another process must know to read an entry.

use serde::{Deserialize, Serialize};

use crate::Checkpoint;

/// Where an entry's chunks lie in the arena, and what they hold.
#[derive(Debug, Serialize, Deserialize)]
pub struct Layout {
    /// The size of the arena.
    pub arena_bytes: u64,
    /// The size of a chunk.
    pub chunk_bytes: u64,
    /// The entry's chunks, in order.
    pub chunks: Vec<u32>,
    /// Its files and tensors.
    pub checkpoint: Checkpoint,
}
