//! Tools: how a model writes calls, told by its chat template; what a model without such a template is told; and the grammar
//! under which an answer is text or well-formed calls with arguments that are valid against the tool's schema.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::grammar::{unusable, with_options};
use super::schema;
use crate::request::{
    CallStyle, Code, Constraint, Message, Refusal, Role, Tool, ToolCall, ToolChoice, Tools,
};

/// The style that a chat template's source shows; `None` where it has no word about tools that is known here.
pub(super) fn style_of(template: &str) -> Option<CallStyle> {
    if !template.contains("tools") {
        None
    } else if template.contains("[TOOL_CALLS]") && !template.contains("[ARGS]") {
        Some(CallStyle::Mistral)
    } else if template.contains("<tool_call>") && !template.contains("<function=") {
        Some(CallStyle::Hermes)
    } else if template.contains("\"parameters\": ") && template.contains("ipython") {
        Some(CallStyle::Llama)
    } else {
        None
    }
}

/// A tool as templates expect it: OpenAI's object.
pub(super) fn object(tool: &Tool) -> Value {
    let mut function = Map::new();
    function.insert("name".into(), tool.name.as_str().into());
    function.extend(tool.description.as_deref().map(|text| ("description".into(), text.into())));
    let parameters = serde_json::from_str(&tool.parameters).unwrap_or_default();
    function.insert("parameters".into(), parameters);
    json!({"type": "function", "function": function})
}

/// A call as templates expect it: the arguments as a value, where they are one.
pub(super) fn call_object(call: &ToolCall) -> Value {
    let arguments: Value =
        serde_json::from_str(&call.arguments).unwrap_or_else(|_| call.arguments.as_str().into());
    json!({"type": "function", "id": call.id, "function": {"name": call.name, "arguments": arguments}})
}

/// The conversation for a template that knows no tools: what they are stands in the system message, calls and results in
/// usual messages, in the Hermes style.
pub(super) fn in_words(messages: &[Message], tools: Option<&Tools>) -> Vec<Message> {
    let mut out: Vec<Message> = messages.iter().map(plain).collect();
    let Some(tools) = tools else { return out };
    let mut text = "You can call these tools:\n".to_owned();
    for tool in &tools.list {
        // Writing into a String cannot fail.
        let _ = writeln!(text, "{}", object(tool));
    }
    text.push_str(
        "To call one, answer with its name and arguments as JSON:\n<tool_call>\n{\"name\": …, \"arguments\": {…}}\n</tool_call>",
    );
    match out.first_mut().filter(|first| first.role == Role::System) {
        Some(system) => system.content = format!("{}\n\n{text}", system.content),
        None => out.insert(0, Message::new(Role::System, text)),
    }
    out
}

fn plain(message: &Message) -> Message {
    if message.role == Role::Tool {
        let text = format!("<tool_response>\n{}\n</tool_response>", message.content);
        return Message::new(Role::User, text);
    }
    let calls = message.calls.iter().map(|call| {
        format!(
            "<tool_call>\n{{\"name\": \"{}\", \"arguments\": {}}}\n</tool_call>",
            call.name, call.arguments
        )
    });
    let said = Some(message.content.clone()).filter(|text| !text.is_empty());
    let parts: Vec<String> = said.into_iter().chain(calls).collect();
    Message::new(message.role, parts.join("\n"))
}

