//! From the words to the keys.
//!
//! The paths are those of deployed wallets, so that one seed restores in either. Every step is hardened
//! (BIP 32), hence no public derivation exists and none is needed.

use bip39::{Language, Mnemonic};
use bitcoin::{
    hashes::Hash as _,
    key::TapTweak as _,
    secp256k1::{self, Keypair, Message, PublicKey, SECP256K1, SecretKey, ecdsa},
};
use hmac::{Hmac, Mac as _};
use rand::{CryptoRng, RngCore};
use sha2::{Sha256, Sha512};
use spark_rules::{address::Network, ids::LeafId};
use spark_signer::secret::SecretScalar;
use zeroize::Zeroizing;

const HARDENED: u32 = 1 << 31;
const PURPOSE: u32 = 8_797_555;
const IDENTITY: u32 = 0;
const LEAF: u32 = 1;
const STATIC: u32 = 3;
const PREIMAGE: u32 = 4;
/// Ours: the key that holds on-chain money for the fees of exits.
const FEE: u32 = 100;

/// Words or derivations that give no key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not a BIP 39 phrase of 12 or 24 English words.
    #[error("seed phrase must be 12 or 24 English words with a valid checksum")]
    Phrase,
    /// The account does not fit a hardened index.
    #[error("account must be below 2147483648")]
    Account,
    /// One of about 2^127 indices has no key (BIP 32).
    #[error("this derivation has no key; use another account")]
    Derivation,
}

/// Number of words of a new phrase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Words {
    /// 128 bits.
    Twelve,
    /// 256 bits.
    TwentyFour,
}

/// The words. Whoever has them has the money.
pub struct Phrase(Zeroizing<String>);

impl Phrase {
    /// Fresh words.
    pub fn generate(words: Words, rng: &mut (impl RngCore + CryptoRng)) -> Result<Self, KeyError> {
        let bytes = match words {
            Words::Twelve => 16,
            Words::TwentyFour => 32,
        };
        let mut entropy = Zeroizing::new([0u8; 32]);
        let entropy = entropy.get_mut(..bytes).ok_or(KeyError::Phrase)?;
        rng.fill_bytes(entropy);
        let mnemonic = Mnemonic::from_entropy(entropy).map_err(|_| KeyError::Phrase)?;
        Ok(Self(Zeroizing::new(mnemonic.to_string())))
    }

    /// Words as typed: case and spaces do not matter.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let mut words = Zeroizing::new(String::with_capacity(text.len()));
        for (i, word) in text.split_whitespace().enumerate() {
            if i > 0 {
                words.push(' ');
            }
            words.extend(word.chars().map(|c| c.to_ascii_lowercase()));
        }
        let mnemonic =
            Mnemonic::parse_in_normalized(Language::English, &words).map_err(|_| KeyError::Phrase)?;
        if matches!(mnemonic.word_count(), 12 | 24) { Ok(Self(words)) } else { Err(KeyError::Phrase) }
    }

    /// The words, for the one who writes them down.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// The keys of an account.
    pub fn keys(&self, account: u32) -> Result<Keys, KeyError> {
        let mnemonic =
            Mnemonic::parse_in_normalized(Language::English, &self.0).map_err(|_| KeyError::Phrase)?;
        let seed = Zeroizing::new(mnemonic.to_seed_normalized(""));
        Keys::from_seed(&*seed, account)
    }
}

impl std::fmt::Debug for Phrase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Phrase")
    }
}

/// Account that deployed wallets use by default.
pub const fn default_account(network: Network) -> u32 {
    match network {
        Network::Regtest => 0,
        Network::Mainnet | Network::Testnet | Network::Signet => 1,
    }
}

/// An extended private key (BIP 32).
struct Extended {
    key: SecretScalar,
    chain: Zeroizing<[u8; 32]>,
}

impl Extended {
    fn master(seed: &[u8]) -> Result<Self, KeyError> {
        let (left, chain) = hmac_sha512(b"Bitcoin seed", &[seed])?;
        Ok(Self { key: SecretScalar::from_bytes(&left).map_err(|_| KeyError::Derivation)?, chain })
    }

