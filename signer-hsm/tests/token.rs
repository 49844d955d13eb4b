//! The token on a real PKCS#11 module, one process per test.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod common;

use std::sync::Arc;

use bitcoin::secp256k1::{Message, PublicKey, SECP256K1, SecretKey, ecdh};
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass};
use cryptoki::session::UserType;
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;
use spark_rules::federation_key::KeyKind;
use spark_signer::vault::{DeviceId, RootId, RootToken as _, Token as _, TokenError, TreeId};
use spark_signer_hsm::confirmer::Confirmer;
use spark_signer_hsm::token::{
    IdentityMethod, IdentitySource, KeysToken, LogSignature, PinSource, Pkcs11Token, RootDevice,
    RootMechanism, RootsView, Security, TokenConfig, generate_keys,
};
use spark_softhsm::{isolated, passed, run_test};
use zeroize::Zeroizing;

fn root(epoch: u64) -> RootId {
    RootId { tree: TreeId([1; 8]), epoch }
}

fn secret(byte: u8) -> SecretKey {
    SecretKey::from_slice(&[byte; 32]).unwrap()
}

#[test]
fn signatures_are_low_s_and_verify() {
    isolated("signatures_are_low_s_and_verify", |dir| {
        let token = common::token(dir);
        let identity = token.identity_public_key();
        for n in 0..200u8 {
            let digest = [n; 32];
            let signature = token.sign_identity(&digest).unwrap();
            let mut normal = signature;
            normal.normalize_s();
            assert_eq!(signature, normal);
            SECP256K1.verify_ecdsa(&Message::from_digest(digest), &signature, &identity).unwrap();
        }
        let key = token.federation_public_key();
        assert_eq!(key.kind(), KeyKind::Ed25519);
        assert!(key.verifies(b"vote", &token.sign_federation(b"vote").unwrap()));
        token.probe().unwrap();
    })
    .unwrap();
}

#[test]
fn a_token_without_eddsa_has_a_p256_federation_key() {
    isolated("a_token_without_eddsa_has_a_p256_federation_key", |dir| {
        let mut config = common::config(dir);
        config.keys.profile = config.keys.profile.with_log_signature(LogSignature::EcdsaP256);
        let token = generate_keys(&config, &IdentitySource::Generate).unwrap();
        let key = token.federation_public_key();
        assert_eq!(key.kind(), KeyKind::EcdsaP256);
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..40 {
            let signature = token.sign_federation(b"vote").unwrap();
            assert!(key.verifies(b"vote", &signature) && !key.verifies(b"another", &signature));
            assert!(seen.insert(signature), "the token draws a nonce each time");
        }
        // The key says its kind itself, whatever the profile says later.
        drop(token);
        let again = Pkcs11Token::open(&common::existing()).unwrap();
        assert_eq!(again.federation_public_key(), key);
        again.probe().unwrap();
    })
    .unwrap();
}

#[test]
fn ecdh_is_the_same_from_both_sides() {
    isolated("ecdh_is_the_same_from_both_sides", |dir| {
        let token = common::token(dir);
        let identity = token.identity_public_key();
        for n in 1..60 {
            let peer = secret(n);
            let x = token.identity_ecdh_x(&PublicKey::from_secret_key(SECP256K1, &peer)).unwrap();
            assert_eq!(x[..], ecdh::shared_secret_point(&identity, &peer)[..32]);
        }
    })
    .unwrap();
}

