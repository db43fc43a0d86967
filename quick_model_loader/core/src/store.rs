//! Many models in one arena: loads, leases, and what is given up for what.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::entry::Entry;
use crate::journal::{self, Journal};
use crate::load::{Fill, check_all_unchanged};
use crate::owner::Owner;
use crate::ticket::{Meter, Request, Stage};
use crate::{
    Access, Arena, CHUNK_BYTES, Cancel, Checkpoint, Counts, Direct, EntryId, Error, Fault, Job, Lease,
    Ledger, LoadOptions, LoadReport, Mapping, PageKind, Refusal, Result, Target, Ticket,
};

/// How to set up a store. The defaults are right unless a measurement says otherwise.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// The size of the arena; rounded up to whole chunks.
    pub capacity_bytes: u64,
    /// The size of a chunk: a multiple of the huge page size.
    pub chunk_bytes: u64,
    /// Threads and direct I/O.
    pub load: LoadOptions,
    /// Whether to try for huge pages.
    pub huge_pages: bool,
    /// Whether to give all chunks their pages at once, in the background, rather than when they are first used.
    pub prefault: bool,
}

impl StoreOptions {
    /// The defaults for an arena of that size.
    #[must_use]
    pub fn new(capacity_bytes: u64) -> Self {
        let load = LoadOptions::default();
        Self { capacity_bytes, chunk_bytes: CHUNK_BYTES, load, huge_pages: true, prefault: true }
    }
}

/// What is in a store and what it did so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreStats {
    /// The size of the arena.
    pub capacity_bytes: u64,
    /// The size of a chunk.
    pub chunk_bytes: u64,
    /// What the arena's pages are.
    pub pages: PageKind,
    /// How much of the arena has pages.
    pub prepared_bytes: u64,
    /// How much of that has huge ones.
    pub huge_bytes: u64,
    /// How many threads read.
    pub threads: usize,
    /// When they read past the page cache.
    pub direct: Direct,
    /// Chunks, entries, pins, leases, evictions.
    pub counts: Counts,
    /// Loads that are not over.
    pub pending_loads: usize,
    /// Loads that read a checkpoint to its end.
    pub loads: u64,
    /// Loads that failed, were cancelled, or came too late.
    pub failed_loads: u64,
    /// Loads that found the entry there.
    pub hits: u64,
    /// Bytes that came past the page cache.
    pub direct_bytes: u64,
    /// Bytes that came through it.
    pub buffered_bytes: u64,
}

