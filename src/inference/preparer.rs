//! Checks a prompt completely before it is accepted: template, tokens, context, form of the answer. Runs no model; may
//! be used from several threads at once.

use std::sync::Arc;

use super::conversation::Marks;
use super::embedding::Vectors;
use super::form::Form;
use super::grammar::{Demand, Grammars};
use super::template::Template;
use super::tokenizer::Tokenizer;
use super::tools;
use crate::request::{
    CallStyle, Code, ContextOverflow, Embed, EmbedText, Input, Message, Pinned, Refusal, Request,
    Role, Sampling, ToolChoice, Tools,
};

/// The most tokens of an answer that slides on over the context. It is held whole, and sent in one message over MQTT: these
/// are some 256 KiB.
const MAX_SLIDING: u32 = 65_536;
/// What an answer that slides on needs of the context, at most: half of it is forgotten each time, and a model that sees
/// fewer of its own words than a sentence has writes none.
const MIN_WINDOW: u32 = 64;

/// The most tokens of all texts of one request for vectors, as OpenAI's description has it.
const MAX_EMBED_TOKENS: usize = 300_000;
/// The most numbers of all vectors of one request. They are held until the last one is there, in 8 MiB, and are three times
/// as long as JSON; 2,048 vectors of 1,024 numbers go through.
const MAX_NUMBERS: usize = 2 << 20;

/// Turns requests into prompts that can be run.
#[derive(Clone, Debug)]
pub struct Preparer {
    pub(super) parts: Arc<Parts>,
}

/// What prompts are prepared with.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) tokenizer: Arc<Tokenizer>,
    pub(super) template: Option<Template>,
    pub(super) grammars: Grammars,
    pub(super) context: u32,
    pub(super) vocab: usize,
    /// Whether the model writes text.
    pub(super) writes: bool,
    /// How it gives vectors, where it does.
    pub(super) embeds: Option<Embeds>,
}

/// How a model gives vectors.
#[derive(Debug)]
pub(super) struct Embeds {
    pub(super) vectors: Vectors,
    /// Tokens in front of every text and behind it.
    pub(super) around: (Vec<u32>, Vec<u32>),
}

/// A prompt that was checked and can be run.
pub struct Prepared {
    pub(super) tokens: Vec<u32>,
    /// Texts that become vectors; empty where an answer is wanted.
    pub(super) texts: Vec<Vec<u32>>,
    pub(super) max_tokens: u32,
    pub(super) sampling: Sampling,
    pub(super) stop: Vec<String>,
    pub(super) stop_ids: Vec<u32>,
    /// Whether the answer goes on behind the end of the context.
    pub(super) slides: bool,
    pub(super) form: Option<Form>,
    pub(super) calls: Option<CallStyle>,
    pub(super) mark: Option<(u32, &'static str)>,
    pub(super) logprobs: Option<u8>,
}

impl std::fmt::Debug for Prepared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Prepared")
            .field("tokens", &self.tokens.len())
            .field("max_tokens", &self.max_tokens)
            .finish_non_exhaustive()
    }
}

impl Prepared {
    /// Tokens of the prompt as the model sees it.
    pub fn prompt_tokens(&self) -> u32 {
        let texts: usize = self.texts.iter().map(Vec::len).sum();
        u32::try_from(self.tokens.len() + texts).unwrap_or(u32::MAX)
    }

    /// The most tokens the answer can have.
    pub fn max_tokens(&self) -> u32 {
        self.max_tokens
    }

    /// How calls of tools stand in the answer's text, where it may call any.
    pub fn calls(&self) -> Option<CallStyle> {
        self.calls
    }

    /// The prompt's tokens.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }
}

impl Preparer {
    /// From now on forms of answers are tried in a process of their own before they are compiled in this one. `program` is
    /// called with [`super::trial::ARGUMENT`] and has to call [`super::trial::run`].
    pub fn try_forms_with(&self, program: std::path::PathBuf) {
        self.parts.grammars.try_with(program);
    }

    /// Checks a request. Nothing is ever cut.
    ///
    /// # Errors
    /// `context_length_exceeded` with the context and the prompt's tokens, `bad_request` for an unusable schema or a
    /// conversation the model's template refuses, `unsupported` for a conversation where there is no template.
    pub fn prepare(&self, request: &Request) -> Result<Prepared, Refusal> {
        if let Input::Embed(embed) = &request.input {
            return self.embed(embed, request);
        }
        self.check_writes()?;
        let tokens = self.tokens(&request.input, request.tools.as_ref())?;
        self.finish(tokens, request)
    }

