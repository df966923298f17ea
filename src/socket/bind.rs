//! Puts a listening socket at a path, and takes it away again. Never replaces what is not a dead socket of our own.

use std::fs::Metadata;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, chmod, fchmod};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind as bind_fd, connect, listen,
    socket_with, sockopt,
};
use tokio::net::UnixListener;

use super::connection::Listener;
use super::tls::Tls;

/// The most bytes a socket's path may have: `sun_path` in unix(7) has 108, the last one for the NUL.
const MAX_PATH_BYTES: usize = 107;

/// Connections that wait to be accepted. The accept loop is quick; this bridges a busy moment.
const BACKLOG: i32 = 128;

/// A listening socket at its path. Dropping it removes the file, if it is still the one that was made here.
#[derive(Debug)]
pub struct Bound {
    listener: Listener,
    /// `None` where the listener is somebody else's, who keeps it when this process ends.
    file: Option<File>,
}

impl Bound {
    /// The listener, and what removes the file when dropped.
    pub(super) fn into_parts(self) -> (Listener, Option<File>) {
        (self.listener, self.file)
    }
}

/// The file of a listening socket: removed when dropped, if it is still the same one.
#[derive(Debug)]
pub(super) struct File {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Drop for File {
    fn drop(&mut self) {
        let same = |data: &Metadata| data.dev() == self.device && data.ino() == self.inode;
        if std::fs::symlink_metadata(&self.path).is_ok_and(|data| same(&data))
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the socket; the next start replaces it");
        }
    }
}

/// Why there is no socket at a path.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The kernel has no room for the path.
    #[error("the socket path `{}` has {have} bytes; at most {limit} are possible: choose a shorter one", .path.display())]
    TooLong {
        /// The path.
        path: PathBuf,
        /// Its bytes.
        have: usize,
        /// The most there can be.
        limit: usize,
    },
    /// The directory is not there.
    #[error("the directory of the socket `{}` does not exist; create `{}`, or let systemd do it with RuntimeDirectory=", .path.display(), .directory.display())]
    NoDirectory {
        /// The path.
        path: PathBuf,
        /// The directory.
        directory: PathBuf,
    },
    /// Somebody listens there.
    #[error("the socket `{}` is in use by another process{}; stop it, or choose another path", .path.display(), .pid.map_or(String::new(), |pid| format!(" ({pid})")))]
    InUse {
        /// The path.
        path: PathBuf,
        /// The process, if it is known.
        pid: Option<i32>,
    },
    /// Something else stands there.
    #[error("`{}` is {what} and stays as it is; choose another path for the socket, or remove it yourself", .path.display())]
    NotOurs {
        /// The path.
        path: PathBuf,
        /// What stands there.
        what: &'static str,
    },
    /// The system refused.
    #[error("cannot {action} the socket `{}`", .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The path.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

/// Listens at a path; `mode` says who may connect. A dead socket that belongs to us is replaced, nothing else is.
///
/// # Errors
/// See [`BindError`]; each names the path and the way out.
///
/// # Panics
/// Outside a tokio runtime: the listener belongs to the one it is made in.
pub fn bind(path: &Path, mode: u32) -> Result<Bound, BindError> {
    let failed = |action| {
        move |source: Errno| BindError::Io { action, path: path.to_owned(), source: source.into() }
    };
    let have = path.as_os_str().as_bytes().len();
    if have > MAX_PATH_BYTES {
        return Err(BindError::TooLong { path: path.to_owned(), have, limit: MAX_PATH_BYTES });
    }
    make_room(path)?;

    let address = SocketAddrUnix::new(path).map_err(failed("name"))?;
    let socket = socket().map_err(failed("make"))?;
    let mode = Mode::from_raw_mode(mode);
    // Linux gives the file the mode of the socket, less the umask: nobody can slip in before the chmod below.
    fchmod(&socket, mode).map_err(failed("set the permissions of"))?;
    bind_fd(&socket, &address).map_err(|error| match error {
        Errno::NOENT => {
            BindError::NoDirectory { path: path.to_owned(), directory: directory(path) }
        }
        Errno::ADDRINUSE => BindError::InUse { path: path.to_owned(), pid: None },
        error => failed("bind")(error),
    })?;
    let file = std::fs::symlink_metadata(path)
        .map(|data| File { path: path.to_owned(), device: data.dev(), inode: data.ino() })
        .map_err(|source| BindError::Io { action: "find", path: path.to_owned(), source })?;
    // The umask may have taken away what the operator wants to give.
    chmod(path, mode).map_err(failed("set the permissions of"))?;
    listen(&socket, BACKLOG).map_err(failed("listen on"))?;
    let listener = UnixListener::from_std(socket.into());
    let listener = listener.map_err(|source| BindError::Io {
        action: "listen on",
        path: path.to_owned(),
        source,
    })?;
    Ok(Bound { listener: Listener::Unix(listener), file: Some(file) })
}

