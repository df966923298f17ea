//! The broker's address as the operator writes it: `mqtt://[user[:password]@]host[:port]`, or `mqtts://` for TLS. Opens no
//! connection.

use std::fmt;

/// The port of MQTT without TLS (IANA `mqtt`).
const DEFAULT_PORT: u16 = 1883;
/// The port of MQTT over TLS (IANA `secure-mqtt`).
const DEFAULT_TLS_PORT: u16 = 8883;

/// Where the broker is and, where the address says so, who promptd is to it. Its `Debug` form hides the password.
#[derive(Clone, PartialEq, Eq)]
pub struct BrokerUrl {
    /// A name, an IPv4 address, or an IPv6 address in brackets.
    pub host: String,
    /// The TCP port.
    pub port: u16,
    /// Whether TLS is spoken over it.
    pub tls: bool,
    /// The user name in the address, percent-decoded.
    pub username: Option<String>,
    /// The password in the address, percent-decoded.
    pub password: Option<String>,
}

/// Why an address cannot be used. None of the texts repeats the part in front of `@`: it may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// The scheme is none of MQTT over TCP.
    #[error("`{0}://` is not supported; write mqtt://host:1883, or mqtts://host:8883 for TLS")]
    Scheme(String),
    /// There is no scheme.
    #[error("the broker's address has no scheme; write mqtt://host:1883")]
    NoScheme,
    /// The host is missing or has characters that no host has.
    #[error("the broker's address names no usable host; write mqtt://host:1883")]
    Host,
    /// The port is not a number from 1 to 65535.
    #[error("`{0}` is not a port (1 to 65535)")]
    Port(String),
    /// Something follows the port.
    #[error("`{0}` behind the broker's host and port means nothing to MQTT; leave it out")]
    Path(String),
    /// A `%` without two hexadecimal digits, or bytes that are not UTF-8.
    #[error(
        "the user name or password in the broker's address has a `%` that is no percent-encoding; write `%25`"
    )]
    Percent,
}

impl BrokerUrl {
    /// Reads an address.
    ///
    /// # Errors
    /// Says which part cannot be used and what to write instead.
    pub fn parse(text: &str) -> Result<BrokerUrl, UrlError> {
        let (scheme, rest) = text.trim().split_once("://").ok_or(UrlError::NoScheme)?;
        let tls = match scheme.to_ascii_lowercase().as_str() {
            "mqtt" | "tcp" => false,
            "mqtts" | "ssl" | "tls" => true,
            _ => return Err(UrlError::Scheme(scheme.to_owned())),
        };
        // A password may hold `@` unencoded; a host never does.
        let (login, place) = match rest.rsplit_once('@') {
            Some((login, place)) => (Some(login), place),
            None => (None, rest),
        };
        let (place, path) = match place.find(['/', '?', '#']) {
            Some(at) => place.split_at(at),
            None => (place, ""),
        };
        if !matches!(path, "" | "/") {
            return Err(UrlError::Path(path.to_owned()));
        }
        let usual = if tls { DEFAULT_TLS_PORT } else { DEFAULT_PORT };
        let (host, port) = split_port(place, usual)?;
        let (username, password) =
            match login.map(|login| login.split_once(':').unwrap_or((login, ""))) {
                Some((user, password)) => (Some(decode(user)?), Some(decode(password)?)),
                None => (None, None),
            };
        let given = |part: Option<String>| part.filter(|text| !text.is_empty());
        Ok(BrokerUrl {
            host: host.to_owned(),
            port,
            tls,
            username: given(username),
            password: given(password),
        })
    }
}

impl fmt::Display for BrokerUrl {
    /// The address without the login, for the log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "mqtts" } else { "mqtt" };
        write!(f, "{scheme}://{}:{}", self.host, self.port)
    }
}

