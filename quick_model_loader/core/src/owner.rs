//! The owner's side of sharing: gives entries to other processes, and takes their leases back when they are gone.
//!
//! A lease of another process is a connection: it ends when that is closed, by the process or by its death.

use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use crate::fd_message;
use crate::store::Shared;
use crate::ticket::{create_eventfd, signal};
use crate::{EntryId, Error, Lease, Result};

/// What a client must know to be served.
pub const TOKEN_BYTES: usize = 16;
/// Token and entry.
pub const REQUEST_BYTES: usize = TOKEN_BYTES + size_of::<EntryId>();
/// A status, then text if it is an error.
pub const REPLY_BYTES: usize = 128;
/// How long a reply may take to send: it is far shorter than a socket's buffer.
const SEND_TIMEOUT: Duration = Duration::from_secs(1);

/// The first byte of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Two descriptors follow: the arena, read-only, and the layout.
    Leased,
    /// There is no such entry any more.
    Evicted,
    /// The client is not welcome, or the owner cannot; text follows.
    Refused,
}

/// What another process needs to attach to an entry. Small, and plain data.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Handle {
    /// The name of the owner's socket, in the abstract name space.
    pub socket: String,
    /// Proof that the handle came from the owner.
    pub token: [u8; TOKEN_BYTES],
    /// Which entry.
    pub entry: EntryId,
    /// The entry's key, for people.
    pub key: String,
}

/// A thread that serves other processes until it is stopped (dropping this alone does not: a forked child drops its copy).
#[derive(Debug)]
pub struct Owner {
    socket: String,
    token: [u8; TOKEN_BYTES],
    stop: Arc<OwnedFd>,
}

impl Owner {
    /// Opens a socket and starts the thread; the store behind `shared` may go first.
    ///
    /// # Errors
    ///
    /// [`Fault::Io`](crate::Fault::Io).
    pub fn start(shared: Weak<Shared>) -> Result<Self> {
        let token = random()?;
        // The numbers make the name unique; the token, which is never shown, makes it useless to strangers.
        let number = u64::from_le_bytes(random()?);
        let socket = format!("quick_model_loader.{}.{number:016x}", std::process::id());
        let fail = |action| {
            let path = PathBuf::from(format!("@{socket}"));
            move |source| Error::io(&path, action, source)
        };
        let address = SocketAddr::from_abstract_name(&socket).map_err(fail("name the socket"))?;
        let listener = UnixListener::bind_addr(&address).map_err(fail("open the socket"))?;
        listener.set_nonblocking(true).map_err(fail("open the socket"))?;
        let stop = Arc::new(create_eventfd().map_err(fail("create an event"))?);
        let server =
            Server { listener, token, stop: Arc::clone(&stop), shared, clients: Vec::new(), is_full: false };
        thread::Builder::new()
            .name("qml-owner".to_owned())
            .spawn(move || server.run())
            .map_err(fail("start a thread"))?;
        Ok(Self { socket, token, stop })
    }

    /// What another process needs to attach to the entry of `lease`.
    pub fn handle(&self, lease: &Lease) -> Handle {
        let entry = lease.entry();
        Handle { socket: self.socket.clone(), token: self.token, entry: entry.id, key: entry.key.clone() }
    }

    /// Closes the socket and all connections, soon.
    pub fn stop(&self) {
        signal(&self.stop);
    }
}

/// What the thread has.
struct Server {
    listener: UnixListener,
    token: [u8; TOKEN_BYTES],
    stop: Arc<OwnedFd>,
    shared: Weak<Shared>,
    clients: Vec<Client>,
    /// Whether descriptors ran out: then nobody is let in until somebody leaves.
    is_full: bool,
}

struct Client {
    stream: UnixStream,
    lease: Option<Lease>,
}

impl Server {
    fn run(mut self) {
        loop {
            let Ok(ready) = self.poll() else { return };
            let [stopped, knocks, clients @ ..] = ready.as_slice() else { return };
            if *stopped {
                return;
            }
            let mut clients = clients.iter();
            let before = self.clients.len();
            // A client that closed, or misbehaved, loses its lease here.
            let (shared, token) = (&self.shared, &self.token);
            self.clients.retain_mut(|client| {
                !clients.next().copied().unwrap_or(false) || client.serve(shared, token)
            });
            if self.clients.len() < before {
                self.is_full = false;
            }
            if *knocks {
                self.accept();
            }
        }
    }

