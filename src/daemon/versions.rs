//! Which of the kept models is in use and which came last: looked up beside everything else, as a card may take its time, and
//! told to whoever shows it.

use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::store::Store;
use crate::wire::ModelVersions;

/// How often the folder is looked at: whoever has just fetched a model waits no longer for it to be shown.
const EVERY: Duration = Duration::from_secs(10);

/// The way to those who show it.
#[derive(Debug)]
pub(super) struct Versions {
    tell: watch::Sender<Option<ModelVersions>>,
    looked: Option<Instant>,
    looking: Option<JoinHandle<()>>,
}

impl Versions {
    pub(super) fn new() -> Self {
        Versions { tell: watch::channel(None).0, looked: None, looking: None }
    }

    /// For somebody who shows it.
    pub(super) fn subscribe(&self) -> watch::Receiver<Option<ModelVersions>> {
        self.tell.subscribe()
    }

    /// Looks, if it is time. `store` has the models; `None`: the service takes another.
    pub(super) fn look(&mut self, store: Option<Store>, now: Instant) {
        let early = self.looked.is_some_and(|looked| now < looked + EVERY);
        let busy = self.looking.as_ref().is_some_and(|looking| !looking.is_finished());
        if early || busy {
            return;
        }
        self.looked = Some(now);
        let tell = self.tell.clone();
        self.looking = Some(tokio::task::spawn_blocking(move || {
            let versions = store.as_ref().and_then(versions);
            tell.send_if_modified(|told| {
                let news = *told != versions;
                *told = versions;
                news
            });
        }));
    }

    /// The configuration was read again, or the model has changed: looks at the next opportunity.
    pub(super) fn stale(&mut self) {
        self.looked = None;
    }
}

fn versions(store: &Store) -> Option<ModelVersions> {
    let current = store.current()?;
    // The one in use is of its name and is there, unless somebody has taken it away by hand.
    let latest = store.newest(current.name()).unwrap_or_else(|| current.clone());
    Some(ModelVersions {
        title: current.name().to_owned(),
        installed_version: current.to_string(),
        latest_version: latest.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks, and waits until that is done.
    async fn look(versions: &mut Versions, store: &Store, now: Instant) -> Option<ModelVersions> {
        versions.look(Some(store.clone()), now);
        if let Some(looking) = versions.looking.take() {
            looking.await.unwrap();
        }
        versions.subscribe().borrow().clone()
    }

    #[tokio::test]
    async fn what_is_in_use_and_what_came_last() {
        let folder = tempfile::tempdir().unwrap();
        let (store, mut versions) = (Store::at(folder.path()), Versions::new());
        let mut now = Instant::now();
        assert_eq!(look(&mut versions, &store, now).await, None, "nothing is kept");
        let keep = |name: &str| {
            std::thread::sleep(Duration::from_millis(30));
            std::fs::create_dir(folder.path().join(name)).unwrap();
        };
        keep("m@1");
        store.switch(&"m@1".parse().unwrap(), &store.lock().unwrap()).unwrap();
        assert_eq!(look(&mut versions, &store, now).await, None, "too early to look again");
        now += EVERY;
        let told = look(&mut versions, &store, now).await.unwrap();
        assert_eq!((told.installed_version, told.latest_version), ("m@1".into(), "m@1".into()));
        keep("m@0");
        keep("n@9");
        versions.stale();
        let told = look(&mut versions, &store, now).await.unwrap();
        assert_eq!(told.title, "m");
        assert_eq!((told.installed_version, told.latest_version), ("m@1".into(), "m@0".into()));
    }
}