#[test]
fn roots_live_and_die() {
    isolated("roots_live_and_die", |dir| {
        let token = common::token(dir);
        assert_eq!(token.roots().unwrap(), vec![]);
        assert_eq!(*token.derive(&root(1), b"x").err().as_ref().unwrap(), TokenError::RootMissing(root(1)));
        token.create_root(&root(1)).unwrap();
        assert_eq!(token.create_root(&root(1)).unwrap_err(), TokenError::RootExists(root(1)));
        token.create_root(&root(2)).unwrap();
        let mut roots = token.roots().unwrap();
        roots.sort_unstable();
        assert_eq!(roots, vec![root(1), root(2)]);
        let (one, two) = (token.derive(&root(1), b"x").unwrap(), token.derive(&root(2), b"x").unwrap());
        assert_ne!(one, two);
        assert_eq!(token.derive(&root(1), b"x").unwrap(), one);
        assert_ne!(token.derive(&root(1), b"y").unwrap(), one);
        token.sync().unwrap();
        token.destroy_root(&root(1)).unwrap();
        assert_eq!(token.destroy_root(&root(1)).unwrap_err(), TokenError::RootMissing(root(1)));
        assert_eq!(*token.derive(&root(1), b"x").err().as_ref().unwrap(), TokenError::RootMissing(root(1)));
        assert_eq!(token.roots().unwrap(), vec![root(2)]);
        assert_eq!(token.derive(&root(2), b"x").unwrap(), two);
    })
    .unwrap();
}

#[test]
fn roots_of_a_token_without_hmac_keys_are_aes_keys() {
    isolated("roots_of_a_token_without_hmac_keys_are_aes_keys", |dir| {
        let mut config = common::config(dir);
        let hmac = config.devices[0].profile;
        config.devices[0].profile = hmac.with_root_mechanism(RootMechanism::AesCmac);
        let token = generate_keys(&config, &IdentitySource::Generate).unwrap();
        let print = token.fingerprint().unwrap();
        token.create_root(&root(1)).unwrap();
        token.create_root(&root(2)).unwrap();
        let (one, two) = (token.derive(&root(1), b"x").unwrap(), token.derive(&root(2), b"x").unwrap());
        assert_ne!(one, two);
        assert_ne!(one[..16], one[16..], "two blocks");
        assert_eq!(token.derive(&root(1), b"x").unwrap(), one);
        assert_ne!(token.derive(&root(1), b"y").unwrap(), one);
        token.destroy_root(&root(1)).unwrap();
        assert_eq!(*token.derive(&root(1), b"x").err().as_ref().unwrap(), TokenError::RootMissing(root(1)));
        assert_eq!(token.roots().unwrap(), vec![root(2)]);
        drop(token);
        // From another process, and after a restart.
        let again = Pkcs11Token::open(&config).unwrap();
        assert_eq!((again.fingerprint().unwrap(), again.derive(&root(2), b"x").unwrap()), (print, two));
        let view = RootsView::open(&config.devices[0], Security::Development).unwrap();
        assert_eq!(view.look().unwrap(), (print, vec![root(2)]));
        // A configuration that means the other kind finds no roots: it is refused, and destroys nothing.
        config.devices[0].profile = hmac;
        assert!(Pkcs11Token::open(&config).is_err());
        assert_eq!(again.roots().unwrap(), vec![root(2)]);
    })
    .unwrap();
}

