//! Checksums of a file's content, kept in a second file beside it.
//!
//! XXH3-64 of every chunk of the file: it finds rotten bits and mixed-up files; it is no defence against forgery.

use std::fs::{self, File};
use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::{ChecksumFault, Error, Fault, JOB_BYTES, Result};

/// What the name of the second file has in addition.
const EXTENSION: &str = ".xxh3";
const ALGORITHM: &str = "xxh3-64";

/// The checksums of one file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checksums {
    algorithm: String,
    /// The length of the file.
    pub file_bytes: u64,
    /// The length of a chunk; the last one may be shorter.
    chunk_bytes: u64,
    /// One number per chunk, as hexadecimal digits (JSON's numbers end at 2^53).
    chunks: Vec<String>,
}

impl Checksums {
    /// The checksums of a file of `file_bytes` bytes, whose chunks are as long as a load's jobs.
    #[must_use]
    pub fn new(file_bytes: u64, chunks: &[u64]) -> Self {
        Self {
            algorithm: ALGORITHM.to_owned(),
            file_bytes,
            chunk_bytes: JOB_BYTES,
            chunks: chunks.iter().map(|chunk| format!("{chunk:016x}")).collect(),
        }
    }

    /// Where the checksums of `path` are kept.
    #[must_use]
    pub fn path_of(path: &Path) -> PathBuf {
        let mut name = path.as_os_str().to_owned();
        name.push(EXTENSION);
        PathBuf::from(name)
    }

    /// Reads the checksums of `path`, a file of `file_bytes` bytes.
    ///
    /// # Errors
    ///
    /// [`Fault::Checksum`] if there are none, or if they are malformed or another file's; [`Fault::Io`].
    pub fn read(path: &Path, file_bytes: u64) -> Result<Self> {
        let sidecar = Self::path_of(path);
        let fail = |fault| Error::new(&sidecar, Fault::Checksum(fault));
        let json = fs::read(&sidecar).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => fail(ChecksumFault::Absent),
            _ => Error::io(&sidecar, "read", error),
        })?;
        let found: Self = serde_json::from_slice(&json)
            .map_err(|error| fail(ChecksumFault::Malformed(error.to_string())))?;
        if found.algorithm != ALGORITHM || found.chunk_bytes != JOB_BYTES {
            let what = format!("{} of {} bytes each is not supported", found.algorithm, found.chunk_bytes);
            return Err(fail(ChecksumFault::Malformed(what)));
        }
        if found.file_bytes != file_bytes {
            return Err(fail(ChecksumFault::Stale { recorded_bytes: found.file_bytes, file_bytes }));
        }
        if found.chunks.len() as u64 != file_bytes.div_ceil(JOB_BYTES) {
            return Err(fail(ChecksumFault::Malformed(format!("{} chunks", found.chunks.len()))));
        }
        if let Some(text) = found.chunks.iter().find(|text| u64::from_str_radix(text, 16).is_err()) {
            return Err(fail(ChecksumFault::Malformed(format!("{text:?} is no checksum"))));
        }
        Ok(found)
    }

    /// Writes them beside `path`: the old ones stay until the new ones are complete on the disk.
    ///
    /// # Errors
    ///
    /// [`Fault::Io`].
    pub fn write(&self, path: &Path) -> Result<()> {
        let sidecar = Self::path_of(path);
        let temporary = sidecar.with_extension(format!("xxh3.{}", std::process::id()));
        let written = self.write_to(&temporary).and_then(|()| fs::rename(&temporary, &sidecar));
        written.map_err(|source| {
            // The failure that matters is the first one; the leftover may not even exist.
            let _ = fs::remove_file(&temporary);
            Error::io(&sidecar, "write", source)
        })
    }

    fn write_to(&self, path: &Path) -> io::Result<()> {
        let mut file = File::create(path)?;
        let mut json = serde_json::to_vec_pretty(self)?;
        json.push(b'\n');
        file.write_all(&json)?;
        file.sync_all()
    }

    /// Fails unless `content` is what the chunk at `range` of `path` should hold.
    ///
    /// # Errors
    ///
    /// [`Fault::Checksum`].
    pub fn check(&self, path: &Path, range: &Range<u64>, content: &[u8]) -> Result<()> {
        let number = usize::try_from(range.start / JOB_BYTES).ok();
        let expected = number
            .and_then(|number| self.chunks.get(number))
            .and_then(|text| u64::from_str_radix(text, 16).ok())
            .unwrap_or_default();
        let found = xxh3_64(content);
        if found == expected {
            return Ok(());
        }
        let fault =
            Fault::Checksum(ChecksumFault::Mismatch { expected, found, bytes: range.end - range.start });
        Err(Error::new(path, fault).at_offset(range.start))
    }
}

#[cfg(test)]
mod tests {
    use super::{Checksums, xxh3_64};
    use crate::{ChecksumFault, Fault};
    use std::fs;

    #[test]
    fn what_was_written_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("model.safetensors");
        let sums = Checksums::new(3, &[xxh3_64(b"abc")]);
        sums.write(&path).unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        assert_eq!(Checksums::read(&path, 3).unwrap(), sums);
        assert!(sums.check(&path, &(0..3), b"abc").is_ok());
        let error = sums.check(&path, &(0..3), b"abd").unwrap_err();
        assert!(matches!(error.fault(), Fault::Checksum(ChecksumFault::Mismatch { bytes: 3, .. })));
        assert_eq!((error.path(), error.offset()), (path.as_path(), Some(0)));
    }

    #[test]
    fn wrong_sidecars_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("m");
        let fault_of = |file_bytes| match Checksums::read(&path, file_bytes).unwrap_err().fault() {
            Fault::Checksum(fault) => fault.to_string(),
            other => panic!("{other}"),
        };
        assert!(fault_of(1).contains("no checksums"));
        for (text, expected) in [
            ("{", "EOF"),
            (r#"{"algorithm":"md5","file_bytes":1,"chunk_bytes":8388608,"chunks":["0"]}"#, "md5"),
            (r#"{"algorithm":"xxh3-64","file_bytes":1,"chunk_bytes":9,"chunks":["0"]}"#, "9 bytes"),
            (r#"{"algorithm":"xxh3-64","file_bytes":2,"chunk_bytes":8388608,"chunks":["0"]}"#, "2 bytes"),
            (r#"{"algorithm":"xxh3-64","file_bytes":1,"chunk_bytes":8388608,"chunks":[]}"#, "0 chunks"),
            (r#"{"algorithm":"xxh3-64","file_bytes":1,"chunk_bytes":8388608,"chunks":["x"]}"#, "no checksum"),
        ] {
            fs::write(Checksums::path_of(&path), text).unwrap();
            assert!(fault_of(1).contains(expected), "{text}: {}", fault_of(1));
        }
    }
}
