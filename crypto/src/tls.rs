//! The nodes' and clients' own Ed25519 keys as TLS 1.3 identities.
//!
//! Both sides show a raw public key (RFC 7250) instead of a certificate: there is no authority that could vouch for a
//! stranger and no date on which a cluster stops. The server asks a predicate about each client's key, because
//! membership changes while it runs; the client knows exactly which key it wants to meet. Each side proves that it has
//! its private key by the handshake's signature, for which only Ed25519 is accepted.
//!
//! Session resumption and early data are off on both sides. A ticket would let a removed member come back without
//! being asked again, and early data can be replayed.
//!
//! In TLS 1.3 the client's handshake is complete before the server has looked at the client's key. A refused client
//! therefore sees a connection that closes soon after it was made; nothing counts before the application's own hello.
//!
//! How many streams and bytes a peer may use is the transport's matter and is set there.
//!
//! A key travels as a SubjectPublicKeyInfo of 44 bytes (RFC 8410 §4):
//!
//! | bytes | content                                                  |
//! |-------|----------------------------------------------------------|
//! | 2     | `30 2a`: sequence of 42 bytes                            |
//! | 7     | `30 05 06 03 2b 65 70`: algorithm 1.3.101.112, Ed25519   |
//! | 3     | `03 21 00`: bit string of 33 bytes, no unused bits       |
//! | 32    | the key                                                  |

use std::fmt;
use std::sync::Arc;

use quinn::crypto::rustls::{NoInitialCipherSuite, QuicClientConfig, QuicServerConfig};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use rustls::crypto::{CryptoProvider, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{
    CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime,
};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, PeerIncompatible,
    SignatureScheme,
};

use crate::keys::{PublicKey, SecretKey, VerifyingKey};

/// The server name to hand to `quinn::Endpoint::connect`. It is neither sent nor checked: a peer is its key.
pub const SERVER_NAME: &str = "conclave";

const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0];

/// TLS settings that could not be made. Both kinds mean that the build or the key is broken, not the peer.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// rustls refused the key or the protocol version.
    #[error("the TLS settings were refused: {0}; check the node's key file")]
    Rustls(#[from] Error),
    /// The provider lacks the cipher suite that QUIC's first packets need.
    #[error("the TLS provider cannot serve QUIC: {0}; rebuild with rustls' ring provider")]
    Quic(#[from] NoInitialCipherSuite),
}

/// Settings for the accepting side: TLS 1.3, client authentication required, no resumption, no early data.
///
/// `allowed` is asked once per handshake, on the endpoint's thread, and answers for the moment: it must not block.
/// Keys that cannot verify anything are refused before it is asked.
///
/// # Errors
/// When the key or the provider does not do; see [`TlsError`].
pub fn server_config(
    key: &SecretKey,
    allowed: Arc<dyn Fn(&PublicKey) -> bool + Send + Sync>,
    alpn: &[u8],
) -> Result<quinn::ServerConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let resolver = AlwaysResolvesServerRawPublicKeys::new(certified(key)?);
    let verifier = AllowedClients { allowed, provider: Arc::clone(&provider) };
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(resolver));
    config.alpn_protocols = vec![alpn.to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.max_early_data_size = 0;
    Ok(quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(config)?)))
}

/// Settings for the connecting side, which accepts the server with the key `expected` and no other.
///
/// # Errors
/// When the key or the provider does not do; see [`TlsError`].
pub fn client_config(
    key: &SecretKey,
    expected: PublicKey,
    alpn: &[u8],
) -> Result<quinn::ClientConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let resolver = AlwaysResolvesClientRawPublicKeys::new(certified(key)?);
    let verifier = PinnedServer { expected, provider: Arc::clone(&provider) };
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(resolver));
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config.enable_sni = false;
    Ok(quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(config)?)))
}

/// The key that the peer of an established connection proved to have.
///
/// `None` before the handshake has finished, and for connections that these settings did not make.
pub fn peer_key(connection: &quinn::Connection) -> Option<PublicKey> {
    let shown = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    match shown.as_slice() {
        [only] => from_spki(only),
        _ => None,
    }
}

/// The SubjectPublicKeyInfo of a key.
pub fn spki(key: &PublicKey) -> [u8; 44] {
    let mut bytes = [0; 44];
    bytes[..12].copy_from_slice(&SPKI_PREFIX);
    bytes[12..].copy_from_slice(key.as_bytes());
    bytes
}

/// The key in a SubjectPublicKeyInfo, if it is the one DER form of an Ed25519 key. The key itself is not checked.
pub fn from_spki(bytes: &[u8]) -> Option<PublicKey> {
    let key = bytes.strip_prefix(&SPKI_PREFIX)?;
    Some(PublicKey::from_bytes(key.try_into().ok()?))
}

/// The own identity, as rustls wants it: the raw key takes the place of the certificate.
fn certified(key: &SecretKey) -> Result<Arc<CertifiedKey>, Error> {
    let der = key.to_pkcs8_der();
    let signer = rustls::crypto::ring::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(&der[..]))?;
    let shown = CertificateDer::from(spki(&key.public()).to_vec());
    Ok(Arc::new(CertifiedKey::new(vec![shown], signer)))
}

/// Admits clients whose key the predicate allows.
struct AllowedClients {
    allowed: Arc<dyn Fn(&PublicKey) -> bool + Send + Sync>,
    provider: Arc<CryptoProvider>,
}

impl fmt::Debug for AllowedClients {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("AllowedClients")
    }
}

impl ClientCertVerifier for AllowedClients {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        shown: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        if !(self.allowed)(&shown_key(shown, intermediates)?) {
            return Err(CertificateError::ApplicationVerificationFailure.into());
        }
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _shown: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::Tls13RequiredForQuic.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_handshake(&self.provider, message, shown, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// Accepts one server key.
#[derive(Debug)]
struct PinnedServer {
    expected: PublicKey,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedServer {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if shown_key(shown, intermediates)? != self.expected {
            return Err(CertificateError::ApplicationVerificationFailure.into());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _shown: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::Tls13RequiredForQuic.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_handshake(&self.provider, message, shown, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// The key that a peer shows, if it shows exactly one and that one can verify.
fn shown_key(
    shown: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
) -> Result<PublicKey, Error> {
    let key = from_spki(shown).filter(|_| intermediates.is_empty());
    // A weak key would make the handshake's signature worthless, so the same rule holds as for messages.
    key.filter(|key| VerifyingKey::try_from(key).is_ok())
        .ok_or_else(|| CertificateError::BadEncoding.into())
}

fn verify_handshake(
    provider: &CryptoProvider,
    message: &[u8],
    shown: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    verify_tls13_signature_with_raw_key(
        message,
        &SubjectPublicKeyInfoDer::from(shown.as_ref()),
        signed,
        &provider.signature_verification_algorithms,
    )
}
