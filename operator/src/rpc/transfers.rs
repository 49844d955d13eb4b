//! Queries of transfers.

use secp256k1::PublicKey;
use spark_proto::spark::{
    self, TransferStatus as Status,
    transfer_filter::{Participant, TimeFilter},
};
use uuid::Uuid;

use super::{Api, input, page::Page, settings::Readable};
use crate::{
    authn::{Reader, Session},
    convert::{self, Side, by_transfer},
    db::{
        query_transfer::{self, Listing},
        transfer::{self, ShareRow, TransferRow},
    },
    status::{Reason, Refused},
};

/// What a receiver has to claim.
const RECEIVER_PENDING: [Status; 5] = [
    Status::SenderKeyTweaked,
    Status::ReceiverKeyTweaked,
    Status::ReceiverKeyTweakLocked,
    Status::ReceiverKeyTweakApplied,
    Status::ReceiverRefundSigned,
];
/// What a sender waits for.
const SENDER_PENDING: [Status; 2] = [Status::SenderKeyTweakPending, Status::SenderInitiated];

/// Which of the two queries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    All,
    Pending,
}

/// Whose transfers a query is about.
struct Whose {
    /// Nobody in particular: those named by id.
    owner: Option<PublicKey>,
    /// Only what is open to everybody.
    as_stranger: bool,
}

impl Api {
    pub(super) async fn transfers(
        &self,
        reader: &Reader,
        request: spark::TransferFilter,
        scope: Scope,
    ) -> Result<spark::QueryTransfersResponse, Refused> {
        input::network_if_named("network", request.network, self.parts.network)?;
        let page = Page::parse(request.limit, request.offset)?;
        let Some(whose) = self.participant(reader, &request).await? else {
            return Ok(spark::QueryTransfersResponse { offset: -1, ..Default::default() });
        };
        let mut listing = listing(whose.owner.as_ref(), &request, scope)?;
        if whose.as_stranger {
            listing.stranger = Some(reader.bytes());
            listing.open = self.parts.open_reads;
        }
        let rows = query_transfer::page(self.parts.db.pool(), &listing, page.fetch(), page.offset()).await?;
        let (rows, offset) = page.cut(rows);
        let transfers = self.shown(&rows, listing.receiver.as_deref()).await?;
        Ok(spark::QueryTransfersResponse { transfers, offset })
    }

    /// Whose transfers a query is about: nobody named is the session itself, or without one whoever takes part in those
    /// that it names. Nobody if that is closed.
    async fn participant(
        &self,
        reader: &Reader,
        request: &spark::TransferFilter,
    ) -> Result<Option<Whose>, Refused> {
        let (field, key) = match &request.participant {
            Some(Participant::SenderIdentityPublicKey(key)) => ("sender_identity_public_key", key),
            Some(Participant::ReceiverIdentityPublicKey(key)) => ("receiver_identity_public_key", key),
            Some(Participant::SenderOrReceiverIdentityPublicKey(key)) => {
                ("sender_or_receiver_identity_public_key", key)
            }
            None if reader.identity.is_none() && request.transfer_ids.is_empty() => {
                return Err(Refused::no_session());
            }
            None => {
                return Ok(Some(Whose { owner: reader.identity, as_stranger: reader.identity.is_none() }));
            }
        };
        let readable = self.readable(field, key, reader).await?;
        Ok(readable.map(|Readable { owner, as_stranger }| Whose { owner: Some(owner), as_stranger }))
    }

    /// A transfer in which the identity takes part, and what it receives of it.
    pub(super) async fn transfer_of(
        &self,
        id: Uuid,
        session: &Session,
    ) -> Result<(TransferRow, Option<ShareRow>), Refused> {
        let identity = session.identity.serialize();
        let row = transfer::get(self.parts.db.pool(), id).await?;
        let shares = transfer::shares(self.parts.db.pool(), &[id]).await?;
        let own = shares.into_iter().find(|share| share.receiver == identity);
        row.filter(|row| row.sender == identity || own.is_some())
            .map(|row| (row, own))
            .ok_or_else(|| Refused::new(Reason::TransferUnknown, "transfer is not known"))
    }

