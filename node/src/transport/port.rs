//! A UDP port that is bound, and that nothing listens on yet.
//!
//! Binding is apart from listening so that a node can take all its ports before it opens a database
//! or starts a thread: whatever fails later, it is no port.

use std::io;
use std::net::{SocketAddr, UdpSocket};

use socket2::{Domain, Protocol, Socket, Type};

use super::TransportError;

/// Bytes asked of the kernel for each direction of a socket. One replica's burst to all others must fit; the kernel
/// gives what it may.
const SOCKET_BUFFER: usize = 8 << 20;

/// A bound UDP port. Dropping it frees the port.
#[derive(Debug)]
pub struct Port {
    address: SocketAddr,
    socket: UdpSocket,
}

impl Port {
    /// Binds the port; port 0 takes a free one.
    ///
    /// # Errors
    /// [`TransportError::PortInUse`] where another socket has it, [`TransportError::Bind`] for all else.
    pub fn bind(address: SocketAddr) -> Result<Self, TransportError> {
        match bind(address) {
            Ok(socket) => Ok(Self { address, socket }),
            Err(source) if source.kind() == io::ErrorKind::AddrInUse => {
                Err(TransportError::PortInUse { address })
            }
            Err(source) => Err(TransportError::Bind { address, source }),
        }
    }

    /// What an endpoint is made from: the address that was asked for, and the socket.
    pub(super) fn into_parts(self) -> (SocketAddr, UdpSocket) {
        (self.address, self.socket)
    }
}

fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    // Best effort: a smaller buffer costs packets under load, which are sent again.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER);
    socket.bind(&address.into())?;
    Ok(socket.into())
}
