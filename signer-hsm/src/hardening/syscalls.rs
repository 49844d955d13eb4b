//! seccomp: the system calls that a process keeps.
//!
//! The lists are names; numbers are the architecture's. What is not on them fails with EPERM, so that a library that
//! tries something sees an error and the signer goes on.

use seccompiler::{BpfProgram, TargetArch, apply_filter_all_threads, compile_from_json};
use serde_json::{Value, json};

use super::{HardeningConfig, HardeningError, SyscallMode};

/// What a process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Serves on sockets that are open. Starts nothing, loads nothing.
    Signer,
    /// Starts this same program, and no other that its file rules do not know.
    Starter,
    /// Loads the PKCS#11 library and looks.
    Confirmer,
}

/// Memory, time, threads, files: every program. Calls that only older architectures have stand in [`OLD`].
const COMMON: &[&str] = &[
    "brk",
    "clock_getres",
    "clock_gettime",
    "clock_nanosleep",
    "close",
    "dup",
    "exit",
    "exit_group",
    "faccessat",
    "faccessat2",
    "fadvise64",
    "fallocate",
    "fcntl",
    "fdatasync",
    "flock",
    "fstat",
    "fstatfs",
    "fsync",
    "ftruncate",
    "futex",
    "getcwd",
    "getdents64",
    "getegid",
    "geteuid",
    "getgid",
    "getpid",
    "getrandom",
    "getrusage",
    "gettid",
    "gettimeofday",
    "getuid",
    "lseek",
    "madvise",
    "mkdirat",
    "mlock",
    "mlock2",
    "mremap",
    "munlock",
    "munmap",
    "nanosleep",
    "newfstatat",
    "openat",
    "pipe2",
    "ppoll",
    "pread64",
    "pwrite64",
    "read",
    "readlinkat",
    "readv",
    "renameat",
    "renameat2",
    "restart_syscall",
    "rseq",
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "sched_getaffinity",
    "sched_yield",
    "set_robust_list",
    "sigaltstack",
    "statfs",
    "statx",
    "syncfs",
    "sysinfo",
    "umask",
    "uname",
    "unlinkat",
    "write",
    "writev",
];

/// What x86-64 has besides.
#[cfg(target_arch = "x86_64")]
const OLD: &[&str] =
    &["access", "lstat", "mkdir", "open", "poll", "readlink", "rename", "stat", "time", "unlink"];
#[cfg(not(target_arch = "x86_64"))]
const OLD: &[&str] = &[];

/// Sockets that are open, and the runtime's own signals.
const SERVER: &[&str] = &[
    "accept4",
    "epoll_create1",
    "epoll_ctl",
    "epoll_pwait",
    "epoll_pwait2",
    "eventfd2",
    "getpeername",
    "getsockname",
    "getsockopt",
    "recvfrom",
    "recvmsg",
    "sendmsg",
    "sendto",
    "setsockopt",
    "shutdown",
];
#[cfg(target_arch = "x86_64")]
const OLD_SERVER: &[&str] = &["epoll_wait"];
#[cfg(not(target_arch = "x86_64"))]
const OLD_SERVER: &[&str] = &[];

/// To start a program that hardens itself in turn.
const STARTER: &[&str] = &[
    "clone",
    "close_range",
    "dup3",
    "execve",
    "execveat",
    "kill",
    "landlock_add_rule",
    "landlock_create_ruleset",
    "landlock_restrict_self",
    "mlockall",
    "mmap",
    "mprotect",
    "pidfd_open",
    "pidfd_send_signal",
    "prctl",
    "prlimit64",
    "recvmsg",
    "seccomp",
    "set_tid_address",
    "setrlimit",
    "tgkill",
    "wait4",
    "waitid",
];
#[cfg(target_arch = "x86_64")]
const OLD_STARTER: &[&str] = &["arch_prctl", "dup2", "vfork"];
#[cfg(not(target_arch = "x86_64"))]
const OLD_STARTER: &[&str] = &[];

/// To a network HSM.
const CLIENT: &[&str] = &["connect", "getpeername", "getsockname", "getsockopt", "setsockopt", "shutdown"];
const CLIENT_IO: &[&str] = &["recvfrom", "recvmsg", "sendmsg", "sendto"];

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;
const CLONE_THREAD: u64 = 0x0001_0000;
const PROT_EXEC: u64 = 4;
const PR_SET_NAME: u64 = 15;
const PR_SET_VMA: u64 = 0x5356_4d41;
const AF_UNIX: u64 = 1;
const AF_INET: u64 = 2;
const AF_INET6: u64 = 10;
const SOCK_STREAM: u64 = 1;
/// The kind of a socket without its flags.
const SOCK_KIND: u64 = 0xf;
/// FIONBIO, FIOCLEX, TCGETS: sockets that do not block, and whether standard error is a terminal.
const IOCTLS: [u64; 3] = [0x5421, 0x5451, 0x5401];