#[test]
fn ceremony_happens_once_and_imports_only_in_development() {
    isolated("ceremony_happens_once_and_imports_only_in_development", |dir| {
        let mut config = common::config(dir);
        assert_eq!(Pkcs11Token::open(&config).unwrap_err(), TokenError::NoObjects);
        let import = || IdentitySource::Import(Zeroizing::new([3; 32]));
        config.security = Security::Production;
        assert!(matches!(generate_keys(&config, &import()), Err(TokenError::Unsupported(_))));
        config.security = Security::Development;
        let token = generate_keys(&config, &import()).unwrap();
        assert_eq!(token.identity_method(), IdentityMethod::Imported);
        assert_eq!(token.identity_public_key(), PublicKey::from_secret_key(SECP256K1, &secret(3)));
        assert!(generate_keys(&config, &IdentitySource::Generate).is_err());
        let again = Pkcs11Token::open(&config).unwrap();
        assert_eq!(again.identity_public_key(), token.identity_public_key());
        assert_eq!(again.federation_public_key(), token.federation_public_key());
        let peer = PublicKey::from_secret_key(SECP256K1, &secret(9));
        assert_eq!(
            token.identity_ecdh_x(&peer).unwrap()[..],
            ecdh::shared_secret_point(&peer, &secret(3))[..32]
        );

        let pin = dir.conf_path().with_file_name("pin");
        std::fs::write(&pin, common::PIN).unwrap();
        std::fs::set_permissions(&pin, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        config.security = Security::Production;
        config.devices[0].roots.pin = PinSource::File(pin.clone());
        config.keys.token.pin = PinSource::File(pin);
        assert!(matches!(Pkcs11Token::open(&config), Err(TokenError::Unsupported(_))));
    })
    .unwrap();
}

#[test]
fn a_generated_identity_works_in_production() {
    isolated("a_generated_identity_works_in_production", |dir| {
        let pin = dir.conf_path().with_file_name("pin");
        std::fs::write(&pin, common::PIN).unwrap();
        std::fs::set_permissions(&pin, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let mut config = common::config(dir);
        config.security = Security::Production;
        assert!(generate_keys(&config, &IdentitySource::Generate).is_err(), "PIN in the configuration");
        config.devices[0].roots.pin = PinSource::File(pin.clone());
        config.keys.token.pin = PinSource::File(pin);
        let token = generate_keys(&config, &IdentitySource::Generate).unwrap();
        assert_eq!(token.identity_method(), IdentityMethod::Generated);
        drop(token);
        Pkcs11Token::open(&config).unwrap();
    })
    .unwrap();
}

#[test]
fn a_wrong_pin_is_refused_and_a_wrong_token_not_found() {
    isolated("a_wrong_pin_is_refused_and_a_wrong_token_not_found", |dir| {
        let mut config = common::config(dir);
        config.keys.token.pin = PinSource::Inline("99999999".into());
        assert_eq!(generate_keys(&config, &IdentitySource::Generate).unwrap_err(), TokenError::PinRefused);
        config = common::existing();
        config.devices[0].roots.label = "elsewhere".into();
        assert!(matches!(Pkcs11Token::open(&config), Err(TokenError::Unavailable(_))));
        config = common::existing();
        config.devices[0].roots.serial = Some("0000000000000000".into());
        assert!(matches!(Pkcs11Token::open(&config), Err(TokenError::Unavailable(_))));
    })
    .unwrap();
}

#[test]
fn eight_threads_sign_while_roots_change() {
    isolated("eight_threads_sign_while_roots_change", |dir| {
        let token = Arc::new(common::token(dir));
        token.create_root(&root(1)).unwrap();
        let signers: Vec<_> = (0..8u8)
            .map(|n| {
                let token = Arc::clone(&token);
                std::thread::spawn(move || {
                    for i in 0..50u8 {
                        token.sign_identity(&[n.wrapping_mul(50).wrapping_add(i); 32]).unwrap();
                        token.sign_federation(&[n, i]).unwrap();
                        token.derive(&root(1), &[n, i]).unwrap();
                    }
                })
            })
            .collect();
        for epoch in 2..40 {
            token.create_root(&root(epoch)).unwrap();
            token.destroy_root(&root(epoch)).unwrap();
        }
        for signer in signers {
            signer.join().unwrap();
        }
        assert_eq!(token.roots().unwrap(), vec![root(1)]);
    })
    .unwrap();
}

#[test]
fn a_token_that_went_away_is_an_error_until_it_is_back() {
    isolated("a_token_that_went_away_is_an_error_until_it_is_back", |dir| {
        let token = Arc::new(common::token(dir));
        token.create_root(&root(1)).unwrap();
        let value = token.derive(&root(1), b"x").unwrap();
        let identity = token.identity_public_key();
        let aside = dir.tokens_path().with_extension("aside");
        std::fs::rename(dir.tokens_path(), &aside).unwrap();
        for _ in 0..3 {
            assert!(token.roots().is_err(), "never an empty list");
            assert!(token.derive(&root(1), b"x").is_err());
            assert!(token.create_root(&root(2)).is_err());
            assert!(token.sign_identity(&[1; 32]).is_err());
            assert!(token.probe().is_err());
        }
        assert!(token.reconnect().is_err());
        assert!(token.roots().is_err(), "never an empty list");
        std::fs::rename(&aside, dir.tokens_path()).unwrap();
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let busy: Vec<_> = (0..4u8)
            .map(|n| {
                let (token, stop) = (Arc::clone(&token), Arc::clone(&stop));
                std::thread::spawn(move || {
                    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                        let _ = token.sign_identity(&[n; 32]);
                    }
                })
            })
            .collect();
        for _ in 0..5 {
            token.reconnect().unwrap();
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        for thread in busy {
            thread.join().unwrap();
        }
        assert_eq!(token.roots().unwrap(), vec![root(1)]);
        assert_eq!(token.derive(&root(1), b"x").unwrap(), value);
        assert_eq!(token.identity_public_key(), identity);
        token.sign_identity(&[1; 32]).unwrap();
        token.create_root(&root(2)).unwrap();
        token.destroy_root(&root(1)).unwrap();
    })
    .unwrap();
}

#[test]
fn a_failed_destruction_stays_failed() {
    isolated("a_failed_destruction_stays_failed", |dir| {
        let token = common::token(dir);
        token.create_root(&root(1)).unwrap();
        let guard = Undeletable::set(dir.tokens_path());
        assert_eq!(token.destroy_root(&root(1)).unwrap_err(), TokenError::NotDestroyed(root(1)));
        drop(guard);
        assert_eq!(token.destroy_root(&root(1)).unwrap_err(), TokenError::NotDestroyed(root(1)));
        token.reconnect().unwrap();
        assert_eq!(token.roots().unwrap(), vec![root(1)], "it was never gone");
        token.destroy_root(&root(1)).unwrap();
        assert_eq!(token.roots().unwrap(), vec![]);
    })
    .unwrap();
}

/// The library of the process that destroyed shows nothing any more; another process sees what is left.
#[test]
fn the_confirmer_sees_what_survived_its_destruction() {
    isolated("the_confirmer_sees_what_survived_its_destruction", |dir| {
        let token = common::token(dir);
        for epoch in 1..=2 {
            token.create_root(&root(epoch)).unwrap();
        }
        let config = dir.conf_path().with_file_name("signer.toml");
        let module = spark_softhsm::module_path().unwrap().display().to_string();
        let text = format!(
            "profile = \"development\"\noperator = 0\nstore = \"none\"\n\
             [token]\nmodule = {module:?}\nprofile = \"softhsm\"\n\
             roots = {{ label = \"roots\", pin = \"prompt\" }}\nkeys = {{ label = \"keys\", pin = \"prompt\" }}\n"
        );
        std::fs::write(&config, text).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let pin = Zeroizing::new(common::PIN.to_owned());
            let program = std::path::Path::new(env!("CARGO_BIN_EXE_spark-signer"));
            let mut confirmer = Confirmer::start(program, &config, &[(DeviceId(0), pin)]).await.unwrap();
            let mut look = async || {
                let (device, mut roots) = confirmer.roots(DeviceId(0)).await.unwrap();
                assert_eq!(device, token.fingerprint().unwrap());
                roots.sort_unstable();
                roots
            };
            assert_eq!(look().await, vec![root(1), root(2)]);
            let guard = Undeletable::set(dir.tokens_path());
            token.destroy_root(&root(1)).unwrap_err();
            assert_eq!(token.roots().unwrap(), vec![root(2)], "this process is shown a destroyed root");
            assert_eq!(look().await, vec![root(1), root(2)]);
            drop(guard);
            token.reconnect().unwrap();
            token.destroy_root(&root(1)).unwrap();
            assert_eq!(look().await, vec![root(2)]);
            // It does not look with a wrong PIN.
            let wrong = Zeroizing::new("00000000".to_owned());
            let mut blind = Confirmer::start(program, &config, &[(DeviceId(0), wrong)]).await.unwrap();
            assert!(blind.roots(DeviceId(0)).await.is_err());
        });
    })
    .unwrap();
}

