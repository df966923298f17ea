//! What the service meets in its surroundings: outputs that nobody reads, descriptors that clients pass along.

use std::io::{IoSlice, Read as _};
use std::mem::MaybeUninit;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::json;

use crate::support::service::{Outputs, Plan, Service, command};
use crate::support::{PATIENCE, http, wait_for};

#[test]
fn outputs_that_nobody_reads_end_nothing() {
    for outputs in [Outputs::Unread, Outputs::Full, Outputs::Closed] {
        let service = Service::start(&Plan { outputs, ..Plan::demo() }).ready();
        let ask = || {
            let prompt = json!({"prompt": "Once", "max_tokens": 3});
            http::post(&service.socket(), "/v1/completions", &prompt)
        };
        // A refusal is a line in the log as well.
        let wrong = http::post(&service.socket(), "/v1/completions", &json!({"prompt": 7}));
        assert_eq!((wrong.status, ask().status), (400, 200), "{outputs:?}");
        // The engine's outputs are the service's; the next engine's too.
        let engine = service.engine_pid().unwrap();
        crate::support::service::signal(engine, "KILL");
        wait_for("another engine", || service.engine_pid().filter(|pid| *pid != engine));
        wait_for("an answer", || (ask().status == 200).then_some(()));
        assert!(service.stop().0.success(), "{outputs:?}");
    }
}

#[test]
fn a_start_that_fails_says_so_by_its_exit_code_where_nobody_reads_more() {
    let folder = tempfile::tempdir().unwrap();
    for outputs in [Outputs::Unread, Outputs::Full, Outputs::Closed] {
        let mut serve = command(&["serve", "--config"]);
        serve.arg(folder.path().join("nothing.toml"));
        let mut child = outputs.of(serve, &folder.path().join("log")).spawn().unwrap();
        let status = wait_for("its end", || child.try_wait().unwrap());
        assert_eq!(status.code(), Some(78), "{outputs:?}");
    }
}

/// Descriptors that the service has open.
fn open(service: &Service) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", service.pid())).unwrap().count()
}

#[test]
fn descriptors_that_clients_pass_along_are_not_kept() {
    const REQUEST: &[u8] = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n";
    let service = Service::start(&Plan::demo()).ready();
    let file = std::fs::File::open("/dev/null").unwrap();
    let files = [file.as_fd(); 64];
    let mut connections = Vec::new();
    for connection in 0..4 {
        let mut stream = UnixStream::connect(service.socket()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
        let mut along = SendAncillaryBuffer::new(&mut space);
        assert!(along.push(SendAncillaryMessage::ScmRights(&files)));
        let sent = sendmsg(&stream, &[IoSlice::new(REQUEST)], &mut along, SendFlags::empty());
        assert_eq!(sent.unwrap(), REQUEST.len());
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200", "connection {connection}");
        connections.push(stream);
    }
    // 256 came along with four connections.
    assert!(open(&service) < 128, "{} descriptors", open(&service));
}
