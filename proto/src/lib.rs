//! Wire types and services: the public Spark API, and what operators, signers and administrators say to
//! each other.
//!
//! Messages only by default, so that pure crates can use them; `rpc` adds clients and servers, `transport`
//! the one TLS stack of all programs.

#![allow(missing_debug_implementations, non_camel_case_types, reason = "generated clients and servers")]

/// Descriptors of every package, for the tests that walk them.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

macro_rules! package {
    ($(#[$doc:meta])* $name:ident, $file:literal) => {
        $(#[$doc])*
        #[allow(clippy::all, clippy::pedantic, clippy::allow_attributes_without_reason, unreachable_pub, unused_qualifications, rustdoc::all, reason = "generated")]
        pub mod $name {
            include!(concat!(env!("OUT_DIR"), "/", $file));
        }
    };
}

package!(/// Shared by the public packages.
    common, "common.rs");
package!(/// The public Spark API.
    spark, "spark.rs");
package!(/// The public token API.
    spark_token, "spark_token.rs");
package!(/// Challenge and session.
    spark_authn, "spark_authn.rs");
package!(/// Several keys as one authority.
    multisig, "multisig.rs");
/// Between operators.
pub mod peer {
    package!(/// Version 1.
        v1, "peer.v1.rs");
}
/// Between an operator and its signer.
pub mod signer {
    package!(/// Version 1.
        v1, "signer.v1.rs");
}
/// The deletion log.
#[cfg(feature = "rpc")]
pub mod log {
    package!(/// Version 1.
        v1, "log.v1.rs");
}
/// One-time keys for packages.
#[cfg(feature = "rpc")]
pub mod packages {
    package!(/// Version 1.
        v1, "packages.v1.rs");
}
/// Administration.
pub mod admin {
    package!(/// Version 1.
        v1, "admin.v1.rs");
    /// Of a signer, on its own host.
    pub mod signer {
        package!(/// Version 1.
            v1, "admin.signer.v1.rs");
    }
}

#[cfg(feature = "transport")]
pub mod transport;
