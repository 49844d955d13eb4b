//! Whether a token's AES-CMAC, which makes sealing keys out of AES roots, is CMAC. One that computes something else, even
//! always the same, would seal a store that no other device of the vendor opens.

use cryptoki::error::Error;
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, KeyType, ObjectClass};
use cryptoki::types::Ulong;
use spark_signer::vault::TokenError;
use zeroize::Zeroizing;

use super::checks::CONTEXT;
use super::report::{Outcome, Report};
use super::scratch::Scratch;
use crate::token::{
    error::token_error,
    kdf,
    objects::{root_key, without_policies},
    profile::RootMechanism,
};

pub(super) fn check(scratch: &Scratch, report: &mut Report) -> Result<(), TokenError> {
    let label = scratch.label("cmac");
    let result = scratch.session(|session| {
        let template = without_policies(&root_key(RootMechanism::AesCmac, &label, b"cmac"));
        let key = session.generate_key(&Mechanism::AesKeyGen, &template)?;
        let derive = || kdf::derive(session, RootMechanism::AesCmac, key, CONTEXT);
        let (one, two) = (derive(), derive());
        session.destroy_object(key)?;
        Ok(match (one, two) {
            (Ok(one), Ok(two)) if one == two => Outcome::Yes("derives 32 bytes, twice the same".into()),
            (Ok(_), Ok(_)) => Outcome::No("derives something else each time".into()),
            (Err(error), _) | (_, Err(error)) => Outcome::No(error.to_string()),
        })
    })?;
    report.add("aes-cmac", result.unwrap_or_else(|error| Outcome::No(error.to_string())));
    report.add("aes-cmac-known", cmac_known(scratch)?);
    Ok(())
}

/// A known answer (NIST CAVP, KDF in counter mode, CMAC_AES256), with a key that is brought in for it.
fn cmac_known(scratch: &Scratch) -> Result<Outcome, TokenError> {
    const KEY: [u8; 32] = [
        0xd0, 0xb1, 0xb3, 0xb7, 0x0b, 0x23, 0x93, 0xc4, 0x8c, 0xa0, 0x51, 0x59, 0xe7, 0xe2, 0x8c, 0xbe, 0xad,
        0xea, 0x93, 0xf2, 0x8a, 0x7c, 0xda, 0xe9, 0x64, 0xe5, 0x13, 0x60, 0x70, 0xc4, 0x5d, 0x5c,
    ];
    const FIXED: [u8; 60] = [
        0xdd, 0x2f, 0x15, 0x1a, 0x3f, 0x17, 0x34, 0x92, 0xa6, 0xfb, 0xbb, 0x60, 0x21, 0x89, 0xd5, 0x1d, 0xdf,
        0x8e, 0xf7, 0x9f, 0xc8, 0xe9, 0x6b, 0x8f, 0xcb, 0xe6, 0xda, 0xbe, 0x73, 0xa3, 0x5b, 0x48, 0x10, 0x4f,
        0x9d, 0xff, 0x2d, 0x63, 0xd4, 0x87, 0x86, 0xd2, 0xb3, 0xaf, 0x17, 0x70, 0x91, 0xd6, 0x46, 0xa9, 0xef,
        0xae, 0x00, 0x5b, 0xdf, 0xac, 0xb6, 0x1a, 0x12, 0x14,
    ];
    const FIRST: [u8; 16] =
        [0x8c, 0x44, 0x9f, 0xb4, 0x74, 0xd1, 0xc1, 0xd4, 0xd2, 0xa3, 0x38, 0x27, 0x10, 0x3b, 0x65, 0x6a];
    let result = scratch.session(|session| {
        let key = session.create_object(&[
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::AES),
            Attribute::Token(false),
            Attribute::Sign(true),
            Attribute::Value(KEY.to_vec()),
        ])?;
        let derived = kdf::counter_mode(&FIXED, |message| {
            session.sign(&Mechanism::AesCMac, key, message).map(Zeroizing::new).map_err(token_error)
        });
        session.destroy_object(key)?;
        Ok(derived)
    })?;
    Ok(match result {
        Ok(Ok(derived)) if derived.starts_with(&FIRST) => Outcome::Yes("as NIST computes it".into()),
        Ok(Ok(_)) => Outcome::No("not as NIST computes it".into()),
        Ok(Err(error)) => Outcome::No(error.to_string()),
        Err(error) => return by_blocks(scratch, &error.to_string()),
    })
}

