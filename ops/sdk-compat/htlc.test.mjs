// Transfers that a preimage completes, as a foreign wallet does them.
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { DEPOSIT_CONFIRMATIONS, eventually, mine, openWallet, pay } from "./devnet.mjs";

// Values of the SDK's `PreimageRequestRole` and `PreimageRequestStatus` on the wire.
const SENDER = 1;
const BOTH = 2;
const WAITING = 0;
const SHARED = 1;
const RETURNED = 2;
// Blocks until an HTLC of some minutes expires, and until it is returned.
const RETURN = 12;

let alice, bob;

const available = async (wallet) => (await wallet.getBalance()).satsBalance.available;
const minutes = (count) => new Date(Date.now() + count * 60_000);
const hex = (bytes) => Buffer.from(bytes).toString("hex");

before(async () => {
  [{ wallet: alice }, { wallet: bob }] = [await openWallet(), await openWallet()];
  const txid = await pay(await alice.getSingleUseDepositAddress(), 1_000);
  await mine(DEPOSIT_CONFIRMATIONS);
  await eventually("deposit is claimed", () => alice.claimDeposit(txid));
  await eventually("deposit is spendable", async () => (await available(alice)) === 1_000n);
});

after(async () => {
  await Promise.allSettled([alice?.cleanup(), bob?.cleanup()]);
  setTimeout(() => process.exit(process.exitCode ?? 0), 1_000).unref();
});

test("a preimage settles it", async () => {
  const htlc = await alice.createHTLC({
    receiverSparkAddress: await bob.getSparkAddress(),
    amountSats: 1_000,
    expiryTime: minutes(5),
  });
  assert.equal(await available(alice), 0n);
  assert.equal(await available(bob), 0n);
  const waiting = await bob.queryHTLC({});
  assert.deepEqual(waiting.preimageRequests.map((r) => [r.transfer.id, r.status]), [[htlc.id, WAITING]]);
  await assert.rejects(bob.claimHTLC("07".repeat(32)));

  const preimage = hex(await alice.getHTLCPreimage(htlc.id));
  await bob.claimHTLC(preimage);
  await eventually("settled and claimed", async () => (await available(bob)) === 1_000n);
  const shared = await alice.queryHTLC({ matchRole: SENDER });
  assert.deepEqual(
    shared.preimageRequests.map((r) => [r.transfer.id, r.status, hex(r.preimage)]),
    [[htlc.id, SHARED, preimage]],
  );
});

test("time returns it, and its leaf can be spent again", async () => {
  const htlc = await bob.createHTLC({
    receiverSparkAddress: await alice.getSparkAddress(),
    amountSats: 1_000,
    expiryTime: minutes(1),
  });
  assert.equal(await available(bob), 0n);
  await mine(RETURN);
  await eventually("returned", async () => {
    const { preimageRequests } = await bob.queryHTLC({ transferIds: [htlc.id], matchRole: BOTH });
    return preimageRequests[0]?.status === RETURNED;
  });
  await eventually("free again", async () => (await available(bob)) === 1_000n);
  // Its stream may still be telling it of the transfer: the leaf is then out of its hands for a moment.
  const receiverSparkAddress = await alice.getSparkAddress();
  await eventually("spent again", () => bob.transfer({ amountSats: 1_000, receiverSparkAddress }));
  await eventually("sent on", async () => (await available(alice)) === 1_000n);
});
