// Runs in the browser: a deposit and a transfer by the SDK's browser build. `network`, `pay` and `mine` come from the
// program that opened the page: a browser has no way to bitcoind, and needs none.
import { SparkWallet } from "@buildonspark/spark-sdk";

const say = (line) => window.report(line);
const later = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

async function eventually(what, attempt, milliseconds = 60_000) {
  const end = Date.now() + milliseconds;
  let last = "";
  while (Date.now() < end) {
    try {
      const value = await attempt();
      if (value) return value;
    } catch (error) {
      last = `: ${error.message}`;
    }
    await later(500);
  }
  throw new Error(`${what}: not within ${milliseconds} ms${last}`);
}

const available = async (wallet) => (await wallet.getBalance()).satsBalance.available;

async function story() {
  const { operators, threshold, amount, confirmations } = await window.network();
  const options = {
    network: "LOCAL",
    signingOperators: Object.fromEntries(operators.map((operator) => [operator.identifier, operator])),
    threshold,
    // Optimisation swaps leaves through a service provider; there is none here.
    optimizationOptions: { auto: false },
    tokenOptimizationOptions: { enabled: false },
  };
  const open = async () => (await SparkWallet.initialize({ options })).wallet;
  const [alice, bob] = [await open(), await open()];
  say("two wallets authenticated over grpc-web");

  const txid = await window.pay(await alice.getSingleUseDepositAddress(), amount);
  await window.mine(confirmations);
  await eventually("the deposit is claimed", () => alice.claimDeposit(txid));
  await eventually("the deposit is spendable", async () => (await available(alice)) === BigInt(amount));
  say(`a deposit of ${amount} sats is claimed`);

  // Nobody asks bob to claim: his event stream, a server stream over grpc-web, does.
  await alice.transfer({ amountSats: amount, receiverSparkAddress: await bob.getSparkAddress() });
  await eventually("the receiver has claimed", async () => (await available(bob)) === BigInt(amount));
  if ((await available(alice)) !== 0n) throw new Error("the sender still has what was sent");
  say("a transfer is claimed by the receiver's event stream");

  await Promise.allSettled([alice.cleanup?.(), bob.cleanup?.()]);
}

story().then(
  () => window.finish(""),
  (error) => window.finish(error.stack ?? String(error)),
);
