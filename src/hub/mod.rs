//! Models from a hub with Hugging Face's layout: which files a repository has at a revision, and the files themselves, resumed
//! where they were cut off and held against the hub's checksums. Only the command line knows this room; the service has no
//! business on the internet.

mod choice;
mod download;
mod http;
mod tls;

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use self::http::Fetcher;
use crate::inference::manifest::MAX_FILES;
use crate::store::{
    BadName, Description, Incoming, Kept, Lock, ModelName, Store, StoreError, plain,
};

/// The hub that everybody means.
pub const DEFAULT_HUB: &str = "https://huggingface.co";
/// Characters of a commit that name a model: enough to tell all commits of a repository apart.
const SHORT: usize = 12;

/// What is to be fetched.
#[derive(Clone, Debug)]
pub struct Order {
    /// The hub's address.
    pub hub: String,
    /// `owner/name`.
    pub repository: String,
    /// A branch, a tag or a commit; what it means now is pinned.
    pub revision: String,
    /// The folder of the repository that is the model.
    pub folder: Option<String>,
    /// The graph, where there are several.
    pub graph: Option<String>,
    /// What it is called here.
    pub name: Option<String>,
    /// What the hub knows us by.
    pub token: Option<String>,
    /// A PEM file of authorities to trust instead of the system's.
    pub authorities: Option<PathBuf>,
    /// Whose signature its manifest must have; empty: nobody's.
    pub trusted: Vec<String>,
    /// The most bytes a second.
    pub bytes_per_second: Option<u64>,
    /// The pause before the first further attempt; each later one is twice as long.
    pub pause: Duration,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress<'a> {
    /// The file that is being fetched.
    pub file: &'a str,
    /// Bytes of all files that are there.
    pub done: u64,
    /// Bytes of all files.
    pub total: u64,
}

/// Why a model could not be fetched. What was fetched stays, and the next attempt goes on behind it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// The command line cannot be followed.
    #[error("{0}")]
    Usage(String),
    /// Connections cannot be made.
    #[error("TLS cannot be set up: {0}")]
    Tls(String),
    /// The server has said no.
    #[error("{url} {reason}")]
    Refused {
        /// What was asked for.
        url: String,
        /// What it said.
        reason: String,
    },
    /// The server says that another attempt may do.
    #[error("{url} {what}")]
    Busy {
        /// What was asked for.
        url: String,
        /// What it said.
        what: String,
        /// How long it wants to be left alone.
        wait: Option<Duration>,
    },
    /// The connection broke, or never was.
    #[error("{url}: {what}")]
    Broken {
        /// What was asked for.
        url: String,
        /// What happened.
        what: String,
    },
    /// What came is not what the hub says of it.
    #[error("{file} {what}; it is thrown away, the same command fetches it again")]
    Wrong {
        /// Which file.
        file: String,
        /// What is wrong with it.
        what: String,
    },
    /// It cannot be kept.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl HubError {
    fn broken(url: &hyper::Uri, what: impl std::fmt::Display) -> Self {
        // The servers behind a hub have secrets of theirs in the query.
        let host = url.host().unwrap_or_default();
        HubError::Broken { url: format!("{host}{}", url.path()), what: what.to_string() }
    }
}

impl From<BadName> for HubError {
    fn from(error: BadName) -> Self {
        HubError::Store(error.into())
    }
}

/// A file as the hub describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct RemoteFile {
    #[serde(rename = "rfilename")]
    name: String,
    #[serde(default)]
    size: Option<u64>,
    #[serde(default, rename = "blobId")]
    blob: Option<String>,
    #[serde(default)]
    lfs: Option<Lfs>,
}

/// What the hub knows of a file that is too large for git.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Lfs {
    #[serde(alias = "oid")]
    sha256: String,
    size: u64,
}

/// A repository at a revision.
#[derive(Debug, Deserialize)]
struct Repository {
    sha: String,
    #[serde(default)]
    siblings: Vec<RemoteFile>,
}

/// Fetches a model and keeps it. `tell` hears how far it is.
///
/// # Errors
/// The hub does not give it, the network breaks too often, or it is no model.
pub async fn pull(
    store: &Store,
    lock: &Lock,
    order: &Order,
    tell: &mut dyn FnMut(Progress<'_>),
) -> Result<Kept, HubError> {
    let fetcher = Fetcher::new(&order.hub, order.token.clone(), order.authorities.as_deref())?;
    let (owner, short) = (order.repository.split_once('/'))
        .filter(|(owner, name)| !owner.is_empty() && !name.is_empty() && !name.contains('/'))
        .ok_or_else(|| {
            HubError::Usage(format!("`{}` is no repository: owner/name", order.repository))
        })?;
    let repository = format!("{}/{}", download::escaped(owner), download::escaped(short));
    let revision = download::escaped(&order.revision);
    let list = fetcher.at(&format!("/api/models/{repository}/revision/{revision}?blobs=true"));
    let found = download::attempts(order.pause, || describe(&fetcher, &list)).await?;
    let wanted = choice::choose(&found.siblings, order.folder.as_deref(), order.graph.as_deref())?;
    let commit: String = found.sha.chars().take(SHORT).collect();
    let name = order.name.clone().unwrap_or_else(|| plain(short));
    let name = ModelName::new(&name, &commit)?;
    // One commit holds several models in folders; each is gone on with by itself.
    let label = format!(
        "pull-{}-{commit}-{}-{}",
        order.repository,
        order.folder.as_deref().unwrap_or(""),
        order.graph.as_deref().unwrap_or("")
    );
    let incoming = Incoming::begin(store, lock, &label, false)?;
    let source = download::Source {
        fetcher: &fetcher,
        prefix: format!("/{repository}/resolve/{}/", download::escaped(&found.sha)),
        pause: order.pause,
        bytes_per_second: order.bytes_per_second,
    };
    download::all(&source, store, &incoming, &wanted, tell).await?;
    let about = Description {
        name: Some(name.name().to_owned()),
        revision: Some(commit),
        source: Some(format!(
            "{}/{}@{}",
            order.hub.trim_end_matches('/'),
            order.repository,
            found.sha
        )),
        around: None,
        trusted: order.trusted.clone(),
    };
    Ok(incoming.finish(&about)?)
}

async fn describe(fetcher: &Fetcher, list: &str) -> Result<Repository, HubError> {
    let text = fetcher.text(list).await?;
    let wrong = |what: String| HubError::Refused { url: list.to_owned(), reason: what };
    let found: Repository = serde_json::from_slice(&text)
        .map_err(|error| wrong(format!("answers with what is no list of files: {error}")))?;
    let is_commit = found.sha.len() >= SHORT && found.sha.chars().all(|c| c.is_ascii_hexdigit());
    if !is_commit {
        return Err(wrong("names no commit".to_owned()));
    }
    // Variants of many models lie in one repository; no more of its names than this are read.
    if found.siblings.len() > 16 * MAX_FILES {
        return Err(wrong(format!("lists {} files", found.siblings.len())));
    }
    Ok(found)
}
