//! `model.safetensors.index.json`: which shard holds which tensor.

use std::collections::{BTreeSet, HashMap};
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use crate::json::Pairs;
use crate::source::open_regular;
use crate::{Error, Fault, IndexFault, Result};

/// The file's name in a checkpoint's directory.
const INDEX_NAME: &str = "model.safetensors.index.json";

/// A longer index is none: a hundred thousand tensors take ten megabytes.
const MAX_INDEX_BYTES: u64 = 100_000_000;

/// A validated index.
#[derive(Debug)]
pub struct Index {
    path: PathBuf,
    shard_of: HashMap<String, String>,
}

#[derive(Deserialize)]
struct RawIndex {
    weight_map: Pairs<String>,
}

impl Index {
    /// Reads the index of `directory`; `None` if it has none.
    ///
    /// # Errors
    ///
    /// [`Fault::Index`] if it is malformed, [`Fault::Io`] or [`Fault::NotACheckpoint`] if it cannot be read.
    pub fn read(directory: &Path) -> Result<Option<Self>> {
        let path = directory.join(INDEX_NAME);
        let (file, identity) = match open_regular(&path, 0) {
            Ok(opened) => opened,
            Err(error) if is_absent(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        if identity.bytes > MAX_INDEX_BYTES {
            return Err(Error::new(&path, Fault::Index(IndexFault::TooLong(identity.bytes))));
        }
        let mut json = Vec::new();
        // It may grow while it is read.
        file.take(MAX_INDEX_BYTES).read_to_end(&mut json).map_err(|error| Error::io(&path, "read", error))?;
        Self::parse(path, &json).map(Some)
    }

    fn parse(path: PathBuf, json: &[u8]) -> Result<Self> {
        let fail = |fault| Error::new(&path, Fault::Index(fault));
        let raw: RawIndex = serde_json::from_slice(json).map_err(|error| fail(IndexFault::Json(error)))?;
        if raw.weight_map.0.is_empty() {
            return Err(fail(IndexFault::Empty));
        }
        if let Some(name) = raw.weight_map.duplicate() {
            return Err(fail(IndexFault::DuplicateName).for_tensor(name.to_owned()));
        }
        for (tensor, shard) in &raw.weight_map.0 {
            if !is_plain(shard) {
                return Err(fail(IndexFault::UnsafePath(shard.clone())).for_tensor(tensor.clone()));
            }
        }
        Ok(Self { shard_of: raw.weight_map.0.into_iter().collect(), path })
    }

    /// The index file itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The shards' names, sorted.
    pub fn shards(&self) -> BTreeSet<&str> {
        self.shard_of.values().map(String::as_str).collect()
    }
}

fn is_absent(error: &Error) -> bool {
    matches!(error.fault(), Fault::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
}

/// Whether `name` stays inside the directory and has no second spelling (`./a`, `x//a`, `x/../a`).
fn is_plain(name: &str) -> bool {
    let path = Path::new(name);
    let names_only = path.components().all(|component| matches!(component, Component::Normal(_)));
    let respelled: PathBuf = path.components().collect();
    !name.is_empty() && names_only && respelled.as_os_str() == name && !name.contains('\0')
}

#[cfg(test)]
mod tests {
    use super::is_plain;

    #[test]
    fn shard_names_are_plain() {
        for name in ["model-00001-of-00002.safetensors", "unet/model.safetensors", ".hidden"] {
            assert!(is_plain(name), "{name}");
        }
        for name in ["", "/a", "../a", "a/../b", "./a", "a/./b", "a//b", "a/", "a\0b"] {
            assert!(!is_plain(name), "{name}");
        }
    }
}
