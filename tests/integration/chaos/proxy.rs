//! A TCP proxy that breaks connections on command: it refuses, delays or stalls them, drops replies, cuts or silences them.
//!
//! It does not parse the protocol. It can replace a text in the clients' bytes by another of the same length, with which the
//! mutations exchange a script for its mutant.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixStream},
    sync::watch,
};

/// The server behind a proxy.
#[derive(Clone, Debug)]
pub enum Upstream {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// How a proxy treats its connections.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Mode {
    #[default]
    Pass,
    /// Cuts open connections, and closes new ones.
    Refuse,
    /// Passes everything on after a delay: `up` to the server, `down` from it.
    Delay { up: Duration, down: Duration },
    /// Accepts connections and bytes, and passes nothing on until the mode changes.
    Stall,
    /// Passes requests on, drops the replies and cuts the connection: the requests take effect.
    DropReplies,
}

#[derive(Clone, Copy, Default)]
struct State {
    mode: Mode,
    /// Counts the calls of [`Proxy::cut`]; connections from before the last call are cut.
    cut: u64,
    /// Counts the calls of [`Proxy::silence`]; connections from before the last call pass nothing, without an error.
    silenced: u64,
}

struct Shared {
    state: watch::Sender<State>,
    upstream: Mutex<Option<Upstream>>,
    exchanges: Mutex<Vec<(Vec<u8>, Vec<u8>)>>,
}

/// A listening proxy; dropped, it cuts everything.
pub struct Proxy {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    accepting: tokio::task::JoinHandle<()>,
}

impl Proxy {
    /// Listens on a free port. Without an upstream the proxy closes every connection.
    pub async fn start(upstream: Option<Upstream>) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            state: watch::Sender::new(State::default()),
            upstream: Mutex::new(upstream),
            exchanges: Mutex::default(),
        });
        let accepting = tokio::spawn(accept(listener, shared.clone()));
        Proxy { address, shared, accepting }
    }

    pub fn set_upstream(&self, upstream: Upstream) {
        *self.shared.upstream.lock().unwrap() = Some(upstream);
    }

    pub fn set(&self, mode: Mode) {
        self.shared.state.send_modify(|state| state.mode = mode);
    }

    /// Cuts the open connections.
    pub fn cut(&self) {
        self.shared.state.send_modify(|state| state.cut += 1);
    }

    /// Open connections stay open and pass nothing, as when a firewall drops their state. New ones work.
    pub fn silence(&self) {
        self.shared.state.send_modify(|state| state.silenced += 1);
    }

    /// Replaces `from` by `to` in the clients' bytes, on new connections.
    pub fn exchange(&self, from: &str, to: &str) {
        assert_eq!(from.len(), to.len());
        self.shared.exchanges.lock().unwrap().push((from.into(), to.into()));
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.set(Mode::Refuse);
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let Ok((client, _)) = listener.accept().await else { continue };
        let state = shared.state.subscribe();
        if state.borrow().mode != Mode::Refuse {
            tokio::spawn(serve(client, shared.clone(), state));
        }
    }
}

async fn serve(client: TcpStream, shared: Arc<Shared>, mut state: watch::Receiver<State>) {
    let born = *state.borrow_and_update();
    let upstream = shared.upstream.lock().unwrap().clone();
    let server: Box<dyn Stream> = match upstream {
        Some(Upstream::Tcp(address)) => match TcpStream::connect(address).await {
            Ok(stream) if stream.set_nodelay(true).is_ok() => Box::new(stream),
            _ => return,
        },
        Some(Upstream::Unix(path)) => match UnixStream::connect(path).await {
            Ok(stream) => Box::new(stream),
            Err(_) => return,
        },
        None => return,
    };
    let _ = client.set_nodelay(true);
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = tokio::io::split(server);
    let exchange = Exchange::new(shared.exchanges.lock().unwrap().clone());
    tokio::select! {
        () = pump(from_client, to_server, Way::Up, state.clone(), born, exchange) => {}
        () = pump(from_server, to_client, Way::Down, state, born, Exchange::default()) => {}
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Way {
    Up,
    Down,
}

async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    way: Way,
    mut state: watch::Receiver<State>,
    born: State,
    mut exchange: Exchange,
) {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let mut watched = state.clone();
        let length = tokio::select! {
            read = from.read(&mut buffer) => match read {
                Ok(length) if length > 0 => length,
                _ => return,
            },
            _ = watched.wait_for(|state| is_cut(state, &born)) => return,
        };
        if !may_pass(&mut state, &born, way).await || to.write_all(&exchange.feed(&buffer[..length])).await.is_err() {
            return;
        }
    }
}

fn is_cut(state: &State, born: &State) -> bool {
    state.cut != born.cut || state.mode == Mode::Refuse
}

