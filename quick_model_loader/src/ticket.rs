//! A load that was asked for, for Python.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use pyo3::exceptions::{PyRuntimeError, PyTimeoutError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use quick_model_loader_core as core;
use std::os::fd::AsRawFd;

use crate::entry::Entry;
use crate::error::to_python;
use crate::held::Held;
use crate::read::SIGNAL_INTERVAL;
use crate::seconds::duration;

/// A load that was asked for.
#[pyclass(frozen, module = "quick_model_loader")]
pub struct Ticket {
    ticket: core::Ticket,
    entry: PyOnceLock<Py<Entry>>,
}

/// How far a load is.
#[pyclass(frozen, get_all, module = "quick_model_loader")]
pub struct Progress {
    stage: &'static str,
    bytes: u64,
    total_bytes: u64,
}

impl Ticket {
    pub const fn new(ticket: core::Ticket) -> Self {
        Self { ticket, entry: PyOnceLock::new() }
    }

    /// Waits without the GIL, heeding signals.
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<()> {
        let deadline =
            timeout.map(duration).transpose()?.and_then(|timeout| Instant::now().checked_add(timeout));
        while !self.ticket.is_done() {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                let key = self.ticket.key();
                return Err(PyTimeoutError::new_err(format!("{key:?} is still loading")));
            }
            let step = left.map_or(SIGNAL_INTERVAL, |left| left.min(SIGNAL_INTERVAL));
            if !py.detach(|| self.ticket.wait(Some(step))) {
                py.check_signals()?;
            }
        }
        Ok(())
    }
}

#[pymethods]
impl Ticket {
    /// The key that the entry will have.
    #[getter]
    fn key(&self) -> &str {
        self.ticket.key()
    }

    /// What is loaded.
    #[getter]
    fn path(&self) -> PathBuf {
        self.ticket.path().to_owned()
    }

    /// How far it is.
    #[getter]
    fn progress(&self) -> Progress {
        let core::Progress { stage, bytes, total_bytes } = self.ticket.progress();
        Progress { stage: stage.name(), bytes, total_bytes }
    }

    /// Whether it is over.
    fn done(&self) -> bool {
        self.ticket.is_done()
    }

    /// Gives the load up.
    fn cancel(&self) -> bool {
        self.ticket.cancel()
    }

    /// Whether it was given up.
    fn cancelled(&self) -> bool {
        self.ticket.error().is_some_and(|error| matches!(error.fault(), core::Fault::Cancelled))
    }

    /// The entry, when it is there.
    #[pyo3(signature = (timeout=None))]
    fn result(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Py<Entry>> {
        self.wait(py, timeout)?;
        if let Some(error) = self.ticket.error() {
            return Err(to_python(py, &error));
        }
        let entry = self.entry.get_or_try_init(py, || {
            let lease = self.ticket.claim();
            let lease = lease.ok_or_else(|| PyRuntimeError::new_err("the lease is gone; this is a bug"))?;
            Py::new(py, Entry::new(Held::lease(lease)))
        })?;
        Ok(entry.clone_ref(py))
    }

    /// Why it failed.
    #[pyo3(signature = (timeout=None))]
    fn exception(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Option<PyErr>> {
        self.wait(py, timeout)?;
        Ok(self.ticket.error().map(|error| to_python(py, &error)))
    }

    /// Has `callback` called when the load is over.
    fn add_done_callback(slf: &Bound<'_, Self>, callback: Py<PyAny>) {
        let ticket = slf.clone().unbind();
        slf.get().ticket.on_done(move || {
            // When the interpreter is going down there is nobody left to call.
            Python::try_attach(|py| {
                if let Err(error) = callback.call1(py, (ticket,)) {
                    error.write_unraisable(py, Some(callback.bind(py)));
                }
            });
        });
    }

    /// A descriptor that becomes readable when the load is over.
    fn fileno(&self) -> PyResult<i32> {
        Ok(self.ticket.event_fd()?.as_raw_fd())
    }

    fn __repr__(&self) -> String {
        let core::Progress { stage, bytes, total_bytes } = self.ticket.progress();
        let (key, stage) = (self.ticket.key(), stage.name());
        format!("Ticket(key={key:?}, stage={stage}, bytes={bytes}, total_bytes={total_bytes})")
    }
}

#[pymethods]
impl Progress {
    fn __repr__(&self) -> String {
        let Self { stage, bytes, total_bytes } = self;
        format!("Progress(stage={stage:?}, bytes={bytes}, total_bytes={total_bytes})")
    }
}
