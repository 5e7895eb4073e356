//! The cases on which Ed25519 implementations differ (Chalkias, Garillot and Nikolaenko, "Taming the many EdDSAs",
//! 2020), each built from its definition, with the one answer that this crate gives.
//!
//! Where dalek's lenient verification accepts a case, the test says so: it shows that the case has teeth.
#![allow(clippy::unwrap_used, reason = "in a test, an unwrap that fails is the test that fails")]

use conclave_crypto::strict::{Claim, verify_each};
use conclave_crypto::{KeyCache, KeyError, PublicKey, Signature, SignatureError, VerifyingKey};
use curve25519_dalek::constants::EIGHT_TORSION;
use curve25519_dalek::edwards::{CompressedEdwardsY, EdwardsPoint};
use curve25519_dalek::scalar::Scalar;
use ed25519_dalek::Verifier as _;
use sha2::Digest as _;

/// The order of the base point, 2^252 + 27742317777372353535851937790883648493, least significant byte first.
const GROUP_ORDER: [u8; 32] = [
    0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
];

fn secret() -> Scalar {
    Scalar::from_bytes_mod_order([0x5a; 32])
}

fn nonce() -> Scalar {
    Scalar::from_bytes_mod_order([0xa7; 32])
}

/// k = SHA-512(R ‖ A ‖ M) mod L (RFC 8032 §5.1.7).
fn challenge(r: &[u8; 32], a: &[u8; 32], message: &[u8]) -> Scalar {
    let hash = sha2::Sha512::new().chain_update(r).chain_update(a).chain_update(message).finalize();
    Scalar::from_bytes_mod_order_wide(&hash.into())
}

fn signature(r: &[u8; 32], s: &[u8; 32]) -> Signature {
    let mut bytes = [0; 64];
    bytes[..32].copy_from_slice(r);
    bytes[32..].copy_from_slice(s);
    Signature::from_bytes(bytes)
}

fn encode(point: EdwardsPoint) -> [u8; 32] {
    point.compress().to_bytes()
}

fn key_of(a: &[u8; 32]) -> VerifyingKey {
    VerifyingKey::try_from(&PublicKey::from_bytes(*a)).expect("a usable key")
}

fn lenient(a: &[u8; 32], message: &[u8], signature: &Signature) -> bool {
    let key = ed25519_dalek::VerifyingKey::from_bytes(a).unwrap();
    key.verify(message, &ed25519_dalek::Signature::from_bytes(signature.as_bytes())).is_ok()
}

/// This crate's answer, which is that of dalek's own strict verification, alone and among others.
fn judge(a: &[u8; 32], message: &[u8], signature: &Signature) -> Result<(), SignatureError> {
    let (key, good) = (key_of(a), conclave_crypto::SecretKey::from_seed([3; 32]));
    let answer = key.verify(message, signature);
    let dalek = ed25519_dalek::VerifyingKey::from_bytes(a).unwrap();
    let strict =
        dalek.verify_strict(message, &ed25519_dalek::Signature::from_bytes(signature.as_bytes()));
    assert_eq!(answer.is_ok(), strict.is_ok(), "{key:?} {signature:?}");
    let (other, beside) = (good.verifying(), good.sign(b"beside"));
    let claims = [
        Claim { key: other, message: [b"bes", b"ide"], signature: beside },
        Claim { key, message: [message, &[]], signature: *signature },
        Claim { key: other, message: [b"beside", b"s"], signature: beside },
    ];
    assert_eq!(verify_each(&claims), [true, answer.is_ok(), false], "{key:?} {signature:?}");
    assert_eq!(verify_each(&claims[1..2]), [answer.is_ok()]);
    answer
}

/// Messages to choose from until the challenge has the wanted remainder modulo 8.
fn messages() -> impl Iterator<Item = [u8; 4]> {
    (0_u32..1_000).map(u32::to_le_bytes)
}

#[test]
fn the_honest_equation_is_accepted() {
    let (a, r) =
        (encode(EdwardsPoint::mul_base(&secret())), encode(EdwardsPoint::mul_base(&nonce())));
    let s = nonce() + challenge(&r, &a, b"honest") * secret();
    assert_eq!(judge(&a, b"honest", &signature(&r, s.as_bytes())), Ok(()));
}

