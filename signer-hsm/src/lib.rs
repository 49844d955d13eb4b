//! To come.
pub mod store;
pub mod token;
