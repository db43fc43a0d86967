//! Core errors as Python exceptions.

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyModule, PyType};
use quick_model_loader_core::{AttachFault, Error, Fault};

/// The exception classes are Python's (`quick_model_loader.errors`): there they can derive from `OSError` too.
static ERRORS: PyOnceLock<Py<PyModule>> = PyOnceLock::new();

/// The exception that tells Python about `error`.
pub fn to_python(py: Python<'_>, error: &Error) -> PyErr {
    // Should the class be missing, the failure to build the exception is the exception.
    build(py, error).unwrap_or_else(|failure| failure)
}

fn build(py: Python<'_>, error: &Error) -> PyResult<PyErr> {
    let errors = ERRORS
        .get_or_try_init(py, || PyModule::import(py, "quick_model_loader.errors").map(Bound::unbind))?;
    let class = errors.bind(py).getattr(class_name(error.fault()))?.cast_into::<PyType>()?;
    let path = Some(error.path()).filter(|path| !path.as_os_str().is_empty());
    let arguments = (error.to_string(), path, error.tensor(), error.offset(), error.errno());
    Ok(PyErr::from_value(class.call1(arguments)?))
}

fn class_name(fault: &Fault) -> &'static str {
    match fault {
        Fault::Io { .. } => "IoError",
        Fault::NotACheckpoint(_) => "NotACheckpointError",
        Fault::Header(_) => "HeaderError",
        Fault::Truncated { .. } => "TruncatedError",
        Fault::Index(_) => "IndexFileError",
        Fault::MissingShard { .. } => "MissingShardError",
        Fault::DuplicateTensor { .. } | Fault::DuplicateFile { .. } => "DuplicateError",
        Fault::Capacity { .. } => "CapacityError",
        Fault::Changed(_) => "ChangedError",
        Fault::Cancelled => "CancelledError",
        Fault::Deadline(_) => "DeadlineError",
        Fault::Closed => "ClosedError",
        Fault::KeyInUse { .. } => "KeyInUseError",
        Fault::Checksum(_) => "ChecksumError",
        Fault::Attach(AttachFault::OwnerGone | AttachFault::Timeout) => "OwnerGoneError",
        Fault::Attach(AttachFault::Evicted) => "EvictedError",
        Fault::Attach(_) => "AttachError",
        Fault::Placement(_) => "PlacementError",
        Fault::Cuda { .. } | Fault::NoCuda(_) => "CudaError",
        // Only a fault younger than this binding gets here.
        _ => "LoaderError",
    }
}
