//! Reading a whole checkpoint into memory.

use std::fmt;
use std::fs;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::source::{Source, check_unchanged};
use crate::width::to_usize;
use crate::{
    Cancel, Checkpoint, CheckpointFile, Checksums, Error, Fault, Identity, JOB_BYTES, Job, JobQueue, Result,
    Target, round_up_to_block,
};

/// A disk needs a few requests at once to stream; one thread holds one request.
const MIN_DEFAULT_THREADS: usize = 4;
/// Beyond this, more threads were never faster.
const MAX_DEFAULT_THREADS: usize = 16;

/// When to read past the page cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Direct {
    /// Where the page cache does not hold the range already.
    #[default]
    WhenCold,
    /// Wherever the file system can.
    Always,
    /// Nowhere.
    Never,
}

/// How to load. The default is right unless a measurement says otherwise.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// How many threads read, the caller's included; by default as many as the machine has cores, 4 to 16.
    pub threads: Option<NonZeroUsize>,
    /// When to read past the page cache.
    pub direct: Direct,
    /// The size of a job; a positive multiple of the block size.
    pub job_bytes: u64,
    /// Whether to compare what was read with the checksums beside the files; jobs then are as long as their chunks.
    pub verify: bool,
}

impl LoadOptions {
    /// How many threads they ask for on this machine.
    #[must_use]
    pub fn thread_count(&self) -> usize {
        self.threads.map_or_else(
            || {
                let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
                cores.clamp(MIN_DEFAULT_THREADS, MAX_DEFAULT_THREADS)
            },
            NonZeroUsize::get,
        )
    }
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { threads: None, direct: Direct::WhenCold, job_bytes: JOB_BYTES, verify: false }
    }
}

/// What a load did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadReport {
    /// How many bytes were read: the files' lengths.
    pub bytes: u64,
    /// How long it took.
    pub elapsed: Duration,
    /// How many threads read.
    pub threads: usize,
    /// How many of the bytes came from the disk straight into the target.
    pub direct_bytes: u64,
    /// How many came through the page cache.
    pub buffered_bytes: u64,
}

/// Reads every file of `checkpoint` verbatim into `target`, each at its `buffer_offset`; the padding between files is
/// zeroed. Returns when all is there, or as soon as something failed; then the target's content is undefined.
///
/// If threads cannot be started the load makes do with fewer, down to the caller's.
///
/// # Errors
///
/// [`Fault::Capacity`], [`Fault::Changed`], [`Fault::Truncated`], [`Fault::Cancelled`], [`Fault::Checksum`],
/// [`Fault::Io`].
pub fn load(
    checkpoint: &Checkpoint,
    target: &Target,
    options: &LoadOptions,
    cancel: &Cancel,
) -> Result<LoadReport> {
    // SAFETY: all threads have stopped when this function returns, and `target` is valid at least that long.
    let target = unsafe { target.alias() };
    let fill = Fill::new(checkpoint.clone(), target, options, cancel.clone())?;
    let helpers = options.thread_count().min(fill.jobs()).saturating_sub(1);
    let threads = thread::scope(|scope| {
        let started = (0..helpers)
            .map_while(|_| thread::Builder::new().spawn_scoped(scope, || fill.work()).ok())
            .count();
        fill.work();
        started + 1
    });
    fill.conclude(threads)
}

/// The paths must still lead to the files that were inspected, or the bytes may be of two versions.
///
/// # Errors
///
/// [`Fault::Changed`], or [`Fault::Io`] where the question cannot be answered.
pub fn check_all_unchanged(checkpoint: &Checkpoint) -> Result<()> {
    for file in checkpoint.files() {
        let found = match fs::metadata(&file.path) {
            Ok(metadata) => Identity::of(&metadata),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::new(&file.path, Fault::Changed("removed")));
            }
            Err(error) => return Err(Error::io(&file.path, "stat", error)),
        };
        check_unchanged(&file.path, &file.identity, &found)?;
    }
    Ok(())
}

/// Called with offset and length of a part of the target before it is written to.
type Prepare = Box<dyn Fn(u64, u64) -> Result<()> + Send + Sync>;

/// A load under way; its threads share it.
pub struct Fill {
    checkpoint: Checkpoint,
    target: Target,
    direct: Direct,
    cancel: Cancel,
    queue: JobQueue,
    slots: Vec<Slot>,
    /// One per file; empty if nothing is to be verified.
    checksums: Vec<Checksums>,
    prepare: Option<Prepare>,
    direct_bytes: AtomicU64,
    buffered_bytes: AtomicU64,
    pending_jobs: AtomicUsize,
    /// The first failure; jobs that see it do nothing.
    failure: OnceLock<Error>,
    started: Instant,
}

