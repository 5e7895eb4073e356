//! Creating and opening an instance, and telling apart why it cannot be opened.

use super::options::{self, Use};
use super::{
    FACT_CLUSTER, FACT_FORMAT, FACT_KIND, FACTS, FORMAT, Kind, RocksStorage, SharedResources,
};
use conclave_consensus::storage::StorageError;
use conclave_crypto::digest::Digest;
use rocksdb::{DB, ErrorKind, Options};
use std::path::{Path, PathBuf};

/// Why an instance cannot be opened. Each variant asks for another act of the operator.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OpenError {
    /// Nothing is there.
    #[error("there is no {kind} at {path}; `conclave-node init` creates one for a new replica")]
    Missing {
        /// `journal` or `ledger`.
        kind: &'static str,
        /// The directory.
        path: PathBuf,
    },
    /// Creating, and something is there already.
    #[error("{path} exists already; a {kind} is created once")]
    Exists {
        /// `journal` or `ledger`.
        kind: &'static str,
        /// The directory.
        path: PathBuf,
    },
    /// What is there does not agree with its checksums or with itself.
    #[error("the {kind} at {path} is damaged: {reason}")]
    Corrupt {
        /// `journal` or `ledger`.
        kind: &'static str,
        /// The directory.
        path: PathBuf,
        /// What RocksDB said.
        reason: String,
    },
    /// It belongs to another genesis.
    #[error("the {kind} at {path} belongs to cluster {found}, and this node to {expected}")]
    OtherCluster {
        /// `journal` or `ledger`.
        kind: &'static str,
        /// The directory.
        path: PathBuf,
        /// The cluster id it names.
        found: Digest,
        /// The cluster id of this node's genesis.
        expected: Digest,
    },
    /// A later build wrote it.
    #[error("the {kind} at {path} has {found}; this build knows format {FORMAT}: use a newer one")]
    NewerFormat {
        /// `journal` or `ledger`.
        kind: &'static str,
        /// The directory.
        path: PathBuf,
        /// What shows that it is newer.
        found: String,
    },
    /// Another process, or another part of this one, has it open.
    #[error("the {kind} at {path} is in use by {holder}; stop that first")]
    Locked {
        /// `journal` or `ledger`.
        kind: &'static str,
        /// The directory.
        path: PathBuf,
        /// Which process, where that can be told.
        holder: String,
    },
    /// The file system refused.
    #[error("cannot open the {kind} at {path}: {reason}")]
    Io {
        /// `journal` or `ledger`.
        kind: &'static str,
        /// The directory.
        path: PathBuf,
        /// What it said.
        reason: String,
    },
}

impl RocksStorage {
    /// Creates an instance where there is none, and opens it.
    ///
    /// It is made under the name `<path>.creating` and renamed, so that a power loss leaves either
    /// a whole instance or none.
    ///
    /// # Errors
    /// [`OpenError::Exists`] where something is there, [`OpenError::Io`] where the file system refuses.
    pub fn create(
        kind: Kind,
        path: &Path,
        cluster: &Digest,
        resources: &SharedResources,
    ) -> Result<Self, OpenError> {
        Self::create_with(kind, path, cluster, resources, |_| Ok(()))
    }

