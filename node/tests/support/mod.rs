//! What the storage tests share: directories, copies of a running instance, and damage.

#![allow(clippy::unwrap_used, dead_code, unreachable_pub)]

use conclave_crypto::digest::{Digest, digest};
use std::path::{Path, PathBuf};

pub fn cluster() -> Digest {
    digest("cluster", &[b"storage tests"])
}

/// What a disk holds the moment a process is killed: everything it has handed to the system.
pub fn copy_directory(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_directory(&entry.path(), &target);
        } else {
            // A running instance deletes files that it needs no more.
            match std::fs::copy(entry.path(), target) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => panic!("{error}"),
                Ok(_) | Err(_) => {}
            }
        }
    }
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
