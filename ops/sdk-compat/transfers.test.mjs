// Invoices, several receivers and transfers to oneself as a foreign wallet does them.
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { DEPOSIT_CONFIRMATIONS, eventually, mine, openWallet, pay } from "./devnet.mjs";

// Values of the SDK's `InvoiceStatus` on the wire.
const NOT_FOUND = 0;
const FINALIZED = 2;

let alice, bob, carol;

const available = async (wallet) => (await wallet.getBalance()).satsBalance.available;
const tomorrow = () => new Date(Date.now() + 24 * 60 * 60 * 1000);

async function deposit(wallet, amount) {
  const address = await wallet.getSingleUseDepositAddress();
  const txid = await pay(address, amount);
  await mine(DEPOSIT_CONFIRMATIONS);
  const owned = await available(wallet);
  await eventually("deposit is claimed", () => wallet.claimDeposit(txid));
  await eventually("deposit is spendable", async () => (await available(wallet)) === owned + BigInt(amount));
}

const holds = (wallet, amount) =>
  eventually(`claimed up to ${amount}`, async () => (await available(wallet)) === BigInt(amount));

before(async () => {
  [{ wallet: alice }, { wallet: bob }, { wallet: carol }] = [
    await openWallet(),
    await openWallet(),
    await openWallet(),
  ];
  for (const amount of [1_000, 1_000, 2_000, 4_000, 8_000]) await deposit(alice, amount);
});

after(async () => {
  await Promise.allSettled([alice?.cleanup(), bob?.cleanup(), carol?.cleanup()]);
  setTimeout(() => process.exit(process.exitCode ?? 0), 1_000).unref();
});

test("invoices are paid, with and without an amount, and are known as paid", async () => {
  const fixed = await bob.createSatsInvoice({ amount: 2_000, memo: "rent", expiryTime: tomorrow() });
  const open = await bob.createSatsInvoice({ memo: "tip", expiryTime: tomorrow() });
  const before = await bob.querySparkInvoices([fixed, open]);
  assert.deepEqual(before.invoiceStatuses.map((s) => s.status), [NOT_FOUND, NOT_FOUND]);

  const paid = await alice.fulfillSparkInvoice([{ invoice: fixed }, { invoice: open, amount: 4_000n }]);
  assert.equal(paid.satsTransactionErrors.length, 0, String(paid.satsTransactionErrors[0]?.error));
  assert.equal(paid.satsTransactionSuccess.length, 2);
  await holds(bob, 6_000);

  const after = await bob.querySparkInvoices([fixed, open]);
  assert.deepEqual(after.invoiceStatuses.map((s) => s.invoice), [fixed, open]);
  assert.deepEqual(after.invoiceStatuses.map((s) => s.status), [FINALIZED, FINALIZED]);
  const stranger = await carol.querySparkInvoices([fixed]);
  assert.equal(stranger.invoiceStatuses[0].status, NOT_FOUND);
});

test("an invoice is paid once", async () => {
  const invoice = await bob.createSatsInvoice({
    amount: 1_000,
    expiryTime: tomorrow(),
    senderSparkAddress: await alice.getSparkAddress(),
  });
  const first = await alice.fulfillSparkInvoice([{ invoice }]);
  assert.equal(first.satsTransactionSuccess.length, 1, String(first.satsTransactionErrors[0]?.error));
  const second = await alice.fulfillSparkInvoice([{ invoice }]);
  assert.equal(second.satsTransactionErrors.length, 1);
  await holds(bob, 7_000);
});

test("one transfer pays two receivers, or one", async () => {
  await holds(alice, 9_000);
  const sent = await alice.transferV2({
    receivers: [
      { receiverSparkAddress: await bob.getSparkAddress(), amountSats: 1_000 },
      { receiverSparkAddress: await carol.getSparkAddress(), amountSats: 8_000 },
    ],
  });
  assert.equal(sent.status, "TRANSFER_STATUS_SENDER_KEY_TWEAKED");
  assert.equal(sent.receivers.length, 2);
  await holds(bob, 8_000);
  await holds(carol, 8_000);
  assert.equal(await available(alice), 0n);

  await carol.transferV2({
    receivers: [{ receiverSparkAddress: await alice.getSparkAddress(), amountSats: 8_000 }],
  });
  await holds(alice, 8_000);
});

test("a transfer to oneself comes back", async () => {
  await alice.transfer({ amountSats: 8_000, receiverSparkAddress: await alice.getSparkAddress() });
  await holds(alice, 8_000);
  await alice.transferV2({
    receivers: [{ receiverSparkAddress: await alice.getSparkAddress(), amountSats: 8_000 }],
  });
  await holds(alice, 8_000);
});
