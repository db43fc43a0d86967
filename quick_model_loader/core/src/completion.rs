//! Something that happens once: threads wait for it, callbacks follow it.

use std::fmt;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use crate::sync::{Condvar, Mutex, lock};

type Callback = Box<dyn FnOnce() + Send>;

/// An outcome that is set once.
///
/// Invariant: a callback runs exactly once, after the outcome is there, without any lock held.
pub struct Completion<T> {
    slot: Mutex<Slot<T>>,
    done: Condvar,
}

struct Slot<T> {
    outcome: Option<T>,
    callbacks: Vec<Callback>,
}

impl<T> Default for Completion<T> {
    fn default() -> Self {
        Self { slot: Mutex::new(Slot { outcome: None, callbacks: Vec::new() }), done: Condvar::new() }
    }
}

impl<T> fmt::Debug for Completion<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Completion").field("done", &self.is_done()).finish_non_exhaustive()
    }
}

impl<T> Completion<T> {
    /// Sets the outcome, unless there is one; then `outcome` comes back.
    ///
    /// # Errors
    ///
    /// The outcome that came too late.
    pub fn complete(&self, outcome: T) -> Result<(), T> {
        let mut slot = lock(&self.slot);
        if slot.outcome.is_some() {
            return Err(outcome);
        }
        slot.outcome = Some(outcome);
        let callbacks = std::mem::take(&mut slot.callbacks);
        drop(slot);
        self.done.notify_all();
        for callback in callbacks {
            callback();
        }
        Ok(())
    }

    /// Whether there is an outcome.
    pub fn is_done(&self) -> bool {
        lock(&self.slot).outcome.is_some()
    }

    /// Waits for the outcome, at most for `timeout`; says whether it is there.
    pub fn wait(&self, timeout: Option<Duration>) -> bool {
        // A timeout beyond what the clock can tell is none.
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut slot = lock(&self.slot);
        while slot.outcome.is_none() {
            slot = if let Some(deadline) = deadline {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return false;
                }
                self.done.wait_timeout(slot, left).unwrap_or_else(PoisonError::into_inner).0
            } else {
                self.done.wait(slot).unwrap_or_else(PoisonError::into_inner)
            };
        }
        true
    }

    /// Looks at the outcome, and may change it, once it is there.
    pub fn inspect<R>(&self, look: impl FnOnce(&mut T) -> R) -> Option<R> {
        lock(&self.slot).outcome.as_mut().map(look)
    }

    /// Runs `callback` when the outcome is there: on the thread that sets it, or at once if it is there already.
    pub fn on_done(&self, callback: impl FnOnce() + Send + 'static) {
        let mut slot = lock(&self.slot);
        if slot.outcome.is_none() {
            slot.callbacks.push(Box::new(callback));
        } else {
            drop(slot);
            callback();
        }
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::Completion;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    #[test]
    fn the_first_outcome_stays() {
        let completion = Completion::default();
        assert!(!completion.is_done());
        assert!(!completion.wait(Some(Duration::from_millis(1))));
        assert_eq!(completion.complete(1), Ok(()));
        assert_eq!(completion.complete(2), Err(2));
        assert!(completion.wait(None));
        assert_eq!(completion.inspect(|outcome| *outcome), Some(1));
    }

    #[test]
    fn callbacks_run_once_before_or_after() {
        let completion = Completion::default();
        let calls = Arc::new(AtomicUsize::new(0));
        let call = || {
            let calls = Arc::clone(&calls);
            move || {
                calls.fetch_add(1, Ordering::Relaxed);
            }
        };
        completion.on_done(call());
        assert_eq!(calls.load(Ordering::Relaxed), 0);
        completion.complete(()).unwrap();
        assert_eq!(calls.load(Ordering::Relaxed), 1);
        completion.on_done(call());
        assert_eq!(completion.complete(()), Err(()));
        assert_eq!(calls.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn a_waiting_thread_wakes() {
        let completion = Arc::new(Completion::default());
        let other = Arc::clone(&completion);
        let waiter = std::thread::spawn(move || other.wait(None));
        completion.complete(()).unwrap();
        assert!(waiter.join().unwrap());
    }
}

#[cfg(test)]
#[cfg(loom)]
mod tests {
    use super::Completion;
    use loom::sync::Arc;
    use loom::sync::atomic::{AtomicUsize, Ordering};
    use loom::thread;

    #[test]
    fn a_callback_runs_exactly_once_in_every_interleaving() {
        loom::model(|| {
            let completion = Arc::new(Completion::default());
            let calls = Arc::new(AtomicUsize::new(0));
            let setter = {
                let completion = Arc::clone(&completion);
                thread::spawn(move || completion.complete(1).is_ok())
            };
            let counted = Arc::clone(&calls);
            completion.on_done(move || {
                counted.fetch_add(1, Ordering::Relaxed);
            });
            let mine = completion.complete(2).is_ok();
            assert!(completion.wait(None));
            assert!(mine != setter.join().unwrap());
            assert_eq!(calls.load(Ordering::Relaxed), 1);
        });
    }
}
