//! `promptd model pull`: fetches a model from a hub and keeps it. The only command that goes to the internet.

use std::error::Error;
use std::io::IsTerminal as _;
use std::time::Duration;

use tokio::time::Instant;

use super::args::Pull;
use super::switch::say;
use super::{store_of, told, trusted_keys};
use crate::cli::World;
use crate::cli::model::{Done, bytes};
use crate::hub::{self, Order, Progress};

/// Between two looks of a person at the bar.
const DRAW: Duration = Duration::from_millis(200);
/// Between two lines in a log.
const LINE: Duration = Duration::from_secs(30);
/// Characters of the bar itself.
const BAR: u64 = 30;

pub(in crate::cli) async fn pull(args: &Pull, world: &mut World<'_>) -> Done {
    let store = store_of(&args.place)?;
    let lock = store.lock()?;
    let token = args.token_file.as_ref().map(|file| -> Result<String, Box<dyn Error>> {
        let text = std::fs::read_to_string(file)
            .map_err(|error| format!("cannot read the token in {}: {error}", file.display()))?;
        Ok(text.lines().next().unwrap_or_default().trim().to_owned())
    });
    let named = (world.environment)("HF_ENDPOINT").and_then(|hub| hub.into_string().ok());
    let named = named.filter(|hub| !hub.is_empty());
    let hub = args.hub.clone().or(named).unwrap_or_else(|| hub::DEFAULT_HUB.to_owned());
    let order = Order {
        repository: args.repository.clone(),
        revision: args.revision.clone(),
        folder: args.folder.clone(),
        graph: args.graph.clone(),
        name: args.called.name.clone(),
        trusted: trusted_keys(&args.place),
        token: token.transpose()?,
        authorities: args.ca_file.clone(),
        bytes_per_second: args.limit_rate,
        pause: Duration::from_millis(args.pause_ms),
        hub,
    };
    say(world, &format!("fetching {} ({}) from {}", order.repository, order.revision, order.hub));
    let mut bar = Bar {
        is_terminal: std::io::stderr().is_terminal(),
        file: String::new(),
        drawn: None,
        begun: None,
    };
    let kept = {
        let errors = &mut *world.errors;
        hub::pull(&store, &lock, &order, &mut |progress| {
            if let Some(text) = bar.draw(progress, Instant::now()) {
                // Whoever closed standard error does not want to know.
                let _ = errors.write_all(text.as_bytes()).and_then(|()| errors.flush());
            }
        })
        .await
    };
    if bar.is_terminal && bar.drawn.is_some() {
        let _ = writeln!(world.errors);
    }
    told(&store, &kept?, &args.place, world)
}

/// How far it is, for a person at a terminal or for a log.
struct Bar {
    is_terminal: bool,
    file: String,
    drawn: Option<Instant>,
    /// When the first bytes came, and how many were there before.
    begun: Option<(Instant, u64)>,
}

impl Bar {
    /// What is to be written now.
    fn draw(&mut self, progress: Progress<'_>, now: Instant) -> Option<String> {
        let (since, before) = *self.begun.get_or_insert((now, progress.done));
        let is_done = progress.done >= progress.total;
        let every = if self.is_terminal { DRAW } else { LINE };
        let is_due = self.drawn.is_none_or(|drawn| now.duration_since(drawn) >= every);
        if !(is_due
            || (is_done && self.is_terminal)
            || (self.file != progress.file && !self.is_terminal))
        {
            return None;
        }
        self.drawn = Some(now);
        progress.file.clone_into(&mut self.file);
        let total = progress.total.max(1);
        let percent = progress.done.min(total) * 100 / total;
        let per_second = u64::try_from(
            u128::from(progress.done.saturating_sub(before)) * 1000
                / now.duration_since(since).as_millis().max(1),
        )
        .unwrap_or(0);
        let figures = format!(
            "{percent:>3} %  {} of {}, {}/s",
            bytes(progress.done),
            bytes(progress.total),
            bytes(per_second)
        );
        let shown: String = progress.file.chars().filter(|c| !c.is_control()).collect();
        if !self.is_terminal {
            return Some(format!("promptd: {figures}: {shown}\n"));
        }
        let full = usize::try_from(percent * BAR / 100).unwrap_or(0);
        let all = usize::try_from(BAR).unwrap_or(0);
        let bar = format!("{}{}", "#".repeat(full), "-".repeat(all - full.min(all)));
        // Back to the line's beginning, and away with what stood there.
        Some(format!("\r[{bar}] {figures}  {shown}\u{1b}[K"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_far_it_is() {
        let now = Instant::now();
        let mut bar = Bar { is_terminal: true, file: String::new(), drawn: None, begun: None };
        let at = |done| Progress { file: "model.onnx", done, total: 4 << 20 };
        assert!(bar.draw(at(0), now).unwrap().contains("]   0 %  0 bytes of 4.00 MiB"));
        assert_eq!(bar.draw(at(1 << 20), now + Duration::from_millis(100)), None);
        let half = bar.draw(at(2 << 20), now + Duration::from_secs(1)).unwrap();
        let expected =
            "[###############---------------]  50 %  2.00 MiB of 4.00 MiB, 2.00 MiB/s  model.onnx";
        assert_eq!(half, format!("\r{expected}\u{1b}[K"));
        let mut log = Bar { is_terminal: false, file: String::new(), drawn: None, begun: None };
        assert!(log.draw(at(0), now).unwrap().starts_with("promptd:   0 %"));
        assert_eq!(log.draw(at(1), now + Duration::from_secs(1)), None);
        assert!(log.draw(at(1), now + LINE).is_some());
    }
}
