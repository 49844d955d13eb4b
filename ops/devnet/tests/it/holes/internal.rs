//! X1, X2: what operators and signers say to each other is not for others, and a member cannot do what the rules
//! forbid either.

use anyhow::{Context as _, ensure};
use prost::Message as _;
use spark_devnet::{network::Devnet, wallet::WalletCommand};
use spark_proto::{
    peer::v1::{self as peer, operation::Request as Kind, peer_client::PeerClient},
    signer::v1::{self as signer, signer_client::SignerClient},
    transport::{ClientTls, Deadlines, Identity, TrustRoots, channel},
};
use tonic::{Code, Request, Status, client::Grpc, transport::Channel};

use crate::support::{
    deposit,
    rogue::{Rogue, honest},
    transfer,
    world::with,
};

/// Certificate and key of somebody on the network, by the stem of its files.
fn identity(devnet: &Devnet, member: usize, stem: &str) -> anyhow::Result<Identity> {
    let dir = devnet.members().get(member).context("member")?.dir();
    Ok(Identity::from_pem_files(dir.join(format!("{stem}.pem")), dir.join(format!("{stem}.key")))?)
}

fn wallet_identity(devnet: &Devnet) -> anyhow::Result<Identity> {
    let e = devnet.endpoints();
    Ok(Identity::from_pem_files(&e.client_certificate, &e.client_key)?)
}

fn connect(devnet: &Devnet, address: &str, identity: Option<Identity>) -> anyhow::Result<Channel> {
    let roots = TrustRoots::from_pem_file(&devnet.endpoints().ca)?;
    let tls = ClientTls { roots, identity, server_name: "localhost".into(), pinned: None };
    Ok(channel(address, &tls, Deadlines::default())?)
}

/// `host:port` of a URL.
fn host(url: &str) -> String {
    url.trim_start_matches("https://").replace("localhost", "127.0.0.1")
}

/// Where a member's signer listens.
fn signer_address(devnet: &Devnet, member: usize) -> anyhow::Result<String> {
    let file = devnet.members().get(member).context("member")?.dir().join("signer.toml");
    let config = std::fs::read_to_string(file)?;
    let line = config.lines().find_map(|line| line.strip_prefix("listen = "));
    Ok(line.context("listen")?.trim_matches('"').to_owned())
}

/// Paths of every method of these packages.
fn methods(packages: &[&str]) -> anyhow::Result<Vec<String>> {
    let set = prost_types::FileDescriptorSet::decode(spark_proto::DESCRIPTORS)?;
    let mut paths = Vec::new();
    for file in set.file.iter().filter(|f| packages.contains(&f.package())) {
        for service in &file.service {
            let named = service.method.iter();
            paths.extend(named.map(|m| format!("/{}.{}/{}", file.package(), service.name(), m.name())));
        }
    }
    Ok(paths)
}

/// An empty message to any method.
async fn call(channel: &Channel, path: &str, session: Option<&str>) -> Status {
    let attempt = async {
        let mut grpc = Grpc::new(channel.clone());
        grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let mut request = Request::new(());
        if let Some(session) = session {
            let token = session.parse().map_err(|_| Status::internal("token"))?;
            request.metadata_mut().insert("authorization", token);
        }
        let path = path.parse().map_err(|_| Status::internal("path"))?;
        grpc.unary(request, path, tonic_prost::ProstCodec::<(), ()>::default()).await
    };
    match attempt.await {
        Ok(_) => Status::ok("answered"),
        Err(status) => status,
    }
}

