//! HTTP over TCP: only with a key, to this machine's names, from no foreign page, and not without keys at all.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};

use serde_json::Value;

use crate::support::PATIENCE;
use crate::support::service::{Plan, Service};

const KEY: &str = "a-key-of-sixteen-bytes-or-more";

/// A port that was free a moment ago.
fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

fn ask(port: u16, path: &str, headers: &str) -> (u16, Value) {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nConnection: close\r\n{headers}\r\n").unwrap();
    let mut text = String::new();
    let _ = stream.read_to_string(&mut text);
    let status = text.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(text.split_once("\r\n\r\n").unwrap().1).unwrap())
}

#[test]
fn only_with_a_key() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key");
    std::fs::write(&file, format!("{KEY}\n")).unwrap();
    let port = free_port();
    let more = format!("[clients.phone]\napi_key_file = {file:?}\nadmin = true\n");
    let plan = Plan::demo()
        .with(&more)
        .with_socket(&format!("tcp = \"127.0.0.1:{port}\"\ntcp_hosts = [\"board.lan\"]\n"));
    let service = Service::start(&plan).ready();
    let bearer = format!("Authorization: Bearer {KEY}\r\n");
    for (headers, status) in [
        (format!("Host: 127.0.0.1:{port}\r\n{bearer}"), 200),
        (format!("Host: localhost\r\n{bearer}"), 200),
        (format!("Host: [::1]:{port}\r\n{bearer}"), 200),
        (format!("Host: Board.lan:{port}\r\n{bearer}"), 200),
        (format!("Host: localhost\r\nOrigin: http://localhost:3000\r\n{bearer}"), 200),
        (format!("Host: evil.example\r\n{bearer}"), 403),
        (format!("Host: localhost\r\nOrigin: https://evil.example\r\n{bearer}"), 403),
        (format!("Host: localhost\r\nOrigin: null\r\n{bearer}"), 403),
        ("Host: localhost\r\n".to_owned(), 401),
        ("Host: localhost\r\nAuthorization: Bearer another-key-of-many-bytes\r\n".to_owned(), 401),
        (format!("Host: localhost\r\nAuthorization: Basic {KEY}\r\n"), 401),
    ] {
        for path in ["/v1/models", "/metrics-are-not-there", "/health/live"] {
            let (got, body) = ask(port, path, &headers);
            let expected = if status == 200 && path.starts_with("/m") { 404 } else { status };
            assert_eq!(got, expected, "{path} {headers}: {body}");
        }
    }
    assert!(!service.log().contains(KEY));
}

#[test]
fn not_without_keys() {
    let plan = Plan::demo().with_socket(&format!("tcp = \"127.0.0.1:{}\"\n", free_port()));
    let mut service = Service::start(&plan);
    assert_eq!(service.wait().code(), Some(78));
    assert!(
        service.log().contains("`socket.tcp`") && service.log().contains("api_key_file"),
        "{}",
        service.log()
    );
}