/// A file's place in a load: opened by its first job and closed by its last, so that few are open at a time.
#[derive(Default)]
struct Slot {
    source: Mutex<Option<Arc<Source>>>,
    pending_jobs: AtomicUsize,
}

impl fmt::Debug for Fill {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, jobs) = (self.checkpoint.path(), self.queue.len());
        formatter.debug_struct("Fill").field("path", &path).field("jobs", &jobs).finish_non_exhaustive()
    }
}

impl Fill {
    /// Gets everything ready but reads nothing.
    ///
    /// # Errors
    ///
    /// [`Fault::Capacity`]; [`Fault::Checksum`] and [`Fault::Io`] if there are no checksums that were asked for.
    pub fn new(
        checkpoint: Checkpoint,
        target: Target,
        options: &LoadOptions,
        cancel: Cancel,
    ) -> Result<Self> {
        let started = Instant::now();
        let (needed_bytes, capacity_bytes) = (checkpoint.buffer_bytes(), target.capacity_bytes());
        if needed_bytes > capacity_bytes {
            return Err(Error::new(checkpoint.path(), Fault::Capacity { needed_bytes, capacity_bytes }));
        }
        let mut checksums = Vec::new();
        if options.verify {
            for file in checkpoint.files() {
                checksums.push(Checksums::read(&file.path, file.bytes())?);
            }
        }
        let sizes: Vec<u64> = checkpoint.files().iter().map(CheckpointFile::bytes).collect();
        let queue = JobQueue::new(&sizes, if options.verify { JOB_BYTES } else { options.job_bytes });
        let mut slots: Vec<Slot> = sizes.iter().map(|_| Slot::default()).collect();
        for job in queue.jobs() {
            if let Some(slot) = slots.get_mut(job.file) {
                *slot.pending_jobs.get_mut() += 1;
            }
        }
        // Direct I/O lands at block-aligned addresses only.
        let direct = if target.is_block_aligned() { options.direct } else { Direct::Never };
        Ok(Self {
            checkpoint,
            target,
            direct,
            cancel,
            pending_jobs: AtomicUsize::new(queue.len()),
            queue,
            slots,
            checksums,
            prepare: None,
            direct_bytes: AtomicU64::new(0),
            buffered_bytes: AtomicU64::new(0),
            failure: OnceLock::new(),
            started,
        })
    }

    /// Has `prepare` called before any part of the target is written to.
    pub fn prepared_by(mut self, prepare: impl Fn(u64, u64) -> Result<()> + Send + Sync + 'static) -> Self {
        self.prepare = Some(Box::new(prepare));
        self
    }

    /// How many jobs there are in all.
    pub const fn jobs(&self) -> usize {
        self.queue.len()
    }

    /// What is being read.
    pub const fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// How many bytes are there already.
    pub fn bytes(&self) -> u64 {
        self.direct_bytes.load(Ordering::Relaxed) + self.buffered_bytes.load(Ordering::Relaxed)
    }

    /// Takes and runs jobs until there are none.
    fn work(&self) {
        while let Some(job) = self.take() {
            self.run(job);
        }
    }

    /// Takes a job; whoever takes it must run it.
    pub fn take(&self) -> Option<&Job> {
        self.queue.take()
    }

    /// Runs a job; `true` if none is pending any more, so that the load can be concluded.
    pub fn run(&self, job: &Job) -> bool {
        if self.failure.get().is_none()
            && let Err(error) = self.try_run(job)
        {
            // The first failure is reported; what follows it is mostly its consequence.
            let _ = self.failure.set(error);
        }
        // AcqRel: whoever sees that it was the last one sees what all the others wrote.
        self.pending_jobs.fetch_sub(1, Ordering::AcqRel) == 1
    }

    /// What came of it, once no job is pending.
    ///
    /// # Errors
    ///
    /// As [`load`].
    pub fn conclude(&self, threads: usize) -> Result<LoadReport> {
        if let Some(error) = self.failure.get() {
            return Err(error.clone());
        }
        check_all_unchanged(&self.checkpoint)?;
        Ok(LoadReport {
            bytes: self.checkpoint.total_bytes(),
            elapsed: self.started.elapsed(),
            threads,
            direct_bytes: self.direct_bytes.load(Ordering::Relaxed),
            buffered_bytes: self.buffered_bytes.load(Ordering::Relaxed),
        })
    }

