//! What the engine counts.

use std::time::Instant;

use spark_proto::peer::v1::operation::Request;
use spark_rules::vote::Kind;

use super::engine::Engine;
use crate::metrics::{Outcome, Phase};

/// What a client asks for, before the rules have looked at it.
pub(super) const fn asked_kind(request: &Request) -> Kind {
    match request {
        Request::Deposit(_) => Kind::Deposit,
        Request::Send(_) | Request::SendMany(_) => Kind::Send,
        Request::Claim(_) => Kind::Claim,
        Request::Renew(_) => Kind::Renew,
        Request::Refresh(_) => Kind::Refresh,
        Request::Htlc(_) => Kind::Htlc,
        Request::CoopExit(_) => Kind::CoopExit,
    }
}

impl Engine {
    /// A step that began at `started` is done.
    pub(super) fn step_done(&self, kind: Kind, phase: Phase, started: Instant) {
        self.inner.metrics.phase(kind.into(), phase, started.elapsed());
    }

    /// An attempt ended here.
    pub(super) fn ended(&self, kind: Kind, outcome: Outcome) {
        self.inner.metrics.operation_ended(kind.into(), outcome);
    }
}
