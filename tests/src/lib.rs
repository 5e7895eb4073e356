//! What the end-to-end tests are written with: real processes, real sockets, real disks.
//!
//! A [`Cluster`] is a testnet that the real `conclave-node testnet` wrote, each on loopback addresses
//! of its own, so that any number of test processes run beside each other with the ports that users
//! see. Its nodes hold the other end of a pipe of ours (`--stop-on-eof`): however a test ends, they
//! end with it. A [`Workload`] writes from many tasks at once and remembers every write that was
//! acknowledged, and [`audit`] then finds each of them in the ledger of every replica.
//!
//! Nothing here sleeps for a fixed time to let something happen: [`wait::until`] polls a condition
//! under a deadline far above what it takes, and says what it last saw when that passes.
//!
//! [`siege`] attacks such a cluster for as long as one likes, and judges it at the end; [`proxy`] is the bad network for it.
//!
//! Reading order: [`cluster`], [`workload`], [`audit`], [`siege`]; the rest are their tools.

pub mod asker;
pub mod audit;
pub mod binaries;
pub mod cluster;
pub mod command;
pub mod fuzz;
pub mod history;
pub mod hosts;
pub mod http;
pub mod linearizable;
pub mod node;
pub mod proxy;
pub mod quic;
pub mod recorder;
pub mod siege;
#[cfg(feature = "simulation")]
pub mod sim;
pub mod traitor;
pub mod wait;
pub mod workload;

pub use cluster::{Cluster, Setup};
pub use command::Outcome;
pub use workload::Workload;
