//! What can be learned of a model folder without loading its graph: whether it is whole, what its tokenizer makes of a text,
//! what its chat template makes of a conversation. For the command line; ONNX Runtime is not needed.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::detokenizer::Detokenizer;
use super::error::LoadError;
use super::files::{read, read_json, read_text};
use super::folder::{self, Folder};
use super::hashes::Hashes;
use super::template::Template;
use super::tokenizer::{Tokenizer, named_token};
use super::{Words, hashes, memory, prepared, runtime};

/// A model folder that was found to be whole.
#[derive(Clone, Debug)]
pub struct Checked {
    /// The folder's name.
    pub name: String,
    /// The architecture its configuration states.
    pub architecture: String,
    /// The graph that would be loaded.
    pub graph: PathBuf,
    /// Graphs beside it that could be named instead of the folder.
    pub variants: Vec<PathBuf>,
    /// Tokens of context.
    pub context: u32,
    /// Tokens the model knows.
    pub vocab_size: u32,
    /// Layers with keys and values.
    pub layers: u32,
    /// What keys and values are made of.
    pub cache: &'static str,
    /// Whether past and present of a prompt are one buffer, which allows batches.
    pub shares_buffer: bool,
    /// Bytes of the graph's file and of those it takes weights from.
    pub bytes: u64,
    /// Whether there is a chat template.
    pub chat: bool,
    /// Tokens that end an answer.
    pub eos: Vec<u32>,
    /// Things that are odd but not wrong.
    pub warnings: Vec<String>,
}

/// Checks a model folder: all that loading checks before it gives the graph to ONNX Runtime.
///
/// # Errors
/// The first thing that is wrong, with the file it is in.
pub fn check(path: &Path) -> Result<Checked, LoadError> {
    let folder = folder::open(path, &mut Hashes::default())?;
    let words = Words::read(&folder)?;
    let warnings = folder.config.warnings.iter().cloned().chain(words.warnings).collect();
    let number = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    Ok(Checked {
        architecture: folder.config.architecture.clone(),
        context: folder.config.context,
        vocab_size: number(folder.interface.vocab),
        layers: number(folder.interface.layers),
        cache: folder.interface.cache.as_str(),
        shares_buffer: folder.interface.shares_buffer,
        bytes: folder.files.iter().map(|(_, bytes)| bytes).sum(),
        chat: words.template.is_some(),
        eos: words.eos,
        warnings,
        name: folder.name,
        graph: folder.graph,
        variants: folder.variants,
    })
}

/// Where a prepared copy would be looked for: a store, and the libonnxruntime that it would have to be of.
#[derive(Clone, Copy, Debug)]
pub struct Copies<'a> {
    /// The folder of copies.
    pub store: &'a Path,
    /// libonnxruntime.
    pub library: &'a Path,
}

/// What a model needs of a board's memory, and what there is; with the weights of its prepared copy where there is one.
///
/// # Errors
/// As [`check`]'s, and where libonnxruntime cannot be opened.
pub fn plan(
    path: &Path,
    slots: u16,
    context: u32,
    copies: Option<Copies<'_>>,
) -> Result<(memory::Plan, Vec<String>), LoadError> {
    // Where there are copies, whoever made them left a memory of checksums, too.
    let copies = copies.filter(|copies| prepared::any(copies.store));
    let memory = copies.and_then(|copies| hashes::memory(copies.store));
    let mut hashes = Hashes::open(memory);
    let folder = folder::open(path, &mut hashes)?;
    let mut warnings = folder.config.warnings.clone();
    let mut prepared = false;
    if let Some(Copies { store, library }) = copies {
        let runtime = runtime::open(library)?;
        let key = prepared::Key::of(&folder, &runtime.version, &mut hashes)?;
        match prepared::find(store, &folder, &key, &mut hashes) {
            Ok(_) => prepared = true,
            Err(stale) => warnings.extend(stale),
        }
        hashes.save();
    }
    Ok((plan_of(&folder, slots, context, prepared), warnings))
}

