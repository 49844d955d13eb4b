// The SDK's own integration tests, as they lie in its npm package: TypeScript under node_modules, which jest ignores
// unless told. Nothing here touches their text.
const fs = require("node:fs");
const path = require("node:path");

const sdk = fs.realpathSync(path.join(__dirname, "node_modules/@buildonspark/spark-sdk"));

module.exports = {
  rootDir: sdk,
  roots: [path.join(sdk, "src/tests")],
  testMatch: ["**/src/tests/integration/**/*.test.ts"],
  testPathIgnorePatterns: [],
  haste: { retainAllFiles: true },
  testEnvironment: "node",
  setupFilesAfterEnv: [path.join(__dirname, "jest.setup.mjs")],
  moduleFileExtensions: ["ts", "js", "mjs", "cjs", "json", "node"],
  extensionsToTreatAsEsm: [".ts"],
  moduleNameMapper: { "^(\\.{1,2}/.*)\\.js$": "$1" },
  transformIgnorePatterns: [],
  transform: {
    "/spark-sdk/src/.*\\.ts$": [
      "ts-jest",
      {
        useESM: true,
        // Types are its authors' concern.
        diagnostics: false,
        tsconfig: {
          target: "es2022",
          module: "esnext",
          moduleResolution: "bundler",
          esModuleInterop: true,
          isolatedModules: true,
        },
      },
    ],
  },
};
