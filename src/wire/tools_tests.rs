//! Tools in chat requests: what is read from them and said about them.

use serde_json::{Value, json};

use super::tests::{ask, chat, refused};

#[test]
fn tools_of_a_chat() {
    let tool = |name: &str| json!({"type": "function", "function": {"name": name, "parameters": {"b": 1, "a": 2}}});
    let read = |body: Value| chat(&body).map(|asked| asked.submission.request.tools);
    let tools = read(json!({"tools": [tool("f"), tool("g.h-1")]})).unwrap().unwrap();
    assert_eq!((&tools.choice, tools.parallel), (&crate::request::ToolChoice::Auto, true));
    assert_eq!(tools.list[1].parameters, r#"{"b":1,"a":2}"#);
    let named = json!({"type": "function", "function": {"name": "f"}});
    let tools = read(
        json!({"tools": [tool("f"), tool("g")], "tool_choice": named, "parallel_tool_calls": false}),
    );
    let tools = tools.unwrap().unwrap();
    assert_eq!((tools.callable().count(), tools.parallel), (1, false));
    assert_eq!(read(json!({"tools": [], "tool_choice": "none"})).unwrap(), None);
    for (body, code, param) in [
        (json!({"tools": [tool("f")], "tool_choice": "always"}), "bad_request", "tool_choice"),
        (
            json!({"tools": [tool("f")], "tool_choice": {"type": "function", "function": {"name": "g"}}}),
            "bad_request",
            "tool_choice",
        ),
        (
            json!({"tools": [tool("f")], "tool_choice": {"type": "allowed_tools"}}),
            "unsupported",
            "tool_choice.type",
        ),
        (json!({"tools": [tool("f"), tool("f")]}), "bad_request", "tools[1].function.name"),
        (json!({"tools": [tool("a b")]}), "bad_request", "tools[0].function.name"),
        (
            json!({"tools": [{"type": "function", "function": {"name": "f", "parameter": {}}}]}),
            "bad_request",
            "tools[0].function.parameter",
        ),
        (json!({"tools": [tool("f")], "session": "s"}), "unsupported", "session"),
    ] {
        assert_eq!(refused(chat(&body)), (code, Some(param.to_owned())), "{body}");
    }
    let many: Vec<Value> = (0..129).map(|i| tool(&format!("f{i}"))).collect();
    assert_eq!(refused(chat(&json!({"tools": many}))), ("bad_request", Some("tools".to_owned())));
    assert_eq!(
        refused(ask(r#"{"prompt": "x", "tools": [1]}"#)),
        ("bad_request", Some("tools".to_owned()))
    );
}
