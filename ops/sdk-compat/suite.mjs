// Runs the SDK's own integration tests and holds their results against `table.tsv`.
//
//   node suite.mjs            a few quick files
//   node suite.mjs --all      every file
//   node suite.mjs FILE…      these, without `.test.ts`, as the table names them
//   node suite.mjs --markdown writes TESTS.md anew
//
// Fails when a test ends otherwise than the table says, when one is not in the table, and when one of the table is gone.
import { spawn } from "node:child_process";
import { mkdtemp, readFile, readdir, realpath, rm, writeFile } from "node:fs/promises";
import os from "node:os";
import path from "node:path";

const here = import.meta.dirname ?? path.dirname(new URL(import.meta.url).pathname);
const home = process.env.SDK_COMPAT_DIR ?? here;
const folder = path.join(here, "node_modules/@buildonspark/spark-sdk/src/tests/integration");
// Jest speaks of real paths.
const integration = await realpath(folder).catch(() => folder);

// About a minute together, in one process.
const QUICK = [
  "address",
  "message-signing",
  "retry",
  "singleton",
  "spark-readonly-client/balance",
  "spark-readonly-client/factory",
  "spark-readonly-client/token-transactions",
  "time-sync",
  "token-output",
  "wallet",
];
const LIMIT_SECONDS = 600;

const VERDICTS = {
  passes: "passes",
  hosted: "excluded: needs a service that its makers host, or a private key that is not public",
  secret: "excluded: asks an operator for secret material (rule S1)",
  upstream: "excluded: skipped by its authors",
  "not-yet": "fails: what it needs is not offered yet",
};
const EXCLUDED = ["hosted", "secret", "upstream"];
/** Notes that begin so: without a provider (SPARK_SSP_URL, SPARK_SSP_KEY) these tests are not run, and count as failed. */
const PROVIDER = "service provider";
const provided = Boolean(process.env.SPARK_SSP_URL && process.env.SPARK_SSP_KEY);

/** Rows of `table.tsv`: file, verdict, note, name. A name that a file has more than once carries `#2`, `#3`, … */
async function readTable() {
  const rows = [];
  for (const line of (await readFile(path.join(home, "table.tsv"), "utf8")).split("\n")) {
    if (!line || line.startsWith("#")) continue;
    const [file, verdict, note, name] = line.split("\t");
    if (!name || !(verdict in VERDICTS)) throw new Error(`table.tsv: ${line}`);
    if (verdict !== "passes" && !note) throw new Error(`table.tsv: why? ${line}`);
    rows.push({ file, verdict, note, name });
  }
  return rows;
}

/** Every file of the package's suite, as the table names them. */
async function filesOfPackage() {
  const names = await readdir(integration, { recursive: true });
  return names.filter((name) => name.endsWith(".test.ts")).map((name) => name.slice(0, -".test.ts".length)).sort();
}

