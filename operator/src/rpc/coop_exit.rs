//! Cooperative exits: the leaves go to a provider on condition that its payment on chain confirms.

use spark_proto::{
    peer::v1::{self as peer, operation::Request},
    spark,
};

use super::{Api, input, refusal::of_send, write::first_leaf};
use crate::{authn::Session, convert::transfer_uuid, status::Refused};

impl Api {
    /// Answers once the conditional refunds are complete: then the receiver may broadcast the exit transaction.
    pub(super) async fn exit_cooperatively(
        &self,
        session: &Session,
        request: spark::CooperativeExitRequest,
    ) -> Result<spark::CooperativeExitResponse, Refused> {
        if !self.parts.coop_exit {
            return Err(Refused::unimplemented("cooperative_exit_v2"));
        }
        let transfer = self.bounds().coop_exit(&request)?;
        input::own_identity(
            "transfer.owner_identity_public_key",
            &transfer.owner_identity_public_key,
            session,
        )?;
        let id = transfer_uuid(input::transfer_id("transfer.transfer_id", &transfer.transfer_id)?);
        let leaf = first_leaf(transfer.transfer_package.as_ref());
        // The engine fixes height and depth.
        let exit = peer::CoopExit { request: Some(request), expiry_height: 0, depth: 0 };
        self.parts
            .operations
            .run(Request::CoopExit(exit), &session.identity)
            .await
            .map_err(|refused| of_send(refused, &leaf))?;
        self.parts.events.wake();
        let (row, _) = self.transfer_of(id, session).await?;
        // Aggregated here: the sender has nothing left to do.
        Ok(spark::CooperativeExitResponse {
            transfer: Some(self.transfer(&row, None).await?),
            signing_results: Vec::new(),
        })
    }
}
