//! Frozen encodings. A change here is a new protocol version: old receipts and ledgers would no longer verify.
//!
//! The digests were computed by another program from the tables in the modules' descriptions, and the signature by
//! OpenSSL.
#![allow(clippy::unwrap_used, reason = "in a test, an unwrap that fails is the test that fails")]

use conclave_crypto::{
    Digest, Hasher, HexError, MerkleTree, PublicKey, SecretKey, Signable, Signature,
    SignatureError, Signed, digest, merkle_leaf, signing_bytes,
};
use serde::{Deserialize, Serialize};

const SEED: [u8; 32] = {
    let mut seed = [0; 32];
    let mut at = 0;
    while at < 32 {
        seed[at] = at as u8;
        at += 1;
    }
    seed
};
const CLUSTER: Digest = Digest::from_bytes([0x11; 32]);
const EPOCH: u64 = 0x0102_0304_0506_0708;
const SIGNATURE: &str = "19d018ec462c8b264be0982c3f5b7a2743c912e5e9443575aa86ee4515bc6d782ddfbfeffa455528103048bff8c9ff070f9a2521759b4e72e4ab8922cbdd860e";
const PUBLIC: &str = "03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    epoch: u64,
    text: String,
}

impl Signable for Note {
    const KIND: u8 = 7;

    fn epoch(&self) -> u64 {
        self.epoch
    }

    fn body(&self) -> Vec<u8> {
        self.text.clone().into_bytes()
    }
}

/// The same fields under another kind.
struct OtherKind(Note);

impl Signable for OtherKind {
    const KIND: u8 = 8;

    fn epoch(&self) -> u64 {
        self.0.epoch
    }

    fn body(&self) -> Vec<u8> {
        self.0.body()
    }
}

fn note() -> Note {
    Note { epoch: EPOCH, text: "body".to_owned() }
}

#[test]
fn digests_are_frozen() {
    assert_eq!(
        digest("golden", &[]).to_string(),
        "0740063697cf570c3bf66644f022571c16400ddfd5403e7da8318f8da7434cda"
    );
    assert_eq!(
        digest("golden", &[b"abc", b"", &[0, 1]]).to_string(),
        "5d61b4b79762a38f6abddcd21d48e88225e050baab7354a67fd6cd516d801f22"
    );
    let mut hasher = Hasher::new("golden");
    hasher.update(b"ab").update(b"c").update_u64(258);
    assert_eq!(
        hasher.finish().to_string(),
        "707758d6fef322b40fc7e2ccad997e82ce9848a894cf299b90aec31aa1355958"
    );
}

#[test]
fn merkle_roots_are_frozen() {
    let roots = [
        (0, "f11812bb7033f4e8b0f13e724dba857ee27bd5de7fd5a096937a270c0af3c06f"),
        (1, "3ae97cac428932df2523aac7ea08cf705a47548b11938c61f46476649d8bf2a7"),
        (2, "f6a989ca9dfc06b5330e3c5cd76fb5465ad07155c4a3ed0f6abf3ac32b4fe85a"),
        (3, "fb31cb7ab11d705cd6aae2c1e29bf68200fe33a4362d5e008d163c0b6027acdb"),
        (5, "303f8591424da7aead77fabcb3f7b5e8e814b56c0d33d5fe3660740b5a4bfd38"),
        (8, "aed774d141cf34bb40f4d0e9d68d69d558b9644b39413030b8c6b13b49942596"),
    ];
    for (count, root) in roots {
        let leaves = (0..count).map(|leaf: u8| merkle_leaf(&[b"leaf", &[leaf]])).collect();
        assert_eq!(MerkleTree::new(leaves).root().to_string(), root, "{count} leaves");
    }
}

#[test]
fn signing_bytes_are_frozen() {
    let expected = [
        b"conclave/v1".as_slice(),
        &[0x11; 32],
        &[0x08, 0x07, 0x06, 0x05, 0x04, 0x03, 0x02, 0x01],
        &[7],
        b"body",
    ]
    .concat();
    assert_eq!(signing_bytes(&CLUSTER, EPOCH, 7, b"body"), expected);
}

#[test]
fn a_signed_value_carries_the_signature_that_openssl_makes() {
    let key = SecretKey::from_seed(SEED);
    assert_eq!(key.public().to_string(), PUBLIC);
    let signed = Signed::sign(note(), &key, &CLUSTER);
    assert_eq!(signed.signature.to_string(), SIGNATURE);
    assert_eq!(signed.verify(&key.verifying(), &CLUSTER), Ok(()));
}

