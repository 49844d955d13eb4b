//! What a receiver checks before it tells a preimage: whoever knows it, and nobody else, gets the money.

use bitcoin::hashes::{Hash as _, sha256};
use spark_proto::spark::{
    PreimageRequestRole as Role, PreimageRequestStatus as Status, PreimageRequestWithTransfer,
    ProvidePreimageRequest, transfer_filter::Participant,
};
use spark_rules::{ids::OperatorIndex, point, tx::Htlc};

use super::{
    htlc::Which,
    offer::{same_offer, same_secrets},
    receive::Claimed,
};
use crate::{
    Wallet, WalletError,
    client::Operator,
    state::{ClaimRecord, HtlcExit},
    verify::{VerifyError, incoming},
    wallet::now,
};

/// Least seconds to the expiry at which a preimage is told: it must reach the operators in time.
const MARGIN: u64 = 120;

impl Wallet {
    /// Takes what waits for this preimage, at least `amount` satoshis. Repeating it after a crash finishes it.
    ///
    /// The preimage leaves this wallet only when every operator shows the same pending transfer, of verified leaves and
    /// refunds, with time left, and when the exit by the preimage is stored: from then on the money is this wallet's,
    /// whatever the operators do.
    pub async fn claim_htlc(&self, preimage: &[u8; 32], amount: u64) -> Result<Claimed, WalletError> {
        let payment_hash = sha256::Hash::hash(preimage).to_byte_array();
        let which = Which { payment_hashes: vec![payment_hash.to_vec()], ..Which::default() };
        let mut answers = self.operators().each(|o| self.preimage_requests(o, &which, Role::Receiver)).await;
        let coordinator = self.operators().coordinator();
        let position = answers.iter().position(|(index, _)| *index == coordinator.index());
        let (_, listed) = answers.swap_remove(position.ok_or(WalletError::Answer("preimage requests"))?);
        let listed = listed?;
        let mut refused = None;
        let mut chosen = None;
        for request in expected(&listed, &payment_hash, amount)? {
            match self.may_be_told(request, &answers, payment_hash, preimage).await {
                Ok(()) => {
                    chosen = request.transfer.as_ref();
                    break;
                }
                // One that somebody else made does not stand in the way of the others.
                Err(error) => refused = refused.or(Some(error)),
            }
        }
        let Some(transfer) = chosen else {
            return Err(refused.unwrap_or(WalletError::Answer("the transfer")));
        };
        let identity = self.keys().identity();
        let request = ProvidePreimageRequest {
            payment_hash: payment_hash.to_vec(),
            preimage: preimage.to_vec(),
            identity_public_key: identity.public_key().serialize().to_vec(),
        };
        // What was claimed is told already; a liar that gives its id to something new hears nothing.
        if self.state().get::<ClaimRecord>(&transfer.id)?.is_none() {
            self.tell(coordinator, &request).await?;
        }
        // The answer may be about another transfer for the same preimage.
        let participant = Participant::ReceiverIdentityPublicKey(identity.public_key().serialize().to_vec());
        let settled = self.transfer_at(coordinator, &transfer.id, participant).await?;
        let claimed = self.claim(&settled.ok_or(WalletError::Answer("the transfer"))?).await?;
        self.forget_htlc_exits(&claimed.transfer_id)?;
        Ok(claimed)
    }

    /// Tells the preimage to the coordinator and then to all others, of which each can settle: none keeps it to itself.
    async fn tell(
        &self,
        coordinator: &Operator,
        request: &ProvidePreimageRequest,
    ) -> Result<(), WalletError> {
        let tell = async |operator: &Operator| {
            let identity = self.keys().identity();
            operator
                .spark(identity, request.clone(), |mut c, r| async move { c.provide_preimage(r).await })
                .await
        };
        let mut told = tell(coordinator).await;
        for operator in self.operators().all().iter().filter(|o| o.index() != coordinator.index()) {
            match tell(operator).await {
                Ok(answer) if told.is_err() => told = Ok(answer),
                Ok(_) => {}
                Err(error) => {
                    tracing::debug!(operator = operator.index().get(), %error, "did not take the preimage");
                }
            }
        }
        Ok(told.map(drop)?)
    }

    /// This wallet has checked all before it told this very preimage, and may ask again whatever is left of the time.
    fn was_told(&self, transfer_id: &str, preimage: &[u8; 32]) -> Result<bool, WalletError> {
        let preimage = Some(hex::encode(preimage));
        let exits = self.state().all::<HtlcExit>()?;
        Ok(exits.iter().any(|exit| exit.transfer_id == transfer_id && exit.preimage == preimage)
            || self.state().get::<ClaimRecord>(transfer_id)?.is_some())
    }

