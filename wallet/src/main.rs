//! `spark-wallet`.
fn main() {}
