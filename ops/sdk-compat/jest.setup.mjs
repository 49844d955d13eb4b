// Configuration of the SDK for its own tests: where the development network's service provider is, if there is one.
import path from "node:path";
import { fileURLToPath } from "node:url";

const { SPARK_SSP_URL, SPARK_SSP_KEY } = process.env;
if (SPARK_SSP_URL && SPARK_SSP_KEY) {
  const here = path.dirname(fileURLToPath(import.meta.url));
  const config = "node_modules/@buildonspark/spark-sdk/src/services/wallet-config.ts";
  const { WalletConfig } = await import(path.join(here, config));
  WalletConfig.LOCAL.sspClientOptions = {
    ...WalletConfig.LOCAL.sspClientOptions,
    baseUrl: SPARK_SSP_URL,
    identityPublicKey: SPARK_SSP_KEY,
  };
}
