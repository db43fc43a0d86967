//! An entry that Python looks at, whoever owns it.

use pyo3::prelude::*;
use quick_model_loader_core::{
    Access, ArenaId, Attachment, Base, Checkpoint, Handle, Lease, LoadReport, Mapping, Origin, arena_id,
};
use std::sync::Arc;
use std::time::Duration;

use crate::error::to_python;

/// The right to an entry's memory; Python objects that refer to the memory share it.
pub struct Held {
    source: Source,
    /// Pages of this process's own, where it wants to write.
    own_view: Option<Mapping>,
}

enum Source {
    Lease(Lease),
    Attachment(Box<Attachment>),
}

impl Held {
    pub fn lease(lease: Lease) -> Self {
        Self { source: Source::Lease(lease), own_view: None }
    }

    /// The same entry with pages of its own.
    pub fn writable(py: Python<'_>, lease: Lease) -> PyResult<Self> {
        let own_view = lease.copy_on_write_view().map_err(|error| to_python(py, &error))?;
        Ok(Self { source: Source::Lease(lease), own_view: Some(own_view) })
    }

    pub fn attach(py: Python<'_>, handle: &Handle, writable: bool, timeout: Duration) -> PyResult<Self> {
        let access = if writable { Access::CopyOnWrite } else { Access::ReadOnly };
        let attachment =
            py.detach(|| Attachment::new(handle, access, timeout)).map_err(|error| to_python(py, &error))?;
        Ok(Self { source: Source::Attachment(Box::new(attachment)), own_view: None })
    }

    pub fn view(&self) -> &Mapping {
        match (&self.own_view, &self.source) {
            (Some(view), _) => view,
            (None, Source::Lease(lease)) => lease.view(),
            (None, Source::Attachment(attachment)) => attachment.view(),
        }
    }

    pub fn checkpoint(&self) -> &Checkpoint {
        match &self.source {
            Source::Lease(lease) => lease.checkpoint(),
            Source::Attachment(attachment) => attachment.checkpoint(),
        }
    }

    pub fn key(&self) -> &str {
        match &self.source {
            Source::Lease(lease) => lease.key(),
            Source::Attachment(attachment) => &attachment.handle().key,
        }
    }

    pub fn report(&self) -> Option<LoadReport> {
        match &self.source {
            Source::Lease(lease) => Some(lease.report()),
            Source::Attachment(_) => None,
        }
    }

    pub fn handle(&self) -> Result<Handle, quick_model_loader_core::Error> {
        match &self.source {
            Source::Lease(lease) => lease.handle(),
            Source::Attachment(attachment) => Ok(attachment.handle().clone()),
        }
    }

    pub fn is_owner_alive(&self) -> bool {
        match &self.source {
            Source::Lease(_) => true,
            Source::Attachment(attachment) => attachment.is_owner_alive(),
        }
    }

    /// Which arena it lies in.
    pub fn arena_id(&self) -> Result<ArenaId, quick_model_loader_core::Error> {
        match &self.source {
            Source::Lease(lease) => arena_id(lease.arena().read_only_fd()),
            Source::Attachment(attachment) => arena_id(attachment.arena_fd()),
        }
    }

    /// The whole arena, for registering.
    pub fn arena(&self) -> Result<Base, quick_model_loader_core::Error> {
        match &self.source {
            Source::Lease(lease) => Ok(Base::Own(Arc::clone(lease.arena()))),
            Source::Attachment(attachment) => attachment.map_arena().map(Base::Other),
        }
    }

    pub fn origin(&self) -> Result<Origin<'_>, quick_model_loader_core::Error> {
        let (chunks, chunk_bytes) = match &self.source {
            Source::Lease(lease) => lease.chunks(),
            Source::Attachment(attachment) => attachment.chunks(),
        };
        Ok(Origin { arena: self.arena_id()?, chunks, chunk_bytes, view: self.view() })
    }
}
