//! CUDA devices, for Python.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pyo3::prelude::*;
use quick_model_loader_core as core;

use crate::entry::Entry;
use crate::error::to_python;
use crate::held::Held;

/// A CUDA device.
#[pyclass(frozen, module = "quick_model_loader")]
pub struct CudaDevice {
    pub device: core::Device,
}

/// A copy under way.
#[pyclass(frozen, module = "quick_model_loader")]
pub struct Transfer {
    /// `None` once it was waited for: the lease is not kept longer than needed.
    transfer: Mutex<Option<Arc<core::Transfer<Arc<Held>>>>>,
}

#[pymethods]
impl CudaDevice {
    #[new]
    #[pyo3(signature = (ordinal=0, *, library=core::CUDA_LIBRARY))]
    fn new(py: Python<'_>, ordinal: u32, library: &str) -> PyResult<Self> {
        let device = py.detach(|| core::Device::open(library, ordinal));
        device.map(|device| Self { device }).map_err(|error| to_python(py, &error))
    }

    /// Pins the arena that an entry lies in.
    fn register(&self, py: Python<'_>, entry: &Entry) -> PyResult<()> {
        let held = entry.held()?;
        let registered = py.detach(|| self.device.register(held.arena_id()?, held.arena()?));
        registered.map_err(|error| to_python(py, &error))
    }
}

impl Transfer {
    pub fn new(transfer: core::Transfer<Arc<Held>>) -> Self {
        Self { transfer: Mutex::new(Some(Arc::new(transfer))) }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<core::Transfer<Arc<Held>>>>> {
        self.transfer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        if let Some(transfer) = self.lock().take() {
            // Dropping it waits for the device, which is not for the GIL to wait for.
            Python::attach(|py| py.detach(|| drop(transfer)));
        }
    }
}

#[pymethods]
impl Transfer {
    /// Whether all is copied.
    fn done(&self, py: Python<'_>) -> PyResult<bool> {
        let Some(transfer) = self.lock().clone() else { return Ok(true) };
        py.detach(|| transfer.is_done()).map_err(|error| to_python(py, &error))
    }

    /// Waits until all is copied.
    fn wait(&self, py: Python<'_>) -> PyResult<()> {
        let Some(transfer) = self.lock().clone() else { return Ok(()) };
        py.detach(|| transfer.wait()).map_err(|error| to_python(py, &error))?;
        let done = self.lock().take();
        drop(done);
        Ok(())
    }

    /// The event that happens when all is copied.
    #[getter]
    fn event(&self) -> Option<u64> {
        self.lock().as_ref().map(|transfer| transfer.event())
    }
}
