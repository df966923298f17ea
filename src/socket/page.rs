//! The built-in page: chat and status in a browser, over TCP where the operator wants it. One file that loads nothing from
//! anywhere, and a policy that lets it load nothing.

use std::sync::OnceLock;

use bytes::Bytes;
use hyper::Response;
use hyper::header::{CONTENT_SECURITY_POLICY, HeaderName, HeaderValue, REFERRER_POLICY};
use sha2::{Digest as _, Sha256};

use super::base64::base64;
use super::reply::{Reply, response};

/// What the browser gets.
const PAGE: &str = include_str!("page.html");

/// Where it stands.
pub(super) const PATH: &str = "/";

/// The page. It holds no secret: what it shows it asks for, with the key that somebody enters.
pub(super) fn show() -> Response<Reply> {
    static POLICY: OnceLock<HeaderValue> = OnceLock::new();
    let mut page = response(
        200,
        "text/html; charset=utf-8",
        Reply::whole(Bytes::from_static(PAGE.as_bytes())),
    );
    let headers = page.headers_mut();
    let policy = POLICY.get_or_init(|| {
        // A digest is of base64's characters, all of which a header may have.
        HeaderValue::try_from(policy()).unwrap_or(HeaderValue::from_static("default-src 'none'"))
    });
    headers.insert(CONTENT_SECURITY_POLICY, policy.clone());
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    let (options, frames) = (
        HeaderName::from_static("x-content-type-options"),
        HeaderName::from_static("x-frame-options"),
    );
    headers.insert(options, HeaderValue::from_static("nosniff"));
    headers.insert(frames, HeaderValue::from_static("DENY"));
    page
}

/// Only the script and the style that stand in the page, and only this promptd to talk to.
fn policy() -> String {
    let hash = |name: &str| {
        let (open, close) = (format!("<{name}>"), format!("</{name}>"));
        let inside = PAGE.split_once(&open).and_then(|(_, rest)| rest.split_once(&close));
        base64(&Sha256::digest(inside.map_or("", |(inside, _)| inside)))
    };
    format!(
        "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; connect-src 'self'; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'",
        hash("script"),
        hash("style")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_names_nobody_else() {
        assert!(!PAGE.contains("http://") && !PAGE.contains("https://") && !PAGE.contains("src="));
        // Markup is made of elements and text, never of strings.
        assert!(
            !PAGE.contains("innerHTML") && !PAGE.contains("eval(") && !PAGE.contains(" style=")
        );
        assert!(
            !policy().contains("unsafe") && !policy().contains("sha256-47DEQpj8"),
            "{}",
            policy()
        );
    }
}
