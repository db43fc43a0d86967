//! Who owns which chunk of the arena: entries, leases, pins, and what is given up first.
//!
//! Pure bookkeeping: it knows neither memory nor files nor threads.

use std::collections::{BTreeSet, HashMap};

/// The number of an entry; never used twice.
pub type EntryId = u64;

/// Why an entry cannot be given up, or be made room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No entry has that key.
    Unknown,
    /// The entry is pinned.
    Pinned,
    /// The chunks that are free, or could be freed, do not suffice for now.
    NoRoom,
    /// Not even an empty arena would suffice.
    TooLarge,
}

/// Chunks given to a new entry, and the entries that made room for it.
#[derive(Debug)]
pub struct Reservation<T> {
    /// The new entry.
    pub id: EntryId,
    /// Its chunks, ascending.
    pub chunks: Vec<u32>,
    /// What was given up for it.
    pub evicted: Vec<T>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Its bytes are on their way; nobody sees it.
    Filling,
    /// Anybody may lease it.
    Ready,
    /// Nobody finds it any more; its chunks are freed with its last lease.
    Evicting,
}

#[derive(Debug)]
struct Slot<T> {
    key: String,
    chunks: Vec<u32>,
    state: State,
    leases: usize,
    pinned: bool,
    last_use: u64,
    /// `None` while filling.
    payload: Option<T>,
}

impl<T> Slot<T> {
    fn is_evictable(&self) -> bool {
        self.state == State::Ready && self.leases == 0 && !self.pinned
    }
}

/// The books of an arena of equal chunks.
///
/// Invariants: every chunk is free or belongs to exactly one entry; a chunk of an entry with leases is never freed; at
/// most one entry per key is ready; an entry that is filling has no leases.
#[derive(Debug)]
pub struct Ledger<T> {
    chunk_count: usize,
    free: BTreeSet<u32>,
    slots: HashMap<EntryId, Slot<T>>,
    ready: HashMap<String, EntryId>,
    next_id: EntryId,
    clock: u64,
    evictions: u64,
}

impl<T: Clone> Ledger<T> {
    /// Books for `chunk_count` free chunks.
    #[must_use]
    pub fn new(chunk_count: u32) -> Self {
        Self {
            chunk_count: chunk_count as usize,
            free: (0..chunk_count).collect(),
            slots: HashMap::new(),
            ready: HashMap::new(),
            next_id: 1,
            clock: 0,
            evictions: 0,
        }
    }

    /// Takes `count` chunks for an entry that is to be filled, giving up the least recently used ones if it must.
    ///
    /// # Errors
    ///
    /// [`Refusal::TooLarge`] or [`Refusal::NoRoom`]; then nothing was given up.
    pub fn reserve(&mut self, key: &str, count: usize) -> Result<Reservation<T>, Refusal> {
        if count > self.chunk_count {
            return Err(Refusal::TooLarge);
        }
        let mut idle: Vec<(u64, EntryId, usize)> = self
            .slots
            .iter()
            .filter(|(_, slot)| slot.is_evictable())
            .map(|(id, slot)| (slot.last_use, *id, slot.chunks.len()))
            .collect();
        if self.free.len() + idle.iter().map(|(_, _, chunks)| chunks).sum::<usize>() < count {
            return Err(Refusal::NoRoom);
        }
        idle.sort_unstable();
        let mut evicted = Vec::new();
        for (_, id, _) in idle {
            if self.free.len() >= count {
                break;
            }
            evicted.extend(self.give_up(id));
        }
        let chunks: Vec<u32> = self.free.iter().take(count).copied().collect();
        for chunk in &chunks {
            self.free.remove(chunk);
        }
        let id = self.next_id;
        self.next_id += 1;
        let slot = Slot {
            key: key.to_owned(),
            chunks: chunks.clone(),
            state: State::Filling,
            leases: 0,
            pinned: false,
            last_use: 0,
            payload: None,
        };
        self.slots.insert(id, slot);
        Ok(Reservation { id, chunks, evicted })
    }

    /// Makes a filled entry visible, with `leases` leases; one of the same key that was ready before makes way, its pin
    /// passes on. Returns what was freed by that.
    pub fn publish(&mut self, id: EntryId, payload: T, leases: usize) -> Option<T> {
        let key = self.slots.get(&id)?.key.clone();
        let previous = self.ready.insert(key, id);
        let pinned = previous.and_then(|previous| self.slots.get_mut(&previous)).is_some_and(|slot| {
            let pinned = slot.pinned;
            slot.pinned = false;
            pinned
        });
        let last_use = self.tick();
        if let Some(slot) = self.slots.get_mut(&id) {
            slot.state = State::Ready;
            slot.payload = Some(payload);
            slot.leases = leases;
            slot.pinned = pinned;
            slot.last_use = last_use;
        }
        previous.and_then(|previous| self.retire(previous))
    }