    /// The tokens that all prompts with this system message begin with: what two prompts have in common that share nothing
    /// else. Empty where that cannot be told.
    pub fn beginning(&self, pinned: &Pinned) -> Vec<u32> {
        if !self.parts.writes {
            return Vec::new();
        }
        let prompt = |more: &str, text: &str| {
            let system = match pinned.system.as_str() {
                system if pinned.goes_on => format!("{}\n{more}", system.trim_end_matches('\n')),
                system => system.to_owned(),
            };
            self.tokens(&Input::Ask { system: Some(system), text: text.into() }, None)
        };
        let (Ok(one), Ok(other)) = (prompt("a", "Why"), prompt("1", "42")) else {
            return Vec::new();
        };
        let common = one.iter().zip(&other).take_while(|(a, b)| a == b).count();
        one.into_iter().take(common).collect()
    }

    /// The same for a prompt that already is tokens; `request.input` is not looked at.
    ///
    /// # Errors
    /// As for [`Preparer::prepare`], and `bad_request` for a token the model does not know.
    pub fn prepare_tokens(&self, tokens: Vec<u32>, request: &Request) -> Result<Prepared, Refusal> {
        self.check_writes()?;
        self.check_known(&tokens, "the prompt", "prompt")?;
        self.finish(tokens, request)
    }

    fn check_writes(&self) -> Result<(), Refusal> {
        if self.parts.writes {
            return Ok(());
        }
        let message =
            "the served model gives embeddings and writes no text; ask POST /v1/embeddings";
        Err(Refusal::new(Code::Unsupported, message))
    }

    /// Refuses tokens that the model does not know.
    fn check_known(&self, tokens: &[u32], what: &str, param: &str) -> Result<(), Refusal> {
        let known = |id: &u32| usize::try_from(*id).is_ok_and(|id| id < self.parts.vocab);
        match tokens.iter().find(|id| !known(id)) {
            None => Ok(()),
            Some(id) => {
                let message =
                    format!("{what} has the token {id}, the model knows {}", self.parts.vocab);
                Err(Refusal::bad_request(message).with_param(param))
            }
        }
    }

    /// Checks texts whose vectors are wanted.
    fn embed(&self, embed: &Embed, request: &Request) -> Result<Prepared, Refusal> {
        let Some(embeds) = &self.parts.embeds else {
            let message = "the served model gives no embeddings: its graph has no output of hidden states (docs/models.md)";
            return Err(Refusal::new(Code::Unsupported, message));
        };
        let width = embeds.vectors.width;
        check_size(embed, width)?;
        let mut total = 0;
        let mut texts = Vec::with_capacity(embed.texts.len());
        for (at, text) in embed.texts.iter().enumerate() {
            let param =
                if embed.texts.len() == 1 { "input".into() } else { format!("input[{at}]") };
            let tokens = self.tokens_of(text, embeds, &param)?;
            total += tokens.len();
            if total > MAX_EMBED_TOKENS {
                let message = format!(
                    "the texts up to `{param}` have {total} tokens; {MAX_EMBED_TOKENS} are possible in one request"
                );
                let (most, have) = (MAX_EMBED_TOKENS as u64, total as u64);
                return Err(Refusal::bad_request(message)
                    .with_param("input")
                    .with_limit(most, have));
            }
            texts.push(tokens);
        }
        Ok(Prepared {
            tokens: Vec::new(),
            texts,
            max_tokens: 0,
            sampling: request.sampling.clone(),
            stop: Vec::new(),
            stop_ids: Vec::new(),
            slides: false,
            form: None,
            calls: None,
            mark: None,
            logprobs: None,
        })
    }

    /// The tokens of a text that becomes a vector. All of the context is there for it.
    fn tokens_of(
        &self,
        text: &EmbedText,
        embeds: &Embeds,
        param: &str,
    ) -> Result<Vec<u32>, Refusal> {
        let tokens = match text {
            EmbedText::Tokens(tokens) => {
                self.check_known(tokens, &format!("`{param}`"), param)?;
                tokens.clone()
            }
            EmbedText::Text(text) => {
                self.check_bytes(text.len()).map_err(|refusal| refusal.with_param(param))?;
                let plain = self.parts.tokenizer.encode_plain(text, false);
                let plain = plain.map_err(|error| tokenizer_failed(error).with_param(param))?;
                let (front, behind) = &embeds.around;
                [front.as_slice(), plain.as_slice(), behind.as_slice()].concat()
            }
        };
        if tokens.is_empty() {
            let message = format!("`{param}` has no tokens, and a vector needs at least one");
            return Err(Refusal::bad_request(message).with_param(param));
        }
        let (have, context) = (tokens.len() as u64, u64::from(self.parts.context));
        if have > context {
            let message = format!(
                "`{param}` has {have} tokens, the model's context holds {context}; shorten the text"
            );
            let refusal = Refusal::new(Code::ContextLengthExceeded, message).with_param(param);
            return Err(refusal.with_limit(context, have));
        }
        Ok(tokens)
    }

