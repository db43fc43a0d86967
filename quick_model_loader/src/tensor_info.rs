//! A tensor of a checkpoint, for Python.

use pyo3::prelude::*;
use pyo3::types::PyTuple;
use quick_model_loader_core::Tensor;

/// Where a tensor's bytes are and what they mean.
#[pyclass(frozen, eq, hash, module = "quick_model_loader")]
#[derive(PartialEq, Eq, Hash)]
pub struct TensorInfo {
    #[pyo3(get)]
    name: String,
    #[pyo3(get)]
    dtype: &'static str,
    shape: Vec<u64>,
    #[pyo3(get)]
    file: usize,
    #[pyo3(get)]
    begin: u64,
    #[pyo3(get)]
    end: u64,
}

impl TensorInfo {
    pub fn new(file: usize, tensor: &Tensor) -> Self {
        Self {
            name: tensor.name.clone(),
            dtype: tensor.dtype.name(),
            shape: tensor.shape.clone(),
            file,
            begin: tensor.range.start,
            end: tensor.range.end,
        }
    }
}

#[pymethods]
impl TensorInfo {
    /// The extent per dimension; empty for a scalar.
    #[getter]
    fn shape<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, &self.shape)
    }

    /// The length of the data in bytes.
    #[getter]
    fn nbytes(&self) -> u64 {
        self.end - self.begin
    }

    fn __repr__(&self) -> String {
        let Self { name, dtype, shape, file, begin, end } = self;
        format!(
            "TensorInfo(name={name:?}, dtype={dtype}, shape={shape:?}, file={file}, begin={begin}, end={end})"
        )
    }
}
