//! Holds a history against what promptd promises. Knows only what an outsider can see.

use serde_json::Value;

use crate::asker::{Final, Seen};
use crate::mosquitto::Broker;
use crate::play::{Story, play, topics};
use crate::relay::Pass;
use crate::schedule::{Ask, Door, LONG, Schedule};
use crate::words::answer;

/// Plays a seed and returns what was not as promised, with the end of the log.
pub(crate) async fn try_seed(
    seed: u64,
    broker: &mut Broker,
    patience: std::time::Duration,
) -> Result<Tally, String> {
    let schedule = Schedule::new(seed);
    let story = play(&schedule, broker, patience).await;
    verdict(&story)
}

/// What a good history adds to the sum.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) prompts: usize,
    pub(crate) acknowledged: usize,
    pub(crate) answers: usize,
    pub(crate) errors: usize,
    pub(crate) repeated: usize,
    pub(crate) ends: usize,
    pub(crate) breaks: usize,
    pub(crate) engines: usize,
}

/// Judges a history.
pub(crate) fn verdict(story: &Story) -> Result<Tally, String> {
    let mut judge = Judge::new(story);
    for n in 0..story.schedule.asks.len() {
        judge.ask(n);
    }
    judge.strangers();
    if judge.wrong.is_empty() {
        return Ok(judge.tally);
    }
    let log = story.service.log();
    let tail: Vec<&str> = log.lines().rev().take(25).collect();
    let tail: Vec<&str> = tail.into_iter().rev().collect();
    Err(format!(
        "seed {}: {}\n{:#?}\ndeeds: {:?}\nlog:\n{}",
        story.schedule.seed,
        judge.wrong.join("; "),
        story.schedule,
        story.service.deeds(),
        tail.join("\n")
    ))
}

struct Judge<'a> {
    story: &'a Story,
    deaths: usize,
    tally: Tally,
    wrong: Vec<String>,
}

