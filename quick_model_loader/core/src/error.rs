//! What can go wrong, and where.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The result of everything that can fail here.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, in which file, for which tensor, at which byte.
///
/// The place is filled in as far as it is known; the message begins with it.
///
/// A clone is the same failure, told to somebody else.
#[derive(Clone, Debug)]
pub struct Error(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    tensor: Option<String>,
    offset: Option<u64>,
    fault: Fault,
}

/// The kinds of failure.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// The operating system refused an operation (no such file, no permission, a broken disk); errno tells why.
    #[error("cannot {action}: {source}")]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The operating system's answer.
        source: io::Error,
    },
    /// The path leads to nothing that could be a checkpoint: no safetensors file, or neither file nor directory.
    #[error("{0}")]
    NotACheckpoint(&'static str),
    /// The file's header breaks a rule of the safetensors format.
    #[error("invalid safetensors header: {0}")]
    Header(HeaderFault),
    /// The file is shorter than its own header says, or than it was a moment ago.
    #[error("truncated: {expected_bytes} bytes expected, {actual_bytes} there")]
    Truncated {
        /// How long the file should be.
        expected_bytes: u64,
        /// How long it is.
        actual_bytes: u64,
    },
    /// The checkpoint's index file is wrong, or disagrees with its shards.
    #[error("invalid index: {0}")]
    Index(IndexFault),
    /// The index names a file that does not exist (the error's path).
    #[error("this shard is missing; {} names it", index.display())]
    MissingShard {
        /// The index file.
        index: PathBuf,
    },
    /// Two files hold a tensor of the same name, and no index says which one counts.
    #[error("another file holds a tensor of the same name: {}", other.display())]
    DuplicateTensor {
        /// The file that was seen first.
        other: PathBuf,
    },
    /// Two names of the checkpoint lead to one and the same file.
    #[error("this file is listed twice; its other name is {}", other.display())]
    DuplicateFile {
        /// The name that was seen first.
        other: PathBuf,
    },
    /// The memory given is too small for the checkpoint.
    #[error("{needed_bytes} bytes of memory are needed, {capacity_bytes} were given")]
    Capacity {
        /// What the checkpoint needs, padding between files included.
        needed_bytes: u64,
        /// What was given.
        capacity_bytes: u64,
    },
    /// The file is not the one that was inspected: it was replaced, or written to, before the load was over.
    #[error("the file was {0} after it was inspected")]
    Changed(&'static str),
    /// The caller cancelled the load, or the copy.
    #[error("cancelled")]
    Cancelled,
    /// The load was not over at the time that the caller had set.
    #[error("the load was not over within {0:.3} seconds, as was asked")]
    Deadline(f64),
    /// The store was closed before the load was over.
    #[error("the store was closed")]
    Closed,
    /// A key already stands for another checkpoint.
    #[error("the key {key:?} stands for {}; evict that first, or choose another key", other.display())]
    KeyInUse {
        /// The key.
        key: String,
        /// The checkpoint that has it.
        other: PathBuf,
    },
    /// Content is not what its checksums say, or there are none to compare it with.
    #[error("{0}")]
    Checksum(ChecksumFault),
    /// An entry of another process cannot be had.
    #[error("cannot attach: {0}")]
    Attach(AttachFault),
    /// A copy that was asked for makes no sense.
    #[error("cannot copy: {0}")]
    Placement(PlacementFault),
    /// The CUDA driver refused a call.
    #[error("{call} failed: {name} ({code})")]
    Cuda {
        /// The function.
        call: &'static str,
        /// The driver's name for the error.
        name: String,
        /// Its number.
        code: i32,
    },
    /// There is no CUDA driver that could be used.
    #[error("no usable CUDA driver: {0}")]
    NoCuda(String),
}

/// What can be wrong with checksums.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChecksumFault {
    /// There are none.
    #[error("there are no checksums to verify with; write them with: python -m quick_model_loader hash DIR")]
    Absent,
    /// Their file is not what this crate writes.
    #[error("malformed checksums: {0}")]
    Malformed(String),
    /// They were made for a file of another length.
    #[error(
        "these checksums are of a file of {recorded_bytes} bytes, this one has {file_bytes}; write them again"
    )]
    Stale {
        /// The length that was recorded.
        recorded_bytes: u64,
        /// The file's length.
        file_bytes: u64,
    },
    /// The content is another one.
    #[error("{bytes} bytes from here on are damaged: checksum {found:016x}, expected {expected:016x}")]
    Mismatch {
        /// The checksum on record.
        expected: u64,
        /// The checksum of what was read.
        found: u64,
        /// How many bytes it covers.
        bytes: u64,
    },
}