/// An arena, the threads that fill it, and its books.
#[derive(Debug)]
pub struct Store {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// What a store's threads and leases share.
#[derive(Debug)]
pub struct Shared {
    arena: Arc<Arena>,
    load: LoadOptions,
    state: Mutex<State>,
    /// Told when there may be work, or room, or nothing to do ever again.
    changed: Condvar,
    closed: AtomicBool,
    /// Serves other processes, from the first handle on.
    owner: OnceLock<Owner>,
    /// A forked child has a copy of everything but the threads: what it drops is not for it to give back.
    process: u32,
    loads: AtomicU64,
    failed_loads: AtomicU64,
    hits: AtomicU64,
    direct_bytes: AtomicU64,
    buffered_bytes: AtomicU64,
}

#[derive(Debug)]
struct State {
    ledger: Ledger<Arc<Entry>>,
    journal: Journal,
    chunk_bytes: u64,
    /// First come, first served.
    loads: VecDeque<Loading>,
    next_number: u64,
}

/// A load that is not over.
#[derive(Debug)]
struct Loading {
    number: u64,
    key: String,
    path: PathBuf,
    verify: bool,
    cancel: Cancel,
    meter: Arc<Meter>,
    /// Who asked for it and has not given up.
    requests: Vec<Arc<Request>>,
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    /// Nobody looked at it yet.
    Queued,
    /// A thread has it: it reads the headers, or sets up the memory.
    Busy,
    /// It is known what it needs, but there is no room yet.
    Waiting(Checkpoint),
    /// Its jobs may be taken.
    Filling(Filling),
}

/// Memory on its way to being an entry.
#[derive(Clone, Debug)]
struct Filling {
    id: EntryId,
    chunks: Vec<u32>,
    view: Arc<Mapping>,
    fill: Arc<Fill>,
}

/// What a thread does next.
enum Step {
    /// Read the headers.
    Inspect { number: u64, path: PathBuf },
    /// Set up the memory; entries that made way for it are dropped without the lock.
    Place { number: u64, checkpoint: Checkpoint, id: EntryId, chunks: Vec<u32>, evicted: Vec<Arc<Entry>> },
    /// Read a piece.
    Read { number: u64, filling: Filling, job: Job },
    /// Tell those who waited that it will not happen.
    Fail { load: Loading, error: Error },
    /// Tell those who wanted to wait no longer.
    Expire(Vec<Arc<Request>>),
}

impl Store {
    /// Sets the arena up and starts the threads.
    ///
    /// # Errors
    ///
    /// [`Fault::Capacity`] if the machine has less memory; [`Fault::Io`] if the operating system refuses.
    pub fn new(options: &StoreOptions) -> Result<Self> {
        let arena = Arc::new(Arena::new(options.capacity_bytes, options.chunk_bytes, options.huge_pages)?);
        let journal = Journal::create(arena.chunk_bytes(), arena.kind())?;
        let ledger = Ledger::new(arena.chunk_count());
        Self::over(arena, ledger, journal, options)
    }

    /// Goes on with the arena of a store whose process has ended, given `heirlooms` of that: all entries are there
    /// whose files are what they were. Capacity, chunks and pages of `options` are not looked at.
    ///
    /// Nobody may use the arena any more: what that store's leases protect is protected no longer.
    ///
    /// # Errors
    ///
    /// [`Fault::Io`] where these are no heirlooms.
    pub fn inherit(arena: OwnedFd, journal: OwnedFd, options: &StoreOptions) -> Result<Self> {
        let estate = journal::read(journal.as_fd())?;
        let arena = Arc::new(Arena::over(arena, estate.chunk_bytes, estate.kind)?);
        let mut ledger = Ledger::new(arena.chunk_count());
        let mut taken = Vec::new();
        for place in &estate.places {
            if check_all_unchanged(&place.checkpoint).is_err() {
                continue;
            }
            let view =
                Arc::new(arena.view(&place.chunks, place.checkpoint.buffer_bytes(), Access::ReadOnly)?);
            let make = |id| Arc::new(Entry::inherited(id, place.clone(), view, Arc::clone(&arena)));
            if ledger.adopt(&place.key, place.chunks.clone(), make).is_some() {
                taken.push(place.clone());
            }
        }
        let journal = Journal::resume(journal, &estate, &taken)?;
        Self::over(arena, ledger, journal, options)
    }

    /// What another process needs to `inherit` when this one has ended: the arena, which it could write to, and the
    /// journal.
    ///
    /// # Errors
    ///
    /// [`Fault::Io`] where there are no descriptors left.
    pub fn heirlooms(&self) -> Result<[OwnedFd; 2]> {
        let fail = |source| Error::io(Path::new(""), "duplicate a descriptor", source);
        let arena = self.shared.arena.fd().try_clone_to_owned().map_err(fail)?;
        let journal = self.shared.lock().journal.fd().try_clone_to_owned().map_err(fail)?;
        Ok([arena, journal])
    }

