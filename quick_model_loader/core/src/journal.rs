//! What lies where in an arena, in a file in memory that can outlive its store: another process, which has both files,
//! goes on with the entries.
//!
//! ```text
//! 0        8                 start                          end
//! | start  | holes           | record \n record \n record \n |
//! ```
//!
//! Records are appended; the first one describes the arena. When most of them say nothing any more those that do are
//! written once again at the end, and only then `start` moves there. So whenever the writer dies the file is whole: at
//! most its last record is not, and that is left out. An entry is noted when all its bytes are there, and its end before
//! its chunks may be written to again.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::arena::create_memfd;
use crate::width::to_usize;
use crate::{Checkpoint, Error, PageKind, Result};

const NAME: &str = "memfd:quick_model_loader_journal";
const HEADER_BYTES: u64 = 8;
/// Where records begin in a journal that nobody may go by.
const VOID: u64 = u64::MAX;
/// Below that nothing is gained by writing it anew.
const MIN_COMPACT_BYTES: u64 = 1 << 20;

#[derive(Debug, Serialize, Deserialize)]
enum Record {
    Arena {
        chunk_bytes: u64,
        kind: PageKind,
    },
    /// It takes the place of an earlier one of its key.
    Ready(Place),
    Gone {
        key: String,
    },
}

/// Where an entry lies, and what it holds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Place {
    pub key: String,
    pub verified: bool,
    pub chunks: Vec<u32>,
    pub checkpoint: Checkpoint,
}

/// What a journal tells of an arena.
#[derive(Debug)]
pub struct Estate {
    pub chunk_bytes: u64,
    pub kind: PageKind,
    /// In the order in which they became ready.
    pub places: Vec<Place>,
}

/// The writer's side.
#[derive(Debug)]
pub struct Journal {
    file: File,
    end: u64,
    /// How long the records were when they were last written anew.
    compact_bytes: u64,
    /// The first record.
    arena: Vec<u8>,
}

impl Journal {
    /// A journal of an arena without entries.
    ///
    /// # Errors
    ///
    /// [`Fault::Io`](crate::Fault::Io).
    pub fn create(chunk_bytes: u64, kind: PageKind) -> Result<Self> {
        let fail = |source| Error::io(Path::new(NAME), "create", source);
        let file = File::from(create_memfd(c"quick_model_loader_journal", false).map_err(fail)?);
        Self::begin(file, HEADER_BYTES, chunk_bytes, kind, &[]).map_err(fail)
    }

    /// Goes on with a journal that another process wrote, with these of its entries.
    ///
    /// # Errors
    ///
    /// [`Fault::Io`](crate::Fault::Io).
    pub fn resume(fd: OwnedFd, estate: &Estate, places: &[Place]) -> Result<Self> {
        let fail = |source| Error::io(Path::new(NAME), "write", source);
        let file = File::from(fd);
        let end = file.metadata().map_err(fail)?.len();
        Self::begin(file, end, estate.chunk_bytes, estate.kind, places).map_err(fail)
    }

    fn begin(file: File, end: u64, chunk_bytes: u64, kind: PageKind, places: &[Place]) -> io::Result<Self> {
        let arena = line(&Record::Arena { chunk_bytes, kind })?;
        let mut journal = Self { file, end, compact_bytes: 0, arena };
        journal.rewrite(places)?;
        Ok(journal)
    }

    /// All bytes of an entry are there.
    pub fn note_ready(&mut self, place: Place) {
        self.append(&Record::Ready(place));
    }

    /// An entry can be found no longer.
    pub fn note_gone(&mut self, key: &str) {
        self.append(&Record::Gone { key: key.to_owned() });
    }

    /// Whether most of it says nothing any more; then `compact` it.
    #[must_use]
    pub const fn is_wasteful(&self) -> bool {
        self.compact_bytes != VOID && self.end > MIN_COMPACT_BYTES + 2 * self.compact_bytes
    }

    /// Writes what there is once again, and gives back the memory of all that was written before.
    pub fn compact(&mut self, places: &[Place]) {
        if self.rewrite(places).is_err() {
            self.give_up();
        }
    }

