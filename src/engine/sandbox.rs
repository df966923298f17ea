//! What the engine takes from itself before it opens a library or a model: other files, new files, sockets, other programs and
//! the system calls of an administrator. What ONNX Runtime parses may be wrong in a way that nobody knows yet.
//!
//! Landlock (<https://docs.kernel.org/userspace-api/landlock.html>) keeps the files, seccomp the system calls. A kernel that has
//! one of them not, or not all of it, gives what it has (Landlock came with Linux 5.13), and the log says what is missing.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, PathBeneath, PathFd, Ruleset,
    RulesetAttr as _, RulesetCreated, RulesetCreatedAttr as _, RulesetError, RulesetStatus, Scope,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, sock_filter,
};

/// The newest interface whose rights are known here; an older kernel keeps fewer.
const KNOWN: ABI = ABI::V6;

/// What any program reads: the system's libraries, what the kernel tells of processors and memory, the time zone. Other
/// processes' memory and environment stay closed: Landlock treats these files of `/proc` like a debugger's reach.
const READ: [&str; 10] = [
    "/usr",
    "/lib",
    "/lib64",
    // Libraries of systems that keep none of them in /usr.
    "/nix/store",
    "/gnu/store",
    "/proc",
    "/sys",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf.d",
    "/etc/localtime",
];

/// What starts `promptd form`: this program, and the loader that its header names.
const EXECUTE: [&str; 3] =
    ["/proc/self/exe", "/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1"];

/// Devices that libraries take for granted.
const DEVICES: [&str; 5] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"];

/// How the nodes of NVIDIA's and of other graphics drivers begin, on PCs and on Jetson.
const ACCELERATORS: [&str; 5] = ["nvidia", "nvhost", "nvmap", "nvgpu", "dri"];

/// Where NVIDIA's driver gives the threads that it starts their names, without which it does not start at all (CUDA error 304). Of this
/// process alone.
const THREADS: &str = "/proc/self/task";

/// What an engine cannot do without.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Files and folders that are read, beside what every program reads.
    pub read: Vec<PathBuf>,
    /// A provider for an accelerator lies beside the library: its devices are used, it writes code while it runs, names its threads
    /// and waits at a socket.
    pub accelerator: bool,
}

impl Needs {
    /// What this model and this library need; `library_path` is `LD_LIBRARY_PATH`.
    pub fn of(model: &Path, library: &Path, library_path: Option<&OsStr>) -> Needs {
        let mut read = vec![model.to_owned()];
        // A graph may be named instead of its folder; then the folder is the one around it, or around `onnx/`.
        if let Ok(graph) = model.canonicalize()
            && graph.is_file()
            && let Some(folder) = graph.parent()
        {
            let is_onnx = folder.file_name().is_some_and(|name| name == "onnx");
            read.extend(folder.parent().filter(|_| is_onnx).map(Path::to_owned));
            read.push(folder.to_owned());
        }
        let mut providers = Vec::new();
        let folders = [library.parent().map(Path::to_owned), parent_of_target(library)];
        for folder in folders.into_iter().flatten() {
            let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
            providers.extend(entries.map(|entry| entry.path()).filter(|path| is_runtime(path)));
        }
        let named = |path: &PathBuf, word| path.to_string_lossy().contains(word);
        let accelerator =
            providers.iter().any(|path| named(path, "_cuda") || named(path, "_tensorrt"));
        read.push(library.to_owned());
        read.append(&mut providers);
        read.extend(library_path.into_iter().flat_map(std::env::split_paths));
        Needs { read, accelerator }
    }
}

fn parent_of_target(file: &Path) -> Option<PathBuf> {
    file.canonicalize().ok()?.parent().map(Path::to_owned)
}

fn is_runtime(file: &Path) -> bool {
    file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("libonnxruntime"))
}

/// How many of the rights to files that are known here the kernel took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Files {
    /// All.
    All,
    /// As many as this kernel knows.
    Some,
    /// None: the kernel has no Landlock, it is switched off, or a filter keeps its calls away.
    None,
}

/// How much was taken.
#[derive(Debug)]
pub struct Confined {
    /// Files, new files, programs, signals to others.
    pub files: Result<Files, RulesetError>,
    /// System calls.
    pub calls: Result<(), seccompiler::Error>,
}

