//! Transfers to several receivers, to oneself, of many leaves, and invoices, with what people may try on them.

use anyhow::{Context as _, ensure};
use prost::Message as _;
use spark_devnet::{
    network::Devnet,
    wallet::{WalletCommand, number},
};
use spark_proto::spark::{self, InvoiceStatus};
use spark_wallet::{
    Wallet,
    flow::{InvoiceTerms, Sent},
};
use tonic::transport::Channel;
use uuid::Uuid;

use crate::support::{
    address, available,
    call::{Door, call, reason, wallet_card},
    deposit, eventually, network, people, rows,
};

/// Leaves of the large transfer.
const MANY: usize = 101;

async fn claimed(wallet: &WalletCommand, expected: u64) -> anyhow::Result<()> {
    eventually("claimed", || async {
        wallet.run_all(&["receive"]).await?;
        Ok(available(wallet).await? == expected)
    })
    .await
}

/// One transfer pays two others and gives change; each sees and claims its own part.
#[tokio::test(flavor = "multi_thread")]
async fn one_transfer_pays_several_receivers() -> anyhow::Result<()> {
    let devnet = network().await?;
    let alice = WalletCommand::create(&devnet, "alice", 0).await?;
    let bob = WalletCommand::create(&devnet, "bob", 1).await?;
    let carol = WalletCommand::create(&devnet, "carol", 2).await?;
    for sats in [10_000, 20_000, 30_000] {
        deposit(&devnet, &alice, sats).await?;
    }
    let to = async |wallet, sats| anyhow::Ok(format!("{}:{sats}sat", address(wallet).await?));
    let (first, second, third) =
        (to(&bob, 30_000).await?, to(&carol, 10_000).await?, to(&alice, 20_000).await?);
    let sent = alice.run(&["send", "--to", &first, "--to", &second, "--to", &third]).await?;
    ensure!(number(&sent, "amount_sats")? == 60_000, "{sent}");
    ensure!(available(&alice).await? == 0, "nothing is left but what is claimed");
    claimed(&carol, 10_000).await?;
    claimed(&alice, 20_000).await?;
    claimed(&bob, 30_000).await?;
    rows::agree(&devnet).await?;

    // All of it can be spent again, and a transfer to oneself is one like any other.
    let me = address(&alice).await?;
    alice.run(&["send", &me, "20000sat"]).await?;
    claimed(&alice, 20_000).await?;
    // Not enough for all: nobody is paid.
    let first = to(&bob, 20_000).await?;
    let refused = alice.run(&["send", "--to", &first, "--to", &second]).await;
    ensure!(refused.is_err(), "paid with what is not there");
    ensure!(available(&alice).await? == 20_000, "half of a transfer");
    rows::agree(&devnet).await
}

/// What a transfer with several receivers shows to whom, over the wire.
#[tokio::test(flavor = "multi_thread")]
async fn receivers_of_one_transfer_see_only_their_own() -> anyhow::Result<()> {
    let devnet = network().await?;
    let dir = tempfile::tempdir()?;
    let alice = people::wallet(&devnet, dir.path(), "alice", 0)?;
    let bob = people::wallet(&devnet, dir.path(), "bob", 0)?;
    let carol = people::wallet(&devnet, dir.path(), "carol", 0)?;
    people::deposit(&devnet, &alice, 10_000).await?;
    people::deposit(&devnet, &alice, 20_000).await?;
    let to = [(people::address(&bob)?, 10_000), (people::address(&carol)?, 20_000)];
    let sent = alice.send_many(&to, None).await?;
    let channel = channel(&devnet, 0)?;
    let shown = async |wallet: &Wallet| transfers(&channel, wallet).await;
    let key = |wallet: &Wallet| wallet.keys().identity().public_key().serialize().to_vec();
    let all = shown(&alice).await?;
    ensure!(all.len() == 1 && all[0].id == sent.transfer_id, "{all:?}");
    ensure!((all[0].total_value, all[0].leaves.len(), all[0].receivers.len()) == (30_000, 2, 2), "{all:?}");
    for (receiver, other, sats) in [(&bob, &carol, 10_000), (&carol, &bob, 20_000)] {
        let own = shown(receiver).await?;
        ensure!(own.len() == 1, "{own:?}");
        let own = &own[0];
        ensure!((own.total_value, own.leaves.len(), own.receivers.len()) == (sats, 1, 1), "{own:?}");
        ensure!(own.receiver_identity_public_key == key(receiver), "another's part");
        let bytes = own.encode_to_vec();
        ensure!(!bytes.windows(33).any(|window| window == key(other)), "the other receiver is named");
    }
    // Claimed by one: complete for it, open for the other and for the sender.
    people::claim(&bob, &sent.transfer_id).await?;
    let status = async |wallet: &Wallet| {
        let found = transfers(&channel, wallet).await?.pop().context("transfer")?;
        anyhow::Ok(found.status())
    };
    ensure!(status(&bob).await? == spark::TransferStatus::Completed, "bob");
    ensure!(status(&carol).await? == spark::TransferStatus::SenderKeyTweaked, "carol");
    ensure!(status(&alice).await? == spark::TransferStatus::SenderKeyTweaked, "alice");
    people::claim(&carol, &sent.transfer_id).await?;
    ensure!(status(&alice).await? == spark::TransferStatus::Completed, "alice, later");
    rows::agree(&devnet).await?;
    // Last: what holds the leaf stands in one operator's tables only.
    nobody_is_paid_with_half_of_it(&devnet, &bob, [&alice, &carol]).await
}