    fn over(
        arena: Arc<Arena>,
        ledger: Ledger<Arc<Entry>>,
        journal: Journal,
        options: &StoreOptions,
    ) -> Result<Self> {
        let state = State {
            ledger,
            journal,
            chunk_bytes: arena.chunk_bytes(),
            loads: VecDeque::new(),
            next_number: 0,
        };
        let shared = Arc::new(Shared {
            arena,
            load: options.load.clone(),
            state: Mutex::new(state),
            changed: Condvar::new(),
            closed: AtomicBool::new(false),
            owner: OnceLock::new(),
            process: std::process::id(),
            loads: AtomicU64::new(0),
            failed_loads: AtomicU64::new(0),
            hits: AtomicU64::new(0),
            direct_bytes: AtomicU64::new(0),
            buffered_bytes: AtomicU64::new(0),
        });
        let store = Self { shared, threads: Mutex::new(Vec::new()) };
        for _ in 0..options.load.thread_count() {
            store.spawn("qml-read", Shared::work)?;
        }
        if options.prefault {
            store.spawn("qml-prefault", |shared| shared.prefault())?;
        }
        Ok(store)
    }

    fn spawn(&self, name: &str, work: impl FnOnce(&Arc<Shared>) + Send + 'static) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || work(&shared))
            .map_err(|source| Error::io(Path::new(""), "start a thread", source))?;
        self.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
        Ok(())
    }

    /// Asks for a checkpoint under a key (by default its absolute path). The ticket is done at once if it is there
    /// already, and its files are what they were; a load of it that is under way is joined.
    ///
    /// Loads that find no room wait until leases or pins are given up.
    ///
    /// # Errors
    ///
    /// [`Fault::KeyInUse`] if the key stands for another path; [`Fault::Closed`]. All else is told by the ticket.
    pub fn load(
        &self,
        path: &Path,
        key: Option<&str>,
        verify: bool,
        deadline: Option<Duration>,
    ) -> Result<Ticket> {
        let absolute = std::path::absolute(path).map_err(|source| Error::io(path, "open", source))?;
        let default_key = absolute.to_string_lossy();
        let key = key.unwrap_or(&default_key);
        let request = self.shared.request(&absolute, key, verify, deadline)?;
        Ok(Ticket::new(request, Arc::clone(&self.shared)))
    }

    /// A lease of the entry of that key, if there is one.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<Lease> {
        let entry = self.shared.lock().ledger.lease_key(key)?;
        Some(Lease::new(entry, Arc::clone(&self.shared)))
    }

    /// The keys of all entries, least recently used first.
    #[must_use]
    pub fn keys(&self) -> Vec<String> {
        self.shared.lock().ledger.keys()
    }

    /// Keeps an entry from being given up, or no longer.
    ///
    /// # Errors
    ///
    /// [`Refusal::Unknown`].
    pub fn set_pinned(&self, key: &str, pinned: bool) -> std::result::Result<(), Refusal> {
        self.shared.lock().ledger.set_pinned(key, pinned)?;
        self.shared.changed.notify_all();
        Ok(())
    }

    /// Removes an entry: nobody finds it any more, and its memory is free when its last lease ends. `true` if that is
    /// now.
    ///
    /// # Errors
    ///
    /// [`Refusal::Unknown`] or [`Refusal::Pinned`].
    pub fn evict(&self, key: &str) -> std::result::Result<bool, Refusal> {
        let mut state = self.shared.lock();
        let (is_free, entry) = state.ledger.evict(key)?;
        state.note_gone(key);
        drop(state);
        drop(entry);
        self.shared.changed.notify_all();
        Ok(is_free)
    }

    /// What is in it and what it did so far.
    #[must_use]
    pub fn stats(&self) -> StoreStats {
        let shared = &self.shared;
        let state = shared.lock();
        StoreStats {
            capacity_bytes: shared.arena.bytes(),
            chunk_bytes: shared.arena.chunk_bytes(),
            pages: shared.arena.kind(),
            prepared_bytes: shared.arena.prepared_bytes(),
            huge_bytes: shared.arena.huge_bytes(),
            threads: shared.load.thread_count(),
            direct: shared.load.direct,
            counts: state.ledger.counts(),
            pending_loads: state.loads.len(),
            loads: shared.loads.load(Ordering::Relaxed),
            failed_loads: shared.failed_loads.load(Ordering::Relaxed),
            hits: shared.hits.load(Ordering::Relaxed),
            direct_bytes: shared.direct_bytes.load(Ordering::Relaxed),
            buffered_bytes: shared.buffered_bytes.load(Ordering::Relaxed),
        }
    }

