//! S8, D11: the peers' memory.

use spark_proto::{peer::v1::operation::Request as Kind, signer::v1 as wire};

use super::{Wallet, deposit, quorum::Quorum, send_request};
use crate::engine::{EngineError, Reply, Request};

/// A quorum in which member 0 voted for a transfer, and was then rolled back, store and HSM together.
fn rolled_back() -> (Quorum, Wallet) {
    let mut quorum = Quorum::new(2, 3);
    let (alice, bob) = (Wallet::new(), Wallet::new());
    let leaf = deposit(&mut quorum, &alice, 50_000);
    let old = (quorum.members[0].store.snapshot(), quorum.members[0].token.snapshot());
    let (send, _) = send_request(&mut quorum, &alice, &leaf, bob.id());
    quorum.run(Kind::Send(send)).unwrap();
    quorum.members[0].store.restore(old.0);
    quorum.members[0].token.restore(old.1);
    quorum.restart(0);
    (quorum, alice)
}

fn answer(quorum: &mut Quorum, member: usize, question: wire::WitnessQuestion) -> wire::WitnessAnswer {
    match quorum.call(member, Request::AnswerWitness(question)).unwrap() {
        Reply::WitnessAnswer(answer) => answer,
        _ => panic!(),
    }
}

fn accept(quorum: &mut Quorum, answers: Vec<wire::WitnessAnswer>) -> Result<(), EngineError> {
    quorum.call(0, Request::AcceptWitness(wire::AcceptWitnessRequest { answers })).map(drop)
}

/// Store and HSM rolled back together open, but the peers remember more, and the signer stays locked.
#[test]
fn s8_joint_rollback_is_refused_by_the_peers_memory() {
    let (mut quorum, alice) = rolled_back();
    assert!(matches!(quorum.witness(0), Err(EngineError::RolledBack { .. })));
    let call = Request::CommitNonces(wire::CommitNoncesRequest {
        count: 1,
        identity: alice.id().serialize().to_vec(),
        leaf_ids: Vec::new(),
    });
    assert!(matches!(quorum.call(0, call), Err(EngineError::Locked)));
}

/// A lying peer asks an honest one under the rolled-back signer's nonce: the answer is about the liar, and counts for
/// nobody else. The liar's own silence about what it remembers is not enough.
#[test]
fn s8_an_answer_to_another_asker_is_none() {
    let (mut quorum, _) = rolled_back();
    let question = quorum.question(0);
    let mut of_liar = quorum.question(1);
    of_liar.nonce.clone_from(&question.nonce);
    let position = spark_rules::vote::Position::parse(of_liar.position.as_ref()).unwrap();
    let statement = position.statement(&quorum.federation, "witness-question/v1", &question.nonce);
    of_liar.signature =
        crate::vault::Token::sign_federation(&quorum.members[1].token, &statement).unwrap().to_vec();
    let relayed = answer(&mut quorum, 2, of_liar);
    assert!(accept(&mut quorum, vec![relayed]).is_err());
    let honest = answer(&mut quorum, 2, question);
    assert!(matches!(accept(&mut quorum, vec![honest]), Err(EngineError::RolledBack { .. })));
}

/// A witness that brings somebody else's words instead of the asker's was not heard.
#[test]
fn s8_foreign_words_are_no_answer() {
    let mut quorum = Quorum::new(2, 3);
    quorum.restart(0);
    let question = quorum.question(0);
    let mut answers: Vec<_> = (1..3).map(|member| answer(&mut quorum, member, question.clone())).collect();
    assert!(answers[1].seen.is_some());
    let position = spark_rules::vote::Position::parse(answers[1].position.as_ref()).unwrap();
    let seen = answers[1].seen.as_mut().unwrap();
    seen.statement[60] ^= 1;
    let mut payload = 0u16.to_be_bytes().to_vec();
    payload.extend_from_slice(&question.nonce);
    payload.push(1);
    payload.extend_from_slice(&prost::Message::encode_to_vec(seen));
    let statement = position.statement(&quorum.federation, "witness-answer/v2", &payload);
    answers[1].signature =
        crate::vault::Token::sign_federation(&quorum.members[2].token, &statement).unwrap().to_vec();
    let refused = accept(&mut quorum, answers);
    assert!(matches!(refused, Err(EngineError::Vote(_))), "{refused:?}");
}

/// Binding an address only adds, so no root is renewed; the peers remember it all the same.
#[test]
fn s8_a_rollback_past_a_binding_is_seen() {
    let mut quorum = Quorum::new(2, 3);
    let alice = Wallet::new();
    let old = quorum.members[0].store.snapshot();
    let key = crate::secret::SecretScalar::random(&mut rand::rngs::OsRng).public_key();
    quorum.bind(spark_rules::ids::LeafId::from_bytes([5; 16]), key, alice.id());
    quorum.members[0].store.restore(old);
    quorum.restart(0);
    assert!(matches!(quorum.witness(0), Err(EngineError::RolledBack { .. })));
}

/// Of two open copies of one store over one HSM, one can work.
#[test]
fn s8_a_copy_beside_the_signer_cannot_unlock() {
    let mut quorum = Quorum::new(2, 3);
    quorum.restart(0);
    let copy = quorum.copy(0);
    quorum.witness(0).unwrap();
    let original = std::mem::replace(&mut quorum.members[0].engine, copy);
    let refused = quorum.witness(0);
    assert!(refused.is_err(), "both copies work");
    assert!(quorum.members[0].engine.is_locked());
    quorum.members[0].engine = original;
    let alice = Wallet::new();
    deposit(&mut quorum, &alice, 50_000);
}
