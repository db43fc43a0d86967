//! An entry, for Python.

use std::ffi::{c_int, c_void};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pyo3::exceptions::{PyKeyError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyMappingProxy, PyMemoryView, PyModule, PyTuple};

use crate::checkpoint::{file_infos, file_offsets, tensor_infos};
use crate::copy_plan::{CopyPlan, Placement};
use crate::error::to_python;
use crate::handle::Handle;
use crate::held::Held;
use crate::load_report::LoadReport;
use crate::seconds::duration;

/// A model in memory: a lease of it, and a look at it.
#[pyclass(frozen, module = "quick_model_loader", weakref)]
pub struct Entry {
    /// `None` once closed.
    held: Mutex<Option<Arc<Held>>>,
    key: String,
    checkpoint: quick_model_loader_core::Checkpoint,
    report: Option<quick_model_loader_core::LoadReport>,
    tensors: PyOnceLock<Py<PyMappingProxy>>,
}

/// The memory of an entry for `torch.frombuffer`, which keeps this object, and with it the lease, alive. It calls itself
/// writable because torch knows no other tensors.
#[pyclass(frozen, module = "quick_model_loader", name = "_EntryMemory")]
pub struct EntryMemory {
    held: Arc<Held>,
}

/// Maps an entry of another process's store into this one.
#[pyfunction]
#[pyo3(signature = (handle, *, writable=false, timeout=10.0))]
pub fn attach(py: Python<'_>, handle: &Handle, writable: bool, timeout: f64) -> PyResult<Entry> {
    let timeout = duration(timeout)?.max(Duration::from_micros(1));
    Ok(Entry::new(Held::attach(py, &handle.handle, writable, timeout)?))
}

