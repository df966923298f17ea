//! Names in requests: which ids are good, which known name was probably meant, and how a stranger's text is quoted.

use crate::request::Refusal;

/// Checks an asker's id: 1 to `limit` visible characters, none of which means something in an MQTT topic.
///
/// # Errors
/// `bad_request` for `id`.
pub fn check_id(id: &str, limit: usize) -> Result<(), Refusal> {
    let bad = |message: String| Err(Refusal::bad_request(message).with_param("id"));
    let length = id.chars().count();
    if length == 0 || length > limit {
        return bad(format!("`id` has {length} characters; 1 to {limit} are possible"));
    }
    match id.chars().find(|c| c.is_control() || c.is_whitespace() || matches!(c, '+' | '#' | '/')) {
        None => Ok(()),
        Some(c) => bad(format!(
            "`id` holds {c:?}; spaces, control characters and `+`, `#`, `/` cannot stand in an id, because it becomes part of a topic"
        )),
    }
}

/// The known name that is nearest to the unknown one, if any is near enough to be meant.
pub(super) fn nearest<'a>(unknown: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // Long names come from nobody's typing error, and comparing them costs the product of both lengths.
    if unknown.len() > 64 {
        return None;
    }
    let plain = |name: &str| name.to_lowercase().replace(['-', ' '], "_");
    let unknown = plain(unknown);
    let allowed = (unknown.len() / 3).clamp(1, 4);
    known
        .map(|name| (strsim::damerau_levenshtein(&unknown, &plain(name)), name))
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// A stranger's text for a message: quoted, control characters escaped, cut where it gets long.
pub(super) fn shown(text: &str) -> String {
    // Enough to recognise it by, little enough for a log line.
    const CHARS: usize = 60;
    if text.chars().nth(CHARS).is_none() {
        return format!("{text:?}");
    }
    let head: String = text.chars().take(CHARS).collect();
    format!("{head:?}…")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids() {
        for good in ["1", "esp32-7:42", "küche", "厨房", "a.b$c", &"x".repeat(128)] {
            assert_eq!(check_id(good, 128), Ok(()), "{good}");
        }
        for bad in
            ["", " ", "a b", "a/b", "a+", "#", "a\0", "a\n", "a\u{7f}", "a\u{85}", &"x".repeat(129)]
        {
            let refusal = check_id(bad, 128).unwrap_err();
            assert_eq!(
                (refusal.code.as_str(), refusal.param.as_deref()),
                ("bad_request", Some("id")),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn nearest_names() {
        let known = ["max_tokens", "temperature", "top_p", "stop", "n"];
        for (unknown, expected) in [
            ("max_token", Some("max_tokens")),
            ("maxTokens", Some("max_tokens")),
            ("max-tokens", Some("max_tokens")),
            ("temprature", Some("temperature")),
            ("Temperature", Some("temperature")),
            ("stops", Some("stop")),
            ("zzz", None),
            ("", Some("n")),
        ] {
            assert_eq!(nearest(unknown, known.into_iter()), expected, "{unknown}");
        }
        assert_eq!(nearest(&"x".repeat(100_000), known.into_iter()), None);
    }

    #[test]
    fn quoting() {
        assert_eq!(shown("a\u{1b}[31m\n"), r#""a\u{1b}[31m\n""#);
        assert_eq!(shown(&"ä".repeat(61)), format!("\"{}\"…", "ä".repeat(60)));
    }
}