/// One of two leaves is held at one operator that does not coordinate: all or none are paid.
async fn nobody_is_paid_with_half_of_it(
    devnet: &Devnet,
    bob: &Wallet,
    [alice, carol]: [&Wallet; 2],
) -> anyhow::Result<()> {
    let held = people::deposit(devnet, bob, 20_000).await?;
    let held = Uuid::parse_str(&held)?;
    let mut database = rows::connect(devnet, 1).await?;
    let hold = "INSERT INTO leaf_claim (leaf_id, leaf_version, op_id, attempt) \
                SELECT l.leaf_id, l.version, o.op_id, o.attempt FROM leaf l, operation o \
                WHERE l.leaf_id = $1 AND o.kind = 2 LIMIT 1";
    ensure!(
        sqlx::query(hold).bind(held).execute(&mut database).await?.rows_affected() == 1,
        "nothing is held"
    );
    let to = [(people::address(alice)?, 10_000), (people::address(carol)?, 20_000)];
    let refused = bob.send_many(&to, None).await;
    ensure!(refused.is_err(), "paid with a leaf that is held");
    // It was the operators that refused it, not the wallet.
    let mut coordinator = rows::connect(devnet, 0).await?;
    let aborted = "SELECT count(*) FROM operation WHERE kind = 2 AND state = 'ABORTED'";
    let aborted: i64 = sqlx::query_scalar(aborted).fetch_one(&mut coordinator).await?;
    ensure!(aborted > 0, "no operator was asked: {refused:?}");
    for operator in 0..devnet.members().len() {
        let mut database = rows::connect(devnet, operator).await?;
        let moved = "SELECT count(*) FROM transfer_leaf WHERE leaf_id = $1";
        let moved: i64 = sqlx::query_scalar(moved).bind(held).fetch_one(&mut database).await?;
        let locked = "SELECT count(*) FROM leaf_claim WHERE state = 'LOCKED'";
        let locked: i64 = sqlx::query_scalar(locked).fetch_one(&mut database).await?;
        // Nothing is locked but what this test did.
        let expected = i64::from(operator == 1);
        ensure!((moved, locked) == (0, expected), "operator {operator}: half of it");
    }
    Ok(())
}

fn channel(devnet: &Devnet, operator: usize) -> anyhow::Result<Channel> {
    let url = devnet.members().get(operator).context("operator")?.mutual_url();
    Door::of(devnet, &url).open(Some(&wallet_card(devnet)))
}

async fn transfers(channel: &Channel, wallet: &Wallet) -> anyhow::Result<Vec<spark::Transfer>> {
    let session = format!("Bearer {}", people::login(channel, wallet).await?);
    let request = spark::TransferFilter::default().encode_to_vec();
    let path = "/spark.SparkService/query_all_transfers";
    let answer = call(channel, path, request, Some(session.as_bytes())).await?;
    Ok(spark::QueryTransfersResponse::decode(answer)?.transfers)
}