#[test]
fn all_eight_points_of_small_order_are_refused_as_keys() {
    for point in EIGHT_TORSION {
        let key = PublicKey::from_bytes(encode(point));
        assert!(matches!(VerifyingKey::try_from(&key), Err(KeyError::Weak(weak)) if weak == key));
        assert!(matches!(KeyCache::default().get(&key), Err(KeyError::Weak(_))));
    }
}

#[test]
fn under_a_key_of_small_order_lenient_verification_accepts_a_message_nobody_signed() {
    // A = R = identity, S = 0 satisfies S·B = R + k·A for every message: the reason why weak keys are refused.
    let identity = encode(EIGHT_TORSION[0]);
    assert!(lenient(&identity, b"anything", &signature(&identity, &[0; 32])));
}

#[test]
fn every_y_at_or_above_the_prime_is_refused_as_a_key_with_either_sign() {
    for low in 0xed..=0xff_u8 {
        for high in [0x7f, 0xff] {
            let mut bytes = [0xff; 32];
            (bytes[0], bytes[31]) = (low, high);
            let key = PublicKey::from_bytes(bytes);
            assert!(
                matches!(VerifyingKey::try_from(&key), Err(KeyError::NonCanonical(_))),
                "{key}"
            );
        }
    }
}

#[test]
fn the_largest_reduced_y_is_not_mistaken_for_an_unreduced_one() {
    // y = p − 1 is the point of order two, with x = 0: refused for its order, whatever its sign bit says.
    for high in [0x7f, 0xff] {
        let mut bytes = [0xff; 32];
        (bytes[0], bytes[31]) = (0xec, high);
        assert!(matches!(
            VerifyingKey::try_from(&PublicKey::from_bytes(bytes)),
            Err(KeyError::Weak(_) | KeyError::NotOnCurve(_))
        ));
    }
    // y < p by another byte than the first or the last: only a point, or none, decides.
    let mut bytes = [0xff; 32];
    (bytes[15], bytes[31]) = (0xfe, 0x7f);
    assert!(!matches!(
        VerifyingKey::try_from(&PublicKey::from_bytes(bytes)),
        Err(KeyError::NonCanonical(_))
    ));
}

#[test]
fn the_identity_with_a_sign_is_refused_as_a_key() {
    let mut bytes = [0; 32];
    (bytes[0], bytes[31]) = (1, 0x80);
    assert!(matches!(
        VerifyingKey::try_from(&PublicKey::from_bytes(bytes)),
        Err(KeyError::Weak(_) | KeyError::NotOnCurve(_))
    ));
}

#[test]
fn bytes_that_are_no_point_are_refused_as_keys() {
    let refused = (0..=255_u8)
        .map(|first| {
            let mut bytes = [0; 32];
            bytes[0] = first;
            bytes
        })
        .filter(|bytes| CompressedEdwardsY(*bytes).decompress().is_none())
        .inspect(|bytes| {
            let key = PublicKey::from_bytes(*bytes);
            assert!(matches!(VerifyingKey::try_from(&key), Err(KeyError::NotOnCurve(_))), "{key}");
        })
        .count();
    assert!(refused > 64, "about half of all y have no x, so the loop was not empty: {refused}");
}

#[test]
fn an_r_of_small_order_is_refused_where_lenient_verification_accepts_it() {
    let a = encode(EdwardsPoint::mul_base(&secret()));
    let r = encode(EIGHT_TORSION[0]);
    let s = challenge(&r, &a, b"small R") * secret();
    let forged = signature(&r, s.as_bytes());
    assert!(lenient(&a, b"small R", &forged));
    assert_eq!(judge(&a, b"small R", &forged), Err(SignatureError));
}

