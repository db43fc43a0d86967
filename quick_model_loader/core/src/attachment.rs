//! An entry of another process's store.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

use crate::arena::map_chunks;
use crate::fd_message;
use crate::layout::Layout;
use crate::owner::{Handle, REPLY_BYTES, Status};
use crate::{Access, AttachFault, Checkpoint, Error, Fault, Mapping, Result};

/// An entry of another process's store, mapped; the owner keeps it until this is dropped, or this process dies.
#[derive(Debug)]
pub struct Attachment {
    handle: Handle,
    /// Declared, hence dropped, before the connection: the lease outlives the mapping.
    view: Mapping,
    layout: Layout,
    arena: OwnedFd,
    connection: UnixStream,
}

impl Attachment {
    /// Asks the owner for the entry and maps it. `access` must not be [`Access::Shared`].
    ///
    /// # Errors
    ///
    /// [`Fault::Attach`], or [`Fault::Io`] where the operating system refuses.
    pub fn new(handle: &Handle, access: Access, timeout: Duration) -> Result<Self> {
        let connection = connect(handle, timeout)?;
        let (arena, layout) = ask(handle, &connection)?;
        let io = |action| move |source| Error::io(&path_of(handle), action, source);
        let layout = read_layout(layout).map_err(io("read the layout of"))?;
        let bytes = layout.checkpoint.buffer_bytes();
        let view = map_chunks(arena.as_fd(), &layout.chunks, layout.chunk_bytes, bytes, access)
            .map_err(io("map"))?;
        Ok(Self { handle: handle.clone(), view, layout, arena, connection })
    }

    /// What it was attached with.
    #[must_use]
    pub const fn handle(&self) -> &Handle {
        &self.handle
    }

    /// What is in it.
    #[must_use]
    pub const fn checkpoint(&self) -> &Checkpoint {
        &self.layout.checkpoint
    }

    /// The files side by side, each at its `buffer_offset`.
    #[must_use]
    pub const fn view(&self) -> &Mapping {
        &self.view
    }

    /// Which chunks of the arena hold it, in order, and how long a chunk is.
    #[must_use]
    pub fn chunks(&self) -> (&[u32], u64) {
        (&self.layout.chunks, self.layout.chunk_bytes)
    }

    /// The arena's descriptor, read-only.
    #[must_use]
    pub fn arena_fd(&self) -> BorrowedFd<'_> {
        self.arena.as_fd()
    }

    /// The whole arena, mapped once more; for registering with devices.
    ///
    /// # Errors
    ///
    /// [`Fault::Io`].
    pub fn map_arena(&self) -> Result<Mapping> {
        let map = || {
            let mut mapping = Mapping::reserve(self.layout.arena_bytes)?;
            mapping.place(0, self.layout.arena_bytes, self.arena.as_fd(), 0, Access::ReadOnly)?;
            Ok(mapping)
        };
        map().map_err(|source| Error::io(&path_of(&self.handle), "map", source))
    }

    /// Whether the owner is there. When it is not, what is mapped stays as it is.
    #[must_use]
    pub fn is_owner_alive(&self) -> bool {
        let mut state = libc::pollfd { fd: self.connection.as_raw_fd(), events: 0, revents: 0 };
        // SAFETY: one element, which outlives the call.
        let count = unsafe { libc::poll(&raw mut state, 1, 0) };
        count == 0
    }
}

fn path_of(handle: &Handle) -> PathBuf {
    PathBuf::from(format!("@{}", handle.socket))
}

fn refuse(handle: &Handle, fault: AttachFault) -> Error {
    Error::new(&path_of(handle), Fault::Attach(fault))
}

fn connect(handle: &Handle, timeout: Duration) -> Result<UnixStream> {
    let io = |source| Error::io(&path_of(handle), "connect to", source);
    let address = SocketAddr::from_abstract_name(&handle.socket).map_err(io)?;
    let connection = UnixStream::connect_addr(&address).map_err(|error| match error.kind() {
        io::ErrorKind::ConnectionRefused => refuse(handle, AttachFault::OwnerGone),
        _ => io(error),
    })?;
    connection.set_read_timeout(Some(timeout)).map_err(io)?;
    Ok(connection)
}

/// The descriptors of the arena and of the layout.
fn ask(handle: &Handle, mut connection: &UnixStream) -> Result<(OwnedFd, OwnedFd)> {
    let lost = |error: io::Error| match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => refuse(handle, AttachFault::Timeout),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
            refuse(handle, AttachFault::OwnerGone)
        }
        _ => Error::io(&path_of(handle), "ask", error),
    };
    let request = [&handle.token[..], &handle.entry.to_le_bytes()].concat();
    connection.write_all(&request).map_err(lost)?;
    let mut reply = [0; REPLY_BYTES];
    let mut fds = fd_message::receive(connection, &mut reply).map_err(lost)?.into_iter();
    let (status, text) = reply.split_first().unwrap_or((&0, &[]));
    if *status == Status::Leased as u8
        && let (Some(arena), Some(layout)) = (fds.next(), fds.next())
    {
        return Ok((arena, layout));
    }
    if *status == Status::Evicted as u8 {
        return Err(refuse(handle, AttachFault::Evicted));
    }
    let text = String::from_utf8_lossy(text).trim_end_matches('\0').to_owned();
    let text = if text.is_empty() { "it has no file descriptors left".to_owned() } else { text };
    Err(refuse(handle, AttachFault::Refused(text)))
}

fn read_layout(layout: OwnedFd) -> io::Result<Layout> {
    let file = File::from(layout);
    // The descriptor shares its position with the owner's and with other readers': read without it.
    let bytes = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
    let mut json = vec![0; bytes];
    file.read_exact_at(&mut json, 0)?;
    serde_json::from_slice(&json).map_err(io::Error::from)
}
