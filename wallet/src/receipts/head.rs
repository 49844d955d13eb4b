//! Heads of deletion logs: signed, witnessed, and each a continuation of the last one that this wallet saw.

use std::time::{SystemTime, UNIX_EPOCH};

use spark_proto::signer::v1::ProveConsistencyRequest;
use spark_rules::{
    checkpoint::{self, Checkpoint, Contradiction},
    witness,
};

use super::ReceiptError;
use crate::{Wallet, WalletError, client::Operator, state::SeenHead};

/// Age in seconds after which a cosignature counts no more: the head may be an old one.
const FRESH: u64 = 3600;
/// Seconds that another clock may be ahead of this one.
const AHEAD: u64 = 600;

/// A head that holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Head {
    /// What the operator signed.
    pub(super) checkpoint: Checkpoint,
    /// Other operators' signers that cosigned it lately.
    pub(super) witnesses: usize,
}

impl Wallet {
    /// Checks a head: of this operator's own log, signed by it, with fresh cosignatures counted. Not yet whether it
    /// continues what was seen.
    pub(super) fn head(&self, operator: u16, note: &str) -> Result<Head, ReceiptError> {
        let federation = &self.config().federation;
        let index = spark_rules::ids::OperatorIndex::new(operator);
        // Signed under the operator's key name, of the log with the operator's origin: not another log of its.
        let checkpoint = Checkpoint::verify(note, federation, index).map_err(|_| ReceiptError::Checkpoint)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let cosigners = witness::cosigners(note, federation, index);
        let fresh = now.saturating_sub(FRESH)..=now.saturating_add(AHEAD);
        let witnesses = cosigners.values().filter(|time| fresh.contains(time)).count();
        Ok(Head { checkpoint, witnesses })
    }

    /// Compares a head with the newest one seen of this log, and remembers it. A head that contradicts an earlier one
    /// is remembered for ever.
    pub(super) async fn continued(&self, operator: &Operator, head: &Checkpoint) -> Result<(), WalletError> {
        let federation = &self.config().federation;
        let origin = checkpoint::origin(federation, operator.index());
        // Of another federation file a head has another origin, so it verifies as it did then.
        let read = |note: &str| {
            Checkpoint::verify(note, federation, operator.index()).map_err(|_| ReceiptError::Checkpoint)
        };
        let mut proven = 0;
        loop {
            let seen = self.state().get::<SeenHead>(&origin)?;
            let known = seen.as_ref().map(|seen| read(&seen.note)).transpose()?;
            if let (Some(seen), Some(known)) = (&seen, &known) {
                if let Some(caught) = &seen.contradiction {
                    let contradiction = Contradiction::between(known, &read(caught)?);
                    return Err(
                        ReceiptError::Contradiction(contradiction.unwrap_or(Contradiction::Forked)).into()
                    );
                }
                if let Some(contradiction) = Contradiction::between(known, head) {
                    let caught = SeenHead { contradiction: Some(head.signed.clone()), ..seen.clone() };
                    if self.state().replace(&origin, Some(seen), &caught)? {
                        return Err(ReceiptError::Contradiction(contradiction).into());
                    }
                    continue;
                }
                let (before, now) = (&known.extension, &head.extension);
                if head.size < known.size || now.destroyed_before < before.destroyed_before {
                    return Err(ReceiptError::Older.into());
                }
                if head.size > known.size && known.size > 0 && proven != known.size {
                    self.prove(operator, known, head).await?;
                    proven = known.size;
                }
            }
            // Another call may have looked at this log meanwhile; what it found must not be lost.
            let newest = SeenHead { origin: origin.clone(), note: head.signed.clone(), contradiction: None };
            if self.state().replace(&origin, seen.as_ref(), &newest)? {
                return Ok(());
            }
        }
    }

