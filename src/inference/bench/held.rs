//! An answer that is held to a schema with long keys, beside one that is held to nothing; and what it costs to find out which tokens
//! may come next.

use super::report::HeldOnce;
use super::{Bench, LoadError, seconds};
use crate::inference::form::is_allowed;
use crate::inference::grammar::Demand;
use crate::request::Constraint;

/// Tokens that a key and its value may take: its characters, if the tokenizer has none but bytes, and what stands around them.
const KEY_TOKENS: u32 = 64;
/// Text of a house's day: what a string of an answer looks like.
const TEXT: &str = "The garage door was opened at seven in the morning, and nobody has closed it since. It is 21.5 degrees in \
                    the greenhouse, so the windows may stay open until the evening; the light in the cellar can go off.";

/// The most tokens of an answer with so many keys.
pub(super) fn most_tokens(keys: u16) -> u32 {
    KEY_TOKENS.saturating_mul(keys.into())
}

/// Whole numbers with two digits under keys of 32 characters.
fn schema(keys: u16) -> String {
    let names: Vec<String> =
        (0..keys).map(|key| format!("reading_of_the_sensor_in_room_{key:02}")).collect();
    let number = serde_json::json!({"type": "integer", "minimum": 10, "maximum": 99});
    let properties: serde_json::Map<_, _> =
        names.iter().map(|name| (name.clone(), number.clone())).collect();
    serde_json::json!({
        "type": "object", "properties": properties, "required": names, "additionalProperties": false,
    })
    .to_string()
}

impl Bench {
    /// One answer in the form, and one of as many tokens that is free.
    pub(super) fn held(&mut self, keys: u16) -> Result<HeldOnce, LoadError> {
        let form = Constraint::JsonSchema(schema(keys));
        let (seconds, tokens) = self.whole(form, most_tokens(keys))?;
        let (free_seconds, _) = self.whole(Constraint::None, tokens)?;
        let mask_seconds = self.mask()?;
        Ok(HeldOnce { tokens, seconds, free_seconds, mask_seconds })
    }

    /// Seconds from the start of a prompt of one token until its answer is whole, and tokens of the answer.
    fn whole(&mut self, form: Constraint, most: u32) -> Result<(f64, u32), LoadError> {
        let prepared = self.prepare(self.prompt(1), most, form)?;
        let begun = (self.clock)();
        self.start_prepared(prepared)?;
        loop {
            if let Some(finish) = self.step()?.finished {
                return Ok((seconds(&self.clock, begun), finish.usage.completion));
            }
        }
    }

    /// Seconds to find the tokens that may come next, on average over a JSON string.
    fn mask(&self) -> Result<f64, LoadError> {
        let parts = &self.loaded.preparer.parts;
        let schema = Constraint::JsonSchema(r#"{"type":"string"}"#.to_owned());
        let form = parts.grammars.compile(&Demand::new(&schema, None));
        let form = form.map_err(|refusal| self.failed(&refusal))?;
        let mut form = form.ok_or_else(|| self.failed(&"a schema is no form"))?;
        let (mut spent, mut masks) = (0.0, 0_u32);
        let mut rest = serde_json::Value::from(TEXT).to_string().into_bytes();
        while !rest.is_empty() {
            let begun = (self.clock)();
            let mask = form.mask().map_err(|refusal| self.failed(&refusal))?;
            spent += seconds(&self.clock, begun);
            masks += 1;
            let longest = (0..self.loaded.facts.vocab_size)
                .map(|id| (id, parts.tokenizer.pieces().bytes(id)))
                .filter(|(id, bytes)| {
                    !bytes.is_empty() && rest.starts_with(bytes) && is_allowed(&mask, *id)
                })
                .max_by_key(|(_, bytes)| bytes.len());
            // A vocabulary without the character: the part that was measured will do.
            let Some((id, bytes)) = longest else { break };
            let length = bytes.len();
            form.take(id).map_err(|refusal| self.failed(&refusal))?;
            rest.drain(..length);
        }
        Ok(spent / f64::from(masks))
    }
}
