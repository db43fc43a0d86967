//! A file of a checkpoint, for Python.

use std::collections::HashMap;
use std::path::PathBuf;

use pyo3::prelude::*;
use quick_model_loader_core::CheckpointFile;

/// One safetensors file.
#[pyclass(frozen, get_all, module = "quick_model_loader")]
pub struct FileInfo {
    path: PathBuf,
    bytes: u64,
    header_bytes: u64,
    metadata: HashMap<String, String>,
}

impl From<&CheckpointFile> for FileInfo {
    fn from(file: &CheckpointFile) -> Self {
        Self {
            path: file.path.clone(),
            bytes: file.bytes(),
            header_bytes: file.header_bytes,
            metadata: file.metadata.iter().cloned().collect(),
        }
    }
}

#[pymethods]
impl FileInfo {
    fn __repr__(&self) -> String {
        format!("FileInfo(path={}, bytes={})", self.path.display(), self.bytes)
    }
}
