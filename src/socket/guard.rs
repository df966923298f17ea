//! Who may speak over TCP: whoever brings an API key, to a name that is this machine's, from no foreign web page.

use hyper::HeaderMap;
use hyper::header::{HOST, ORIGIN};

use super::accept::Peer;
use super::asking::bearer;
use super::reply::Fault;
use super::{App, page};
use crate::request::{Code, Refusal};

/// The peer with the name of its client, where it may speak.
pub(super) fn admit(
    app: &App,
    peer: &Peer,
    path: &str,
    headers: &HeaderMap,
) -> Result<Peer, Fault> {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let forbidden = |what: &str| {
        let message = format!(
            "the {what} of this request is not this machine's; `socket.tcp_hosts` names others that may be used"
        );
        Fault::from(Refusal::new(Code::Forbidden, message)).closing()
    };
    // A name that a page's server lets point here would make the page's requests ours: only addresses, and known names.
    if text(HOST).is_some_and(|host| !is_known(&app.hosts, host)) {
        return Err(forbidden("Host"));
    }
    let page = text(ORIGIN).map(|origin| origin.split_once("://").map_or("", |(_, host)| host));
    if page.is_some_and(|host| !is_known(&app.hosts, host)) {
        return Err(forbidden("Origin"));
    }
    // The page holds nothing but the field for the key.
    if app.page && path == page::PATH {
        return Ok(peer.clone());
    }
    let key = bearer(headers);
    let policy = app.policies.current();
    let Some(name) = key.as_deref().and_then(|key| policy.access.name_of_key(key)) else {
        let message = "over TCP a request needs an API key: `Authorization: Bearer KEY`, with a key of `[clients]`";
        return Err(Fault::from(Refusal::new(Code::Unauthorized, message)).closing());
    };
    Ok(Peer { name: Some(name.to_owned()), ..peer.clone() })
}

pub(super) fn is_known(hosts: &[String], host: &str) -> bool {
    let bare = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    bare.eq_ignore_ascii_case("localhost")
        || bare.parse::<std::net::IpAddr>().is_ok()
        || hosts.iter().any(|known| known.eq_ignore_ascii_case(bare))
}
