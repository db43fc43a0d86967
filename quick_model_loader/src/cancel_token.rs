//! The wish to stop a load, from Python.

use std::sync::atomic::{AtomicU64, Ordering};

use pyo3::prelude::*;
use quick_model_loader_core::Cancel;

/// Stops the loads that it is given to, from any thread.
#[pyclass(frozen, module = "quick_model_loader")]
#[derive(Default)]
pub struct CancelToken {
    pub cancel: Cancel,
    pub progress: AtomicU64,
}

#[pymethods]
impl CancelToken {
    #[new]
    fn new() -> Self {
        Self::default()
    }

    /// Asks the loads to stop; they raise `CancelledError` within one job. Idempotent.
    fn cancel(&self) {
        self.cancel.cancel();
    }

    /// Whether `cancel` was called.
    #[getter]
    fn cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }

    /// How many bytes were hashed or verified under this token.
    #[getter]
    fn bytes(&self) -> u64 {
        self.progress.load(Ordering::Relaxed)
    }

    fn __repr__(&self) -> String {
        format!("CancelToken(cancelled={})", if self.cancelled() { "True" } else { "False" })
    }
}