impl Confined {
    /// Whether the kernel gave nothing.
    pub fn is_nothing(&self) -> bool {
        !matches!(self.files, Ok(Files::All | Files::Some)) && self.calls.is_err()
    }

    /// A line for the log: what is missing, as loud as it is bad.
    pub fn log(&self) {
        match &self.files {
            Ok(Files::All) => {}
            Ok(Files::Some) => tracing::debug!(
                "this kernel's Landlock knows not all rights to files: the engine keeps the others"
            ),
            Ok(Files::None) => tracing::warn!(
                "there is no Landlock: the engine may open every file that promptd's user may (it takes Linux 5.13 with \
                 `lsm=landlock,…`, and where systemd filters system calls, a libseccomp that knows Landlock's)"
            ),
            Err(error) => {
                tracing::warn!(%error, "the engine may open every file that promptd's user may");
            }
        }
        if let Err(error) = &self.calls {
            tracing::warn!(%error, "the engine may make every system call that promptd may");
        }
    }
}

/// Takes from this thread, and from every thread and process that it starts from now on, what the engine does not need.
pub fn confine(needs: &Needs) -> Confined {
    Confined { files: confine_files(needs), calls: confine_calls(needs.accelerator) }
}

fn confine_files(needs: &Needs) -> Result<Files, RulesetError> {
    let reading = AccessFs::ReadFile | AccessFs::ReadDir;
    let using = reading | AccessFs::WriteFile | AccessFs::IoctlDev;
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(KNOWN))?
        .handle_access(AccessNet::from_all(KNOWN))?
        .scope(Scope::from_all(KNOWN))?
        .create()?;
    let mut devices: Vec<PathBuf> = DEVICES.iter().map(PathBuf::from).collect();
    if needs.accelerator {
        let entries = std::fs::read_dir("/dev").into_iter().flatten().flatten();
        devices.extend(entries.map(|entry| entry.path()).filter(|path| is_accelerator(path)));
        let naming = reading | AccessFs::WriteFile | AccessFs::Truncate;
        rules = allow(rules, Path::new(THREADS), naming)?;
    }
    for (paths, access) in [
        (READ.iter().map(PathBuf::from).collect(), reading),
        (needs.read.clone(), reading),
        (EXECUTE.iter().map(PathBuf::from).collect(), reading | AccessFs::Execute),
        (devices, using),
    ] {
        for path in paths {
            rules = allow(rules, &path, access)?;
        }
    }
    Ok(match rules.restrict_self()?.ruleset {
        RulesetStatus::FullyEnforced => Files::All,
        RulesetStatus::PartiallyEnforced => Files::Some,
        RulesetStatus::NotEnforced => Files::None,
    })
}

fn is_accelerator(device: &Path) -> bool {
    let name = device.file_name().unwrap_or_default().to_string_lossy();
    ACCELERATORS.iter().any(|begin| name.starts_with(begin))
}

