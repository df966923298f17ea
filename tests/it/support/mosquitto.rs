//! A mosquitto of our own on a free loopback port.

use std::hash::BuildHasher as _;
use std::io::Write as _;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// A broker process. Killed when dropped.
#[derive(Debug)]
pub(crate) struct Broker {
    pub(crate) port: u16,
    child: Option<Child>,
    program: PathBuf,
    pub(crate) dir: TempDir,
}

impl Broker {
    /// Starts a broker with these lines in its configuration; `None`, and a line that says so, where there is none.
    pub(crate) fn start(settings: &str) -> Option<Broker> {
        let mut broker = Broker::prepare(settings)?;
        broker.run();
        Some(broker)
    }

    /// A broker that does not run yet.
    pub(crate) fn prepare(settings: &str) -> Option<Broker> {
        let Some(program) = program("mosquitto") else {
            println!(
                "SKIPPED: mosquitto is not installed (Debian: apt-get install mosquitto mosquitto-clients)"
            );
            return None;
        };
        let port = free_port();
        let dir = tempfile::tempdir().unwrap();
        let mut file = std::fs::File::create(dir.path().join("m.conf")).unwrap();
        let place = dir.path().display();
        writeln!(
            file,
            "listener {port} 127.0.0.1\nuser root\npersistence_location {place}/\n{settings}"
        )
        .unwrap();
        if !settings.contains("allow_anonymous") {
            writeln!(file, "allow_anonymous true").unwrap();
        }
        Some(Broker { port, child: None, program, dir })
    }

    /// Starts it, again or for the first time, and waits until it listens.
    pub(crate) fn run(&mut self) {
        let mut command = Command::new(&self.program);
        command.arg("-c").arg(self.dir.path().join("m.conf"));
        self.child = Some(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        let began = Instant::now();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_err() {
            assert!(
                began.elapsed() < Duration::from_secs(10),
                "mosquitto does not listen on {}",
                self.port
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Ends it by a signal: after `-TERM` it has written down what it keeps.
    pub(crate) fn end(&mut self, signal: &str) {
        self.signal(signal);
        self.child.take().unwrap().wait().unwrap();
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        self.end("-KILL");
    }

    /// Stops it from doing anything, its connections staying open.
    pub(crate) fn freeze(&self) {
        self.signal("-STOP");
    }

    /// Lets it go on.
    pub(crate) fn thaw(&self) {
        self.signal("-CONT");
    }

    /// Has it read its access rules and passwords again.
    pub(crate) fn read_again(&self) {
        self.signal("-HUP");
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if self.child.is_some() {
            self.kill();
        }
    }
}

/// Where a program is: brokers live in `sbin`, which not every user's path has.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> = std::env::split_paths(&path).collect();
    places.extend(["/usr/sbin".into(), "/usr/local/sbin".into()]);
    places.into_iter().map(|place| place.join(name)).find(|file| file.is_file())
}

/// A port below those that the system gives away by itself: a broker that is down for a moment finds its own free again.
fn free_port() -> u16 {
    let is_free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    let candidates = std::iter::repeat_with(|| {
        let random = std::collections::hash_map::RandomState::new().hash_one(());
        u16::try_from(20_000 + random % 12_000).unwrap()
    });
    candidates.take(1000).find(is_free).expect("a free port")
}
