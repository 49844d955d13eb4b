// The network under test, as the environment describes it: see `run`.
import { setTimeout as sleep } from "node:timers/promises";
import { SparkWallet, SparkWalletEvent } from "@buildonspark/spark-sdk";

const list = (name) => (process.env[name] ?? "").split(",").map((item) => item.trim()).filter(Boolean);

/** Blocks after which the operators count a deposit. */
export const DEPOSIT_CONFIRMATIONS = Number(process.env.SPARK_DEPOSIT_CONFIRMATIONS ?? 3);

function signingOperators() {
  const addresses = list("SPARK_OPERATORS");
  const keys = list("SPARK_OPERATOR_KEYS");
  if (addresses.length === 0 && keys.length === 0) return undefined;
  if (addresses.length !== keys.length) {
    throw new Error("SPARK_OPERATORS and SPARK_OPERATOR_KEYS must have one entry per operator");
  }
  return Object.fromEntries(
    addresses.map((address, id) => {
      const identifier = (id + 1).toString(16).padStart(64, "0");
      return [identifier, { id, identifier, address, identityPublicKey: keys[id] }];
    }),
  );
}

/** Options that point an unmodified SDK at the operators and keep it from calling a service provider. */
export function options() {
  const operators = signingOperators();
  return {
    network: "LOCAL",
    ...(operators && { signingOperators: operators }),
    threshold: Number(process.env.SPARK_THRESHOLD ?? 2),
    // Optimisation swaps leaves through a service provider; there is none here.
    optimizationOptions: { auto: false },
    tokenOptimizationOptions: { enabled: false },
  };
}

/** A wallet whose event stream is up. Without a mnemonic it is a new one. */
export async function openWallet(mnemonic) {
  let connected;
  const streaming = new Promise((resolve) => (connected = resolve));
  const opened = await SparkWallet.initialize({
    mnemonicOrSeed: mnemonic,
    options: { ...options(), events: { [SparkWalletEvent.StreamConnected]: () => connected() } },
  });
  await deadline(streaming, 15_000, "event stream did not connect");
  return opened;
}

/** Resolves with the arguments of the next `event` that satisfies `accept`. Call it before the cause. */
export function nextEvent(wallet, event, accept = () => true, milliseconds = 60_000) {
  const seen = new Promise((resolve) => {
    const listener = (...args) => {
      if (!accept(...args)) return;
      wallet.off(event, listener);
      resolve(args);
    };
    wallet.on(event, listener);
  });
  return deadline(seen, milliseconds, `no ${event} event`);
}

/** Retries `attempt` until it returns something truthy; the last error is the reason of a time-out. */
export async function eventually(what, attempt, milliseconds = 60_000) {
  const end = Date.now() + milliseconds;
  let last;
  while (Date.now() < end) {
    try {
      const value = await attempt();
      if (value) return value;
    } catch (error) {
      last = error;
    }
    await sleep(500);
  }
  throw new Error(`${what}: not within ${milliseconds} ms`, { cause: last });
}

async function deadline(promise, milliseconds, message) {
  const abort = new AbortController();
  const late = sleep(milliseconds, undefined, { signal: abort.signal }).then(
    () => Promise.reject(new Error(message)),
    () => undefined,
  );
  try {
    return await Promise.race([promise, late]);
  } finally {
    abort.abort();
  }
}

/** One JSON-RPC call to bitcoind. */
export async function bitcoin(method, ...params) {
  const { BITCOIN_RPC_URL, BITCOIN_RPC_USER, BITCOIN_RPC_PASSWORD } = process.env;
  const response = await fetch(BITCOIN_RPC_URL, {
    method: "POST",
    headers: {
      "Content-Type": "application/json",
      Authorization: `Basic ${Buffer.from(`${BITCOIN_RPC_USER}:${BITCOIN_RPC_PASSWORD}`).toString("base64")}`,
    },
    body: JSON.stringify({ jsonrpc: "1.0", id: "sdk-compat", method, params }),
  });
  const { result, error } = await response.json();
  if (error) throw new Error(`bitcoind ${method}: ${error.message}`);
  return result;
}

// P2TR over the point of BIP 341 whose logarithm nobody knows: the coinbases of these tests are burnt.
const BURN = "bcrt1prykz5vxt6lgr2tu56np35slhvlc77s7hlajr3qucsrkqwhvp48mqwel98k";

/** Mines `count` blocks. */
export const mine = (count) => bitcoin("generatetoaddress", count, BURN);

/** Pays `sats` to `address` and returns the txid; nothing is mined. */
export const pay = (address, sats) => bitcoin("sendtoaddress", address, sats / 100_000_000);
