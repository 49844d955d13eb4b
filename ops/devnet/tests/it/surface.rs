//! Every door of a federation, from the descriptors: who is not let in, and that no RPC is forgotten (S11).

mod certificates;
mod peers;
mod thefts;

use std::{collections::BTreeSet, path::Path};

use anyhow::{Context as _, ensure};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use prost::Message as _;
use spark_devnet::network::Devnet;
use spark_proto::spark;
use spark_wallet::{Wallet, flow::InvoiceTerms, state};
use thefts::{FOR_ALL, Gets, Victim, thefts};
use tonic::{Code, Status, transport::Channel};

use crate::support::{
    call::{Door, call, reason, wallet_card},
    eventually,
    methods::{self, LOGIN, Method, NOT_OFFERED},
    network, pay, people, ready,
    web::{Form, Web},
};

/// One network for all: a federation takes longer to start than to be knocked at.
#[tokio::test(flavor = "multi_thread")]
async fn s11_every_door_is_shut() -> anyhow::Result<()> {
    let mut devnet = network().await?;
    certificates::certificates_at_the_peers_door(&devnet).await.context("peers")?;
    certificates::certificates_at_the_signers_door(&devnet).await.context("signer")?;
    certificates::services_are_where_they_belong(&devnet).await.context("services")?;
    sessions(&mut devnet).await.context("sessions")
}

