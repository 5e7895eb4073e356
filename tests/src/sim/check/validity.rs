//! Validity: what a correct client did not sign is not executed in its name (OSDI'99 §3: faulty clients cannot act for
//! others).

use super::{Cast, Check, Fact};
use conclave_consensus::types::Sequence;
use conclave_crypto::digest::Digest;
use std::collections::BTreeSet;

/// What correct clients asked for.
#[derive(Default)]
pub(super) struct Validity {
    asked: BTreeSet<Digest>,
    /// Blocks up to here were judged.
    judged: Sequence,
}

impl Check for Validity {
    fn name(&self) -> &'static str {
        "validity"
    }

    fn see(&mut self, fact: &Fact<'_>, cast: &Cast) -> Result<(), String> {
        match fact {
            Fact::Asked { request, .. } => {
                self.asked.insert(request.digest());
            }
            Fact::Executed { replica, executed, batch } if cast.is_sound(*replica) => {
                let height = executed.header.height;
                if height <= self.judged {
                    return Ok(());
                }
                self.judged = height;
                for request in &batch.requests {
                    if let Some(client) = cast.clients.get(&request.key().client)
                        && !self.asked.contains(&request.digest())
                    {
                        return Err(format!(
                            "block {height} holds a request that c{client} never signed"
                        ));
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{block, cast, executed, request};
    use super::*;

    #[test]
    fn a_request_that_nobody_signed_is_refused() {
        let cast = cast(4, &[]);
        let mut check = Validity::default();
        let asked = request(0, 1);
        check.see(&Fact::Asked { client: 0, request: &asked }, &cast).unwrap();
        assert!(check.see(&executed(1, &block(1, &[(0, 1)])), &cast).is_ok());
        assert!(check.see(&executed(1, &block(2, &[(0, 2)])), &cast).is_err());
    }

    #[test]
    fn a_hostile_client_may_have_asked_for_anything() {
        let cast = cast(4, &[]);
        let mut check = Validity::default();
        assert!(check.see(&executed(1, &block(1, &[(9, 1)])), &cast).is_ok());
    }
}