/// Lets a path and what is below it be used so. A path that is not there needs no rule.
fn allow(
    rules: RulesetCreated,
    path: &Path,
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, RulesetError> {
    let Ok(opened) = PathFd::new(path) else { return Ok(rules) };
    // The rights of a directory mean nothing to a file.
    let access = if path.is_dir() { access } else { access & AccessFs::from_file(KNOWN) };
    rules.add_rule(PathBeneath::new(opened, access))
}

/// System calls that no model needs and that a break-in would begin with.
const DENIED: [i64; 44] = [
    // Sockets: the one to the service is there already.
    libc::SYS_socket,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    // Surfaces of the kernel that exploits like, and administration.
    libc::SYS_io_uring_setup,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_fsopen,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_mount_setattr,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_quotactl,
    libc::SYS_acct,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_open_by_handle_at,
];

/// They fail with `EPERM`, as if the user might not.
fn confine_calls(accelerator: bool) -> Result<(), seccompiler::Error> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        DENIED.into_iter().map(|call| (call, Vec::new())).collect();
    // A new namespace is where a user becomes an administrator of sorts. The first argument of `clone` holds the flags.
    let namespaces = [
        libc::CLONE_NEWUSER,
        libc::CLONE_NEWNS,
        libc::CLONE_NEWPID,
        libc::CLONE_NEWNET,
        libc::CLONE_NEWIPC,
        libc::CLONE_NEWUTS,
        libc::CLONE_NEWCGROUP,
    ];
    let has = |argument, flags: i32| {
        let flags = u64::from(flags.unsigned_abs());
        let condition = SeccompCondition::new(
            argument,
            SeccompCmpArgLen::Qword,
            SeccompCmpOp::MaskedEq(flags),
            flags,
        )?;
        SeccompRule::new(vec![condition])
    };
    let clone = namespaces.into_iter().map(|flag| has(0, flag)).collect::<Result<_, _>>()?;
    rules.insert(libc::SYS_clone, clone);
    if accelerator {
        rules.insert(libc::SYS_socket, other_sockets()?);
        rules.retain(|call, _| ![libc::SYS_bind, libc::SYS_listen].contains(call));
    } else {
        // Memory that was written to never becomes code. Libraries are mapped as code in the first place.
        let writable_code = has(2, libc::PROT_WRITE | libc::PROT_EXEC)?;
        rules.insert(libc::SYS_mmap, vec![writable_code]);
        let code = has(2, libc::PROT_EXEC)?;
        rules.insert(libc::SYS_mprotect, vec![code.clone()]);
        rules.insert(libc::SYS_pkey_mprotect, vec![code]);
    }
    let refuse = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let machine = std::env::consts::ARCH.try_into()?;
    let filter: BpfProgram =
        SeccompFilter::new(rules, SeccompAction::Allow, refuse, machine)?.try_into()?;
    seccompiler::apply_filter(&filter)?;
    seccompiler::apply_filter(&unseen_calls())
}

/// All sockets but those of packets between processes of this machine. NVIDIA's driver waits at one of them for whoever wants to share
/// memory with this process, and does not start where it cannot; `connect` and `accept` stay closed, so nobody is reached by it.
fn other_sockets() -> Result<Vec<SeccompRule>, seccompiler::Error> {
    /// `SOCK_TYPE_MASK` of `linux/net.h`: the rest of the number are flags.
    const KIND: u64 = 0xf;
    let number = |value: i32| u64::from(value.unsigned_abs());
    let rule = |argument, operator, value| {
        SeccompRule::new(vec![SeccompCondition::new(
            argument,
            SeccompCmpArgLen::Dword,
            operator,
            value,
        )?])
    };
    let family = rule(0, SeccompCmpOp::Ne, number(libc::AF_UNIX));
    let kinds = (0..=KIND).filter(|kind| *kind != number(libc::SOCK_SEQPACKET));
    let kinds = kinds.map(|kind| rule(1, SeccompCmpOp::MaskedEq(KIND), kind));
    Ok(std::iter::once(family).chain(kinds).collect::<Result<_, _>>()?)
}

/// Calls that the other filter cannot look into fail with `ENOSYS`, as on a kernel that has them not: `clone3`, whose flags lie
/// in memory and which the C library replaces by `clone`, and on x86-64 the second set of numbers, x32, that means the same
/// calls.
fn unseen_calls() -> BpfProgram {
    /// `BPF_LD | BPF_W | BPF_ABS`, `BPF_JMP | BPF_JGE | BPF_K`, `BPF_JMP | BPF_JEQ | BPF_K`, `BPF_RET | BPF_K` of
    /// `linux/bpf_common.h`.
    const LOAD: u16 = 0x20;
    const AT_LEAST: u16 = 0x35;
    const EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    /// `__X32_SYSCALL_BIT`. On aarch64 no call has a number this large, and none is lost.
    const X32: u32 = 0x4000_0000;
    let clone3 = u32::try_from(libc::SYS_clone3).unwrap_or(u32::MAX);
    let missing = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs();
    let code = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    vec![
        // The number stands first in `struct seccomp_data`.
        code(LOAD, 0, 0, 0),
        code(AT_LEAST, 1, 0, X32),
        code(EQUAL, 0, 1, clone3),
        code(RETURN, 0, 0, missing),
        code(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]
}