/// An invoice is paid by its text, once, also where two people pay it through two operators at the same time.
#[tokio::test(flavor = "multi_thread")]
async fn an_invoice_is_paid_once() -> anyhow::Result<()> {
    let devnet = network().await?;
    let dir = tempfile::tempdir()?;
    let alice = people::wallet(&devnet, dir.path(), "alice", 0)?;
    let carol = people::wallet(&devnet, dir.path(), "carol", 1)?;
    let bob = people::wallet(&devnet, dir.path(), "bob", 2)?;
    for _ in 0..2 {
        people::deposit(&devnet, &alice, 10_000).await?;
    }
    people::deposit(&devnet, &carol, 10_000).await?;
    let terms = |amount| InvoiceTerms {
        amount: Some(amount),
        memo: Some("rent".into()),
        expires_in: Some(3_600),
        sender: None,
    };
    let invoice = bob.invoice(terms(10_000))?;
    let state = async |wallet: &Wallet, invoice: &String| {
        anyhow::Ok(wallet.invoice_states(std::slice::from_ref(invoice)).await?.remove(0))
    };
    ensure!(state(&bob, &invoice).await? == (InvoiceStatus::NotFound, None), "before");

    // The wallet refuses what does not fit, before anything is sent; so do operators (see below).
    let expired = bob.invoice(InvoiceTerms { expires_in: Some(0), ..terms(10_000) })?;
    ensure!(alice.pay_invoice(&expired, None, None).await.is_err(), "expired");
    ensure!(alice.pay_invoice(&invoice, Some(9_000), None).await.is_err(), "another amount");
    ensure!(bob.invoice(terms(1))? != bob.invoice(terms(1))?, "two invoices are one");

    let (first, second) =
        tokio::join!(alice.pay_invoice(&invoice, None, None), carol.pay_invoice(&invoice, None, None));
    ensure!(!(first.is_ok() && second.is_ok()), "paid twice");
    let paid = match (first, second) {
        (Ok(sent), Err(_)) | (Err(_), Ok(sent)) => sent,
        // Each may have ended the other's attempt: then one after the other does it.
        _ => paid_at_last(&alice, &invoice).await?,
    };
    people::claim(&bob, &paid.transfer_id).await?;
    let (found, transfer) = state(&bob, &invoice).await?;
    ensure!(found == InvoiceStatus::Finalized, "{found:?}");
    ensure!(transfer.map(|id| id.to_string()).as_deref() == Some(paid.transfer_id.as_str()), "{transfer:?}");
    let stranger = people::wallet(&devnet, dir.path(), "dave", 0)?;
    ensure!(state(&stranger, &invoice).await? == (InvoiceStatus::NotFound, None), "told to a stranger");
    let again = alice.pay_invoice(&invoice, None, None).await;
    ensure!(again.is_err(), "paid again");

    // A transfer that goes by the invoice's text but not by its terms is refused by the operators, too.
    let channel = channel(&devnet, 0)?;
    let other = bob.invoice(terms(11_000))?;
    let shown = transfers(&channel, &bob).await?;
    ensure!(shown.iter().all(|transfer| transfer.spark_invoice == invoice), "the receiver is not shown it");
    for (text, expected) in [(other, "RULE_VIOLATED"), (expired, "EXPIRED"), (invoice, "INVOICE_PAID")] {
        let refused = pay_by_text(&devnet, &bob, text).await?;
        ensure!(refused == expected, "{refused} instead of {expected}");
    }
    rows::agree(&devnet).await
}

/// Pays an invoice that attempts of others, now given up, may still hold for a moment.
async fn paid_at_last(wallet: &Wallet, invoice: &str) -> anyhow::Result<Sent> {
    let paid = std::sync::Mutex::new(None);
    eventually("the invoice is free and paid", || async {
        let sent = wallet.pay_invoice(invoice, None, None).await?;
        *paid.lock().map_err(|_| anyhow::anyhow!("poisoned"))? = Some(sent);
        Ok(true)
    })
    .await?;
    let paid = paid.into_inner().map_err(|_| anyhow::anyhow!("poisoned"))?;
    paid.context("paid")
}

/// Puts an invoice into a plain send of 10,000 satoshis to Bob, as a careless wallet would; the reason of the refusal.
async fn pay_by_text(devnet: &Devnet, bob: &Wallet, text: String) -> anyhow::Result<String> {
    let dir = tempfile::tempdir()?;
    let tap = crate::support::tap::Tap::start(devnet, 0).await?;
    let home = dir.path().join("careless");
    tap.write_wallet_config(devnet, &home, 0)?;
    let careless = people::create(&home)?;
    people::deposit(devnet, &careless, 10_000).await?;
    tap.hold("/spark.SparkService/start_transfer_v2");
    ensure!(careless.send(&people::address(bob)?, 10_000, None).await.is_err(), "held back, and answered");
    let caught = tap.take("/spark.SparkService/start_transfer_v2")?;
    let mut request = spark::StartTransferRequest::decode(caught.message.as_slice())?;
    request.spark_invoice = text;
    let channel = channel(devnet, 0)?;
    let answer = call(&channel, &caught.path, request.encode_to_vec(), Some(&caught.authorization)).await;
    let refused = answer.err().context("accepted")?;
    Ok(reason(&refused))
}

/// A hundred leaves and one more go in one package and come in one claim.
#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_leaves_in_one_package() -> anyhow::Result<()> {
    let devnet = network().await?;
    let dir = tempfile::tempdir()?;
    let alice = people::wallet(&devnet, dir.path(), "alice", 0)?;
    let bob = people::wallet(&devnet, dir.path(), "bob", 1)?;
    for batch in [1_000; MANY].chunks(25) {
        people::deposits(&devnet, &alice, batch).await?;
    }
    let total = MANY as u64 * 1_000;
    let sent = alice.send(&people::address(&bob)?, total, None).await?;
    ensure!(sent.leaves.len() == MANY, "{} leaves", sent.leaves.len());
    people::claim(&bob, &sent.transfer_id).await?;
    ensure!(bob.balance().await?.available_sats == total, "all of it");
    rows::agree(&devnet).await
}
