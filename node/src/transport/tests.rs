//! Real QUIC on loopback, ports given by the system. Nothing sleeps to wait: events come through channels and conditions
//! are polled, both under one generous deadline.

mod clients;
mod peers;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use conclave_crypto::framing::{CloseCode, Hello, frame_header};
use conclave_crypto::transport_limits::TransportLimits;
use conclave_crypto::{Digest, PublicKey, SecretKey, tls};
use quinn::{Connection, ConnectionError, Endpoint, RecvStream, SendStream};

use super::*;

/// Far above what anything here takes on a busy machine.
const DEADLINE: Duration = Duration::from_secs(30);

const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

fn key(seed: u8) -> Arc<SecretKey> {
    Arc::new(SecretKey::from_seed([seed; 32]))
}

fn cluster() -> Digest {
    Digest::from_bytes([5; 32])
}

fn eventually(what: &str, condition: impl Fn() -> bool) {
    let since = Instant::now();
    while !condition() {
        assert!(since.elapsed() < DEADLINE, "not within the deadline: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A sink that keeps what it gets for a test to look at.
fn collector<T: Send + 'static>() -> (Arc<dyn Fn(T) + Send + Sync>, Receiver<T>) {
    let (sender, receiver): (Sender<T>, _) = channel();
    let sender = Mutex::new(sender);
    let sink = Arc::new(move |event| {
        // A test that has ended looks no more.
        let _ = sender.lock().unwrap().send(event);
    });
    (sink, receiver)
}

/// The next event that `pick` takes; others are passed over.
fn next<T, U>(events: &Receiver<T>, pick: impl Fn(T) -> Option<U>) -> U {
    let since = Instant::now();
    loop {
        let left = DEADLINE.saturating_sub(since.elapsed());
        if let Some(picked) = pick(events.recv_timeout(left).expect("an event in time")) {
            return picked;
        }
    }
}

/// Someone who speaks QUIC but not necessarily by the rules.
struct Rogue {
    runtime: tokio::runtime::Runtime,
    endpoint: Endpoint,
    key: Arc<SecretKey>,
    alpn: &'static [u8],
}

impl Rogue {
    fn new(key: Arc<SecretKey>, alpn: &'static [u8]) -> Self {
        Self::on(LOOPBACK, key, alpn)
    }

    fn on(address: SocketAddr, key: Arc<SecretKey>, alpn: &'static [u8]) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (_, socket) = Port::bind(address).unwrap().into_parts();
        let config = limits::endpoint_config(&key, &TransportLimits::peer());
        let entered = runtime.enter();
        let quic = Arc::new(quinn::TokioRuntime);
        let endpoint = Endpoint::new(config, None, socket, quic).unwrap();
        drop(entered);
        Self { runtime, endpoint, key, alpn }
    }

    fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime
            .block_on(async { tokio::time::timeout(DEADLINE, work).await })
            .expect("within the deadline")
    }

    fn connect(
        &self,
        address: SocketAddr,
        server: PublicKey,
    ) -> Result<Connection, ConnectionError> {
        let mut config = tls::client_config(&self.key, server, self.alpn).unwrap();
        config.transport_config(TransportLimits::peer().config());
        self.wait(async {
            self.endpoint.connect_with(config, address, tls::SERVER_NAME).unwrap().await
        })
    }

    /// Opens a unidirectional stream that starts with these bytes.
    fn open_uni(&self, connection: &Connection, first: &[u8]) -> SendStream {
        self.wait(async {
            let mut stream = connection.open_uni().await.unwrap();
            stream.write_all(first).await.unwrap();
            stream
        })
    }

    /// Writes, without caring whether the connection still stands.
    fn write(&self, stream: &mut SendStream, bytes: &[u8]) {
        let _ = self.wait(stream.write_all(bytes));
    }

    /// The code and the reason with which the other side has closed the connection.
    fn closed(&self, connection: &Connection) -> (CloseCode, String) {
        let error = self.wait(connection.closed());
        let code = CloseCode::of(&error).unwrap_or_else(|| panic!("closed by {error}"));
        let ConnectionError::ApplicationClosed(close) = error else { unreachable!() };
        (code, String::from_utf8(close.reason.to_vec()).unwrap())
    }

    /// The next frame on a stream.
    fn read_frame(&self, stream: &mut RecvStream) -> Bytes {
        self.wait(async {
            let mut header = [0; 4];
            stream.read_exact(&mut header).await.unwrap();
            let mut payload = vec![0; u32::from_le_bytes(header) as usize];
            stream.read_exact(&mut payload).await.unwrap();
            Bytes::from(payload)
        })
    }
}

fn framed(payload: &[u8]) -> Vec<u8> {
    [&frame_header(payload.len()), payload].concat()
}

#[test]
fn a_port_in_use_is_named() {
    let thread = TransportThread::start("transport").unwrap();
    let (first, _events) = peers::start(&thread, 0, |_| {});
    let taken = first.local_address();
    let refused = Port::bind(taken).expect_err("the port is taken");
    assert!(matches!(refused, TransportError::PortInUse { address } if address == taken));
    assert!(refused.to_string().contains(&taken.to_string()));
    thread.stop();
}

#[test]
fn a_stopped_thread_frees_its_ports() {
    let thread = TransportThread::start("transport").unwrap();
    let (mesh, _events) = peers::start(&thread, 0, |_| {});
    let address = mesh.local_address();
    thread.stop();
    let thread = TransportThread::start("transport").unwrap();
    let (_mesh, _events) = peers::start(&thread, 0, |config| {
        config.port = Port::bind(address).unwrap();
    });
    thread.stop();
}
