//! The two calls of `spark_authn.SparkAuthnService`.

use spark_proto::spark_authn::{
    GetChallengeRequest, GetChallengeResponse, VerifyChallengeRequest, VerifyChallengeResponse,
    spark_authn_service_server::SparkAuthnService,
};
use tonic::{Request, Response, Status};

use super::Authn;
use crate::status::Refused;

#[tonic::async_trait]
impl SparkAuthnService for Authn {
    async fn get_challenge(
        &self,
        request: Request<GetChallengeRequest>,
    ) -> Result<Response<GetChallengeResponse>, Status> {
        let protected = self.issue_challenge(&request.into_inner().public_key)?;
        Ok(Response::new(GetChallengeResponse { protected_challenge: Some(protected) }))
    }

    async fn verify_challenge(
        &self,
        request: Request<VerifyChallengeRequest>,
    ) -> Result<Response<VerifyChallengeResponse>, Status> {
        let VerifyChallengeRequest { protected_challenge, signature, public_key } = request.into_inner();
        let protected =
            protected_challenge.ok_or_else(|| Refused::field("protected_challenge", "is missing"))?;
        let identity = self.accept_answer(protected, &signature, &public_key).await?;
        let (session_token, expires) = self.issue_session(&identity);
        let expiration_timestamp = i64::try_from(expires).unwrap_or(i64::MAX);
        Ok(Response::new(VerifyChallengeResponse { session_token, expiration_timestamp }))
    }
}
