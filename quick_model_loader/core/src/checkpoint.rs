//! A whole model on disk: its files, its tensors, and where each file goes in memory.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::index::Index;
use crate::source::open_regular;
use crate::{Error, Fault, Header, Identity, Result, Tensor, round_up_to_block};

const SINGLE_NAME: &str = "model.safetensors";
const EXTENSION: &str = ".safetensors";

/// One file of a checkpoint.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CheckpointFile {
    /// Where it is.
    #[serde(with = "crate::serde_path")]
    pub path: PathBuf,
    /// Which file it was when it was inspected.
    pub identity: Identity,
    /// Where its header ends and its data begins.
    pub header_bytes: u64,
    /// Its tensors that belong to the checkpoint, in the order of their data.
    pub tensors: Vec<Tensor>,
    /// The texts of its header's `__metadata__`.
    pub metadata: Vec<(String, String)>,
    /// Where it begins in a buffer that holds the whole checkpoint; a multiple of the block size.
    pub buffer_offset: u64,
}

impl CheckpointFile {
    /// The file's length.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.identity.bytes
    }

    /// The tensor whose data holds byte `offset` of the file.
    #[must_use]
    pub fn tensor_at(&self, offset: u64) -> Option<&Tensor> {
        let after = self.tensors.partition_point(|tensor| tensor.range.end <= offset);
        self.tensors.get(after).filter(|tensor| tensor.range.contains(&offset))
    }
}

/// The validated files of one model.
///
/// Invariants: tensor names are unique, no file occurs twice, and in a buffer of `buffer_bytes` the files lie one after
/// the other at multiples of the block size, none reaching into the next.
///
/// A clone is the same object once more, and costs nothing.
#[derive(Clone, Debug)]
pub struct Checkpoint(Arc<Inner>);

#[derive(Debug, Serialize, Deserialize)]
struct Inner {
    #[serde(with = "crate::serde_path")]
    path: PathBuf,
    files: Vec<CheckpointFile>,
    total_bytes: u64,
    buffer_bytes: u64,
}

impl Checkpoint {
    /// Reads and validates the headers of a checkpoint; the tensors' data is not read.
    ///
    /// `path` is one file, or a directory with `model.safetensors`, else with an index, else with any safetensors files,
    /// which are then taken in the order of their names. That the single file comes before the index is what Transformers
    /// does.
    ///
    /// # Errors
    ///
    /// Every [`Fault`] except [`Fault::Capacity`], [`Fault::Changed`] and [`Fault::Cancelled`].
    pub fn inspect(path: &Path) -> Result<Self> {
        let metadata = fs::metadata(path).map_err(|source| Error::io(path, "open", source))?;
        let mut builder = Builder::default();
        if !metadata.is_dir() {
            builder.add(path, Twice::Fault)?;
        } else if path.join(SINGLE_NAME).is_file() {
            builder.add(&path.join(SINGLE_NAME), Twice::Fault)?;
        } else if let Some(index) = Index::read(path)? {
            builder.add_indexed(path, &index)?;
        } else {
            for file in files_of(path)? {
                builder.add(&file, Twice::Fault)?;
            }
        }
        Ok(builder.build(path))
    }

    /// The path that was inspected.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// The files in the order in which a load reads them.
    #[must_use]
    pub fn files(&self) -> &[CheckpointFile] {
        &self.0.files
    }

    /// All tensors with the number of their file, in the order of their data.
    pub fn tensors(&self) -> impl Iterator<Item = (usize, &Tensor)> {
        self.0
            .files
            .iter()
            .enumerate()
            .flat_map(|(number, file)| file.tensors.iter().map(move |tensor| (number, tensor)))
    }

    /// The sum of the files' lengths.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.0.total_bytes
    }

    /// How much memory a load needs: the files, each rounded up to whole blocks.
    #[must_use]
    pub fn buffer_bytes(&self) -> u64 {
        self.0.buffer_bytes
    }

    /// The tensor of that name, with the number of its file.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<(usize, &Tensor)> {
        self.tensors().find(|(_, tensor)| tensor.name == name)
    }

    /// Where a tensor of file number `file` begins in a buffer that holds the whole checkpoint.
    #[must_use]
    pub fn offset_of(&self, file: usize, tensor: &Tensor) -> u64 {
        self.0.files.get(file).map_or(0, |file| file.buffer_offset) + tensor.range.start
    }
}

