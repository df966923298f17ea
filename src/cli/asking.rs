//! The command line of the commands that talk to a running service: `ask`, `chat`, `top`, `status`, `cancel`.

use std::ffi::OsString;
use std::path::PathBuf;

/// Where the service listens if nobody says otherwise: the systemd unit's runtime directory.
pub const DEFAULT_SOCKET: &str = "/run/promptd/promptd.sock";

/// The variable that names the socket, the same that configures the service.
pub const SOCKET_VARIABLE: &str = "PROMPTD__SOCKET__PATH";

/// Where the service is.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Place {
    /// The service's socket [default: `PROMPTD__SOCKET__PATH` in the environment, else /run/promptd/promptd.sock].
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

impl Place {
    /// The socket: as typed, or as the environment says, or the default one.
    pub fn socket(&self, environment: impl Fn(&str) -> Option<OsString>) -> PathBuf {
        let set = || environment(SOCKET_VARIABLE).filter(|value| !value.is_empty());
        let named = self.socket.clone().or_else(|| set().map(PathBuf::from));
        named.unwrap_or_else(|| PathBuf::from(DEFAULT_SOCKET))
    }
}

/// `promptd ask`
#[derive(Clone, Debug, Default, clap::Args)]
#[command(
    after_help = "Exit codes: 0 answered, 1 failed, 2 wrong usage, 69 no service there, 75 busy or loading."
)]
pub struct Ask {
    /// The prompt; its words are joined by spaces. Without one, or with `-`, it is read from standard input.
    #[arg(value_name = "PROMPT")]
    pub prompt: Vec<String>,
    /// Where the service is.
    #[command(flatten)]
    pub place: Place,
    /// The system message in front of the prompt.
    #[arg(long, short, value_name = "TEXT")]
    pub system: Option<String>,
    /// The profile whose defaults hold.
    #[arg(long, short, value_name = "NAME")]
    pub profile: Option<String>,
    /// A file with the JSON Schema the answer must be valid against.
    #[arg(long, value_name = "FILE")]
    pub schema: Option<PathBuf>,
    /// The most tokens the answer may have.
    #[arg(long, short = 'n', value_name = "N")]
    pub max_tokens: Option<u32>,
    /// Sampling temperature; 0 always takes the most probable token.
    #[arg(long, short, value_name = "T")]
    pub temperature: Option<f64>,
    /// The same seed gives the same answer.
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub seed: Option<i64>,
    /// Print the whole answer object instead of its text.
    #[arg(long)]
    pub json: bool,
    /// Print the answer as it comes, also where standard output is no terminal.
    #[arg(long, conflicts_with = "json")]
    pub stream: bool,
}

/// `promptd status`
#[derive(Clone, Debug, Default, clap::Args)]
#[command(
    after_help = "Exit codes: 0 ready, 1 the model failed, 2 wrong usage, 69 no service there, 75 loading or stopping."
)]
pub struct Status {
    /// Where the service is.
    #[command(flatten)]
    pub place: Place,
    /// Print it as JSON.
    #[arg(long)]
    pub json: bool,
}

/// `promptd chat`
#[derive(Clone, Debug, Default, clap::Args)]
#[command(
    after_help = "Exit codes: 0 left, 1 failed, 2 wrong usage, 69 no service there, 75 busy or loading. NO_COLOR is honoured."
)]
pub struct Chat {
    /// Where the service is.
    #[command(flatten)]
    pub place: Place,
    /// What the model is told first.
    #[arg(long, short, value_name = "TEXT")]
    pub system: Option<String>,
    /// The profile whose defaults hold.
    #[arg(long, short, value_name = "NAME")]
    pub profile: Option<String>,
    /// The most tokens an answer may have.
    #[arg(long, short = 'n', value_name = "N")]
    pub max_tokens: Option<u32>,
    /// Sampling temperature; 0 always takes the most probable token.
    #[arg(long, short, value_name = "T")]
    pub temperature: Option<f64>,
    /// Print each answer as a line of JSON, and nothing else.
    #[arg(long)]
    pub json: bool,
}

/// `promptd top`
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Exit codes: 0 left, 1 failed, 2 wrong usage, 69 no service there.")]
pub struct Top {
    /// Where the service is.
    #[command(flatten)]
    pub place: Place,
    /// Seconds between two looks.
    #[arg(long, short, value_name = "SECONDS", default_value_t = 1)]
    pub interval: u16,
    /// Look once.
    #[arg(long)]
    pub once: bool,
    /// Print each look as a line of JSON.
    #[arg(long)]
    pub json: bool,
}

/// `promptd cancel`
#[derive(Clone, Debug, Default, clap::Args)]
#[command(
    after_help = "Exit codes: 0 cancelled, 1 there is no such request or it is another's, 2 wrong usage, 69 no service there."
)]
pub struct Cancel {
    /// The request's id, as its answer and `promptd top` show it.
    #[arg(value_name = "ID")]
    pub id: String,
    /// Where the service is.
    #[command(flatten)]
    pub place: Place,
    /// Print the answer as JSON.
    #[arg(long)]
    pub json: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_the_socket_is() {
        let set =
            |value: &'static str| move |name: &str| (name == SOCKET_VARIABLE).then(|| value.into());
        let typed = Place { socket: Some("/a".into()) };
        assert_eq!(typed.socket(set("/b")), PathBuf::from("/a"));
        let place = Place::default();
        assert_eq!(place.socket(set("/b")), PathBuf::from("/b"));
        assert_eq!(place.socket(set("")), PathBuf::from(DEFAULT_SOCKET));
        assert_eq!(place.socket(|_| None), PathBuf::from(DEFAULT_SOCKET));
    }
}
