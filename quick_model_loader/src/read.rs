//! Blocking work that holds no lock of Python's and heeds Ctrl-C.

use std::num::NonZeroUsize;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use quick_model_loader_core::{Cancel, Checkpoint, Direct, Error, LoadOptions, LoadReport, Target, load};

use crate::error::to_python;

/// How often a blocked load looks for signals.
pub const SIGNAL_INTERVAL: Duration = Duration::from_millis(50);

/// The core's options from Python's.
pub fn options(threads: Option<usize>, direct: Option<bool>) -> PyResult<LoadOptions> {
    let threads = threads
        .map(|threads| {
            NonZeroUsize::new(threads).ok_or_else(|| PyValueError::new_err("threads must be at least 1"))
        })
        .transpose()?;
    let direct = match direct {
        None => Direct::WhenCold,
        Some(true) => Direct::Always,
        Some(false) => Direct::Never,
    };
    Ok(LoadOptions { threads, direct, ..LoadOptions::default() })
}

/// Loads into `target`.
pub fn read(
    py: Python<'_>,
    checkpoint: &Checkpoint,
    target: &Target,
    options: &LoadOptions,
    cancel: &Cancel,
) -> PyResult<LoadReport> {
    run(py, cancel, || load(checkpoint, target, options, cancel))
}

/// Works on another thread while this one waits without the GIL. A signal whose handler raises cancels the work.
pub fn run<T: Send>(
    py: Python<'_>,
    cancel: &Cancel,
    work: impl FnOnce() -> Result<T, Error> + Send,
) -> PyResult<T> {
    py.detach(|| {
        thread::scope(|scope| {
            let (sender, receiver) = mpsc::sync_channel(1);
            thread::Builder::new().name("quick-model-loader".to_owned()).spawn_scoped(scope, move || {
                // The receiver waits for this in all cases; if it panicked there is nobody to tell.
                let _ = sender.send(work());
            })?;
            let mut interrupt = None;
            loop {
                match receiver.recv_timeout(SIGNAL_INTERVAL) {
                    Ok(result) => {
                        return match interrupt {
                            Some(interrupt) => Err(interrupt),
                            None => result.map_err(|error| Python::attach(|py| to_python(py, &error))),
                        };
                    }
                    Err(RecvTimeoutError::Timeout) => {
                        if let Some(raised) = Python::attach(|py| py.check_signals().err()) {
                            cancel.cancel();
                            interrupt = Some(raised);
                        }
                    }
                    Err(RecvTimeoutError::Disconnected) => {
                        return Err(PyRuntimeError::new_err("the loading thread died; this is a bug"));
                    }
                }
            }
        })
    })
}
