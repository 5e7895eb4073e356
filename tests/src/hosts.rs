//! Loopback addresses that no other test uses.
//!
//! All of 127.0.0.0/8 is this machine, so each cluster takes a network 127.x.y.0/24 of its own and
//! may then use the ports that users see. A network is taken while a socket is bound to its
//! host 254, which the kernel gives to one process only, whatever it is and however it ends.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};

/// The port that marks a network as taken.
const MARK_PORT: u16 = 27099;
/// Networks 127.1.0.0/24 to 127.250.255.0/24; 127.0.0.0/24 is left to other programs.
const NETWORKS: u32 = 250 * 256;

/// A network of this process's own for as long as it lives.
#[derive(Debug)]
pub struct Network {
    x: u8,
    y: u8,
    _mark: TcpListener,
}

impl Network {
    /// Takes a free network.
    ///
    /// # Panics
    /// If none of a thousand tries is free.
    #[must_use]
    pub fn take() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        for _ in 0..1000 {
            // Processes start far apart, so that they seldom meet at all.
            let offset = std::process::id().wrapping_mul(2_654_435_761) >> 8;
            let number = offset.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % NETWORKS;
            let x = u8::try_from(1 + number / 256).expect("NETWORKS bounds it");
            let y = u8::try_from(number % 256).expect("a remainder");
            if let Ok(mark) = TcpListener::bind((Ipv4Addr::new(127, x, y, 254), MARK_PORT)) {
                return Self { x, y, _mark: mark };
            }
        }
        panic!("no loopback network is free in a thousand tries; does 127.0.0.0/8 belong to lo?")
    }

    /// Host `1 + index` of it.
    ///
    /// # Panics
    /// If the network has no such host.
    #[must_use]
    pub fn host(&self, index: usize) -> Ipv4Addr {
        let last = u8::try_from(1 + index).expect("a network has 253 hosts for us");
        assert!(last < 254, "host 254 marks the network");
        Ipv4Addr::new(127, self.x, self.y, last)
    }
}

#[cfg(test)]
mod tests {
    use super::Network;

    #[test]
    fn two_clusters_never_share_an_address() {
        let (one, two) = (Network::take(), Network::take());
        assert_ne!((one.x, one.y), (two.x, two.y));
        assert_ne!(one.host(0), two.host(0));
    }
}
