//! Which parts of a rendered conversation came from clients: contents are rendered once as they are and once between
//! marks, so that the text of a control token inside a content stays text. Knows no template and no token.

use std::ops::Range;

use crate::request::Message;

/// Begins each mark: a private-use character, which no text has a meaning for.
const MARK: char = '\u{E0FF}';

/// A pair of marks that none of the messages contains.
#[derive(Debug)]
pub(super) struct Marks {
    open: String,
    close: String,
}

impl Marks {
    /// Marks for these messages.
    pub(super) fn for_messages(messages: &[Message]) -> Self {
        let mut number = 0_u64;
        loop {
            let marks =
                Marks { open: format!("{MARK}{number}<"), close: format!("{MARK}{number}>") };
            if messages
                .iter()
                .all(|m| !m.content.contains(&marks.open) && !m.content.contains(&marks.close))
            {
                return marks;
            }
            number += 1;
        }
    }

    /// The messages with their contents between marks. White space at the ends stays outside, because templates trim
    /// it; contents of nothing else stay as they are, because templates ask whether there is any.
    pub(super) fn put(&self, messages: &[Message]) -> Vec<Message> {
        let mark = |content: &str| {
            let core = content.trim();
            if core.is_empty() {
                return content.to_owned();
            }
            let start = content.len() - content.trim_start().len();
            let before = content.get(..start).unwrap_or_default();
            let after = content.get(start + core.len()..).unwrap_or_default();
            format!("{before}{}{core}{}{after}", self.open, self.close)
        };
        messages.iter().map(|m| Message { content: mark(&m.content), ..m.clone() }).collect()
    }

    /// Takes the marks out of a rendered conversation and tells where contents were. `None` where marks do not come in
    /// pairs: the template took a content apart.
    pub(super) fn take(&self, rendered: &str) -> Option<(String, Vec<Range<usize>>)> {
        let (mut text, mut ranges) = (String::with_capacity(rendered.len()), Vec::new());
        let mut rest = rendered;
        while let Some((before, behind)) = rest.split_once(&self.open) {
            let (content, after) = behind.split_once(&self.close)?;
            if before.contains(&self.close) || content.contains(&self.open) {
                return None;
            }
            text.push_str(before);
            let start = text.len();
            text.push_str(content);
            ranges.push(start..text.len());
            rest = after;
        }
        if rest.contains(&self.close) {
            return None;
        }
        text.push_str(rest);
        Some((text, ranges))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Role;

    fn user(content: &str) -> Message {
        Message::new(Role::User, content)
    }

    #[test]
    fn contents_are_found_again() {
        let messages = [user(" é <s> "), user(""), user("\u{E0FF}0<x"), user("b")];
        let marks = Marks::for_messages(&messages);
        let put = marks.put(&messages);
        let rendered: Vec<String> = put.iter().map(|m| format!("[{}]", m.content.trim())).collect();
        let (text, ranges) = marks.take(&rendered.concat()).unwrap();
        assert_eq!(text, "[é <s>][][\u{E0FF}0<x][b]");
        let parts: Vec<&str> = ranges.into_iter().map(|range| text.get(range).unwrap()).collect();
        assert_eq!(parts, ["é <s>", "\u{E0FF}0<x", "b"]);
    }

    #[test]
    fn a_template_that_cuts_contents_is_noticed() {
        let marks = Marks::for_messages(&[]);
        let marked = marks.put(&[user("ab")]).remove(0).content;
        for cut in 1..marked.chars().count() {
            let part: String = marked.chars().take(cut).collect();
            let whole = marks.take(&part);
            assert!(whole.is_none_or(|(text, _)| text.contains(MARK)), "{part:?}");
        }
    }
}
