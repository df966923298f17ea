//! HTTP over TCP: only with a key, to this machine's names, from no foreign page, encrypted where others can read along.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::support::service::{Plan, Service};
use crate::support::{PATIENCE, http};

const KEY: &str = "a-key-of-sixteen-bytes-or-more";
/// Its SHA-256.
const DIGEST: &str = "8ba60b8e776ecd57c6822884b199c597711a3634819ff3b32962da5af56f06bc";

/// A port that was free a moment ago.
fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

fn ask(port: u16, path: &str, headers: &str) -> (u16, Value) {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    exchange(&mut stream, path, headers)
}

fn exchange(
    stream: &mut (impl std::io::Read + std::io::Write),
    path: &str,
    headers: &str,
) -> (u16, Value) {
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

/// The status of an order that this client gives.
fn order(port: u16, method: &str, path: &str, key: &str) -> u16 {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let body = json!({"level": "info"}).to_string();
    let head = format!("Host: localhost\r\nConnection: close\r\nAuthorization: Bearer {key}");
    let length = body.len();
    write!(stream, "{method} {path} HTTP/1.1\r\n{head}\r\nContent-Length: {length}\r\n\r\n{body}")
        .unwrap();
    let mut text = String::new();
    let _ = stream.read_to_string(&mut text);
    text.split(' ').nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_guest_orders_nothing_and_ends_nobody_elses_prompt() {
    const GUEST: &str = "a-guests-key-of-sixteen-bytes";
    let folder = tempfile::tempdir().unwrap();
    let [operator, guest] = [("operator", KEY), ("guest", GUEST)].map(|(name, key)| {
        let file = folder.path().join(name);
        std::fs::write(&file, key).unwrap();
        file
    });
    let port = free_port();
    let more = format!(
        "[clients.operator]\napi_key_file = {operator:?}\nadmin = true\n[clients.guest]\napi_key_file = {guest:?}\n"
    );
    let plan = Plan::demo().with(&more).with_socket(&format!("tcp = \"127.0.0.1:{port}\"\n"));
    let service = Service::start(&plan).ready();
    assert_eq!(order(port, "POST", "/admin/loglevel", GUEST), 403);
    assert_eq!(order(port, "POST", "/admin/loglevel", KEY), 200);
    // A prompt of somebody else's that takes a while.
    let long = json!({"prompt": "Once", "regex": "[a-z]{400}", "max_tokens": 440, "stream": true});
    let mut events = http::stream(&service.socket(), "/v1/completions", &long);
    let id = events.next().unwrap()["id"].as_str().unwrap().to_owned();
    let path = format!("/v1/requests/{id}");
    for key in [GUEST, KEY] {
        assert_eq!(order(port, "DELETE", &path, key), 403);
    }
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

/// A certificate for `localhost` that nobody has signed, in these two files.
fn certify(certificate: &Path, key: &Path) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    std::fs::write(certificate, made.cert.pem()).unwrap();
    std::fs::write(key, made.signing_key.serialize_pem()).unwrap();
}

/// A GET over TLS by somebody who trusts this certificate alone.
fn ask_over_tls(port: u16, certificate: &Path, headers: &str) -> std::io::Result<(u16, Value)> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certificate).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    let tls = ClientConnection::new(Arc::new(config), name).unwrap();
    let tcp = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    tcp.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut stream = StreamOwned::new(tls, tcp);
    stream.conn.complete_io(&mut stream.sock)?;
    Ok(exchange(&mut stream, "/v1/models", headers))
}

#[test]
fn over_tls_with_a_certificate_that_is_renewed() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name);
    // The key stands in its file only as a digest.
    std::fs::write(place("key"), format!("sha256:{DIGEST}\n")).unwrap();
    certify(&place("cert.pem"), &place("key.pem"));
    let port = free_port();
    let plan = Plan::demo()
        .with(&format!("[clients.phone]\napi_key_file = {:?}\n", place("key")))
        .with_socket(&format!(
            "tcp = \"127.0.0.1:{port}\"\ntcp_certificate_file = {:?}\ntcp_key_file = {:?}\n",
            place("cert.pem"),
            place("key.pem"),
        ));
    let service = Service::start(&plan).ready();
    let bearer = format!("Host: localhost\r\nAuthorization: Bearer {KEY}\r\n");
    let (status, models) = ask_over_tls(port, &place("cert.pem"), &bearer).unwrap();
    assert_eq!((status, &models["object"]), (200, &json!("list")));
    let (status, _) = ask_over_tls(port, &place("cert.pem"), "Host: localhost\r\n").unwrap();
    assert_eq!(status, 401);

    // Who speaks no TLS gets no HTTP.
    let mut plain = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    plain.set_read_timeout(Some(PATIENCE)).unwrap();
    // The connection may be closed before all of it is written.
    let _ = write!(plain, "GET /v1/models HTTP/1.1\r\n{bearer}\r\n");
    let mut bytes = Vec::new();
    let _ = plain.read_to_end(&mut bytes);
    assert!(!bytes.starts_with(b"HTTP"), "{}", String::from_utf8_lossy(&bytes));

    // A certificate that cannot be read changes nothing; a good one holds from the next connection on.
    std::fs::copy(place("cert.pem"), place("old.pem")).unwrap();
    std::fs::write(place("cert.pem"), "torn").unwrap();
    let reload = || http::post(&service.socket(), "/admin/reload", &json!({}));
    let refused = reload();
    assert_eq!(refused.status, 400, "{}", refused.body);
    assert!(refused.body.contains("tcp_certificate_file"), "{}", refused.body);
    ask_over_tls(port, &place("old.pem"), &bearer).unwrap();
    certify(&place("cert.pem"), &place("key.pem"));
    assert_eq!(reload().status, 200);
    ask_over_tls(port, &place("old.pem"), &bearer).unwrap_err();
    assert_eq!(ask_over_tls(port, &place("cert.pem"), &bearer).unwrap().0, 200);
}

#[test]
fn beyond_this_machine_only_encrypted_or_with_a_reason() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key");
    std::fs::write(&file, format!("{KEY}\n")).unwrap();
    for (more, says) in [
        ("", "tcp_certificate_file"),
        ("tcp_without_tls = \" \"\n", "tcp_without_tls"),
        ("tcp_key_file = \"/nowhere/key.pem\"\n", "needs `socket.tcp_certificate_file`"),
        (
            "tcp_certificate_file = \"/nowhere/cert.pem\"\ntcp_key_file = \"/nowhere/key.pem\"\n",
            "`/nowhere/cert.pem`",
        ),
    ] {
        let plan = Plan::demo()
            .with(&format!("[clients.phone]\napi_key_file = {file:?}\n"))
            .with_socket(&format!("tcp = \"0.0.0.0:{}\"\n{more}", free_port()));
        let mut service = Service::start(&plan);
        assert_eq!(service.wait().code(), Some(78), "{more}");
        assert!(service.log().contains(says), "{more}: {}", service.log());
    }
}