    /// Transfers with their leaves, in the same order; those that `receiver` takes part in as a receiver from its
    /// side, the others from the sender's.
    pub(super) async fn shown(
        &self,
        rows: &[TransferRow],
        receiver: Option<&[u8]>,
    ) -> Result<Vec<spark::Transfer>, Refused> {
        let ids: Vec<_> = rows.iter().map(|row| row.transfer_id).collect();
        let leaves = query_transfer::leaves(self.parts.db.pool(), &ids).await?;
        let mut leaves = by_transfer(leaves, |leaf| leaf.transfer_id);
        let shares = transfer::shares(self.parts.db.pool(), &ids).await?;
        let mut shares = by_transfer(shares, |share| share.transfer_id);
        rows.iter()
            .map(|row| {
                let leaves = leaves.remove(&row.transfer_id).unwrap_or_default();
                let shares = shares.remove(&row.transfer_id).unwrap_or_default();
                let side = match receiver {
                    Some(key) if shares.iter().any(|share| share.receiver == key) => Side::Receiver(key),
                    _ => Side::Sender,
                };
                Ok(self.converter.transfer(row, &shares, &leaves, side, self.parts.network.to_wire())?)
            })
            .collect()
    }
}

/// Transfers in which `owner` takes part, in the part that the request names.
fn listing(
    owner: Option<&PublicKey>,
    request: &spark::TransferFilter,
    scope: Scope,
) -> Result<Listing, Refused> {
    let owner = owner.map(|key| key.serialize().to_vec());
    let (sender, receiver) = match &request.participant {
        Some(Participant::SenderIdentityPublicKey(_)) => (owner, None),
        Some(Participant::ReceiverIdentityPublicKey(_)) => (None, owner),
        Some(Participant::SenderOrReceiverIdentityPublicKey(_)) | None => (owner.clone(), owner),
    };
    if request.types.len() > 16 || request.statuses.len() > 16 {
        return Err(Refused::field("types", "at most 16 types and 16 statuses"));
    }
    let kinds = codes("types", &request.types, |code| spark::TransferType::try_from(code).is_ok())?;
    let named = codes("statuses", &request.statuses, |code| Status::try_from(code).is_ok())?;
    let (sender_statuses, receiver_statuses) = match scope {
        Scope::All => (named.clone(), named),
        Scope::Pending => (SENDER_PENDING.map(code).to_vec(), RECEIVER_PENDING.map(code).to_vec()),
    };
    let (created_after, created_before) = match &request.time_filter {
        None => (None, None),
        Some(TimeFilter::CreatedAfter(time)) => (Some(micros("created_after", time)?), None),
        // Rows have microseconds: a limit between two of them excludes the later one only.
        Some(TimeFilter::CreatedBefore(time)) => {
            let rest = i64::from(time.nanos % 1_000 != 0);
            // Wallets take the time from our `date` header, which has whole seconds: a snapshot "now" must not
            // hide what was sent within the last one.
            let slack = if matches!(scope, Scope::Pending) { 1_000_000 } else { 0 };
            (None, Some(micros("created_before", time)?.saturating_add(rest).saturating_add(slack)))
        }
    };
    Ok(Listing {
        sender,
        receiver,
        sender_statuses,
        receiver_statuses,
        ids: input::transfer_ids(&request.transfer_ids)?.iter().map(|id| id.uuid()).collect(),
        kinds,
        created_after,
        created_before,
        ascending: request.order == spark::Order::Ascending as i32,
        stranger: None,
        open: false,
    })
}

const fn code(status: Status) -> i16 {
    status as i16
}

fn codes(field: &'static str, wire: &[i32], known: impl Fn(i32) -> bool) -> Result<Vec<i16>, Refused> {
    wire.iter()
        .map(|code| {
            i16::try_from(*code)
                .ok()
                .filter(|_| known(*code))
                .ok_or_else(|| Refused::field(field, format!("{code} is not known")))
        })
        .collect()
}

