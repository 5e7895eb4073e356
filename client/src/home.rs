//! The sessions of a client's home: which process has which, and which of a dead process to close.
//!
//! A process is a session. A home has numbered slots, each a small file that the process using it
//! keeps locked; the system releases the lock when the process ends, however it ends. The file names
//! the session of the slot's last process, and the next one to take the slot closes that session
//! when it opens its own: then a request of the dead process is in the ledger or never will be.
//!
//! | field     | content                                                                        |
//! |-----------|--------------------------------------------------------------------------------|
//! | `cluster` | cluster id; a file of another cluster names no session of this one             |
//! | `client`  | public key; the same                                                           |
//! | `session` | the session's id                                                               |
//!
//! The file is a hint, not a promise. When it is missing or torn, a session stays open until the
//! cluster closes it as the one idle longest.

use conclave_consensus::types::{ClientId, SessionId};
use conclave_crypto::digest::Digest;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};

use crate::error::ClientError;

/// Processes that may use one home at once: a client may have as many sessions open.
pub const SLOTS_MAX: usize = 32;

/// A slot file is far shorter; whatever is behind this is not read. Bytes.
const FILE_BYTES_MAX: u64 = 4096;

/// What a slot file says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    cluster: Digest,
    client: ClientId,
    session: SessionId,
}

/// What is known of earlier sessions when a process starts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Earlier {
    /// The session of the slot's last process, which is gone.
    pub close: Option<SessionId>,
    /// The newest session that any slot names: this client has opened at least so many.
    pub opened: u64,
}

/// A slot that this process holds until it is dropped.
#[derive(Debug)]
pub struct Slot {
    path: PathBuf,
    file: File,
    cluster: Digest,
    client: ClientId,
}

impl Slot {
    /// Takes the first free slot. `base` is the file of slot 0; the others are called `base.1` and so on.
    ///
    /// # Errors
    /// When the files cannot be written, or all slots are taken.
    pub fn take(
        base: &Path,
        cluster: Digest,
        client: ClientId,
    ) -> Result<(Self, Earlier), ClientError> {
        let mut taken = None;
        let mut earlier = Earlier::default();
        for number in 0..SLOTS_MAX {
            let path = slot_path(base, number);
            if taken.is_some() && !path.exists() {
                break;
            }
            let failed = |source| ClientError::Home { path: path.clone(), source };
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false);
            let mut file = options.open(&path).map_err(failed)?;
            let record = read_record(&mut file).map_err(failed)?;
            let session = record
                .filter(|record| record.cluster == cluster && record.client == client)
                .map(|record| record.session);
            earlier.opened = earlier.opened.max(session.map_or(0, |session| session.0));
            if taken.is_none() && lock(&file).map_err(failed)? {
                earlier.close = session;
                taken = Some(Self { path, file, cluster, client });
            }
        }
        taken.map(|slot| (slot, earlier)).ok_or(ClientError::HomeBusy(SLOTS_MAX))
    }

    /// Writes which session this process has.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn record(&mut self, session: SessionId) -> Result<(), ClientError> {
        let record = Record { cluster: self.cluster, client: self.client, session };
        let text = serde_json::to_vec(&record).expect("three plain fields");
        // In place: a new file under this name would not have the lock.
        let mut write = || {
            self.file.rewind()?;
            self.file.write_all(&text)?;
            self.file.set_len(text.len() as u64)
        };
        write().map_err(|source| ClientError::Home { path: self.path.clone(), source })
    }
}

fn slot_path(base: &Path, number: usize) -> PathBuf {
    if number == 0 {
        return base.to_path_buf();
    }
    let mut path = base.as_os_str().to_owned();
    path.push(format!(".{number}"));
    PathBuf::from(path)
}

fn lock(file: &File) -> io::Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// What the file says; nothing when it is empty, torn or another program's.
fn read_record(file: &mut File) -> io::Result<Option<Record>> {
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(serde_json::from_slice(&bytes).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use conclave_crypto::keys::SecretKey;

    struct Home {
        directory: tempfile::TempDir,
        client: ClientId,
    }

    impl Home {
        fn new() -> Self {
            let client = SecretKey::from_seed([1; 32]).public();
            Self { directory: tempfile::tempdir().unwrap(), client }
        }

        fn base(&self) -> PathBuf {
            self.directory.path().join("session.json")
        }

        fn take(&self) -> Result<(Slot, Earlier), ClientError> {
            Slot::take(&self.base(), Digest::ZERO, self.client)
        }
    }

    #[test]
    fn the_next_process_closes_the_session_of_the_last_one() {
        let home = Home::new();
        let (mut slot, earlier) = home.take().unwrap();
        assert_eq!(earlier, Earlier::default());
        slot.record(SessionId(123_456)).unwrap();
        slot.record(SessionId(7)).unwrap();
        drop(slot);
        let (_slot, earlier) = home.take().unwrap();
        assert_eq!(earlier, Earlier { close: Some(SessionId(7)), opened: 7 });
    }

    #[test]
    fn processes_at_the_same_time_have_slots_of_their_own() {
        let home = Home::new();
        let (mut first, _) = home.take().unwrap();
        first.record(SessionId(1)).unwrap();
        let (mut second, earlier) = home.take().unwrap();
        // The living session is not closed, but it counts.
        assert_eq!(earlier, Earlier { close: None, opened: 1 });
        second.record(SessionId(2)).unwrap();
        drop(first);
        let (_third, earlier) = home.take().unwrap();
        assert_eq!(earlier, Earlier { close: Some(SessionId(1)), opened: 2 });
    }

    #[test]
    fn more_processes_than_slots_are_refused() {
        let home = Home::new();
        let held: Vec<_> = (0..SLOTS_MAX).map(|_| home.take().unwrap()).collect();
        assert!(matches!(home.take(), Err(ClientError::HomeBusy(SLOTS_MAX))));
        drop(held);
        assert!(home.take().is_ok());
    }

    #[test]
    fn a_torn_file_or_one_of_another_cluster_or_key_names_no_session() {
        let home = Home::new();
        let (mut slot, _) = home.take().unwrap();
        slot.record(SessionId(5)).unwrap();
        drop(slot);
        let other = Digest::from_bytes([9; 32]);
        let (slot, earlier) = Slot::take(&home.base(), other, home.client).unwrap();
        assert_eq!(earlier, Earlier::default());
        drop(slot);
        let stranger = SecretKey::from_seed([2; 32]).public();
        assert_eq!(Slot::take(&home.base(), Digest::ZERO, stranger).unwrap().1, Earlier::default());
        std::fs::write(home.base(), b"{\"cluster\":").unwrap();
        assert_eq!(home.take().unwrap().1, Earlier::default());
    }

    #[test]
    fn a_home_that_cannot_be_written_is_an_error_that_names_the_file() {
        let base = Path::new("/nonexistent/home/session.json");
        let client = SecretKey::from_seed([1; 32]).public();
        let error = Slot::take(base, Digest::ZERO, client).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/home/session.json"), "{error}");
    }
}
