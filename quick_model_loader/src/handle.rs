//! What another process needs to attach to an entry, for Python.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyType};
use quick_model_loader_core as core;

/// What another process needs to attach to an entry.
#[pyclass(frozen, eq, hash, module = "quick_model_loader")]
#[derive(PartialEq, Eq, Hash)]
pub struct Handle {
    pub handle: core::Handle,
}

type State<'py> = (String, Bound<'py, PyBytes>, u64, String);

#[pymethods]
impl Handle {
    #[new]
    fn new(socket: String, token: &[u8], entry: u64, key: String) -> PyResult<Self> {
        let token = token.try_into().map_err(|_| {
            PyValueError::new_err(format!("a token has {} bytes, not {}", core::TOKEN_BYTES, token.len()))
        })?;
        Ok(Self { handle: core::Handle { socket, token, entry, key } })
    }

    /// The entry's key.
    #[getter]
    fn key(&self) -> &str {
        &self.handle.key
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> (Bound<'py, PyType>, State<'py>) {
        let core::Handle { socket, token, entry, key } = &slf.get().handle;
        (slf.get_type(), (socket.clone(), PyBytes::new(slf.py(), token), *entry, key.clone()))
    }

    fn __repr__(&self) -> String {
        // The token is a secret of sorts: it stays out of logs.
        format!(
            "Handle(key={:?}, socket={:?}, entry={})",
            self.handle.key, self.handle.socket, self.handle.entry
        )
    }
}
