//! What enough listings say alike: everybody who has them computes the same.

use std::collections::{BTreeMap, BTreeSet};

use bitcoin::secp256k1::PublicKey;
use prost::Message as _;
use spark_proto::signer::v1 as wire;
use spark_rules::{
    ids::{KeyshareId, OperatorIndex},
    leaf::LeafRecord,
    point,
    transcript::Transcript,
};

use super::{Table, listing_payload};
use crate::{engine::EngineError, repair::Commitments};

/// A keyshare to repair.
#[derive(Debug, Clone)]
pub(super) struct AgreedKey {
    pub(super) id: KeyshareId,
    pub(super) version: u64,
    /// At this version, by operator index.
    pub(super) public_shares: Vec<PublicKey>,
    pub(super) value: Vec<u8>,
    pub(super) content: wire::RepairKeyshare,
    pub(super) leaf: Option<LeafRecord>,
}

impl AgreedKey {
    fn parse(key: &[u8], value: Vec<u8>) -> Result<Self, EngineError> {
        let content = wire::RepairKeyshare::decode(value.as_slice())?;
        let public = content.keyshare.as_ref().ok_or(EngineError::Malformed("keyshare"))?;
        if public.keyshare_id != key {
            return Err(EngineError::Malformed("keyshare_id"));
        }
        let leaf = match content.leaf.as_slice() {
            [] => None,
            bytes => Some(LeafRecord::decode(bytes)?.checked()?),
        };
        let (version, public_shares) = match &leaf {
            Some(leaf) => (leaf.version, leaf.public_shares.clone()),
            None => {
                let shares = public.public_shares.iter().map(|share| point::parse("public_share", share));
                (0, shares.collect::<Result<_, _>>()?)
            }
        };
        Ok(Self { id: KeyshareId::parse(key)?, version, public_shares, value, content, leaf })
    }

    pub(super) fn public_share(&self, operator: OperatorIndex) -> Result<&PublicKey, EngineError> {
        self.public_shares.get(operator.as_usize()).ok_or(EngineError::Malformed("public shares"))
    }
}

/// What a page amounts to.
#[derive(Debug, Clone)]
pub(super) struct Agreed {
    digest: [u8; 32],
    /// Keyshares to repair; of the first table only.
    pub(super) keys: Vec<AgreedKey>,
    /// Records to take; of the other tables.
    pub(super) records: Vec<(Vec<u8>, Vec<u8>)>,
    /// Items that are busy somewhere, or on which too few agree.
    pub(super) skipped: u64,
    /// Where the next page begins; empty: with the next table.
    pub(super) through: Vec<u8>,
}

impl Agreed {
    /// `need` listings of an item must be alike. One that is busy anywhere is left for later.
    pub(super) fn of(
        ticket: &wire::RepairTicket,
        listings: &BTreeMap<OperatorIndex, wire::RepairListing>,
        need: usize,
        table: Table,
    ) -> Result<Self, EngineError> {
        let mut t = Transcript::new("spark/repair/agreement");
        for listing in listings.values() {
            t.bytes(&listing_payload(listing, ticket));
        }
        // The page ends where the first listing that goes on ends: beyond it nothing is known of that signer.
        let through = listings.values().map(|l| &l.through).filter(|through| !through.is_empty()).min();
        let through = through.cloned().unwrap_or_default();
        let within = |key: &[u8]| through.is_empty() || key <= through.as_slice();
        let mut said: BTreeMap<&[u8], BTreeMap<&[u8], usize>> = BTreeMap::new();
        let mut busy = BTreeSet::new();
        for item in listings.values().flat_map(|listing| &listing.items).filter(|item| within(&item.key)) {
            let count = said.entry(&item.key).or_default().entry(&item.value).or_default();
            *count = count.saturating_add(1);
            if item.busy {
                busy.insert(item.key.as_slice());
            }
        }
        let mut agreed =
            Self { digest: t.finish(), keys: Vec::new(), records: Vec::new(), skipped: 0, through };
        for (key, values) in said {
            let value = values.into_iter().find(|(_, count)| *count >= need).map(|(value, _)| value);
            match value.filter(|_| !busy.contains(key)) {
                None => agreed.skipped = agreed.skipped.saturating_add(1),
                Some(value) if table == Table::Keyshares => {
                    agreed.keys.push(AgreedKey::parse(key, value.to_vec())?);
                }
                Some(value) => agreed.records.push((key.to_vec(), value.to_vec())),
            }
        }
        Ok(agreed)
    }

    pub(super) const fn digest(&self) -> [u8; 32] {
        self.digest
    }
}

/// Points of one helper's deltas, key by key: one for each helper.
pub(super) fn commitments(
    message: &wire::RepairDeltas,
    helpers: &BTreeSet<OperatorIndex>,
    keys: usize,
) -> Result<Vec<Commitments>, EngineError> {
    if helpers.is_empty() || Some(message.commitments.len()) != keys.checked_mul(helpers.len()) {
        return Err(EngineError::Repair("commitments are not complete"));
    }
    message
        .commitments
        .chunks(helpers.len())
        .map(|points| {
            helpers
                .iter()
                .zip(points)
                .map(|(i, bytes)| Ok((*i, point::parse("commitment", bytes)?)))
                .collect()
        })
        .collect()
}
