//! A sealing key out of a root.
//!
//! An HMAC-SHA-256 root gives it by one call. An AES root gives it as NIST SP 800-108r1 says in 4.1, counter mode with
//! CMAC: two blocks of CMAC(root, i ‖ label ‖ 00 ‖ context ‖ bits), with i and the number of bits as 32-bit integers.

use cryptoki::{mechanism::Mechanism, object::ObjectHandle, session::Session};
use spark_signer::vault::TokenError;
use zeroize::Zeroizing;

use super::{error::token_error, profile::RootMechanism};

const LABEL: &[u8] = b"spark/root/v1";
/// Bits of a sealing key.
const BITS: u32 = 256;

/// 32 bytes of the root's function at `context`.
pub(super) fn derive(
    session: &Session,
    mechanism: RootMechanism,
    root: ObjectHandle,
    context: &[u8],
) -> Result<Zeroizing<[u8; 32]>, TokenError> {
    let mac = |mechanism: &Mechanism<'_>, message: &[u8]| {
        session.sign(mechanism, root, message).map(Zeroizing::new).map_err(token_error)
    };
    match mechanism {
        RootMechanism::HmacSha256 => {
            let output = mac(&Mechanism::Sha256Hmac, context)?;
            let mut key = Zeroizing::new([0u8; 32]);
            if output.len() != key.len() {
                return Err(TokenError::WrongAnswer("HMAC output has a wrong length"));
            }
            key.copy_from_slice(&output);
            Ok(key)
        }
        RootMechanism::AesCmac => {
            let fixed = [LABEL, &[0], context, &BITS.to_be_bytes()].concat();
            counter_mode(&fixed, |message| mac(&Mechanism::AesCMac, message))
        }
    }
}

/// SP 800-108r1 counter mode with a counter of 32 bits before the fixed input, for a function of 16 bytes.
pub(super) fn counter_mode(
    fixed: &[u8],
    mut prf: impl FnMut(&[u8]) -> Result<Zeroizing<Vec<u8>>, TokenError>,
) -> Result<Zeroizing<[u8; 32]>, TokenError> {
    let mut key = Zeroizing::new([0u8; 32]);
    for (counter, block) in (1u32..).zip(key.chunks_exact_mut(16)) {
        let output = prf(&[&counter.to_be_bytes(), fixed].concat())?;
        if output.len() != block.len() {
            return Err(TokenError::WrongAnswer("CMAC output has a wrong length"));
        }
        block.copy_from_slice(&output);
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    use aes::{Aes128, Aes256};
    use cmac::{Cmac, digest::KeyInit};

    use super::*;

    fn software<M: cmac::Mac + KeyInit>(key: &str, fixed: &str) -> String {
        let key = hex::decode(key).unwrap();
        let prf = |message: &[u8]| {
            let mut mac = <M as cmac::Mac>::new_from_slice(&key).unwrap();
            mac.update(message);
            Ok(Zeroizing::new(mac.finalize().into_bytes().to_vec()))
        };
        hex::encode(*counter_mode(&hex::decode(fixed).unwrap(), prf).unwrap())
    }

    /// NIST CAVP, KDF in counter mode, counter of 32 bits before the fixed input.
    #[test]
    fn it_is_the_counter_mode_of_sp_800_108() {
        // CMAC_AES256, COUNT=0: one block.
        let derived = software::<Cmac<Aes256>>(
            "d0b1b3b70b2393c48ca05159e7e28cbeadea93f28a7cdae964e5136070c45d5c",
            "dd2f151a3f173492a6fbbb602189d51ddf8ef79fc8e96b8fcbe6dabe73a35b48104f9dff2d63d48786d2b3af177091d6\
             46a9efae005bdfacb61a1214",
        );
        assert_eq!(&derived[..32], "8c449fb474d1c1d4d2a33827103b656a");
        // CMAC_AES128, COUNT=10: two blocks.
        let derived = software::<Cmac<Aes128>>(
            "695f1b1a16c949cea51cdf2554ec9d42",
            "4fce5942832a390aa1cbe8a0bf9d202cb799e986c9d6b51f45e4d597a6b57f06a4ebfec6467335d116b7f5f9c5b95406\
             2f661820f5db2a5bbb3e0625",
        );
        assert_eq!(derived, "d34b601ec18c34dfa0f9e0b7523e218bdddb9befe8d08b6c0202d75ace0dba89");
    }

    #[test]
    fn a_block_of_another_length_is_refused() {
        let short = counter_mode(b"x", |_| Ok(Zeroizing::new(vec![0; 15])));
        assert!(matches!(short, Err(TokenError::WrongAnswer(_))));
    }
}
