//! The UDP socket under an endpoint, with one system call less per wake-up than quinn's own.
//!
//! quinn reads a socket until the kernel says that it is empty, so that each wake-up for a packet or two costs a second
//! read that finds nothing. A read that returns fewer packets than it had room for has emptied the socket already; here
//! that is taken for the answer.
//!
//! This is right only because the endpoint lives on a single-threaded runtime. Readiness is edge-triggered: a packet
//! that comes after the read raises a new event, and the runtime cannot take that event in between the read and the
//! moment at which readiness is cleared, because both happen in one call on its only thread.

use std::fmt;
use std::future::Future;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use quinn::udp::{BATCH_SIZE, RecvMeta, Transmit, UdpSocketState};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// A bound socket, registered with the runtime that was entered when it was made.
#[derive(Debug)]
pub(super) struct Socket {
    io: UdpSocket,
    state: UdpSocketState,
    /// The kernel's send buffer was full at the last attempt.
    blocked: AtomicBool,
}

impl Socket {
    pub(super) fn new(socket: std::net::UdpSocket) -> io::Result<Self> {
        let state = UdpSocketState::new((&socket).into())?;
        Ok(Self { io: UdpSocket::from_std(socket)?, state, blocked: AtomicBool::new(false) })
    }

    fn would_block(error: &io::Error) -> bool {
        error.kind() == io::ErrorKind::WouldBlock
    }
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Poller { socket: self, waiting: None })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let sent =
            self.io.try_io(Interest::WRITABLE, || self.state.send((&self.io).into(), transmit));
        if sent.as_ref().is_err_and(Self::would_block) {
            self.blocked.store(true, Ordering::Relaxed);
        }
        sent
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.io.poll_recv_ready(cx))?;
            let received = self
                .io
                .try_io(Interest::READABLE, || self.state.recv((&self.io).into(), bufs, meta));
            // Any error but an empty socket is one packet's, such as an ICMP answer: the next read says more.
            let Ok(count) = received else { continue };
            if count < BATCH_SIZE.min(bufs.len()) {
                let empty = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
                let _ = self.io.try_io(Interest::READABLE, empty);
            }
            return Poll::Ready(Ok(count));
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.io.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.state.max_gso_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.state.gro_segments()
    }

    fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }
}

/// One connection's wait for room in the kernel's send buffer.
struct Poller {
    socket: Arc<Socket>,
    waiting: Option<Pin<Box<dyn Future<Output = io::Result<()>> + Send + Sync>>>,
}

impl UdpPoller for Poller {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.socket.blocked.load(Ordering::Relaxed) && self.waiting.is_none() {
            return Poll::Ready(Ok(()));
        }
        let socket = Arc::clone(&self.socket);
        let waiting =
            self.waiting.get_or_insert_with(|| Box::pin(async move { socket.io.writable().await }));
        let writable = ready!(waiting.as_mut().poll(cx));
        self.waiting = None;
        self.socket.blocked.store(false, Ordering::Relaxed);
        Poll::Ready(writable)
    }
}

impl fmt::Debug for Poller {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Poller")
    }
}
