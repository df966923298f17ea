//! A way to write a streamed answer: one for each API.

use crate::request::{Finish, Refusal, TokenLogprob};
use crate::wire::Part;

/// Turns what happens to a prompt into the bytes of a response's body.
pub(super) trait Voice: std::fmt::Debug + Send {
    /// What comes before anything else, with the text that a completion repeats of its prompt.
    fn begin(&mut self, echo: Option<&str>, out: &mut Vec<u8>);

    /// Parts of the answer, and the tokens they came of where these are asked for.
    fn parts(&mut self, parts: &[Part], tokens: &[TokenLogprob], out: &mut Vec<u8>);

    /// The answer is whole.
    fn finish(&mut self, finish: &Finish, out: &mut Vec<u8>);

    /// There will be no more of it. The status is sent already, so the body has to say it.
    fn fail(&mut self, refusal: &Refusal, out: &mut Vec<u8>);

    /// The stream is alive, for this reason, although there is nothing to say.
    fn alive(&mut self, why: &str, out: &mut Vec<u8>) {
        // A comment: clients of server-sent events skip it.
        out.extend_from_slice(format!(": {why}\n\n").as_bytes());
    }
}