/// Why an entry of another process cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttachFault {
    /// The process that owned the store is gone, or has closed it.
    #[error("the process that owns the store is gone")]
    OwnerGone,
    /// The entry was evicted since the handle was made.
    #[error("the entry was evicted; ask the store's owner to load it again")]
    Evicted,
    /// The owner did not answer in time.
    #[error("the process that owns the store does not answer")]
    Timeout,
    /// The owner says no, or something that this version does not understand.
    #[error("the store's owner refused: {0}")]
    Refused(String),
}

/// What can be wrong with a copy that was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlacementFault {
    /// The checkpoint has no tensor of that name.
    #[error("there is no such tensor")]
    UnknownTensor,
    /// The dimension that is to be cut does not exist.
    #[error("dimension {dim} of a tensor of shape {shape:?}")]
    NoSuchDimension {
        /// The dimension asked for.
        dim: usize,
        /// The tensor's shape.
        shape: Vec<u64>,
    },
    /// The part lies outside the dimension.
    #[error("elements {begin} to {end} of dimension {dim} of a tensor of shape {shape:?}")]
    OutOfRange {
        /// The dimension.
        dim: usize,
        /// The first element wanted.
        begin: u64,
        /// The element after the last one.
        end: u64,
        /// The tensor's shape.
        shape: Vec<u64>,
    },
    /// A dimension cannot be dealt out evenly.
    #[error("dimension {dim} of a tensor of shape {shape:?} cannot be cut into {parts} equal parts")]
    Uneven {
        /// The dimension.
        dim: usize,
        /// Into how many parts.
        parts: u64,
        /// The tensor's shape.
        shape: Vec<u64>,
    },
    /// A cut would go through a byte.
    #[error("{dtype} cannot be cut there: a part would not begin and end at whole bytes")]
    PartialByte {
        /// The element type.
        dtype: &'static str,
    },
    /// Rows would overlap in the target.
    #[error("rows of {row_bytes} bytes do not fit at a distance of {pitch_bytes}")]
    Pitch {
        /// The length of a row.
        row_bytes: u64,
        /// The distance from row to row.
        pitch_bytes: u64,
    },
    /// The target is too small.
    #[error("{needed_bytes} bytes of memory are needed, {capacity_bytes} were given")]
    Capacity {
        /// What the part needs.
        needed_bytes: u64,
        /// What was given.
        capacity_bytes: u64,
    },
    /// The target is nowhere.
    #[error("the address is null")]
    Null,
}