impl fmt::Debug for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn split_port(place: &str, usual: u16) -> Result<(&str, u16), UrlError> {
    let (host, port) = match place.strip_prefix('[') {
        Some(_) => {
            let end = place.find(']').ok_or(UrlError::Host)?;
            let (host, rest) = place.split_at(end + 1);
            (
                host,
                if rest.is_empty() {
                    None
                } else {
                    Some(rest.strip_prefix(':').ok_or(UrlError::Host)?)
                },
            )
        }
        None => match place.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (place, None),
        },
    };
    let usable =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '[' | ']' | ':' | '%');
    if host.is_empty() || host == "[]" || !host.chars().all(usable) {
        return Err(UrlError::Host);
    }
    let port = match port {
        None => usual,
        Some(digits) => match digits.parse() {
            Ok(port) if port > 0 => port,
            _ => return Err(UrlError::Port(digits.to_owned())),
        },
    };
    Ok((host, port))
}

fn decode(text: &str) -> Result<String, UrlError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digit = |byte: Option<u8>| byte.and_then(|b| char::from(b).to_digit(16));
            let (high, low) = (digit(rest.next()), digit(rest.next()));
            let value = high.zip(low).map(|(high, low)| high * 16 + low);
            bytes.push(value.and_then(|value| u8::try_from(value).ok()).ok_or(UrlError::Percent)?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).map_err(|_| UrlError::Percent)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(host: &str, port: u16, username: Option<&str>, password: Option<&str>) -> BrokerUrl {
        let own = |text: Option<&str>| text.map(str::to_owned);
        let (username, password) = (own(username), own(password));
        BrokerUrl { host: host.to_owned(), port, tls: false, username, password }
    }

    #[test]
    fn addresses_that_can_be_used() {
        let table = [
            ("mqtt://localhost", url("localhost", 1883, None, None)),
            ("mqtt://10.0.0.2:1884/", url("10.0.0.2", 1884, None, None)),
            ("tcp://broker.lan:1883", url("broker.lan", 1883, None, None)),
            ("mqtt://[::1]:1885", url("[::1]", 1885, None, None)),
            ("mqtt://[fe80::1]", url("[fe80::1]", 1883, None, None)),
            ("mqtt://me@host", url("host", 1883, Some("me"), None)),
            ("mqtt://me:se%40cret@host", url("host", 1883, Some("me"), Some("se@cret"))),
            ("mqtt://me:a:b@c@host:9", url("host", 9, Some("me"), Some("a:b@c"))),
        ];
        for (text, want) in table {
            assert_eq!(BrokerUrl::parse(text).unwrap(), want, "{text}");
        }
        for (text, port) in [("mqtts://host", 8883), ("ssl://host:443", 443)] {
            let want = BrokerUrl { tls: true, ..url("host", port, None, None) };
            assert_eq!(BrokerUrl::parse(text).unwrap(), want, "{text}");
        }
    }

    #[test]
    fn addresses_that_cannot() {
        let table = [
            ("localhost:1883", UrlError::NoScheme),
            ("wss://host", UrlError::Scheme("wss".into())),
            ("ws://host", UrlError::Scheme("ws".into())),
            ("mqtt://", UrlError::Host),
            ("mqtt://:1883", UrlError::Host),
            ("mqtt://a b", UrlError::Host),
            ("mqtt://[::1", UrlError::Host),
            ("mqtt://[::1]x", UrlError::Host),
            ("mqtt://host:0", UrlError::Port("0".into())),
            ("mqtt://host:70000", UrlError::Port("70000".into())),
            ("mqtt://host/x", UrlError::Path("/x".into())),
            ("mqtt://me:%4@host", UrlError::Percent),
        ];
        for (text, want) in table {
            assert_eq!(BrokerUrl::parse(text).unwrap_err(), want, "{text}");
        }
    }

    #[test]
    fn the_password_is_never_shown() {
        let url = BrokerUrl::parse("mqtt://me:hunter2@host").unwrap();
        assert!(!format!("{url:?} {url}").contains("hunter2"));
        for bad in [
            "mqtt://me:hunter2@host/x",
            "mqtts://me:hunter2@host/x",
            "mqtt://me:hunter2@ho st",
            "mqtt://a:hunter2%@h",
        ] {
            let error = BrokerUrl::parse(bad).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{bad}");
        }
    }
}
