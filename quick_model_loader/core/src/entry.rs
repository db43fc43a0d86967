//! A model in the arena, and the right to look at it.

use std::ffi::CStr;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::arena::create_memfd;
use crate::journal::Place;
use crate::layout::Layout;
use crate::store::Shared;
use crate::{Arena, Checkpoint, EntryId, Error, Handle, LoadReport, Mapping, Result};

const LAYOUT_NAME: &CStr = c"quick_model_loader_layout";

/// A model whose bytes are all there. It never changes.
#[derive(Debug)]
pub struct Entry {
    pub(crate) id: EntryId,
    pub(crate) key: String,
    pub(crate) checkpoint: Checkpoint,
    pub(crate) report: LoadReport,
    /// Whether it was compared with its checksums.
    pub(crate) verified: bool,
    pub(crate) chunks: Vec<u32>,
    /// The files side by side, read-only.
    pub(crate) view: Arc<Mapping>,
    pub(crate) arena: Arc<Arena>,
    /// The description that other processes get, made when the first one asks.
    pub(crate) layout: OnceLock<OwnedFd>,
}

impl Entry {
    /// One that another process has read.
    pub(crate) fn inherited(id: EntryId, place: Place, view: Arc<Mapping>, arena: Arc<Arena>) -> Self {
        let Place { key, verified, chunks, checkpoint } = place;
        let report = LoadReport {
            bytes: checkpoint.total_bytes(),
            elapsed: Duration::ZERO,
            threads: 0,
            direct_bytes: 0,
            buffered_bytes: 0,
        };
        Self { id, key, checkpoint, report, verified, chunks, view, arena, layout: OnceLock::new() }
    }

    /// What an heir of its store must know.
    pub(crate) fn place(&self) -> Place {
        let (chunks, checkpoint) = (self.chunks.clone(), self.checkpoint.clone());
        Place { key: self.key.clone(), verified: self.verified, chunks, checkpoint }
    }

    /// The description that other processes get.
    pub(crate) fn layout(&self) -> Result<BorrowedFd<'_>> {
        if let Some(layout) = self.layout.get() {
            return Ok(layout.as_fd());
        }
        let layout = Layout {
            arena_bytes: self.arena.bytes(),
            chunk_bytes: self.arena.chunk_bytes(),
            chunks: self.chunks.clone(),
            checkpoint: self.checkpoint.clone(),
        };
        let fail = |source| Error::io(Path::new("memfd:quick_model_loader_layout"), "write", source);
        let written = || {
            let mut file = File::from(create_memfd(LAYOUT_NAME, false)?);
            file.write_all(&serde_json::to_vec(&layout)?)?;
            Ok(OwnedFd::from(file))
        };
        let written = written().map_err(fail)?;
        Ok(self.layout.get_or_init(|| written).as_fd())
    }
}

/// Keeps an entry in the arena until dropped. A clone is the same lease once more: it ends with the last one.
#[derive(Clone, Debug)]
pub struct Lease(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    entry: Arc<Entry>,
    shared: Arc<Shared>,
}

impl Lease {
    /// Stands for one lease that the ledger has counted already.
    pub(crate) fn new(entry: Arc<Entry>, shared: Arc<Shared>) -> Self {
        Self(Arc::new(Inner { entry, shared }))
    }

    pub(crate) fn entry(&self) -> &Entry {
        &self.0.entry
    }

    /// The entry's name.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.0.entry.key
    }

    /// What is in it.
    #[must_use]
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.0.entry.checkpoint
    }

    /// What another process needs to attach to it.
    ///
    /// # Errors
    ///
    /// [`Fault::Closed`](crate::Fault::Closed); [`Fault::Io`](crate::Fault::Io) if no socket can be had.
    pub fn handle(&self) -> Result<Handle> {
        Ok(self.0.shared.owner()?.handle(self))
    }

    /// How it was loaded.
    #[must_use]
    pub fn report(&self) -> LoadReport {
        self.0.entry.report
    }

    /// The files side by side, each at its `buffer_offset`; they may not be written to.
    #[must_use]
    pub fn view(&self) -> &Mapping {
        &self.0.entry.view
    }

    /// The same in memory that may be written to: pages that are come to belong to the writer alone.
    ///
    /// # Errors
    ///
    /// [`Fault::Io`](crate::Fault::Io).
    pub fn copy_on_write_view(&self) -> Result<Mapping> {
        let entry = self.entry();
        entry.arena.view(&entry.chunks, entry.checkpoint.buffer_bytes(), crate::Access::CopyOnWrite)
    }

    /// Which chunks of the arena hold it, in order, and how long a chunk is.
    #[must_use]
    pub fn chunks(&self) -> (&[u32], u64) {
        (&self.0.entry.chunks, self.0.entry.arena.chunk_bytes())
    }

    /// The arena that it lies in.
    #[must_use]
    pub fn arena(&self) -> &Arc<Arena> {
        &self.0.entry.arena
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.release(self.entry.id);
    }
}
