//! Spark invoices: paid as they say, by whom they say, once.

use bitcoin::secp256k1::{Keypair, Message, PublicKey, SECP256K1};
use spark_proto::{peer::v1::operation::Request as Kind, signer::v1 as wire, spark};
use spark_rules::address::{Invoice, Network, Payment, SparkAddress};

use super::{
    Wallet, deposit, operation,
    quorum::{Leaf, NOW, Quorum},
    send_request,
};
use crate::engine::{Reply, Request};

const SATS: u64 = 50_000;

fn terms() -> Invoice {
    Invoice {
        id: rand::random(),
        payment: Payment::Sats { amount: Some(SATS) },
        memo: Some("rent".into()),
        sender: None,
        expiry: Some((NOW as i64 + 60, 0)),
    }
}

fn sign(signer: &Wallet, mut address: SparkAddress) -> SparkAddress {
    let key = Keypair::from_seckey_slice(SECP256K1, signer.identity.to_bytes().as_slice()).unwrap();
    let message = Message::from_digest(address.invoice_hash().unwrap());
    address.signature = Some(SECP256K1.sign_schnorr_no_aux_rand(&message, &key).serialize());
    address
}

fn address(receiver: PublicKey, invoice: Invoice) -> SparkAddress {
    SparkAddress { network: Network::Regtest, identity: receiver, invoice: Some(invoice), signature: None }
}

/// An invoice that `receiver` has signed.
fn invoice(receiver: &Wallet, invoice: Invoice) -> String {
    sign(receiver, address(receiver.id(), invoice)).encode().unwrap()
}

fn paying(
    quorum: &mut Quorum,
    sender: &Wallet,
    leaf: &Leaf,
    receiver: &Wallet,
    text: &str,
) -> spark::StartTransferRequest {
    let (mut send, _) = send_request(quorum, sender, leaf, receiver.id());
    text.clone_into(&mut send.spark_invoice);
    send
}

#[test]
fn an_invoice_is_paid_as_it_says() {
    let mut quorum = Quorum::new(2, 3);
    let (alice, bob, carol) = (Wallet::new(), Wallet::new(), Wallet::new());
    let leaf = deposit(&mut quorum, &alice, SATS);
    let with = |change: &dyn Fn(&mut Invoice)| {
        let mut terms = terms();
        change(&mut terms);
        invoice(&bob, terms)
    };
    let plain = SparkAddress::new(Network::Regtest, bob.id()).encode().unwrap();
    let unsigned = address(bob.id(), terms()).encode().unwrap();
    let forged = sign(&carol, address(bob.id(), terms())).encode().unwrap();
    let mainnet = sign(&bob, SparkAddress { network: Network::Mainnet, ..address(bob.id(), terms()) })
        .encode()
        .unwrap();
    let tokens = with(&|i| i.payment = Payment::Tokens { token: None, amount: None });
    let refused = [
        (
            "of another amount",
            with(&|i| i.payment = Payment::Sats { amount: Some(SATS + 1) }),
            "INVOICE_INVALID",
        ),
        ("of another receiver", invoice(&carol, terms()), "INVOICE_INVALID"),
        ("for another sender", with(&|i| i.sender = Some(carol.id())), "INVOICE_INVALID"),
        ("of another network", mainnet, "INVOICE_INVALID"),
        ("for tokens", tokens, "INVOICE_INVALID"),
        ("not signed", unsigned, "INVOICE_INVALID"),
        ("signed by another", forged, "INVOICE_INVALID"),
        ("an address", plain, "INVOICE_INVALID"),
        ("nothing at all", "spark".into(), "INVOICE_INVALID"),
        ("expired", with(&|i| i.expiry = Some((NOW as i64, 999_999_999))), "EXPIRED"),
    ];
    for (what, text, reason) in refused {
        let send = paying(&mut quorum, &alice, &leaf, &bob, &text);
        let request = operation(&mut quorum, Kind::Send(send));
        assert_eq!(quorum.certify(&request).unwrap_err(), reason, "{what}");
    }
    // Who leaves the amount open is paid any; who names a sender is paid by him.
    let open = with(&|i| {
        i.payment = Payment::Sats { amount: None };
        i.sender = Some(alice.id());
        i.expiry = None;
    });
    let send = paying(&mut quorum, &alice, &leaf, &bob, &open);
    quorum.run(Kind::Send(send)).unwrap();
}

