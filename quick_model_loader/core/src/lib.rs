//! Safetensors checkpoints: what is in them, and their bytes in memory, as fast as the disk delivers them.
//!
//! This crate knows nothing of Python, tensors libraries or models: a path and a pointer go in, bytes come out.
//!
//! - [`Checkpoint::inspect`] validates every header and lays the files out for direct I/O.
//! - [`load`] reads all files verbatim into a [`Target`], on several threads.
//! - [`Error`] says which file, which tensor and which byte, and carries the operating system's errno.

mod arena;
mod attachment;
mod cancel;
mod checkpoint;
mod checksum;
mod completion;
mod copy;
mod cuda;
mod device;
mod dtype;
mod entry;
mod error;
mod fd_message;
mod file_view;
mod header;
mod identity;
mod index;
mod job;
mod journal;
mod json;
mod layout;
mod ledger;
mod load;
mod mapping;
mod owner;
mod plan;
mod residency;
mod scan;
mod serde_path;
mod source;
mod store;
mod stream_copy;
mod sync;
mod target;
mod ticket;
mod width;

pub use arena::{Arena, CHUNK_BYTES, PageKind};
pub use attachment::Attachment;
pub use cancel::Cancel;
pub use checkpoint::{Checkpoint, CheckpointFile};
pub use checksum::Checksums;
pub use completion::Completion;
pub use copy::copy;
pub use cuda::LIBRARY as CUDA_LIBRARY;
pub use device::{ArenaId, Base, Device, Origin, Transfer, arena_id};
pub use dtype::Dtype;
pub use entry::Lease;
pub use error::{AttachFault, ChecksumFault, Error, Fault, HeaderFault, IndexFault, PlacementFault, Result};
pub use header::{Header, MAX_HEADER_BYTES, Tensor};
pub use identity::Identity;
pub use job::{JOB_BYTES, Job, JobQueue};
pub use ledger::{Counts, EntryId, Ledger, Refusal};
pub use load::{Direct, LoadOptions, LoadReport, load};
pub use mapping::{Access, HUGE_PAGE_BYTES, Mapping};
pub use owner::{Handle, TOKEN_BYTES};
pub use plan::{Move, Part, Placement, Plan};
pub use scan::{verify, write_checksums};
pub use store::{Store, StoreOptions, StoreStats};
pub use target::Target;
pub use ticket::{Progress, Stage, Ticket};

/// Offsets, lengths and addresses of direct I/O are multiples of this, whatever the device (512 or 4096).
pub const BLOCK_BYTES: u64 = 4096;

/// `bytes` rounded up to whole blocks; `None` if that does not fit in 64 bits.
#[must_use]
pub fn round_up_to_block(bytes: u64) -> Option<u64> {
    bytes.checked_next_multiple_of(BLOCK_BYTES)
}
