//! Stop strings in a stream of text: nothing that could be the beginning of one is let out before it is certain.

/// The stop strings of one answer and the text that is held back for them.
#[derive(Clone, Debug)]
pub(super) struct StopStrings {
    strings: Vec<String>,
    held: String,
}

impl StopStrings {
    /// Empty strings would stop everything and are left out.
    pub(super) fn new(strings: &[String]) -> Self {
        let strings = strings.iter().filter(|string| !string.is_empty()).cloned().collect();
        StopStrings { strings, held: String::new() }
    }

    /// Takes more text. Returns what is certain now and whether a stop string came: then that is all of it.
    pub(super) fn push(&mut self, text: &str) -> (String, bool) {
        self.held.push_str(text);
        let first = self.strings.iter().filter_map(|string| self.held.find(string)).min();
        if let Some(first) = first {
            self.held.truncate(first);
            return (std::mem::take(&mut self.held), true);
        }
        let undecided = self.held.char_indices().map(|(at, _)| at).find(|at| {
            let tail = self.held.get(*at..).unwrap_or_default();
            self.strings.iter().any(|string| string.starts_with(tail))
        });
        let rest = undecided.map_or_else(String::new, |at| self.held.split_off(at));
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// The held text, when no more comes.
    pub(super) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let stops: Vec<String> = stops.iter().map(|s| (*s).to_owned()).collect();
        let mut state = StopStrings::new(&stops);
        let mut out = Vec::new();
        for piece in pieces {
            let (text, stopped) = state.push(piece);
            out.push(text);
            if stopped {
                return (out, true);
            }
        }
        out.push(state.finish());
        (out, false)
    }

    #[test]
    fn text_ends_before_the_first_stop_string() {
        assert_eq!(run(&["stop"], &["a st", "op b"]), (vec!["a ".into(), String::new()], true));
        assert_eq!(run(&["b", "ab"], &["xab"]), (vec!["x".into()], true));
        assert_eq!(run(&["日本"], &["あ日", "本"]), (vec!["あ".into(), String::new()], true));
        assert_eq!(run(&["", "x"], &["ab"]), (vec!["ab".into(), String::new()], false));
    }

    #[test]
    fn what_was_held_comes_when_it_is_certain() {
        assert_eq!(run(&["aab"], &["aa", "a", "c"]).0, ["", "a", "aac", ""]);
        assert_eq!(run(&["stop"], &["st", "x", "sto"]).0, ["", "stx", "", "sto"]);
        assert_eq!(run(&["\n\n"], &["a\n", "b\n"]).0, ["a", "\nb", "\n"]);
    }

    /// However the text is cut into pieces, the answer is the same.
    #[test]
    fn cutting_changes_nothing() {
        let text = "ababcabcabdabcabcabe日本";
        for stop in ["abcabe", "abd", "日", "b日", "zzz", "e"] {
            let expected = text.split(stop).next().unwrap();
            for width in 1..5 {
                let characters: Vec<char> = text.chars().collect();
                let pieces: Vec<String> =
                    characters.chunks(width).map(|chunk| chunk.iter().collect()).collect();
                let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
                assert_eq!(run(&[stop], &pieces).0.concat(), expected, "{stop} {width}");
            }
        }
    }
}
