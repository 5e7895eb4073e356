//! So many connections at once, each for as long as it does something: HTTP takes no descriptors from the storage.

use axum::serve::Listener;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep_until};

/// Takes a connection only while there is a place for it; who comes then waits in the system's queue.
pub(super) struct Places {
    listener: TcpListener,
    free: Arc<Semaphore>,
    idle: Duration,
}

impl Places {
    /// So many places, each lost by who sends nothing for `idle`.
    pub(super) fn new(listener: TcpListener, places: usize, idle: Duration) -> Self {
        Self { listener, free: Arc::new(Semaphore::new(places)), idle }
    }
}

impl Listener for Places {
    type Io = Placed;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Placed, SocketAddr) {
        let free = Arc::clone(&self.free);
        let place = free.acquire_owned().await.expect("it is never closed");
        let (stream, address) = Listener::accept(&mut self.listener).await;
        let until = Box::pin(sleep_until(Instant::now() + self.idle));
        (Placed { stream, until, idle: self.idle, _place: place }, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that has a place.
pub(super) struct Placed {
    stream: TcpStream,
    until: Pin<Box<Sleep>>,
    idle: Duration,
    _place: OwnedSemaphorePermit,
}

impl AsyncRead for Placed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if read.is_ready() {
            let until = Instant::now() + self.idle;
            self.until.as_mut().reset(until);
            return read;
        }
        self.until.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncWrite for Placed {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[tokio::test]
    async fn who_does_nothing_loses_its_place_to_who_waits() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("it is bound");
        let mut places = Places::new(listener, 1, Duration::from_millis(50));
        let _silent = TcpStream::connect(address).await.expect("it listens");
        let mut speaks = TcpStream::connect(address).await.expect("it listens");
        let (mut first, _) = places.accept().await;
        let second = tokio::spawn(async move { places.accept().await });
        tokio::task::yield_now().await;
        assert!(!second.is_finished(), "there is one place");
        let lost = first.read_u8().await.expect_err("it says nothing");
        assert_eq!(lost.kind(), io::ErrorKind::TimedOut);
        drop(first);
        let (mut second, _) = second.await.expect("it is accepted");
        speaks.write_all(b"x").await.expect("it is connected");
        assert_eq!(second.read_u8().await.expect("one byte"), b'x');
    }
}