    fn try_run(&self, job: &Job) -> Result<()> {
        if self.cancel.is_cancelled() {
            return Err(Error::new(self.checkpoint.path(), Fault::Cancelled));
        }
        // The queue was made from these files, one slot each.
        let (Some(file), Some(slot)) = (self.checkpoint.files().get(job.file), self.slots.get(job.file))
        else {
            return Ok(());
        };
        let source = slot.open(file, self.direct != Direct::Never)?;
        self.read(file, &source, job).map_err(|error| locate(file, error))?;
        slot.finish_job();
        Ok(())
    }

    fn read(&self, file: &CheckpointFile, source: &Source, job: &Job) -> Result<()> {
        let bytes = job.range.end - job.range.start;
        let padded_bytes = round_up_to_block(bytes).unwrap_or(bytes);
        let offset = file.buffer_offset + job.range.start;
        if let Some(prepare) = &self.prepare {
            prepare(offset, padded_bytes)?;
        }
        let address = self.part(file, offset, padded_bytes)?;
        // SAFETY: `part` checked that whole blocks of the range lie in the target; a job begins at a block of the file,
        // the file at one of the target, and direct reads are off where the target does not. Jobs never overlap: all
        // but a file's last one end at a block, and the last one's padding belongs to its file.
        let read = unsafe { source.read_range(&job.range, address, self.direct) }?;
        self.direct_bytes.fetch_add(read.direct, Ordering::Relaxed);
        self.buffered_bytes.fetch_add(read.buffered, Ordering::Relaxed);
        let length = to_usize(bytes);
        let padding = to_usize(padded_bytes - bytes);
        // SAFETY: the padding ends where the checked part ends, and belongs to this job as said above.
        unsafe { address.wrapping_add(length).write_bytes(0, padding) };
        if let Some(checksums) = self.checksums.get(job.file) {
            // SAFETY: the part was written to just now, in full, and by no other job.
            let content = unsafe { std::slice::from_raw_parts(address, length) };
            checksums.check(&file.path, &job.range, content)?;
        }
        Ok(())
    }

    /// The target's address for `bytes` bytes at `offset`, which belong to `file`.
    fn part(&self, file: &CheckpointFile, offset: u64, bytes: u64) -> Result<*mut u8> {
        // The capacity was checked at the start; this keeps a mistake above from becoming a stray write.
        self.target.part(offset, bytes).ok_or_else(|| {
            let capacity_bytes = self.target.capacity_bytes();
            Error::new(&file.path, Fault::Capacity { needed_bytes: offset + bytes, capacity_bytes })
        })
    }
}

/// The same failure, known to concern the tensor at its offset in `file`.
fn locate(file: &CheckpointFile, error: Error) -> Error {
    match error.offset().and_then(|offset| file.tensor_at(offset)) {
        Some(tensor) => error.for_tensor(tensor.name.clone()),
        None => error,
    }
}

impl Slot {
    fn open(&self, file: &CheckpointFile, try_direct: bool) -> Result<Arc<Source>> {
        // A poisoned lock holds `None` or a complete source: both are fine.
        let mut source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(source) = &*source {
            return Ok(Arc::clone(source));
        }
        let opened = Arc::new(Source::open(&file.path, &file.identity, try_direct)?);
        *source = Some(Arc::clone(&opened));
        Ok(opened)
    }

    fn finish_job(&self) {
        if self.pending_jobs.fetch_sub(1, Ordering::AcqRel) == 1 {
            *self.source.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }
}

#[cfg(test)]
#[cfg(not(miri))]
mod tests {
    use std::fs::{self, File};
    use std::io::Write;
    use std::num::NonZeroUsize;
    use std::path::Path;

    use super::{Direct, LoadOptions, LoadReport, load};
    use crate::{BLOCK_BYTES, Cancel, Checkpoint, Fault, Result, Target};
    use proptest::prelude::*;