/// Ways to reach the public API of one operator.
struct Ways {
    native: Vec<(&'static str, Channel)>,
    web: Vec<(&'static str, Web)>,
}

impl Ways {
    fn to(devnet: &Devnet, operator: usize) -> anyhow::Result<Self> {
        let member = devnet.members().get(operator).context("operator")?;
        let mutual = Door::of(devnet, &member.mutual_url());
        let open = Door::of(devnet, &member.open_url());
        Ok(Self {
            native: vec![
                ("gRPC with a certificate", mutual.open(Some(&wallet_card(devnet)))?),
                ("gRPC without one", open.open(None)?),
            ],
            web: vec![
                ("grpc-web", Web::new(&open, Form::Binary)?),
                ("grpc-web-text", Web::new(&open, Form::Text)?),
            ],
        })
    }

    async fn all(
        &mut self,
        path: &str,
        message: &[u8],
        authorization: Option<&[u8]>,
    ) -> anyhow::Result<Vec<(&'static str, Result<Bytes, Status>)>> {
        let mut answers = Vec::new();
        for (way, channel) in &self.native {
            answers.push((*way, call(channel, path, message.to_vec(), authorization).await));
        }
        for (way, client) in &mut self.web {
            answers.push((*way, client.call(path, message, authorization).await?));
        }
        Ok(answers)
    }
}

async fn sessions(devnet: &mut Devnet) -> anyhow::Result<()> {
    let dir = devnet.endpoints().dir.join("people");
    let (alice, thief) =
        (people::wallet(devnet, &dir, "alice", 0)?, people::wallet(devnet, &dir, "thief", 0)?);
    let victim = victim(devnet, &dir, &alice, &thief).await?;
    let methods = methods::public()?;
    every_method_has_a_place(&methods, &victim)?;

    let mut ways = Ways::to(devnet, 0)?;
    let (_, channel) = ways.native.first().context("way")?;
    let own = people::login(channel, &alice).await?;
    let stolen = people::login(channel, &thief).await?;
    let elsewhere = Door::of(devnet, &devnet.members()[1].open_url()).open(None)?;
    let elsewhere = people::login(&elsewhere, &alice).await?;
    for (what, token, expected) in tokens(&own, &victim.identity, &elsewhere)? {
        refused_everywhere(&mut ways, &methods, what, token.as_deref(), expected).await?;
    }
    let stolen = format!("Bearer {stolen}");
    what_a_thief_gets(&mut ways, &methods, &victim, stolen.as_bytes()).await?;

    // The victim's own session does all of it, so what was refused was the session.
    let own = format!("Bearer {own}");
    let ask =
        spark::QueryBalanceRequest { identity_public_key: victim.identity.clone(), ..Default::default() };
    for (way, answer) in
        ways.all("/spark.SparkService/query_balance", &ask.encode_to_vec(), Some(own.as_bytes())).await?
    {
        let balance = spark::QueryBalanceResponse::decode(answer.with_context(|| way.to_owned())?)?.balance;
        ensure!(balance > 0, "{way}: balance {balance}");
    }

    // A session ends with the process that gave it.
    let operator = devnet.process("operator-0")?;
    operator.kill()?;
    operator.restart()?;
    ready(devnet).await?;
    let mut ways = Ways::to(devnet, 0)?;
    refused_everywhere(&mut ways, &methods, "from before a restart", Some(own.as_bytes()), "SESSION_EXPIRED")
        .await
}

/// A wallet that deposited, sent, received, and owns a leaf.
async fn victim(devnet: &Devnet, dir: &Path, alice: &Wallet, thief: &Wallet) -> anyhow::Result<Victim> {
    let bob = people::wallet(devnet, dir, "bob", 1)?;
    let moved = people::deposit(devnet, alice, 30_000).await?;
    let leaf = people::deposit(devnet, alice, 20_000).await?;
    people::transfer(alice, &bob, 30_000).await?;
    let terms = InvoiceTerms { amount: Some(30_000), ..InvoiceTerms::default() };
    let invoice = alice.invoice(terms)?;
    let paid = bob.pay_invoice(&invoice, None, None).await?;
    people::claim(alice, &paid.transfer_id).await?;
    let deposits = alice.state().all::<state::DepositRecord>()?;
    let deposit = deposits.iter().find(|d| d.leaf_id == moved).and_then(|d| d.request.as_ref());
    let sends = alice.state().all::<state::SendRecord>()?;
    let claims = alice.state().all::<state::ClaimRecord>()?;
    pay(devnet, &alice.static_address().await?.address, 40_000).await?;
    devnet.faucet().mine(1).await?;
    eventually("the static deposit counts", || async {
        Ok(alice.static_outputs().await?.iter().any(|output| output.confirmed))
    })
    .await?;
    let static_output = alice.static_outputs().await?.pop().context("static deposit")?.spend;
    Ok(Victim {
        static_output,
        static_key: alice.keys().static_deposit(0)?.public_key().serialize().to_vec(),
        invoice,
        identity: alice.keys().identity().public_key().serialize().to_vec(),
        thief: thief.keys().identity().public_key().serialize().to_vec(),
        leaf,
        deposit: deposit.context("deposit")?.decode()?,
        send: sends.first().context("send")?.request.decode()?,
        claim: claims.first().and_then(|c| c.request.as_ref()).context("claim")?.decode()?,
    })
}

fn every_method_has_a_place(methods: &[Method], victim: &Victim) -> anyhow::Result<()> {
    let tried = thefts(victim);
    let listed: Vec<&str> = LOGIN
        .iter()
        .chain(NOT_OFFERED)
        .copied()
        .chain(FOR_ALL.iter().map(|(name, _)| *name))
        .chain(tried.iter().map(|(name, _)| *name))
        .collect();
    let described: BTreeSet<&str> = methods.iter().map(|m| m.name.as_str()).collect();
    ensure!(described.len() == methods.len(), "two public methods share a name");
    ensure!(listed.len() == described.len(), "a method is listed twice");
    let listed: BTreeSet<&str> = listed.into_iter().collect();
    ensure!(listed == described, "{:?}", listed.symmetric_difference(&described).collect::<Vec<_>>());
    Ok(())
}

type Token = (&'static str, Option<Vec<u8>>, &'static str);

/// Sessions that are none, and the reason that goes with each.
fn tokens(own: &str, victim: &[u8], elsewhere: &str) -> anyhow::Result<Vec<Token>> {
    const MISSING: &str = "SESSION_MISSING";
    const EXPIRED: &str = "SESSION_EXPIRED";
    let bearer = |token: &str| Some(format!("Bearer {token}").into_bytes());
    let mut flipped = URL_SAFE_NO_PAD.decode(own)?;
    if let Some(last) = flipped.last_mut() {
        *last ^= 1;
    }
    let cut = flipped.get(..flipped.len().saturating_sub(16)).context("token")?;
    // One operator's form of token, with a victim's key and an expiry in the far future, and no key to sign it.
    let forged = [&[1][..], victim, &u64::MAX.to_be_bytes(), &[7; 8], &[9; 32]].concat();
    Ok(vec![
        ("absent", None, MISSING),
        ("empty", Some(Vec::new()), MISSING),
        ("no token", bearer(""), MISSING),
        ("a word", bearer("undefined"), MISSING),
        ("not base64", bearer("%%% no %%%"), MISSING),
        ("not text", Some(vec![b'B', 0xff, 0xfe]), MISSING),
        ("one bit flipped", bearer(&URL_SAFE_NO_PAD.encode(&flipped)), EXPIRED),
        ("cut", bearer(&URL_SAFE_NO_PAD.encode(cut)), EXPIRED),
        ("forged", bearer(&URL_SAFE_NO_PAD.encode(forged)), EXPIRED),
        ("of another operator", bearer(elsewhere), EXPIRED),
    ])
}

/// No method but the login serves this session, on whatever way.
async fn refused_everywhere(
    ways: &mut Ways,
    methods: &[Method],
    what: &str,
    token: Option<&[u8]>,
    expected: &str,
) -> anyhow::Result<()> {
    for method in methods {
        for (way, answer) in ways.all(&method.path(), &[], token).await? {
            let at = || format!("{what}, {way}, {}", method.name);
            let refused = answer.err().with_context(|| format!("{}: answered", at()))?;
            let (code, reason) = (refused.code(), reason(&refused));
            if LOGIN.contains(&method.name.as_str()) {
                ensure!(
                    (code, reason.as_str()) == (Code::InvalidArgument, "FIELD_INVALID"),
                    "{}: {refused:?}",
                    at()
                );
            } else if NOT_OFFERED.contains(&method.name.as_str()) {
                ensure!(code == Code::Unimplemented, "{}: {refused:?}", at());
            } else {
                ensure!(
                    (code, reason.as_str()) == (Code::Unauthenticated, expected),
                    "{}: {refused:?}",
                    at()
                );
            }
        }
    }
    Ok(())
}

/// A valid session, but another's money.
async fn what_a_thief_gets(
    ways: &mut Ways,
    methods: &[Method],
    victim: &Victim,
    stolen: &[u8],
) -> anyhow::Result<()> {
    for (name, tries) in thefts(victim) {
        let method = methods.iter().find(|m| m.name == name).context(name)?;
        for (number, (message, gets)) in tries.into_iter().enumerate() {
            for (way, answer) in ways.all(&method.path(), &message, Some(stolen)).await? {
                let at = || format!("{way}, {name}, try {number}");
                match (&gets, answer) {
                    (Gets::Refusal(code), Err(status)) => {
                        ensure!(status.code() == *code, "{}: {status:?}", at());
                    }
                    (Gets::Because(expected), Err(status)) => {
                        ensure!(reason(&status) == *expected, "{}: {status:?}", at());
                    }
                    (Gets::Nothing(is_empty), Ok(answer)) => {
                        ensure!(is_empty(&answer)?, "{}: something", at())
                    }
                    (_, other) => anyhow::bail!("{}: {other:?}", at()),
                }
            }
        }
    }
    for name in NOT_OFFERED {
        let method = methods.iter().find(|m| m.name == *name).context(*name)?;
        for (way, answer) in ways.all(&method.path(), &[], Some(stolen)).await? {
            let refused = answer.err().with_context(|| format!("{way}, {name}: answered"))?;
            ensure!(refused.code() == Code::Unimplemented, "{way}, {name}: {refused:?}");
        }
    }
    Ok(())
}
