//! The service that runs, and the broker as it can be reached from here.

use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tokio::net::TcpStream;

use super::{Finding, Grade};
use crate::cli::http::{Client, Trouble};
use crate::cli::with_causes;
use crate::daemon;
use crate::settings::Settings;

/// A broker that takes longer to answer a connection is not there.
const REACH: Duration = Duration::from_secs(3);

/// Asks the service and knocks at the broker.
pub(super) async fn look(settings: Option<&Settings>, socket: &Path) -> Vec<Finding> {
    let mut findings = Vec::new();
    let client = Client { socket };
    match Box::pin(client.json("/health/ready", None)).await {
        Ok((_, status)) => told(&status, &mut findings),
        Err(trouble) => findings.push(unreachable(socket, &trouble)),
    }
    for (host, port) in settings.map(daemon::brokers).unwrap_or_default() {
        findings.push(knock(&host, port).await);
    }
    findings
}

/// What the service says of itself.
fn told(status: &Value, findings: &mut Vec<Finding>) {
    let text =
        |path: &str| status.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
    let state = text("/state");
    let message = text("/message");
    findings.push(match state.as_str() {
        "ready" => {
            let (model, provider) = (text("/model/name"), text("/model/provider"));
            let nodes = nodes(status);
            Finding::ok("service", format!("it answers with {model} on {provider}{nodes}"))
        }
        "unloaded" => Finding::ok("service", "it runs; the next prompt loads the model"),
        "loading" => Finding { about: "service", grade: Grade::Note, says: format!("it loads its model ({})", text("/stage")), fix: None },
        "model_failed" => {
            let fix = "mend what it names; promptd tries again by itself, or at `systemctl reload promptd`";
            Finding::bad("service", Grade::Problem, format!("it has no model: {message}"), fix)
        }
        _ => {
            let fix = "`promptd status` says more, `journalctl -u promptd` all";
            Finding::bad("service", Grade::Warning, format!("it is {state} {message}"), fix)
        }
    });
    let back = text("/went_back");
    if !back.is_empty() {
        let fix = "`promptd model use` tries the model again and says what becomes of it; `promptd model verify` looks at its files";
        let says = format!("the configured model did not come up, another answers: {back}");
        findings.push(Finding::bad("service", Grade::Warning, says, fix));
    }
    let wrong = text("/configuration_error");
    if !wrong.is_empty() {
        let fix =
            "mend it, then `systemctl reload promptd`; until then the configuration before holds";
        findings.push(Finding::bad(
            "service",
            Grade::Problem,
            format!("its configuration is wrong: {wrong}"),
            fix,
        ));
    }
    let Some(broker) = status.get("broker") else { return };
    let url = text("/broker/url");
    if broker.get("connected") == Some(&Value::Bool(true)) {
        findings.push(Finding::ok("service", format!("it is connected to {url}")));
        findings.extend(denied(status, &url));
    } else {
        let trouble = text("/broker/trouble");
        findings.push(Finding::bad(
            "service",
            Grade::Problem,
            format!("it has no connection to {url}: {trouble}"),
            way_to_broker(&trouble),
        ));
    }
}

/// Topics that the broker's access rules keep from promptd: without some of them it is deaf or dumb.
fn denied(status: &Value, url: &str) -> Option<Finding> {
    let denied = status.pointer("/broker/denied")?.as_array().filter(|all| !all.is_empty())?;
    let one = |denied: &Value| {
        let at = |key: &str| denied.get(key).and_then(Value::as_str).unwrap_or("?").to_owned();
        format!("to {} `{}` ({})", at("action"), at("topic"), at("reason"))
    };
    let all: Vec<String> = denied.iter().map(one).collect();
    let says = format!("{url} does not allow promptd {}", all.join(", "));
    let fix = "let promptd's user read and write these topics in the broker's access rules (systemd/mosquitto/promptd.acl has them all); promptd \
               tries again by itself";
    Some(Finding::bad("service", Grade::Problem, says, fix))
}

/// How many nodes of the graph run where: a GPU that computes few of them is of little use.
fn nodes(status: &Value) -> String {
    let counts = status.pointer("/model/nodes").and_then(Value::as_object).into_iter().flatten();
    let counts: Vec<String> = counts
        .map(|(provider, count)| format!("{count} nodes of its graph on {provider}"))
        .collect();
    if counts.is_empty() { String::new() } else { format!(", {}", counts.join(", ")) }
}

/// The unit's firewall shows as a refusal of the system, or as names that cannot be found.
fn way_to_broker(trouble: &str) -> String {
    let walled = ["not permitted", "name resolution", "lookup", "denied"];
    if walled.iter().any(|words| trouble.contains(words)) {
        return "the unit lets promptd reach this machine only: install examples/lan.conf or internet.conf (docs/board.md)".into();
    }
    "see that the broker runs and that `[mqtt]` names its address, user and password".into()
}

fn unreachable(socket: &Path, trouble: &Trouble) -> Finding {
    let denied = matches!(trouble, Trouble::Unreachable { source, .. } if source.kind() == ErrorKind::PermissionDenied);
    if denied {
        let fix = "sudo usermod -aG promptd \"$USER\", and log in again";
        return Finding::bad(
            "service",
            Grade::Problem,
            format!("this user may not use {}", socket.display()),
            fix,
        );
    }
    let fix = "sudo systemctl start promptd; `journalctl -u promptd` says why it ended";
    Finding::bad("service", Grade::Warning, with_causes(trouble), fix)
}

async fn knock(host: &str, port: u16) -> Finding {
    let about = "broker";
    let address = format!("{host}:{port}");
    let fix = "see that the broker runs, listens on that address and that no firewall is between";
    match tokio::time::timeout(REACH, TcpStream::connect((host, port))).await {
        Ok(Ok(_)) => Finding::ok(about, format!("{address} takes connections")),
        Ok(Err(error)) => Finding::bad(about, Grade::Problem, format!("{address}: {error}"), fix),
        Err(_) => {
            let says = format!("{address} does not answer within {} s", REACH.as_secs());
            Finding::bad(about, Grade::Problem, says, fix)
        }
    }
}
