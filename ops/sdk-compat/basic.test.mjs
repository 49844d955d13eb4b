// Deposit, transfer and automatic claim as a foreign wallet sees them.
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { SparkReadonlyClient, SparkWalletEvent } from "@buildonspark/spark-sdk";
import { DEPOSIT_CONFIRMATIONS, eventually, mine, nextEvent, openWallet, options, pay } from "./devnet.mjs";

const AMOUNT = 100_000;

let alice, aliceMnemonic, bob, bobMnemonic, leafId;

const available = async (wallet) => (await wallet.getBalance()).satsBalance.available;

before(async () => {
  ({ wallet: alice, mnemonic: aliceMnemonic } = await openWallet());
  ({ wallet: bob, mnemonic: bobMnemonic } = await openWallet());
});

after(async () => {
  await Promise.allSettled([alice?.cleanup(), bob?.cleanup()]);
  // The SDK keeps idle HTTP/2 connections open; the run is over when its tests are.
  setTimeout(() => process.exit(process.exitCode ?? 0), 1_000).unref();
});

test("two new wallets authenticate, sync and are empty", async () => {
  for (const wallet of [alice, bob]) {
    assert.match(await wallet.getSparkAddress(), /^sparkl1/);
    assert.equal(await available(wallet), 0n);
    assert.deepEqual(await wallet.getLeaves(), []);
    assert.deepEqual(await wallet.getUnusedDepositAddresses(), []);
  }
});

test("a deposit address is proven, listed and used once", async () => {
  const address = await alice.getSingleUseDepositAddress();
  assert.match(address, /^bcrt1p/);
  assert.deepEqual(await alice.getUnusedDepositAddresses(), [address]);
  assert.deepEqual(await bob.getUnusedDepositAddresses(), [], "addresses are private");

  const txid = await pay(address, AMOUNT);
  await mine(DEPOSIT_CONFIRMATIONS);
  // Operators hear of a block a moment after bitcoind does.
  const [leaf] = await eventually("deposit is claimed", () => alice.claimDeposit(txid));
  leafId = leaf.id;
  assert.equal(leaf.value, AMOUNT);
  await eventually("deposit is spendable", async () => (await available(alice)) === BigInt(AMOUNT));
  assert.deepEqual(await alice.getUnusedDepositAddresses(), []);

  const [node] = await alice.getLeaves();
  assert.equal(node.id, leafId);
  assert.equal(node.status, "AVAILABLE");
});

test("a transfer is claimed by the receiver without being asked", async () => {
  const claimed = nextEvent(bob, SparkWalletEvent.TransferClaimed);
  const sent = await alice.transfer({ amountSats: AMOUNT, receiverSparkAddress: await bob.getSparkAddress() });
  assert.equal(sent.totalValue, AMOUNT);
  const [transferId, balance] = await claimed;
  assert.equal(transferId, sent.id);
  assert.equal(balance, BigInt(AMOUNT));

  assert.equal(await available(bob), BigInt(AMOUNT));
  assert.equal(await available(alice), 0n);
  assert.deepEqual(await alice.getLeaves(), []);
});

test("the leaf keeps its id and every operator agrees on it", async () => {
  // getLeaves asks all operators and drops a leaf on which two of them differ.
  const leaves = await bob.getLeaves();
  assert.equal(leaves.length, 1);
  assert.equal(leaves[0].id, leafId);
  assert.equal(leaves[0].value, AMOUNT);
  assert.equal(Buffer.from(leaves[0].ownerIdentityPublicKey).toString("hex"), await bob.getIdentityPublicKey());
});

test("a wallet that was away claims when it comes back", async () => {
  const bobAddress = await bob.getSparkAddress();
  const back = nextEvent(alice, SparkWalletEvent.TransferClaimed);
  await bob.transfer({ amountSats: AMOUNT, receiverSparkAddress: await alice.getSparkAddress() });
  await back;
  await bob.cleanup();
  await alice.transfer({ amountSats: AMOUNT, receiverSparkAddress: bobAddress });
  assert.equal(await available(alice), 0n);

  ({ wallet: bob } = await openWallet(bobMnemonic));
  assert.equal(await bob.getSparkAddress(), bobAddress);
  await eventually("pending transfer is claimed", async () => (await available(bob)) === BigInt(AMOUNT));
});

test("spending what is not there is refused before anything happens", async () => {
  await assert.rejects(alice.transfer({ amountSats: AMOUNT, receiverSparkAddress: await bob.getSparkAddress() }));
  assert.equal(await available(bob), BigInt(AMOUNT));
});

test("another wallet reads what is opened to it, and nothing else", async () => {
  const ownerIdentityPublicKey = await bob.getIdentityPublicKey();
  assert.deepEqual(await bob.getWalletSettings(), { ownerIdentityPublicKey, privateEnabled: true });
  const reader = await SparkReadonlyClient.createWithMasterKey(options(), aliceMnemonic);
  const address = await bob.getSparkAddress();
  await assert.rejects(reader.getAvailableBalance(address));
  assert.equal((await bob.setPrivacyEnabled(false)).privateEnabled, false);
  assert.equal(await reader.getAvailableBalance(address), BigInt(AMOUNT));
  assert.equal((await bob.setPrivacyEnabled(true)).privateEnabled, true);
  await assert.rejects(reader.getAvailableBalance(address));
});
