//! A Spark operator: public API, consensus with the other operators, chain view. Key shares live with its
//! signer.

pub mod db;
