//! Pieces of files, handed out to whichever thread is free.

use std::ops::Range;

use crate::sync::{AtomicUsize, Ordering};

/// The size of a job: large enough that the disk streams, small enough that threads finish together.
pub const JOB_BYTES: u64 = 8 << 20;

/// A piece of one file to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// Which file of the checkpoint.
    pub file: usize,
    /// Which bytes of it; the start is a multiple of the job size, hence of the block size.
    pub range: Range<u64>,
}

/// All jobs of a load in file order; each is handed out exactly once.
#[derive(Debug)]
pub struct JobQueue {
    jobs: Vec<Job>,
    next: AtomicUsize,
}

impl JobQueue {
    /// Cuts files of these sizes into jobs of `job_bytes` (a positive multiple of the block size).
    #[must_use]
    pub fn new(files_bytes: &[u64], job_bytes: u64) -> Self {
        debug_assert!(job_bytes > 0 && job_bytes.is_multiple_of(crate::BLOCK_BYTES));
        let mut jobs = Vec::new();
        for (file, &file_bytes) in files_bytes.iter().enumerate() {
            let mut begin = 0;
            while begin < file_bytes {
                let end = begin.saturating_add(job_bytes).min(file_bytes);
                jobs.push(Job { file, range: begin..end });
                begin = end;
            }
        }
        Self { jobs, next: AtomicUsize::new(0) }
    }

    /// The number of jobs, taken or not.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.jobs.len()
    }

    /// Whether there never was a job.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    /// All jobs, taken or not.
    pub fn jobs(&self) -> impl Iterator<Item = &Job> {
        self.jobs.iter()
    }

    /// Takes the next job; `None` when all are taken.
    pub fn take(&self) -> Option<&Job> {
        // Relaxed: the addition alone makes a job unique, and the jobs were there before the threads were.
        self.jobs.get(self.next.fetch_add(1, Ordering::Relaxed))
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::JobQueue;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn jobs_cover_every_byte_once_in_order(sizes in prop::collection::vec(0_u64..100_000, 0..6), blocks in 1_u64..5) {
            let queue = JobQueue::new(&sizes, blocks * crate::BLOCK_BYTES);
            let mut reached = vec![0; sizes.len()];
            while let Some(job) = queue.take() {
                prop_assert_eq!(job.range.start, reached[job.file]);
                prop_assert!(job.range.start < job.range.end);
                prop_assert_eq!(job.range.start % crate::BLOCK_BYTES, 0);
                reached[job.file] = job.range.end;
            }
            prop_assert_eq!(reached, sizes);
        }
    }

    #[test]
    fn threads_never_share_a_job() {
        let queue = JobQueue::new(&[1 << 20, 1 << 19], crate::BLOCK_BYTES);
        let taken: usize = std::thread::scope(|scope| {
            let counts: Vec<_> =
                (0..4).map(|_| scope.spawn(|| std::iter::from_fn(|| queue.take()).count())).collect();
            counts.into_iter().map(|count| count.join().unwrap()).sum()
        });
        assert_eq!(taken, queue.len());
    }
}

#[cfg(test)]
#[cfg(loom)]
mod tests {
    use super::JobQueue;
    use loom::sync::Arc;
    use loom::thread;

    #[test]
    fn every_job_is_taken_exactly_once_in_every_interleaving() {
        loom::model(|| {
            let queue = Arc::new(JobQueue::new(&[3 * crate::BLOCK_BYTES], crate::BLOCK_BYTES));
            let take_all = |queue: &JobQueue| {
                std::iter::from_fn(|| queue.take().map(|job| job.range.start)).collect::<Vec<_>>()
            };
            let other = {
                let queue = Arc::clone(&queue);
                thread::spawn(move || take_all(&queue))
            };
            let mut taken = take_all(&queue);
            taken.extend(other.join().unwrap());
            taken.sort_unstable();
            assert_eq!(taken, [0, crate::BLOCK_BYTES, 2 * crate::BLOCK_BYTES]);
        });
    }
}