    /// Has an entry ready that lies in these chunks already, made by `payload` from its number; `None` where they are
    /// not all free, or the key is in use.
    pub fn adopt(
        &mut self,
        key: &str,
        chunks: Vec<u32>,
        payload: impl FnOnce(EntryId) -> T,
    ) -> Option<EntryId> {
        let distinct: BTreeSet<u32> = chunks.iter().copied().collect();
        if self.ready.contains_key(key) || distinct.len() != chunks.len() || !distinct.is_subset(&self.free) {
            return None;
        }
        self.free.retain(|chunk| !distinct.contains(chunk));
        let (id, last_use) = (self.next_id, self.tick());
        self.next_id += 1;
        let payload = Some(payload(id));
        let slot = Slot {
            key: key.to_owned(),
            chunks,
            state: State::Ready,
            leases: 0,
            pinned: false,
            last_use,
            payload,
        };
        self.slots.insert(id, slot);
        self.ready.insert(key.to_owned(), id);
        Some(id)
    }

    /// What can be leased, least recently used first.
    #[must_use]
    pub fn payloads(&self) -> Vec<&T> {
        self.ready_slots().into_iter().filter_map(|slot| slot.payload.as_ref()).collect()
    }

    /// Frees the chunks of an entry that could not be filled.
    pub fn abandon(&mut self, id: EntryId) {
        if self.slots.get(&id).is_some_and(|slot| slot.state == State::Filling) {
            self.free_chunks(id);
        }
    }

    /// Takes a lease of the ready entry of that key.
    pub fn lease_key(&mut self, key: &str) -> Option<T> {
        let id = *self.ready.get(key)?;
        self.lease(id)
    }

    /// Takes a lease of an entry, if it is ready.
    pub fn lease(&mut self, id: EntryId) -> Option<T> {
        let last_use = self.tick();
        let slot = self.slots.get_mut(&id).filter(|slot| slot.state == State::Ready)?;
        slot.leases += 1;
        slot.last_use = last_use;
        slot.payload.clone()
    }

    /// Gives a lease back; returns what was freed by that.
    pub fn release(&mut self, id: EntryId) -> Option<T> {
        let slot = self.slots.get_mut(&id)?;
        slot.leases = slot.leases.saturating_sub(1);
        let is_over = slot.leases == 0 && slot.state == State::Evicting;
        if is_over { self.free_chunks(id) } else { None }
    }

    /// Keeps the entry until it is unpinned.
    ///
    /// # Errors
    ///
    /// [`Refusal::Unknown`].
    pub fn set_pinned(&mut self, key: &str, pinned: bool) -> Result<(), Refusal> {
        let slot = self.ready.get(key).and_then(|id| self.slots.get_mut(id)).ok_or(Refusal::Unknown)?;
        slot.pinned = pinned;
        Ok(())
    }

    /// Hides the entry and frees it as soon as it has no leases. Returns whether that is now, and what was freed.
    ///
    /// # Errors
    ///
    /// [`Refusal::Unknown`] or [`Refusal::Pinned`].
    pub fn evict(&mut self, key: &str) -> Result<(bool, Option<T>), Refusal> {
        let id = *self.ready.get(key).ok_or(Refusal::Unknown)?;
        if self.slots.get(&id).is_some_and(|slot| slot.pinned) {
            return Err(Refusal::Pinned);
        }
        self.ready.remove(key);
        self.evictions += 1;
        let freed = self.retire(id);
        Ok((freed.is_some(), freed))
    }

    /// The ready entries' keys, least recently used first.
    #[must_use]
    pub fn keys(&self) -> Vec<String> {
        self.ready_slots().into_iter().map(|slot| slot.key.clone()).collect()
    }

    fn ready_slots(&self) -> Vec<&Slot<T>> {
        let mut slots: Vec<&Slot<T>> = self.ready.values().filter_map(|id| self.slots.get(id)).collect();
        slots.sort_by_key(|slot| slot.last_use);
        slots
    }

    /// Numbers for people.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts {
            chunks: self.chunk_count,
            free_chunks: self.free.len(),
            entries: self.ready.len(),
            pinned_entries: self.slots.values().filter(|slot| slot.pinned).count(),
            leases: self.slots.values().map(|slot| slot.leases).sum(),
            evictions: self.evictions,
        }
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// Evicts an entry to make room.
    fn give_up(&mut self, id: EntryId) -> Option<T> {
        if let Some(slot) = self.slots.get(&id) {
            self.ready.remove(&slot.key);
        }
        self.evictions += 1;
        self.retire(id)
    }

    /// Frees an entry that nobody finds any more, now or with its last lease.
    fn retire(&mut self, id: EntryId) -> Option<T> {
        let slot = self.slots.get_mut(&id)?;
        slot.state = State::Evicting;
        if slot.leases == 0 { self.free_chunks(id) } else { None }
    }

    fn free_chunks(&mut self, id: EntryId) -> Option<T> {
        let slot = self.slots.remove(&id)?;
        self.free.extend(slot.chunks);
        slot.payload
    }
}