    /// [`Self::create`], with first content that is part of the instance's coming into being.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub(crate) fn create_with(
        kind: Kind,
        path: &Path,
        cluster: &Digest,
        resources: &SharedResources,
        fill: impl FnOnce(&Self) -> Result<(), StorageError>,
    ) -> Result<Self, OpenError> {
        let named = Named { kind, path };
        if !is_absent_or_empty(path).map_err(|e| named.io(&e.to_string()))? {
            return Err(OpenError::Exists { kind: kind.name(), path: path.to_owned() });
        }
        let mut draft = path.as_os_str().to_owned();
        draft.push(".creating");
        let draft = PathBuf::from(draft);
        remove_directory(&draft).map_err(|e| named.io(&e.to_string()))?;
        std::fs::create_dir_all(&draft).map_err(|e| named.io(&e.to_string()))?;
        {
            let database = options::database(kind, Use::Create, resources, &draft);
            let families = options::column_families(kind, resources);
            let db = DB::open_cf_descriptors(&database, &draft, families)
                .map_err(|e| named.refused(&e))?;
            let mut facts = rocksdb::WriteBatch::default();
            facts.put(FACT_KIND, kind.name());
            facts.put(FACT_FORMAT, FORMAT.to_be_bytes());
            facts.put(FACT_CLUSTER, cluster.as_bytes());
            db.write_opt(facts, &options::write(kind, true)).map_err(|e| named.refused(&e))?;
            let storage = Self::over(db, kind, draft.clone(), true);
            fill(&storage).and_then(|()| storage.flush()).map_err(|e| named.io(&e.reason))?;
        }
        rename_durably(&draft, path).map_err(|e| named.io(&e.to_string()))?;
        Self::open(kind, path, cluster, resources)
    }

    /// Opens an instance for reading and writing; never creates one.
    ///
    /// # Errors
    /// An [`OpenError`] that says what is wrong with it.
    pub fn open(
        kind: Kind,
        path: &Path,
        cluster: &Digest,
        resources: &SharedResources,
    ) -> Result<Self, OpenError> {
        let named = Named { kind, path };
        named.check_names(resources)?;
        let database = options::database(kind, Use::Serve, resources, path);
        let families = options::column_families(kind, resources);
        let db =
            DB::open_cf_descriptors(&database, path, families).map_err(|e| named.refused(&e))?;
        let found = named.check_facts(&db)?;
        if found != *cluster {
            return Err(OpenError::OtherCluster {
                kind: kind.name(),
                path: path.to_owned(),
                found,
                expected: *cluster,
            });
        }
        Ok(Self::over(db, kind, path.to_owned(), true))
    }

    /// Opens an instance that no node runs on, changes nothing in it, and says whose it is.
    ///
    /// Its write-ahead log is replayed into memory. Unlike [`Self::open`] this refuses a ledger whose
    /// log is garbled.
    ///
    /// # Errors
    /// An [`OpenError`]; [`OpenError::Locked`] where a process has it open.
    pub fn open_read_only(
        kind: Kind,
        path: &Path,
        resources: &SharedResources,
    ) -> Result<(Self, Digest), OpenError> {
        Self::open_unchanged(kind, path, resources, Use::Inspect)
    }

    /// As [`Self::open_read_only`], but a garbled write-ahead log is read up to where it is garbled:
    /// to tell what is left of it.
    ///
    /// # Errors
    /// As [`Self::open_read_only`].
    pub fn open_damaged(
        kind: Kind,
        path: &Path,
        resources: &SharedResources,
    ) -> Result<(Self, Digest), OpenError> {
        Self::open_unchanged(kind, path, resources, Use::Salvage)
    }

    fn open_unchanged(
        kind: Kind,
        path: &Path,
        resources: &SharedResources,
        how: Use,
    ) -> Result<(Self, Digest), OpenError> {
        let named = Named { kind, path };
        named.check_names(resources)?;
        // A read-only instance takes no lock, and files could vanish under it.
        if let Some(holder) = holder(path) {
            return Err(OpenError::Locked { kind: kind.name(), path: path.to_owned(), holder });
        }
        let database = options::database(kind, how, resources, path);
        // With descriptors and not by names alone: without the options of its blob files a
        // read-only instance finds no value that lies in one.
        let families = options::column_families(kind, resources);
        let db = DB::open_cf_descriptors_read_only(&database, path, families, false)
            .map_err(|e| named.refused(&e))?;
        let cluster = named.check_facts(&db)?;
        let storage = Self::over(db, kind, path.to_owned(), false);
        Ok((storage, cluster))
    }
}

/// The process that has the instance at `path` open for writing, where the system tells.
///
/// RocksDB holds a POSIX lock on the file `LOCK`; Linux lists those by inode.
#[must_use]
pub fn holder(path: &Path) -> Option<String> {
    use std::os::unix::fs::MetadataExt;
    let inode = std::fs::metadata(path.join("LOCK")).ok()?.ino();
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    locks.lines().find_map(|line| {
        // "1: POSIX  ADVISORY  WRITE 4242 08:01:123456 0 EOF"
        let mut fields = line.split_whitespace().skip(1).filter(|field| *field != "->");
        let kind = fields.next()?;
        let process = fields.nth(2)?;
        let file = fields.next()?;
        let same = file.rsplit(':').next()?.parse::<u64>().ok()? == inode;
        (kind == "POSIX" && same).then(|| format!("process {process}"))
    })
}