/// Not a test by itself: another program changes the PIN.
#[test]
fn child_changes_the_pin() {
    let (Ok(old), Ok(new)) = (std::env::var("OLD_PIN"), std::env::var("NEW_PIN")) else { return };
    isolated("child_changes_the_pin", |_| {
        let library = Pkcs11::new(spark_softhsm::module_path().unwrap()).unwrap();
        library.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)).unwrap();
        let session = library.open_rw_session(slot(&library, "keys")).unwrap();
        let (old, new) = (AuthPin::from(old.as_str()), AuthPin::from(new.as_str()));
        session.login(UserType::User, Some(&old)).unwrap();
        session.set_pin(&old, &new).unwrap();
    })
    .unwrap();
}

#[test]
fn a_refused_pin_is_not_tried_again() {
    isolated("a_refused_pin_is_not_tried_again", |dir| {
        let token = common::token(dir);
        let change = |old: &str, new: &str| {
            let output = run_test("child_changes_the_pin", dir, &[("OLD_PIN", old), ("NEW_PIN", new)]);
            passed(&output.unwrap()).unwrap();
        };
        change(common::PIN, "11223344");
        assert_eq!(token.reconnect().unwrap_err(), TokenError::PinRefused);
        change("11223344", common::PIN);
        // The PIN is right again, as the last line shows; still refused means that it was not tried.
        assert_eq!(token.reconnect().unwrap_err(), TokenError::PinRefused);
        for _ in 0..3 {
            assert_eq!(token.sign_identity(&[1; 32]).unwrap_err(), TokenError::PinRefused);
        }
        drop(token);
        Pkcs11Token::open(&common::existing()).unwrap();
    })
    .unwrap();
}

