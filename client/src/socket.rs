//! The client's UDP sockets: one per address family, shared by all its connections.

use conclave_crypto::transport_limits::MTU_MAX;
use quinn::{Endpoint, EndpointConfig, TokioRuntime};
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes asked of the kernel for each direction; it gives what it may. The answers of all replicas to
/// a full window of requests come at once.
const SOCKET_BUFFER: usize = 4 << 20;

/// Endpoints that are opened when an address of their family is first met.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    /// For IPv4 and for IPv6.
    endpoints: Mutex<[Option<Endpoint>; 2]>,
}

impl Sockets {
    /// The endpoint from which to reach `address`. Must be called within a tokio runtime.
    pub(crate) fn endpoint(&self, address: SocketAddr) -> io::Result<Endpoint> {
        let mut endpoints = self.endpoints.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = &mut endpoints[usize::from(address.is_ipv6())];
        if let Some(endpoint) = slot {
            return Ok(endpoint.clone());
        }
        let endpoint = open(address.is_ipv6())?;
        *slot = Some(endpoint.clone());
        Ok(endpoint)
    }

    /// All that were opened.
    pub(crate) fn opened(&self) -> Vec<Endpoint> {
        let endpoints = self.endpoints.lock().unwrap_or_else(PoisonError::into_inner);
        endpoints.iter().flatten().cloned().collect()
    }
}

fn open(v6: bool) -> io::Result<Endpoint> {
    let any: SocketAddr =
        if v6 { (Ipv6Addr::UNSPECIFIED, 0).into() } else { (Ipv4Addr::UNSPECIFIED, 0).into() };
    let socket = Socket::new(Domain::for_address(any), Type::DGRAM, Some(Protocol::UDP))?;
    // The kernel caps what it gives; a smaller buffer costs retransmissions, nothing else.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER);
    socket.bind(&any.into())?;
    let mut config = EndpointConfig::default();
    config.max_udp_payload_size(MTU_MAX).map_err(io::Error::other)?;
    Endpoint::new(config, None, socket.into(), Arc::new(TokioRuntime))
}
