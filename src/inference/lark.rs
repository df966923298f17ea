//! Lark grammars before they are compiled: refuses what would be ignored or cannot be done here, and what takes for ever.

use super::grammar::unusable;
use crate::request::Refusal;

/// Terminals that must match together (`&`): the time to build the automaton doubles with each, and no limit of the
/// compiler's own holds it.
const MAX_TOGETHER: usize = 6;

/// Directives and attributes that llguidance knows and promptd does not do, with the way out.
const NOT_DONE: &[(&str, &str)] = &[
    ("%json", "ask for a schema with `response_format`"),
    ("%llguidance", "promptd sets the compiler's options itself"),
    ("%lark", "write its rules into the grammar itself"),
];
const NOT_DONE_ATTRIBUTES: &[(&str, &str)] = &[
    ("temperature", "it holds for the whole request"),
    ("max_tokens", "it holds for the whole request; bound a rule with `{m,n}`"),
    ("stop", "nothing that was generated is taken back; write the ending into the rule"),
    ("stop_capture", "nothing is captured"),
    ("capture", "nothing is captured"),
    ("suffix", "nothing that was generated is taken back; write the ending into the rule"),
    ("lazy", "write the ending into the rule"),
];

/// Refuses a grammar that asks for what is not done.
pub(super) fn check(source: &str) -> Result<(), Refusal> {
    let bare = without_literals(source);
    let refuse =
        |what: &str, why: &str| Err(unusable(format!("`{what}` has no meaning here; {why}")));
    for (word, why) in NOT_DONE {
        if bare.contains(word) {
            return refuse(word, why);
        }
    }
    for (at, _) in bare.match_indices('=') {
        let name = bare.get(..at).unwrap_or_default().trim_end();
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let start = name.char_indices().rev().take_while(|(_, c)| is_word(*c)).last();
        let name = start.and_then(|(start, _)| name.get(start..)).unwrap_or_default();
        if let Some((name, why)) = NOT_DONE_ATTRIBUTES.iter().find(|(known, _)| *known == name) {
            return refuse(name, why);
        }
    }
    // Those that stand alone: `rule[lazy]: …`.
    if let Some((name, why)) = NOT_DONE_ATTRIBUTES.iter().find(|(name, _)| {
        ["[", ",", ", "].iter().any(|before| bare.contains(&format!("{before}{name}]")))
    }) {
        return refuse(name, why);
    }
    if bare.contains('<') {
        return refuse("<…>", "the model's control tokens are no part of an answer");
    }
    let together = bare.matches('&').count();
    if together > MAX_TOGETHER {
        return Err(unusable(format!(
            "it has {together} `&`, at most {MAX_TOGETHER} are compiled: the time doubles with each"
        )));
    }
    Ok(())
}

/// The grammar with its strings, regular expressions and comments taken out.
fn without_literals(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut chars = source.chars().peekable();
    while let Some(c) = chars.next() {
        let is_comment = c == '#' || (c == '/' && chars.peek() == Some(&'/'));
        if is_comment {
            while chars.next_if(|c| *c != '\n').is_some() {}
        } else if c == '"' || c == '/' {
            // Neither goes on over the end of its line; a grammar where one does is refused by the compiler.
            while let Some(inner) = chars.next_if(|c| *c != '\n') {
                if inner == '\\' {
                    chars.next();
                } else if inner == c {
                    break;
                }
            }
            out.push(' ');
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_done_is_named() {
        for (source, name) in [
            ("start: %json {\"type\": \"object\"}", "`%json`"),
            ("%llguidance {\"no_forcing\": true}\nstart: \"a\"", "`%llguidance`"),
            ("start: a\na[temperature=0.5]: /x*/", "`temperature`"),
            ("a[capture, max_tokens = 5]: /x*/", "`max_tokens`"),
            ("a[lazy]: /x*/", "`lazy`"),
            ("a[stop=\"y\"]: /x*/", "`stop`"),
            ("start: <|im_end|> \"a\"", "`<…>`"),
            ("start: A\nA: /a/ & /b/ & /c/ & /d/ & /e/ & /f/ & /g/ & /h/", "7 `&`"),
        ] {
            let refusal = check(source).unwrap_err();
            assert!(refusal.message.contains(name), "{source}: {}", refusal.message);
        }
    }

    #[test]
    fn literals_and_comments_may_hold_anything() {
        for source in [
            "start: \"%json <b> temperature=1 & & & & & & & & \\\" <\"",
            "start: /<[a-z]+ lazy=\\/ stop=\"&&&&&&&&&\"/ // %json <\n# %lark\n",
            "start: foo{1,3} temperature\nfoo: \"a\" & \"b\"\ntemperature: /[0-9]+/",
        ] {
            check(source).unwrap();
        }
    }
}
