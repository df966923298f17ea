//! Where a socket may be put, and what becomes of what stands there.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use promptd::socket::{BindError, bind};

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn bound_with_its_mode_and_removed_at_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    for expected in [0o660, 0o600, 0o666] {
        let bound = bind(&path, expected).unwrap();
        assert_eq!(mode(&path), expected);
        let group = std::fs::metadata(&path).unwrap().gid();
        assert_eq!(group, rustix::process::getegid().as_raw(), "the unit's group may connect");
        UnixStream::connect(&path).unwrap();
        drop(bound);
        assert!(!path.exists());
    }
}

#[tokio::test]
async fn another_ones_socket_is_not_removed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let bound = bind(&path, 0o600).unwrap();
    std::fs::remove_file(&path).unwrap();
    let _other = UnixListener::bind(&path).unwrap();
    drop(bound);
    UnixStream::connect(&path).unwrap();
}

#[tokio::test]
async fn paths_have_a_longest_length() {
    let dir = tempfile::tempdir().unwrap();
    let named =
        |length: usize| dir.path().join("x".repeat(length - dir.path().as_os_str().len() - 1));
    drop(bind(&named(107), 0o600).unwrap());
    let error = bind(&named(108), 0o600).unwrap_err();
    assert!(matches!(error, BindError::TooLong { have: 108, limit: 107, .. }), "{error}");
    assert!(error.to_string().contains("108") && error.to_string().contains("107"), "{error}");
}

#[tokio::test]
async fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let live = UnixListener::bind(&path).unwrap();
    let error = bind(&path, 0o600).unwrap_err();
    let pid = i32::try_from(std::process::id()).unwrap();
    assert!(matches!(error, BindError::InUse { pid: Some(who), .. } if who == pid), "{error}");
    let text = error.to_string();
    assert!(
        text.contains("in use by another process") && text.contains(&path.display().to_string()),
        "{text}"
    );
    drop(live);
    assert!(path.exists());
    let bound = bind(&path, 0o600).unwrap();
    UnixStream::connect(&path).unwrap();
    drop(bound);
}

#[tokio::test]
async fn what_is_not_ours_stays() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("target");
    drop(UnixListener::bind(&target).unwrap());
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&target, &link).unwrap();
    let dangling = dir.path().join("dangling");
    std::os::unix::fs::symlink(dir.path().join("nowhere"), &dangling).unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    for (path, what) in
        [(&link, "symbolic link"), (&dangling, "symbolic link"), (&file, "not a socket")]
    {
        let before = std::fs::symlink_metadata(path).unwrap().ino();
        let error = bind(path, 0o600).unwrap_err();
        assert!(
            matches!(error, BindError::NotOurs { .. }) && error.to_string().contains(what),
            "{error}"
        );
        assert_eq!(std::fs::symlink_metadata(path).unwrap().ino(), before);
    }
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
    let error = bind(dir.path(), 0o600).unwrap_err();
    assert!(error.to_string().contains("a directory"), "{error}");
}

#[tokio::test]
async fn directories_must_be_there() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("run/promptd");
    let error = bind(&missing.join("s"), 0o600).unwrap_err();
    assert!(
        matches!(&error, BindError::NoDirectory { directory, .. } if *directory == missing),
        "{error}"
    );
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let error = bind(&file.join("s"), 0o600).unwrap_err();
    assert!(matches!(error, BindError::Io { .. }), "{error}");
}
