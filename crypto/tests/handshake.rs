//! Real QUIC handshakes over the loopback interface, by raw public keys.
#![allow(clippy::unwrap_used, reason = "in a test, an unwrap that fails is the test that fails")]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use conclave_crypto::tls::{SERVER_NAME, client_config, from_spki, peer_key, server_config, spki};
use conclave_crypto::{PublicKey, SecretKey};
use quinn::{ConnectionError, Endpoint};
use rustls::client::AlwaysResolvesClientRawPublicKeys;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::server::AlwaysResolvesServerRawPublicKeys;
use rustls::sign::CertifiedKey;

const ALPN: &[u8] = b"conclave-test/1";
/// Far above what a handshake takes, so that only a hang reaches it.
const DEADLINE: Duration = Duration::from_secs(30);

fn key(seed: u8) -> SecretKey {
    SecretKey::from_seed([seed; 32])
}

fn loopback() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

/// A server with key 1 that admits one client, on a port of the system's choice.
fn server(admitted: PublicKey) -> Endpoint {
    server_with(Arc::new(move |shown: &PublicKey| *shown == admitted))
}

fn server_with(allowed: Arc<dyn Fn(&PublicKey) -> bool + Send + Sync>) -> Endpoint {
    Endpoint::server(server_config(&key(1), allowed, ALPN).unwrap(), loopback()).unwrap()
}

/// What each side of one attempt saw: the peer's key, or why there is no connection.
///
/// The client sends one byte and waits for its echo: in TLS 1.3 its handshake is complete before the server has
/// judged its key, so a connection alone proves nothing.
async fn attempt(
    server: &Endpoint,
    config: quinn::ClientConfig,
) -> (Result<PublicKey, ConnectionError>, Result<PublicKey, String>) {
    let accepting = async {
        let connection = server.accept().await.expect("the endpoint is open").await?;
        let shown = peer_key(&connection).expect("client authentication is mandatory");
        let (mut send, mut receive) = connection.accept_bi().await?;
        let byte = receive.read_to_end(1).await.expect("one byte");
        send.write_all(&byte).await.expect("the client waits");
        send.finish().expect("the stream is open");
        connection.closed().await;
        Ok(shown)
    };
    let connecting = async {
        let client = Endpoint::client(loopback()).unwrap();
        let to = server.local_addr().unwrap();
        let connection = client
            .connect_with(config, to, SERVER_NAME)
            .unwrap()
            .await
            .map_err(|error| error.to_string())?;
        let shown = peer_key(&connection).expect("a server always shows its key");
        let (mut send, mut receive) =
            connection.open_bi().await.map_err(|error| error.to_string())?;
        send.write_all(&[7]).await.map_err(|error| format!("{error:?}"))?;
        send.finish().map_err(|error| error.to_string())?;
        let echo = receive.read_to_end(1).await.map_err(|error| format!("{error:?}"))?;
        assert_eq!(echo, [7]);
        connection.close(0_u32.into(), b"done");
        client.wait_idle().await;
        Ok(shown)
    };
    tokio::time::timeout(DEADLINE, async { tokio::join!(accepting, connecting) })
        .await
        .expect("both sides come to an end")
}

#[tokio::test]
async fn the_right_keys_meet_and_each_side_learns_the_others() {
    let (me, server_key) = (key(2), key(1).public());
    let server = server(me.public());
    let (accepted, connected) =
        attempt(&server, client_config(&me, server_key, ALPN).unwrap()).await;
    assert_eq!(accepted.unwrap(), me.public());
    assert_eq!(connected.unwrap(), server_key);
}

#[tokio::test]
async fn a_client_whose_key_is_not_allowed_is_refused_before_it_can_say_anything() {
    let server = server(key(2).public());
    let stranger = client_config(&key(3), key(1).public(), ALPN).unwrap();
    let (accepted, connected) = attempt(&server, stranger).await;
    assert!(matches!(accepted, Err(ConnectionError::TransportError(_))), "{accepted:?}");
    assert!(connected.is_err());
}

#[tokio::test]
async fn a_server_with_another_key_than_the_expected_one_is_refused() {
    let me = key(2);
    let server = server(me.public());
    let (accepted, connected) =
        attempt(&server, client_config(&me, key(9).public(), ALPN).unwrap()).await;
    assert!(accepted.is_err());
    assert!(connected.is_err());
}

#[tokio::test]
async fn a_client_that_shows_no_key_is_refused() {
    let server = server_with(Arc::new(|_: &PublicKey| true));
    let (accepted, connected) = attempt(&server, hostile_client(None)).await;
    assert!(accepted.is_err());
    assert!(connected.is_err());
}