impl Judge<'_> {
    fn new(story: &Story) -> Judge<'_> {
        let died = story.service.deeds().iter().filter(|deed| deed.starts_with("die ")).count();
        let deaths = died + story.kills;
        let tally =
            Tally { ends: story.ends, breaks: story.breaks, engines: deaths, ..Tally::default() };
        Judge { story, deaths, tally, wrong: story.wrong.clone() }
    }

    fn ask(&mut self, n: usize) {
        let story = self.story;
        let ask = &story.schedule.asks[n];
        let id = &ask.task.id;
        self.tally.prompts += 1;
        match ask.door {
            Door::Mqtt { .. } => self.over_mqtt(ask, story.copies[n]),
            Door::Http | Door::Lines => match &story.seen[n] {
                None => self.wrong.push(format!("{id}: the client of the socket still waits")),
                Some(seen) => self.over_a_socket(ask, seen),
            },
        }
        let generated = story.service.did("done", id);
        let twins = topics(&story.schedule, ask).len().max(1);
        if generated > twins * (1 + story.ends + self.deaths) {
            self.wrong.push(format!("{id}: generated {generated} times"));
        }
        let killed = story.service.did("die", id);
        // What has failed is new when its asker asks it again: a copy that comes later than the failure kills two more.
        let asked = twins * story.copies[n].max(1);
        if killed > 2 * asked * (1 + story.ends) {
            self.wrong.push(format!("{id}: {killed} engines died of it"));
        }
    }

    fn over_mqtt(&mut self, ask: &Ask, copies: usize) {
        let (story, id) = (self.story, &ask.task.id);
        let acknowledged = story.tape.count(Pass::Acked, id);
        self.tally.acknowledged += usize::from(acknowledged > 0);
        for topic in topics(&story.schedule, ask) {
            let finals: Vec<&Final> = story
                .finals
                .iter()
                .filter(|f| f.topic == topic && f.object["id"] == id.as_str())
                .collect();
            let may_expire =
                ask.timeout.is_some() && matches!(ask.door, Door::Mqtt { expiry: true, .. });
            if finals.is_empty() && !may_expire {
                let how = if acknowledged > 0 { "acknowledged and lost" } else { "never answered" };
                self.wrong.push(format!("{id} to {topic}: {how}"));
            }
            // Each copy may be answered, and each crash may repeat an answer once.
            let most = copies + story.ends + story.breaks;
            if finals.len() > most {
                let have = finals.len();
                self.wrong.push(format!("{id} to {topic}: {have} finals, at most {most} may be"));
            }
            self.tally.repeated += finals.len().saturating_sub(copies);
            let mut texts: Vec<&Value> = Vec::new();
            for one in &finals {
                self.one_final(ask, one);
                if one.object["status"] == "ok" {
                    texts.push(&one.object["text"]);
                }
            }
            texts.dedup();
            if texts.len() > 1 && (crate::RECORD || story.ends == 0) {
                self.wrong.push(format!("{id} to {topic}: a repeated answer is another"));
            }
        }
    }

    fn one_final(&mut self, ask: &Ask, one: &Final) {
        let id = &ask.task.id;
        let of_promptds = one.topic.starts_with("promptd/");
        let correlation = (!of_promptds).then(|| format!("c-{id}"));
        if one.correlation.as_deref() != correlation.as_ref().map(String::as_bytes) {
            self.wrong.push(format!("{id}: the correlation data is {:?}", one.correlation));
        }
        if one.object["status"] == "ok" {
            self.tally.answers += 1;
            let seed = one.object["seed"].as_u64().unwrap_or_default();
            let right = answer(id, seed, ask.task.len);
            if one.object["text"] != right.as_str() || ask.seed.is_some_and(|asked| asked != seed) {
                let text = &one.object["text"];
                self.wrong.push(format!("{id}: seed {seed} is `{right}`, not {text}"));
            }
            self.may_be_answered(ask);
        } else {
            self.tally.errors += 1;
            let code = one.object["code"].as_str().unwrap_or("no code");
            self.may_be_refused(ask, code, false);
        }
    }

    fn over_a_socket(&mut self, ask: &Ask, seen: &Seen) {
        let id = &ask.task.id;
        let right = answer(id, ask.seed.unwrap_or(7), ask.task.len);
        if !right.starts_with(&seen.text) {
            self.wrong.push(format!("{id}: streamed `{}`, not `{right}`", seen.text));
        }
        match seen.end.as_deref() {
            Some("ok") => {
                self.tally.answers += 1;
                if seen.text != right {
                    self.wrong.push(format!("{id}: `{}` is not all of `{right}`", seen.text));
                }
                self.may_be_answered(ask);
            }
            Some(code) => {
                self.tally.errors += 1;
                self.may_be_refused(ask, code, !ask.named);
            }
            None if ask.cancel.is_some() => {
                let long = ask.task.milliseconds() >= LONG;
                if long && self.story.service.did("done", id) > 0 {
                    self.wrong
                        .push(format!("{id}: written to its end, though its client had left"));
                }
            }
            None if self.story.ends > 0 && !ask.named => {}
            None => self.wrong.push(format!("{id}: the connection broke")),
        }
    }

    fn may_be_answered(&mut self, ask: &Ask) {
        let id = &ask.task.id;
        if ask.task.die.as_ref().is_some_and(|death| death.times > 1) {
            self.wrong.push(format!("{id}: answered, though every engine dies of it"));
        }
        // A cancel that comes before the prompt is delivered again finds nothing.
        let undisturbed = self.story.ends + self.story.breaks == 0;
        if ask.task.milliseconds() >= LONG
            && undisturbed
            && (ask.cancel.is_some() || ask.timeout.is_some_and(|ms| ms < LONG / 2))
            && !matches!(ask.door, Door::Mqtt { expiry: true, .. })
        {
            self.wrong.push(format!("{id}: answered after its cancel or deadline"));
        }
    }

    fn may_be_refused(&mut self, ask: &Ask, code: &str, at_a_socket: bool) {
        let disturbed = self.deaths + self.story.ends > 0;
        let allowed = match code {
            "cancelled" => ask.cancel.is_some() || (at_a_socket && self.story.ends > 0),
            "timeout" | "would_miss_deadline" => ask.timeout.is_some(),
            "model_loading" | "busy" => disturbed || (at_a_socket && self.story.schedule.early),
            // Where nobody kills engines from outside, the second death of a prompt's engine names its culprit. Ends of
            // the service blame nobody: it takes five of one prompt, and no history has so many (docs/promises.md).
            "model_failed" => ask.task.die.is_some() || (self.story.kills > 0 && self.deaths >= 2),
            "internal" => at_a_socket && self.story.ends > 0,
            _ => false,
        };
        let for_want_of_room = matches!(code, "model_loading" | "busy" | "would_miss_deadline");
        if for_want_of_room && self.was_promised(ask) {
            self.wrong.push(format!("{}: acknowledged, and then refused: {code}", ask.task.id));
        }
        if !allowed {
            self.wrong.push(format!("{}: refused with `{code}`", ask.task.id));
        }
    }

    /// Whether a prompt was acknowledged before anything was answered. Copies and twins have the same id, and one may be
    /// taken and the other refused.
    fn was_promised(&self, ask: &Ask) -> bool {
        let id = &ask.task.id;
        let alone = topics(&self.story.schedule, ask).len() == 1
            && self.story.tape.count(Pass::Asked, id) == 1;
        alone && self.story.tape.is_before(Pass::Acked, Pass::Answered, id)
    }

    /// Finals that nobody asked for.
    fn strangers(&mut self) {
        let expected: Vec<(String, String)> = (self.story.schedule.asks.iter())
            .flat_map(|ask| {
                let id = ask.task.id.clone();
                topics(&self.story.schedule, ask).into_iter().map(move |topic| (topic, id.clone()))
            })
            .collect();
        for one in &self.story.finals {
            if one.object["not_json"] == "online" || one.object["not_json"] == "offline" {
                continue;
            }
            let id = one.object["id"].as_str().unwrap_or_default();
            if !expected.iter().any(|(topic, known)| *topic == one.topic && known == id) {
                self.wrong
                    .push(format!("`{}` got {}, and nobody asked that", one.topic, one.object));
            }
        }
    }
}
