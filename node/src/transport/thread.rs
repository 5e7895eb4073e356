//! The thread that all QUIC work of a node runs on.
//!
//! One thread with a single-threaded runtime: packets, streams and timers of a node stay in one processor's cache, and
//! no lock inside quinn is ever contended. Peers and clients may share a thread or have one each; sharing saves
//! wake-ups where processors are few.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use conclave_crypto::framing::CloseCode;
use tokio::runtime::{Builder, Handle};
use tokio::sync::{Notify, watch};

use super::TransportError;
use super::lane::Lane;
use super::socket::Socket;
use super::timer::PatientRuntime;

/// How long an orderly stop waits for the last packets to leave.
const FAREWELL: Duration = Duration::from_millis(300);

/// A running transport thread. Endpoints are started on it; stopping it closes them.
#[derive(Debug)]
pub struct TransportThread {
    core: Arc<ThreadCore>,
    thread: Option<JoinHandle<()>>,
}

/// What endpoints need of their thread.
#[derive(Debug)]
pub(super) struct ThreadCore {
    pub(super) runtime: Handle,
    pub(super) doorbell: Arc<Doorbell>,
    stop: watch::Sender<bool>,
    endpoints: Mutex<Vec<EndpointSlot>>,
}

impl TransportThread {
    /// Starts the thread. `name` shows in the system's list of threads.
    ///
    /// # Errors
    /// [`TransportError::Thread`] when the system gives no thread or no event queue.
    pub fn start(name: &str) -> Result<Self, TransportError> {
        Self::start_with(name, (), || {})
    }

    /// As [`Self::start`]; `rest` runs on the thread whenever it has nothing left to do, before it
    /// sleeps. Frames that it queues leave before the thread sleeps. The thread keeps `kept` until it
    /// ends, in a panic too.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with(
        name: &str,
        kept: impl Send + 'static,
        rest: impl Fn() + Send + Sync + 'static,
    ) -> Result<Self, TransportError> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(1)
            .on_thread_park(rest)
            .build()
            .map_err(TransportError::Thread)?;
        let doorbell = Arc::new(Doorbell::default());
        let core = Arc::new(ThreadCore {
            runtime: runtime.handle().clone(),
            doorbell: Arc::clone(&doorbell),
            stop: watch::Sender::new(false),
            endpoints: Mutex::default(),
        });
        let on_thread = Arc::clone(&core);
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let _kept = kept;
                runtime.block_on(on_thread.run());
                // A name being resolved must not hold up the stop.
                runtime.shutdown_background();
            })
            .map_err(TransportError::Thread)?;
        Ok(Self { core, thread: Some(thread) })
    }

    /// Closes all endpoints of this thread in order and waits until it has ended, as dropping it does.
    pub fn stop(self) {
        drop(self);
    }

    pub(super) fn core(&self) -> &Arc<ThreadCore> {
        &self.core
    }
}

impl Drop for TransportThread {
    fn drop(&mut self) {
        self.core.stop.send_replace(true);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the transport's thread had panicked");
        }
    }
}

impl ThreadCore {
    /// Becomes true once, when the thread is to stop.
    pub(super) fn stopping(&self) -> watch::Receiver<bool> {
        self.stop.subscribe()
    }

    /// Makes an endpoint on a bound socket; it is closed when the thread stops.
    pub(super) fn endpoint(
        &self,
        config: quinn::EndpointConfig,
        server: quinn::ServerConfig,
        socket: std::net::UdpSocket,
    ) -> std::io::Result<EndpointSlot> {
        let _entered = self.runtime.enter();
        let socket = Arc::new(Socket::new(socket)?);
        let runtime = Arc::new(PatientRuntime);
        let endpoint =
            quinn::Endpoint::new_with_abstract_socket(config, Some(server), socket, runtime)?;
        let slot = EndpointSlot { address: endpoint.local_addr()?, endpoint: Arc::default() };
        *slot.lock() = Some(endpoint);
        self.endpoints.lock().unwrap_or_else(PoisonError::into_inner).push(slot.clone());
        Ok(slot)
    }

    async fn run(&self) {
        let mut stopping = self.stopping();
        tokio::select! {
            () = self.doorbell.answer() => {}
            _ = stopping.wait_for(|stop| *stop) => {}
        }
        let slots =
            std::mem::take(&mut *self.endpoints.lock().unwrap_or_else(PoisonError::into_inner));
        for slot in &slots {
            slot.close();
        }
        let idle = async {
            for endpoint in slots.iter().filter_map(EndpointSlot::endpoint) {
                endpoint.wait_idle().await;
            }
        };
        let _ = tokio::time::timeout(FAREWELL, idle).await;
        for slot in &slots {
            slot.lock().take();
        }
    }
}

/// An endpoint until its thread stops. A handle that outlives the thread then holds no socket, and the port is free.
#[derive(Clone, Debug)]
pub(super) struct EndpointSlot {
    /// Where it listens.
    pub(super) address: SocketAddr,
    endpoint: Arc<Mutex<Option<quinn::Endpoint>>>,
}

impl EndpointSlot {
    pub(super) fn endpoint(&self) -> Option<quinn::Endpoint> {
        self.lock().clone()
    }

    /// Closes all connections of the endpoint in order; it accepts none any more.
    pub(super) fn close(&self) {
        if let Some(endpoint) = &*self.lock() {
            endpoint.close(CloseCode::Shutdown.code(), b"the node stops");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<quinn::Endpoint>> {
        self.endpoint.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Wakes the runtime for lanes that got frames from other threads.
///
/// Waking a runtime from outside is a system call. Here it is paid once for all lanes that were filled since the
/// runtime last looked, and not at all while it has yet to look.
///
/// Invariant: each lane is listed at most once, because only an idle lane is listed.
#[derive(Debug, Default)]
pub(super) struct Doorbell {
    rung: AtomicBool,
    waiting: Mutex<Vec<Arc<Lane>>>,
    bell: Notify,
}

impl Doorbell {
    /// Lists lanes to be served. Ring afterwards.
    pub(super) fn list(&self, lane: Arc<Lane>) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push(lane);
    }

    /// Wakes the runtime, unless it has been woken and has not looked yet.
    pub(super) fn ring(&self) {
        if !self.rung.swap(true, Ordering::AcqRel) {
            self.bell.notify_one();
        }
    }

    /// Wakes the writers of listed lanes, for ever.
    async fn answer(&self) {
        let mut lanes = Vec::new();
        loop {
            self.bell.notified().await;
            // Cleared before the list is read: who lists afterwards rings again.
            self.rung.store(false, Ordering::Release);
            std::mem::swap(
                &mut lanes,
                &mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner),
            );
            for lane in lanes.drain(..) {
                lane.wake_writer();
            }
        }
    }
}
