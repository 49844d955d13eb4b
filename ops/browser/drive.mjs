// Opens page.mjs in headless Chromium against the development network that `run` started: argv[2] is the file of its
// endpoints, argv[3] the browser's program.
import { createHash, X509Certificate } from "node:crypto";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { connect } from "node:tls";
import { build } from "esbuild";
import { chromium } from "playwright-core";

const AMOUNT = 50_000;
const DEADLINE = 180_000;
// P2TR over the point of BIP 341 whose logarithm nobody knows: the coinbases of this test are burnt.
const BURN = "bcrt1prykz5vxt6lgr2tu56np35slhvlc77s7hlajr3qucsrkqwhvp48mqwel98k";

// What the development network's front before bitcoind takes.
const AUTHORIZATION = { Authorization: `Basic ${Buffer.from("testutil:testutilpassword").toString("base64")}` };

const [, , endpointsFile, program] = process.argv;
const endpoints = JSON.parse(readFileSync(endpointsFile, "utf8"));
const authority = readFileSync(endpoints.ca);

async function bitcoin(method, ...params) {
  const response = await fetch(endpoints.bitcoin_rpc, {
    method: "POST",
    headers: AUTHORIZATION,
    body: JSON.stringify({ jsonrpc: "1.0", id: "browser", method, params }),
  });
  const { result, error } = await response.json();
  if (error) throw new Error(`bitcoind ${method}: ${error.message}`);
  return result;
}

/** The hash of a server's public key, of a certificate that the network's authority vouches for. */
function pin(url) {
  const { hostname, port } = new URL(url);
  return new Promise((resolve, reject) => {
    const socket = connect({ host: hostname, port, ca: authority, servername: hostname }, () => {
      const key = new X509Certificate(socket.getPeerCertificate(true).raw).publicKey;
      socket.end();
      resolve(createHash("sha256").update(key.export({ type: "spki", format: "der" })).digest("base64"));
    });
    socket.on("error", reject);
  });
}

// Another origin than every operator's, so that the browser asks each of them for permission (CORS).
const site = createServer((request, response) => {
  if (request.url === "/bitcoin") {
    // On this network the SDK fetches a deposit's transaction from bitcoind, which no page may ask: the site does.
    const asked = [];
    request.on("data", (piece) => asked.push(piece));
    request.on("end", () =>
      fetch(endpoints.bitcoin_rpc, { method: "POST", headers: AUTHORIZATION, body: Buffer.concat(asked) })
        .then(async (answer) => response.writeHead(answer.status, { "Content-Type": "application/json" }).end(await answer.text()))
        .catch((error) => response.writeHead(502).end(error.message)),
    );
    return;
  }
  const [type, body] =
    request.url === "/page.js"
      ? ["text/javascript", script]
      : ["text/html", '<!doctype html><title>Spark</title><script type="module" src="/page.js"></script>'];
  response.writeHead(200, { "Content-Type": type }).end(body);
});
await new Promise((resolve) => site.listen(0, "127.0.0.1", resolve));
const origin = `http://127.0.0.1:${site.address().port}`;

const bundle = await build({
  entryPoints: [new URL("page.mjs", import.meta.url).pathname],
  bundle: true,
  format: "esm",
  // The build that the package exports to browsers.
  conditions: ["browser", "import", "default"],
  platform: "browser",
  // What bundlers for browsers put in the place of Node.js' globals.
  define: { global: "globalThis" },
  banner: { js: `globalThis.process ??= { env: ${JSON.stringify({ BITCOIN_RPC_URL: `${origin}/bitcoin` })} };` },
  write: false,
  logLevel: "error",
});
const script = bundle.outputFiles[0].contents;

const pins = await Promise.all(endpoints.operators.map(({ open }) => pin(open)));
const browser = await chromium.launch({
  executablePath: program,
  args: [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    // The browser does not know the network's authority, but takes these keys and no others.
    `--ignore-certificate-errors-spki-list=${pins.join()}`,
  ],
});

let failure = "the page did not finish in time";
let answers = 0;
try {
  const page = await browser.newPage();
  page.on("pageerror", (error) => console.error(`page: ${error.message}`));
  const complaints = new Set();
  page.on("console", (message) => {
    if (message.type() !== "error" || complaints.has(message.text())) return;
    complaints.add(message.text());
    console.error(`console: ${message.text()}`);
  });
  page.on("response", (response) => {
    if ((response.headers()["content-type"] ?? "").startsWith("application/grpc-web")) answers += 1;
  });
  await page.exposeFunction("network", () => ({
    operators: endpoints.operators.map(({ open, identity_public_key }, id) => ({
      id,
      identifier: (id + 1).toString(16).padStart(64, "0"),
      address: open,
      identityPublicKey: identity_public_key,
    })),
    threshold: 2,
    amount: AMOUNT,
    confirmations: 1,
  }));
  await page.exposeFunction("pay", (address, sats) => bitcoin("sendtoaddress", address, sats / 100_000_000));
  await page.exposeFunction("mine", (count) => bitcoin("generatetoaddress", count, BURN));
  await page.exposeFunction("report", (line) => console.log(`ok  ${line}`));
  const finished = new Promise((resolve) => page.exposeFunction("finish", resolve));
  await page.goto(origin);
  let timer;
  const late = new Promise((resolve) => (timer = setTimeout(() => resolve(failure), DEADLINE)));
  failure = await Promise.race([finished, late]);
  clearTimeout(timer);
} finally {
  await browser.close();
  site.close();
}
if (failure) {
  console.error(`browser: ${failure}`);
  process.exit(1);
}
if (answers === 0) {
  console.error("browser: no answer was grpc-web");
  process.exit(1);
}
console.log(`browser: passed, ${answers} grpc-web answers`);
