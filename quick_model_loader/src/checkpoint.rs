//! A checkpoint, for Python.

use std::path::PathBuf;

use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::{PyBufferError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyMappingProxy, PyTuple};
use quick_model_loader_core as core;
use quick_model_loader_core::{Cancel, CheckpointFile, Target};

use crate::cancel_token::CancelToken;
use crate::error::to_python;
use crate::file_info::FileInfo;
use crate::load_report::LoadReport;
use crate::read::{options, read, run};
use crate::tensor_info::TensorInfo;

/// A validated model on disk.
#[pyclass(frozen, module = "quick_model_loader")]
pub struct Checkpoint {
    core: core::Checkpoint,
    /// Built when first asked for: a model can have a hundred thousand tensors.
    tensors: PyOnceLock<Py<PyMappingProxy>>,
}

/// Validates a safetensors file, or a directory of them, without reading any tensor.
#[pyfunction]
#[expect(clippy::needless_pass_by_value, reason = "what Python passes is converted, hence owned")]
pub fn inspect(py: Python<'_>, path: PathBuf) -> PyResult<Checkpoint> {
    let core = py.detach(|| core::Checkpoint::inspect(&path)).map_err(|error| to_python(py, &error))?;
    Ok(Checkpoint { core, tensors: PyOnceLock::new() })
}

/// The files of a checkpoint.
pub fn file_infos<'py>(py: Python<'py>, checkpoint: &core::Checkpoint) -> PyResult<Bound<'py, PyTuple>> {
    let files = checkpoint.files().iter().map(|file| Py::new(py, FileInfo::from(file)));
    PyTuple::new(py, files.collect::<PyResult<Vec<_>>>()?)
}

/// Where each file begins in memory that holds them all.
pub fn file_offsets<'py>(py: Python<'py>, checkpoint: &core::Checkpoint) -> PyResult<Bound<'py, PyTuple>> {
    let offsets: Vec<u64> = checkpoint.files().iter().map(|file| file.buffer_offset).collect();
    PyTuple::new(py, offsets)
}

/// Name -> tensor, in the order of the data.
pub fn tensor_infos(py: Python<'_>, checkpoint: &core::Checkpoint) -> PyResult<Py<PyMappingProxy>> {
    let dict = PyDict::new(py);
    for (file, tensor) in checkpoint.tensors() {
        dict.set_item(&tensor.name, Py::new(py, TensorInfo::new(file, tensor))?)?;
    }
    Ok(PyMappingProxy::new(py, dict.as_mapping()).unbind())
}

#[pymethods]
impl Checkpoint {
    /// The path that was inspected.
    #[getter]
    fn path(&self) -> PathBuf {
        self.core.path().to_owned()
    }

    /// The files in the order in which they are read.
    #[getter]
    fn files<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        file_infos(py, &self.core)
    }

    /// Where each file begins in the buffer.
    #[getter]
    fn file_offsets<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        file_offsets(py, &self.core)
    }

    /// Name -> tensor, in the order of the data.
    #[getter]
    fn tensors(&self, py: Python<'_>) -> PyResult<Py<PyMappingProxy>> {
        let tensors = self.tensors.get_or_try_init(py, || tensor_infos(py, &self.core))?;
        Ok(tensors.clone_ref(py))
    }

    /// The sum of the files' lengths.
    #[getter]
    fn total_bytes(&self) -> u64 {
        self.core.total_bytes()
    }

    /// How much memory a load needs.
    #[getter]
    fn buffer_bytes(&self) -> u64 {
        self.core.buffer_bytes()
    }

    /// Reads all files to `address`.
    #[pyo3(signature = (address, capacity, *, threads=None, direct=None, cancel=None))]
    fn read_into(
        &self,
        py: Python<'_>,
        address: usize,
        capacity: u64,
        threads: Option<usize>,
        direct: Option<bool>,
        cancel: Option<&CancelToken>,
    ) -> PyResult<LoadReport> {
        if address == 0 {
            return Err(PyValueError::new_err("address must not be 0"));
        }
        // SAFETY: the documentation of `read_into` makes the caller promise exactly this.
        let target = unsafe { Target::new(address as *mut u8, capacity) };
        self.read(py, &target, threads, direct, cancel)
    }

    /// Reads all files into an object with the buffer protocol.
    #[pyo3(signature = (buffer, *, threads=None, direct=None, cancel=None))]
    fn read_into_buffer(
        &self,
        py: Python<'_>,
        buffer: &Bound<'_, PyAny>,
        threads: Option<usize>,
        direct: Option<bool>,
        cancel: Option<&CancelToken>,
    ) -> PyResult<LoadReport> {
        let buffer = PyUntypedBuffer::get(buffer)?;
        if buffer.readonly() || !buffer.is_c_contiguous() {
            return Err(PyBufferError::new_err("the buffer must be writable and contiguous"));
        }
        // SAFETY: an exported buffer neither moves nor goes away before `buffer` is dropped, at the end of this
        // function; that nobody else uses its content meanwhile is for the caller to see to.
        let target = unsafe { Target::new(buffer.buf_ptr().cast(), buffer.len_bytes() as u64) };
        self.read(py, &target, threads, direct, cancel)
    }

    /// Writes the checksums of every file beside it.
    #[pyo3(signature = (*, threads=None, direct=None, cancel=None))]
    fn write_checksums(
        &self,
        py: Python<'_>,
        threads: Option<usize>,
        direct: Option<bool>,
        cancel: Option<&CancelToken>,
    ) -> PyResult<Vec<PathBuf>> {
        let (options, own) = (options(threads, direct)?, CancelToken::default());
        let token = cancel.unwrap_or(&own);
        run(py, &token.cancel, || core::write_checksums(&self.core, &options, &token.cancel, &token.progress))
    }

    /// Compares every file with the checksums beside it.
    #[pyo3(signature = (*, threads=None, direct=None, cancel=None))]
    fn verify(
        &self,
        py: Python<'_>,
        threads: Option<usize>,
        direct: Option<bool>,
        cancel: Option<&CancelToken>,
    ) -> PyResult<()> {
        let (options, own) = (options(threads, direct)?, CancelToken::default());
        let token = cancel.unwrap_or(&own);
        run(py, &token.cancel, || core::verify(&self.core, &options, &token.cancel, &token.progress))
    }

    fn __repr__(&self) -> String {
        let files = self.core.files();
        let tensors: usize = files.iter().map(|file: &CheckpointFile| file.tensors.len()).sum();
        format!(
            "Checkpoint(path={}, files={}, tensors={tensors}, total_bytes={})",
            self.core.path().display(),
            files.len(),
            self.core.total_bytes()
        )
    }
}

impl Checkpoint {
    fn read(
        &self,
        py: Python<'_>,
        target: &Target,
        threads: Option<usize>,
        direct: Option<bool>,
        cancel: Option<&CancelToken>,
    ) -> PyResult<LoadReport> {
        let options = options(threads, direct)?;
        let own = Cancel::default();
        let cancel = cancel.map_or(&own, |token| &token.cancel);
        Ok(read(py, &self.core, target, &options, cancel)?.into())
    }
}