/// Applies the list of `role` to all threads.
pub(super) fn filter(role: Role, mode: SyscallMode, config: &HardeningConfig) -> Result<(), HardeningError> {
    let failed = HardeningError::of("syscalls");
    let no_clone3 = compile(json!({
        "mismatch_action": "allow",
        "match_action": { "errno": ENOSYS },
        "filter": [{ "syscall": "clone3" }],
    }))?;
    let refused = if mode == SyscallMode::Log { json!("log") } else { json!({ "errno": EPERM }) };
    let list = compile(json!({
        "mismatch_action": refused,
        "match_action": "allow",
        "filter": rules(role, config),
    }))?;
    // The flags of clone3 lie in memory, where no filter sees them: the C library falls back to clone, where it does.
    if mode == SyscallMode::Enforce {
        // The list itself is applied next, which this filter leaves alone.
        apply_filter_all_threads(&no_clone3).map_err(&failed)?;
    }
    apply_filter_all_threads(&list).map_err(&failed)
}

fn compile(filter: Value) -> Result<BpfProgram, HardeningError> {
    let failed = HardeningError::of("syscalls");
    let architecture = TargetArch::try_from(std::env::consts::ARCH)
        .map_err(|_| HardeningError::new("syscalls", "no list for this architecture"))?;
    let text = json!({ "list": filter }).to_string();
    let mut programs = compile_from_json(text.as_bytes(), architecture).map_err(&failed)?;
    programs.remove("list").ok_or_else(|| HardeningError::new("syscalls", "filter is missing"))
}

fn rules(role: Role, config: &HardeningConfig) -> Vec<Value> {
    let mut whole: Vec<&str> = [COMMON, OLD].concat();
    let mut conditional = threads();
    match role {
        Role::Signer => {
            whole.extend(SERVER.iter().chain(OLD_SERVER));
            // No new code: the library is loaded.
            conditional.extend(["mmap", "mprotect"].map(|call| rule(call, &[masked(2, PROT_EXEC, 0)])));
            conditional.push(rule("socketpair", &[equal(0, AF_UNIX)]));
        }
        Role::Starter => whole.extend(STARTER.iter().chain(OLD_STARTER)),
        Role::Confirmer => whole.extend(["mmap", "mprotect"]),
    }
    // What the starter lacks, the process that it starts lacks, too.
    if !config.connect_ports.is_empty() {
        whole.extend(CLIENT.iter().chain(CLIENT_IO));
        conditional.extend(
            [AF_INET, AF_INET6]
                .map(|family| rule("socket", &[equal(0, family), masked(1, SOCK_KIND, SOCK_STREAM)])),
        );
    }
    whole.extend(config.extra_syscalls.iter().map(String::as_str));
    whole.sort_unstable();
    whole.dedup();
    // A call that is allowed as a whole must not have conditions, too: they would win.
    conditional
        .retain(|rule| rule.get("syscall").and_then(Value::as_str).is_none_or(|name| !whole.contains(&name)));
    conditional.extend(whole.iter().map(|name| json!({ "syscall": name })));
    conditional
}

/// Threads and no processes; a process may end itself by a signal.
fn threads() -> Vec<Value> {
    let mut rules = vec![
        rule("clone", &[masked(0, CLONE_THREAD, CLONE_THREAD)]),
        // Answered by the other filter.
        json!({ "syscall": "clone3" }),
        rule("tgkill", &[equal(0, std::process::id().into())]),
    ];
    rules.extend([PR_SET_NAME, PR_SET_VMA].map(|option| rule("prctl", &[equal(0, option)])));
    rules.extend(IOCTLS.map(|request| rule("ioctl", &[equal(1, request)])));
    // Limits are read, not set.
    rules.push(rule("prlimit64", &[equal_long(2, 0)]));
    rules
}

fn rule(name: &str, conditions: &[Value]) -> Value {
    json!({ "syscall": name, "args": conditions })
}

fn equal(argument: u8, value: u64) -> Value {
    json!({ "index": argument, "type": "dword", "op": "eq", "val": value })
}

fn equal_long(argument: u8, value: u64) -> Value {
    json!({ "index": argument, "type": "qword", "op": "eq", "val": value })
}

fn masked(argument: u8, mask: u64, value: u64) -> Value {
    json!({ "index": argument, "type": "dword", "op": { "masked_eq": mask }, "val": value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_list_compiles_here_and_unknown_names_do_not() {
        let mut config = HardeningConfig { connect_ports: vec![1792], ..Default::default() };
        for role in [Role::Signer, Role::Starter, Role::Confirmer] {
            compile(json!({
                "mismatch_action": "log", "match_action": "allow", "filter": rules(role, &config)
            }))
            .unwrap();
        }
        config.extra_syscalls = vec!["mprotect".into(), "warp".into()];
        let rules = rules(Role::Signer, &config);
        assert_eq!(rules.iter().filter(|rule| rule["syscall"] == "mprotect").count(), 1);
        let bad = json!({ "mismatch_action": "log", "match_action": "allow", "filter": rules });
        assert!(compile(bad).unwrap_err().to_string().contains("warp"));
    }
}
