//! Just enough of the gRPC and protobuf encodings to find identity keys in a request before it is decoded.

/// Not well-formed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum WireError {
    /// Not exactly one uncompressed gRPC message.
    #[error("request must be one uncompressed message")]
    Frame,
    /// Not a protobuf message.
    #[error("request is not a protobuf message")]
    Message,
}

/// The message in a unary request body: flag byte, length (big-endian `u32`), message.
pub(super) fn unframe(body: &[u8]) -> Result<&[u8], WireError> {
    let (head, message) = body.split_first_chunk::<5>().ok_or(WireError::Frame)?;
    let [flag, length @ ..] = *head;
    let fits = usize::try_from(u32::from_be_bytes(length)).is_ok_and(|length| length == message.len());
    if flag == 0 && fits { Ok(message) } else { Err(WireError::Frame) }
}

/// Every occurrence of a length-delimited top-level field.
///
/// All are returned, so that a check of all of them holds whichever occurrence a decoder prefers.
pub(super) fn bytes_fields(mut message: &[u8], number: u32) -> Result<Vec<&[u8]>, WireError> {
    let mut found = Vec::new();
    while !message.is_empty() {
        let (key, rest) = varint(message)?;
        let field = key >> 3;
        let rest = match key & 7 {
            0 => varint(rest)?.1,
            1 => rest.get(8..).ok_or(WireError::Message)?,
            2 => {
                let (length, rest) = varint(rest)?;
                let length = usize::try_from(length).map_err(|_| WireError::Message)?;
                let (value, rest) = rest.split_at_checked(length).ok_or(WireError::Message)?;
                if field == u64::from(number) {
                    found.push(value);
                }
                rest
            }
            5 => rest.get(4..).ok_or(WireError::Message)?,
            // Groups are not part of proto3; a decoder might skip them differently.
            _ => return Err(WireError::Message),
        };
        message = rest;
    }
    Ok(found)
}

fn varint(bytes: &[u8]) -> Result<(u64, &[u8]), WireError> {
    let mut value = 0u64;
    for (index, byte) in bytes.iter().enumerate().take(10) {
        let part = u64::from(byte & 0x7f);
        let shift = u32::try_from(index).map_err(|_| WireError::Message)? * 7;
        if shift == 63 && part > 1 {
            return Err(WireError::Message);
        }
        value |= part << shift;
        if byte & 0x80 == 0 {
            return Ok((value, bytes.get(index + 1..).ok_or(WireError::Message)?));
        }
    }
    Err(WireError::Message)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message as _;
    use spark_proto::spark::{GenerateDepositAddressRequest, TransferFilter, transfer_filter::Participant};

    use super::*;

    #[test]
    fn frames() {
        assert_eq!(unframe(&[0, 0, 0, 0, 2, 7, 8]), Ok(&[7, 8][..]));
        for bad in [&[][..], &[0, 0, 0, 0], &[1, 0, 0, 0, 0], &[0, 0, 0, 0, 1], &[0, 0, 0, 0, 0, 9]] {
            assert_eq!(unframe(bad), Err(WireError::Frame));
        }
    }

    #[test]
    fn repeated_occurrences_are_all_seen() {
        let filter = |key: u8| {
            let participant = Some(Participant::SenderOrReceiverIdentityPublicKey(vec![key; 33]));
            TransferFilter { participant, ..Default::default() }.encode_to_vec()
        };
        let twice = [filter(1), filter(2)].concat();
        assert_eq!(bytes_fields(&twice, 60), Ok(vec![&[1; 33][..], &[2; 33][..]]));
    }

    proptest! {
        #[test]
        fn agrees_with_the_decoder(identity in prop::collection::vec(any::<u8>(), 1..40), leaf in ".*", network in 0..6i32) {
            let request = GenerateDepositAddressRequest {
                identity_public_key: identity.clone(),
                signing_public_key: vec![1; 33],
                leaf_id: Some(leaf),
                network,
                ..Default::default()
            };
            let encoded = request.encode_to_vec();
            prop_assert_eq!(bytes_fields(&encoded, 2), Ok(vec![&identity[..]]));
        }

        #[test]
        fn any_input_ends(input in prop::collection::vec(any::<u8>(), 0..200)) {
            // What the decoder accepts must not hide a field from the check.
            let found = bytes_fields(&input, 2);
            if let Ok(request) = GenerateDepositAddressRequest::decode(&input[..])
                && let Ok(found) = found
                && !request.identity_public_key.is_empty()
            {
                prop_assert!(found.contains(&&request.identity_public_key[..]));
            }
        }
    }
}
