//! X16, S5: tweaks are checked against their commitments, not believed.

use spark_proto::{peer::v1::operation::Request as Kind, spark};

use super::{Wallet, deposit, operation, quorum::Quorum, send_request_as};
use crate::secret::SecretScalar;

const TRANSFER: &str = "0193c5d2-7b0a-7c40-9a55-2f3f6d0a1b2c";

/// The reason of the first NO to a send whose sealed tweaks went through a liar's hands.
fn reason(tamper: impl Fn(usize, &mut spark::SendLeafKeyTweak)) -> String {
    let mut quorum = Quorum::new(2, 3);
    let (alice, bob) = (Wallet::new(), Wallet::new());
    let leaf = deposit(&mut quorum, &alice, 50_000);
    let (send, _) = send_request_as(&mut quorum, &alice, &leaf, bob.id(), TRANSFER, tamper);
    let request = operation(&mut quorum, Kind::Send(send));
    quorum.certify(&request).map(drop).unwrap_err()
}

fn share(tweak: &mut spark::SendLeafKeyTweak) -> &mut spark::SecretShare {
    tweak.secret_share_tweak.as_mut().unwrap()
}

#[test]
fn x16_a_share_off_the_polynomial() {
    let refused = reason(|operator, tweak| {
        if operator == 1 {
            let last = share(tweak).secret_share.last_mut().unwrap();
            *last ^= 1;
        }
    });
    assert_eq!(refused, "PACKAGE_CONTENT");
}

#[test]
fn x16_public_tweaks_that_do_not_follow_from_the_commitments() {
    let refused = reason(|operator, tweak| {
        if operator == 2 {
            let foreign = SecretScalar::random(&mut rand::rngs::OsRng).public_key().serialize();
            *tweak.pubkey_shares_tweak.values_mut().next().unwrap() = foreign.to_vec();
        }
    });
    assert_eq!(refused, "PACKAGE_CONTENT");
}

#[test]
fn x16_a_public_tweak_that_is_missing() {
    let refused = reason(|_, tweak| drop(tweak.pubkey_shares_tweak.pop_last()));
    assert_eq!(refused, "PACKAGE_CONTENT");
}

#[test]
fn x16_a_polynomial_of_another_degree() {
    let refused = reason(|_, tweak| {
        let extra = SecretScalar::random(&mut rand::rngs::OsRng).public_key().serialize();
        share(tweak).proofs.push(extra.to_vec());
    });
    assert_eq!(refused, "PACKAGE_CONTENT");
    let refused = reason(|_, tweak| drop(share(tweak).proofs.pop()));
    assert_eq!(refused, "PACKAGE_CONTENT");
}

/// Each operator's part is right in itself, but they are of different polynomials: the votes differ, so there is no
/// certificate.
#[test]
fn x16_different_polynomials_give_different_votes() {
    let mut quorum = Quorum::new(2, 3);
    let (alice, bob) = (Wallet::new(), Wallet::new());
    let leaf = deposit(&mut quorum, &alice, 50_000);
    let other = SecretScalar::random(&mut rand::rngs::OsRng);
    let split = crate::feldman::split(&other, 2, 3, &mut rand::rngs::OsRng).unwrap();
    let (send, _) = send_request_as(&mut quorum, &alice, &leaf, bob.id(), TRANSFER, |operator, tweak| {
        if operator == 2 {
            let part = share(tweak);
            part.secret_share = split.shares[2].to_bytes().to_vec();
            part.proofs = split.proofs.iter().map(|p| p.serialize().to_vec()).collect();
            let indices = tweak.pubkey_shares_tweak.values_mut().zip(&split.shares);
            for (public, share) in indices {
                *public = share.public_key().serialize().to_vec();
            }
        }
    });
    let request = operation(&mut quorum, Kind::Send(send));
    let votes: Vec<_> = (0..3).map(|member| quorum.prepare(member, &request).vote.unwrap()).collect();
    assert_eq!(votes[0].digest, votes[1].digest);
    assert_ne!(votes[0].digest, votes[2].digest);
    let certificate = spark_proto::peer::v1::Certificate { votes };
    assert!(spark_rules::vote::Certificate::verify(&certificate, &quorum.federation).is_err());
}
