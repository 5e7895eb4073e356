//! The censor: one client is left out for ever.
//!
//! Tries: never sees the requests of one client, whoever brings them, and so never proposes them while it leads, though
//! everybody else is served well.
//! Stopped by: the client sends to all, and each backup runs a timer for each request that it knows (OSDI'99 §4.5.2): the
//! view changes to a primary that does not look away.

use super::{Adversary, Attack, Hands, Make};
use conclave_consensus::client_wire::ClientFrame;
use conclave_consensus::pbft::message::Message;
use conclave_consensus::types::{ClientId, ReplicaId};

pub(super) fn attack() -> Attack {
    Attack {
        name: "censor",
        tries: "leaves one client out for ever",
        make: Make::Replica(|_| Box::new(Censor { victim: None })),
    }
}

struct Censor {
    victim: Option<ClientId>,
}

impl Censor {
    /// The first client that asks for anything.
    fn is_victim(&mut self, client: ClientId) -> bool {
        *self.victim.get_or_insert(client) == client
    }
}

impl Adversary for Censor {
    fn receiving(
        &mut self,
        _: &mut Hands<'_>,
        _: ReplicaId,
        _: &[u8],
        message: Option<&Message>,
    ) -> bool {
        match message {
            Some(Message::Forward(requests)) => {
                !requests.iter().any(|request| self.is_victim(request.key().client))
            }
            _ => true,
        }
    }

    fn asked(&mut self, _: &mut Hands<'_>, _: u16, frame: Option<&ClientFrame>) -> bool {
        match frame {
            Some(ClientFrame::Submit { request, .. }) => !self.is_victim(request.key().client),
            _ => true,
        }
    }
}
