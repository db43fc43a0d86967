//! Which file this is, and whether it was written to.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

use serde::{Deserialize, Serialize};

/// Two equal identities mean the same file with, as far as the file system tells, the same content.
///
/// The change time is left out on purpose: hard links and permissions touch it, the bytes do not change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Identity {
    /// The device that holds the file.
    pub device: u64,
    /// The file's number on that device.
    pub inode: u64,
    /// The file's length.
    pub bytes: u64,
    /// Seconds of the last modification since 1970.
    pub modified_s: i64,
    /// Nanoseconds of the last modification within that second.
    pub modified_ns: i64,
}

impl Identity {
    /// The identity that `metadata` shows.
    #[must_use]
    pub fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.len(),
            modified_s: metadata.mtime(),
            modified_ns: metadata.mtime_nsec(),
        }
    }

    /// Whether both are the same file, written to or not.
    #[must_use]
    pub fn is_same_file(&self, other: &Self) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }
}
