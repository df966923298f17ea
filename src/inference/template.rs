//! Chat templates: a conversation in the form the model was trained on. Templates come from the model folder only and
//! are still not trusted: bounded in size, nesting, steps and memory.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use minijinja::value::{Kwargs, Serde};
use minijinja::{AutoEscape, Environment, ErrorKind, Value, context};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter};

use super::error::{LoadError, chain};
use super::{markup, tools};
use crate::request::{CallStyle, Code, Message, Refusal, Tools};

/// The largest template among the well-known models has 13 kB.
const MAX_SOURCE_BYTES: usize = 64 << 10;
/// minijinja parses expressions by recursion: 200,000 `-` in a row end the process. No template nests this deep.
const MAX_NESTING: usize = 64;
/// Steps of one rendering; minijinja also charges memory to it, at about 64 bytes a step. A conversation of 1,000
/// messages takes a twentieth of it (tried below), an endless loop ends within a second.
const FUEL: u64 = 2_000_000;
/// Enough for what [`MAX_SOURCE_BYTES`] and [`MAX_NESTING`] let through, several times over. Only touched pages count.
const COMPILE_STACK_BYTES: usize = 64 << 20;
/// The template's name; ends in nothing that switches escaping on.
const NAME: &str = "chat_template";

/// A compiled chat template.
#[derive(Clone)]
pub(super) struct Template {
    environment: Arc<Environment<'static>>,
    bos: String,
    eos: String,
    /// How the model writes calls of tools, where the template tells it of tools.
    calls: Option<CallStyle>,
    /// Today's date as templates ask for it; fixed by tests.
    now: Arc<dyn Fn(&str) -> String + Send + Sync>,
}

impl std::fmt::Debug for Template {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Template")
            .field("bos", &self.bos)
            .field("eos", &self.eos)
            .finish_non_exhaustive()
    }
}

impl Template {
    /// Compiles a template and tries it on a conversation.
    pub(super) fn compile(
        file: &Path,
        source: &str,
        bos: Option<String>,
        eos: Option<String>,
    ) -> Result<Self, LoadError> {
        let wrong = |reason: String| LoadError::File { path: PathBuf::from(file), reason };
        check_source(source).map_err(wrong)?;
        let calls = tools::style_of(source);
        let source = source.to_owned();
        let compile = move || environment(source);
        let thread =
            std::thread::Builder::new().name("template".into()).stack_size(COMPILE_STACK_BYTES);
        let compiled = thread.spawn(compile).map_err(LoadError::Thread)?.join();
        let environment = compiled
            .map_err(|_| wrong("the chat template made its compiler panic".into()))?
            .map_err(|error| {
                wrong(format!("the chat template cannot be compiled: {}", chain(&error)))
            })?;
        let template = Template {
            environment: Arc::new(environment),
            bos: bos.unwrap_or_default(),
            eos: eos.unwrap_or_default(),
            calls,
            now: Arc::new(super::date::now),
        };
        let probe = [Message::new(crate::request::Role::User, "Hello")];
        match template.try_render(&probe, None) {
            Ok(text) if text.contains("Hello") => Ok(template),
            Ok(_) => Err(wrong(
                "the chat template drops what the user says (tried with one message)".into(),
            )),
            Err(error) => Err(wrong(format!(
                "the chat template fails on a conversation of one message: {}",
                chain(&error)
            ))),
        }
    }

    /// How the model writes calls of tools, where the template tells it of tools.
    pub(super) fn calls(&self) -> Option<CallStyle> {
        self.calls
    }

    /// The conversation as the model wants it, ready for its answer.
    pub(super) fn render(
        &self,
        messages: &[Message],
        tools: Option<&Tools>,
    ) -> Result<String, Refusal> {
        self.try_render(messages, tools).map_err(|error| match error.kind() {
            ErrorKind::OutOfFuel => {
                Refusal::bad_request("the conversation is too long for the model's chat template")
                    .with_param("messages")
            }
            // raise_exception: the model's own rules, such as roles that must alternate.
            ErrorKind::InvalidOperation if error.detail().is_some() => {
                Refusal::bad_request(format!(
                    "the model's chat template refuses this conversation: {}",
                    error.detail().unwrap_or_default()
                ))
                .with_param("messages")
            }
            _ => Refusal::new(
                Code::Internal,
                format!("the model's chat template failed: {}", chain(&error)),
            ),
        })
    }

