//! The wish to stop a load.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A flag that threads share: once set it stays set, in all clones. A load looks at it before every job.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Asks every load that holds this flag to stop. Idempotent.
    pub fn cancel(&self) {
        // Relaxed: the flag carries no data, and a job more or less changes nothing.
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether [`Cancel::cancel`] was called.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