/// The same for a token that takes no key in: a key of its own that may also encrypt single blocks gives all that CMAC
/// is made of (RFC 4493), and what it says of a message is compared.
fn by_blocks(scratch: &Scratch, refused: &str) -> Result<Outcome, TokenError> {
    let unverified =
        |why: &str| Outcome::Unknown(format!("unverified: no key can be brought in ({refused}), and {why}"));
    let label = scratch.label("cmac-blocks");
    let result = scratch.session(|session| {
        let template = [
            Attribute::Token(false),
            Attribute::ValueLen(Ulong::new(32)),
            Attribute::Label(label.clone().into_bytes()),
            Attribute::Sign(true),
            Attribute::Encrypt(true),
        ];
        let key = session.generate_key(&Mechanism::AesKeyGen, &template)?;
        let block = |input: &[u8; 16]| session.encrypt(&Mechanism::AesEcb, key, input);
        // One block, several, and one that is not full.
        let compared = [b"a block is so lo".as_slice(), &[7; 64], CONTEXT].map(|message| {
            let token = session.sign(&Mechanism::AesCMac, key, message)?;
            Ok::<_, Error>(rfc4493(message, block)?.as_slice() == token)
        });
        session.destroy_object(key)?;
        compared.into_iter().collect::<Result<Vec<_>, _>>()
    })?;
    Ok(match result {
        Ok(same) if same.iter().all(|same| *same) => Outcome::Yes("as its own AES computes it".into()),
        Ok(_) => Outcome::No("not as its own AES computes it".into()),
        Err(error) => unverified(&format!("no key both signs and encrypts: {error}")),
    })
}

/// CMAC of a message that is not empty, by AES of single blocks.
fn rfc4493(
    message: &[u8],
    mut aes: impl FnMut(&[u8; 16]) -> Result<Vec<u8>, Error>,
) -> Result<[u8; 16], Error> {
    let mut aes = |input: u128| -> Result<u128, Error> {
        let output = aes(&input.to_be_bytes())?;
        output.try_into().map(u128::from_be_bytes).map_err(|_| Error::InvalidValue)
    };
    let double = |value: u128| (value << 1) ^ if value >> 127 == 1 { 0x87 } else { 0 };
    let subkey = double(aes(0)?);
    let mut state = 0;
    let mut blocks = message.chunks(16).peekable();
    while let Some(block) = blocks.next() {
        let mut padded = [0u8; 16];
        for (to, from) in padded.iter_mut().zip(block.iter().chain(&[0x80])) {
            *to = *from;
        }
        let last = match (blocks.peek(), block.len()) {
            (Some(_), _) => 0,
            (None, 16) => subkey,
            (None, _) => double(subkey),
        };
        state = aes(state ^ u128::from_be_bytes(padded) ^ last)?;
    }
    Ok(state.to_be_bytes())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use aes::{
        Aes128,
        cipher::{BlockEncrypt as _, KeyInit as _},
    };

    use super::*;

    /// RFC 4493, section 4, examples 2 to 4.
    #[test]
    fn cmac_is_made_of_single_blocks() {
        let key = hex::decode("2b7e151628aed2a6abf7158809cf4f3c").unwrap();
        let message = hex::decode(
            "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e5130c81c46a35ce411e5fbc1191a0a52ef\
             f69f2445df4f9b17ad2b417be66c3710",
        )
        .unwrap();
        let aes = Aes128::new_from_slice(&key).unwrap();
        for (length, expected) in [
            (16, "070a16b46b4d4144f79bdd9dd04a287c"),
            (40, "dfa66747de9ae63030ca32611497c827"),
            (64, "51f0bebf7e3b9d92fc49741779363cfe"),
        ] {
            let made = rfc4493(&message[..length], |block| {
                let mut block = (*block).into();
                aes.encrypt_block(&mut block);
                Ok(block.to_vec())
            });
            assert_eq!(hex::encode(made.unwrap()), expected);
        }
    }
}
