//! Three boards at a clustered broker of three nodes, each board at another node: `make test-cluster` builds the broker
//! (`tests/cluster`) and says where it is.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use promptd::mqtt::{BrokerUrl, Config};
use serde_json::json;
use tokio::time::{sleep, timeout};

use crate::support::PATIENCE;
use crate::support::broker::Client;
use crate::support::fleet::{Watcher, Worker, answers, ask, member, three_boards_share};

const NAMES: [&str; 3] = ["a", "b", "c"];
/// Long enough that nobody becomes free while a test looks who has what.
const SERVICE: Duration = Duration::from_secs(2);

/// The nodes of a broker, each a process; killed when dropped.
struct Cluster {
    program: PathBuf,
    mqtt: [u16; 3],
    rpc: [u16; 3],
    raft: [u16; 3],
    nodes: [Option<Child>; 3],
    dir: tempfile::TempDir,
}

impl Cluster {
    /// `None`, and a line that says so, where no broker was built.
    async fn start() -> Option<Cluster> {
        let Some(program) = std::env::var_os("PROMPTD_TEST_CLUSTER") else {
            println!("SKIPPED: there is no clustered broker (`make test-cluster` builds one)");
            return None;
        };
        let [mqtt, rpc, raft] = free_ports();
        let dir = tempfile::tempdir().unwrap();
        let nodes = [None, None, None];
        let mut cluster = Cluster { program: program.into(), mqtt, rpc, raft, nodes, dir };
        // The first leads; the others find it.
        for at in 0..3 {
            cluster.run(at).await;
        }
        Some(cluster)
    }

    /// Starts a node and waits until it is one of the cluster: only then it listens.
    async fn run(&mut self, at: usize) {
        let list = |ports: &[u16]| ports.iter().map(u16::to_string).collect::<Vec<_>>().join(",");
        let port = self.mqtt[at];
        let log = std::fs::File::create(self.dir.path().join(format!("{at}.log"))).unwrap();
        let mut command = Command::new(&self.program);
        command.args([(at + 1).to_string(), port.to_string(), list(&self.rpc), list(&self.raft)]);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let mut child = command.spawn().unwrap();
        let listens = until(|| {
            let ended = child.try_wait().unwrap();
            assert!(ended.is_none(), "node {at}: {ended:?}\n{}", self.log(at));
            TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok()
        });
        let listens = listens.await;
        self.nodes[at] = Some(child);
        assert!(listens, "node {at} does not listen\n{}", self.log(at));
    }

    fn log(&self, at: usize) -> String {
        std::fs::read_to_string(self.dir.path().join(format!("{at}.log"))).unwrap_or_default()
    }

    /// `kill -9`.
    fn kill(&mut self, at: usize) {
        if let Some(mut child) = self.nodes[at].take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// A board whose first address is this node, and whose others are the other nodes.
    fn member(&self, at: usize) -> Config {
        let order = (0..3).map(|step| self.mqtt[(at + step) % 3]);
        let url = |port| BrokerUrl::parse(&format!("mqtt://127.0.0.1:{port}")).unwrap();
        Config { brokers: order.map(url).collect(), ..member(self.mqtt[at], NAMES[at]) }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for child in self.nodes.iter_mut().flatten() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Waits until this holds, for as long as any test waits for something.
async fn until(mut holds: impl FnMut() -> bool) -> bool {
    let wait = async {
        while !holds() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, wait).await.is_ok()
}

/// Ports that are free, all different.
fn free_ports() -> [[u16; 3]; 3] {
    let free = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let held: [[TcpListener; 3]; 3] = std::array::from_fn(|_| std::array::from_fn(|_| free()));
    held.map(|three| three.map(|held| held.local_addr().unwrap().port()))
}

#[tokio::test]
async fn boards_at_three_nodes_share_as_at_one() {
    let Some(cluster) = Cluster::start().await else { return };
    three_boards_share([0, 1, 2].map(|at| cluster.member(at)), cluster.mqtt[0]).await;
}

#[tokio::test]
async fn a_broker_node_that_is_killed_costs_nothing_accepted() {
    a_node_is_killed(2).await;
}

#[tokio::test]
async fn the_node_that_leads_is_killed() {
    a_node_is_killed(0).await;
}

async fn a_node_is_killed(victim: usize) {
    let Some(mut cluster) = Cluster::start().await else { return };
    let dirs = [0, 1, 2].map(|_| tempfile::tempdir().unwrap());
    let other = cluster.mqtt[(victim + 1) % 3];
    let mut watcher = Watcher::new(other).await;
    let mut boards =
        [0, 1, 2].map(|at| Worker::start(cluster.member(at), SERVICE, Some(dirs[at].path())));
    watcher.together(&NAMES, 1).await;
    let mut me = Client::connect(other, "me", &["promptd/+/answer/#"], false).await;
    ask(&me, 0..9).await;
    // All are accepted somewhere, and nobody is free.
    let accepted = until(|| {
        let all = boards.each_ref().map(Worker::in_work);
        all.iter().sum::<usize>() == 9 && all.iter().all(|board| *board > 0)
    });
    assert!(accepted.await, "{:?}", boards.each_ref().map(Worker::in_work));
    cluster.kill(victim);
    answers(&mut me, 0..9).await;
    // Its board is there again, by way of another node, and takes its share.
    watcher.together(&NAMES, 1).await;
    for board in &mut boards {
        board.starts();
    }
    ask(&me, 9..18).await;
    answers(&mut me, 9..18).await;
    for (board, name) in boards.iter_mut().zip(NAMES) {
        assert!(!board.starts().is_empty(), "{name} had nothing to do");
    }
    // And so it is when the node is back.
    cluster.run(victim).await;
    ask(&me, 18..27).await;
    answers(&mut me, 18..27).await;
    for board in boards {
        board.kill().await;
    }
}

#[tokio::test]
async fn a_board_that_is_killed_leaves_what_it_had_not_accepted_to_others() {
    let Some(cluster) = Cluster::start().await else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut watcher = Watcher::new(cluster.mqtt[0]).await;
    let start = |at: usize, dir| Worker::start(cluster.member(at), SERVICE / 4, dir);
    // The last writes nothing down: what it has in work is the broker's until it is answered.
    let [a, mut b, mut c] = [start(0, None), start(1, Some(dir.path())), start(2, None)];
    watcher.together(&NAMES, 1).await;
    let mut me = Client::connect(cluster.mqtt[0], "me", &["promptd/+/answer/#"], false).await;
    ask(&me, 0..18).await;
    for board in [&mut b, &mut c] {
        board.begun.recv().await.unwrap();
    }
    c.kill().await;
    answers(&mut me, 0..18).await;
    watcher.until("a", |status| status["fleet"]["peers"] == json!(1)).await;
    a.kill().await;
    b.kill().await;
}
