//! Text marked `|safe` in chat templates. In Python's Jinja it is a `Markup`, and what is added to one is escaped for HTML,
//! though nothing else in a chat template is; so prompts that models were trained on hold `&#34;` where such a template adds
//! plain text. minijinja has no type that escapes what is added to it, so marked text stands between two characters that no
//! text has a meaning for until it is written out.

use minijinja::value::ValueKind;
use minijinja::{Environment, Error, Output, State, Value};

/// Begin and end marked text: noncharacters, which Unicode keeps for uses like this.
const OPEN: char = '\u{FDD0}';
const CLOSE: char = '\u{FDD1}';

/// Gives templates the filter, where the source has a use for it: else nothing is looked through.
pub(super) fn add(environment: &mut Environment<'_>, source: &str) {
    if source.contains("safe") {
        environment.add_filter("safe", |text: String| {
            // What is marked already is marked once.
            format!("{OPEN}{}{CLOSE}", text.replace([OPEN, CLOSE], ""))
        });
        environment.set_formatter(write);
    }
}

/// Writes a value out; of a text with a marked part, what is not marked is escaped.
fn write(out: &mut Output<'_>, state: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    match value.as_str().filter(|text| value.kind() == ValueKind::String && text.contains(OPEN)) {
        Some(text) => out.write_str(&unmarked(text)).map_err(Error::from),
        None => minijinja::escape_formatter(out, state, value),
    }
}

/// The text without its marks.
fn unmarked(text: &str) -> String {
    let (mut done, mut is_marked) = (String::with_capacity(text.len()), false);
    for character in text.chars() {
        match character {
            OPEN => is_marked = true,
            CLOSE => is_marked = false,
            // As `markupsafe.escape` writes them.
            '&' if !is_marked => done.push_str("&amp;"),
            '<' if !is_marked => done.push_str("&lt;"),
            '>' if !is_marked => done.push_str("&gt;"),
            '"' if !is_marked => done.push_str("&#34;"),
            '\'' if !is_marked => done.push_str("&#39;"),
            other => done.push(other),
        }
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str) -> String {
        let mut environment = Environment::new();
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        add(&mut environment, source);
        let source = source.to_owned();
        environment.add_template_owned("t", source).unwrap();
        environment.get_template("t").unwrap().render(minijinja::context! { x => "<'\"&" }).unwrap()
    }

    /// What Jinja2 3.1 writes for the same templates.
    #[test]
    fn what_is_added_to_marked_text_is_escaped() {
        assert_eq!(render("{{ x }}{{ x|safe }}"), "<'\"&<'\"&");
        assert_eq!(render("{{ '<'|safe + x + '>' }}{{ x }}"), "<&lt;&#39;&#34;&amp;&gt;<'\"&");
        assert_eq!(render("{{ x + '<'|safe }}"), "&lt;&#39;&#34;&amp;<");
        assert_eq!(render("{% set y = '<'|safe|safe + x %}{{ y }}"), "<&lt;&#39;&#34;&amp;");
        assert_eq!(render("{{ 'safe' + '<' }}"), "safe<");
    }
}
