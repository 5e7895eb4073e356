//! A disk that is full.

use super::{Order, Report, Siege};
use crate::cluster::Cluster;
use crate::wait;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// Whose disk is small.
const VICTIM: usize = 2;
/// The disk's size in mount's notation: journal, ledger and their logs fit in many times.
const SIZE: &str = "size=1g";
/// What fills the rest of it is written in pieces of so many bytes.
const PIECE: usize = 1 << 20;
/// The exit code of a node whose disk failed.
const EXIT_IO: i32 = 6;

/// A file system in memory that is mounted until this is dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts one.
    ///
    /// # Errors
    /// What `mount` says: most often that this user may not.
    fn mount(at: &Path) -> Result<Self, String> {
        let mount =
            Command::new("mount").args(["-t", "tmpfs", "-o", SIZE, "tmpfs"]).arg(at).output();
        let mount = mount.map_err(|error| format!("mount: {error}"))?;
        if mount.status.success() {
            return Ok(Self(at.to_path_buf()));
        }
        Err(String::from_utf8_lossy(&mount.stderr).trim().to_owned())
    }
}

/// Writes into a file of this directory until nothing fits any more.
fn fill(directory: &Path) -> PathBuf {
    let ballast = directory.join("ballast");
    let mut file = fs::File::create(&ballast).expect("room for one more file");
    let piece = vec![7; PIECE];
    while file.write_all(&piece).is_ok() {}
    ballast
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily, since its files may still be open; if it fails, the directory's removal tells.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Gives one replica a small disk, fills it under load, and makes room again: the replica stops with
/// exit code 6, the others go on, and it comes back and catches up.
///
/// # Errors
/// Why there is no small disk to be had here, and nothing was tested.
///
/// # Panics
/// With what does not hold.
pub fn disk_full(order: &Order) -> Result<Report, String> {
    let mut cluster = Cluster::generate(&order.setup(0));
    let data = cluster.nodes[VICTIM].data();
    let copy = cluster.scratch("copy");
    cluster.nodes[VICTIM].save(&copy);
    cluster.nodes[VICTIM].wipe();
    let disk = SmallDisk::mount(&data)?;
    cluster.nodes[VICTIM].restore_onto(&copy);
    cluster.start_all();
    cluster.wait_ready();
    let mut siege = Siege::begin("disk-full", order, cluster);
    siege.keep(disk);
    let start = Instant::now();
    let mut rounds = 0;
    while rounds == 0 || start.elapsed() < order.time {
        siege.disturb(|siege| {
            let ballast = fill(&data);
            let ended = wait::until("the replica with the full disk to stop", || {
                siege.cluster.nodes[VICTIM].ended().ok_or_else(|| "it runs".to_owned())
            });
            assert_eq!(ended.code(), Some(EXIT_IO), "a full disk ended it with {ended}");
            siege.wait_for_more(super::WRITES_AFTER);
            // It has ended; this lets go of the process.
            siege.cluster.nodes[VICTIM].kill();
            fs::remove_file(ballast).expect("our own file");
            siege.cluster.nodes[VICTIM].start();
            siege.cluster.wait_ready();
        });
        rounds += 1;
        siege.wait_for_more(super::WRITES_AFTER);
    }
    siege.note(format!(
        "disk full     {rounds} times; exit code {EXIT_IO} each time, and back afterwards"
    ));
    Ok(siege.end())
}