impl Entry {
    pub fn new(held: Held) -> Self {
        Self {
            key: held.key().to_owned(),
            checkpoint: held.checkpoint().clone(),
            report: held.report(),
            held: Mutex::new(Some(Arc::new(held))),
            tensors: PyOnceLock::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Held>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is held, unless the entry is closed.
    pub fn held(&self) -> PyResult<Arc<Held>> {
        let held = self.lock().clone();
        held.ok_or_else(|| PyValueError::new_err(format!("the entry {:?} is closed", self.key)))
    }

    fn place(&self, name: &str) -> PyResult<(u64, &quick_model_loader_core::Tensor)> {
        let found = self.checkpoint.tensor(name);
        let (file, tensor) = found.ok_or_else(|| PyKeyError::new_err(name.to_owned()))?;
        Ok((self.checkpoint.offset_of(file, tensor), tensor))
    }

    fn torch_module(py: Python<'_>) -> PyResult<Bound<'_, PyModule>> {
        PyModule::import(py, "quick_model_loader.torch_view")
    }
}

#[pymethods]
impl Entry {
    /// The name that it has in its store.
    #[getter]
    fn key(&self) -> &str {
        &self.key
    }

    /// The path that was loaded.
    #[getter]
    fn path(&self) -> PathBuf {
        self.checkpoint.path().to_owned()
    }

    /// Its files.
    #[getter]
    fn files<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        file_infos(py, &self.checkpoint)
    }

    /// Where each file begins in the memory.
    #[getter]
    fn file_offsets<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        file_offsets(py, &self.checkpoint)
    }

    /// Name -> tensor.
    #[getter]
    fn tensors(&self, py: Python<'_>) -> PyResult<Py<PyMappingProxy>> {
        let tensors = self.tensors.get_or_try_init(py, || tensor_infos(py, &self.checkpoint))?;
        Ok(tensors.clone_ref(py))
    }

    /// How long the memory is.
    #[getter]
    fn nbytes(&self) -> u64 {
        self.checkpoint.buffer_bytes()
    }

    /// Where the memory begins in this process.
    #[getter]
    fn address(&self) -> PyResult<usize> {
        Ok(self.held()?.view().address().addr())
    }

    /// How it was loaded.
    #[getter]
    fn report(&self) -> Option<LoadReport> {
        self.report.map(LoadReport::from)
    }

    /// Whether `close` was called.
    #[getter]
    fn closed(&self) -> bool {
        self.lock().is_none()
    }

    /// Whether the process that owns the store is there.
    #[getter]
    fn owner_alive(&self) -> PyResult<bool> {
        Ok(self.held()?.is_owner_alive())
    }

    /// Where a tensor begins in the memory.
    fn offset(&self, name: &str) -> PyResult<u64> {
        Ok(self.place(name)?.0)
    }

    /// A tensor's bytes.
    fn bytes<'py>(slf: &Bound<'py, Self>, name: &str) -> PyResult<Bound<'py, PyAny>> {
        let (begin, tensor) = slf.get().place(name)?;
        let end = begin + (tensor.range.end - tensor.range.start);
        PyMemoryView::from(slf)?.get_item(pyo3::types::PySlice::new(
            slf.py(),
            isize::try_from(begin)?,
            isize::try_from(end)?,
            1,
        ))
    }

    /// A tensor as torch sees it.
    fn torch<'py>(slf: &Bound<'py, Self>, name: &str) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let (offset, tensor) = slf.get().place(name)?;
        let memory = Bound::new(py, EntryMemory { held: slf.get().held()? })?;
        let shape = PyTuple::new(py, &tensor.shape)?;
        let arguments = (memory, name, tensor.dtype.name(), shape, offset);
        Self::torch_module(py)?.getattr("tensor")?.call1(arguments)
    }

    /// The whole memory as torch sees it.
    fn torch_bytes<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let (py, entry) = (slf.py(), slf.get());
        let memory = Bound::new(py, EntryMemory { held: entry.held()? })?;
        Self::torch_module(py)?.getattr("tensor")?.call1((memory, &entry.key, "U8", (entry.nbytes(),), 0))
    }

    /// All tensors as torch sees them.
    fn torch_all<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyDict>> {
        let py = slf.py();
        let entry = slf.get();
        let memory = Bound::new(py, EntryMemory { held: entry.held()? })?;
        let view = Self::torch_module(py)?.getattr("tensor")?;
        let tensors = PyDict::new(py);
        for (file, tensor) in entry.checkpoint.tensors() {
            let shape = PyTuple::new(py, &tensor.shape)?;
            let offset = entry.checkpoint.offset_of(file, tensor);
            let arguments = (&memory, &tensor.name, tensor.dtype.name(), shape, offset);
            tensors.set_item(&tensor.name, view.call1(arguments)?)?;
        }
        Ok(tensors)
    }

    /// What another process needs to attach.
    fn handle(&self, py: Python<'_>) -> PyResult<Handle> {
        let handle = self.held()?.handle().map_err(|error| to_python(py, &error))?;
        Ok(Handle { handle })
    }

    /// Works out a copy.
    #[expect(clippy::needless_pass_by_value, reason = "what Python passes is converted, hence owned")]
    fn plan(&self, py: Python<'_>, placements: Vec<PyRef<'_, Placement>>) -> PyResult<CopyPlan> {
        CopyPlan::new(py, self.held()?, &placements)
    }

    /// Ends the lease as far as this object is concerned.
    fn close(&self) {
        let held = self.lock().take();
        drop(held);
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, _exception: &Bound<'_, PyTuple>) {
        self.close();
    }

    fn __repr__(&self) -> String {
        let state = if self.closed() { ", closed" } else { "" };
        format!("Entry(key={:?}, nbytes={}{state})", self.key, self.nbytes())
    }

    /// # Safety
    ///
    /// Called by the interpreter with a view to fill in.
    #[expect(clippy::needless_pass_by_value, reason = "PyO3 passes it like this")]
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let held = slf.get().held()?;
        // SAFETY: the interpreter passes a view to fill in.
        unsafe { fill(&slf, &held, view, flags, true) }?;
        // The view keeps the memory even if the entry is closed meanwhile.
        let kept: *mut c_void = Arc::into_raw(held).cast_mut().cast();
        // SAFETY: `fill` succeeded, so the view is complete; `internal` is the exporter's to use.
        unsafe { (*view).internal = kept };
        Ok(())
    }

    /// # Safety
    ///
    /// Called by the interpreter once for every view that `__getbuffer__` filled in.
    #[expect(clippy::unused_self, reason = "PyO3 passes it")]
    unsafe fn __releasebuffer__(&self, view: *mut ffi::Py_buffer) {
        // SAFETY: the interpreter passes the view that `__getbuffer__` filled in.
        let kept = unsafe { (*view).internal }.cast::<Held>().cast_const();
        // SAFETY: the pointer came from `Arc::into_raw`, and is taken back once.
        drop(unsafe { Arc::from_raw(kept) });
    }
}

#[pymethods]
impl EntryMemory {
    /// # Safety
    ///
    /// Called by the interpreter with a view to fill in.
    #[expect(clippy::needless_pass_by_value, reason = "PyO3 passes it like this")]
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        // SAFETY: the interpreter passes a view to fill in; the view keeps `slf`, which keeps the memory.
        unsafe { fill(&slf, &slf.get().held, view, flags, false) }
    }
}

/// Fills a buffer view in.
///
/// # Safety
///
/// `view` may be written to.
unsafe fn fill<T>(
    exporter: &Bound<'_, T>,
    held: &Held,
    view: *mut ffi::Py_buffer,
    flags: c_int,
    is_read_only: bool,
) -> PyResult<()> {
    let memory = held.view();
    let bytes = isize::try_from(held.checkpoint().buffer_bytes())?;
    // SAFETY: the caller vouches for the view; the memory is mapped as long as `held` lives.
    let code = unsafe {
        ffi::PyBuffer_FillInfo(
            view,
            exporter.as_ptr(),
            memory.address().cast(),
            bytes,
            c_int::from(is_read_only),
            flags,
        )
    };
    if code == 0 { Ok(()) } else { Err(PyErr::fetch(exporter.py())) }
}