    fn try_render(
        &self,
        messages: &[Message],
        tools: Option<&Tools>,
    ) -> Result<String, minijinja::Error> {
        #[derive(Serialize)]
        struct Turn<'a> {
            role: &'a str,
            content: &'a str,
            // Templates ask whether these are there at all.
            #[serde(skip_serializing_if = "Vec::is_empty")]
            tool_calls: Vec<serde_json::Value>,
            #[serde(skip_serializing_if = "Option::is_none")]
            tool_call_id: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            name: Option<&'a str>,
        }
        let called = |id: &str| {
            let calls = messages.iter().flat_map(|message| &message.calls);
            calls.filter(|call| call.id == id).map(|call| call.name.as_str()).next_back()
        };
        let turns: Vec<Turn<'_>> = messages
            .iter()
            .map(|message| Turn {
                role: message.role.as_str(),
                content: &message.content,
                tool_calls: message.calls.iter().map(tools::call_object).collect(),
                tool_call_id: message.call_id.as_deref(),
                name: message.call_id.as_deref().and_then(called),
            })
            .collect();
        let tools = tools.map_or(Value::UNDEFINED, |tools| {
            Value::from(Serde(tools.list.iter().map(tools::object).collect::<Vec<_>>()))
        });
        self.render_with(context! {
            messages => Value::from(Serde(turns)),
            tools => tools,
            add_generation_prompt => true,
        })
    }

    /// A conversation with everything a template may ask for, as JSON: `messages`, `tools`, `add_generation_prompt`, …
    ///
    /// # Errors
    /// What the template, or the engine that runs it, says.
    pub(super) fn render_json(&self, conversation: &serde_json::Value) -> Result<String, String> {
        self.render_with(Value::from(Serde(conversation))).map_err(|error| match error.kind() {
            ErrorKind::OutOfFuel => format!("the rendering takes more than {FUEL} steps"),
            _ => chain(&error),
        })
    }

    /// `given` wins over what every template gets: transformers' `apply_chat_template` passes the same names.
    fn render_with(&self, given: Value) -> Result<String, minijinja::Error> {
        let now = Arc::clone(&self.now);
        let strftime = Value::from_function(move |format: &str| now(format));
        let always = context! {
            bos_token => &self.bos,
            eos_token => &self.eos,
            tools => (),
            documents => (),
            strftime_now => strftime,
        };
        self.environment.get_template(NAME)?.render(context! { ..given, ..always })
    }
}

fn environment(source: String) -> Result<Environment<'static>, minijinja::Error> {
    let mut environment = Environment::new();
    let syntax =
        minijinja::syntax::SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?;
    environment.set_syntax(syntax);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function(
        "raise_exception",
        |message: String| -> Result<Value, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        },
    );
    environment.add_filter("tojson", tojson);
    markup::add(&mut environment, &source);
    environment.add_template_owned(NAME, source)?;
    Ok(environment)
}

/// JSON as Python's `json.dumps(ensure_ascii=False)` writes it, which is what templates are written against.
#[expect(clippy::needless_pass_by_value, reason = "has the form that minijinja's filters take")]
fn tojson(value: &Value, options: Kwargs) -> Result<Value, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    let _: Option<bool> = options.get("ensure_ascii")?;
    let _: Option<bool> = options.get("sort_keys")?;
    options.assert_all_used()?;
    let fail = |error: serde_json::Error| {
        minijinja::Error::new(ErrorKind::BadSerialization, error.to_string())
    };
    let mut out = Vec::new();
    match indent {
        Some(width) => {
            let spaces = " ".repeat(width.min(16));
            let formatter = PrettyFormatter::with_indent(spaces.as_bytes());
            value
                .serialize(&mut serde_json::Serializer::with_formatter(&mut out, formatter))
                .map_err(fail)?;
        }
        None => value
            .serialize(&mut serde_json::Serializer::with_formatter(&mut out, Spaced))
            .map_err(fail)?,
    }
    Ok(Value::from(String::from_utf8_lossy(&out).into_owned()))
}

/// `", "` and `": "` between things, as Python separates them.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
    ) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