/// The rules of the format that a header can break.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderFault {
    /// The file has no room for the eight bytes that give the header's length.
    #[error("the file has {0} bytes, the length of the header alone takes 8")]
    NoLength(u64),
    /// The header is longer than the format allows.
    #[error("{0} bytes long; the format allows {max}", max = crate::MAX_HEADER_BYTES)]
    TooLong(u64),
    /// The header does not begin with `{`.
    #[error("it does not begin with '{{'; this is not a safetensors file")]
    NoBrace,
    /// The header is not UTF-8.
    #[error("not UTF-8: {0}")]
    NotUtf8(std::str::Utf8Error),
    /// The header is not JSON of the expected form.
    #[error("{0}")]
    Json(serde_json::Error),
    /// A name occurs twice.
    #[error("the name occurs twice")]
    DuplicateName,
    /// The element type is none of the format's.
    #[error("unknown dtype {0:?}")]
    UnknownDtype(String),
    /// The product of the shape, or its size in bits, does not fit in 64 bits.
    #[error("shape {0:?} overflows")]
    Overflow(Vec<u64>),
    /// A packed type's elements do not fill whole bytes.
    #[error("{elements} elements of {dtype} do not fill whole bytes")]
    PartialByte {
        /// How many elements.
        elements: u64,
        /// Of which type.
        dtype: &'static str,
    },
    /// The offsets are the wrong way round.
    #[error("data_offsets [{begin}, {end}] end before they begin")]
    Reversed {
        /// The first offset.
        begin: u64,
        /// The second one.
        end: u64,
    },
    /// The offsets span another size than shape and type give.
    #[error("data_offsets span {span_bytes} bytes, {dtype} of shape {shape:?} takes {expected_bytes}")]
    WrongSize {
        /// What the offsets span.
        span_bytes: u64,
        /// What shape and type give.
        expected_bytes: u64,
        /// The type.
        dtype: &'static str,
        /// The shape.
        shape: Vec<u64>,
    },
    /// The tensor begins before the previous one ends.
    #[error("data begins at {begin}, inside the previous tensor, which ends at {previous_end}")]
    Overlap {
        /// Where it begins.
        begin: u64,
        /// Where the previous one ends.
        previous_end: u64,
    },
    /// Bytes between two tensors belong to none.
    #[error("data begins at {begin}, the previous tensor ends at {previous_end}: a hole")]
    Hole {
        /// Where it begins.
        begin: u64,
        /// Where the previous one ends.
        previous_end: u64,
    },
    /// The file goes on after the last tensor.
    #[error("{0} bytes follow the last tensor")]
    TrailingBytes(u64),
}

/// The ways in which an index can be wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IndexFault {
    /// The index is not JSON of the expected form.
    #[error("{0}")]
    Json(serde_json::Error),
    /// The index is longer than any could be.
    #[error("it has {0} bytes")]
    TooLong(u64),
    /// The index names no tensor at all.
    #[error("it lists no tensors")]
    Empty,
    /// A tensor is listed twice.
    #[error("the name occurs twice")]
    DuplicateName,
    /// A shard's name would lead out of the checkpoint's directory, or is not in its simplest form.
    #[error("{0:?} is not a plain path inside the directory")]
    UnsafePath(String),
}

impl Error {
    /// A failure somewhere in `path`.
    #[must_use]
    pub fn new(path: &Path, fault: Fault) -> Self {
        Self(Arc::new(Inner { path: path.to_owned(), tensor: None, offset: None, fault }))
    }

    /// A refusal by the operating system; `action` is a verb.
    #[must_use]
    pub fn io(path: &Path, action: &'static str, source: io::Error) -> Self {
        Self::new(path, Fault::Io { action, source })
    }

    /// The same failure, known to concern `tensor`.
    ///
    /// To be said before the failure is passed on: a clone that exists already will not know.
    #[must_use]
    pub fn for_tensor(mut self, tensor: impl Into<Option<String>>) -> Self {
        if let Some(inner) = Arc::get_mut(&mut self.0) {
            inner.tensor = tensor.into();
        }
        self
    }

    /// The same failure, known to lie at byte `offset` of the file; to be said before it is passed on, too.
    #[must_use]
    pub fn at_offset(mut self, offset: u64) -> Self {
        if let Some(inner) = Arc::get_mut(&mut self.0) {
            inner.offset = Some(offset);
        }
        self
    }

    /// What went wrong.
    #[must_use]
    pub fn fault(&self) -> &Fault {
        &self.0.fault
    }

    /// The file or directory concerned; empty if it is none.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// The tensor concerned, if one is.
    #[must_use]
    pub fn tensor(&self) -> Option<&str> {
        self.0.tensor.as_deref()
    }

    /// The byte of the file concerned, if one is.
    #[must_use]
    pub fn offset(&self) -> Option<u64> {
        self.0.offset
    }

    /// The operating system's error number, if it was the operating system that refused.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match &self.0.fault {
            Fault::Io { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.0.path.as_os_str();
        if path.is_empty() {
            return write!(formatter, "{}", self.0.fault);
        }
        write!(formatter, "{}", path.display())?;
        if let Some(tensor) = &self.0.tensor {
            write!(formatter, ", tensor {tensor:?}")?;
        }
        if let Some(offset) = self.0.offset {
            write!(formatter, ", byte {offset}")?;
        }
        write!(formatter, ": {}", self.0.fault)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0.fault)
    }
}
