//! The one rule by which a signature is accepted, for one and for many.
//!
//! Strict verification (Chalkias, Garillot and Nikolaenko, "Taming the many EdDSAs", 2020): `S` is reduced, `R` is the
//! canonical encoding of `[S]B − [k]A` and not of small order, and neither is the key, which a
//! [`VerifyingKey`] stands for.
//!
//! ed25519-dalek's `verify_strict` decodes `R` to see its order, which takes a sixth of the time. It need not:
//! what is compared is the canonical encoding of the point computed, so that an `R` that is accepted is that encoding,
//! and the eight canonical encodings of points of small order are known. What this accepts and refuses is the same, and
//! the tests hold both against each other.
//!
//! [`verify_each`] is no batch verification: each signature is judged by itself, by the same equation. The points
//! computed share one inversion when they are encoded, which takes another sixth.

use crate::keys::VerifyingKey;
use crate::signature::Signature;
use curve25519_dalek::constants::EIGHT_TORSION;
use curve25519_dalek::edwards::{CompressedEdwardsY, EdwardsPoint};
use curve25519_dalek::scalar::Scalar;
use ed25519_dalek::ed25519::signature::MultipartVerifier as _;
use sha2::Digest as _;
use std::sync::LazyLock;

/// The canonical encodings of the points whose order divides 8.
static SMALL_ORDER: LazyLock<[[u8; 32]; 8]> =
    LazyLock::new(|| EIGHT_TORSION.map(|point| point.compress().to_bytes()));

/// One question to [`verify_each`].
#[derive(Debug, Clone, Copy)]
pub struct Claim<'a> {
    /// Who is said to have signed.
    pub key: VerifyingKey,
    /// What, exactly: the bytes of these parts one after another.
    pub message: [&'a [u8]; 2],
    /// The signature.
    pub signature: Signature,
}

/// Whether a key that is not weak made this signature over this message.
pub(crate) fn verify(
    key: &ed25519_dalek::VerifyingKey,
    message: &[&[u8]],
    signature: &Signature,
) -> bool {
    let signature = ed25519_dalek::Signature::from_bytes(signature.as_bytes());
    !SMALL_ORDER.contains(signature.r_bytes()) && key.multipart_verify(message, &signature).is_ok()
}

/// For each claim what [`VerifyingKey::verify`] says of it; many together cost less than one by one.
#[must_use]
pub fn verify_each(claims: &[Claim<'_>]) -> Vec<bool> {
    #[cfg(feature = "simulation")]
    if crate::simulation::simulates_signatures() {
        return claims
            .iter()
            .map(|claim| claim.key.verify_parts(&claim.message, &claim.signature).is_ok())
            .collect();
    }
    let computed: Vec<Option<EdwardsPoint>> = claims.iter().map(computed_r).collect();
    let points: Vec<EdwardsPoint> =
        computed.iter().copied().map(Option::unwrap_or_default).collect();
    let encoded = EdwardsPoint::compress_batch_alloc(&points);
    let claims = claims.iter().zip(computed).zip(encoded);
    claims
        .map(|((claim, computed), CompressedEdwardsY(encoded))| {
            let (r, _) = halves(&claim.signature);
            computed.is_some() && encoded == r && !SMALL_ORDER.contains(&r)
        })
        .collect()
}

/// `[S]B − [k]A` with `k = SHA-512(R ‖ A ‖ M)` (RFC 8032 §5.1.7); none where `S` is not reduced.
fn computed_r(claim: &Claim<'_>) -> Option<EdwardsPoint> {
    let (r, s) = halves(&claim.signature);
    let s = Option::<Scalar>::from(Scalar::from_canonical_bytes(s))?;
    let key = claim.key.dalek();
    let hash = sha2::Sha512::new().chain_update(r).chain_update(key.as_bytes());
    let k: [u8; 64] =
        claim.message.iter().fold(hash, |hash, part| hash.chain_update(part)).finalize().into();
    let k = Scalar::from_bytes_mod_order_wide(&k);
    Some(EdwardsPoint::vartime_double_scalar_mul_basepoint(&k, &-key.to_edwards(), &s))
}

/// `R` and `S`.
fn halves(signature: &Signature) -> ([u8; 32], [u8; 32]) {
    let signature = ed25519_dalek::Signature::from_bytes(signature.as_bytes());
    (*signature.r_bytes(), *signature.s_bytes())
}
