// Writes each test's name and end to the file SDK_RESULTS. Jest's own JSON fails on amounts (BigInt) in messages.
const fs = require("node:fs");

module.exports = class {
  onRunComplete(_, { testResults }) {
    const files = testResults.map(({ testFilePath, testResults: tests, failureMessage }) => ({
      file: testFilePath,
      trouble: tests.length ? "" : (failureMessage ?? ""),
      tests: tests.map(({ fullName, status, failureMessages }) => ({ fullName, status, failureMessages })),
    }));
    fs.writeFileSync(process.env.SDK_RESULTS, JSON.stringify(files));
  }
};
