//! Stands between promptd and its broker, notes which prompts were given, acknowledged, answered, and can be cut or held
//! in the moment when one of these passes. What promptd has acknowledged is seen nowhere else.

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::BytesMut;
use rumqttc::v5::mqttbytes::v5::{Packet, Publish};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

/// What passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pass {
    /// The broker gives promptd a prompt.
    Asked,
    /// promptd acknowledges it.
    Acked,
    /// promptd gives the broker its final message.
    Answered,
    /// The broker acknowledges that.
    Taken,
}

pub(crate) const PASSES: [Pass; 4] = [Pass::Asked, Pass::Acked, Pass::Answered, Pass::Taken];

/// What becomes of a message that was held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Deliver,
    Lose,
}

/// Somebody who waits for the n-th message of a kind, which is held until the verdict.
struct Trap {
    pass: Pass,
    left: u32,
    tell: Option<oneshot::Sender<oneshot::Sender<Verdict>>>,
}

#[derive(Default)]
struct Notes {
    seen: Vec<(Pass, String)>,
    traps: Vec<Trap>,
}

/// Everything that passed, in order.
#[derive(Clone, Default)]
pub(crate) struct Tape(Arc<Mutex<Notes>>);

impl Tape {
    fn with<T>(&self, work: impl FnOnce(&mut Notes) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// How often this passed for this prompt.
    pub(crate) fn count(&self, pass: Pass, id: &str) -> usize {
        self.with(|notes| notes.seen.iter().filter(|(p, i)| *p == pass && i == id).count())
    }

    /// Whether the one passed for this prompt, and the other did not before.
    pub(crate) fn is_before(&self, one: Pass, other: Pass, id: &str) -> bool {
        self.with(|notes| {
            let mut of_it = notes.seen.iter().filter(|(_, i)| i == id).map(|(pass, _)| *pass);
            of_it.find(|pass| *pass == one || *pass == other) == Some(one)
        })
    }

    /// Waits for the n-th message of a kind; the message waits too, for the verdict.
    pub(crate) fn trap(&self, pass: Pass, n: u32) -> oneshot::Receiver<oneshot::Sender<Verdict>> {
        let (tell, told) = oneshot::channel();
        self.with(|notes| notes.traps.push(Trap { pass, left: n, tell: Some(tell) }));
        told
    }

    async fn note(&self, pass: Pass, id: &str) -> Verdict {
        let held = self.with(|notes| {
            notes.seen.push((pass, id.to_owned()));
            let mut held = None;
            for trap in notes.traps.iter_mut().filter(|trap| trap.pass == pass) {
                trap.left = trap.left.saturating_sub(1);
                if trap.left == 0
                    && held.is_none()
                    && let Some(tell) = trap.tell.take()
                {
                    held = Some(tell);
                }
            }
            held
        });
        let Some(tell) = held else { return Verdict::Deliver };
        let (decide, decided) = oneshot::channel();
        if tell.send(decide).is_err() {
            return Verdict::Deliver;
        }
        decided.await.unwrap_or(Verdict::Deliver)
    }
}

/// The relay.
pub(crate) struct Relay {
    pub(crate) port: u16,
    pub(crate) tape: Tape,
    cuts: watch::Sender<u64>,
    task: JoinHandle<()>,
}

impl Relay {
    /// A relay to the broker on this port.
    pub(crate) async fn to(broker: u16) -> Relay {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (tape, (cuts, _)) = (Tape::default(), watch::channel(0));
        let (for_all, cut) = (tape.clone(), cuts.clone());
        let task = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let mut cut = cut.subscribe();
                let tape = for_all.clone();
                tokio::spawn(async move {
                    let Ok(far) = TcpStream::connect((Ipv4Addr::LOCALHOST, broker)).await else {
                        return;
                    };
                    let _ = (near.set_nodelay(true), far.set_nodelay(true));
                    tokio::select! {
                        _ = cut.changed() => {}
                        () = pass(near, far, tape) => {}
                    }
                });
            }
        });
        Relay { port, tape, cuts, task }
    }

    /// Cuts all connections; new ones are let through.
    pub(crate) fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
        self.cut();
    }
}

/// Packet numbers of one connection and the prompts they stand for.
#[derive(Clone, Default)]
struct Numbers {
    asked: Arc<Mutex<Vec<(u16, String)>>>,
    answered: Arc<Mutex<Vec<(u16, String)>>>,
}

async fn pass(near: TcpStream, far: TcpStream, tape: Tape) {
    let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
    let numbers = Numbers::default();
    let up = one_way(near_read, far_write, (tape.clone(), numbers.clone()), true);
    let down = one_way(far_read, near_write, (tape, numbers), false);
    tokio::select! {
        () = up => {}
        () = down => {}
    }
}

async fn one_way(
    mut from: impl AsyncRead + Unpin,
    mut to: impl tokio::io::AsyncWrite + Unpin,
    (tape, numbers): (Tape, Numbers),
    up: bool,
) {
    while let Some(raw) = frame(&mut from).await {
        let kind = raw[0] >> 4;
        let mut verdict = Verdict::Deliver;
        if matches!(kind, 3 | 4)
            && let Ok(packet) = Packet::read(&mut BytesMut::from(raw.as_slice()), None)
            && let Some((pass, id)) = meaning(packet, &numbers, up)
        {
            verdict = tape.note(pass, &id).await;
        }
        if verdict == Verdict::Lose || to.write_all(&raw).await.is_err() {
            return;
        }
    }
}

fn meaning(packet: Packet, numbers: &Numbers, up: bool) -> Option<(Pass, String)> {
    let of = |list: &Mutex<Vec<(u16, String)>>, number| {
        let mut list = list.lock().unwrap_or_else(PoisonError::into_inner);
        let at = list.iter().position(|(n, _)| *n == number)?;
        Some(list.swap_remove(at).1)
    };
    let enter = |list: &Mutex<Vec<(u16, String)>>, publish: &Publish| {
        let id = id_of(publish)?;
        let mut list = list.lock().unwrap_or_else(PoisonError::into_inner);
        list.push((publish.pkid, id.clone()));
        Some(id)
    };
    match (packet, up) {
        // A cancel names its prompt as well.
        (Packet::Publish(publish), false) if publish.topic.ends_with(b"/ask") => {
            Some((Pass::Asked, enter(&numbers.asked, &publish)?))
        }
        (Packet::PubAck(ack), true) => Some((Pass::Acked, of(&numbers.asked, ack.pkid)?)),
        (Packet::Publish(publish), true) if publish.pkid > 0 => {
            Some((Pass::Answered, enter(&numbers.answered, &publish)?))
        }
        (Packet::PubAck(ack), false) => Some((Pass::Taken, of(&numbers.answered, ack.pkid)?)),
        _ => None,
    }
}

/// The prompt that a message is about.
fn id_of(publish: &Publish) -> Option<String> {
    let object: Value = serde_json::from_slice(&publish.payload).ok()?;
    object.get("id")?.as_str().map(str::to_owned)
}

/// One packet, head included; `None` at the end of the connection.
async fn frame(from: &mut (impl AsyncRead + Unpin)) -> Option<Vec<u8>> {
    let mut raw = vec![from.read_u8().await.ok()?];
    let (mut length, mut shift) = (0, 0);
    loop {
        let byte = from.read_u8().await.ok()?;
        raw.push(byte);
        length |= usize::from(byte & 0x7f) << shift;
        shift += 7;
        if byte < 0x80 {
            break;
        }
    }
    let head = raw.len();
    raw.resize(head + length, 0);
    from.read_exact(&mut raw[head..]).await.ok()?;
    Some(raw)
}
