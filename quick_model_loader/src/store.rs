//! A store, for Python.

use std::os::fd::{BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::path::PathBuf;

use pyo3::exceptions::{PyKeyError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyModule, PyTuple};
use quick_model_loader_core as core;

use crate::entry::Entry;
use crate::error::to_python;
use crate::held::Held;
use crate::read::options;
use crate::seconds::duration;
use crate::ticket::Ticket;

/// Many models in one arena.
#[pyclass(frozen, module = "quick_model_loader", weakref)]
pub struct Store {
    pub store: core::Store,
}

/// What is in a store and what it did so far.
#[pyclass(frozen, get_all, module = "quick_model_loader")]
pub struct StoreStats {
    capacity_bytes: u64,
    chunk_bytes: u64,
    free_bytes: u64,
    prepared_bytes: u64,
    huge_bytes: u64,
    pages: &'static str,
    direct: &'static str,
    threads: usize,
    entries: usize,
    pinned_entries: usize,
    leases: usize,
    pending_loads: usize,
    loads: u64,
    failed_loads: u64,
    hits: u64,
    evictions: u64,
    direct_bytes: u64,
    buffered_bytes: u64,
}

impl From<core::StoreStats> for StoreStats {
    fn from(stats: core::StoreStats) -> Self {
        Self {
            capacity_bytes: stats.capacity_bytes,
            chunk_bytes: stats.chunk_bytes,
            free_bytes: stats.counts.free_chunks as u64 * stats.chunk_bytes,
            prepared_bytes: stats.prepared_bytes,
            huge_bytes: stats.huge_bytes,
            pages: stats.pages.name(),
            direct: match stats.direct {
                core::Direct::WhenCold => "when cold",
                core::Direct::Always => "always",
                core::Direct::Never => "never",
            },
            threads: stats.threads,
            entries: stats.counts.entries,
            pinned_entries: stats.counts.pinned_entries,
            leases: stats.counts.leases,
            pending_loads: stats.pending_loads,
            loads: stats.loads,
            failed_loads: stats.failed_loads,
            hits: stats.hits,
            evictions: stats.counts.evictions,
            direct_bytes: stats.direct_bytes,
            buffered_bytes: stats.buffered_bytes,
        }
    }
}

#[pymethods]
impl StoreStats {
    fn __repr__(&self) -> String {
        format!(
            "StoreStats(capacity_bytes={}, free_bytes={}, entries={}, leases={}, pages={:?}, huge_bytes={})",
            self.capacity_bytes, self.free_bytes, self.entries, self.leases, self.pages, self.huge_bytes
        )
    }
}

fn unknown(key: &str) -> PyErr {
    PyKeyError::new_err(key.to_owned())
}

impl Store {
    fn refuse(py: Python<'_>, key: &str, refusal: core::Refusal) -> PyErr {
        if refusal != core::Refusal::Pinned {
            return unknown(key);
        }
        let build = || {
            let class = PyModule::import(py, "quick_model_loader.errors")?.getattr("PinnedError")?;
            class.call1((key,)).map(PyErr::from_value)
        };
        build().unwrap_or_else(|failure| failure)
    }
}

#[pymethods]
impl Store {
    #[new]
    #[pyo3(signature = (capacity, *, chunk_bytes=core::CHUNK_BYTES, threads=None, direct=None, huge_pages=true, prefault=true))]
    fn new(
        py: Python<'_>,
        capacity: u64,
        chunk_bytes: u64,
        threads: Option<usize>,
        direct: Option<bool>,
        huge_pages: bool,
        prefault: bool,
    ) -> PyResult<Self> {
        if capacity == 0 {
            return Err(PyValueError::new_err("capacity must be at least 1 byte"));
        }
        if chunk_bytes == 0 || !chunk_bytes.is_multiple_of(core::HUGE_PAGE_BYTES) {
            let step = core::HUGE_PAGE_BYTES;
            return Err(PyValueError::new_err(format!("chunk_bytes must be a multiple of {step}")));
        }
        let load = options(threads, direct)?;
        let options =
            core::StoreOptions { capacity_bytes: capacity, chunk_bytes, load, huge_pages, prefault };
        let store = py.detach(|| core::Store::new(&options)).map_err(|error| to_python(py, &error))?;
        if huge_pages && store.stats().pages == core::PageKind::Small {
            warn_of_small_pages(py)?;
        }
        Ok(Self { store })
    }

    /// Goes on with the arena of a store whose process has ended.
    #[staticmethod]
    #[pyo3(signature = (arena, journal, *, threads=None, direct=None, prefault=true))]
    fn inherit(
        py: Python<'_>,
        arena: RawFd,
        journal: RawFd,
        threads: Option<usize>,
        direct: Option<bool>,
        prefault: bool,
    ) -> PyResult<Self> {
        let load = options(threads, direct)?;
        let options = core::StoreOptions { load, prefault, ..core::StoreOptions::new(0) };
        let [arena, journal] = [duplicate(arena)?, duplicate(journal)?];
        let store = py.detach(|| core::Store::inherit(arena, journal, &options));
        Ok(Self { store: store.map_err(|error| to_python(py, &error))? })
    }

    /// What another process needs to inherit.
    fn heirlooms(&self, py: Python<'_>) -> PyResult<(RawFd, RawFd)> {
        let [arena, journal] = self.store.heirlooms().map_err(|error| to_python(py, &error))?;
        Ok((arena.into_raw_fd(), journal.into_raw_fd()))
    }

    /// Asks for a checkpoint.
    #[pyo3(signature = (path, key=None, *, verify=false, deadline=None))]
    #[expect(clippy::needless_pass_by_value, reason = "what Python passes is converted, hence owned")]
    fn load(
        &self,
        py: Python<'_>,
        path: PathBuf,
        key: Option<&str>,
        verify: bool,
        deadline: Option<f64>,
    ) -> PyResult<Ticket> {
        let deadline = deadline.map(duration).transpose()?;
        let ticket = py.detach(|| self.store.load(&path, key, verify, deadline));
        ticket.map(Ticket::new).map_err(|error| to_python(py, &error))
    }

    /// A lease of an entry.
    #[pyo3(signature = (key, *, writable=false))]
    fn get(&self, py: Python<'_>, key: &str, writable: bool) -> PyResult<Entry> {
        let lease = self.store.get(key).ok_or_else(|| unknown(key))?;
        let held = if writable { Held::writable(py, lease)? } else { Held::lease(lease) };
        Ok(Entry::new(held))
    }

    /// The entries' keys.
    fn keys(&self) -> Vec<String> {
        self.store.keys()
    }

    fn __contains__(&self, key: &str) -> bool {
        self.store.keys().iter().any(|other| other == key)
    }

    fn __len__(&self) -> usize {
        self.store.stats().counts.entries
    }

    /// Keeps an entry from being given up.
    fn pin(&self, py: Python<'_>, key: &str) -> PyResult<()> {
        self.store.set_pinned(key, true).map_err(|refusal| Self::refuse(py, key, refusal))
    }

    /// Allows an entry to be given up again.
    fn unpin(&self, py: Python<'_>, key: &str) -> PyResult<()> {
        self.store.set_pinned(key, false).map_err(|refusal| Self::refuse(py, key, refusal))
    }

    /// Removes an entry.
    fn evict(&self, py: Python<'_>, key: &str) -> PyResult<bool> {
        self.store.evict(key).map_err(|refusal| Self::refuse(py, key, refusal))
    }

    /// What is in it and what it did so far.
    fn stats(&self) -> StoreStats {
        self.store.stats().into()
    }

    /// Stops all loads.
    fn close(&self, py: Python<'_>) {
        // The threads may be in a callback, which needs the GIL.
        py.detach(|| self.store.close());
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, py: Python<'_>, _exception: &Bound<'_, PyTuple>) {
        self.close(py);
    }

    fn __repr__(&self) -> String {
        let stats = self.store.stats();
        let (capacity, entries) = (stats.capacity_bytes, stats.counts.entries);
        format!("Store(capacity_bytes={capacity}, entries={entries})")
    }
}

/// One of our own, of a descriptor that stays the caller's.
fn duplicate(fd: RawFd) -> PyResult<OwnedFd> {
    if fd < 0 {
        return Err(PyValueError::new_err(format!("{fd} is no descriptor")));
    }
    // SAFETY: the caller says that it is open, and keeps it open meanwhile.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    Ok(borrowed.try_clone_to_owned()?)
}

fn warn_of_small_pages(py: Python<'_>) -> PyResult<()> {
    let class = PyModule::import(py, "quick_model_loader.errors")?.getattr("SmallPagesWarning")?;
    let text = c"no huge pages to be had: loads may take three times as long (set some aside, or Linux 6.1)";
    PyErr::warn(py, &class, text, 1)
}
