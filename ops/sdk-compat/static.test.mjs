// Static deposits as a foreign wallet sees them, as far as they need no service provider.
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { DEPOSIT_CONFIRMATIONS, bitcoin, eventually, mine, openWallet, pay } from "./devnet.mjs";

const AMOUNT = 50_000;

let alice, bob, address, txid, vout;

before(async () => {
  ({ wallet: alice } = await openWallet());
  ({ wallet: bob } = await openWallet());
});

after(async () => {
  await Promise.allSettled([alice?.cleanup(), bob?.cleanup()]);
  // The SDK keeps idle HTTP/2 connections open; the run is over when its tests are.
  setTimeout(() => process.exit(process.exitCode ?? 0), 1_000).unref();
});

test("a static address is proven, stays the same, and is its owner's", async () => {
  assert.deepEqual(await alice.queryStaticDepositAddresses(), []);
  address = await alice.getStaticDepositAddress();
  assert.match(address, /^bcrt1p/);
  assert.equal(await alice.getStaticDepositAddress(), address);
  assert.deepEqual(await alice.queryStaticDepositAddresses(), [address]);
  assert.deepEqual(await bob.queryStaticDepositAddresses(), [], "addresses are private");
  assert.deepEqual(await alice.getUnusedDepositAddresses(), [], "a static address is not used up");
});

test("what comes to it is listed, page by page", async () => {
  txid = await pay(address, AMOUNT);
  const other = await pay(address, 2 * AMOUNT);
  const pending = await eventually("outputs are seen before their block", async () => {
    const { utxos } = await alice.getUtxosForIdentity({ includePending: true });
    return utxos.length === 2 && utxos;
  });
  assert.ok(pending.every((utxo) => !utxo.isConfirmed && utxo.address === address));
  await mine(DEPOSIT_CONFIRMATIONS);
  const listed = await eventually("outputs are confirmed", async () => {
    const utxos = await alice.getUtxosForDepositAddress(address);
    return utxos.length === 2 && utxos;
  });
  assert.deepEqual(new Set(listed.map((utxo) => utxo.txid)), new Set([txid, other]));
  vout = listed.find((utxo) => utxo.txid === txid).vout;

  const first = await alice.getUtxosForIdentity({ pageSize: 1 });
  assert.ok(first.pageResponse.hasNextPage);
  const second = await alice.getUtxosForIdentity({ pageSize: 1, cursor: first.pageResponse.nextCursor });
  assert.ok(!second.pageResponse.hasNextPage);
  assert.deepEqual(new Set([...first.utxos, ...second.utxos].map((utxo) => utxo.txid)), new Set([txid, other]));
  await assert.rejects(bob.getUtxosForDepositAddress(address), "outputs are private");
});

test("a refund is signed as often as its owner likes, and the chain takes it", async () => {
  const destinationAddress = await bitcoin("getnewaddress").catch(() => address);
  const refund = (satsPerVbyteFee) =>
    alice.refundStaticDeposit({ depositTransactionId: txid, outputIndex: vout, destinationAddress, satsPerVbyteFee });
  // The other operators may hear of the block a moment later.
  const cheap = await eventually("a refund is signed", () => refund(2));
  const dear = await refund(5);
  assert.notEqual(cheap, dear);
  const refunded = await bitcoin("sendrawtransaction", dear);
  await mine(1);
  const left = await eventually("the output is spent", async () => {
    const utxos = await alice.getUtxosForDepositAddress(address, 100, 0, true);
    return utxos.length === 1 && utxos;
  });
  assert.notEqual(left[0].txid, txid);
  assert.match(refunded, /^[0-9a-f]{64}$/);
  await assert.rejects(refund(3), "a spent output is not signed for again");
  await assert.rejects(
    bob.refundStaticDeposit({
      depositTransactionId: left[0].txid,
      outputIndex: left[0].vout,
      destinationAddress,
      satsPerVbyteFee: 2,
    }),
    "an output goes back to its owner only",
  );
});
