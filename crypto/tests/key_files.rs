//! Key files: PKCS#8 version 1 PEM, private to their owner, never overwritten; and the cache of checked keys.
#![allow(clippy::unwrap_used, reason = "in a test, an unwrap that fails is the test that fails")]

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use conclave_crypto::{KeyCache, KeyError, PublicKey, SecretKey};
use ed25519_dalek::pkcs8::EncodePrivateKey as _;
use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;

fn write(path: &Path, content: impl AsRef<[u8]>, mode: u32) {
    fs::write(path, content).unwrap();
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_written_key_is_read_back_as_the_same_key() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("node.pem");
    let key = SecretKey::generate();
    key.write_pem(&path).unwrap();
    let back = SecretKey::read_pem(&path).unwrap();
    assert_eq!(back.public(), key.public());
    assert_eq!(back.sign(b"x"), key.sign(b"x"));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
}

#[test]
fn the_file_is_the_one_that_openssl_would_write() {
    // RFC 8410 §10.3 gives this key and this file.
    let seed = [
        0xd4, 0xee, 0x72, 0xdb, 0xf9, 0x13, 0x58, 0x4a, 0xd5, 0xb6, 0xd8, 0xf1, 0xf7, 0x69, 0xf8,
        0xad, 0x3a, 0xfe, 0x7c, 0x28, 0xcb, 0xf1, 0xd4, 0xfb, 0xe0, 0x97, 0xa8, 0x8f, 0x44, 0x75,
        0x58, 0x42,
    ];
    let expected = "-----BEGIN PRIVATE KEY-----\n\
                    MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n\
                    -----END PRIVATE KEY-----\n";
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("rfc8410.pem");
    let key = SecretKey::from_seed(seed);
    key.write_pem(&path).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), expected);

    let der = key.to_pkcs8_der();
    assert_eq!(der.len(), 48);
    assert_eq!(der[..16], [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20]);
    assert_eq!(der[16..], seed);
}

#[test]
fn version_two_files_are_read_and_their_public_key_is_checked() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("v2.pem");
    let dalek = ed25519_dalek::SigningKey::from_bytes(&[3; 32]);
    let pem = dalek.to_pkcs8_pem(LineEnding::LF).unwrap();
    write(&path, pem.as_bytes(), 0o600);
    let key = SecretKey::read_pem(&path).unwrap();
    assert_eq!(key.public(), SecretKey::from_seed([3; 32]).public());

    let mismatched = ed25519_dalek::pkcs8::KeypairBytes {
        secret_key: [3; 32],
        public_key: Some(ed25519_dalek::pkcs8::PublicKeyBytes(
            *SecretKey::from_seed([4; 32]).public().as_bytes(),
        )),
    };
    write(&path, mismatched.to_pkcs8_pem(LineEnding::LF).unwrap().as_bytes(), 0o600);
    let error = SecretKey::read_pem(&path).unwrap_err();
    assert!(error.to_string().contains("does not belong to its private key"), "{error}");
}

#[test]
fn a_file_that_others_can_reach_is_refused_and_the_error_says_what_to_do() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("node.pem");
    SecretKey::from_seed([1; 32]).write_pem(&path).unwrap();
    for mode in [0o644, 0o640, 0o604, 0o660, 0o602, 0o601, 0o610] {
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        let error = SecretKey::read_pem(&path).unwrap_err();
        assert!(matches!(&error, KeyError::Permissions { mode: found, .. } if *found == mode));
        let text = error.to_string();
        assert!(text.contains(&format!("chmod 600 {}", path.display())), "{text}");
        assert!(text.contains(&format!("{mode:04o}")), "{text}");
    }
    for mode in [0o600, 0o400] {
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        assert!(SecretKey::read_pem(&path).is_ok());
    }
}

#[test]
fn a_key_is_never_overwritten() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("node.pem");
    let key = SecretKey::generate();
    key.write_pem(&path).unwrap();
    let error = SecretKey::generate().write_pem(&path).unwrap_err();
    assert!(matches!(error, KeyError::Exists { .. }));
    assert!(error.to_string().contains(&path.display().to_string()));
    assert_eq!(SecretKey::read_pem(&path).unwrap().public(), key.public());
}