#[test]
fn no_r_of_small_order_is_accepted_in_any_encoding() {
    let a = encode(EdwardsPoint::mul_base(&secret()));
    let mut encodings: Vec<[u8; 32]> = EIGHT_TORSION.iter().copied().map(encode).collect();
    for low in 0xec..=0xff_u8 {
        for high in [0x7f, 0xff] {
            let mut bytes = [0xff; 32];
            (bytes[0], bytes[31]) = (low, high);
            encodings.push(bytes);
        }
    }
    for r in encodings {
        let s = challenge(&r, &a, b"M") * secret();
        assert_eq!(judge(&a, b"M", &signature(&r, s.as_bytes())), Err(SignatureError));
    }
}

#[test]
fn an_s_that_is_not_reduced_is_refused() {
    let (a, r) =
        (encode(EdwardsPoint::mul_base(&secret())), encode(EdwardsPoint::mul_base(&nonce())));
    let s = nonce() + challenge(&r, &a, b"M") * secret();
    assert_eq!(judge(&a, b"M", &signature(&r, s.as_bytes())), Ok(()));
    // S + L, S + 2L and so on satisfy the same equation, as long as they fit.
    let mut sum = *s.as_bytes();
    for multiple in 1..=14 {
        let mut carry = 0_u16;
        for (byte, order) in sum.iter_mut().zip(GROUP_ORDER) {
            let total = u16::from(*byte) + u16::from(order) + carry;
            *byte = total.to_le_bytes()[0];
            carry = total >> 8;
        }
        assert_eq!(carry, 0);
        assert_eq!(Scalar::from_bytes_mod_order(sum), s, "the same scalar");
        assert_eq!(judge(&a, b"M", &signature(&r, &sum)), Err(SignatureError), "S + {multiple}·L");
    }
}

#[test]
fn a_torsion_component_in_r_is_refused_although_the_cofactored_equation_holds() {
    let a = encode(EdwardsPoint::mul_base(&secret()));
    for torsion in &EIGHT_TORSION[1..] {
        let r = encode(EdwardsPoint::mul_base(&nonce()) + torsion);
        let s = nonce() + challenge(&r, &a, b"mixed R") * secret();
        let forged = signature(&r, s.as_bytes());
        assert_eq!(judge(&a, b"mixed R", &forged), Err(SignatureError));
    }
}

#[test]
fn a_torsion_component_in_the_key_is_decided_by_the_cofactorless_equation_alone() {
    // Only the owner can make such a key. What matters is that the answer is the same everywhere: valid exactly when
    // k·T vanishes, never because eight times it does.
    let torsion = EIGHT_TORSION[1];
    let a = encode(EdwardsPoint::mul_base(&secret()) + torsion);
    let r = encode(EdwardsPoint::mul_base(&nonce()));
    let (mut valid, mut invalid) = (0, 0);
    for message in messages() {
        let k = challenge(&r, &a, &message);
        let expected = match k.as_bytes()[0] % 8 {
            0 => {
                valid += 1;
                Ok(())
            }
            _ => {
                invalid += 1;
                Err(SignatureError)
            }
        };
        let s = nonce() + k * secret();
        assert_eq!(judge(&a, &message, &signature(&r, s.as_bytes())), expected);
    }
    assert!(valid > 50 && invalid > 500, "both cases occur: {valid} and {invalid}");
}

#[test]
fn a_signature_of_zeros_is_refused() {
    let a = encode(EdwardsPoint::mul_base(&secret()));
    assert_eq!(judge(&a, b"", &Signature::from_bytes([0; 64])), Err(SignatureError));
}

#[test]
fn any_bit_that_differs_is_refused_alone_and_among_others() {
    let key = conclave_crypto::SecretKey::from_seed([9; 32]);
    let a = *key.public().as_bytes();
    let good = key.sign(b"every bit counts");
    assert_eq!(judge(&a, b"every bit counts", &good), Ok(()));
    for bit in 0..512 {
        let mut bytes = *good.as_bytes();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let changed = Signature::from_bytes(bytes);
        assert_eq!(judge(&a, b"every bit counts", &changed), Err(SignatureError), "bit {bit}");
    }
}

#[test]
fn no_claims_have_no_answers() {
    assert!(verify_each(&[]).is_empty());
}
