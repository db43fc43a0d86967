//! Every file of the corpus, as it is and damaged in many ways: a specific error or a right answer, never a panic.

#![expect(clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, reason = "a test may fail")]

use std::fs;
use std::path::{Path, PathBuf};

use quick_model_loader_core::{Cancel, Checkpoint, Fault, Header, LoadOptions, Target, load};
use safetensors::SafeTensors;

/// How often each file is damaged.
const ROUNDS: u64 = 400;

fn corpus() -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_stem().unwrap().to_str().unwrap().to_owned(), fs::read(path).unwrap()))
        .collect();
    files.sort();
    assert!(files.len() > 70, "the corpus is not complete");
    files
}

/// Numbers that look random and are the same every time (the generator `SplitMix64`).
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next()).unwrap() % limit.max(1)
    }
}

/// One of the ways in which files get damaged.
fn damage(content: &[u8], others: &[(String, Vec<u8>)], noise: &mut Noise) -> Vec<u8> {
    let mut damaged = content.to_vec();
    for _ in 0..=noise.below(3) {
        let place = noise.below(damaged.len());
        match noise.below(7) {
            0 => damaged.truncate(place),
            1 => damaged.extend_from_slice(&content[place.min(content.len())..]),
            2 => {
                let other = &others[noise.below(others.len())].1;
                damaged.truncate(place);
                damaged.extend_from_slice(&other[place.min(other.len())..]);
            }
            3 if !damaged.is_empty() => {
                damaged.remove(place);
            }
            4 => damaged.insert(place, b"0123456789{}[],:\"-\\"[noise.below(19)]),
            _ if !damaged.is_empty() => damaged[place] ^= 1 << noise.below(8),
            _ => {}
        }
    }
    damaged
}

/// What we say of a header, compared with the reference implementation, which we may only exceed in strictness.
fn check(name: &str, content: &[u8]) -> bool {
    let Some((length, rest)) = content.split_first_chunk::<8>() else { return false };
    let length = u64::from_le_bytes(*length);
    let Some(json) = usize::try_from(length).ok().and_then(|length| rest.get(..length)) else { return false };
    let reference = SafeTensors::deserialize(content);
    match Header::parse(Path::new(name), json, content.len() as u64) {
        Ok(header) => {
            let reference = reference.unwrap_or_else(|error| panic!("{name}: only we accept: {error}"));
            for tensor in &header.tensors {
                let data = reference.tensor(&tensor.name).unwrap();
                let range =
                    usize::try_from(tensor.range.start).unwrap()..usize::try_from(tensor.range.end).unwrap();
                assert_eq!(data.data(), &content[range], "{name}");
            }
            true
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            false
        }
    }
}

#[test]
fn every_file_is_what_its_name_says() {
    for (name, content) in corpus() {
        assert_eq!(check(&name, &content), name.starts_with("ok-"), "{name}");
    }
}

#[test]
fn damaged_files_never_panic_and_never_pass_for_more_than_they_are() {
    let files = corpus();
    let mut noise = Noise(1);
    let mut accepted = 0;
    for (name, content) in &files {
        for _ in 0..ROUNDS {
            accepted += u32::from(check(name, &damage(content, &files, &mut noise)));
        }
    }
    assert!(accepted > 100, "nearly all damage was fatal: it tries too little");
}

#[test]
fn files_on_disk_are_refused_with_their_path_and_loaded_with_their_bytes() {
    let directory = tempfile::tempdir().unwrap();
    for (name, content) in corpus() {
        let path: PathBuf = directory.path().join(format!("{name}.safetensors"));
        fs::write(&path, &content).unwrap();
        match Checkpoint::inspect(&path) {
            Ok(checkpoint) => {
                assert!(name.starts_with("ok-"), "{name}");
                let mut memory = vec![0; usize::try_from(checkpoint.buffer_bytes()).unwrap()];
                // SAFETY: the memory has the capacity stated and outlives the load.
                let target = unsafe { Target::new(memory.as_mut_ptr(), memory.len() as u64) };
                load(&checkpoint, &target, &LoadOptions::default(), &Cancel::default()).unwrap();
                assert_eq!(memory[..content.len()], content);
            }
            Err(error) => {
                assert!(!name.starts_with("ok-"), "{name}: {error}");
                assert_eq!(error.path(), path);
                assert!(
                    matches!(error.fault(), Fault::Header(_) | Fault::Truncated { .. }),
                    "{name}: {error}"
                );
            }
        }
    }
}