/// The grammar of an answer that may call tools. `mark` is the token that stands for the style's mark, where it is a control
/// token; `constraint` is the form of an answer that calls none.
///
/// # Errors
/// `bad_request` or `unsupported`, for a schema or a form that cannot be enforced.
pub(super) fn grammar(
    tools: &Tools,
    style: CallStyle,
    mark: Option<u32>,
    constraint: &Constraint,
) -> Result<String, Refusal> {
    let mut lark = String::new();
    let mut names = Vec::new();
    for (i, tool) in tools.callable().enumerate() {
        let opening = format!("{{\"name\": \"{}\", \"{}\": ", tool.name, style.arguments());
        let schema = arguments(tool)?;
        let _ = writeln!(lark, "call_{i}: {} args_{i} \"}}\"", literal(&opening));
        let _ = writeln!(lark, "args_{i}: %json {schema}");
        names.push(format!("call_{i}"));
    }
    if names.is_empty() {
        return Err(unusable("there is no tool to call"));
    }
    let _ = writeln!(lark, "call: {}", names.join(" | "));
    let token = mark.map(|id| format!("<[{id}]>"));
    let marked = token.clone().unwrap_or_else(|| literal(style.mark()));
    // What follows the mark.
    let tail = match (style, tools.parallel) {
        (CallStyle::Llama, _) => "call".to_owned(),
        (CallStyle::Hermes, false) => r#""\n" call "\n</tool_call>""#.to_owned(),
        (CallStyle::Hermes, true) => {
            format!(r#""\n" call "\n</tool_call>" ("\n" {marked} "\n" call "\n</tool_call>")*"#)
        }
        (CallStyle::Mistral, false) => r#"(" [" | "[") call "]""#.to_owned(),
        (CallStyle::Mistral, true) => r#"(" [" | "[") call (", " call)* "]""#.to_owned(),
    };
    let _ = writeln!(lark, "tail: {tail}");
    let must = tools.choice != ToolChoice::Auto;
    let start = match (style, must, &token) {
        (CallStyle::Llama, true, _) => "tail".to_owned(),
        (_, true, _) => format!("{marked} tail"),
        (CallStyle::Llama, false, _) => "text | tail".to_owned(),
        // Words may stand in front of calls, but no more than a form allows.
        _ if *constraint != Constraint::None => format!("text | {marked} tail"),
        (_, false, Some(token)) => format!("text | (WORDS)? {token} tail"),
        (_, false, None) => "text | before tail".to_owned(),
    };
    if !must {
        let never = match style {
            CallStyle::Llama => r#"\s*\{\s*"name""#.to_owned(),
            CallStyle::Hermes => format!("(?s:.*){}", style.mark()),
            CallStyle::Mistral => {
                format!("(?s:.*){}", style.mark().replace('[', r"\[").replace(']', r"\]"))
            }
        };
        let _ = writeln!(lark, "text: {}", text(constraint, style)?);
        let _ = writeln!(lark, "WORDS: /(?s:.+)/ & ~/{never}(?s:.*)/");
        if token.is_none() && style != CallStyle::Llama {
            let _ = writeln!(lark, "before[lazy]: /{never}/");
        }
    }
    Ok(format!("start: {start}\n{lark}"))
}

/// An answer that calls nothing.
fn text(constraint: &Constraint, style: CallStyle) -> Result<String, Refusal> {
    let json = |value| format!("%json {}", with_options(value, "", ":"));
    match (constraint, style) {
        (Constraint::None, _) => Ok("(WORDS)?".to_owned()),
        (Constraint::JsonObject, CallStyle::Hermes | CallStyle::Mistral) => {
            Ok(json(json!({"type": "object"})))
        }
        (Constraint::JsonSchema(source), CallStyle::Hermes | CallStyle::Mistral) => {
            Ok(json(schema::read(source)?))
        }
        _ => {
            let message = "this model cannot be held to that form and be free to call a tool at once; leave one of the two \
                           out, or set `tool_choice`";
            Err(Refusal::new(Code::Unsupported, message).with_param("tools"))
        }
    }
}

/// The schema of a tool's arguments: an object, and one without other properties than it names where nothing in it speaks of
/// others. Everything that satisfies it satisfies the asker's.
fn arguments(tool: &Tool) -> Result<Value, Refusal> {
    let named = |mut refusal: Refusal| {
        refusal.message = format!("the tool `{}`: {}", tool.name, refusal.message);
        refusal.with_param("tools")
    };
    let mut schema = schema::read(&tool.parameters).map_err(named)?;
    if let Some(fields) = schema.as_object_mut() {
        fields.entry("type").or_insert_with(|| "object".into());
        let open =
            ["patternProperties", "allOf", "anyOf", "oneOf", "$ref", "if", "unevaluatedProperties"];
        if !open.iter().any(|key| fields.contains_key(*key)) {
            fields.entry("additionalProperties").or_insert(Value::Bool(false));
            fields.entry("properties").or_insert_with(|| json!({}));
        }
    }
    Ok(with_options(schema, " ", ": "))
}

fn literal(text: &str) -> String {
    Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::inference::form::is_allowed;
    use crate::inference::grammar::{Demand, Grammars};
    use crate::inference::tokenizer::tests::tiny;

    fn tools(choice: ToolChoice, parallel: bool) -> Tools {
        let tool = |name: &str, parameters: &str| Tool {
            name: name.to_owned(),
            description: None,
            parameters: parameters.to_owned(),
        };
        let lamp = r##"{"properties":{"on":{"$ref":"#/$defs/b"},"room":{"type":"string"}},"required":["on"],"$defs":{"b":{"type":"boolean"}}}"##;
        Tools { list: vec![tool("lamp", lamp), tool("time.now", "{}")], choice, parallel }
    }

    /// Whether an answer of this text can be given, and whether it can end there.
    fn passes(tools: &Tools, style: CallStyle, form: &Constraint, text: &str) -> Option<bool> {
        let tokenizer = tiny();
        let vocab = tokenizer.vocab_size();
        let grammars = Grammars::new(Arc::new(tokenizer), Arc::new([2]), vocab);
        let demand = Demand::new(form, Some((tools, style)));
        let mut form = grammars.compile(&demand).unwrap().unwrap();
        let tokenizer = tiny();
        for byte in text.bytes() {
            // Several tokens may be the same byte.
            let allowed = form.mask().ok()?;
            let mut tokens = 0..u32::try_from(vocab).unwrap();
            let token = tokens
                .find(|id| is_allowed(&allowed, *id) && tokenizer.pieces().bytes(*id) == [byte])?;
            form.take(token).unwrap();
        }
        Some(form.is_complete())
    }

    #[test]
    fn an_answer_is_text_or_well_formed_calls() {
        use CallStyle::{Hermes, Llama, Mistral};
        let hermes = "<tool_call>\n{\"name\": \"lamp\", \"arguments\": {\"on\": true, \"room\": \"a\"}}\n</tool_call>";
        let llama = "{\"name\": \"time.now\", \"parameters\": {}}";
        let mistral = "[TOOL_CALLS][{\"name\": \"lamp\", \"arguments\": {\"on\": false}}";
        let two = format!("{hermes}\n{hermes}");
        let said = format!("I will.\n{hermes}");
        for (style, choice, parallel, text, expected) in [
            (Hermes, ToolChoice::Auto, true, "", Some(true)),
            (Hermes, ToolChoice::Auto, true, "Hi < there {\n", Some(true)),
            (Hermes, ToolChoice::Auto, true, hermes, Some(true)),
            (Hermes, ToolChoice::Auto, true, &said, Some(true)),
            (Hermes, ToolChoice::Auto, true, &two, Some(true)),
            (Hermes, ToolChoice::Auto, false, &two, None),
            (Hermes, ToolChoice::Auto, true, "<tool_call>", Some(false)),
            (Hermes, ToolChoice::Auto, true, "<tool_call>\n{\"name\": \"lam\"", None),
            (Hermes, ToolChoice::Auto, true, &hermes.replace("true", "1"), None),
            (Hermes, ToolChoice::Auto, true, &hermes.replace("room", "rooms"), None),
            (Hermes, ToolChoice::Required, true, "Hi", None),
            (Hermes, ToolChoice::Required, true, hermes, Some(true)),
            (Hermes, ToolChoice::Named("time.now".into()), true, hermes, None),
            (Llama, ToolChoice::Auto, true, "Hi {\"name\": 1}", Some(true)),
            (Llama, ToolChoice::Auto, true, "{\"a\": 1}", Some(true)),
            (Llama, ToolChoice::Auto, true, " {\"name\"", None),
            (Llama, ToolChoice::Auto, true, "{\"name\": \"other", None),
            (Llama, ToolChoice::Auto, true, llama, Some(true)),
            (Llama, ToolChoice::Required, true, llama, Some(true)),
            (Mistral, ToolChoice::Auto, true, "Hi [TOOL_CALLS", Some(true)),
            (Mistral, ToolChoice::Auto, true, &format!("{mistral}]"), Some(true)),
            (
                Mistral,
                ToolChoice::Required,
                true,
                &format!("{mistral}, {}]", mistral.strip_prefix("[TOOL_CALLS][").unwrap()),
                Some(true),
            ),
            (Mistral, ToolChoice::Required, false, &format!("{mistral}, "), None),
        ] {
            let tools = tools(choice.clone(), parallel);
            let passes = passes(&tools, style, &Constraint::None, text);
            assert_eq!(passes, expected, "{style:?} {choice:?} {parallel} {text}");
        }
    }

    #[test]
    fn text_keeps_its_form_beside_tools() {
        let tools = tools(ToolChoice::Auto, true);
        let form = Constraint::JsonObject;
        let passes = |text| passes(&tools, CallStyle::Hermes, &form, text);
        assert_eq!((passes("{\"a\":1}"), passes("Hi")), (Some(true), None));
        assert_eq!(passes("<tool_call>\n{\"name\": \"lamp\""), Some(false));
    }

    #[test]
    fn a_template_without_tools_is_told_in_words() {
        let call = ToolCall { id: "1".into(), name: "lamp".into(), arguments: "{}".into() };
        let asked = Message::new(Role::User, "On!");
        let called = Message { calls: vec![call], ..Message::new(Role::Assistant, "Yes.") };
        let result = Message { call_id: Some("1".into()), ..Message::new(Role::Tool, "ok") };
        let told = in_words(&[asked, called, result], Some(&tools(ToolChoice::Auto, true)));
        assert_eq!(told[0].role, Role::System);
        assert!(told[0].content.contains(r#"{"type":"function","function":{"name":"lamp","#));
        let rest: Vec<&str> = told[1..].iter().map(|message| message.content.as_str()).collect();
        let call = "Yes.\n<tool_call>\n{\"name\": \"lamp\", \"arguments\": {}}\n</tool_call>";
        assert_eq!(rest, ["On!", call, "<tool_response>\nok\n</tool_response>"]);
    }
}