/// Refuses what could overflow the parser's stack, which nothing could catch.
fn check_source(source: &str) -> Result<(), String> {
    if source.len() > MAX_SOURCE_BYTES {
        return Err(format!(
            "the chat template has {} bytes, at most {MAX_SOURCE_BYTES} are compiled",
            source.len()
        ));
    }
    let too_deep =
        || Err(format!("the chat template nests expressions more than {MAX_NESTING} deep"));
    let (mut brackets, mut blocks) = (0_usize, 0_usize);
    for byte in source.bytes() {
        match byte {
            b'(' | b'[' | b'{' => brackets += 1,
            b')' | b']' | b'}' => brackets = brackets.saturating_sub(1),
            _ => {}
        }
        if brackets > MAX_NESTING {
            return too_deep();
        }
    }
    // Prefix operators and conditional expressions recurse without brackets.
    let mut run = 0_usize;
    let words = source.split(|c: char| c.is_whitespace() || c == '(');
    for word in words {
        run = match word {
            "" => run,
            "not" => run + 1,
            word if word.bytes().all(|byte| matches!(byte, b'-' | b'+')) => run + word.len(),
            _ => 0,
        };
        if run > MAX_NESTING {
            return too_deep();
        }
    }
    let signs = source.split(|c: char| c != '-' && c != '+');
    if signs.map(str::len).any(|length| length > MAX_NESTING) {
        return too_deep();
    }
    for statement in source.split("{%").skip(1) {
        let word = statement.trim_start_matches(['-', '+', ' ', '\t', '\n', '\r']);
        let opens = ["if", "for", "macro", "call", "filter", "block", "set", "with"]
            .iter()
            .any(|w| word.starts_with(w));
        // `set` without a block is counted as well: it only makes the limit a little stricter, so it is left out.
        if opens && !word.starts_with("set") {
            blocks += 1;
        } else if word.starts_with("end") {
            blocks = blocks.saturating_sub(1);
        }
        if blocks > MAX_NESTING {
            return too_deep();
        }
    }
    if source.matches("elif").count() > 1024 || source.matches(" else ").count() > 1024 {
        return too_deep();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inference::test_material;
    use crate::request::Role;

    fn compile(source: &str) -> Result<Template, LoadError> {
        Template::compile(Path::new("t.jinja"), source, Some("<s>".into()), Some("</s>".into()))
    }

    fn user(content: &str) -> Message {
        Message::new(Role::User, content)
    }

    #[test]
    fn a_conversation_is_rendered() {
        let source = "{{ bos_token }}{% for m in messages %}\n  {% if m['role'] == 'user' %}\n[{{ m.content.strip() | tojson }}]\n  {% endif %}\n{% endfor %}{% if add_generation_prompt %}>{% endif %}";
        assert_eq!(
            compile(source).unwrap().render(&[user(" a<b>'é\" ")], None).unwrap(),
            "<s>[\"a<b>'é\\\"\"]\n>"
        );
    }

    #[test]
    fn json_is_spaced_as_python_does() {
        let source = "{{ {'a': [1, 2.5, none], 'b': {}} | tojson }}{{ messages[0].content }}";
        assert_eq!(
            compile(source).unwrap().render(&[user("")], None).unwrap(),
            "{\"a\": [1, 2.5, null], \"b\": {}}"
        );
    }

    #[test]
    fn bad_templates_are_refused() {
        let cases = [
            ("{% for m in messages %}{{ m.content }".to_owned(), "cannot be compiled"),
            ("{% for i in range(1000000000) %}x{% endfor %}".into(), "fails on a conversation"),
            ("{% for i in range(9999) %}{% for j in range(9999) %}{% for k in range(9999) %}{% endfor %}{% endfor %}{% endfor %}".into(), "fails"),
            ("{{ ''.__class__.__mro__ }}".into(), "fails on a conversation"),
            ("hello".into(), "drops what the user says"),
            (format!("{{{{ {}1 }}}}", "-".repeat(20_000)), "nests"),
            (format!("{{{{ {}1 }}}}", "- ".repeat(20_000)), "nests"),
            (format!("{{{{ {}1 }}}}", "not ".repeat(10_000)), "nests"),
            (format!("{{{{ {}1 }}}}", "(".repeat(10_000)), "nests"),
            ("{% if x %}".repeat(5_000), "nests"),
            ("x".repeat(70_000), "at most 65536"),
        ];
        for (source, words) in cases {
            let error = compile(&source).unwrap_err().to_string();
            assert!(error.contains(words), "{error} / {words}");
        }
    }

    #[test]
    fn long_conversations_have_room() {
        let source = "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) and false %}{{ raise_exception('x') }}{% endif %}{{ '<|' + m['role'] + '|>\\n' + m['content'] | trim + '<|end|>' }}{% endfor %}";
        let template = compile(source).unwrap();
        let many: Vec<Message> =
            (0..20_000).map(|_| user("How warm is it in the greenhouse?")).collect();
        assert!(template.render(&many, None).unwrap().len() > 600_000);
        assert!(template.render(&[user(&"x".repeat(16 << 20))], None).is_ok());
    }

    #[test]
    fn the_models_own_rules_reach_the_asker() {
        let source = "{% if messages[0].content == 'x' %}{{ raise_exception('roles must alternate') }}{% endif %}{{ messages[0].content }}";
        let refusal = compile(source).unwrap().render(&[user("x")], None).unwrap_err();
        assert_eq!(refusal.code, Code::BadRequest);
        assert!(refusal.message.contains("roles must alternate"));
    }

    /// What transformers renders, where it is at hand. Conversations with other variables than promptd passes are left out,
    /// and tools for templates whose calls are told in words.
    #[test]
    fn renderings_equal_the_reference() {
        let Some(root) = test_material::root() else { return };
        let (mut right, mut total, mut wrong) = (0, 0, Vec::new());
        for line in test_material::lines("chat-templates/vectors.jsonl").unwrap() {
            let context = line["context"].as_object().unwrap();
            let known = ["messages", "add_generation_prompt", "date_string", "tools"];
            let messages: Option<Vec<Message>> =
                line["context"]["messages"].as_array().unwrap().iter().map(message).collect();
            let (Some(messages), true) =
                (messages, context.keys().all(|key| known.contains(&key.as_str())))
            else {
                continue;
            };
            if line["context"]["add_generation_prompt"] != true {
                continue;
            }
            let file = root
                .join("chat-templates")
                .join(line["template_file"].as_str().unwrap_or("inline"));
            let inline = line["template"].as_str().map(str::to_owned);
            let mut source = inline.unwrap_or_else(|| std::fs::read_to_string(&file).unwrap());
            if let Some(date) = context.get("date_string") {
                source.insert_str(0, &format!("{{% set date_string = {date} %}}"));
            }
            let text = |key: &str| line[key].as_str().map(str::to_owned);
            let given = context.get("tools").map(given_tools);
            let compiled = Template::compile(&file, &source, text("bos_token"), text("eos_token"));
            if given.is_some() && compiled.as_ref().is_ok_and(|template| template.calls.is_none()) {
                continue;
            }
            total += 1;
            let rendered = compiled.map_err(|error| error.to_string()).and_then(|template| {
                template.render(&messages, given.as_ref()).map_err(|refusal| refusal.message)
            });
            let equal = match (&rendered, line["expected"].as_str()) {
                (Ok(text), Some(expected)) => text == expected,
                (Err(_), None) => true,
                _ => false,
            };
            if equal {
                right += 1;
            } else {
                wrong.push(format!("{}: {rendered:?}\nexpected {}", line["id"], line["expected"]));
            }
        }
        println!("chat templates: {right}/{total}");
        assert!(wrong.is_empty(), "{right} of {total} equal\n{}", wrong.join("\n"));
    }

    fn given_tools(value: &serde_json::Value) -> Tools {
        let tool = |tool: &serde_json::Value| {
            let function = &tool["function"];
            crate::request::Tool {
                name: function["name"].as_str().unwrap().to_owned(),
                description: function["description"].as_str().map(str::to_owned),
                parameters: function["parameters"].to_string(),
            }
        };
        let list = value.as_array().unwrap().iter().map(tool).collect();
        Tools { list, choice: crate::request::ToolChoice::Auto, parallel: true }
    }

    fn message(value: &serde_json::Value) -> Option<Message> {
        let fields = value.as_object()?;
        let role = match fields["role"].as_str()? {
            "system" => Role::System,
            "user" => Role::User,
            "assistant" => Role::Assistant,
            "tool" => Role::Tool,
            _ => return None,
        };
        let call = |call: &serde_json::Value| crate::request::ToolCall {
            id: call["id"].as_str().unwrap().to_owned(),
            name: call["function"]["name"].as_str().unwrap().to_owned(),
            arguments: call["function"]["arguments"].to_string(),
        };
        let calls = fields.get("tool_calls").and_then(|calls| calls.as_array());
        let content = fields["content"].as_str().map(str::to_owned);
        Some(Message {
            role,
            content: content.or_else(|| calls.map(|_| String::new()))?,
            calls: calls.into_iter().flatten().map(call).collect(),
            call_id: fields.get("tool_call_id").and_then(|id| id.as_str()).map(str::to_owned),
        })
    }
}
