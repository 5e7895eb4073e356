//! Private keys as files: PKCS#8 (RFC 5958) in PEM (RFC 7468), as `openssl genpkey -algorithm ed25519` writes them.
//!
//! Written is version 1, without the public key, since OpenSSL 3.0 refuses to read version 2. Both are read; a public
//! key in a version 2 file must be the one that belongs to the private key. The DER of version 1 has 48 bytes:
//!
//! | bytes | content                                                        |
//! |-------|----------------------------------------------------------------|
//! | 2     | `30 2e`: sequence of 46 bytes                                  |
//! | 3     | `02 01 00`: version 1                                          |
//! | 7     | `30 05 06 03 2b 65 70`: algorithm 1.3.101.112, Ed25519         |
//! | 4     | `04 22 04 20`: octet string that holds an octet string         |
//! | 32    | the seed                                                       |

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{PrivateKeyInfoRef, SecretDocument};
use zeroize::Zeroizing;

use crate::keys::{KeyError, SecretKey};

const DER_PREFIX: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

const LABEL: &str = "PRIVATE KEY";

/// A key file has 119 bytes; a larger one is something else, and is not read into memory.
const FILE_BYTES_MAX: usize = 16 * 1024;

impl SecretKey {
    /// Reads a key file.
    ///
    /// # Errors
    /// When it cannot be read, when its mode lets anybody but its owner reach it, or when it holds something else than
    /// one Ed25519 key. Each error names the file and what to do.
    pub fn read_pem(path: impl AsRef<Path>) -> Result<Self, KeyError> {
        let path = path.as_ref();
        let malformed = |reason: String| KeyError::Malformed { path: path.to_path_buf(), reason };
        let read = |source: io::Error| KeyError::Read { path: path.to_path_buf(), source };

        let mut file = File::open(path).map_err(read)?;
        // The mode is asked of the open file, so that nobody can swap the file after the check.
        let metadata = file.metadata().map_err(read)?;
        if !metadata.is_file() {
            return Err(malformed("it is not a regular file".to_owned()));
        }
        let mode = metadata.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(KeyError::Permissions { path: path.to_path_buf(), mode });
        }
        // One buffer of full size from the start: growing it would leave copies of the key in freed memory.
        let mut text = Zeroizing::new(vec![0; FILE_BYTES_MAX + 1]);
        let length = read_up_to(&mut file, &mut text).map_err(read)?;
        if length > FILE_BYTES_MAX {
            return Err(malformed(format!("it is larger than {FILE_BYTES_MAX} bytes")));
        }
        let text = std::str::from_utf8(&text[..length])
            .map_err(|_| malformed("it is not text".to_owned()))?;
        parse(text).map_err(|reason| malformed(reason.to_owned()))
    }

    /// Writes a new key file with mode 0600, and returns once it is on disk.
    ///
    /// # Errors
    /// When there is a file already, or it cannot be written. No half-written file stays behind.
    pub fn write_pem(&self, path: impl AsRef<Path>) -> Result<(), KeyError> {
        let path = path.as_ref();
        let write = |source: io::Error| KeyError::Write { path: path.to_path_buf(), source };

        let pem = SecretDocument::try_from(&self.to_pkcs8_der()[..])
            .and_then(|document| document.to_pem(LABEL, LineEnding::LF))
            .expect("48 bytes of DER have a PEM form");
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(
                |source| match source.kind() == io::ErrorKind::AlreadyExists {
                    true => KeyError::Exists { path: path.to_path_buf() },
                    false => write(source),
                },
            )?;
        let written = file.write_all(pem.as_bytes()).and_then(|()| file.sync_all());
        if let Err(source) = written {
            // The first error is the one that tells the operator something.
            let _ = std::fs::remove_file(path);
            return Err(write(source));
        }
        // The name of the file is durable only with its directory.
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        File::open(parent.unwrap_or(Path::new("."))).and_then(|dir| dir.sync_all()).map_err(write)
    }

    /// The key as PKCS#8 version 1, for libraries that take no other form, such as rustls.
    pub fn to_pkcs8_der(&self) -> Zeroizing<Vec<u8>> {
        let mut der = Zeroizing::new(Vec::with_capacity(DER_PREFIX.len() + 32));
        der.extend_from_slice(&DER_PREFIX);
        der.extend_from_slice(self.seed());
        der
    }
}

/// Reads the text of a key file. Says what is wrong without repeating any of it.
///
/// The document is taken apart here, and not by the ready-made conversion, since that one leaves copies of the seed in
/// memory that nobody zeroes.
fn parse(text: &str) -> Result<SecretKey, &'static str> {
    let (label, document) =
        SecretDocument::from_pem(text).map_err(|_| "it is not one PEM document")?;
    if label != LABEL {
        return Err("it is a PEM document of another kind");
    }
    let info = PrivateKeyInfoRef::try_from(document.as_bytes())
        .map_err(|_| "the PEM document does not hold PKCS#8")?;
    let ed25519 = info.algorithm.oid == ed25519_dalek::ed25519::pkcs8::ALGORITHM_OID;
    if !ed25519 || info.algorithm.parameters.is_some() {
        return Err("it is a key for another algorithm");
    }
    let seed = info
        .private_key
        .as_bytes()
        .strip_prefix(&[0x04, 0x20])
        .and_then(|seed| <&[u8; 32]>::try_from(seed).ok())
        .ok_or("the private key does not have 32 bytes")?;
    let key = SecretKey::from_seed_ref(seed);
    match info.public_key {
        Some(stated) if stated.as_bytes() != Some(key.public().as_bytes()) => {
            Err("its public key does not belong to its private key")
        }
        _ => Ok(key),
    }
}

/// Fills `buffer` as far as the file reaches.
fn read_up_to(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match file.read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}
