//! The one piece of DER that tokens do not speak: an ECDSA signature (RFC 3279, `Ecdsa-Sig-Value`).

/// r and s, 32 bytes each, as a sequence of two integers.
pub(super) fn ecdsa(signature: &[u8; 64]) -> Vec<u8> {
    let (r, s) = signature.split_at(32);
    let body = [integer(r), integer(s)].concat();
    // At most 70 bytes: the short form of a length is enough.
    [&[0x30, short(&body)], body.as_slice()].concat()
}

/// Without leading zeros but for the one that keeps it positive.
fn integer(bytes: &[u8]) -> Vec<u8> {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count().min(bytes.len().saturating_sub(1));
    let digits = bytes.get(zeros..).unwrap_or_default();
    let sign: &[u8] = if digits.first().is_some_and(|byte| byte & 0x80 != 0) { &[0] } else { &[] };
    let value = [sign, digits].concat();
    [&[0x02, short(&value)], value.as_slice()].concat()
}

fn short(bytes: &[u8]) -> u8 {
    u8::try_from(bytes.len()).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_positive_and_minimal() {
        assert_eq!(integer(&[0, 0, 1]), [2, 1, 1]);
        assert_eq!(integer(&[0, 0x80]), [2, 2, 0, 0x80]);
        assert_eq!(integer(&[0, 0]), [2, 1, 0]);
        let mut signature = [0xffu8; 64];
        signature[32..63].fill(0);
        signature[63] = 5;
        let der = ecdsa(&signature);
        assert_eq!(der[..5], [0x30, 38, 0x02, 33, 0]);
        assert_eq!(der[37..], [0x02, 1, 5]);
    }
}