    async fn prove(
        &self,
        operator: &Operator,
        old: &Checkpoint,
        new: &Checkpoint,
    ) -> Result<(), WalletError> {
        let request = ProveConsistencyRequest { old_size: old.size, new_size: new.size };
        let key = self.keys().identity();
        let proof =
            operator.log(key, request, |mut c, r| async move { c.prove_consistency(r).await }).await?;
        checkpoint::verify_consistency(&proof.hashes, (old.size, old.root), (new.size, new.root))
            .map_err(|_| ReceiptError::Inconsistent.into())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use base64::{Engine as _, engine::general_purpose::STANDARD};
    use ed25519_dalek::{Signer as _, SigningKey};
    use sha2::{Digest as _, Sha256};
    use spark_proto::signer::v1::ProveConsistencyResponse;
    use spark_rules::{
        checkpoint::{Extension, SignedAt},
        ids::OperatorIndex,
        witness::Frontier,
    };

    use super::*;
    use crate::testing::{Liar, Operators, keys, wallet_of};

    /// A head of operator 0's log, signed by its federation key (RFC 8032, test 1).
    fn head(wallet: &Wallet, records: &[&str], sequence: u64, destroyed_before: u64) -> String {
        let seed = hex::decode("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60").unwrap();
        let key = SigningKey::from_bytes(&seed.try_into().unwrap());
        let origin = checkpoint::origin(&wallet.config().federation, OperatorIndex::new(0));
        let mut frontier = Frontier::default();
        records.iter().for_each(|record| frontier.push(record.as_bytes()));
        let extension = Extension {
            position: SignedAt { root_epoch: sequence, sequence },
            destroyed_before,
            log_size: frontier.size(),
        };
        let (size, root) = (frontier.size(), STANDARD.encode(frontier.root()));
        let text = format!("{origin}\n{size}\n{root}\n{}", extension.to_lines());
        let public = [[1u8].as_slice(), key.verifying_key().as_bytes()].concat();
        let id = Sha256::digest([origin.as_bytes(), b"\n", &public].concat());
        let signature = [&id[..4], &key.sign(text.as_bytes()).to_bytes()].concat();
        format!("{text}\n\u{2014} {origin} {}\n", STANDARD.encode(signature))
    }

    /// The proof that a log of one record grew by "b" (RFC 6962): the hash of that record.
    fn grew_by_b() -> Vec<Vec<u8>> {
        vec![Sha256::digest(b"\0b").to_vec()]
    }

    async fn show(wallet: &Wallet, note: &str) -> Result<(), String> {
        let head = wallet.head(0, note).map_err(|error| error.to_string())?;
        let operator = wallet.operators().coordinator();
        wallet.continued(operator, &head.checkpoint).await.map_err(|error| error.to_string())
    }

    /// A wallet whose operator 0 proves any growth like this.
    fn wallet(proof: Vec<Vec<u8>>) -> (Wallet, tempfile::TempDir) {
        let answer = move |request: ProveConsistencyRequest| {
            assert_eq!((request.old_size, request.new_size), (1, 2));
            Ok(ProveConsistencyResponse { hashes: proof.clone() })
        };
        let servers = vec![Liar::default().on("prove_consistency", answer)];
        wallet_of(&Operators::new(), keys(), servers, Duration::from_secs(20))
    }

    #[tokio::test]
    async fn s7_a_log_that_grows_is_followed_and_an_older_head_is_not() {
        let (wallet, _dir) = wallet(grew_by_b());
        let (one, two) = (head(&wallet, &["a"], 5, 1), head(&wallet, &["a", "b"], 6, 2));
        assert_eq!(show(&wallet, &one).await, Ok(()));
        assert_eq!(show(&wallet, &one).await, Ok(()));
        assert_eq!(show(&wallet, &two).await, Ok(()));
        assert_eq!(show(&wallet, &one).await, Err(ReceiptError::Older.to_string()));
        assert_eq!(show(&wallet, &two).await, Ok(()));
    }

    #[tokio::test]
    async fn s7_growth_without_proof_is_not_believed() {
        for proof in [Vec::new(), vec![vec![0; 32]], vec![vec![0; 31]]] {
            let (wallet, _dir) = wallet(proof);
            let (one, two) = (head(&wallet, &["a"], 5, 1), head(&wallet, &["a", "b"], 6, 1));
            assert_eq!(show(&wallet, &one).await, Ok(()));
            assert_eq!(show(&wallet, &two).await, Err(ReceiptError::Inconsistent.to_string()));
            assert_eq!(show(&wallet, &one).await, Ok(()), "what was seen before still stands");
        }
        // Another history: this proof is of a log that began with "a".
        let (wallet, _dir) = wallet(grew_by_b());
        assert_eq!(show(&wallet, &head(&wallet, &["x"], 5, 1)).await, Ok(()));
        let forked = show(&wallet, &head(&wallet, &["a", "b"], 6, 1)).await;
        assert_eq!(forked, Err(ReceiptError::Inconsistent.to_string()));
    }

    #[tokio::test]
    async fn s7_an_operator_that_contradicts_itself_stays_caught() {
        let lies: [(&[&str], u64, u64, Contradiction); 3] = [
            (&["x"], 6, 2, Contradiction::Forked),
            (&[], 6, 2, Contradiction::Shrank),
            (&["a"], 6, 1, Contradiction::EpochWentBack),
        ];
        for (records, sequence, destroyed_before, contradiction) in lies {
            let (wallet, _dir) = wallet(grew_by_b());
            let honest = head(&wallet, &["a"], 5, 2);
            assert_eq!(show(&wallet, &honest).await, Ok(()));
            let caught = Err(ReceiptError::Contradiction(contradiction).to_string());
            assert_eq!(show(&wallet, &head(&wallet, records, sequence, destroyed_before)).await, caught);
            assert_eq!(show(&wallet, &honest).await, caught, "it cannot be made undone");
            assert_eq!(show(&wallet, &head(&wallet, &["a", "b"], 9, 2)).await, caught);
        }
    }
}
