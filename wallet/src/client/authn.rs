//! Login: a challenge signed by the identity key.

use bitcoin::secp256k1::PublicKey;
use sha2::{Digest as _, Sha256};
use spark_proto::spark_authn::{
    Challenge, GetChallengeRequest, VerifyChallengeRequest,
    spark_authn_service_client::SparkAuthnServiceClient,
};
use tonic::{Status, transport::Channel};

use crate::keys::{KeyError, SigningKey};

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// The operator answered with an error.
    #[error("{}", .0.message())]
    Call(#[from] Status),
    /// A part of the answer is missing or malformed.
    #[error("{0} is missing or malformed")]
    Answer(&'static str),
    /// The challenge is for another key than this wallet's.
    #[error("the challenge is for another key")]
    OtherKey,
    /// The nonce is not bound to the operator asked: somebody relays another operator's challenge (D24).
    #[error("the challenge is not this operator's own")]
    Relayed,
    /// The key cannot sign.
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// Returns the session token and its end, in unix seconds.
pub(super) async fn login(
    channel: Channel,
    operator: &PublicKey,
    key: &SigningKey,
) -> Result<(String, i64), AuthError> {
    let public_key = key.public_key().serialize().to_vec();
    let mut client = SparkAuthnServiceClient::new(channel);
    let answer =
        client.get_challenge(GetChallengeRequest { public_key: public_key.clone() }).await?.into_inner();
    let protected = answer.protected_challenge.ok_or(AuthError::Answer("challenge"))?;
    let challenge = protected.challenge.as_ref().ok_or(AuthError::Answer("challenge"))?;
    if challenge.public_key != public_key {
        return Err(AuthError::OtherKey);
    }
    if !spark_rules::package::challenge_nonce_is_for(&challenge.nonce, operator) {
        return Err(AuthError::Relayed);
    }
    let digest: [u8; 32] = Sha256::digest(encode(challenge)).into();
    let signature = key.sign_ecdsa(digest)?.serialize_der().to_vec();
    let request = VerifyChallengeRequest { protected_challenge: Some(protected), signature, public_key };
    let session = client.verify_challenge(request).await?.into_inner();
    Ok((session.session_token, session.expiration_timestamp))
}

/// Canonical protobuf: fields 1 to 4 in order, defaults omitted. Own code, because what is signed must not
/// depend on how a library orders or keeps fields.
fn encode(challenge: &Challenge) -> Vec<u8> {
    let mut out = Vec::with_capacity(96);
    // Negative integers are sign-extended to 64 bits on the wire.
    for (field, value) in [(1u8, i64::from(challenge.version)), (2, challenge.timestamp)] {
        if value != 0 {
            out.push(field << 3);
            varint(&mut out, u64::from_ne_bytes(value.to_ne_bytes()));
        }
    }
    for (field, bytes) in [(3u8, &challenge.nonce), (4, &challenge.public_key)] {
        if !bytes.is_empty() {
            out.push(field << 3 | 2);
            varint(&mut out, bytes.len() as u64);
            out.extend_from_slice(bytes);
        }
    }
    out
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use prost::Message as _;

    proptest! {
        #[test]
        fn our_encoding_is_canonical_protobuf(
            version: i32, timestamp: i64,
            nonce in prop::collection::vec(any::<u8>(), 0..200),
            public_key in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let challenge = Challenge { version, timestamp, nonce, public_key };
            prop_assert_eq!(encode(&challenge), challenge.encode_to_vec());
        }
    }

    use bitcoin::secp256k1::{SECP256K1, SecretKey};
    use spark_proto::spark_authn::{
        GetChallengeResponse, ProtectedChallenge, VerifyChallengeResponse,
        spark_authn_service_server::{SparkAuthnService, SparkAuthnServiceServer},
    };
    use spark_rules::package;
    use tonic::{Request, Response};

    /// An operator that shows the challenge of the operator with key `owner`.
    struct Server {
        owner: PublicKey,
        other_key: bool,
    }

    #[tonic::async_trait]
    impl SparkAuthnService for Server {
        async fn get_challenge(
            &self,
            request: Request<GetChallengeRequest>,
        ) -> Result<Response<GetChallengeResponse>, Status> {
            let mut public_key = request.into_inner().public_key;
            if self.other_key {
                public_key = self.owner.serialize().to_vec();
            }
            let nonce = package::challenge_nonce(&self.owner, [9; 16]).to_vec();
            let challenge = Challenge { version: 1, timestamp: 1_700_000_000, nonce, public_key };
            let protected =
                ProtectedChallenge { version: 1, challenge: Some(challenge), server_hmac: vec![1; 32] };
            Ok(Response::new(GetChallengeResponse { protected_challenge: Some(protected) }))
        }

        async fn verify_challenge(
            &self,
            request: Request<VerifyChallengeRequest>,
        ) -> Result<Response<VerifyChallengeResponse>, Status> {
            let request = request.into_inner();
            let challenge = request.protected_challenge.and_then(|p| p.challenge).unwrap();
            let key = PublicKey::from_slice(&request.public_key).unwrap();
            package::verify_challenge(&challenge, &request.signature, &key)
                .map_err(|e| Status::unauthenticated(e.to_string()))?;
            let session_token = "token".into();
            Ok(Response::new(VerifyChallengeResponse { session_token, expiration_timestamp: 1_700_000_900 }))
        }
    }

    async fn log_in_to(server: Server, expected: &PublicKey) -> Result<(String, i64), AuthError> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let service = SparkAuthnServiceServer::new(server);
        tokio::spawn(tonic::transport::Server::builder().add_service(service).serve(address));
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}")).unwrap();
        let channel = loop {
            match endpoint.connect().await {
                Ok(channel) => break channel,
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
            }
        };
        login(channel, expected, crate::testing::keys().identity()).await
    }

    #[tokio::test]
    async fn only_the_operators_own_challenge_is_signed() {
        let key = |byte| PublicKey::from_secret_key(SECP256K1, &SecretKey::from_slice(&[byte; 32]).unwrap());
        let (asked, other) = (key(1), key(2));
        let own = log_in_to(Server { owner: asked, other_key: false }, &asked).await;
        assert_eq!(own.unwrap(), ("token".into(), 1_700_000_900));
        // D24: a liar in the middle shows the challenge of the operator it wants to log in to.
        let relayed = log_in_to(Server { owner: other, other_key: false }, &asked).await;
        assert!(matches!(relayed, Err(AuthError::Relayed)));
        let for_another = log_in_to(Server { owner: asked, other_key: true }, &asked).await;
        assert!(matches!(for_another, Err(AuthError::OtherKey)));
    }
}
