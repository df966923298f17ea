//! HTTP clients that send nonsense, stop in the middle, send too much, read nothing or go away.

use std::time::Duration;

use promptd::scheduler::scripted::Call;
use promptd::socket::Patience;
use promptd::wire::Limits;
use serde_json::json;
use tokio::io::AsyncWriteExt as _;

use crate::support::door::{Client, Door, Kind, delta, finished, prefill, soon};
use crate::support::raw_http::{Answer, answered, ask, chat, request};

#[tokio::test]
async fn malformed_json_is_refused_at_every_length() {
    let mut door = Door::open(Kind::Http);
    let whole = r#"{"messages":[{"role":"user","content":"h\u00e9 你"}],"stop":["x"],"seed":-1,"stream":false}"#;
    for end in 0..whole.len() {
        let Some(part) = whole.get(..end) else { continue };
        let answer = ask(&door, request("POST", "/v1/chat/completions", part)).await;
        assert_eq!(
            (answer.status, &answer.json()["error"]["code"]),
            (400, &json!("bad_request")),
            "{part}"
        );
    }
    let mut broken =
        request("POST", "/v1/chat/completions", "{\"messages\":\"????\"}").into_bytes();
    for byte in broken.iter_mut().filter(|byte| **byte == b'?') {
        *byte = 0xff;
    }
    assert_eq!(ask(&door, broken).await.status, 400);
    assert_eq!(
        answered(&mut door, &request("POST", "/v1/chat/completions", whole), &["ok"]).await.status,
        200
    );
}

#[tokio::test]
async fn bodies_over_the_limit() {
    let limits = Limits { payload_bytes: 1000, ..Limits::default() };
    let mut door = Door::with(Kind::Http, Patience::default(), limits);
    let body = format!("{{\"prompt\":\"{}\"}}", "x".repeat(500_000));
    let announced = request("POST", "/v1/completions", &body);
    let chunked = format!(
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
        body.len()
    );
    for bytes in [announced, chunked] {
        let answer = ask(&door, bytes).await;
        let error = &answer.json()["error"];
        assert_eq!(
            (answer.status, &error["code"], &error["limit"]),
            (413, &json!("payload_too_large"), &json!(1000))
        );
    }
    let fits = format!("{{\"prompt\":\"{}\"}}", "x".repeat(1000 - 13));
    assert_eq!(
        answered(&mut door, &request("POST", "/v1/completions", &fits), &["y"]).await.status,
        200
    );
}

#[tokio::test]
async fn slow_and_half_requests_end() {
    let patience = Patience {
        head: Duration::from_millis(250),
        body: Duration::from_millis(250),
        ..Patience::default()
    };
    let mut door = Door::with(Kind::Http, patience, Limits::default());
    let whole = chat(&json!({}));
    let head = whole.find("\r\n\r\n").unwrap() + 4;
    // Half a head: the connection just ends. Half a body: the client hears why.
    for (sent, status) in
        [(0, None), (10, None), (head - 1, None), (head, Some(408)), (whole.len() - 1, Some(408))]
    {
        let mut client = door.connect().await;
        client.send(whole.get(..sent).unwrap()).await;
        let text = client.rest().await;
        assert_eq!(
            (!text.is_empty()).then(|| Answer::read(&text).status),
            status,
            "{sent}: {text}"
        );
    }
    // A client that hangs up anywhere in its request harms nobody.
    for sent in (0..whole.len()).step_by(7) {
        let mut client = door.connect().await;
        client.send(whole.get(..sent).unwrap()).await;
    }
    assert_eq!(answered(&mut door, &whole, &["ok"]).await.status, 200);
}

#[tokio::test]
async fn bytes_that_are_no_http() {
    let mut door = Door::open(Kind::Http);
    let huge = format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "y".repeat(20_000));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(100));
    for bytes in [
        "{\"prompt\":\"hi\"}\n",
        "\0\0\0\0\r\n\r\n",
        "GET /\r\n\r\n",
        &huge,
        &many,
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let mut client = door.connect().await;
        client.send(bytes).await;
        let text = client.rest().await;
        assert!(text.is_empty() || Answer::read(&text).status >= 400, "{bytes:?}: {text}");
    }
    assert_eq!(answered(&mut door, &chat(&json!({})), &["ok"]).await.status, 200);
}

