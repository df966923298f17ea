//! The groups of who is at the other end of a Unix socket. `SO_PEERCRED` tells the first one alone; who was put into a group
//! with `usermod -aG` has it among the others.

use std::os::fd::{AsFd, AsRawFd as _};

/// Groups that there is room for at first. More cost one more call.
const USUAL: usize = 32;

/// The most groups of one user that Linux allows (`NGROUPS_MAX` in limits.h).
const MOST: usize = 65_536;

/// Bytes of one group's number.
const WIDTH: usize = size_of::<libc::gid_t>();

/// The groups that the peer had when it connected. None where the system cannot tell: then its user and first group decide.
pub(super) fn of_peer(socket: impl AsFd) -> Vec<u32> {
    let mut groups = vec![0; USUAL];
    for _ in 0..2 {
        let room = groups.len();
        match ask(&socket, &mut groups) {
            Some(have) if have <= room => {
                groups.truncate(have);
                return groups;
            }
            Some(have) => groups.resize(have.min(MOST), 0),
            None => return Vec::new(),
        }
    }
    Vec::new()
}

/// Fills in the groups where there is room for all of them; their number in any case.
fn ask(socket: &impl AsFd, groups: &mut [u32]) -> Option<usize> {
    let mut bytes = libc::socklen_t::try_from(groups.len() * WIDTH).ok()?;
    let descriptor = socket.as_fd().as_raw_fd();
    #[expect(unsafe_code, reason = "nothing wraps this option of a socket")]
    // SAFETY: the descriptor is open while it is borrowed; the pointers are those of a slice and of a number that live during
    // the call, and the kernel writes no more than the bytes that it is told of.
    let result = unsafe {
        libc::getsockopt(
            descriptor,
            libc::SOL_SOCKET,
            libc::SO_PEERGROUPS,
            groups.as_mut_ptr().cast(),
            &raw mut bytes,
        )
    };
    let short = result != 0 && std::io::Error::last_os_error().raw_os_error() == Some(libc::ERANGE);
    (result == 0 || short).then_some(usize::try_from(bytes).ok()? / WIDTH)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use rustix::process::Gid;

    use super::*;

    /// Credentials belong to a thread, so one of its own changes nothing for the others.
    fn peer_with(groups: &[u32]) -> Option<UnixStream> {
        let gids: Vec<Gid> = groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
        let inside = move || {
            rustix::thread::set_thread_groups(&gids).ok()?;
            UnixStream::pair().ok().map(|(ours, _)| ours)
        };
        std::thread::Builder::new().spawn(inside).unwrap().join().unwrap()
    }

    #[test]
    fn few_and_many() {
        let many: Vec<u32> = (5000..5100).collect();
        for groups in [&[][..], &[4242, 4243], &many[..USUAL], &many[..=USUAL], &many] {
            let Some(stream) = peer_with(groups) else {
                return println!("skipped: only root changes groups");
            };
            assert_eq!(of_peer(&stream), groups);
        }
    }

    #[test]
    fn what_is_no_socket_has_none() {
        assert!(of_peer(std::fs::File::open("/dev/null").unwrap()).is_empty());
    }
}
