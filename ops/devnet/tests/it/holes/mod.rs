//! The holes of the reference operator (X1 to X28), each attacked here on real processes, from outside or as one of
//! the operators. What needs no network has its test where the check is: `x3_…`, `x6_…`, `x7_…`, `x15_…`, `x16_…`,
//! `x26_…` in the signer's engine, `x7_…` and `x8_…` in the rules.

mod chain;
mod forgery;
mod internal;
mod privacy;
mod secrets;
mod strain;