/// X1: nobody but the pinned members reaches the internal services, on no listener.
#[test]
fn x1_internal_calls_are_for_members_only() -> anyhow::Result<()> {
    with(async |devnet| {
        let internal = methods(&["peer.v1", "signer.v1"])?;
        ensure!(internal.len() > 30, "the descriptors lack the internal services: {internal:?}");

        // Public listeners do not know them, with or without a session.
        let wallet = WalletCommand::create(devnet, "x1", 0).await?;
        let session = login(devnet, &Rogue::of(&wallet)?).await?;
        let first = devnet.members().first().context("member")?;
        for (address, identity) in
            [(host(&first.mutual_url()), Some(wallet_identity(devnet)?)), (host(&first.open_url()), None)]
        {
            let public = connect(devnet, &address, identity)?;
            for path in &internal {
                for session in [None, Some(session.as_str())] {
                    let refused = call(&public, path, session).await;
                    ensure!(refused.code() == Code::Unimplemented, "{path} on {address}: {refused:?}");
                }
            }
        }

        // The listeners that do know them let nobody in whose key is not pinned, though all certificates here are
        // of one authority: no certificate, a wallet's, and a signer's.
        let strangers = || -> anyhow::Result<Vec<(&str, Option<Identity>)>> {
            Ok(vec![
                ("nobody", None),
                ("a wallet", Some(wallet_identity(devnet)?)),
                ("a signer", Some(identity(devnet, 1, "signer")?)),
            ])
        };
        let (peers, signers) = (first.peer_address(), signer_address(devnet, 0)?);
        for (who, identity) in strangers()? {
            for (address, path) in [
                (&peers, "/peer.v1.Peer/Hello"),
                (&peers, "/peer.v1.Peer/Release"),
                (&signers, "/signer.v1.Signer/GetStatus"),
                (&signers, "/signer.v1.Signer/Prepare"),
            ] {
                let refused = call(&connect(devnet, address, identity.clone())?, path, None).await;
                ensure!(
                    matches!(refused.code(), Code::Unavailable | Code::Unknown | Code::Cancelled),
                    "{who} got an answer from {path}: {refused:?}"
                );
            }
        }
        // Another operator's own key opens the peers' listener, and no signer but its own.
        let other = connect(devnet, &signers, Some(identity(devnet, 1, "operator")?))?;
        let refused = call(&other, "/signer.v1.Signer/GetStatus", None).await;
        ensure!(matches!(refused.code(), Code::Unavailable | Code::Unknown | Code::Cancelled), "{refused:?}");
        // The attacks above fail for who asks, not for how: the right keys are answered.
        let member = connect(devnet, &peers, Some(identity(devnet, 1, "operator")?))?;
        let answered = call(&member, "/peer.v1.Peer/Hello", None).await;
        ensure!(answered.code() == Code::PermissionDenied, "an empty hello names operator 0: {answered:?}");
        let own = connect(devnet, &signers, Some(identity(devnet, 0, "operator")?))?;
        let answered = call(&own, "/signer.v1.Signer/GetStatus", None).await;
        ensure!(answered.code() == Code::Ok, "own operator: {answered:?}");
        Ok(())
    })
}

/// The token of a fresh session, as it goes into the header.
async fn login(devnet: &Devnet, rogue: &Rogue) -> anyhow::Result<String> {
    use sha2::{Digest as _, Sha256};
    use spark_proto::spark_authn::{
        GetChallengeRequest, VerifyChallengeRequest, spark_authn_service_client::SparkAuthnServiceClient,
    };
    let first = devnet.members().first().context("member")?;
    let channel = connect(devnet, &host(&first.open_url()), None)?;
    let mut client = SparkAuthnServiceClient::new(channel);
    let public_key = rogue.id_bytes();
    let request = GetChallengeRequest { public_key: public_key.clone() };
    let protected = client.get_challenge(request).await?.into_inner().protected_challenge;
    let challenge = protected.as_ref().and_then(|p| p.challenge.as_ref()).context("challenge")?;
    let digest = Sha256::digest(challenge.encode_to_vec()).into();
    let signature = rogue.wallet.keys().identity().sign_ecdsa(digest)?.serialize_der().to_vec();
    let request = VerifyChallengeRequest { protected_challenge: protected, signature, public_key };
    Ok(format!("Bearer {}", client.verify_challenge(request).await?.into_inner().session_token))
}