#[test]
fn what_is_not_an_ed25519_key_is_refused_by_name_and_without_its_content() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("node.pem");
    SecretKey::from_seed([1; 32]).write_pem(&path).unwrap();
    let good = fs::read_to_string(&path).unwrap();
    let x25519 = good.replace("BQYDK2Vw", "BQYDK2Vu");
    assert_ne!(x25519, good);
    let cases: [(&str, Vec<u8>); 8] = [
        ("empty", Vec::new()),
        ("words", b"correct horse battery staple".to_vec()),
        ("binary", vec![0xff; 64]),
        ("cut", good.as_bytes()[..60].to_vec()),
        ("label", good.replace("PRIVATE", "PUBLIC").into_bytes()),
        ("algorithm", x25519.into_bytes()),
        ("garbled", good.replace("MC4C", "MC5C").into_bytes()),
        ("huge", vec![b'A'; 1 << 20]),
    ];
    for (name, content) in cases {
        write(&path, content, 0o600);
        let error = SecretKey::read_pem(&path).unwrap_err();
        assert!(matches!(error, KeyError::Malformed { .. }), "{name}: {error}");
        let text = error.to_string();
        assert!(text.contains(&path.display().to_string()), "{name}: {text}");
        assert!(!text.contains("horse"), "{name}: {text}");
    }
}

#[test]
fn a_missing_file_and_a_directory_are_errors_that_name_the_path() {
    let home = tempfile::tempdir().unwrap();
    let missing = home.path().join("missing").join("node.pem");
    let error = SecretKey::read_pem(&missing).unwrap_err();
    assert!(matches!(error, KeyError::Read { .. }));
    assert!(error.to_string().contains(&missing.display().to_string()));
    assert!(matches!(SecretKey::read_pem(home.path()), Err(KeyError::Malformed { .. })));
    let error = SecretKey::generate().write_pem(&missing).unwrap_err();
    assert!(matches!(error, KeyError::Write { .. }));
    assert!(error.to_string().contains(&missing.display().to_string()));
}

#[test]
fn debug_output_of_a_key_shows_its_public_half_only() {
    let key = SecretKey::from_seed([0xab; 32]);
    let text = format!("{key:?}");
    assert!(!text.contains("abab"), "{text}");
    assert!(text.contains(&key.public().to_string()[..16]), "{text}");
}

#[test]
fn generated_keys_differ_and_derived_secrets_depend_on_key_and_domain() {
    assert_ne!(SecretKey::generate().public(), SecretKey::generate().public());
    let (one, two) = (SecretKey::from_seed([1; 32]), SecretKey::from_seed([2; 32]));
    assert_eq!(one.derive("reset"), one.derive("reset"));
    assert_ne!(one.derive("reset"), one.derive("connection-id"));
    assert_ne!(one.derive("reset"), two.derive("reset"));
    assert_ne!(*one.derive("reset"), [1; 32]);
}

#[test]
fn the_cache_answers_as_the_check_does_and_never_grows_beyond_its_capacity() {
    let cache = KeyCache::new(3);
    let keys: Vec<PublicKey> =
        (0..10).map(|seed| SecretKey::from_seed([seed; 32]).public()).collect();
    for round in 0..2 {
        for key in &keys {
            assert_eq!(cache.get(key).unwrap().public(), *key, "round {round}");
            assert_eq!(cache.get(key).unwrap().public(), *key, "round {round}");
            assert!(cache.len() <= 3);
        }
    }
    assert_eq!(cache.len(), 3);
}

#[test]
fn refused_keys_take_no_place_in_the_cache() {
    let cache = KeyCache::default();
    for low in 0..=255 {
        let mut bytes = [0xff; 32];
        bytes[0] = low;
        let key = PublicKey::from_bytes(bytes);
        let valid = conclave_crypto::VerifyingKey::try_from(&key).is_ok();
        let before = cache.len();
        assert_eq!(cache.get(&key).is_ok(), valid);
        assert_eq!(cache.len(), before + usize::from(valid));
    }
}

#[test]
fn threads_share_one_cache() {
    let cache = KeyCache::new(4);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for round in 0..200_u8 {
                    let key = SecretKey::from_seed([round % 8; 32]).public();
                    assert_eq!(cache.get(&key).unwrap().public(), key);
                }
            });
        }
    });
    assert_eq!(cache.len(), 4);
}
