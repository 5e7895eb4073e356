//! Acknowledged means attested: every answer that a client believes carries f+1 valid attestations of distinct members
//! over one header, and a Merkle path from the request and the result to it (OSDI'99 §4.1: f+1 replies with valid
//! signatures from different replicas).

use super::{Cast, Check, Fact};
use crate::sim::keys;
use conclave_consensus::message::{Attestation, result_leaf};
use conclave_consensus::quorum::Byzantine;
use conclave_crypto::signature::Signed;
use std::collections::BTreeSet;

/// Judges each answer by itself.
#[derive(Default)]
pub(super) struct Acknowledged;

impl Check for Acknowledged {
    fn name(&self) -> &'static str {
        "acknowledged means f+1 attestations"
    }

    fn see(&mut self, fact: &Fact<'_>, cast: &Cast) -> Result<(), String> {
        let Fact::Answered { client, completion, .. } = fact else { return Ok(()) };
        let proof = &completion.proof;
        let header = &proof.block.header;
        let members = keys::members(cast.genesis.membership.members.clone());
        let weak = Byzantine::of(members.members().len()).weak();
        let mut signers = BTreeSet::new();
        for (replica, signature) in &proof.block.attestations {
            let hash = header.hash();
            let (epoch, height, replica) = (header.epoch, header.height, *replica);
            let value = Attestation { epoch, height, header: hash, replica };
            let signed = Signed { value, signature: *signature };
            let key = members.key(replica);
            if key.is_some_and(|key| signed.verify(key, &header.cluster).is_ok()) {
                signers.insert(replica);
            }
        }
        if signers.len() < weak {
            let found = signers.len();
            return Err(format!("c{client} believes {found} attestations of {}", header.height));
        }
        let leaf = result_leaf(&proof.request.digest(), &proof.result);
        if proof.path.root_of(leaf) != Ok(header.results_root) {
            return Err(format!("c{client} believes a result that block {} lacks", header.height));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{answered, block, cast, completion};
    use super::*;

    #[test]
    fn too_few_or_false_attestations_and_foreign_results_are_refused() {
        let good = completion(&block(1, &[(0, 1)]), 0);
        fn see(completion: &conclave_consensus::client_session::Completion) -> Result<(), String> {
            Acknowledged.see(&answered(0, completion), &cast(4, &[]))
        }
        assert!(see(&good).is_ok());
        let mut few = good.clone();
        let mut proven = (*few.proof.block).clone();
        proven.attestations.truncate(1);
        few.proof.block = proven.clone().into();
        assert!(see(&few).is_err());
        proven.attestations.push(proven.attestations[0]);
        few.proof.block = proven.clone().into();
        assert!(see(&few).is_err());
        let mut foreign = good;
        foreign.proof.result.push(0);
        assert!(see(&foreign).is_err());
    }
}
