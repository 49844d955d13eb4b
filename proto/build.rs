//! Compiles the `.proto` files with a pure Rust compiler: no `protoc` on the machine.

use std::{env, error::Error, fs, path::PathBuf};

const FILES: &[&str] = &[
    "spark/spark.proto",
    "spark/spark_token.proto",
    "spark/spark_authn.proto",
    "peer/v1/operation.proto",
    "peer/v1/peer.proto",
    "signer/v1/signer.proto",
    "log/v1/log.proto",
    "packages/v1/packages.proto",
    "admin/v1/admin.proto",
    "admin/v1/signer_admin.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    for folder in ["spark", "peer", "signer", "log", "packages", "admin"] {
        println!("cargo:rerun-if-changed={folder}");
    }
    let descriptors = protox::compile(FILES, ["."])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), prost_encode(&descriptors))?;
    let rpc = env::var_os("CARGO_FEATURE_RPC").is_some();
    tonic_prost_build::configure()
        .build_client(rpc)
        .build_server(rpc)
        // Ordered maps: equal messages have equal bytes, so requests can be compared and hashed.
        .btree_map(".")
        .compile_fds(descriptors)?;
    Ok(())
}

fn prost_encode(descriptors: &prost_types::FileDescriptorSet) -> Vec<u8> {
    use prost::Message as _;
    descriptors.encode_to_vec()
}