/// X2: one malicious operator and a previous owner together. The operator has a pinned key, so it reaches every
/// peer; the previous owner still has the old key of the leaf. The honest operators' signers sign nothing: they
/// know from their own records that the leaf changed hands. (That no call takes a hash, a verifying key or an
/// adaptor point from outside is `proto/tests/signer_surface.rs`.)
#[test]
fn x2_a_member_and_a_previous_owner_get_no_share() -> anyhow::Result<()> {
    with(async |devnet| {
        let alice = WalletCommand::create(devnet, "x2-alice", 0).await?;
        let bob = WalletCommand::create(devnet, "x2-bob", 1).await?;
        let leaf = deposit(devnet, &alice, 52_000).await?;
        let before = Rogue::of(&alice)?.node(&leaf).await?;
        transfer(&alice, &bob, 52_000).await?;

        let alice = Rogue::of(&alice)?;
        let members = alice.wallet.config().federation.members().to_vec();
        let evil = |to: usize| -> anyhow::Result<PeerClient<Channel>> {
            let address = devnet.members().get(to).context("member")?.peer_address();
            Ok(PeerClient::new(connect(devnet, &address, Some(identity(devnet, 1, "operator")?))?))
        };
        // Nonces for the leaf are the owner's only; unbound ones are for the asking.
        let mut sets = vec![spark_proto::spark::SigningCommitments::default(); 3];
        for to in [0usize, 2] {
            let ask = |leaf_ids: Vec<String>| signer::CommitNoncesRequest {
                count: 3,
                identity: alice.id_bytes(),
                leaf_ids,
            };
            let bound = evil(to)?.commit_nonces(ask(vec![leaf.clone()])).await;
            ensure!(bound.is_err(), "operator {to} gave nonces of a leaf to its previous owner");
            let free = evil(to)?.commit_nonces(ask(Vec::new())).await?.into_inner().commitments;
            let name = members.get(to).context("member")?.index.identifier_hex();
            for (set, pair) in sets.iter_mut().zip(free) {
                set.signing_commitments.insert(name.clone(), pair);
            }
        }
        let step = before.refund_timelock()?.step_down()?;
        let package = alice.send(&before, &alice.id(), step, sets, &honest)?;
        let transfer = spark_rules::operation::transfer_id(&package.request.transfer_id)?;
        let sender = &package.request.owner_identity_public_key;
        let id = spark_rules::ids::OperationId::derive("spark/send", &[sender, transfer.as_bytes()]);
        let operation = |coordinator, attempt| peer::Operation {
            operation_id: id.as_bytes().to_vec(),
            attempt,
            federation_epoch: 1,
            coordinator,
            request: Some(Kind::Send(package.request.clone())),
        };
        let release = |attempt, certificate| signer::ReleaseRequest {
            operation_id: id.as_bytes().to_vec(),
            attempt,
            certificate,
            stage: 0,
            signatures: Vec::new(),
            commits: Vec::new(),
        };
        for to in [0usize, 2] {
            let mut peer = evil(to)?;
            let foreign = peer.prepare(operation(2, 0)).await.err().context("spoke for another operator")?;
            ensure!(foreign.code() == Code::PermissionDenied, "{foreign:?}");
            let vote = peer.prepare(operation(1, 0)).await?.into_inner().vote.context("vote")?;
            ensure!(vote.choice() != peer::Choice::Yes, "{vote:?}");
            for certificate in certificates(&vote) {
                let got = peer.release(release(0, certificate)).await;
                ensure!(got.is_err(), "operator {to} released a share: {got:?}");
            }
            // The same with the peer's operator process in the attacker's hands: its signer refuses for itself.
            let stolen =
                connect(devnet, &signer_address(devnet, to)?, Some(identity(devnet, to, "operator")?))?;
            let mut own = SignerClient::new(stolen);
            let request = signer::PrepareRequest { operation: Some(operation(1, 1)) };
            let vote = own.prepare(request).await?.into_inner().vote.context("vote")?;
            ensure!(vote.choice() == peer::Choice::No && vote.reason == "NOT_OWNER", "{vote:?}");
            for certificate in certificates(&vote) {
                let got = own.release(release(1, certificate)).await;
                ensure!(got.is_err(), "signer {to} released a share: {got:?}");
            }
        }
        // The leaf is its owner's, at every operator.
        drop(alice);
        ensure!(
            Rogue::of(&bob)?.statuses(&leaf).await? == ["AVAILABLE"; 3],
            "the attack left a trace on the leaf"
        );
        Ok(())
    })
}

/// None, an empty one, one of a vote that is no YES, and one with that vote bent.
fn certificates(vote: &peer::Vote) -> Vec<Option<peer::Certificate>> {
    let mut bent = vote.clone();
    bent.set_choice(peer::Choice::Yes);
    bent.digest = vec![7; 32];
    let three = |vote: &peer::Vote| Some(peer::Certificate { votes: vec![vote.clone(); 3] });
    vec![None, Some(peer::Certificate { votes: Vec::new() }), three(vote), three(&bent)]
}