    fn child(&self, index: u32) -> Result<Self, KeyError> {
        if index >= HARDENED {
            return Err(KeyError::Account);
        }
        let index = (index | HARDENED).to_be_bytes();
        let (left, chain) = hmac_sha512(&*self.chain, &[&[0], &*self.key.to_bytes(), &index])?;
        let left = SecretScalar::from_bytes(&left).map_err(|_| KeyError::Derivation)?;
        Ok(Self { key: left.add(&self.key).map_err(|_| KeyError::Derivation)?, chain })
    }
}

type Halves = (Zeroizing<[u8; 32]>, Zeroizing<[u8; 32]>);

fn hmac_sha512(key: &[u8], parts: &[&[u8]]) -> Result<Halves, KeyError> {
    let mut mac = Hmac::<Sha512>::new_from_slice(key).map_err(|_| KeyError::Derivation)?;
    for part in parts {
        mac.update(part);
    }
    let output: Zeroizing<[u8; 64]> = Zeroizing::new(mac.finalize().into_bytes().into());
    let (mut left, mut right) = (Zeroizing::new([0; 32]), Zeroizing::new([0; 32]));
    left.copy_from_slice(&output[..32]);
    right.copy_from_slice(&output[32..]);
    Ok((left, right))
}

/// A private key that signs, and is erased when dropped.
pub struct SigningKey {
    secret: SecretScalar,
    public: PublicKey,
}

impl SigningKey {
    fn new(secret: SecretScalar) -> Self {
        let public = secret.public_key();
        Self { secret, public }
    }

    /// Its public key.
    pub const fn public_key(&self) -> PublicKey {
        self.public
    }

    /// The scalar.
    pub const fn secret(&self) -> &SecretScalar {
        &self.secret
    }

    /// ECDSA over a digest of 32 bytes, low S (BIP 62).
    pub fn sign_ecdsa(&self, digest: [u8; 32]) -> Result<ecdsa::Signature, KeyError> {
        self.with(|key| SECP256K1.sign_ecdsa(&Message::from_digest(digest), key))
    }

    /// BIP340 over a digest, by the key itself.
    pub fn sign_schnorr(
        &self,
        digest: [u8; 32],
        rng: &mut (impl RngCore + CryptoRng),
    ) -> Result<[u8; 64], KeyError> {
        let mut aux = Zeroizing::new([0u8; 32]);
        rng.fill_bytes(&mut *aux);
        self.with(|key| {
            let mut pair = Keypair::from_secret_key(SECP256K1, key);
            let signature = SECP256K1.sign_schnorr_with_aux_rand(&Message::from_digest(digest), &pair, &aux);
            pair.non_secure_erase();
            signature.serialize()
        })
    }

    /// BIP340 over a digest, by the key with the taproot tweak of no script tree (BIP 341).
    pub fn sign_taproot(
        &self,
        digest: [u8; 32],
        rng: &mut (impl RngCore + CryptoRng),
    ) -> Result<[u8; 64], KeyError> {
        let mut aux = Zeroizing::new([0u8; 32]);
        rng.fill_bytes(&mut *aux);
        self.with(|key| {
            let mut pair = Keypair::from_secret_key(SECP256K1, key);
            let mut tweaked = pair.tap_tweak(SECP256K1, None).to_keypair();
            let signature =
                SECP256K1.sign_schnorr_with_aux_rand(&Message::from_digest(digest), &tweaked, &aux);
            pair.non_secure_erase();
            tweaked.non_secure_erase();
            signature.serialize()
        })
    }

    fn with<T>(&self, use_key: impl FnOnce(&SecretKey) -> T) -> Result<T, KeyError> {
        let mut key: SecretKey = SecretKey::from_slice(&*self.secret.to_bytes())
            .map_err(|_: secp256k1::Error| KeyError::Derivation)?;
        let result = use_key(&key);
        key.non_secure_erase();
        Ok(result)
    }
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SigningKey").field("public", &self.public).finish_non_exhaustive()
    }
}