/// An instance in the making, for errors.
struct Named<'a> {
    kind: Kind,
    path: &'a Path,
}

impl Named<'_> {
    /// Refuses what is not there, and what has tables that this build does not know.
    fn check_names(&self, resources: &SharedResources) -> Result<(), OpenError> {
        if is_absent_or_empty(self.path).map_err(|e| self.io(&e.to_string()))? {
            return Err(OpenError::Missing { kind: self.kind.name(), path: self.path.to_owned() });
        }
        if !self.path.join("CURRENT").exists() {
            return Err(self.corrupt("its file CURRENT is missing"));
        }
        let database: Options = options::database(self.kind, Use::Inspect, resources, self.path);
        let names = DB::list_cf(&database, self.path).map_err(|e| self.refused(&e))?;
        let known = |name: &str| {
            name == FACTS || self.kind.tables().iter().any(|table| table.name() == name)
        };
        match names.iter().find(|name| !known(name)) {
            Some(name) => Err(self.newer(format!("a table {name:?}"))),
            None => Ok(()),
        }
    }

    /// Checks what the instance says of itself, and answers whose it is.
    fn check_facts(&self, db: &DB) -> Result<Digest, OpenError> {
        let format = self.fact(db, FACT_FORMAT)?;
        let format = <[u8; 4]>::try_from(format.as_slice())
            .map_err(|_| self.corrupt("its format is not 4 bytes"))?;
        let format = u32::from_be_bytes(format);
        if format > FORMAT {
            return Err(self.newer(format!("format {format}")));
        }
        if format < FORMAT {
            return Err(self.corrupt("its format is older than the first"));
        }
        let kind = self.fact(db, FACT_KIND)?;
        if kind != self.kind.name().as_bytes() {
            return Err(self.corrupt(&format!("it is a {}", String::from_utf8_lossy(&kind))));
        }
        let cluster = self.fact(db, FACT_CLUSTER)?;
        let cluster = <[u8; 32]>::try_from(cluster.as_slice())
            .map_err(|_| self.corrupt("its cluster id is not 32 bytes"))?;
        Ok(Digest::from(cluster))
    }

    fn fact(&self, db: &DB, name: &[u8]) -> Result<Vec<u8>, OpenError> {
        let value = db.get(name).map_err(|e| self.refused(&e))?;
        value.ok_or_else(|| {
            self.corrupt(&format!("it does not say its {}", String::from_utf8_lossy(name)))
        })
    }

    /// Sorts RocksDB's error. Its kinds are too few: a lock shows only in the text.
    fn refused(&self, error: &rocksdb::Error) -> OpenError {
        let reason = error.to_string();
        if error.kind() == ErrorKind::Corruption {
            return self.corrupt(&reason);
        }
        if error.kind() == ErrorKind::IOError && reason.contains("lock") {
            let holder = holder(self.path).unwrap_or_else(|| "another process".to_owned());
            let path = self.path.to_owned();
            return OpenError::Locked { kind: self.kind.name(), path, holder };
        }
        if error.kind() == ErrorKind::IOError && reason.contains("No such file") {
            return self.corrupt(&reason);
        }
        self.io(&reason)
    }

    fn corrupt(&self, reason: &str) -> OpenError {
        let path = self.path.to_owned();
        OpenError::Corrupt { kind: self.kind.name(), path, reason: reason.to_owned() }
    }

    fn newer(&self, found: String) -> OpenError {
        OpenError::NewerFormat { kind: self.kind.name(), path: self.path.to_owned(), found }
    }

    fn io(&self, reason: &str) -> OpenError {
        let path = self.path.to_owned();
        OpenError::Io { kind: self.kind.name(), path, reason: reason.to_owned() }
    }
}

fn is_absent_or_empty(path: &Path) -> std::io::Result<bool> {
    match std::fs::read_dir(path) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error),
    }
}

fn remove_directory(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Renames a directory over an absent or empty one; both names are durable on return.
fn rename_durably(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::File::open(from)?.sync_all()?;
    std::fs::rename(from, to)?;
    let parent = to.parent().filter(|parent| !parent.as_os_str().is_empty());
    std::fs::File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}
