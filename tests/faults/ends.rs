//! Every way in which an engine can end, one by one: it is told by its name, the next one goes on in the middle of the answers,
//! and whoever did it does not take the others along. Then an engine that never becomes ready.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::asker::{Seen, over_http, over_lines};
use crate::options::Options;
use crate::service::{Plan, Service, signal};
use crate::words::{Death, Task, answer};

/// How engines end, and what promptd calls it.
const WAYS: &[(&str, &str)] = &[
    ("panic", "ended with exit code"),
    ("exit", "ended with exit code"),
    ("segv", "was killed by SIGSEGV"),
    ("bus", "was killed by SIGBUS"),
    ("abort", "was killed by SIGABRT"),
    ("kill", "was killed by SIGKILL"),
    ("oom", "was killed by SIGKILL"),
    ("hang", "was silent for"),
];

/// Tokens of each answer, and where in it the engine ends: behind as many as the supervisor wants to see before it believes
/// its measure of the speed. Two engines that hang write as many each.
const LEN: u32 = 60;
const AT: u32 = 24;

/// How much the service and its engines may have together where one of them takes all there is.
const LIMIT: u64 = 512 << 20;

pub(crate) fn run(options: &Options) -> Result<String, String> {
    let patience = Duration::from_secs(options.patience);
    let results: Vec<Result<String, String>> = std::thread::scope(|scope| {
        let work: Vec<_> = (WAYS.iter())
            .map(|(how, name)| scope.spawn(move || block_on(one_way(how, name, patience))))
            .chain([scope.spawn(move || block_on(never_ready(patience)))])
            .collect();
        work.into_iter()
            .map(|work| work.join().unwrap_or_else(|_| Err("panicked".into())))
            .collect()
    });
    let (good, bad): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
    let bad: Vec<String> = bad.into_iter().filter_map(Result::err).collect();
    if !bad.is_empty() {
        return Err(bad.join("\n\n"));
    }
    Ok(good.into_iter().flatten().collect::<Vec<_>>().join("\n  "))
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// An engine ends once over a prompt, which is answered; then a prompt ends every engine and is given up. Both times others
/// run beside it and are answered.
async fn one_way(how: &str, name: &str, patience: Duration) -> Result<String, String> {
    let group = (how == "oom").then(|| Group::new(LIMIT));
    let (group, how_it_is_done) = match &group {
        Some(Ok(group)) => (Some(group), "oom, by the kernel, in a memory group of 512 MiB"),
        Some(Err(why)) => {
            println!("faults::ends: SKIPPED the kernel's own OOM kill ({why}): SIGKILL instead");
            (None, "oom, as SIGKILL")
        }
        None => (None, how),
    };
    let really = if how == "oom" && group.is_none() { "kill" } else { how };
    let mut service = Service::prepare(&Plan { slots: 3, grace: 1, ..Plan::default() });
    match group {
        Some(group) => service.start_in(&group.procs()),
        None => service.start(),
    }
    ready(&service, patience).await?;
    let once = three(&service, how, Some((really, 1)), patience).await?;
    let begun = Instant::now();
    let (culprit, others) = once.split_first().ok_or("nobody asked")?;
    whole(culprit)
        .map_err(|why| format!("{how}: the one that did it once: {why}{}", tail(&service)))?;
    for other in others {
        whole(other).map_err(|why| format!("{how}: one beside it: {why}{}", tail(&service)))?;
    }
    let log = service.log();
    if !log.contains(name) {
        return Err(format!("{how}: the log does not say `{name}`{}", tail(&service)));
    }
    ready(&service, patience).await?;
    let always = three(&service, &format!("{how}-always"), Some((really, 99)), patience).await?;
    let (culprit, others) = always.split_first().ok_or("nobody asked")?;
    if culprit.1.end.as_deref() != Some("model_failed") || !culprit.0.starts_with(&culprit.1.text) {
        return Err(format!(
            "{how}: the one that always does it got {:?}{}",
            culprit.1,
            tail(&service)
        ));
    }
    for other in others {
        whole(other).map_err(|why| format!("{how}: one beside it: {why}{}", tail(&service)))?;
    }
    let deaths = service.deeds().iter().filter(|deed| deed.starts_with("die ")).count();
    if deaths != 3 {
        return Err(format!("{how}: {deaths} engines died and not 3{}", tail(&service)));
    }
    let pauses = pauses(&service.log());
    if pauses.len() != 3 || !pauses.is_sorted() || pauses.first() == pauses.last() {
        return Err(format!("{how}: the pauses are {pauses:?} and do not grow{}", tail(&service)));
    }
    let took = begun.elapsed().as_millis();
    Ok(format!(
        "{how_it_is_done}: answered to the character; pauses {pauses:?} ms; {took} ms in all"
    ))
}

/// The right answer, and what the client saw.
type Asked = (String, Seen);

/// Three prompts at a time, the first of which ends engines.
async fn three(
    service: &Service,
    name: &str,
    fatal: Option<(&str, u32)>,
    patience: Duration,
) -> Result<Vec<Asked>, String> {
    let asks = [0, 1, 2].map(|n| {
        let die = fatal.filter(|_| n == 0).map(|(how, times)| Death {
            how: how.to_owned(),
            at: AT,
            times,
        });
        let task = Task { id: format!("{name}-{n}"), len: LEN, step: 2000, die };
        let right = answer(&task.id, 7, task.len);
        let body = json!({"prompt": task.text(), "seed": 7, "stream": true});
        // Both doors stream.
        let (http, lines): (PathBuf, PathBuf) = (service.http(), service.lines());
        let seen = tokio::spawn(async move {
            if n == 1 {
                over_http(http, body, None).await
            } else {
                over_lines(lines, body, None).await
            }
        });
        (right, seen)
    });
    let mut asked = Vec::new();
    for (right, seen) in asks {
        let seen = tokio::time::timeout(patience, seen).await;
        let seen = seen.map_err(|_| format!("{name}: a client waits for ever{}", tail(service)))?;
        asked.push((right, seen.map_err(|error| error.to_string())?));
    }
    Ok(asked)
}

fn whole((right, seen): &Asked) -> Result<(), String> {
    if seen.end.as_deref() == Some("ok") && seen.text == *right {
        return Ok(());
    }
    Err(format!("{seen:?} and not `{right}`"))
}

/// A model that ends every engine that loads it: after a few tries that is said, with the reason, at both doors, and no
/// further engine is started for a while. A mended model is loaded as soon as promptd is told to look.
async fn never_ready(patience: Duration) -> Result<String, String> {
    let manner = "die=segv".to_owned();
    let mut service = Service::prepare(&Plan { slots: 1, grace: 1, manner, ..Plan::default() });
    service.start();
    let health = until(&service, "model_failed", patience).await?;
    let begun = Instant::now();
    let reason = health["message"].as_str().unwrap_or_default().to_owned();
    if !reason.contains("SIGSEGV while loading the weights") {
        return Err(format!("the reason is not told: {health}"));
    }
    let starts = pauses(&service.log()).len();
    let ask = || json!({"prompt": "x len=3 step=100", "seed": 7, "stream": true});
    for seen in [
        over_http(service.http(), ask(), None).await,
        over_lines(service.lines(), ask(), None).await,
    ] {
        if seen.end.as_deref() != Some("model_failed") {
            return Err(format!("a door that should say model_failed says {seen:?}"));
        }
    }
    tokio::time::sleep(Duration::from_secs(2).saturating_sub(begun.elapsed())).await;
    let later = pauses(&service.log()).len();
    if starts != 3 || later != starts {
        return Err(format!("{starts} starts, and {later} two seconds later{}", tail(&service)));
    }
    service.manner("");
    service.pid().iter().for_each(|pid| signal(*pid, "HUP"));
    let told = Instant::now();
    ready(&service, patience).await?;
    let took = told.elapsed().as_millis();
    let seen = over_http(service.http(), ask(), None).await;
    whole(&(answer("x", 7, 3), seen))?;
    Ok(format!("never ready: told after {starts} starts; {took} ms from SIGHUP to a mended model"))
}

async fn ready(service: &Service, patience: Duration) -> Result<(), String> {
    until(service, "ready", patience).await.map(drop)
}

async fn until(
    service: &Service,
    state: &str,
    patience: Duration,
) -> Result<serde_json::Value, String> {
    let deadline = Instant::now() + patience;
    let mut last = None;
    while Instant::now() < deadline {
        last = service.health();
        if let Some(health) = last.as_ref().filter(|health| health["state"] == state) {
            return Ok(health.clone());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Err(format!("promptd did not become {state}: {last:?}{}", tail(service)))
}

/// The pauses after deaths that the service has logged, in milliseconds.
fn pauses(log: &str) -> Vec<u64> {
    let after = |line: &str| {
        let (_, rest) = line.split_once("restart_in_ms=")?;
        let digits: String = rest.chars().skip_while(|c| !c.is_ascii_digit()).collect();
        digits.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    };
    log.lines().filter_map(after).collect()
}

fn tail(service: &Service) -> String {
    let log = service.log();
    let lines: Vec<&str> = log.lines().rev().take(12).collect();
    format!("\n{}", lines.into_iter().rev().collect::<Vec<_>>().join("\n"))
}

/// A memory group of our own with a limit, removed when it is dropped.
struct Group(PathBuf);

impl Group {
    /// Below the group that this process is in, whose limits stay.
    fn new(limit: u64) -> Result<Group, String> {
        let own =
            std::fs::read_to_string("/proc/self/cgroup").map_err(|error| error.to_string())?;
        let below = |root: &str, path: &str| PathBuf::from(format!("{root}{path}"));
        let old = own.lines().find_map(|line| line.split_once(":memory:").map(|(_, path)| path));
        let new = own.lines().find_map(|line| line.strip_prefix("0::"));
        let (parent, file) = match (old, new) {
            (Some(path), _) => (below("/sys/fs/cgroup/memory", path), "memory.limit_in_bytes"),
            (None, Some(path)) => (below("/sys/fs/cgroup", path), "memory.max"),
            (None, None) => return Err("no memory groups".to_owned()),
        };
        let group = Group(parent.join(format!("promptd-faults-{}", std::process::id())));
        let named = |error: std::io::Error| format!("{}: {error}", group.0.display());
        std::fs::create_dir(&group.0).map_err(named)?;
        std::fs::write(group.0.join(file), limit.to_string()).map_err(named)?;
        Ok(group)
    }

    /// The file that takes the processes.
    fn procs(&self) -> PathBuf {
        self.0.join("cgroup.procs")
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The last process of it may still be on its way out.
        let deadline = Instant::now() + Duration::from_secs(5);
        while std::fs::remove_dir(&self.0).is_err() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