/// Requests that two readers of HTTP understand differently: whichever part is hidden in another is never answered.
#[tokio::test]
async fn no_request_hides_in_another() {
    let door = Door::open(Kind::Http);
    let hidden = "GET /hidden HTTP/1.1\r\nHost: x\r\n\r\n";
    let length = hidden.len();
    let post = "POST /v1/completions HTTP/1.1\r\nHost: x\r\n";
    for bytes in [
        format!(
            "{post}Content-Length: {}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{hidden}",
            length + 5
        ),
        format!(
            "{post}Transfer-Encoding: chunked\r\nContent-Length: {}\r\n\r\n0\r\n\r\n{hidden}",
            length + 5
        ),
        format!("{post}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n{hidden}"),
        format!("{post}Transfer-Encoding: xchunked\r\nContent-Length: 0\r\n\r\n{hidden}"),
        format!("{post}Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n{hidden}"),
        format!("{post}Transfer-Encoding : chunked\r\nContent-Length: 0\r\n\r\n{hidden}"),
        format!("{post}Transfer-Encoding:\u{b}chunked\r\nContent-Length: 0\r\n\r\n{hidden}"),
        format!(
            "{post}Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n{hidden}"
        ),
        format!("{post}Content-Length: 0\r\nContent-Length: {length}\r\n\r\n{hidden}"),
        format!("{post}Content-Length: 0, {length}\r\n\r\n{hidden}"),
        format!("{post}Content-Length: +0\r\n\r\n{hidden}"),
        format!("{post}Content-Length: -1\r\n\r\n{hidden}"),
        format!("{post}Content-Length: 0x0\r\n\r\n{hidden}"),
        format!("{post}Content-Length: 18446744073709551616\r\n\r\n{hidden}"),
        format!("{post} Content-Length: 0\r\n\r\n{hidden}"),
        format!("{post}X: a\r\n Content-Length: 0\r\n\r\n{hidden}"),
        format!("{post}X: a\0b\r\nContent-Length: 0\r\n\r\n{hidden}"),
        format!("{post}Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n{hidden}"),
        format!("{post}Transfer-Encoding: chunked\r\n\r\n-1\r\n{hidden}"),
        format!("{post}Transfer-Encoding: chunked\r\n\r\n0 x\r\n\r\n{hidden}"),
        format!("{post}Transfer-Encoding: chunked\r\n\r\n1\r\n{{}}\r\n0\r\n\r\n{hidden}"),
        format!("{post}Transfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 0\r\n\r\n{hidden}"),
    ] {
        let mut client = door.connect().await;
        // The door may hang up before everything is written.
        let _ = client.stream.write_all(bytes.as_bytes()).await;
        let text = client.rest().await;
        assert!(!text.contains("hidden"), "{bytes:?}: {text}");
        assert!(text.matches("HTTP/1.1 ").count() <= 1, "{bytes:?}: {text}");
        assert!(text.is_empty() || (400..500).contains(&Answer::read(&text).status), "{text}");
    }
    assert_eq!(ask(&door, request("GET", "/health/live", "")).await.status, 200);
}

#[tokio::test]
async fn numbers_at_their_borders_and_depth() {
    let door = Door::open(Kind::Http);
    for (field, value) in [
        ("max_tokens", "0"),
        ("max_tokens", "-1"),
        ("max_tokens", "4294967296"),
        ("max_tokens", "1e400"),
        ("max_tokens", "0.5"),
        ("temperature", "2.0000001"),
        ("temperature", "-0.0000001"),
        ("temperature", "1e999"),
        ("top_p", "1.1"),
        ("seed", "18446744073709551616"),
        ("seed", "-9223372036854775809"),
        ("timeout_ms", "0"),
        ("top_logprobs", "21"),
        ("logit_bias", "{\"1\":100.1}"),
        ("logit_bias", "{\"4294967296\":1}"),
        ("n", "0"),
        ("stop", "[\"\"]"),
    ] {
        let body = format!(
            "{{\"messages\":[{{\"role\":\"user\",\"content\":\"x\"}}],\"{field}\":{value}}}"
        );
        let answer = ask(&door, request("POST", "/v1/chat/completions", &body)).await;
        assert!(matches!(answer.status, 400 | 501), "{field} {value}: {answer:?}");
    }
    for deep in ["[".repeat(100_000), "{\"a\":".repeat(100_000)] {
        let body = format!("{{\"messages\":{deep}");
        let answer = ask(&door, request("POST", "/v1/chat/completions", &body)).await;
        assert_eq!(answer.status, 400, "{answer:?}");
    }
}