/** One jest process over some files: each test's status by file and name, `#2` and so on for repeated names. */
async function jest(files, skipped) {
  const scratch = await mkdtemp(path.join(os.tmpdir(), "sdk-suite-"));
  const output = path.join(scratch, "results.json");
  const bare = [...new Set(skipped.map((name) => name.replace(/ #\d+$/, "")))];
  const escaped = bare.map((name) => name.replace(/[.*+?^${}()|[\]\\/]/g, "\\$&"));
  const args = [
    "--experimental-vm-modules",
    "--no-warnings",
    path.join(here, "node_modules/jest/bin/jest.js"),
    "--config",
    path.join(here, "jest.config.cjs"),
    "--runInBand",
    // Open streams and timers of wallets must not keep a finished run alive.
    "--forceExit",
    "--silent",
    `--reporters=${path.join(here, "jest.reporter.cjs")}`,
    ...(escaped.length ? ["--testNamePattern", `^(?!(?:${escaped.join("|")})$)`] : []),
    "--runTestsByPath",
    ...files.map((file) => path.join(integration, `${file}.test.ts`)),
  ];
  let log = "";
  const child = spawn(process.execPath, args, {
    stdio: ["ignore", "ignore", "pipe"],
    env: { ...process.env, SDK_RESULTS: output },
  });
  child.stderr.on("data", (chunk) => (log = (log + chunk).slice(-20_000)));
  const timer = setTimeout(() => child.kill("SIGKILL"), LIMIT_SECONDS * 1000);
  await new Promise((resolve) => child.on("close", resolve));
  clearTimeout(timer);
  const results = new Map();
  try {
    for (const suite of JSON.parse(await readFile(output, "utf8"))) {
      const file = path.relative(integration, suite.file).slice(0, -".test.ts".length);
      if (suite.trouble) console.error(`${file}: ${suite.trouble}`);
      const seen = new Map();
      for (const test of suite.tests) {
        const count = (seen.get(test.fullName) ?? 0) + 1;
        seen.set(test.fullName, count);
        const name = count > 1 ? `${test.fullName} #${count}` : test.fullName;
        results.set(`${file}\t${name}`, { status: test.status, why: test.failureMessages.join("\n") });
      }
    }
  } catch {
    console.error(`${files.join(", ")}: no results within ${LIMIT_SECONDS} s\n${log}`);
  } finally {
    await rm(scratch, { recursive: true, force: true });
  }
  return results;
}

function markdown(rows) {
  const counts = (some) => {
    const of = (verdict) => some.filter((row) => row.verdict === verdict).length;
    return Object.keys(VERDICTS).map(of);
  };
  const outside = rows.filter((row) => !row.file.startsWith("ssp/"));
  const inside = rows.filter((row) => row.file.startsWith("ssp/"));
  const cell = (text) => text.replaceAll("|", "\\|");
  return [
    "# The public SDK's own integration tests",
    "",
    "Made from `table.tsv` by `node suite.mjs --markdown`; `run` compares both. The tests come from the npm package",
    "`@buildonspark/spark-sdk`, unmodified: the lock file pins its hash.",
    "",
    ...Object.entries(VERDICTS).map(([verdict, meaning]) => `- *${verdict}*: ${meaning}`),
    "",
    `| | ${Object.keys(VERDICTS).join(" | ")} |`,
    `|---|${"---|".repeat(Object.keys(VERDICTS).length)}`,
    `| outside \`ssp/\` | ${counts(outside).join(" | ")} |`,
    `| inside \`ssp/\` | ${counts(inside).join(" | ")} |`,
    "",
    "| file | test | verdict | why |",
    "|---|---|---|---|",
    ...rows.map((row) => `| ${row.file} | ${cell(row.name)} | ${row.verdict} | ${cell(row.note)} |`),
    "",
  ].join("\n");
}

const rows = await readTable();
const args = process.argv.slice(2);
if (args[0] === "--markdown") {
  await writeFile(path.join(home, "TESTS.md"), markdown(rows));
  process.exit(0);
}

const all = await filesOfPackage();
const named = new Set(rows.map((row) => row.file));
const wrong = [];
for (const file of all) if (!named.has(file)) wrong.push(`${file}: is not in table.tsv`);
for (const file of named) if (!all.includes(file)) wrong.push(`${file}: is not in the package`);
if ((await readFile(path.join(home, "TESTS.md"), "utf8")) !== markdown(rows)) {
  wrong.push("TESTS.md is not what table.tsv makes: node suite.mjs --markdown");
}

const chosen = args.length === 0 ? QUICK : args[0] === "--all" ? all : args;
const groups = args.length === 0 ? [chosen] : chosen.map((file) => [file]);
const count = { sdk_tests: { passed: 0, failed: 0, excluded: 0 }, sdk_ssp: { passed: 0, failed: 0, excluded: 0 } };
for (const files of groups) {
  const table = rows.filter((row) => files.includes(row.file));
  const without = (row) => !provided && row.verdict === "not-yet" && row.note.startsWith(PROVIDER);
  const skips = (row) => EXCLUDED.includes(row.verdict) || without(row);
  const begin = Date.now();
  // A file of which nothing is run is not even loaded.
  const loaded = files.filter((file) => table.some((row) => row.file === file && !skips(row)));
  const results = loaded.length ? await jest(loaded, table.filter(skips).map((row) => row.name)) : new Map();
  const known = new Set();
  for (const row of table) {
    const key = `${row.file}\t${row.name}`;
    known.add(key);
    const counts = row.file.startsWith("ssp/") ? count.sdk_ssp : count.sdk_tests;
    const { status, why } = results.get(key) ?? { status: "missing", why: "" };
    if (EXCLUDED.includes(row.verdict)) {
      counts.excluded += 1;
      if (status === "passed") wrong.push(`${key}: passes, and the table excludes it`);
      if (status === "missing" && loaded.includes(row.file)) wrong.push(`${key}: is gone`);
      continue;
    }
    if (status === "passed") counts.passed += 1;
    else counts.failed += 1;
    if (without(row)) continue;
    if (row.verdict === "passes" && status !== "passed") wrong.push(`${key}: ${status}\n${why}`);
    if (row.verdict === "not-yet" && status !== "failed") wrong.push(`${key}: ${status}, and the table says not-yet`);
  }
  for (const [key, { status }] of results) if (!known.has(key)) wrong.push(`${key}: ${status}, and is not in table.tsv`);
  console.error(`${files.join(" ")}: ${results.size} tests, ${Math.round((Date.now() - begin) / 1000)} s`);
}

for (const line of wrong) console.error(`\n✖ ${line}`);
for (const [name, { passed, failed, excluded }] of Object.entries(count)) {
  console.log(`${name}_passed=${passed} ${name}_failed=${failed} ${name}_excluded=${excluded}`);
}
process.exit(wrong.length ? 1 : 0);