/// What is in the books.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// All chunks.
    pub chunks: usize,
    /// Those that belong to no entry.
    pub free_chunks: usize,
    /// Entries that can be leased.
    pub entries: usize,
    /// Those of them that are pinned.
    pub pinned_entries: usize,
    /// Leases of all entries, evicted ones too.
    pub leases: usize,
    /// How many entries were given up so far.
    pub evictions: u64,
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::{Ledger, Refusal, State};
    use proptest::prelude::*;

    fn add(ledger: &mut Ledger<&'static str>, key: &'static str, chunks: usize) -> u64 {
        let id = ledger.reserve(key, chunks).unwrap().id;
        assert!(ledger.publish(id, key, 0).is_none());
        id
    }

    #[test]
    fn the_least_recently_used_goes_first() {
        let mut ledger = Ledger::new(4);
        for key in ["a", "b", "c", "d"] {
            add(&mut ledger, key, 1);
        }
        ledger.lease_key("a").unwrap();
        assert_eq!(ledger.release(1), None);
        ledger.set_pinned("b", true).unwrap();
        assert_eq!(ledger.keys(), ["b", "c", "d", "a"]);
        let reservation = ledger.reserve("e", 2).unwrap();
        assert_eq!(reservation.evicted, ["c", "d"]);
        assert_eq!(reservation.chunks, [2, 3]);
        assert_eq!(ledger.keys(), ["b", "a"]);
    }

    #[test]
    fn nothing_is_given_up_in_vain() {
        let mut ledger = Ledger::new(3);
        add(&mut ledger, "a", 1);
        let kept = add(&mut ledger, "b", 1);
        ledger.lease(kept).unwrap();
        assert_eq!(ledger.reserve("c", 3).unwrap_err(), Refusal::NoRoom);
        assert_eq!(ledger.reserve("c", 4).unwrap_err(), Refusal::TooLarge);
        assert_eq!(ledger.keys(), ["a", "b"]);
        ledger.release(kept);
        assert_eq!(ledger.reserve("c", 3).unwrap().evicted, ["a", "b"]);
    }

    #[test]
    fn an_evicted_entry_lives_as_long_as_its_leases() {
        let mut ledger = Ledger::new(1);
        let id = add(&mut ledger, "a", 1);
        ledger.lease(id).unwrap();
        ledger.lease(id).unwrap();
        assert_eq!(ledger.evict("a"), Ok((false, None)));
        assert_eq!(ledger.lease(id), None);
        assert_eq!(ledger.evict("a"), Err(Refusal::Unknown));
        assert_eq!(ledger.release(id), None);
        assert_eq!(ledger.counts().free_chunks, 0);
        assert_eq!(ledger.release(id), Some("a"));
        assert_eq!(ledger.counts().free_chunks, 1);
    }

    #[test]
    fn what_lies_there_already_is_adopted_where_it_lies() {
        let mut ledger = Ledger::new(4);
        let id = ledger.adopt("a", vec![2, 0], |id| id).unwrap();
        assert_eq!(ledger.lease_key("a"), Some(id));
        for (key, chunks) in [("a", vec![1]), ("b", vec![0]), ("b", vec![1, 1]), ("b", vec![4])] {
            assert_eq!(ledger.adopt(key, chunks, |id| id), None);
        }
        assert_eq!(ledger.reserve("b", 2).unwrap().chunks, [1, 3]);
        assert_eq!(ledger.payloads(), [&id]);
        ledger.release(id);
        assert_eq!(ledger.reserve("c", 2).unwrap().evicted, [id]);
    }

    #[test]
    fn a_newer_entry_takes_over_key_and_pin() {
        let mut ledger = Ledger::new(2);
        add(&mut ledger, "a", 1);
        ledger.set_pinned("a", true).unwrap();
        assert_eq!(ledger.evict("a"), Err(Refusal::Pinned));
        let id = ledger.reserve("a", 1).unwrap().id;
        assert_eq!(ledger.publish(id, "newer", 1), Some("a"));
        assert_eq!(ledger.lease_key("a"), Some("newer"));
        assert_eq!((ledger.counts().pinned_entries, ledger.counts().leases), (1, 2));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Reserve(u8, usize),
        Finish(usize, bool),
        Lease(u8),
        Release(usize),
        Evict(u8),
        Pin(u8, bool),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0_u8..4, 0_usize..5).prop_map(|(key, chunks)| Step::Reserve(key, chunks)),
            (0_usize..4, any::<bool>()).prop_map(|(which, ok)| Step::Finish(which, ok)),
            (0_u8..4).prop_map(Step::Lease),
            (0_usize..8).prop_map(Step::Release),
            (0_u8..4).prop_map(Step::Evict),
            (0_u8..4, any::<bool>()).prop_map(|(key, pinned)| Step::Pin(key, pinned)),
        ]
    }

    fn check(ledger: &Ledger<u64>, leases: &[u64]) -> Result<(), TestCaseError> {
        let mut owned: Vec<u32> =
            ledger.slots.values().flat_map(|slot| slot.chunks.iter().copied()).collect();
        owned.extend(&ledger.free);
        owned.sort_unstable();
        prop_assert_eq!(owned, (0..8).collect::<Vec<_>>());
        for (id, slot) in &ledger.slots {
            prop_assert_eq!(slot.leases, leases.iter().filter(|lease| *lease == id).count());
            prop_assert!(slot.state != State::Evicting || slot.leases > 0);
            prop_assert_eq!(slot.payload.is_none(), slot.state == State::Filling);
            prop_assert_eq!(slot.state == State::Ready, ledger.ready.get(&slot.key) == Some(id));
        }
        prop_assert!(leases.iter().all(|lease| ledger.slots.contains_key(lease)));
        prop_assert!(ledger.ready.values().all(|id| ledger.slots.contains_key(id)));
        Ok(())
    }

    proptest! {
        #[test]
        fn no_chunk_is_lost_or_shared(steps in prop::collection::vec(step(), 0..60)) {
            let mut ledger: Ledger<u64> = Ledger::new(8);
            let mut filling = Vec::new();
            let mut leases = Vec::new();
            for step in steps {
                match step {
                    Step::Reserve(key, chunks) => {
                        if let Ok(reservation) = ledger.reserve(&key.to_string(), chunks) {
                            prop_assert!(reservation.evicted.iter().all(|id| !leases.contains(id)));
                            filling.push(reservation.id);
                        }
                    }
                    Step::Finish(which, ok) if which < filling.len() => {
                        let id = filling.remove(which);
                        if ok {
                            ledger.publish(id, id, 1);
                            leases.push(id);
                        } else {
                            ledger.abandon(id);
                        }
                    }
                    Step::Lease(key) => leases.extend(ledger.lease_key(&key.to_string())),
                    Step::Release(which) if which < leases.len() => {
                        ledger.release(leases.remove(which));
                    }
                    Step::Evict(key) => {
                        let _ = ledger.evict(&key.to_string());
                    }
                    Step::Pin(key, pinned) => {
                        let _ = ledger.set_pinned(&key.to_string(), pinned);
                    }
                    Step::Finish(..) | Step::Release(_) => {}
                }
                check(&ledger, &leases)?;
            }
        }
    }
}