#[tokio::test]
async fn who_goes_away_cancels() {
    let mut door = Door::open(Kind::Http);
    for stream in [true, false] {
        // While the prompt is being checked.
        let mut client = door.connect().await;
        client.send(chat(&json!({ "stream": stream }))).await;
        let (_, mut verdict) = door.submitted().await;
        drop(client);
        soon(verdict.abandoned()).await;

        // While it waits or is being read.
        let mut client = door.connect().await;
        client.send(chat(&json!({ "stream": stream }))).await;
        let events = door.accepted().await;
        events.send(prefill());
        drop(client);
        soon(events.closed()).await;

        // In the middle of the answer.
        let mut client = door.connect().await;
        client.send(chat(&json!({ "stream": stream }))).await;
        let events = door.accepted().await;
        events.send(delta("a"));
        if stream {
            client.until("\"content\":\"a\"").await;
        }
        drop(client);
        soon(events.closed()).await;

        // Closing the writing end is going away too: HTTP clients do not do it otherwise.
        let mut client = door.connect().await;
        client.send(chat(&json!({ "stream": stream }))).await;
        let events = door.accepted().await;
        client.stream.shutdown().await.unwrap();
        soon(events.closed()).await;
    }
}

#[tokio::test]
async fn who_does_not_read_counts_as_gone() {
    let patience = Patience { unread: Duration::from_millis(50), ..Patience::default() };
    let mut door = Door::with(Kind::Http, patience, Limits::default());
    let mut client = door.connect().await;
    client.send(chat(&json!({"stream": true}))).await;
    let events = door.accepted().await;
    let piece = "x".repeat(10_000);
    let fill = async {
        loop {
            events.send(delta(&piece));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    soon(async {
        tokio::select! { () = fill => {}, () = events.closed() => {} }
    })
    .await;
    drop(client);
}

#[tokio::test]
async fn one_connection_too_many() {
    let patience = Patience { connections: 1, ..Patience::default() };
    let mut door = Door::with(Kind::Http, patience, Limits::default());
    let mut first = door.connect().await;
    first.send(chat(&json!({}))).await;
    let events = door.accepted().await;
    let mut second: Client = door.connect().await;
    let answer = Answer::read(&second.rest().await);
    assert_eq!((answer.status, &answer.json()["error"]["code"]), (503, &json!("busy")));
    events.send(finished());
    first.rest().await;
    // The place is free again as soon as the first one's task has ended.
    let free = async {
        while ask(&door, request("GET", "/health/live", "")).await.status != 200 {
            tokio::task::yield_now().await;
        }
    };
    soon(free).await;
}

/// Damaged requests get an answer or the end of their connection, and never take the door down.
#[tokio::test]
async fn damaged_requests() {
    let patience = Patience {
        head: Duration::from_millis(300),
        body: Duration::from_millis(300),
        ..Patience::default()
    };
    let mut door = Door::with(Kind::Http, patience, Limits::default());
    let whole = chat(&json!({"stream": true, "stop": ["x"], "seed": 1})).into_bytes();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % below as u64).unwrap()
    };
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..200 {
        let mut bytes = whole.clone();
        for _ in 0..=random(4) {
            let at = random(bytes.len());
            match random(3) {
                0 => bytes[at] = u8::try_from(random(256)).unwrap(),
                1 => drop(bytes.remove(at)),
                _ => bytes.insert(at, u8::try_from(random(256)).unwrap()),
            }
        }
        let mut client = door.connect().await;
        clients.spawn(async move {
            // The door may hang up before everything is written.
            let _ = client.stream.write_all(&bytes).await;
            let text = client.rest().await;
            assert!(text.is_empty() || (200..600).contains(&Answer::read(&text).status), "{text}");
        });
    }
    let mut answered = 0;
    let all = async {
        loop {
            tokio::select! {
                client = clients.join_next() => match client {
                    Some(ended) => ended.unwrap(),
                    None => break,
                },
                call = door.script.next() => {
                    if let Some(Call::Submit(_, verdict)) = call {
                        verdict.accept(1).send(finished());
                        answered += 1;
                    }
                }
            }
        }
    };
    soon(all).await;
    assert!((1..200).contains(&answered), "{answered}");
    assert_eq!(ask(&door, request("GET", "/health/live", "")).await.status, 200);
}
