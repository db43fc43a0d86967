//! Reading every byte of a checkpoint without keeping any: checksums are made and compared.

use std::path::PathBuf;
use std::slice;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;

use xxhash_rust::xxh3::xxh3_64;

use crate::source::Source;
use crate::width::to_usize;
use crate::{
    BLOCK_BYTES, Cancel, Checkpoint, CheckpointFile, Checksums, Direct, Error, Fault, JOB_BYTES, Job,
    JobQueue, LoadOptions, Result,
};

/// Computes the checksums of every file and writes them beside the files; returns where. `progress` counts bytes.
///
/// # Errors
///
/// As [`load`](crate::load), without [`Fault::Capacity`].
pub fn write_checksums(
    checkpoint: &Checkpoint,
    options: &LoadOptions,
    cancel: &Cancel,
    progress: &AtomicU64,
) -> Result<Vec<PathBuf>> {
    let found = Mutex::new(Vec::new());
    scan(checkpoint, options, cancel, progress, |job, content| {
        let sum = xxh3_64(content);
        found.lock().unwrap_or_else(PoisonError::into_inner).push((job.file, job.range.start, sum));
        Ok(())
    })?;
    let mut found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    found.sort_unstable();
    let files = checkpoint.files().iter().enumerate();
    files
        .map(|(number, file)| {
            let chunks: Vec<u64> =
                found.iter().filter(|(of, ..)| *of == number).map(|(.., sum)| *sum).collect();
            Checksums::new(file.bytes(), &chunks).write(&file.path)?;
            Ok(Checksums::path_of(&file.path))
        })
        .collect()
}

/// Compares every file with the checksums beside it. `progress` counts bytes.
///
/// # Errors
///
/// [`Fault::Checksum`] for the first damage that is found, with the tensor; else as [`write_checksums`].
pub fn verify(
    checkpoint: &Checkpoint,
    options: &LoadOptions,
    cancel: &Cancel,
    progress: &AtomicU64,
) -> Result<()> {
    let sums: Vec<Checksums> = checkpoint
        .files()
        .iter()
        .map(|file| Checksums::read(&file.path, file.bytes()))
        .collect::<Result<_>>()?;
    scan(checkpoint, options, cancel, progress, |job, content| {
        let (Some(file), Some(sums)) = (checkpoint.files().get(job.file), sums.get(job.file)) else {
            return Ok(());
        };
        let checked = sums.check(&file.path, &job.range, content);
        checked.map_err(|error| error.for_tensor(file.tensor_at(job.range.start).map(|t| t.name.clone())))
    })
}

/// Calls `visit` with every job's content, on several threads.
fn scan(
    checkpoint: &Checkpoint,
    options: &LoadOptions,
    cancel: &Cancel,
    progress: &AtomicU64,
    visit: impl Fn(&Job, &[u8]) -> Result<()> + Sync,
) -> Result<()> {
    let sizes: Vec<u64> = checkpoint.files().iter().map(CheckpointFile::bytes).collect();
    let queue = JobQueue::new(&sizes, JOB_BYTES);
    let failure = OnceLock::new();
    let work = || {
        let mut reader = Reader::default();
        while failure.get().is_none() {
            let Some(job) = queue.take() else { return };
            let cancelled = || Error::new(checkpoint.path(), Fault::Cancelled);
            let content = if cancel.is_cancelled() {
                Err(cancelled())
            } else {
                reader.read(checkpoint, job, options.direct)
            };
            match content.and_then(|content| visit(job, content)) {
                Ok(()) => {
                    progress.fetch_add(job.range.end - job.range.start, Ordering::Relaxed);
                }
                // The first failure is reported.
                Err(error) => drop(failure.set(error)),
            }
        }
    };
    thread::scope(|scope| {
        for _ in 1..options.thread_count().min(queue.len()) {
            if thread::Builder::new().spawn_scoped(scope, work).is_err() {
                // The threads that could be started do the work.
                break;
            }
        }
        work();
    });
    if let Some(error) = failure.into_inner() {
        return Err(error);
    }
    crate::load::check_all_unchanged(checkpoint)
}

