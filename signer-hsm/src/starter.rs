//! The one process that may start programs, so that the signer itself need not.
//!
//! It is started before the signer gives up its rights, holds no secret, knows one program (this one) and starts it
//! with one purpose: to look at the roots ([`crate::confirmer`]). The signer hands it one end of a socket; the new
//! process has that end as standard input and output, and whatever is said there the starter does not hear.

use std::{
    io::{self, IoSlice, IoSliceMut},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{net::UnixStream, process::CommandExt as _},
    },
    path::Path,
    process::{Child, Command, Stdio},
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

use crate::config::Config;

/// This very program, also after its file was replaced: an upgrade changes nothing for a signer that runs.
const PROGRAM: &str = "/proc/self/exe";
const NAME: &str = "spark-signer";

/// The other process, from the signer's side. It ends with this value.
#[derive(Debug)]
pub struct Starter {
    orders: UnixStream,
    _child: Child,
}

impl Starter {
    /// Starts `spark-signer starter --config path`.
    pub fn launch(config: &Path) -> io::Result<Self> {
        let (orders, theirs) = UnixStream::pair()?;
        let child = Command::new(PROGRAM)
            .arg0(NAME)
            .arg("--config")
            .arg(config)
            .arg("starter")
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .spawn()?;
        Ok(Self { orders, _child: child })
    }

    /// Has a confirmer started and returns the connection with it. One that was started before is ended. Where none
    /// could be started, the connection ends at once.
    pub fn confirmer(&self) -> io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        let theirs = [theirs.as_fd()];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(&theirs)) {
            return Err(io::Error::other("no room for a descriptor"));
        }
        sendmsg(&self.orders, &[IoSlice::new(&[1])], &mut control, SendFlags::NOSIGNAL)?;
        Ok(ours)
    }
}

/// The starter's side: orders come in by standard input, until it ends.
pub fn serve(config: &Config) -> anyhow::Result<()> {
    let orders = io::stdin();
    let mut running: Option<Child> = None;
    while let Some(stream) = next_order(orders.as_fd())? {
        end(&mut running);
        match start(&config.path, stream) {
            Ok(child) => running = Some(child),
            Err(error) => tracing::error!(%error, "the confirmer does not start"),
        }
    }
    end(&mut running);
    Ok(())
}

fn next_order(orders: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0u8];
    let received = recvmsg(orders, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    if received.bytes == 0 {
        return Ok(None);
    }
    let stream = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    stream.map(Some).ok_or_else(|| io::Error::other("an order without a connection"))
}

fn start(config: &Path, stream: OwnedFd) -> io::Result<Child> {
    let output = stream.try_clone()?;
    Command::new(PROGRAM)
        .arg0(NAME)
        .arg("--config")
        .arg(config)
        .arg("confirmer")
        .stdin(stream)
        .stdout(output)
        .spawn()
}

/// Whatever it does, also hang within the library.
fn end(running: &mut Option<Child>) {
    if let Some(mut child) = running.take() {
        // It may be gone already.
        let _gone = child.kill();
        let _gone = child.wait();
    }
}
