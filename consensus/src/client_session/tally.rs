//! Who vouches for which block, until f+1 do.

use crate::epoch_chain::MemberKeys;
use crate::message::{Attestation, BlockHeader};
use crate::types::ReplicaId;
use conclave_crypto::digest::Digest;
use conclave_crypto::mistake;
use conclave_crypto::signature::{Signature, SignatureError, Signed};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// Blocks remembered per voucher, and proven ones in all. A correct replica needs at most one per
/// outstanding request, and one more where a request was ordered twice.
pub(super) const BLOCKS_MAX: usize = 2 * crate::message::REQUEST_WINDOW as usize;

/// A block that f+1 replicas attested.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProvenBlock {
    /// Its header.
    pub header: BlockHeader,
    /// Exactly f+1 attestations, in id order.
    pub attestations: Vec<(ReplicaId, Signature)>,
}

enum Block {
    Gathering { vouchers: BTreeMap<ReplicaId, Signature> },
    Proven(Arc<ProvenBlock>),
}

/// The blocks that answer outstanding requests.
///
/// Memory: at most [`BLOCKS_MAX`] blocks per replica, each of a header and at most f+1 signatures.
/// A replica that vouches for more loses its own oldest words, never another's; f liars alone prove
/// nothing, and so cannot crowd out what is proven either.
#[derive(Default)]
pub(super) struct Tally {
    blocks: BTreeMap<Digest, Block>,
    vouched: BTreeMap<ReplicaId, VecDeque<Digest>>,
    proven: VecDeque<Digest>,
}

impl Tally {
    /// Counts a replica's attestation of this header, whose hash is `hash`. A signature is checked
    /// only where it can still matter: once per block and replica, and never for a proven block.
    /// Answers the block as soon as, and whenever later, f+1 vouch for it.
    pub(super) fn vouch(
        &mut self,
        hash: Digest,
        header: &BlockHeader,
        replica: ReplicaId,
        signature: Signature,
        members: &MemberKeys,
    ) -> Result<Option<Arc<ProvenBlock>>, SignatureError> {
        match self.blocks.get(&hash) {
            Some(Block::Proven(block)) => return Ok(Some(block.clone())),
            Some(Block::Gathering { vouchers }) if vouchers.contains_key(&replica) => {
                return Ok(None);
            }
            Some(Block::Gathering { .. }) | None => {}
        }
        let value =
            Attestation { epoch: header.epoch, height: header.height, header: hash, replica };
        let key = members.key(replica).ok_or(SignatureError)?;
        let verified = Signed { value, signature }.verify(key, &header.cluster);
        if !mistake!("client-ignores-signatures") {
            verified?;
        }
        self.remember(hash, replica);
        let block = self
            .blocks
            .entry(hash)
            .or_insert_with(|| Block::Gathering { vouchers: BTreeMap::new() });
        let Block::Gathering { vouchers } = block else { return Ok(None) };
        vouchers.insert(replica, signature);
        let needed = members.quorum().weak() - usize::from(mistake!("client-believes-f"));
        if vouchers.len() < needed {
            return Ok(None);
        }
        let attestations = std::mem::take(vouchers).into_iter().collect();
        let proven = Arc::new(ProvenBlock { header: header.clone(), attestations });
        *block = Block::Proven(proven.clone());
        self.proven.push_back(hash);
        if self.proven.len() > BLOCKS_MAX
            && let Some(oldest) = self.proven.pop_front()
        {
            self.blocks.remove(&oldest);
        }
        Ok(Some(proven))
    }

    /// Notes that this replica vouched, and takes back its oldest word where it has too many.
    fn remember(&mut self, hash: Digest, replica: ReplicaId) {
        let words = self.vouched.entry(replica).or_default();
        words.push_back(hash);
        if words.len() <= BLOCKS_MAX {
            return;
        }
        let Some(oldest) = words.pop_front() else { return };
        if let Some(Block::Gathering { vouchers }) = self.blocks.get_mut(&oldest) {
            vouchers.remove(&replica);
            if vouchers.is_empty() {
                self.blocks.remove(&oldest);
            }
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.blocks.len()
    }
}
