//! What PBFT journals, and where.
//!
//! | slot            | record                                                                 |
//! |-----------------|------------------------------------------------------------------------|
//! | named 0         | [`Initial`]: `init` made this journal                                   |
//! | named 1         | [`Reserved`]: votes may have been cast up to here in this view          |
//! | named 2         | the newest VIEW-CHANGE of this replica, signed                          |
//! | named 3         | [`StoredNewView`]: the newest NEW-VIEW built or accepted, with its V    |
//! | named 4         | the end of the epoch before the current one                             |
//! | named 5         | [`Marker`]: the journal was lost; which nonce lets this replica vote    |
//! | named 6         | the newest stable checkpoint this replica has proof of                  |
//! | n, 0            | the batch that prepared at n                                            |
//! | n, 1            | the prepared certificate at n                                           |
//! | n, 2            | the commit certificate at n (lazy): the batch was handed to execution   |
//! | n, 3            | the end of the epoch whose last block is n                              |
//!
//! All are in canonical encoding. A record of an earlier epoch than the current one is void.

use super::message::{NewView, Sealed, ViewChange};
use crate::engine::Slot;
use crate::types::{Epoch, Sequence, View};
use conclave_crypto::digest::Digest;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

pub(super) const INITIAL: Slot = Slot::Named(0);
pub(super) const RESERVED: Slot = Slot::Named(1);
pub(super) const VIEW_CHANGE: Slot = Slot::Named(2);
pub(super) const NEW_VIEW: Slot = Slot::Named(3);
pub(super) const EPOCH: Slot = Slot::Named(4);
pub(super) const REJOIN: Slot = Slot::Named(5);
pub(super) const STABLE: Slot = Slot::Named(6);

pub(super) const fn body(sequence: Sequence) -> Slot {
    Slot::Sequenced(sequence, 0)
}

pub(super) const fn prepared(sequence: Sequence) -> Slot {
    Slot::Sequenced(sequence, 1)
}

pub(super) const fn mark(sequence: Sequence) -> Slot {
    Slot::Sequenced(sequence, 2)
}

pub(super) const fn epoch_end(sequence: Sequence) -> Slot {
    Slot::Sequenced(sequence, 3)
}

/// Says that this journal was made by `init`: no votes were cast before it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Initial {
    /// The format of the records.
    pub(super) version: u32,
}

/// Version of the records.
pub(super) const VERSION: u32 = 1;

/// Votes may have been cast in this view up to `through`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Reserved {
    pub(super) epoch: Epoch,
    pub(super) view: View,
    pub(super) through: Sequence,
}

/// The journal was lost: until an epoch begins by this nonce, nothing but Rejoin is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Marker {
    /// Drawn anew for each lost journal.
    pub(super) nonce: Digest,
    /// The epoch that the nonce began: from it on this replica votes.
    pub(super) since: Option<Epoch>,
}

/// A NEW-VIEW and the VIEW-CHANGEs it names, so that others can fetch them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StoredNewView {
    pub(super) new_view: Arc<Sealed<NewView>>,
    pub(super) changes: Vec<Arc<Sealed<ViewChange>>>,
}