fn slot(library: &Pkcs11, label: &str) -> Slot {
    let slots = library.get_slots_with_initialized_token().unwrap();
    slots.into_iter().find(|slot| library.get_token_info(*slot).unwrap().label() == label).unwrap()
}

#[test]
fn keys_cannot_be_read_copied_or_planted() {
    isolated("keys_cannot_be_read_copied_or_planted", |dir| {
        let token = common::token(dir);
        token.create_root(&root(1)).unwrap();
        // A second look through the same library, which is initialised and logged in.
        let library = Pkcs11::new(spark_softhsm::module_path().unwrap()).unwrap();
        let secret = [Attribute::Class(ObjectClass::SECRET_KEY)];
        let private = [Attribute::Class(ObjectClass::PRIVATE_KEY)];
        let mut seen = 0;
        for (label, class) in [("roots", &secret), ("keys", &private)] {
            let session = library.open_rw_session(slot(&library, label)).unwrap();
            for handle in session.find_objects(class).unwrap() {
                use AttributeType as Type;
                let types = [
                    Type::Token,
                    Type::Private,
                    Type::Sensitive,
                    Type::AlwaysSensitive,
                    Type::Local,
                    Type::NeverExtractable,
                    Type::Destroyable,
                    Type::Extractable,
                    Type::Copyable,
                    Type::Modifiable,
                    Type::Value,
                ];
                let found = session.get_attributes(handle, &types).unwrap();
                let expected = [
                    Attribute::Token(true),
                    Attribute::Private(true),
                    Attribute::Sensitive(true),
                    Attribute::AlwaysSensitive(true),
                    Attribute::Local(true),
                    Attribute::NeverExtractable(true),
                    Attribute::Destroyable(true),
                    Attribute::Extractable(false),
                    Attribute::Copyable(false),
                    Attribute::Modifiable(false),
                ];
                assert_eq!(found, expected, "and no value");
                assert!(session.copy_object(handle, &[Attribute::Token(false)]).is_err());
                assert!(session.update_attributes(handle, &[Attribute::Extractable(true)]).is_err());
                seen += 1;
            }
        }
        assert_eq!(seen, 4, "sentinel, root, identity, federation");

        let session = library.open_rw_session(slot(&library, "roots")).unwrap();
        let planted = [
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::GENERIC_SECRET),
            Attribute::Token(true),
            Attribute::Private(true),
            Attribute::Sign(true),
            Attribute::Label("spark-root".into()),
            Attribute::Id(root(7).to_bytes().to_vec()),
            Attribute::Value(vec![7; 32]),
        ];
        session.create_object(&planted).unwrap();
        assert!(token.roots().unwrap().contains(&root(7)));
        assert!(matches!(token.derive(&root(7), b"x"), Err(TokenError::Attribute { .. })));
    })
    .unwrap();
}

