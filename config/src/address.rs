//! Where a replica is reached, in one spelling.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

/// Why a text is no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Not of the form `host:port`.
    #[error(
        "expected host:port, as 192.0.2.7:27100, [2001:db8::7]:27100 or node.example.org:27100"
    )]
    Form,
    /// The port is no number from 1 to 65535.
    #[error("expected a port from 1 to 65535 after the colon")]
    Port,
    /// The host is neither an IP address nor a DNS name.
    #[error("expected an IP address (IPv6 in brackets) or a DNS name before the port")]
    Host,
    /// 0.0.0.0 and the like, which nobody can connect to.
    #[error(
        "nobody can connect to this address; expected the one that others reach, and set \
         listen_address or client_listen_address in node.toml to listen on another"
    )]
    Unreachable,
}

/// `host:port` that others connect to.
///
/// Invariants: the port is not 0; an IP address is a single host's and in its shortest spelling; a DNS name is in lower
/// case. So two spellings of one address compare equal and give one cluster id.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address(String);

impl Address {
    /// The canonical text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The address to listen on, unless the host is a name.
    #[must_use]
    pub fn socket(&self) -> Option<SocketAddr> {
        self.0.parse().ok()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if let Ok(socket) = text.parse::<SocketAddr>() {
            return from_socket(socket);
        }
        let (host, port) = text.rsplit_once(':').ok_or(AddressError::Form)?;
        let port = port.parse::<u16>().ok().filter(|port| *port != 0).ok_or(AddressError::Port)?;
        if !is_dns_name(host) {
            return Err(AddressError::Host);
        }
        Ok(Self(format!("{}:{port}", host.to_ascii_lowercase())))
    }
}

fn from_socket(socket: SocketAddr) -> Result<Address, AddressError> {
    if socket.port() == 0 {
        return Err(AddressError::Port);
    }
    let broadcast = matches!(socket.ip(), IpAddr::V4(ip) if ip.is_broadcast());
    if socket.ip().is_unspecified() || socket.ip().is_multicast() || broadcast {
        return Err(AddressError::Unreachable);
    }
    Ok(Address(socket.to_string()))
}

/// Labels of letters, digits and inner hyphens (RFC 1123 §2.1). The last has a letter, so that a mistyped IPv4 address
/// does not pass for a name.
fn is_dns_name(host: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let last = host.rsplit('.').next().unwrap_or(host);
    host.len() <= 253
        && host.split('.').all(is_label)
        && last.bytes().any(|byte| byte.is_ascii_alphabetic())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_one_spelling() {
        let table = [
            ("127.0.0.1:27100", "127.0.0.1:27100"),
            ("[2001:DB8:0:0:0:0:0:7]:80", "[2001:db8::7]:80"),
            ("Node.Example.ORG:0080", "node.example.org:80"),
            ("localhost:1", "localhost:1"),
            ("a-1:65535", "a-1:65535"),
        ];
        for (text, canonical) in table {
            let address: Address = text.parse().unwrap();
            assert_eq!(address.as_str(), canonical);
            assert_eq!(canonical.parse::<Address>().unwrap(), address);
        }
    }

    #[test]
    fn what_nobody_can_connect_to_is_refused() {
        let table = [
            ("", AddressError::Form),
            ("localhost", AddressError::Form),
            ("127.0.0.1", AddressError::Form),
            ("127.0.0.1:0", AddressError::Port),
            ("127.0.0.1:65536", AddressError::Port),
            ("127.0.0.1:", AddressError::Port),
            ("host:port", AddressError::Port),
            ("127.0.0.300:80", AddressError::Host),
            ("2001:db8::7:80", AddressError::Host),
            (":80", AddressError::Host),
            ("-a.org:80", AddressError::Host),
            ("a..org:80", AddressError::Host),
            ("a b:80", AddressError::Host),
            ("0.0.0.0:80", AddressError::Unreachable),
            ("[::]:80", AddressError::Unreachable),
            ("224.0.0.1:80", AddressError::Unreachable),
            ("255.255.255.255:80", AddressError::Unreachable),
        ];
        for (text, error) in table {
            assert_eq!(text.parse::<Address>(), Err(error), "{text}");
        }
        assert!(format!("{}:80", "a".repeat(64)).parse::<Address>().is_err());
    }
}