#[test]
fn a_signature_is_of_no_use_in_another_cluster_epoch_kind_or_body_or_under_another_key() {
    let key = SecretKey::from_seed(SEED);
    let signed = Signed::sign(note(), &key, &CLUSTER);
    let with = |value| Signed { value, signature: signed.signature };
    let verifying = key.verifying();

    assert_eq!(signed.verify(&verifying, &Digest::ZERO), Err(SignatureError));
    let epoch = with(Note { epoch: EPOCH + 1, ..note() });
    assert_eq!(epoch.verify(&verifying, &CLUSTER), Err(SignatureError));
    let body = with(Note { text: "bodx".to_owned(), ..note() });
    assert_eq!(body.verify(&verifying, &CLUSTER), Err(SignatureError));
    let kind = Signed { value: OtherKind(note()), signature: signed.signature };
    assert_eq!(kind.verify(&verifying, &CLUSTER), Err(SignatureError));
    let stranger = SecretKey::from_seed([9; 32]).verifying();
    assert_eq!(signed.verify(&stranger, &CLUSTER), Err(SignatureError));
}

#[test]
fn binary_encodings_have_a_fixed_width_and_no_length() {
    let config = bincode::config::legacy();
    let digest = Digest::from_bytes([3; 32]);
    let public = PublicKey::from_bytes([4; 32]);
    let signature = Signature::from_bytes([5; 64]);
    let cases = [
        (bincode::serde::encode_to_vec(digest, config).unwrap(), vec![3; 32]),
        (bincode::serde::encode_to_vec(public, config).unwrap(), vec![4; 32]),
        (bincode::serde::encode_to_vec(signature, config).unwrap(), vec![5; 64]),
    ];
    for (bytes, expected) in &cases {
        assert_eq!(bytes, expected);
    }
    let (back, used): (Signature, usize) =
        bincode::serde::decode_from_slice(&cases[2].0, config).unwrap();
    assert_eq!((back, used), (signature, 64));
    let (back, used): (PublicKey, usize) =
        bincode::serde::decode_from_slice(&cases[1].0, config).unwrap();
    assert_eq!((back, used), (public, 32));
    for short in 0..64 {
        let cut = &cases[2].0[..short];
        assert!(bincode::serde::decode_from_slice::<Signature, _>(cut, config).is_err());
    }

    let signed = Signed::sign(note(), &SecretKey::from_seed(SEED), &CLUSTER);
    let bytes = bincode::serde::encode_to_vec(&signed, config).unwrap();
    assert_eq!(bytes.len(), 8 + 8 + 4 + 64);
    let (back, _): (Signed<Note>, usize) =
        bincode::serde::decode_from_slice(&bytes, config).unwrap();
    assert_eq!(back, signed);
}

#[test]
fn human_readable_encodings_are_lower_case_hexadecimal_and_have_one_spelling() {
    let digest = Digest::from_bytes([0xab; 32]);
    let json = serde_json::to_string(&digest).unwrap();
    assert_eq!(json, format!("\"{}\"", "ab".repeat(32)));
    assert_eq!(serde_json::from_str::<Digest>(&json).unwrap(), digest);
    assert_eq!(serde_json::from_slice::<Digest>(json.as_bytes()).unwrap(), digest);
    let signature = Signature::from_bytes([0x0f; 64]);
    let json = serde_json::to_string(&signature).unwrap();
    assert_eq!(serde_json::from_str::<Signature>(&json).unwrap(), signature);

    let refused = [
        "\"AB\"".to_owned(),
        format!("\"{}\"", "AB".repeat(32)),
        format!("\"0x{}\"", "ab".repeat(31)),
        format!("\"{}\"", "ab".repeat(33)),
        format!("\"{} \"", "ab".repeat(32)),
        format!("\"{}\"", "é".repeat(32)),
        "[1,2]".to_owned(),
        "null".to_owned(),
    ];
    for text in refused {
        assert!(serde_json::from_str::<Digest>(&text).is_err(), "{text}");
    }
}

#[test]
fn text_that_is_not_hexadecimal_is_refused_with_its_reason() {
    assert_eq!("abc".parse::<Digest>(), Err(HexError::Length { expected: 64, found: 3 }));
    let text = format!("{}g0", "00".repeat(31));
    assert_eq!(text.parse::<PublicKey>(), Err(HexError::Digit { position: 62 }));
    let text = "7f".repeat(64);
    assert_eq!(text.parse::<Signature>().unwrap().to_string(), text);
}

#[test]
fn debug_shows_the_first_eight_bytes_and_display_all() {
    let digest = Digest::from_bytes([0xc4; 32]);
    assert_eq!(format!("{digest:?}"), "c4".repeat(8));
    assert_eq!(format!("{digest}"), "c4".repeat(32));
    assert_eq!(Digest::default(), Digest::ZERO);
}

#[test]
fn domains_and_parts_are_kept_apart() {
    assert_ne!(digest("a", &[b"x"]), digest("b", &[b"x"]));
    assert_ne!(digest("ab", &[]), digest("a", &[b"b"]));
    assert_ne!(digest("a", &[b"xy", b"z"]), digest("a", &[b"x", b"yz"]));
    assert_ne!(digest("a", &[b""]), digest("a", &[]));
    // Not even raw bytes reach across the end of a domain.
    let (mut short, mut long) = (Hasher::new("a"), Hasher::new("ab"));
    short.update(b"bc");
    long.update(b"c");
    assert_ne!(short.finish(), long.finish());
}