    /// Writes a file of one tensor `name` and returns all of its bytes.
    fn write(path: &Path, name: &str, data: &[u8]) -> Vec<u8> {
        let json =
            format!(r#"{{"{name}":{{"dtype":"U8","shape":[{0}],"data_offsets":[0,{0}]}}}}"#, data.len());
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(json.as_bytes());
        bytes.extend_from_slice(data);
        File::create(path).unwrap().write_all(&bytes).unwrap();
        bytes
    }

    fn noise(bytes: usize) -> Vec<u8> {
        (0..bytes).map(|place| u8::try_from(place * 7919 % 251).unwrap()).collect()
    }

    /// Loads into memory that starts `shift` bytes after a block boundary.
    fn read(checkpoint: &Checkpoint, shift: usize, options: &LoadOptions) -> Result<(Vec<u8>, LoadReport)> {
        let capacity = usize::try_from(checkpoint.buffer_bytes()).unwrap();
        let block = usize::try_from(BLOCK_BYTES).unwrap();
        let mut memory = vec![0xAA_u8; capacity + 2 * block];
        let start = memory.as_ptr().align_offset(block) + shift;
        let address = memory[start..].as_mut_ptr();
        // SAFETY: the memory is longer than the capacity plus alignment and shift, and lives until the load is over.
        let target = unsafe { Target::new(address, capacity as u64) };
        let report = load(checkpoint, &target, options, &Cancel::default())?;
        assert!(memory[start + capacity..].iter().all(|byte| *byte == 0xAA), "written past the target");
        Ok((memory[start..start + capacity].to_vec(), report))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn files_arrive_verbatim_at_their_offsets(
            sizes in prop::collection::vec(0_usize..40_000, 1..4),
            threads in 1_usize..5,
            blocks in 1_u64..4,
            direct in prop::sample::select(vec![Direct::WhenCold, Direct::Always, Direct::Never]),
            shift in prop::sample::select(vec![0_usize, 1, 512]),
        ) {
            let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
            let contents: Vec<_> = sizes.iter().enumerate().map(|(number, size)| {
                write(&directory.path().join(format!("{number}.safetensors")), &format!("t{number}"), &noise(*size))
            }).collect();
            let checkpoint = Checkpoint::inspect(directory.path()).unwrap();
            let options = LoadOptions { threads: NonZeroUsize::new(threads), direct, job_bytes: blocks * BLOCK_BYTES, verify: false };
            let (memory, report) = read(&checkpoint, shift, &options).unwrap();
            let mut expected = Vec::new();
            for (file, content) in checkpoint.files().iter().zip(&contents) {
                prop_assert_eq!(file.buffer_offset, expected.len() as u64);
                expected.extend_from_slice(content);
                expected.resize(expected.len().next_multiple_of(4096), 0);
            }
            prop_assert_eq!(memory, expected);
            prop_assert_eq!(report.bytes, contents.iter().map(|content| content.len() as u64).sum::<u64>());
            prop_assert_eq!(report.direct_bytes + report.buffered_bytes, report.bytes);
            if direct == Direct::Never || shift > 0 {
                prop_assert_eq!(report.direct_bytes, 0);
            }
        }
    }

    #[test]
    fn a_file_that_changed_is_an_error() {
        type Change = fn(&Path);
        let changes: [(&str, Change); 4] = [
            ("replaced", |path| {
                let other = path.with_extension("other");
                write(&other, "a", &noise(100_000));
                fs::rename(other, path).unwrap();
            }),
            ("modified", |path| File::options().append(true).open(path).unwrap().write_all(b"x").unwrap()),
            ("modified", |path| File::options().write(true).open(path).unwrap().set_len(50_000).unwrap()),
            ("open", |path| fs::remove_file(path).unwrap()),
        ];
        for (expected, change) in changes {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("model.safetensors");
            write(&path, "a", &noise(100_000));
            let checkpoint = Checkpoint::inspect(&path).unwrap();
            change(&path);
            let error = read(&checkpoint, 0, &LoadOptions::default()).unwrap_err();
            assert_eq!(error.path(), path);
            assert!(error.to_string().contains(expected), "{error}");
        }
    }

    #[test]
    fn a_small_target_is_refused_before_anything_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("model.safetensors");
        write(&path, "a", &noise(10_000));
        let checkpoint = Checkpoint::inspect(&path).unwrap();
        let needed = checkpoint.buffer_bytes();
        let mut byte = 0xAA;
        // SAFETY: the capacity is less than needed, so nothing is written.
        let target = unsafe { Target::new(&raw mut byte, 1) };
        let error = load(&checkpoint, &target, &LoadOptions::default(), &Cancel::default()).unwrap_err();
        assert!(
            matches!(error.fault(), Fault::Capacity { needed_bytes, capacity_bytes: 1 } if *needed_bytes == needed)
        );
        assert_eq!(byte, 0xAA);
    }

    #[test]
    fn a_cancelled_load_stops() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("model.safetensors");
        write(&path, "a", &noise(10_000));
        let checkpoint = Checkpoint::inspect(&path).unwrap();
        let mut memory = vec![0_u8; usize::try_from(checkpoint.buffer_bytes()).unwrap()];
        // SAFETY: the memory has the capacity stated and outlives the load.
        let target = unsafe { Target::new(memory.as_mut_ptr(), memory.len() as u64) };
        let cancel = Cancel::default();
        cancel.cancel();
        let error = load(&checkpoint, &target, &LoadOptions::default(), &cancel).unwrap_err();
        assert!(matches!(error.fault(), Fault::Cancelled));
    }
}