    /// The tokens of a prompt as the model sees it.
    fn tokens(&self, input: &Input, tools: Option<&Tools>) -> Result<Vec<u32>, Refusal> {
        match input {
            Input::Chat(messages) => self.conversation(messages, tools),
            Input::Ask { system, text } if self.parts.template.is_some() => {
                let message = |role, content: &str| Message::new(role, content);
                let system = system.iter().map(|system| message(Role::System, system));
                let messages: Vec<Message> = system.chain([message(Role::User, text)]).collect();
                self.conversation(&messages, None)
            }
            Input::Ask { system: Some(system), text } => self.text(&format!("{system}\n\n{text}")),
            Input::Completion(text) | Input::Ask { system: None, text } => self.text(text),
            // Its texts are no one prompt.
            Input::Embed(_) => Ok(Vec::new()),
        }
    }

    fn finish(&self, tokens: Vec<u32>, request: &Request) -> Result<Prepared, Refusal> {
        if tokens.is_empty() {
            return Err(Refusal::bad_request(
                "the prompt is empty, and this model needs at least one token",
            ));
        }
        let have = u32::try_from(tokens.len()).unwrap_or(u32::MAX);
        let context = self.parts.context;
        let Some(room) = context.checked_sub(have).filter(|room| *room > 0) else {
            return Err(too_long(context, u64::from(have), ""));
        };
        let max_tokens = match request.context_overflow {
            ContextOverflow::Stop => request.max_tokens.map_or(room, |most| most.min(room)),
            ContextOverflow::Slide => self.sliding(request.max_tokens, room, have)?,
        };
        self.check_tokens(request)?;
        let template = self.parts.template.as_ref();
        let style = template.and_then(Template::calls).unwrap_or(CallStyle::Hermes);
        let tools = request.tools.as_ref().filter(|tools| tools.choice != ToolChoice::None);
        let calls = tools.map(|_| style);
        let demand = Demand::new(&request.constraint, tools.map(|tools| (tools, style)));
        let form = self.parts.grammars.compile(&demand)?;
        let mark = calls.map(CallStyle::mark);
        let mark = mark.and_then(|mark| Some((self.parts.tokenizer.control(mark)?, mark)));
        Ok(Prepared {
            tokens,
            texts: Vec::new(),
            max_tokens,
            sampling: request.sampling.clone(),
            stop: request.stop.clone(),
            stop_ids: request.stop_token_ids.clone(),
            slides: max_tokens > room,
            form,
            calls,
            mark,
            logprobs: request.logprobs,
        })
    }

    /// How long an answer may be that goes on behind the end of the context. The prompt is seen whole to the end.
    fn sliding(&self, asked: Option<u32>, room: u32, have: u32) -> Result<u32, Refusal> {
        let Some(most) = asked else {
            let message = "an answer that slides on over the context needs `max_tokens`: nothing else is sure to end it";
            return Err(Refusal::bad_request(message).with_param("max_tokens"));
        };
        if most > MAX_SLIDING {
            let message = format!(
                "`max_tokens` is {most}; an answer that slides on over the context has at most {MAX_SLIDING}"
            );
            let refusal = Refusal::bad_request(message).with_param("max_tokens");
            return Err(refusal.with_limit(MAX_SLIDING.into(), most.into()));
        }
        let least = MIN_WINDOW.min(self.parts.context / 4);
        if most > room && room < least {
            let about =
                format!(", which leaves {room}, and an answer that slides on needs {least};");
            let message = format!(
                "the prompt has {have} tokens of the context's {}{about} shorten the prompt",
                self.parts.context
            );
            let refusal = Refusal::new(Code::ContextLengthExceeded, message);
            return Err(refusal.with_limit(self.parts.context.into(), have.into()));
        }
        Ok(most)
    }

    /// Refuses biases and ends by tokens that the model does not have.
    fn check_tokens(&self, request: &Request) -> Result<(), Refusal> {
        let vocab = self.parts.vocab;
        let unknown = |id: u32| usize::try_from(id).map_or(true, |id| id >= vocab);
        let bias = (request.sampling.logit_bias.iter().map(|(id, _)| *id))
            .find(|id| unknown(*id))
            .map(|id| ("logit_bias", format!("logit_bias.{id}"), id));
        let stop = (request.stop_token_ids.iter().copied().find(|id| unknown(*id)))
            .map(|id| ("stop_token_ids", "stop_token_ids".to_owned(), id));
        let Some((field, param, id)) = bias.or(stop) else { return Ok(()) };
        let message = format!(
            "`{field}` names the token {id}; the model has the tokens 0 to {}",
            vocab.saturating_sub(1)
        );
        Err(Refusal::bad_request(message).with_param(param))
    }