    /// What another process needs to go on.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn append(&mut self, record: &Record) {
        if self.compact_bytes == VOID {
            return;
        }
        let written = line(record).and_then(|line| {
            self.file.write_all_at(&line, self.end)?;
            Ok(line.len() as u64)
        });
        match written {
            Ok(bytes) => self.end += bytes,
            Err(_) => self.give_up(),
        }
    }

    fn rewrite(&mut self, places: &[Place]) -> io::Result<()> {
        let mut records = self.arena.clone();
        for place in places {
            records.extend(line(&Record::Ready(place.clone()))?);
        }
        let start = self.end;
        self.file.write_all_at(&records, start)?;
        self.file.write_all_at(&start.to_le_bytes(), 0)?;
        self.end = start + records.len() as u64;
        self.compact_bytes = records.len() as u64;
        punch_hole(&self.file, HEADER_BYTES, start);
        Ok(())
    }

    /// There is no memory for another record: whoever went by those before could find what is not there any more.
    fn give_up(&mut self) {
        // The header's page is there, so this takes none.
        let _ = self.file.write_all_at(&VOID.to_le_bytes(), 0);
        self.compact_bytes = VOID;
    }
}

/// What a journal says that another process has left.
///
/// # Errors
///
/// [`Fault::Io`](crate::Fault::Io), also where it is no journal.
pub fn read(fd: BorrowedFd<'_>) -> Result<Estate> {
    let fail = |source| Error::io(Path::new(NAME), "read", source);
    let file = File::from(fd.try_clone_to_owned().map_err(fail)?);
    estate(&records(&file).map_err(fail)?).map_err(fail)
}

fn records(file: &File) -> io::Result<Vec<u8>> {
    let mut start = [0; 8];
    file.read_exact_at(&mut start, 0)?;
    let start = u64::from_le_bytes(start);
    let bytes = file.metadata()?.len().checked_sub(start).ok_or(io::ErrorKind::InvalidData)?;
    let mut records = vec![0; to_usize(bytes)];
    file.read_exact_at(&mut records, start)?;
    Ok(records)
}

fn estate(records: &[u8]) -> io::Result<Estate> {
    let mut found: Option<Estate> = None;
    for line in records.split_inclusive(|byte| *byte == b'\n') {
        if line.last() != Some(&b'\n') {
            break; // the writer died while it wrote this
        }
        match (serde_json::from_slice(line)?, found.as_mut()) {
            (Record::Arena { chunk_bytes, kind }, None) => {
                found = Some(Estate { chunk_bytes, kind, places: Vec::new() });
            }
            (Record::Ready(place), Some(estate)) => {
                estate.places.retain(|other| other.key != place.key);
                estate.places.push(place);
            }
            (Record::Gone { key }, Some(estate)) => estate.places.retain(|other| other.key != key),
            _ => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
    found.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn line(record: &Record) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(record)?;
    line.push(b'\n');
    Ok(line)
}

/// Gives memory back; where that fails it is kept, which harms nobody.
fn punch_hole(file: &File, begin: u64, end: u64) {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    let (Ok(offset), Ok(bytes)) = (i64::try_from(begin), i64::try_from(end.saturating_sub(begin))) else {
        return;
    };
    if bytes > 0 {
        // SAFETY: the descriptor is open; the range holds nothing that is read again.
        unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, bytes) };
    }
}

#[cfg(test)]
#[cfg(not(any(loom, miri)))]
mod tests {
    use std::fs;
    use std::os::unix::fs::{FileExt, MetadataExt};

    use proptest::prelude::*;

    use super::{Journal, MIN_COMPACT_BYTES, Place, read};
    use crate::{CHUNK_BYTES, Checkpoint, PageKind};

    fn checkpoint() -> Checkpoint {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let header = br#"{"w":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#;
        let mut bytes = u64::try_from(header.len()).unwrap().to_le_bytes().to_vec();
        bytes.extend(header);
        bytes.extend([1, 2, 3, 4]);
        fs::write(&path, bytes).unwrap();
        Checkpoint::inspect(&path).unwrap()
    }

    fn place(key: &str, chunk: u32, checkpoint: &Checkpoint) -> Place {
        Place { key: key.to_owned(), verified: false, chunks: vec![chunk], checkpoint: checkpoint.clone() }
    }