    /// Whether the preimage may be told for this transfer; then its exit by the preimage is stored.
    async fn may_be_told(
        &self,
        request: &PreimageRequestWithTransfer,
        others: &[(OperatorIndex, Result<Vec<PreimageRequestWithTransfer>, WalletError>)],
        payment_hash: [u8; 32],
        preimage: &[u8; 32],
    ) -> Result<(), WalletError> {
        let transfer = request.transfer.as_ref().ok_or(WalletError::Answer("the transfer"))?;
        if self.was_told(&transfer.id, preimage)? {
            return Ok(());
        }
        // Settled everywhere: there is nothing to tell any more. A word of some, even with the preimage, which its sender
        // knows, shows nothing.
        let settled = |list: &Vec<_>| list.iter().any(|shown| same_settled(request, shown, preimage));
        if same_settled(request, request, preimage)
            && others.iter().all(|(_, answer)| answer.as_ref().is_ok_and(settled))
        {
            return Ok(());
        }
        for (index, answer) in others {
            let same = |list: &Vec<_>| list.iter().any(|other| same_pending(request, other));
            if !answer.as_ref().is_ok_and(same) {
                let index = index.get();
                return Err(WalletError::Refused(format!(
                    "operator {index} does not show the same transfer; the preimage was not told"
                )));
            }
        }
        let left = transfer.expiry_time.as_ref().and_then(|time| u64::try_from(time.seconds).ok());
        if left.is_none_or(|expires| expires < now().saturating_add(MARGIN)) {
            return Err(WalletError::Refused("it expires too soon; the preimage was not told".into()));
        }
        let sender = point::parse("sender_identity_public_key", &transfer.sender_identity_public_key)
            .map_err(VerifyError::from)?;
        let terms = Htlc::new(payment_hash, self.keys().identity().public_key(), sender);
        incoming(transfer, self.keys().identity(), Some(&terms))?;
        self.keep_htlc_exit(transfer, &terms, Some(preimage)).await
    }
}

/// Of what one operator lists, all that pay enough and did not return, the largest first.
fn expected<'a>(
    listed: &'a [PreimageRequestWithTransfer],
    payment_hash: &[u8; 32],
    amount: u64,
) -> Result<Vec<&'a PreimageRequestWithTransfer>, WalletError> {
    let value =
        |request: &PreimageRequestWithTransfer| request.transfer.as_ref().map_or(0, |t| t.total_value);
    let ours = || listed.iter().filter(|request| request.payment_hash == payment_hash);
    let mut open: Vec<_> = ours().filter(|request| request.status() != Status::Returned).collect();
    open.sort_by_key(|request| std::cmp::Reverse(value(request)));
    let Some(largest) = open.first().map(|request| value(request)) else {
        let why =
            if ours().next().is_some() { "it has gone back to its sender" } else { "nothing waits for it" };
        return Err(WalletError::Refused(format!("{why}; the preimage was not told")));
    };
    if largest < amount {
        return Err(WalletError::Refused(format!(
            "{largest} sat wait for it, not {amount}; the preimage was not told"
        )));
    }
    open.retain(|request| value(request) >= amount);
    Ok(open)
}

/// Whether an operator shows that what `request` is about was settled, by this preimage.
fn same_settled(
    request: &PreimageRequestWithTransfer,
    shown: &PreimageRequestWithTransfer,
    preimage: &[u8; 32],
) -> bool {
    let id = |request: &PreimageRequestWithTransfer| request.transfer.as_ref().map(|t| t.id.clone());
    shown.status() == Status::PreimageShared
        && shown.payment_hash == request.payment_hash
        && id(shown) == id(request)
        && shown.preimage.as_deref() == Some(preimage)
}

/// Whether two operators show the same pending transfer: id, terms, leaves, refunds and secrets.
fn same_pending(a: &PreimageRequestWithTransfer, b: &PreimageRequestWithTransfer) -> bool {
    let terms = |request: &PreimageRequestWithTransfer| {
        let transfer = request.transfer.as_ref();
        (
            (request.payment_hash.clone(), request.status() == Status::WaitingForPreimage),
            (request.receiver_identity_pubkey.clone(), request.sender_identity_pubkey.clone()),
            transfer
                .map(|t| (t.id.clone(), t.total_value, t.expiry_time, t.sender_identity_public_key.clone())),
        )
    };
    let (Some(ours), Some(theirs)) = (&a.transfer, &b.transfer) else { return false };
    a.status() == Status::WaitingForPreimage
        && terms(a) == terms(b)
        && same_offer(ours, theirs)
        && same_secrets(ours, theirs)
}

