//! One node of a clustered MQTT broker on loopback: rmqtt with its Raft cluster, retained messages and shared subscriptions.
//!
//! usage: cluster-node ID MQTT_PORT RPC_PORT,RPC_PORT,… RAFT_PORT,RAFT_PORT,…
//!
//! Nodes are counted from 1; the ports of all of them are given to each. The first that is started leads.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use rmqtt::Result;
use rmqtt::context::ServerContext;
use rmqtt::net::Builder;
use rmqtt::node::Node;
use rmqtt::server::MqttServer;

/// How often a node tries to speak with others while it starts.
const SETTLES: Duration = Duration::from_millis(500);

fn on(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// The addresses of all nodes, as rmqtt's configuration has them.
fn addresses(ports: &[u16]) -> String {
    let each = ports.iter().enumerate().map(|(at, port)| format!("\"{}@{}\"", at + 1, on(*port)));
    each.collect::<Vec<_>>().join(", ")
}

fn ports(text: &str) -> Result<Vec<u16>> {
    Ok(text.split(',').map(str::parse).collect::<std::result::Result<_, _>>()?)
}

#[tokio::main]
async fn main() -> Result<()> {
    let given: Vec<String> = std::env::args().skip(1).collect();
    let [id, port, rpc, raft] = given.as_slice() else {
        eprintln!("usage: cluster-node ID MQTT_PORT RPC_PORT,RPC_PORT,... RAFT_PORT,RAFT_PORT,...");
        std::process::exit(2);
    };
    let (id, port, rpc, raft): (u64, u16, _, _) = (id.parse()?, port.parse()?, ports(rpc)?, ports(raft)?);
    let own = usize::try_from(id)?.checked_sub(1).and_then(|at| rpc.get(at)).copied();
    let Some(own) = own else {
        eprintln!("there is no port for node {id}");
        std::process::exit(2);
    };
    let cluster = format!("node_grpc_addrs = [{}]\nraft_peer_addrs = [{}]\n", addresses(&rpc), addresses(&raft));
    let context = ServerContext::new()
        .node(Node::new(id, 80.0, 90.0, SETTLES))
        .busy_check_enable(false)
        .plugins_config_map_add("rmqtt-cluster-raft", cluster)
        .plugins_config_map_add("rmqtt-retainer", "")
        .plugins_config_map_add("rmqtt-shared-subscription", "strategy = \"round_robin\"\n")
        .build()
        .await;
    context.node.start_grpc_server(context.clone(), on(own), true, false);
    rmqtt_retainer::register(&context, true, false).await?;
    rmqtt_shared_subscription::register(&context, true, false).await?;
    // It waits until the cluster has a leader.
    rmqtt_cluster_raft::register(&context, true, true).await?;
    let listener = Builder::new().name("tcp").laddr(on(port)).max_inflight(64.try_into()?).bind()?.tcp()?;
    MqttServer::new(context).listener(listener).build().run().await
}
