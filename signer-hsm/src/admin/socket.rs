//! Who may come in, and how many.

use std::{
    fs::File,
    io::{self, ErrorKind},
    os::{
        fd::AsRawFd as _,
        unix::{
            fs::FileTypeExt as _,
            net::{UnixListener as StdListener, UnixStream as StdStream},
        },
    },
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use rustix::fs::Mode;
use spark_proto::admin::signer::v1::signer_admin_server::SignerAdminServer;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{
    Server,
    server::{Connected, UdsConnectInfo},
};

use super::{Admin, MAX_MESSAGE};

/// Connections at a time: people, one command each.
const CONNECTIONS: usize = 4;
/// Calls of one connection at a time.
const CALLS: usize = 2;
/// Longest call: a rotation that waits for its confirmation, or a store that is opened.
const DEADLINE: Duration = Duration::from_secs(180);

/// After a connection that could not be taken.
const PAUSE: Duration = Duration::from_millis(200);

/// A path that fits into a socket's address, however long the real one is: through the open folder.
pub(super) fn address(path: &Path) -> io::Result<(File, PathBuf)> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().ok_or_else(|| io::Error::from(ErrorKind::InvalidInput))?;
    let folder = File::open(folder)?;
    let short = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name);
    Ok((folder, short))
}

/// Binds the socket, mode 0600. One that a former process left is replaced, one that somebody serves is not. To be
/// called before there are other threads, and before files are out of reach.
pub fn listen(path: &Path) -> io::Result<StdListener> {
    let (_folder, short) = address(path)?;
    match StdStream::connect(&short) {
        Ok(_) => return Err(io::Error::new(ErrorKind::AddrInUse, "another signer serves it")),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(_) if std::fs::symlink_metadata(path)?.file_type().is_socket() => std::fs::remove_file(path)?,
        Err(error) => return Err(error),
    }
    let before = rustix::process::umask(Mode::RWXG | Mode::RWXO | Mode::XUSR);
    let listener = StdListener::bind(&short);
    rustix::process::umask(before);
    let listener = listener?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Serves until it is dropped.
pub async fn serve(listener: StdListener, admin: Admin) -> anyhow::Result<()> {
    let listener = UnixListener::from_std(listener)?;
    let (connections, incoming) = mpsc::channel(1);
    let accept = accept(listener, connections);
    let service = SignerAdminServer::new(admin)
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let server = Server::builder()
        .timeout(DEADLINE)
        .concurrency_limit_per_connection(CALLS)
        .max_connection_age(DEADLINE)
        .add_service(service)
        .serve_with_incoming(ReceiverStream::new(incoming));
    tokio::select! {
        served = server => Ok(served?),
        () = accept => Ok(()),
    }
}

async fn accept(listener: UnixListener, connections: mpsc::Sender<io::Result<Connection>>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let own = rustix::process::geteuid().as_raw();
    loop {
        // Out of descriptors, say, because strangers hold them at the other listener: administration must outlive it.
        let (stream, user) = match listener.accept().await.and_then(|(s, _)| Ok((s.peer_cred()?.uid(), s))) {
            Ok((user, stream)) => (stream, user),
            Err(error) => {
                tracing::warn!(%error, "administration: a connection was not taken");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        if user != own && user != 0 {
            tracing::warn!(user, "administration refused to another user");
            continue;
        }
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            tracing::warn!(user, "administration: too many connections");
            continue;
        };
        if connections.send(Ok(Connection { stream, _place: place })).await.is_err() {
            return;
        }
    }
}

/// A connection and its place.
struct Connection {
    stream: UnixStream,
    _place: OwnedSemaphorePermit,
}

impl Connected for Connection {
    type ConnectInfo = UdsConnectInfo;

    fn connect_info(&self) -> UdsConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_socket_is_private_replaces_a_stale_one_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        // Longer than an address may be.
        let deep = folder.path().join("d".repeat(100)).join("e".repeat(100));
        std::fs::create_dir_all(&deep).unwrap();
        let path = deep.join("signer.sock");
        let first = listen(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(listen(&path).unwrap_err().kind(), ErrorKind::AddrInUse);
        drop(first);
        assert!(path.exists());
        listen(&path).unwrap();
        let file = deep.join("file");
        std::fs::write(&file, "x").unwrap();
        assert!(listen(&file).is_err());
        assert_eq!(std::fs::read(&file).unwrap(), b"x");
    }
}
