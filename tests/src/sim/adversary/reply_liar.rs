//! The liar towards clients.
//!
//! Tries: answers with a changed result, a block that was never decided, a false path, in another replica's name, with
//! an attestation of something else, or not at all. Some lies are the same at each liar, so that f of them agree.
//! Stopped by: a client believes f+1 equal attested results, each bound to its block by a Merkle path and a signature.

use super::forge::garbage;
use super::{Adversary, Attack, Hands, Make, Verdict};
use conclave_consensus::client_wire::{NodeFrame, Outcome, Refusal};
use conclave_consensus::message::{Attestation, BlockReplies, result_leaf};
use conclave_consensus::wire;
use conclave_crypto::digest::Digest;
use conclave_crypto::merkle::MerkleTree;

#[derive(Clone, Copy)]
enum Lie {
    Result,
    Block,
    Path,
    Name,
    Attestation,
    Silence,
    Busy,
}

pub(super) fn attack() -> Attack {
    Attack {
        name: "reply-liar",
        tries: "answers clients with false results, blocks, paths and names",
        make: Make::Replica(|random| {
            let lies = [
                Lie::Result,
                Lie::Block,
                Lie::Path,
                Lie::Name,
                Lie::Attestation,
                Lie::Silence,
                Lie::Busy,
            ];
            Box::new(ReplyLiar { lie: *random.pick(&lies) })
        }),
    }
}

struct ReplyLiar {
    lie: Lie,
}

/// A block of one answer that refuses, attested by its own key: the same at every liar.
fn refusal(hands: &Hands<'_>, truth: &BlockReplies) -> BlockReplies {
    let mut lie = truth.clone();
    lie.results.truncate(1);
    let Some(entry) = lie.results.first_mut() else { return lie };
    entry.result = wire::encode(&Outcome::Refused(Refusal::NotRegistered));
    let tree = MerkleTree::new(vec![result_leaf(&entry.request, &entry.result)]);
    entry.path = tree.path(0);
    lie.header.results_root = tree.root();
    let attestation = Attestation {
        epoch: lie.header.epoch,
        height: lie.header.height,
        header: lie.header.hash(),
        replica: hands.id,
    };
    lie.attestation = hands.sign(attestation).signature;
    lie
}

impl Adversary for ReplyLiar {
    fn answering(
        &mut self,
        hands: &mut Hands<'_>,
        _: u16,
        frame: &NodeFrame,
    ) -> Verdict<NodeFrame> {
        let NodeFrame::Replies(truth) = frame else { return Verdict::Pass };
        let mut lie = BlockReplies::clone(truth);
        match self.lie {
            Lie::Result => {
                for entry in &mut lie.results {
                    entry.result.push(0);
                }
            }
            Lie::Block => lie = refusal(hands, truth),
            Lie::Path => {
                for entry in &mut lie.results {
                    entry.path.siblings.push(Digest::ZERO);
                    entry.path.count = entry.path.count.saturating_add(1);
                }
            }
            Lie::Name => {
                let others = hands.others();
                lie.replica = *hands.random.pick(&others);
            }
            Lie::Attestation => lie.attestation = garbage(hands.random),
            Lie::Silence => return Verdict::Drop,
            Lie::Busy => {
                let busy = lie.results.iter().map(|entry| NodeFrame::Busy {
                    request: entry.request,
                    reason: "x".repeat(200),
                });
                return Verdict::Instead(busy.collect());
            }
        }
        Verdict::Instead(vec![NodeFrame::Replies(Box::new(lie))])
    }
}