/// Waits until the bytes may pass. Returns `false` if the connection ends instead.
async fn may_pass(state: &mut watch::Receiver<State>, born: &State, way: Way) -> bool {
    let mut delayed = false;
    loop {
        let now = *state.borrow_and_update();
        if is_cut(&now, born) {
            return false;
        }
        let wait = match now.mode {
            _ if now.silenced != born.silenced => None,
            Mode::Stall => None,
            Mode::Delay { up, down } if !delayed => Some(if way == Way::Up { up } else { down }),
            Mode::DropReplies if way == Way::Down => return false,
            _ => return true,
        };
        tokio::select! {
            () = async {
                match wait {
                    Some(wait) => tokio::time::sleep(wait).await,
                    None => std::future::pending().await,
                }
            } => delayed = true,
            changed = state.changed() => if changed.is_err() { return false },
        }
    }
}

/// Replaces texts in a stream, also one that is split between two reads.
#[derive(Default)]
struct Exchange {
    pairs: Vec<(Vec<u8>, Vec<u8>)>,
    /// The last bytes, if a text to replace may begin with them.
    kept: Vec<u8>,
}

impl Exchange {
    fn new(pairs: Vec<(Vec<u8>, Vec<u8>)>) -> Self {
        Exchange { pairs, kept: Vec::new() }
    }

    fn feed(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut out = std::mem::take(&mut self.kept);
        out.extend_from_slice(bytes);
        for (from, to) in &self.pairs {
            let mut at = 0;
            while at + from.len() <= out.len() {
                if out[at..at + from.len()] == from[..] {
                    out[at..at + from.len()].copy_from_slice(to);
                }
                at += 1;
            }
        }
        let begins = |(from, _): &(Vec<u8>, Vec<u8>)| {
            (1..from.len().min(out.len() + 1)).rev().find(|length| out.ends_with(&from[..*length]))
        };
        let begun = self.pairs.iter().filter_map(begins).max().unwrap_or(0);
        self.kept = out.split_off(out.len() - begun);
        out
    }
}

// --- tests of the proxy ----------------------------------------------------------------------------------------------

/// A server that replies to every byte with its successor.
async fn successor() -> (SocketAddr, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                while let Ok(byte) = stream.read_u8().await {
                    if stream.write_u8(byte + 1).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    (address, serving)
}

/// Sends a byte. Returns the reply, or `None` if the connection has ended.
async fn exchange_byte(stream: &mut TcpStream, byte: u8) -> Option<u8> {
    stream.write_u8(byte).await.ok()?;
    stream.read_u8().await.ok()
}

#[tokio::test]
async fn proxy_passes_refuses_cuts_and_drops_replies() {
    let (address, serving) = successor().await;
    let proxy = Proxy::start(Some(Upstream::Tcp(address))).await;
    let connect = async || TcpStream::connect(proxy.address).await.unwrap();
    let mut stream = connect().await;
    assert_eq!(exchange_byte(&mut stream, 1).await, Some(2));
    proxy.cut();
    assert_eq!(exchange_byte(&mut stream, 1).await, None);
    let mut stream = connect().await;
    assert_eq!(exchange_byte(&mut stream, 3).await, Some(4));
    proxy.set(Mode::DropReplies);
    assert_eq!(exchange_byte(&mut stream, 1).await, None);
    proxy.set(Mode::Refuse);
    assert_eq!(exchange_byte(&mut connect().await, 1).await, None);
    let delay = Duration::from_millis(20);
    proxy.set(Mode::Delay { up: delay, down: delay });
    let begun = std::time::Instant::now();
    assert_eq!(exchange_byte(&mut connect().await, 5).await, Some(6));
    assert!(begun.elapsed() >= 2 * delay);
    serving.abort();
}

#[tokio::test]
async fn proxy_delivers_after_stall_and_never_after_silence() {
    let (address, serving) = successor().await;
    let proxy = Proxy::start(Some(Upstream::Tcp(address))).await;
    let (mut held, mut silenced) =
        (TcpStream::connect(proxy.address).await.unwrap(), TcpStream::connect(proxy.address).await.unwrap());
    assert_eq!((exchange_byte(&mut held, 1).await, exchange_byte(&mut silenced, 1).await), (Some(2), Some(2)));
    proxy.set(Mode::Stall);
    held.write_u8(7).await.unwrap();
    let early = tokio::time::timeout(Duration::from_millis(30), held.read_u8()).await;
    assert!(early.is_err(), "{early:?}");
    proxy.set(Mode::Pass);
    assert_eq!(held.read_u8().await.unwrap(), 8);
    proxy.silence();
    silenced.write_u8(7).await.unwrap();
    assert_eq!(exchange_byte(&mut TcpStream::connect(proxy.address).await.unwrap(), 9).await, Some(10));
    assert!(tokio::time::timeout(Duration::from_millis(30), silenced.read_u8()).await.is_err());
    serving.abort();
}

#[test]
fn proxy_replaces_text_across_chunks() {
    let whole = b"xabcabcdabcx".to_vec();
    for size in 1..whole.len() {
        let mut exchange = Exchange::new(vec![(b"abcd".to_vec(), b"ABCD".to_vec())]);
        let out: Vec<u8> = whole.chunks(size).flat_map(|chunk| exchange.feed(chunk)).collect();
        assert_eq!(out, b"xabcABCDabcx", "{size}");
    }
}