fn micros(field: &'static str, time: &prost_types::Timestamp) -> Result<i64, Refused> {
    // Years 1 to 9999, the range of a Timestamp, which is also within Postgres's.
    if !(-62_135_596_800..=253_402_300_799).contains(&time.seconds) {
        return Err(Refused::field(field, "is out of range"));
    }
    convert::micros(time).ok_or_else(|| Refused::field(field, "is out of range"))
}

#[cfg(test)]
mod tests {
    use prost_types::Timestamp;
    use secp256k1::SecretKey;

    use super::*;

    fn identity(seed: u8) -> PublicKey {
        PublicKey::from_secret_key_global(&SecretKey::from_slice(&[seed; 32]).unwrap())
    }

    fn filter(participant: Option<Participant>) -> spark::TransferFilter {
        spark::TransferFilter { participant, ..spark::TransferFilter::default() }
    }

    #[test]
    fn x20_a_listing_is_always_of_one_identity() {
        let me = identity(1);
        let key = me.serialize().to_vec();
        // Whatever key the request names: whose it is was decided before.
        let other = identity(2).serialize().to_vec();
        let of = |participant| listing(Some(&me), &filter(participant), Scope::All).unwrap();
        for both in [None, Some(Participant::SenderOrReceiverIdentityPublicKey(other.clone()))] {
            let both = of(both);
            assert_eq!((both.sender, both.receiver), (Some(key.clone()), Some(key.clone())));
        }
        let sent = of(Some(Participant::SenderIdentityPublicKey(other.clone())));
        assert_eq!((sent.sender, sent.receiver), (Some(key.clone()), None));
        let received = of(Some(Participant::ReceiverIdentityPublicKey(other)));
        assert_eq!((received.sender, received.receiver), (None, Some(key)));
    }

    #[test]
    fn pending_means_something_else_for_each_side() {
        let me = identity(1);
        let mut request = filter(None);
        request.statuses = vec![Status::Completed as i32];
        let pending = listing(Some(&me), &request, Scope::Pending).unwrap();
        assert_eq!(pending.receiver_statuses, [2, 3, 9, 10, 4]);
        assert_eq!(pending.sender_statuses, [1, 0]);
        let all = listing(Some(&me), &request, Scope::All).unwrap();
        assert_eq!((all.sender_statuses, all.receiver_statuses), (vec![5], vec![5]));
    }

    #[test]
    fn times_exclude_their_own_instant() {
        let me = identity(1);
        let mut request = filter(None);
        let time = |nanos| Timestamp { seconds: 10, nanos };
        request.time_filter = Some(TimeFilter::CreatedAfter(time(1_500)));
        assert_eq!(listing(Some(&me), &request, Scope::All).unwrap().created_after, Some(10_000_001));
        request.time_filter = Some(TimeFilter::CreatedBefore(time(1_000)));
        assert_eq!(listing(Some(&me), &request, Scope::All).unwrap().created_before, Some(10_000_001));
        request.time_filter = Some(TimeFilter::CreatedBefore(time(1_500)));
        assert_eq!(listing(Some(&me), &request, Scope::All).unwrap().created_before, Some(10_000_002));
        request.time_filter = Some(TimeFilter::CreatedBefore(time(1_000)));
        assert_eq!(listing(Some(&me), &request, Scope::Pending).unwrap().created_before, Some(11_000_001));
        for bad in [Timestamp { seconds: i64::MAX, nanos: 0 }, Timestamp { seconds: 0, nanos: -1 }] {
            request.time_filter = Some(TimeFilter::CreatedAfter(bad));
            assert!(listing(Some(&me), &request, Scope::All).is_err());
        }
    }

    #[test]
    fn unknown_codes_are_refused() {
        let me = identity(1);
        for (types, statuses) in [(vec![99], vec![]), (vec![], vec![99]), (vec![2; 17], vec![])] {
            let request = spark::TransferFilter { types, statuses, ..filter(None) };
            assert!(listing(Some(&me), &request, Scope::All).is_err());
        }
    }
}