    fn told(journal: &Journal) -> Vec<(String, Vec<u32>)> {
        let places = read(journal.fd()).unwrap().places;
        places.into_iter().map(|place| (place.key, place.chunks)).collect()
    }

    proptest! {
        #[test]
        fn whatever_happened_is_told(steps in prop::collection::vec((0_u8..4, any::<bool>(), any::<bool>()), 0..40)) {
            let checkpoint = checkpoint();
            let mut journal = Journal::create(CHUNK_BYTES, PageKind::Small).unwrap();
            let mut there: Vec<(String, Vec<u32>)> = Vec::new();
            for (number, (key, ready, compact)) in steps.into_iter().enumerate() {
                let (key, chunk) = (key.to_string(), u32::try_from(number).unwrap());
                there.retain(|(other, _)| *other != key);
                if ready {
                    journal.note_ready(place(&key, chunk, &checkpoint));
                    there.push((key, vec![chunk]));
                } else {
                    journal.note_gone(&key);
                }
                if compact {
                    let places: Vec<_> =
                        there.iter().map(|(key, chunks)| place(key, chunks[0], &checkpoint)).collect();
                    journal.compact(&places);
                }
                prop_assert_eq!(told(&journal), there.clone());
            }
        }
    }

    #[test]
    fn a_record_that_was_cut_off_is_left_out_wherever_that_was() {
        let checkpoint = checkpoint();
        let mut journal = Journal::create(CHUNK_BYTES, PageKind::Small).unwrap();
        journal.note_ready(place("first", 1, &checkpoint));
        let whole = journal.end;
        journal.note_ready(place("second", 2, &checkpoint));
        for end in whole..journal.end {
            journal.file.set_len(end).unwrap();
            assert_eq!(told(&journal), [("first".to_owned(), vec![1])]);
        }
    }

    #[test]
    fn an_heir_goes_on_with_what_it_could_take() {
        let checkpoint = checkpoint();
        let mut journal = Journal::create(CHUNK_BYTES, PageKind::Small).unwrap();
        journal.note_ready(place("kept", 1, &checkpoint));
        journal.note_ready(place("changed", 2, &checkpoint));
        let fd = journal.fd().try_clone_to_owned().unwrap();
        let estate = read(journal.fd()).unwrap();
        let mut heir = Journal::resume(fd, &estate, &estate.places[..1]).unwrap();
        assert_eq!(told(&heir), [("kept".to_owned(), vec![1])]);
        heir.note_ready(place("new", 2, &checkpoint));
        assert_eq!(told(&journal), [("kept".to_owned(), vec![1]), ("new".to_owned(), vec![2])]);
    }

    #[test]
    fn it_takes_little_memory_however_much_was_written() {
        let checkpoint = checkpoint();
        let mut journal = Journal::create(CHUNK_BYTES, PageKind::Small).unwrap();
        for number in 0..20_000 {
            journal.note_ready(place("same", number, &checkpoint));
            if journal.is_wasteful() {
                journal.compact(&[place("same", number, &checkpoint)]);
            }
        }
        assert!(journal.end > 2 * MIN_COMPACT_BYTES);
        assert!(journal.file.metadata().unwrap().blocks() * 512 < 2 * MIN_COMPACT_BYTES);
        assert_eq!(told(&journal), [("same".to_owned(), vec![19_999])]);
    }

    #[test]
    fn one_that_could_not_be_written_tells_nothing() {
        let mut journal = Journal::create(CHUNK_BYTES, PageKind::Small).unwrap();
        journal.note_ready(place("a", 1, &checkpoint()));
        journal.give_up();
        journal.note_ready(place("b", 2, &checkpoint()));
        assert!(read(journal.fd()).is_err());
        assert!(!journal.is_wasteful());
    }

    #[test]
    fn what_is_no_journal_is_refused() {
        let journal = Journal::create(CHUNK_BYTES, PageKind::Small).unwrap();
        journal.file.write_all_at(b"{\"Gone\":{\"key\":\"a\"}}\n", journal.end).unwrap();
        assert!(read(journal.fd()).is_ok());
        journal.file.write_all_at(b"???\n", journal.end).unwrap();
        assert!(read(journal.fd()).is_err());
        journal.file.set_len(4).unwrap();
        assert!(read(journal.fd()).is_err());
    }
}