    /// Waits until something is ready: the stop event, the listener, or a client, in this order.
    fn poll(&self) -> io::Result<Vec<bool>> {
        let wanted = |fd: i32| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        // A negative descriptor is passed over.
        let listener = if self.is_full { -1 } else { self.listener.as_raw_fd() };
        let mut fds = vec![wanted(self.stop.as_raw_fd()), wanted(listener)];
        fds.extend(self.clients.iter().map(|client| wanted(client.stream.as_raw_fd())));
        loop {
            // SAFETY: the array has as many elements as is said, and outlives the call.
            let count = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, -1) };
            if count >= 0 {
                return Ok(fds.iter().map(|fd| fd.revents != 0).collect());
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }

    fn accept(&mut self) {
        match self.listener.accept() {
            Ok((stream, _)) => {
                // A client whose requests cannot be read without waiting is not served.
                if is_same_user(&stream)
                    && stream.set_nonblocking(true).is_ok()
                    && stream.set_write_timeout(Some(SEND_TIMEOUT)).is_ok()
                {
                    self.clients.push(Client { stream, lease: None });
                }
            }
            Err(error) if error.raw_os_error().is_some_and(is_shortage) => self.is_full = true,
            // The client left again, or a signal came.
            Err(_) => {}
        }
    }
}

impl Client {
    /// Does what the client asks for; `false` if it is to be dropped.
    fn serve(&mut self, shared: &Weak<Shared>, token: &[u8; TOKEN_BYTES]) -> bool {
        let mut request = [0; REQUEST_BYTES];
        // A request is shorter than any packet: it arrives whole. Nothing at all means that the client closed.
        match self.stream.read(&mut request) {
            Ok(REQUEST_BYTES) if self.lease.is_none() => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return true,
            _ => return false,
        }
        let (shown, id) = request.split_at(TOKEN_BYTES);
        let id = id.try_into().map_or(0, EntryId::from_le_bytes);
        if shown != token {
            return self.reply(Status::Refused, "the handle is not from this store", &[]).is_ok();
        }
        match shared.upgrade().and_then(|shared| shared.lease(id)) {
            None => self.reply(Status::Evicted, "", &[]).is_ok(),
            Some(lease) => {
                let replied = match lease.entry().layout() {
                    Ok(layout) => {
                        let fds = [lease.arena().read_only_fd(), layout];
                        self.reply(Status::Leased, "", &fds)
                    }
                    Err(error) => self.reply(Status::Refused, &error.to_string(), &[]),
                };
                self.lease = Some(lease);
                replied.is_ok()
            }
        }
    }

    fn reply(&self, status: Status, text: &str, fds: &[std::os::fd::BorrowedFd<'_>]) -> io::Result<()> {
        let mut bytes = [0; REPLY_BYTES];
        for (place, byte) in bytes.iter_mut().zip([status as u8].iter().chain(text.as_bytes())) {
            *place = *byte;
        }
        fd_message::send(&self.stream, &bytes, fds)
    }
}

/// Whether the other end belongs to this user, or to the superuser.
fn is_same_user(stream: &UnixStream) -> bool {
    let mut peer = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let mut length = libc::socklen_t::try_from(size_of::<libc::ucred>()).unwrap_or(0);
    let socket = stream.as_fd().as_raw_fd();
    // SAFETY: the structure has the length that is passed, and outlives the call.
    let code = unsafe {
        libc::getsockopt(socket, libc::SOL_SOCKET, libc::SO_PEERCRED, (&raw mut peer).cast(), &raw mut length)
    };
    // SAFETY: geteuid cannot fail.
    code == 0 && (peer.uid == 0 || peer.uid == unsafe { libc::geteuid() })
}

fn is_shortage(errno: i32) -> bool {
    [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM].contains(&errno)
}

fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    // SAFETY: the array has the length that is passed, and outlives the call.
    let count = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), N, 0) };
    if usize::try_from(count) == Ok(N) {
        Ok(bytes)
    } else {
        Err(Error::io(Path::new(""), "get random numbers", io::Error::last_os_error()))
    }
}
