//! A load that was asked for.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use crate::load::Fill;
use crate::store::Shared;
use crate::{Completion, Error, Fault, Lease, Result};

/// How far a load is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Stage {
    /// Others come first.
    Queued,
    /// Its headers are read, or there is no room for it yet.
    Waiting,
    /// Its bytes are read.
    Reading,
    /// It is over.
    Done,
}

impl Stage {
    /// A word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Waiting => "waiting",
            Self::Reading => "reading",
            Self::Done => "done",
        }
    }
}

/// How far a load is, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What it is doing.
    pub stage: Stage,
    /// How many bytes are there.
    pub bytes: u64,
    /// How many there will be; 0 until the headers were read.
    pub total_bytes: u64,
}

/// What a load tells everybody who asked for it.
#[derive(Debug, Default)]
pub struct Meter {
    stage: AtomicU8,
    total_bytes: AtomicU64,
    fill: OnceLock<Weak<Fill>>,
}

impl Meter {
    pub fn set_stage(&self, stage: Stage) {
        self.stage.store(stage as u8, Ordering::Relaxed);
    }

    pub fn set_total(&self, bytes: u64) {
        self.total_bytes.store(bytes, Ordering::Relaxed);
    }

    pub fn set_fill(&self, fill: &Arc<Fill>) {
        // A load is filled once.
        let _ = self.fill.set(Arc::downgrade(fill));
    }

    fn stage(&self) -> Stage {
        match self.stage.load(Ordering::Relaxed) {
            0 => Stage::Queued,
            1 => Stage::Waiting,
            2 => Stage::Reading,
            _ => Stage::Done,
        }
    }

    fn bytes(&self) -> u64 {
        self.fill.get().and_then(Weak::upgrade).map_or(0, |fill| fill.bytes())
    }
}

/// The lease, until somebody claims it.
type Outcome = Result<Option<Lease>>;

/// One caller's share of a load.
#[derive(Debug)]
pub struct Request {
    pub key: String,
    pub path: PathBuf,
    /// When the caller stops waiting, and how long that was from the start.
    pub deadline: Option<(Instant, Duration)>,
    pub meter: Arc<Meter>,
    completion: Completion<Outcome>,
}

impl Request {
    pub fn new(key: &str, path: &Path, deadline: Option<Duration>, meter: Arc<Meter>) -> Arc<Self> {
        // A deadline beyond what the clock can tell is none.
        let deadline = deadline.and_then(|left| Some((Instant::now().checked_add(left)?, left)));
        Arc::new(Self {
            key: key.to_owned(),
            path: path.to_owned(),
            deadline,
            meter,
            completion: Completion::default(),
        })
    }

    /// Hands the outcome over, unless the caller gave up before. A lease that nobody takes ends here.
    pub fn complete(&self, outcome: Result<Lease>) {
        drop(self.completion.complete(outcome.map(Some)));
    }

    pub fn is_expired(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|(deadline, _)| deadline <= now)
    }

    pub fn expire(&self) {
        let seconds = self.deadline.map_or(0.0, |(_, left)| left.as_secs_f64());
        self.complete(Err(Error::new(&self.path, Fault::Deadline(seconds))));
    }
}

/// A load that was asked for. Dropping it does not stop the load.
#[derive(Debug)]
pub struct Ticket {
    request: Arc<Request>,
    shared: Arc<Shared>,
    event: OnceLock<Arc<OwnedFd>>,
}

impl Ticket {
    pub(crate) fn new(request: Arc<Request>, shared: Arc<Shared>) -> Self {
        Self { request, shared, event: OnceLock::new() }
    }

    /// The key that the entry will have.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.request.key
    }

    /// What is loaded.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.request.path
    }

    /// Whether it is over, well or not.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.request.completion.is_done()
    }

    /// Waits until it is over, at most for `timeout`; says whether it is.
    #[must_use]
    pub fn wait(&self, timeout: Option<Duration>) -> bool {
        self.request.completion.wait(timeout)
    }

    /// Why it failed, if it did.
    #[must_use]
    pub fn error(&self) -> Option<Error> {
        self.request.completion.inspect(|outcome| outcome.as_ref().err().cloned()).flatten()
    }

    /// The lease, once, when the load is over; until it is claimed the ticket keeps the entry.
    #[must_use]
    pub fn claim(&self) -> Option<Lease> {
        self.request.completion.inspect(|outcome| outcome.as_mut().ok().and_then(Option::take)).flatten()
    }

    /// Gives the load up: it fails with [`Fault::Cancelled`] at once, and stops unless others wait for it. `false` if
    /// it was over already.
    #[must_use]
    pub fn cancel(&self) -> bool {
        self.shared.withdraw(&self.request);
        self.request.complete(Err(Error::new(&self.request.path, Fault::Cancelled)));
        self.error().is_some_and(|error| matches!(error.fault(), Fault::Cancelled))
    }

    /// How far it is.
    #[must_use]
    pub fn progress(&self) -> Progress {
        let meter = &self.request.meter;
        let total_bytes = meter.total_bytes.load(Ordering::Relaxed);
        if !self.is_done() {
            return Progress { stage: meter.stage(), bytes: meter.bytes(), total_bytes };
        }
        let bytes = if self.error().is_none() { total_bytes } else { meter.bytes() };
        Progress { stage: Stage::Done, bytes, total_bytes }
    }

    /// Runs `callback` when the load is over: on a thread of the store, or at once if it is over already.
    pub fn on_done(&self, callback: impl FnOnce() + Send + 'static) {
        self.request.completion.on_done(callback);
    }

    /// A descriptor that becomes readable, and stays so, when the load is over.
    ///
    /// # Errors
    ///
    /// The operating system's, when it has no descriptors left.
    pub fn event_fd(&self) -> io::Result<BorrowedFd<'_>> {
        if let Some(event) = self.event.get() {
            return Ok(event.as_fd());
        }
        let created = Arc::new(create_eventfd()?);
        let event = self.event.get_or_init(|| Arc::clone(&created));
        if Arc::ptr_eq(event, &created) {
            self.on_done(move || signal(&created));
        }
        Ok(event.as_fd())
    }
}

/// An eventfd whose count is zero.
///
/// # Errors
///
/// The operating system's.
pub fn create_eventfd() -> io::Result<OwnedFd> {
    // SAFETY: the call takes numbers only.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes an eventfd readable.
pub fn signal(event: &OwnedFd) {
    let one = 1_u64;
    // SAFETY: eight bytes of a number that outlives the call. It can fail only if the count is near 2^64: readable.
    unsafe { libc::write(event.as_raw_fd(), (&raw const one).cast(), size_of::<u64>()) };
}
