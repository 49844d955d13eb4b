//! Reading a PIN.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt as _;

use cryptoki::types::AuthPin;
use spark_signer::vault::TokenError;
use zeroize::Zeroizing;

use super::config::{PinSource, Security, TokenRef};

const MAX_PIN_BYTES: usize = 256;

/// Reads the PIN of a token. Errors name the source, never the content.
pub(super) fn read(token: &TokenRef, security: Security) -> Result<AuthPin, TokenError> {
    Ok(AuthPin::from(text(token, security)?.as_str()))
}

/// The PIN as text, for who must hand it on.
pub(super) fn text(token: &TokenRef, security: Security) -> Result<Zeroizing<String>, TokenError> {
    let refused = |why: &str| TokenError::Failed(format!("PIN of token {}: {why}", token.label));
    let development = || match security {
        Security::Development => Ok(()),
        Security::Production => Err(refused("only the development profile takes it from there")),
    };
    let text = match &token.pin {
        PinSource::File(path) => {
            let file = File::open(path).map_err(|error| refused(&error.to_string()))?;
            let metadata = file.metadata().map_err(|error| refused(&error.to_string()))?;
            if !metadata.is_file() || metadata.mode() & 0o077 != 0 {
                return Err(refused("file must be a regular file of mode 0600 or less"));
            }
            read_all(file).ok_or_else(|| refused("file does not hold a PIN"))?
        }
        // Opening by name duplicates the descriptor without taking it over.
        PinSource::Descriptor(number) => File::open(format!("/proc/self/fd/{number}"))
            .ok()
            .and_then(read_all)
            .ok_or_else(|| refused("descriptor does not hold a PIN"))?,
        PinSource::Prompt => rpassword::prompt_password(format!("PIN of token {}: ", token.label))
            .map(Zeroizing::new)
            .map_err(|_| refused("no terminal to ask at"))?,
        PinSource::Environment(name) => {
            development()?;
            std::env::var(name).map(Zeroizing::new).map_err(|_| refused("environment variable is not set"))?
        }
        PinSource::Inline(pin) => {
            development()?;
            Zeroizing::new(pin.clone())
        }
        PinSource::Held(pin) => pin.clone(),
    };
    let pin = text.trim_end_matches(['\r', '\n']);
    if pin.is_empty() {
        return Err(refused("is empty"));
    }
    Ok(Zeroizing::new(pin.to_owned()))
}

fn read_all(source: impl Read) -> Option<Zeroizing<String>> {
    let mut bytes = Zeroizing::new([0u8; MAX_PIN_BYTES + 1]);
    let mut length = 0;
    let mut source = source;
    loop {
        match source.read(bytes.get_mut(length..)?) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
        if length > MAX_PIN_BYTES {
            return None;
        }
    }
    std::str::from_utf8(bytes.get(..length)?).ok().map(|text| Zeroizing::new(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn token(pin: PinSource) -> TokenRef {
        TokenRef { label: "t".into(), serial: None, pin }
    }

    #[test]
    fn files_must_be_private_and_shortcuts_are_for_development() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pin");
        std::fs::write(&path, "123456\n").unwrap();
        let mode = |mode| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        let file = token(PinSource::File(path.clone()));
        mode(0o640);
        assert!(read(&file, Security::Development).is_err());
        mode(0o600);
        assert!(read(&file, Security::Production).is_ok());
        std::fs::write(&path, "\n").unwrap();
        assert!(read(&file, Security::Production).is_err());
        std::fs::write(&path, [b'1'; MAX_PIN_BYTES + 1]).unwrap();
        assert!(read(&file, Security::Production).is_err());
        let inline = token(PinSource::Inline("123456".into()));
        assert!(read(&inline, Security::Production).is_err());
        assert!(read(&inline, Security::Development).is_ok());
        assert!(read(&token(PinSource::Environment("PATH".into())), Security::Production).is_err());
        assert_eq!(format!("{:?}", inline.pin), "inline");
    }

    #[test]
    fn descriptors_are_read_to_their_end() {
        use std::io::Write as _;
        use std::os::fd::AsRawFd as _;
        let (reader, mut writer) = std::io::pipe().unwrap();
        writer.write_all(b"4321").unwrap();
        drop(writer);
        let source = PinSource::Descriptor(u32::try_from(reader.as_raw_fd()).unwrap());
        assert!(read(&token(source), Security::Production).is_ok());
    }
}
