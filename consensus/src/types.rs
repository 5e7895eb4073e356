//! The newtypes of the protocols, named as the papers name them.
//!
//! Every number that crosses a function boundary has a type of its own, so that a view never
//! passes for a sequence. All are fixed-width on the wire (little endian, see [`crate::wire`]).

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! newtype {
    ($(#[$doc:meta])* $name:ident($inner:ty), $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
    };
}

macro_rules! counter {
    ($name:ident) => {
        impl $name {
            /// The value after this one; saturates, so that hostile input cannot overflow it.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0.saturating_add(1))
            }

            /// This value plus `n`, saturating.
            #[must_use]
            pub const fn plus(self, n: u64) -> Self {
                Self(self.0.saturating_add(n))
            }

            /// This value minus `n`, stopping at zero.
            #[must_use]
            pub const fn minus(self, n: u64) -> Self {
                Self(self.0.saturating_sub(n))
            }
        }
    };
}

newtype!(
    /// A participant of agreement: its index in the membership, stable for its life.
    ReplicaId(u16),
    "r"
);
newtype!(
    /// A PBFT view: one primary's reign within an epoch. Units: count from 0.
    View(u64),
    "v"
);
newtype!(
    /// A slot of the log, and the height of the block that fills it. The first slot is 1; 0 is genesis.
    Sequence(u64),
    "n"
);
newtype!(
    /// A span of the log under one membership and one set of keys. The first is 0.
    Epoch(u64),
    "e"
);
newtype!(
    /// A client's session: how many sessions the client had opened when this one opened, plus one.
    SessionId(u64),
    "s"
);
newtype!(
    /// A request's number in its session. The first is 1.
    RequestNumber(u64),
    "#"
);
newtype!(
    /// Wall time as agreed by the ledger. Units: milliseconds since the Unix epoch.
    Timestamp(u64),
    "ms"
);
newtype!(
    /// Ties the answer to a linearizable read to the read that asked for it.
    ReadToken(u64),
    "read"
);

counter!(View);
counter!(Sequence);
counter!(Epoch);
counter!(SessionId);
counter!(RequestNumber);
counter!(Timestamp);

/// A client is its public key, so that a signature is checked without any state.
pub type ClientId = conclave_crypto::keys::PublicKey;