/// All keys of an account.
pub struct Keys {
    identity: SigningKey,
    leaves: Extended,
    statics: Extended,
    preimages: Extended,
    fees: Extended,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys").field("identity", &self.identity.public).finish_non_exhaustive()
    }
}

impl Keys {
    /// From a BIP 39 seed: `m/8797555'/account'`.
    pub fn from_seed(seed: &[u8], account: u32) -> Result<Self, KeyError> {
        let base = Extended::master(seed)?.child(PURPOSE)?.child(account)?;
        Ok(Self {
            identity: SigningKey::new(base.child(IDENTITY)?.key),
            leaves: base.child(LEAF)?,
            statics: base.child(STATIC)?,
            preimages: base.child(PREIMAGE)?,
            fees: base.child(FEE)?,
        })
    }

    /// Signs logins and packages, and opens what is sent to this wallet.
    pub const fn identity(&self) -> &SigningKey {
        &self.identity
    }

    /// The identity key again, for a signer that takes a key by value.
    pub(crate) fn identity_copy(&self) -> Result<SigningKey, KeyError> {
        let bytes = self.identity.secret.to_bytes();
        SecretScalar::from_bytes(&bytes).map(SigningKey::new).map_err(|_| KeyError::Derivation)
    }

    /// The key of a leaf: child `SHA-256(id text)[0..4] mod 2^31`, hardened.
    pub fn leaf(&self, id: &LeafId) -> Result<SigningKey, KeyError> {
        let digest = bitcoin::hashes::sha256::Hash::hash(id.to_string().as_bytes()).to_byte_array();
        let [a, b, c, d, ..] = digest;
        let index = u32::from_be_bytes([a, b, c, d]) % HARDENED;
        Ok(SigningKey::new(self.leaves.child(index)?.key))
    }

    /// The key of the static deposit address `index`.
    pub fn static_deposit(&self, index: u32) -> Result<SigningKey, KeyError> {
        Ok(SigningKey::new(self.statics.child(index)?.key))
    }

    /// The key of the on-chain money that pays the fees of exits: `m/8797555'/account'/100'/0'`.
    pub fn exit_fee(&self) -> Result<SigningKey, KeyError> {
        Ok(SigningKey::new(self.fees.child(0)?.key))
    }

