//! What a load did, for Python.

use pyo3::prelude::*;
use quick_model_loader_core as core;

/// What a load did.
#[pyclass(frozen, get_all, module = "quick_model_loader")]
pub struct LoadReport {
    bytes: u64,
    seconds: f64,
    threads: usize,
    direct_bytes: u64,
    buffered_bytes: u64,
}

impl From<core::LoadReport> for LoadReport {
    fn from(report: core::LoadReport) -> Self {
        Self {
            bytes: report.bytes,
            seconds: report.elapsed.as_secs_f64(),
            threads: report.threads,
            direct_bytes: report.direct_bytes,
            buffered_bytes: report.buffered_bytes,
        }
    }
}

#[pymethods]
impl LoadReport {
    fn __repr__(&self) -> String {
        let Self { bytes, seconds, threads, direct_bytes, buffered_bytes } = self;
        format!(
            "LoadReport(bytes={bytes}, seconds={seconds:.6}, threads={threads}, direct_bytes={direct_bytes}, \
             buffered_bytes={buffered_bytes})"
        )
    }
}