/// The plan for a folder that was opened. `prepared`: its weights come from a prepared copy.
pub(super) fn plan_of(folder: &Folder, slots: u16, context: u32, prepared: bool) -> memory::Plan {
    let own = folder.config.context;
    let context = if context == 0 { own } else { context.min(own) };
    let model = memory::Model {
        file: &folder.contents,
        interface: &folder.interface,
        tokenizer_bytes: folder.tokenizer.len() as u64,
        own_context: own,
        prepared,
    };
    memory::plan(&model, slots.max(1), context, memory::available())
}

/// A folder's tokenizer.
#[derive(Debug)]
pub struct Texts {
    tokenizer: Tokenizer,
}

impl Texts {
    /// Opens the tokenizer of a folder; nothing else needs to be in there.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn open(folder: &Path) -> Result<Self, LoadError> {
        let file = folder.join("tokenizer.json");
        let config = config_of(folder)?;
        let tokenizer = Tokenizer::read(&file, &read(&file)?, &config, None)?;
        Ok(Texts { tokenizer })
    }

    /// A text's tokens, without a beginning of its own. `special`: what looks like a control token is one.
    ///
    /// # Errors
    /// Why the tokenizer cannot take it.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>, String> {
        self.tokenizer.encode_plain(text, special)
    }

    /// The token every prompt begins with, if there is one.
    pub fn beginning(&self) -> Option<u32> {
        self.tokenizer.bos()
    }

    /// The text of tokens, put together piece by piece as an answer is. Control tokens have none.
    pub fn decode(&self, ids: &[u32]) -> String {
        let pieces = self.tokenizer.pieces();
        let mut state = Detokenizer::after(pieces, &[]);
        let mut text: String = ids.iter().map(|id| state.push(pieces, *id)).collect();
        text.push_str(&state.finish(pieces));
        text
    }
}

/// Renders a conversation with a folder's chat template, or with one from another file.
///
/// # Errors
/// What is wrong with the folder, or with the template.
pub fn render(
    folder: &Path,
    template: Option<&Path>,
    conversation: &Value,
) -> Result<String, LoadError> {
    let (config, own) = folder::tokenizer_files(folder)?;
    let (file, source) = match (template, own) {
        (Some(file), _) => (file.to_owned(), read_text(file)?),
        (None, Some(own)) => own,
        (None, None) => {
            let reason = "has no chat template: there is no chat_template.jinja, and none in tokenizer_config.json";
            return Err(LoadError::Folder { path: folder.into(), reason: reason.into() });
        }
    };
    let named = |key| named_token(&config, key);
    let template = Template::compile(&file, &source, named("bos_token"), named("eos_token"))?;
    template.render_json(conversation).map_err(|reason| {
        LoadError::file(file, format!("the chat template refuses this conversation: {reason}"))
    })
}

/// `tokenizer_config.json`, where there is one.
fn config_of(folder: &Path) -> Result<Value, LoadError> {
    let file = folder.join("tokenizer_config.json");
    if file.symlink_metadata().is_ok() { read_json(&file) } else { Ok(Value::Null) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inference::test_material;

    /// What transformers renders, where it is at hand: every conversation, with tools and without.
    #[test]
    fn renderings_equal_the_reference() {
        let Some(root) = test_material::root() else { return };
        let (mut total, mut wrong) = (0, Vec::new());
        for line in test_material::lines("chat-templates/vectors.jsonl").unwrap() {
            let file = line["template_file"].as_str().unwrap_or("inline");
            let file = root.join("chat-templates").join(file);
            let inline = line["template"].as_str().map(str::to_owned);
            let source = inline.unwrap_or_else(|| std::fs::read_to_string(&file).unwrap());
            let text = |key: &str| line[key].as_str().map(str::to_owned);
            let template = Template::compile(&file, &source, text("bos_token"), text("eos_token"))
                .map_err(|error| error.to_string());
            total += 1;
            let rendered = template.and_then(|template| template.render_json(&line["context"]));
            let equal = match (&rendered, line["expected"].as_str()) {
                (Ok(text), Some(expected)) => text == expected,
                (Err(_), None) => true,
                _ => false,
            };
            if !equal {
                wrong.push(format!("{}: {rendered:?}\nexpected {}", line["id"], line["expected"]));
            }
        }
        assert!(wrong.is_empty(), "of {total}\n{}", wrong.join("\n"));
        assert!(total > 100, "only {total} vectors");
    }
}