    /// The arena, for registering with devices.
    #[must_use]
    pub fn arena(&self) -> &Arc<Arena> {
        &self.shared.arena
    }

    /// Stops all loads and waits until no thread is left. Leases stay valid; processes that attached see the owner gone.
    pub fn close(&self) {
        self.shared.shut_down();
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            // A thread that panicked has told its story already, and is gone.
            let _ = thread.join();
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if self.shared.is_own_process() {
            // The threads are not waited for: whoever drops a store may hold what they wait for (the GIL).
            self.shared.shut_down();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // What the lock guards is whole between any two statements.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    fn is_own_process(&self) -> bool {
        self.process == std::process::id()
    }

    /// Gives a lease back.
    pub fn release(&self, id: EntryId) {
        if self.is_own_process() {
            let freed = self.lock().ledger.release(id);
            drop(freed);
            self.changed.notify_all();
        }
    }

    /// A lease of an entry that another process asks for.
    pub fn lease(self: &Arc<Self>, id: EntryId) -> Option<Lease> {
        let entry = self.lock().ledger.lease(id)?;
        Some(Lease::new(entry, Arc::clone(self)))
    }

    fn request(
        self: &Arc<Self>,
        path: &Path,
        key: &str,
        verify: bool,
        deadline: Option<Duration>,
    ) -> Result<Arc<Request>> {
        let in_use =
            |other: &Path| Error::new(path, Fault::KeyInUse { key: key.to_owned(), other: other.to_owned() });
        if let Some(lease) = self.find(key) {
            let entry = lease.entry();
            if entry.checkpoint.path() != path {
                return Err(in_use(entry.checkpoint.path()));
            }
            if (entry.verified || !verify) && check_all_unchanged(&entry.checkpoint).is_ok() {
                self.hits.fetch_add(1, Ordering::Relaxed);
                let meter = Arc::new(Meter::default());
                meter.set_total(entry.checkpoint.total_bytes());
                let request = Request::new(key, path, deadline, meter);
                request.complete(Ok(lease));
                return Ok(request);
            }
        }
        let mut state = self.lock();
        if self.is_closed() {
            return Err(Error::new(path, Fault::Closed));
        }
        if let Some(load) = state.loads.iter_mut().find(|load| load.key == key && !load.cancel.is_cancelled())
        {
            if load.path != path {
                return Err(in_use(&load.path));
            }
            if load.verify || !verify {
                let request = Request::new(key, path, deadline, Arc::clone(&load.meter));
                load.requests.push(Arc::clone(&request));
                drop(state);
                self.changed.notify_all();
                return Ok(request);
            }
        }
        let meter = Arc::new(Meter::default());
        let request = Request::new(key, path, deadline, Arc::clone(&meter));
        let number = state.next_number;
        state.next_number += 1;
        state.loads.push_back(Loading {
            number,
            key: key.to_owned(),
            path: path.to_owned(),
            verify,
            cancel: Cancel::default(),
            meter,
            requests: vec![Arc::clone(&request)],
            phase: Phase::Queued,
        });
        drop(state);
        self.changed.notify_all();
        Ok(request)
    }

    fn find(self: &Arc<Self>, key: &str) -> Option<Lease> {
        let entry = self.lock().ledger.lease_key(key)?;
        Some(Lease::new(entry, Arc::clone(self)))
    }

    /// Takes a request out of its load; a load that nobody waits for any more is cancelled.
    pub fn withdraw(&self, request: &Arc<Request>) {
        for load in &mut self.lock().loads {
            load.withdraw(|other| Arc::ptr_eq(other, request));
        }
        self.changed.notify_all();
    }

    /// The thread that serves other processes.
    pub fn owner(self: &Arc<Self>) -> Result<&Owner> {
        let closed = || Error::new(Path::new(""), Fault::Closed);
        if self.is_closed() {
            return Err(closed());
        }
        if self.owner.get().is_none()
            && let Err(owner) = self.owner.set(Owner::start(Arc::downgrade(self))?)
        {
            // Another thread was faster: its socket serves, and this one is closed again.
            owner.stop();
        }
        self.owner.get().ok_or_else(closed)
    }

    fn shut_down(&self) {
        self.closed.store(true, Ordering::Release);
        if let Some(owner) = self.owner.get() {
            owner.stop();
        }
        let mut requests = Vec::new();
        for load in &mut self.lock().loads {
            requests.append(&mut load.requests);
            load.cancel.cancel();
        }
        self.changed.notify_all();
        for request in requests {
            request.complete(Err(Error::new(&request.path, Fault::Closed)));
        }
    }

    /// Gives every chunk its pages.
    fn prefault(&self) {
        for chunk in 0..self.arena.chunk_count() {
            // A chunk that cannot be had now is tried again by the load that needs it, which tells its caller.
            if self.is_closed() || self.arena.prepare(chunk).is_err() {
                return;
            }
        }
    }

    /// What a reading thread does all day.
    fn work(self: &Arc<Self>) {
        while let Some(step) = self.next_step() {
            match step {
                Step::Inspect { number, path } => self.inspect(number, &path),
                Step::Place { number, checkpoint, id, chunks, evicted } => {
                    drop(evicted);
                    self.place(number, &checkpoint, id, chunks);
                }
                Step::Read { number, filling, job } => {
                    if filling.fill.run(&job) {
                        self.conclude(number, &filling);
                    }
                }
                Step::Fail { load, error } => self.fail(&load, &error),
                Step::Expire(requests) => requests.iter().for_each(|request| request.expire()),
            }
        }
    }

    /// Waits for something to do; `None` when there never will be.
    fn next_step(&self) -> Option<Step> {
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            if let Some(step) = state.expire(now).or_else(|| state.next_step()) {
                return Some(step);
            }
            if self.is_closed() && state.loads.is_empty() {
                return None;
            }
            state = match state.next_deadline() {
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(now);
                    self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    fn inspect(&self, number: u64, path: &Path) {
        let result = Checkpoint::inspect(path);
        let mut state = self.lock();
        match result {
            Ok(checkpoint) => {
                if let Some(load) = state.load(number) {
                    load.meter.set_total(checkpoint.total_bytes());
                    load.meter.set_stage(Stage::Waiting);
                    load.phase = Phase::Waiting(checkpoint);
                }
                drop(state);
                self.changed.notify_all();
            }
            Err(error) => {
                let load = state.remove(number);
                drop(state);
                self.fail_if_any(load, &error);
            }
        }
    }

    /// Maps the chunks and opens the load for everybody.
    fn place(self: &Arc<Self>, number: u64, checkpoint: &Checkpoint, id: EntryId, chunks: Vec<u32>) {
        let Some((verify, cancel)) = self.lock().load(number).map(|load| (load.verify, load.cancel.clone()))
        else {
            return;
        };
        match self.fill(checkpoint, id, chunks, verify, cancel) {
            Ok(filling) => {
                let mut state = self.lock();
                if let Some(load) = state.load(number) {
                    load.meter.set_fill(&filling.fill);
                    load.meter.set_stage(Stage::Reading);
                    load.phase = Phase::Filling(filling.clone());
                }
                drop(state);
                self.changed.notify_all();
                if filling.fill.jobs() == 0 {
                    self.conclude(number, &filling);
                }
            }
            Err(error) => {
                let mut state = self.lock();
                state.ledger.abandon(id);
                let load = state.remove(number);
                drop(state);
                self.fail_if_any(load, &error);
            }
        }
    }

    fn fill(
        &self,
        checkpoint: &Checkpoint,
        id: EntryId,
        chunks: Vec<u32>,
        verify: bool,
        cancel: Cancel,
    ) -> Result<Filling> {
        let view = Arc::new(self.arena.view(&chunks, checkpoint.buffer_bytes(), Access::Shared)?);
        // SAFETY: the chunks were reserved for this load; nobody else reads or writes them before it is concluded, and
        // `Filling`, which every job holds, keeps the view mapped until then.
        let target = unsafe { Target::new(view.address(), view.bytes()) };
        let options = LoadOptions { verify, ..self.load.clone() };
        let arena = Arc::clone(&self.arena);
        let (order, chunk_bytes) = (chunks.clone(), arena.chunk_bytes());
        let fill =
            Fill::new(checkpoint.clone(), target, &options, cancel)?.prepared_by(move |offset, bytes| {
                (offset / chunk_bytes..(offset + bytes).div_ceil(chunk_bytes))
                    .filter_map(|place| order.get(usize::try_from(place).ok()?))
                    .try_for_each(|chunk| arena.prepare(*chunk))
            });
        Ok(Filling { id, chunks, view, fill: Arc::new(fill) })
    }

    /// The last job is over: the entry becomes visible, or its chunks are freed.
    fn conclude(self: &Arc<Self>, number: u64, filling: &Filling) {
        let result = filling.fill.conclude(self.load.thread_count()).and_then(|report| {
            let protected = filling.view.make_read_only();
            protected.map_err(|source| Error::io(filling.fill.checkpoint().path(), "protect", source))?;
            Ok(report)
        });
        let mut state = self.lock();
        let Some(load) = state.remove(number) else { return };
        match result {
            Ok(report) => {
                let entry = Arc::new(self.entry(&load, filling, report));
                let replaced = state.ledger.publish(filling.id, Arc::clone(&entry), load.requests.len());
                state.journal.note_ready(entry.place());
                state.keep_journal_short();
                drop(state);
                drop(replaced);
                self.count(&report);
                for request in &load.requests {
                    request.complete(Ok(Lease::new(Arc::clone(&entry), Arc::clone(self))));
                }
                self.changed.notify_all();
            }
            Err(error) => {
                state.ledger.abandon(filling.id);
                drop(state);
                self.fail(&load, &error);
            }
        }
    }

    fn entry(&self, load: &Loading, filling: &Filling, report: LoadReport) -> Entry {
        Entry {
            id: filling.id,
            key: load.key.clone(),
            checkpoint: filling.fill.checkpoint().clone(),
            report,
            verified: load.verify,
            chunks: filling.chunks.clone(),
            view: Arc::clone(&filling.view),
            arena: Arc::clone(&self.arena),
            layout: OnceLock::new(),
        }
    }

    fn count(&self, report: &LoadReport) {
        self.loads.fetch_add(1, Ordering::Relaxed);
        self.direct_bytes.fetch_add(report.direct_bytes, Ordering::Relaxed);
        self.buffered_bytes.fetch_add(report.buffered_bytes, Ordering::Relaxed);
    }

    fn fail_if_any(&self, load: Option<Loading>, error: &Error) {
        if let Some(load) = load {
            self.fail(&load, error);
        }
    }

    fn fail(&self, load: &Loading, error: &Error) {
        self.failed_loads.fetch_add(1, Ordering::Relaxed);
        self.changed.notify_all();
        for request in &load.requests {
            request.complete(Err(error.clone()));
        }
    }
}

impl Loading {
    fn withdraw(&mut self, gives_up: impl Fn(&Arc<Request>) -> bool) -> Vec<Arc<Request>> {
        let (gone, left): (Vec<_>, Vec<_>) = self.requests.drain(..).partition(gives_up);
        self.requests = left;
        if !gone.is_empty() && self.requests.is_empty() {
            self.cancel.cancel();
        }
        gone
    }
}

impl State {
    /// Before anybody else can be given its chunks: that takes the same lock.
    fn note_gone(&mut self, key: &str) {
        self.journal.note_gone(key);
        self.keep_journal_short();
    }

    fn keep_journal_short(&mut self) {
        if self.journal.is_wasteful() {
            let places: Vec<_> = self.ledger.payloads().into_iter().map(|entry| entry.place()).collect();
            self.journal.compact(&places);
        }
    }

    fn load(&mut self, number: u64) -> Option<&mut Loading> {
        self.loads.iter_mut().find(|load| load.number == number)
    }

    fn remove(&mut self, number: u64) -> Option<Loading> {
        let place = self.loads.iter().position(|load| load.number == number)?;
        self.loads.remove(place)
    }

    fn next_deadline(&self) -> Option<Instant> {
        let requests = self.loads.iter().flat_map(|load| &load.requests);
        requests.filter_map(|request| request.deadline.map(|(deadline, _)| deadline)).min()
    }

    /// Those whose time is up.
    fn expire(&mut self, now: Instant) -> Option<Step> {
        let expired: Vec<_> =
            self.loads.iter_mut().flat_map(|load| load.withdraw(|request| request.is_expired(now))).collect();
        (!expired.is_empty()).then_some(Step::Expire(expired))
    }

    /// What the first load that allows it needs next.
    fn next_step(&mut self) -> Option<Step> {
        let mut is_full = false;
        for place in 0..self.loads.len() {
            let load = self.loads.get_mut(place)?;
            let number = load.number;
            match &load.phase {
                Phase::Queued | Phase::Waiting(_) if load.cancel.is_cancelled() => {
                    let load = self.loads.remove(place)?;
                    let error = Error::new(&load.path, Fault::Cancelled);
                    return Some(Step::Fail { load, error });
                }
                Phase::Queued => {
                    load.phase = Phase::Busy;
                    return Some(Step::Inspect { number, path: load.path.clone() });
                }
                Phase::Waiting(checkpoint) if !is_full => {
                    let checkpoint = checkpoint.clone();
                    if let Some(step) = self.reserve(place, &checkpoint) {
                        return Some(step);
                    }
                    // Who comes later does not overtake: a large model would wait for ever.
                    is_full = true;
                }
                Phase::Filling(filling) => {
                    if let Some(job) = filling.fill.take().cloned() {
                        return Some(Step::Read { number, filling: filling.clone(), job });
                    }
                }
                Phase::Busy | Phase::Waiting(_) => {}
            }
        }
        None
    }

    fn reserve(&mut self, place: usize, checkpoint: &Checkpoint) -> Option<Step> {
        let chunk_bytes = self.chunk_bytes;
        let load = self.loads.get_mut(place)?;
        let needed_bytes = checkpoint.buffer_bytes();
        let count = usize::try_from(needed_bytes.div_ceil(chunk_bytes)).unwrap_or(usize::MAX);
        match self.ledger.reserve(&load.key, count) {
            Ok(reservation) => {
                load.phase = Phase::Busy;
                let number = load.number;
                for entry in &reservation.evicted {
                    self.note_gone(&entry.key);
                }
                Some(Step::Place {
                    number,
                    checkpoint: checkpoint.clone(),
                    id: reservation.id,
                    chunks: reservation.chunks,
                    evicted: reservation.evicted,
                })
            }
            Err(Refusal::TooLarge) => {
                let capacity_bytes = self.ledger.counts().chunks as u64 * chunk_bytes;
                let error = Error::new(checkpoint.path(), Fault::Capacity { needed_bytes, capacity_bytes });
                let load = self.loads.remove(place)?;
                Some(Step::Fail { load, error })
            }
            Err(_) => None,
        }
    }
}