#[cfg(test)]
#[cfg(loom)]
mod tests {
    use super::Ledger;
    use crate::sync::{Condvar, Mutex, lock};
    use loom::sync::Arc;
    use loom::sync::atomic::{AtomicUsize, Ordering};
    use loom::thread;
    use std::sync::PoisonError;

    /// A reader leases, reads and releases; an owner evicts and refills the chunk as soon as there is room. The reader
    /// must never see the chunk change, and the owner must not sleep for ever.
    #[test]
    fn a_leased_chunk_is_not_filled_again_and_its_release_wakes_who_waits_for_room() {
        loom::model(|| {
            let mut ledger: Ledger<&'static str> = Ledger::new(1);
            let id = ledger.reserve("old", 1).unwrap().id;
            ledger.publish(id, "old", 0);
            let books = Arc::new((Mutex::new(ledger), Condvar::new()));
            let chunk = Arc::new(AtomicUsize::new(1));
            let reader = {
                let (books, chunk) = (Arc::clone(&books), Arc::clone(&chunk));
                thread::spawn(move || {
                    let leased = lock(&books.0).lease_key("old");
                    if leased.is_some() {
                        assert_eq!(chunk.load(Ordering::Relaxed), 1);
                        assert_eq!(chunk.load(Ordering::Relaxed), 1);
                        lock(&books.0).release(id);
                        books.1.notify_all();
                    }
                })
            };
            let mut ledger = lock(&books.0);
            ledger.evict("old").unwrap();
            let reservation = loop {
                match ledger.reserve("new", 1) {
                    Ok(reservation) => break reservation,
                    Err(_) => ledger = books.1.wait(ledger).unwrap_or_else(PoisonError::into_inner),
                }
            };
            drop(ledger);
            chunk.store(2, Ordering::Relaxed);
            lock(&books.0).publish(reservation.id, "new", 0);
            reader.join().unwrap();
            assert_eq!(lock(&books.0).counts().leases, 0);
        });
    }
}
