//! What the storage tests share: directories, copies of a running instance, and damage.

#![allow(clippy::unwrap_used, dead_code, unreachable_pub)]

use conclave_crypto::digest::{Digest, digest};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub fn cluster() -> Digest {
    digest("cluster", &[b"storage tests"])
}

/// What a disk holds the moment a process is killed: everything it has handed to the system. An
/// instance that runs may write and delete files meanwhile, and what was copied then is of no one
/// moment: it is copied anew.
pub fn copy_directory(from: &Path, to: &Path) {
    let mut before = listing(from);
    // Far more often than a background thread has anything to do.
    for _ in 0..1000 {
        copy_once(from, to);
        let after = listing(from);
        if before == after {
            return;
        }
        before = after;
        std::fs::remove_dir_all(to).unwrap();
    }
    panic!("{} never stands still", from.display());
}

fn copy_once(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            copy_once(&entry.path(), &target);
        } else {
            // It may be gone already, which the listing shows.
            match std::fs::copy(entry.path(), target) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => panic!("{error}"),
                Ok(_) | Err(_) => {}
            }
        }
    }
}

/// Every file below a directory with its length.
fn listing(directory: &Path) -> BTreeMap<PathBuf, u64> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(listing(&entry.path()));
        } else {
            found.insert(entry.path(), entry.metadata().map_or(0, |data| data.len()));
        }
    }
    found
}

/// Files with one of these endings, in name order; the last of the logs is the live one.
pub fn files(directory: &Path, endings: &[&str]) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            endings.iter().any(|ending| name.contains(ending))
        })
        .collect();
    found.sort();
    found
}

pub fn live_log(directory: &Path) -> PathBuf {
    files(directory, &[".log"]).pop().unwrap()
}

pub fn flip(path: &Path, offset: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[offset] ^= 0x10;
    std::fs::write(path, bytes).unwrap();
}