    fn text(&self, text: &str) -> Result<Vec<u32>, Refusal> {
        self.check_bytes(text.len())?;
        self.parts.tokenizer.encode_text(text).map_err(tokenizer_failed)
    }

    fn conversation(
        &self,
        messages: &[Message],
        tools: Option<&Tools>,
    ) -> Result<Vec<u32>, Refusal> {
        let Some(template) = &self.parts.template else {
            let message = "this model has no chat template, so it cannot hold a conversation; ask it to complete a text instead";
            return Err(Refusal::new(Code::Unsupported, message).with_param("messages"));
        };
        let in_words;
        let (messages, tools) = if template.calls().is_some() {
            (messages, tools)
        } else {
            in_words = tools::in_words(messages, tools);
            (in_words.as_slice(), None)
        };
        self.check_bytes(messages.iter().map(|m| m.content.len()).sum())?;
        let tokenizer = &self.parts.tokenizer;
        self.check_calls(messages, tools)?;
        let plain = template.render(messages, tools)?;
        let marks = Marks::for_messages(messages);
        // A template may refuse marked contents that it takes plain, when it looks into them.
        let marked = template
            .render(&marks.put(messages), tools)
            .ok()
            .and_then(|marked| marks.take(&marked));
        let ids = match marked {
            Some((text, client)) if text == plain => tokenizer.encode_conversation(&plain, &client),
            _ if messages.iter().any(|m| tokenizer.has_special(&m.content)) => {
                let message = "a message holds the text of one of the model's control tokens, and this model's chat template \
                               changes messages in a way that leaves unclear which tokens are meant; leave that text out";
                return Err(Refusal::bad_request(message).with_param("messages"));
            }
            _ => tokenizer.encode_speaking(&plain),
        };
        ids.map_err(tokenizer_failed)
    }

    /// Refuses tools and calls that hold the text of a control token: templates write them as JSON, between control tokens
    /// of their own, and what is whose could not be told apart there.
    fn check_calls(&self, messages: &[Message], tools: Option<&Tools>) -> Result<(), Refusal> {
        let special = |text: &str| self.parts.tokenizer.has_special(text);
        let refuse = |what: &str, param: &str| {
            let message = format!(
                "{what} holds the text of one of the model's control tokens; leave that text out"
            );
            Err(Refusal::bad_request(message).with_param(param))
        };
        let mut calls = messages.iter().flat_map(|message| &message.calls);
        if calls.any(|call| special(&call.arguments) || special(&call.id)) {
            return refuse("a call of a tool", "messages");
        }
        let texts = |tool: &crate::request::Tool| {
            special(&tool.parameters) || tool.description.as_deref().is_some_and(special)
        };
        if tools.is_some_and(|tools| tools.list.iter().any(texts)) {
            return refuse("a tool", "tools");
        }
        Ok(())
    }

    /// Refuses what is certainly too long before tokenising it: a token has at most so many bytes.
    fn check_bytes(&self, bytes: usize) -> Result<(), Refusal> {
        let least = bytes / self.parts.tokenizer.pieces().longest().max(1);
        // Normalisers may shorten a text; no known one by more than this.
        if least / 4 > usize::try_from(self.parts.context).unwrap_or(usize::MAX) {
            return Err(too_long(self.parts.context, least as u64, "at least "));
        }
        Ok(())
    }
}

/// Refuses vectors of another length than the model's, and more of them than are held at once.
fn check_size(embed: &Embed, width: usize) -> Result<(), Refusal> {
    if let Some(wanted) = embed.dimensions.filter(|wanted| usize::try_from(*wanted) != Ok(width)) {
        let message = format!(
            "`dimensions` is {wanted}; this model's vectors have {width} numbers, and none are left out"
        );
        let refusal = Refusal::new(Code::Unsupported, message).with_param("dimensions");
        return Err(refusal.with_limit(width as u64, wanted.into()));
    }
    let (most, have) = (MAX_NUMBERS / width.max(1), embed.texts.len());
    if have > most {
        let message = format!(
            "`input` has {have} texts; of vectors with {width} numbers {most} are given at a time"
        );
        let refusal = Refusal::bad_request(message).with_param("input");
        return Err(refusal.with_limit(most as u64, have as u64));
    }
    Ok(())
}

fn too_long(context: u32, have: u64, about: &str) -> Refusal {
    let message = format!(
        "the prompt has {about}{have} tokens, the model's context holds {context} and one must be left for the answer; shorten the prompt"
    );
    Refusal::new(Code::ContextLengthExceeded, message).with_limit(u64::from(context), have)
}

fn tokenizer_failed(reason: impl std::fmt::Display) -> Refusal {
    // Whatever it is, other prompts do not have it.
    Refusal::bad_request(format!("the prompt cannot be turned into tokens: {reason}"))
}