impl Serialize for Checkpoint {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Checkpoint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        Inner::deserialize(deserializer).map(|inner| Self(Arc::new(inner)))
    }
}

/// The safetensors files of a directory without an index.
fn files_of(directory: &Path) -> Result<Vec<PathBuf>> {
    let fail = |source| Error::io(directory, "list", source);
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(fail)? {
        let name = entry.map_err(fail)?.file_name();
        let bytes = name.as_encoded_bytes();
        if bytes.ends_with(EXTENSION.as_bytes()) && !bytes.starts_with(b".") {
            names.push(name);
        }
    }
    if names.iter().any(|name| name == SINGLE_NAME) {
        return Ok(vec![directory.join(SINGLE_NAME)]);
    }
    if names.is_empty() {
        return Err(Error::new(
            directory,
            Fault::NotACheckpoint("this directory holds no .safetensors file"),
        ));
    }
    names.sort();
    Ok(names.iter().map(|name| directory.join(name)).collect())
}

/// What a second tensor of the same name means.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Twice {
    /// Nobody can tell which one counts.
    Fault,
    /// The later one counts.
    Replaces,
}

/// A checkpoint in the making.
#[derive(Default)]
struct Builder {
    files: Vec<CheckpointFile>,
    /// Which file holds the tensor of that name.
    holder_of: HashMap<String, usize>,
    /// Which file is that inode of that device.
    file_of: HashMap<(u64, u64), usize>,
    total_bytes: u64,
    buffer_bytes: u64,
}

impl Builder {
    /// Adds the shards of an index. As in Transformers, the index only says which shards there are: every tensor in them
    /// counts, that of the last shard where two have it, and entries without a tensor mean nothing.
    fn add_indexed(&mut self, directory: &Path, index: &Index) -> Result<()> {
        for shard in index.shards() {
            let path = directory.join(shard);
            self.add(&path, Twice::Replaces).map_err(|error| match error.fault() {
                Fault::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                    Error::new(&path, Fault::MissingShard { index: index.path().to_owned() })
                }
                _ => error,
            })?;
        }
        for (number, file) in self.files.iter_mut().enumerate() {
            file.tensors.retain(|tensor| self.holder_of.get(&tensor.name) == Some(&number));
        }
        Ok(())
    }

    /// Adds a file and its tensors; of two with one name, the later one is their holder.
    fn add(&mut self, path: &Path, twice: Twice) -> Result<()> {
        let (file, identity) = open_regular(path, 0)?;
        let number = self.files.len();
        if let Some(other) = self.file_of.insert((identity.device, identity.inode), number) {
            return Err(Error::new(path, Fault::DuplicateFile { other: self.path_of(other) }));
        }
        let header = Header::read(path, &file, identity.bytes)?;
        for tensor in &header.tensors {
            let holder = self.holder_of.insert(tensor.name.clone(), number);
            if let Some(other) = holder.filter(|_| twice == Twice::Fault) {
                let fault = Fault::DuplicateTensor { other: self.path_of(other) };
                return Err(Error::new(path, fault).for_tensor(tensor.name.clone()));
            }
        }
        let buffer_offset = self.buffer_bytes;
        let buffer_end = round_up_to_block(identity.bytes).and_then(|bytes| buffer_offset.checked_add(bytes));
        // Only sparse files of absurd length get here: no memory would hold them.
        self.buffer_bytes = buffer_end.ok_or_else(|| {
            Error::new(path, Fault::Capacity { needed_bytes: u64::MAX, capacity_bytes: buffer_offset })
        })?;
        self.total_bytes += identity.bytes;
        self.files.push(CheckpointFile {
            path: path.to_owned(),
            identity,
            header_bytes: header.bytes,
            tensors: header.tensors,
            metadata: header.metadata,
            buffer_offset,
        });
        Ok(())
    }

    fn path_of(&self, number: usize) -> PathBuf {
        // A missing number is the file that is being added: its tensors' names are unique, so it is never asked for.
        self.files.get(number).map(|file| file.path.clone()).unwrap_or_default()
    }

    fn build(self, path: &Path) -> Checkpoint {
        let Self { files, total_bytes, buffer_bytes, .. } = self;
        Checkpoint(Arc::new(Inner { path: path.to_owned(), files, total_bytes, buffer_bytes }))
    }
}