/// Files that cannot be removed: immutable for root, in a read-only folder for others.
struct Undeletable(std::path::PathBuf);

impl Undeletable {
    fn set(path: &std::path::Path) -> Self {
        let guard = Self(path.to_owned());
        guard.change("chattr", "+i");
        guard.change("chmod", "a-w");
        let probe = std::fs::write(path.join("probe"), "");
        assert!(probe.is_err(), "this test needs chattr +i, or an ordinary user");
        guard
    }

    fn change(&self, program: &str, flag: &str) {
        let _ = std::process::Command::new(program).args(["-R", flag]).arg(&self.0).output();
    }
}

impl Drop for Undeletable {
    fn drop(&mut self) {
        self.change("chattr", "-i");
        self.change("chmod", "u+w");
    }
}

/// D13: a configuration can call one token by two names; the token itself does not.
#[test]
fn d13_the_keys_token_is_no_device_with_roots_whatever_it_is_called() {
    isolated("d13_the_keys_token_is_no_device_with_roots_whatever_it_is_called", |dir| {
        let mut config = common::config(dir);
        config.security = Security::Production;
        for token in [&mut config.keys.token, &mut config.devices[0].roots] {
            token.pin = PinSource::Held(Zeroizing::new(common::PIN.into()));
        }
        let refused = |config: &TokenConfig| {
            let error = KeysToken::open(config).unwrap_err().to_string();
            assert!(error.contains("KEYS_NOT_APART"), "{error}");
        };
        let not_made = |config: &TokenConfig| {
            let error = generate_keys(config, &IdentitySource::Generate).unwrap_err().to_string();
            assert!(error.contains("KEYS_NOT_APART"), "{error}");
        };
        let module = config.keys.module.clone();
        let folder = dir.conf_path().parent().unwrap();
        let (link, copy) = (folder.join("link.so"), folder.join("copy.so"));
        std::os::unix::fs::symlink(&module, &link).unwrap();
        std::fs::copy(module.canonicalize().unwrap(), &copy).unwrap();
        let slots = spark_signer_hsm::token::slots(&module).unwrap();
        let serial = |label: &str| {
            slots.iter().find(|(_, info, _)| info.label == label).map(|(_, info, _)| info.serial.clone())
        };
        let mut same = config.clone();
        same.devices[0].roots.label = "keys".into();
        not_made(&same);

        drop(generate_keys(&config, &IdentitySource::Generate).unwrap());
        let token = KeysToken::open(&config).unwrap();
        for module in [&module, &link, &copy] {
            for serial in [None, serial("keys")] {
                let mut same = config.clone();
                same.devices[0].module.clone_from(module);
                same.devices[0].roots.label = "keys".into();
                same.devices[0].roots.serial = serial;
                refused(&same);
                // One that is away at the start, or joins later.
                let later = RootDevice::load(&same.devices[0], Security::Production).unwrap();
                later.never(token.info().clone());
                let error = later.probe().unwrap_err().to_string();
                assert!(error.contains("KEYS_NOT_APART"), "{error}");
            }
        }
        // The device is not named at all, but its objects are there.
        let mut swapped = config.clone();
        swapped.keys.token.label = "roots".into();
        swapped.keys.token.serial = serial("roots");
        swapped.devices[0].roots.label = "keys".into();
        refused(&swapped);
        // For development one token may do.
        same.security = Security::Development;
        KeysToken::open(&same).unwrap();
    })
    .unwrap();
}