/// Listens on TCP, with TLS where it is given.
///
/// # Errors
/// [`BindError::Io`] with the address and the system's reason.
///
/// # Panics
/// Outside a tokio runtime, as [`bind`].
pub fn bind_tcp(address: std::net::SocketAddr, tls: Option<Tls>) -> Result<Bound, BindError> {
    let failed =
        |source| BindError::Io { action: "listen on", path: address.to_string().into(), source };
    let listener = std::net::TcpListener::bind(address).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let listener = tokio::net::TcpListener::from_std(listener).map_err(failed)?;
    Ok(Bound { listener: Listener::Tcp(listener, tls), file: None })
}

/// The listening sockets that the service manager opened, by their names (`sd_listen_fds(3)`). They outlive this process, so
/// that a client that comes while the service starts again waits instead of being refused.
///
/// # Errors
/// A descriptor that is no listening Unix socket.
///
/// # Panics
/// Outside a tokio runtime, as [`bind`].
pub fn inherited(names: Option<&str>) -> io::Result<Vec<(String, Bound)>> {
    let mut passed = listenfd::ListenFd::from_env();
    let names: Vec<&str> = names.map(|names| names.split(':').collect()).unwrap_or_default();
    let mut bounds = Vec::with_capacity(passed.len());
    for at in 0..passed.len() {
        let Some(listener) = passed.take_unix_listener(at)? else { continue };
        listener.set_nonblocking(true)?;
        // The engine must not hold it open.
        rustix::io::fcntl_setfd(&listener, rustix::io::FdFlags::CLOEXEC)?;
        let name = names.get(at).map_or_else(|| "unknown".to_owned(), |name| (*name).to_owned());
        let listener = Listener::Unix(UnixListener::from_std(listener)?);
        bounds.push((name, Bound { listener, file: None }));
    }
    Ok(bounds)
}

/// Sees that nothing stands at the path; removes a dead socket that is ours.
fn make_room(path: &Path) -> Result<(), BindError> {
    let failed =
        |action| move |source: io::Error| BindError::Io { action, path: path.to_owned(), source };
    let data = match std::fs::symlink_metadata(path) {
        Ok(data) => data,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("look at")(error)),
    };
    let not_ours = |what| Err(BindError::NotOurs { path: path.to_owned(), what });
    let kind = data.file_type();
    if kind.is_symlink() {
        return not_ours("a symbolic link");
    } else if kind.is_dir() {
        return not_ours("a directory");
    } else if !kind.is_socket() {
        return not_ours("not a socket");
    }
    match probe(path) {
        Ok(pid) => return Err(BindError::InUse { path: path.to_owned(), pid }),
        Err(Errno::CONNREFUSED) => {}
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(failed("connect to")(error.into())),
    }
    let user = rustix::process::geteuid();
    if data.uid() != user.as_raw() && !user.is_root() {
        return not_ours("a dead socket of another user");
    }
    // Another promptd that starts at the same moment may have put its own there since.
    let still = std::fs::symlink_metadata(path)
        .is_ok_and(|now| now.ino() == data.ino() && now.dev() == data.dev());
    if !still {
        return Err(BindError::InUse { path: path.to_owned(), pid: None });
    }
    tracing::info!(path = %path.display(), "a dead socket is replaced");
    std::fs::remove_file(path).map_err(failed("remove"))
}

/// Whether somebody listens, and who. Never waits: a full backlog says that somebody does.
fn probe(path: &Path) -> Result<Option<i32>, Errno> {
    let socket = socket()?;
    match connect(&socket, &SocketAddrUnix::new(path)?) {
        Ok(()) => {
            Ok(sockopt::socket_peercred(&socket).ok().map(|peer| peer.pid.as_raw_nonzero().get()))
        }
        Err(Errno::AGAIN) => Ok(None),
        Err(error) => Err(error),
    }
}

fn socket() -> Result<rustix::fd::OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

fn directory(path: &Path) -> PathBuf {
    path.parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .map_or_else(|| PathBuf::from("."), Path::to_owned)
}
