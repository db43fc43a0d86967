//! Copies, for Python.

use std::num::NonZeroUsize;
use std::sync::Arc;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use quick_model_loader_core as core;
use quick_model_loader_core::{Cancel, Part};

use crate::cancel_token::CancelToken;
use crate::cuda_device::{CudaDevice, Transfer};
use crate::error::to_python;
use crate::held::Held;

/// A part of a tensor, and where it goes.
#[pyclass(frozen, module = "quick_model_loader")]
pub struct Placement {
    placement: core::Placement,
}

/// A copy that was worked out.
#[pyclass(frozen, module = "quick_model_loader")]
pub struct CopyPlan {
    plan: core::Plan,
    held: Arc<Held>,
}

fn part(
    dim: Option<usize>,
    range: (Option<u64>, Option<u64>),
    share: (Option<u64>, Option<u64>),
) -> PyResult<Part> {
    match (dim, range, share) {
        (None, (None, None), (None, None)) => Ok(Part::Whole),
        (Some(dim), (Some(begin), Some(end)), (None, None)) => Ok(Part::Range { dim, begin, end }),
        (Some(dim), (None, None), (Some(rank), Some(world))) => Ok(Part::Share { dim, rank, world }),
        _ => Err(PyValueError::new_err(
            "give nothing for a whole tensor, or dim with begin and end, or dim with rank and world",
        )),
    }
}

#[pymethods]
impl Placement {
    #[new]
    #[pyo3(signature = (tensor, address, capacity, *, dim=None, begin=None, end=None, rank=None, world=None, pitch=None))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments of Python's")]
    fn new(
        tensor: String,
        address: u64,
        capacity: u64,
        dim: Option<usize>,
        begin: Option<u64>,
        end: Option<u64>,
        rank: Option<u64>,
        world: Option<u64>,
        pitch: Option<u64>,
    ) -> PyResult<Self> {
        let part = part(dim, (begin, end), (rank, world))?;
        let placement =
            core::Placement { tensor, part, address, capacity_bytes: capacity, pitch_bytes: pitch };
        Ok(Self { placement })
    }

    fn __repr__(&self) -> String {
        let core::Placement { tensor, part, address, capacity_bytes, .. } = &self.placement;
        format!(
            "Placement(tensor={tensor:?}, address={address:#x}, capacity={capacity_bytes}, part={part:?})"
        )
    }
}

impl CopyPlan {
    pub fn new(py: Python<'_>, held: Arc<Held>, placements: &[PyRef<'_, Placement>]) -> PyResult<Self> {
        let placements: Vec<_> = placements.iter().map(|placement| placement.placement.clone()).collect();
        let plan = core::Plan::new(held.checkpoint(), &placements).map_err(|error| to_python(py, &error))?;
        Ok(Self { plan, held })
    }
}

#[pymethods]
impl CopyPlan {
    /// How many bytes are copied.
    #[getter]
    fn nbytes(&self) -> u64 {
        self.plan.bytes()
    }

    /// In how many moves.
    #[getter]
    fn moves(&self) -> usize {
        self.plan.moves().len()
    }

    /// Copies to memory of this process.
    #[pyo3(signature = (*, threads=None, cancel=None))]
    fn copy(&self, py: Python<'_>, threads: Option<usize>, cancel: Option<&CancelToken>) -> PyResult<()> {
        let at_least_one = || PyValueError::new_err("threads must be at least 1");
        let threads =
            threads.map(|threads| NonZeroUsize::new(threads).ok_or_else(at_least_one)).transpose()?;
        let own = Cancel::default();
        let cancel = cancel.map_or(&own, |token| &token.cancel);
        // SAFETY: the documentation of `copy` makes the caller promise exactly this.
        let copied = py.detach(|| unsafe { core::copy(&self.plan, self.held.view(), threads, cancel) });
        copied.map_err(|error| to_python(py, &error))
    }

    /// Starts the copy to a device.
    #[pyo3(signature = (device, stream=0))]
    fn copy_to(&self, py: Python<'_>, device: &CudaDevice, stream: u64) -> PyResult<Transfer> {
        let started = py.detach(|| {
            let origin = self.held.origin()?;
            // SAFETY: the documentation of `copy_to` makes the caller promise this; the transfer keeps the lease.
            unsafe { device.device.copy(&self.plan, &origin, stream, Arc::clone(&self.held)) }
        });
        started.map(Transfer::new).map_err(|error| to_python(py, &error))
    }

    fn __repr__(&self) -> String {
        format!("CopyPlan(nbytes={}, moves={})", self.nbytes(), self.moves())
    }
}