/// A thread's memory for one job, and the file that it read last.
struct Reader {
    memory: Vec<u8>,
    source: Option<(usize, Source)>,
}

impl Default for Reader {
    fn default() -> Self {
        // Room to begin at a block, for direct reads.
        let memory = vec![0; to_usize(JOB_BYTES + BLOCK_BYTES)];
        Self { memory, source: None }
    }
}

impl Reader {
    fn read(&mut self, checkpoint: &Checkpoint, job: &Job, direct: Direct) -> Result<&[u8]> {
        let Some(file) = checkpoint.files().get(job.file) else { return Ok(&[]) };
        if self.source.as_ref().is_none_or(|(number, _)| *number != job.file) {
            let source = Source::open(&file.path, &file.identity, direct != Direct::Never)?;
            self.source = Some((job.file, source));
        }
        let Some((_, source)) = &self.source else { return Ok(&[]) };
        let block = to_usize(BLOCK_BYTES);
        let start = self.memory.as_ptr().align_offset(block);
        let address = self.memory.as_mut_ptr().wrapping_add(start);
        // SAFETY: the memory has room for a job, which is whole blocks, behind the first block boundary; it is borrowed
        // exclusively, and jobs begin at blocks.
        unsafe { source.read_range(&job.range, address, direct) }.map_err(|error| {
            let tensor = error.offset().and_then(|offset| file.tensor_at(offset));
            let name = tensor.map(|tensor| tensor.name.clone());
            error.for_tensor(name)
        })?;
        let bytes = to_usize(job.range.end - job.range.start);
        // SAFETY: so many bytes were just written there.
        Ok(unsafe { slice::from_raw_parts(address, bytes) })
    }
}

#[cfg(test)]
#[cfg(not(miri))]
mod tests {
    use super::{verify, write_checksums};
    use crate::{Cancel, Checkpoint, ChecksumFault, Fault, JOB_BYTES, LoadOptions};
    use std::fs;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn damage_is_found_where_it_is() {
        let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = directory.path().join("model.safetensors");
        let data = usize::try_from(2 * JOB_BYTES).unwrap();
        let json = format!(r#"{{"a":{{"dtype":"U8","shape":[{data}],"data_offsets":[0,{data}]}}}}"#);
        let mut content = (json.len() as u64).to_le_bytes().to_vec();
        content.extend_from_slice(json.as_bytes());
        content.resize(content.len() + data, 7);
        fs::write(&path, &content).unwrap();
        let checkpoint = Checkpoint::inspect(directory.path()).unwrap();
        let (options, cancel, progress) = (LoadOptions::default(), Cancel::default(), AtomicU64::new(0));
        let error = verify(&checkpoint, &options, &cancel, &progress).unwrap_err();
        assert!(matches!(error.fault(), Fault::Checksum(ChecksumFault::Absent)));
        let written = write_checksums(&checkpoint, &options, &cancel, &progress).unwrap();
        assert_eq!(written, [directory.path().join("model.safetensors.xxh3")]);
        assert_eq!(progress.load(Ordering::Relaxed), checkpoint.total_bytes());
        verify(&checkpoint, &options, &cancel, &progress).unwrap();
        let place = usize::try_from(JOB_BYTES).unwrap() + 5;
        content[place] ^= 1;
        fs::write(&path, &content).unwrap();
        let checkpoint = Checkpoint::inspect(directory.path()).unwrap();
        let error = verify(&checkpoint, &options, &cancel, &progress).unwrap_err();
        assert_eq!((error.offset(), error.tensor()), (Some(JOB_BYTES), Some("a")), "{error}");
        cancel.cancel();
        let error = verify(&checkpoint, &options, &cancel, &progress).unwrap_err();
        assert!(matches!(error.fault(), Fault::Cancelled));
    }
}