#[tokio::test]
async fn a_client_that_shows_a_members_key_but_signs_with_its_own_is_refused() {
    let member = key(2).public();
    let server = server(member);
    let (accepted, connected) =
        attempt(&server, hostile_client(Some(pretend(member, &key(3))))).await;
    assert!(matches!(accepted, Err(ConnectionError::TransportError(_))), "{accepted:?}");
    assert!(connected.is_err());
    // The same client with the member's private key is let in: it was the signature that failed.
    let (accepted, _) = attempt(&server, hostile_client(Some(pretend(member, &key(2))))).await;
    assert_eq!(accepted.unwrap(), member);
}

#[tokio::test]
async fn a_server_that_shows_the_expected_key_but_signs_with_its_own_is_refused() {
    let (me, expected) = (key(2), key(1).public());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let resolver = AlwaysResolvesServerRawPublicKeys::new(pretend(expected, &key(3)));
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(resolver));
    config.alpn_protocols = vec![ALPN.to_vec()];
    let quic = quinn::crypto::rustls::QuicServerConfig::try_from(config).unwrap();
    let config = quinn::ServerConfig::with_crypto(Arc::new(quic));
    let server = Endpoint::server(config, loopback()).unwrap();
    let (accepted, connected) = attempt(&server, client_config(&me, expected, ALPN).unwrap()).await;
    assert!(accepted.is_err());
    assert!(connected.is_err());
}

#[tokio::test]
async fn a_weak_client_key_is_refused_before_anybody_is_asked_about_it() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let server = server_with(Arc::new(move |_: &PublicKey| {
        counted.fetch_add(1, Ordering::SeqCst);
        true
    }));
    let mut identity = [0; 32];
    identity[0] = 1;
    let weak = pretend(PublicKey::from_bytes(identity), &key(3));
    let (accepted, connected) = attempt(&server, hostile_client(Some(weak))).await;
    assert!(accepted.is_err());
    assert!(connected.is_err());
    assert_eq!(asked.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_client_that_speaks_another_protocol_is_refused() {
    let me = key(2);
    let server = server(me.public());
    let config = client_config(&me, key(1).public(), b"something-else").unwrap();
    let (accepted, connected) = attempt(&server, config).await;
    assert!(accepted.is_err());
    assert!(connected.is_err());
}

#[tokio::test]
async fn a_second_connection_is_judged_anew_and_never_resumed() {
    let me = key(2);
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    // The first time the key is a member's, then it is removed.
    let server =
        server_with(Arc::new(move |_: &PublicKey| counted.fetch_add(1, Ordering::SeqCst) == 0));
    let config = client_config(&me, key(1).public(), ALPN).unwrap();
    let (accepted, _) = attempt(&server, config.clone()).await;
    assert_eq!(accepted.unwrap(), me.public());
    let (accepted, connected) = attempt(&server, config).await;
    assert!(accepted.is_err());
    assert!(connected.is_err());
    assert_eq!(asked.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn no_early_data_is_possible_even_after_a_full_handshake() {
    let me = key(2);
    let server = server(me.public());
    let config = client_config(&me, key(1).public(), ALPN).unwrap();
    let (accepted, _) = attempt(&server, config.clone()).await;
    accepted.unwrap();
    let client = Endpoint::client(loopback()).unwrap();
    let connecting =
        client.connect_with(config, server.local_addr().unwrap(), SERVER_NAME).unwrap();
    assert!(connecting.into_0rtt().is_err());
}

#[test]
fn a_key_survives_its_spki_form_and_no_other_form_is_read() {
    let public = key(5).public();
    let encoded = spki(&public);
    assert_eq!(from_spki(&encoded), Some(public));
    assert_eq!(from_spki(&encoded[..43]), None);
    assert_eq!(from_spki(&[&encoded[..], &[0]].concat()), None);
    assert_eq!(from_spki(&[]), None);
    for at in 0..12 {
        let mut other = encoded;
        other[at] ^= 1;
        assert_eq!(from_spki(&other), None, "byte {at}");
    }
}

/// An identity that shows one key and signs with another.
fn pretend(shown: PublicKey, signer: &SecretKey) -> Arc<CertifiedKey> {
    let der = signer.to_pkcs8_der();
    let signer =
        rustls::crypto::ring::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(&der[..])).unwrap();
    Arc::new(CertifiedKey::new(vec![CertificateDer::from(spki(&shown).to_vec())], signer))
}

/// A client that believes every server and shows what it likes.
fn hostile_client(identity: Option<Arc<CertifiedKey>>) -> quinn::ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Gullible));
    let mut config = match identity {
        Some(identity) => builder
            .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(identity))),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    let quic = quinn::crypto::rustls::QuicClientConfig::try_from(config).unwrap();
    quinn::ClientConfig::new(Arc::new(quic))
}

/// Believes every server; only a test needs one.
#[derive(Debug)]
struct Gullible;

impl rustls::client::danger::ServerCertVerifier for Gullible {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        vec![rustls::SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}