    /// Preimage of a payment: HMAC-SHA256 of the transfer's id text.
    pub fn preimage(&self, transfer_id: &str) -> Result<Zeroizing<[u8; 32]>, KeyError> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&*self.preimages.key.to_bytes())
            .map_err(|_| KeyError::Derivation)?;
        mac.update(transfer_id.as_bytes());
        Ok(Zeroizing::new(mac.finalize().into_bytes().into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitcoin::bip32::{DerivationPath, Xpriv};
    use proptest::prelude::*;
    use std::str::FromStr as _;

    const ABOUT: &str =
        "abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon about";
    const HAMSTER: &str = "hamster diagram private dutch cause delay private meat slide toddler razor book happy \
                           fancy gospel tennis maple dilemma loan word shrug inflict delay length";
    const LEAF_ID: &str = "0193c5d2-7b0a-7c40-9a55-2f3f6d0a1b2c";

    /// (words, account, identity, leaf, static, preimage), by the Python packages `bip32` and `mnemonic`.
    const KNOWN: [(&str, u32, &str, &str, &str, &str); 4] = [
        (
            ABOUT,
            0,
            "02698b27ac308b275671b3ca25436346469d04a5bba578ae39feba1d65897a6abc",
            "030d2cd35247c4fc6af2c6f4ab9ce804bc90a3cdfbf9f3a4ecf12cf516eef2b4d4",
            "029f061ac1595c7b9386624866131a25af763233f8de42e2c5e623687cd67cc1b1",
            "f2c30f4947d603ca68ab06cb1ff1a4e5234ddce3a0946f40ca86de7233ed9a89",
        ),
        (
            ABOUT,
            1,
            "0281363910b0dc0015a4a25e758da30f0e28388ea5252c0e3713936f2d4ef7d3d5",
            "032dd3ff45c063a7c14eb3387039e0de7f4349edc1bc4f5f2cb8e6fcde517bdd23",
            "03cf31bfca0c4ecffdfe79d272218a8ba4c972b038d45c2d3ff89d9d18de6434bb",
            "5cf39738af63d0aeee68be7e9d371aa1aaeec4fecf35060d209bb3bbf8d8e284",
        ),
        (
            HAMSTER,
            0,
            "0312b8639ef8eb7291f579fc13c12a716b7df16c18ef9e8e1fa8f6a0221c7df3f7",
            "029c5d0782c656cb918d4cfed7c00a3a1aaa8e050234ee44ed73287037f83dd96d",
            "03700955c09fe08510d54649354517e333aa7e223459406636bd0f95b145a0902e",
            "8c5034d553a14adf084d7bd9c6dc98e6b5b4053d7e4d068851609deaf0ccedaf",
        ),
        (
            HAMSTER,
            1,
            "02c844d22b74ac6b20bc08dff7b5b7d0ab177f00b7d9f0fc28412d11f7b4c15e82",
            "03aaa4c96dd1cc991083dfc13cf832af14296ce7f3bea75c25efb7d4f863e4ab33",
            "026694e28b8edca99dd20716978e32b39016807329db2dd22eecca43ffa22dbb27",
            "58a3d5a7811d9aa40d0b0dc49cc081bb12a492a6a3288fce81412b48654473f8",
        ),
    ];

    #[test]
    fn keys_are_those_of_an_independent_derivation() {
        for (words, account, identity, leaf, fixed, preimage) in KNOWN {
            let keys = Phrase::parse(words).unwrap().keys(account).unwrap();
            assert_eq!(keys.identity().public_key().to_string(), identity);
            let id = LeafId::parse(LEAF_ID).unwrap();
            assert_eq!(keys.leaf(&id).unwrap().public_key().to_string(), leaf);
            assert_eq!(keys.static_deposit(0).unwrap().public_key().to_string(), fixed);
            assert_eq!(hex::encode(*keys.preimage(LEAF_ID).unwrap()), preimage);
        }
    }

    #[test]
    fn phrases_are_read_leniently_and_checked() {
        let sloppy = format!("  {}\n", ABOUT.to_uppercase().replace(' ', "   "));
        assert_eq!(Phrase::parse(&sloppy).unwrap().reveal(), ABOUT);
        assert!(Phrase::parse(&ABOUT.replace("about", "abandon")).is_err());
        assert!(Phrase::parse("abandon about").is_err());
        // 15 words are valid BIP 39, but not ours.
        let fifteen = Mnemonic::from_entropy(&[7; 20]).unwrap().to_string();
        assert!(matches!(Phrase::parse(&fifteen), Err(KeyError::Phrase)));
        for (words, count) in [(Words::Twelve, 12), (Words::TwentyFour, 24)] {
            let fresh = Phrase::generate(words, &mut rand::rngs::OsRng).unwrap();
            assert_eq!(fresh.reveal().split(' ').count(), count);
            assert!(Phrase::parse(fresh.reveal()).is_ok());
        }
    }

    #[test]
    fn nothing_prints_a_secret() {
        let phrase = Phrase::parse(ABOUT).unwrap();
        assert_eq!(format!("{phrase:?}"), "Phrase");
        let keys = phrase.keys(0).unwrap();
        assert!(!format!("{keys:?}").contains(&hex::encode(*keys.identity().secret().to_bytes())));
    }

    proptest! {
        #[test]
        fn hardened_children_are_those_of_bip32(seed in prop::array::uniform32(any::<u8>()), account in 0..HARDENED) {
            let path = DerivationPath::from_str(&format!("m/8797555'/{account}'/0'")).unwrap();
            let theirs = Xpriv::new_master(bitcoin::NetworkKind::Test, &seed).unwrap()
                .derive_priv(SECP256K1, &path).unwrap();
            let ours = Keys::from_seed(&seed, account).unwrap();
            prop_assert_eq!(*ours.identity().secret().to_bytes(), theirs.private_key.secret_bytes());
        }
    }
}