#[cfg(test)]
mod tests {
    use spark_proto::spark::{Transfer, TransferLeaf, TreeNode};

    use super::*;

    fn request(value: u64, status: Status) -> PreimageRequestWithTransfer {
        let leaf = TransferLeaf {
            leaf: Some(TreeNode { id: "leaf".into(), ..TreeNode::default() }),
            secret_cipher: vec![1],
            intermediate_refund_tx: vec![2],
            ..TransferLeaf::default()
        };
        let transfer = Transfer {
            id: value.to_string(),
            total_value: value,
            expiry_time: Some(prost_types::Timestamp { seconds: 9, nanos: 0 }),
            leaves: vec![leaf],
            ..Transfer::default()
        };
        PreimageRequestWithTransfer {
            payment_hash: vec![7; 32],
            status: status.into(),
            transfer: Some(transfer),
            ..PreimageRequestWithTransfer::default()
        }
    }

    #[test]
    fn a_preimage_is_told_for_what_was_expected_only() {
        use Status::{PreimageShared, Returned, WaitingForPreimage};
        let listed = [request(5, WaitingForPreimage), request(9, Returned), request(7, WaitingForPreimage)];
        let chosen = |listed: &[PreimageRequestWithTransfer], amount| {
            let values = |found: Vec<&PreimageRequestWithTransfer>| {
                found.iter().map(|r| r.transfer.as_ref().unwrap().total_value).collect::<Vec<_>>()
            };
            expected(listed, &[7; 32], amount).map(values)
        };
        assert_eq!(chosen(&listed, 6).unwrap(), [7]);
        assert_eq!(chosen(&listed, 5).unwrap(), [7, 5]);
        assert!(chosen(&listed, 8).unwrap_err().to_string().contains("7 sat wait"), "too little");
        assert!(chosen(&listed[1..2], 1).unwrap_err().to_string().contains("gone back"));
        assert!(chosen(&[], 1).unwrap_err().to_string().contains("nothing waits"));
        assert_eq!(chosen(&[request(7, PreimageShared)], 7).unwrap(), [7], "told before");
        assert!(expected(&listed, &[8; 32], 1).is_err(), "another hash");
    }

    #[test]
    fn only_the_preimage_itself_shows_a_settlement() {
        let ours = [5; 32];
        let settled = PreimageRequestWithTransfer {
            preimage: Some(ours.to_vec()),
            ..request(5, Status::PreimageShared)
        };
        assert!(same_settled(&settled, &settled, &ours));
        // Another hash with its own preimage, which anybody can make.
        let foreign = PreimageRequestWithTransfer {
            payment_hash: sha256::Hash::hash(&[6; 32]).to_byte_array().to_vec(),
            preimage: Some(vec![6; 32]),
            ..settled.clone()
        };
        assert!(!same_settled(&settled, &foreign, &ours));
        let silent = PreimageRequestWithTransfer { preimage: None, ..settled.clone() };
        let pending = PreimageRequestWithTransfer {
            preimage: settled.preimage.clone(),
            ..request(5, Status::WaitingForPreimage)
        };
        let other = PreimageRequestWithTransfer {
            transfer: request(6, Status::PreimageShared).transfer,
            ..settled.clone()
        };
        for shown in [silent, pending, other] {
            assert!(!same_settled(&settled, &shown, &ours), "{shown:?}");
        }
    }

    #[test]
    fn operators_must_show_one_transfer() {
        let one = request(5, Status::WaitingForPreimage);
        assert!(same_pending(&one, &one.clone()));
        // One that all call settled, with no preimage to show for it, is none to tell a preimage for.
        let shared = request(5, Status::PreimageShared);
        assert!(!same_pending(&shared, &shared.clone()));
        let changes: [fn(&mut PreimageRequestWithTransfer); 9] = [
            |r| r.set_status(Status::PreimageShared),
            |r| r.payment_hash = vec![8; 32],
            |r| r.sender_identity_pubkey = vec![1],
            |r| r.transfer = None,
            |r| r.transfer.as_mut().unwrap().id = "other".into(),
            |r| r.transfer.as_mut().unwrap().total_value = 4,
            |r| r.transfer.as_mut().unwrap().expiry_time = None,
            |r| r.transfer.as_mut().unwrap().leaves[0].intermediate_refund_tx = vec![3],
            |r| r.transfer.as_mut().unwrap().leaves[0].secret_cipher = vec![3],
        ];
        for (number, change) in changes.iter().enumerate() {
            let mut other = one.clone();
            change(&mut other);
            assert!(!same_pending(&one, &other), "{number}");
        }
    }
}
