//! Children that never outlive us.
//!
//! Each child leads a process group of its own, which is killed when its [`Process`] is dropped. Should we be
//! killed ourselves, the kernel kills the children: they are started through `setpriv --pdeathsig KILL`. That
//! signal is bound to the *thread* that forked, so all children are forked by one thread that never ends. It
//! reaches the children alone: what they fork themselves must notice (PostgreSQL's backends do).

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::future::Future;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{OnceLock, mpsc};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::user::UnixUser;

const POLL: Duration = Duration::from_millis(20);
/// How much of a log an error message quotes.
const LOG_TAIL: usize = 2_000;

#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    #[error("{name}: cannot be started")]
    Spawn { name: String, source: io::Error },
    #[error("{name}: log file {path} cannot be opened")]
    Log { name: String, path: PathBuf, source: io::Error },
    #[error("{name}: ended with {status} before it was ready; end of its log:\n{log}")]
    Ended { name: String, status: ExitStatus, log: String },
    #[error("{name}: not ready after {waited:?}; end of its log:\n{log}")]
    NotReady { name: String, waited: Duration, log: String },
    #[error("{name}: signal not delivered")]
    Signal { name: String, source: io::Error },
}

/// What to start: kept, so that it can be started again.
#[derive(Clone, Debug)]
pub struct Program {
    name: String,
    executable: PathBuf,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    user: Option<UnixUser>,
    log: PathBuf,
}

impl Program {
    /// `name` is what humans call it; standard output and error are appended to `log`.
    pub fn new(name: impl Into<String>, executable: impl Into<PathBuf>, log: impl Into<PathBuf>) -> Self {
        Self {
            name: name.into(),
            executable: executable.into(),
            args: Vec::new(),
            env: Vec::new(),
            user: None,
            log: log.into(),
        }
    }

    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((key.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Runs as another user; needs root.
    pub fn user(mut self, user: Option<UnixUser>) -> Self {
        self.user = user;
        self
    }

    fn command(&self, log: File) -> io::Result<Command> {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]);
        if let Some(user) = &self.user {
            // By setpriv and not by `Command::uid`: a change of user clears the death signal, and setpriv
            // knows the order.
            command.args([
                "--reuid",
                &user.uid.to_string(),
                "--regid",
                &user.gid.to_string(),
                "--clear-groups",
            ]);
        }
        command.arg("--").arg(&self.executable).args(&self.args);
        command.envs(self.env.iter().map(|(key, value)| (key, value)));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        command.process_group(0);
        Ok(command)
    }
}

/// A supervised child: killed with its whole process group when dropped.
#[derive(Debug)]
pub struct Process {
    program: Program,
    child: Option<Child>,
}

impl Process {
    pub fn start(program: Program) -> Result<Self, ProcessError> {
        let mut process = Self { program, child: None };
        process.launch()?;
        Ok(process)
    }

    pub fn name(&self) -> &str {
        &self.program.name
    }

    pub fn log_path(&self) -> &Path {
        &self.program.log
    }

    /// Process id of the child while it runs.
    pub fn id(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    pub fn is_running(&mut self) -> bool {
        matches!(self.child.as_mut().map(Child::try_wait), Some(Ok(None)))
    }

    /// Changes the command line for the next start.
    pub fn program_mut(&mut self) -> &mut Program {
        &mut self.program
    }

    /// Starts the program again after [`Process::kill`] or [`Process::stop`]; a running one is killed first.
    pub fn restart(&mut self) -> Result<(), ProcessError> {
        self.kill()?;
        self.launch()
    }

    /// `kill -9` to the whole process group, then waits until the child is gone.
    pub fn kill(&mut self) -> Result<(), ProcessError> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        let signalled = signal_group(&child, Signal::KILL);
        let waited = child.wait().map(drop);
        signalled
            .and(waited)
            .map_err(|source| ProcessError::Signal { name: self.program.name.clone(), source })
    }

    /// Asks the child to end with `signal` and kills it when it has not within `grace`. Says whether it went
    /// by itself.
    pub async fn stop(&mut self, signal: Signal, grace: Duration) -> Result<bool, ProcessError> {
        self.resume()?;
        self.signal(signal)?;
        let deadline = Instant::now() + grace;
        while self.is_running() {
            if Instant::now() >= deadline {
                self.kill()?;
                return Ok(false);
            }
            tokio::time::sleep(POLL).await;
        }
        // Takes what is left of its group along.
        self.kill()?;
        Ok(true)
    }

    /// Freezes the process group (SIGSTOP): to its peers it looks like a machine that hangs.
    pub fn pause(&self) -> Result<(), ProcessError> {
        self.signal(Signal::STOP)
    }

    /// Ends a [`Process::pause`].
    pub fn resume(&self) -> Result<(), ProcessError> {
        self.signal(Signal::CONT)
    }

    /// Waits until `ready` says so, for at most `within`. Fails at once when the child ends.
    pub async fn wait_ready<F, Fut>(&mut self, within: Duration, mut ready: F) -> Result<(), ProcessError>
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = bool>,
    {
        let deadline = Instant::now() + within;
        loop {
            if let Some(Ok(Some(status))) = self.child.as_mut().map(Child::try_wait) {
                let (name, log) = (self.program.name.clone(), self.log_tail());
                return Err(ProcessError::Ended { name, status, log });
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if matches!(tokio::time::timeout(left, ready()).await, Ok(true)) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let (name, log) = (self.program.name.clone(), self.log_tail());
                return Err(ProcessError::NotReady { name, waited: within, log });
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// The end of the log file, at most a screen.
    pub fn log_tail(&self) -> String {
        let bytes = fs::read(&self.program.log).unwrap_or_default();
        let start = bytes.len().saturating_sub(LOG_TAIL);
        String::from_utf8_lossy(bytes.get(start..).unwrap_or_default()).into_owned()
    }

    fn launch(&mut self) -> Result<(), ProcessError> {
        let name = || self.program.name.clone();
        let path = &self.program.log;
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .map_err(|source| ProcessError::Log { name: name(), path: path.clone(), source })?;
        let spawned = self.program.command(log).and_then(fork_from_lasting_thread);
        self.child = Some(spawned.map_err(|source| ProcessError::Spawn { name: name(), source })?);
        Ok(())
    }

    fn signal(&self, signal: Signal) -> Result<(), ProcessError> {
        let Some(child) = &self.child else { return Ok(()) };
        signal_group(child, signal)
            .map_err(|source| ProcessError::Signal { name: self.program.name.clone(), source })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Nobody is left to be told of a failure.
        let _ = self.kill();
    }
}

fn signal_group(child: &Child, signal: Signal) -> io::Result<()> {
    match kill_process_group(Pid::from_child(child), signal) {
        // Already gone, which is what a signal to it would find anyway.
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

type SpawnOrder = (Command, mpsc::Sender<io::Result<Child>>);

fn fork_from_lasting_thread(command: Command) -> io::Result<Child> {
    static SPAWNER: OnceLock<mpsc::Sender<SpawnOrder>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (orders, incoming) = mpsc::channel::<SpawnOrder>();
        std::thread::spawn(move || {
            for (mut command, answer) in incoming {
                // The one who ordered may have gone; dropping the child handle leaves the child to its fate,
                // which is the death signal.
                let _ = answer.send(command.spawn());
            }
        });
        orders
    });
    let gone = || io::Error::other("the thread that starts programs is gone");
    let (answer, outcome) = mpsc::channel();
    spawner.send((command, answer)).map_err(|_| gone())?;
    outcome.recv().map_err(|_| gone())?
}