/// Of two payments of one invoice through two coordinators at most one gets every vote, whichever text it carries.
#[test]
fn an_invoice_is_paid_once() {
    let mut quorum = Quorum::new(2, 3);
    let (alice, bob, carol) = (Wallet::new(), Wallet::new(), Wallet::new());
    let leaves = [deposit(&mut quorum, &alice, SATS), deposit(&mut quorum, &carol, SATS)];
    let text = invoice(&bob, terms());
    // The same invoice under another expiry that its signature does not tell from this one.
    let mut twin = SparkAddress::decode(&text).unwrap();
    let seconds = twin.invoice.as_ref().unwrap().expiry.unwrap().0;
    twin.invoice.as_mut().unwrap().expiry = Some((seconds, 1));
    let twin = twin.encode().unwrap();
    assert_ne!(text, twin);
    let first = paying(&mut quorum, &alice, &leaves[0], &bob, &text);
    let second = paying(&mut quorum, &carol, &leaves[1], &bob, &twin);
    let first = operation(&mut quorum, Kind::Send(first));
    let mut second = operation(&mut quorum, Kind::Send(second));
    second.coordinator = 1;
    let yes = |reply: wire::PrepareResponse| {
        let vote = reply.vote.unwrap();
        (vote.choice() == spark_proto::peer::v1::Choice::Yes, vote.reason)
    };
    assert!(yes(quorum.prepare(0, &first)).0);
    assert!(yes(quorum.prepare(1, &second)).0);
    assert_eq!(yes(quorum.prepare(0, &second)), (false, "INVOICE_PAID".into()));
    assert_eq!(yes(quorum.prepare(1, &first)), (false, "INVOICE_PAID".into()));
}

/// After a proof of abort an invoice can be paid; after a payment never again.
#[test]
fn an_aborted_payment_gives_the_invoice_back() {
    let mut quorum = Quorum::new(2, 3);
    let (alice, bob) = (Wallet::new(), Wallet::new());
    let leaves: Vec<Leaf> = (0..3).map(|_| deposit(&mut quorum, &alice, SATS)).collect();
    let text = invoice(&bob, terms());
    let first = paying(&mut quorum, &alice, &leaves[0], &bob, &text);
    let first = operation(&mut quorum, Kind::Send(first));
    quorum.certify(&first).unwrap();
    let votes: Vec<_> = (0..2)
        .map(|member| {
            let ask = wire::SignAbortRequest {
                operation_id: first.operation_id.clone(),
                attempt: first.attempt,
                aborts: Vec::new(),
            };
            match quorum.call(member, Request::SignAbort(ask)).unwrap() {
                Reply::SignAbort(reply) => reply.vote.unwrap(),
                _ => panic!(),
            }
        })
        .collect();
    for member in 0..3 {
        let proof = Some(spark_proto::peer::v1::ProofOfAbort { votes: votes.clone() });
        let abort =
            wire::AbortRequest { operation_id: first.operation_id.clone(), attempt: first.attempt, proof };
        quorum.call(member, Request::Abort(abort)).unwrap();
    }
    let second = paying(&mut quorum, &alice, &leaves[1], &bob, &text);
    quorum.run(Kind::Send(second)).unwrap();
    let third = paying(&mut quorum, &alice, &leaves[2], &bob, &text);
    let third = operation(&mut quorum, Kind::Send(third));
    assert_eq!(quorum.certify(&third).unwrap_err(), "INVOICE_PAID");
}
