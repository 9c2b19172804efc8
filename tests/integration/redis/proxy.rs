//! A proxy between the service and Redis that causes faults at exact moments, which a real server can't.

use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::{TcpListener, TcpStream, UnixStream, tcp::OwnedWriteHalf, unix},
    sync::Notify,
    task::JoinHandle,
};

/// The fault of commands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    /// Does not pass commands on; replies to each with this error (without the `-`).
    Answer(String),
    /// Passes commands and this many replies on; drops the next reply, and cuts its connection.
    LoseReplies {
        after: usize,
    },
    /// Does not pass on bytes in which this stands, until the fault is another one.
    Hold(&'static str),
}

/// A listening proxy. Dropped, it cuts every connection.
pub struct Proxy {
    address: SocketAddr,
    state: Arc<State>,
    accepting: JoinHandle<()>,
}

struct State {
    fault: Mutex<Fault>,
    /// The socket of the server for new connections.
    socket: Mutex<PathBuf>,
    /// Replies since the fault was set.
    replies: AtomicUsize,
    /// Notified to cut all connections.
    cut: Notify,
    /// Notified when a command is held.
    held: Notify,
    /// Notified when the fault is set.
    set: Notify,
}

impl State {
    fn fault(&self) -> Fault {
        self.fault.lock().unwrap().clone()
    }

    /// Waits while these bytes are held.
    async fn wait_while_held(&self, bytes: &[u8]) {
        loop {
            let mut set = std::pin::pin!(self.set.notified());
            set.as_mut().enable();
            match self.fault() {
                Fault::Hold(word) if bytes.windows(word.len()).any(|part| part == word.as_bytes()) => {
                    self.held.notify_one();
                    set.await;
                }
                _ => return,
            }
        }
    }
}

impl Proxy {
    /// Starts a proxy in front of the Redis at this socket.
    pub async fn before(socket: PathBuf) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            fault: Mutex::new(Fault::None),
            socket: Mutex::new(socket),
            replies: AtomicUsize::new(0),
            cut: Notify::new(),
            held: Notify::new(),
            set: Notify::new(),
        });
        let shared = state.clone();
        let accepting = tokio::spawn(async move {
            let mut links = tokio::task::JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let state = shared.clone();
                let socket = state.socket.lock().unwrap().clone();
                links.spawn(async move {
                    let cut = state.cut.notified();
                    tokio::select! {
                        // The end of one side closes both.
                        _ = forward(client, socket, &state) => {}
                        () = cut => {}
                    }
                });
            }
        });
        Proxy { address, state, accepting }
    }

    pub fn url(&self) -> String {
        format!("redis://{}/", self.address)
    }

    /// Sets the fault of commands from now on.
    pub fn set(&self, fault: Fault) {
        *self.state.fault.lock().unwrap() = fault;
        self.state.replies.store(0, Ordering::SeqCst);
        self.state.set.notify_waiters();
    }

    /// Waits until a command is held.
    pub async fn held(&self) {
        self.state.held.notified().await;
    }

    /// Connects new connections to the Redis at this socket; open ones stay.
    pub fn lead_to(&self, socket: PathBuf) {
        *self.state.socket.lock().unwrap() = socket;
    }

    /// Cuts every open connection.
    pub fn cut(&self) {
        self.state.cut.notify_waiters();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn forward(client: TcpStream, socket: PathBuf, state: &State) -> io::Result<()> {
    client.set_nodelay(true)?;
    let (mut from_client, to_client) = client.into_split();
    let to_client = tokio::sync::Mutex::new(to_client);
    let (mut from_redis, mut to_redis) = UnixStream::connect(socket).await?.into_split();
    let there = async {
        let (mut buffer, mut commands) = ([0; 16_384], Commands::default());
        loop {
            let length = from_client.read(&mut buffer).await?;
            if length == 0 {
                return io::Result::Ok(());
            }
            let whole = commands.count(&buffer[..length]);
            state.wait_while_held(&buffer[..length]).await;
            match state.fault() {
                Fault::Answer(error) => {
                    let errors = format!("-{error}\r\n").repeat(whole);
                    to_client.lock().await.write_all(errors.as_bytes()).await?;
                }
                Fault::None | Fault::LoseReplies { .. } | Fault::Hold(_) => {
                    to_redis.write_all(&buffer[..length]).await?
                }
            }
        }
    };
    let back = replies(&mut from_redis, &to_client, state);
    tokio::select! {
        done = there => done,
        done = back => done,
    }
}

async fn replies(
    from_redis: &mut unix::OwnedReadHalf,
    to_client: &tokio::sync::Mutex<OwnedWriteHalf>,
    state: &State,
) -> io::Result<()> {
    let mut buffer = [0; 16_384];
    loop {
        let length = from_redis.read(&mut buffer).await?;
        let sent = state.replies.fetch_add(1, Ordering::SeqCst);
        let lost = matches!(state.fault(), Fault::LoseReplies { after } if sent >= after);
        if length == 0 || lost {
            return Ok(());
        }
        copy(&mut &buffer[..length], &mut *to_client.lock().await).await?;
    }
}

/// Counts the commands in a client's bytes: arrays of bulk strings, in pieces of any size.
#[derive(Default)]
struct Commands {
    line: Vec<u8>,
    /// The missing bytes of a bulk string and its end.
    skip: usize,
    /// The missing bulk strings of the command.
    left: usize,
}

impl Commands {
    /// Returns the number of commands that end in this piece.
    fn count(&mut self, piece: &[u8]) -> usize {
        let mut whole = 0;
        for byte in piece {
            if self.skip > 0 {
                self.skip -= 1;
                if self.skip == 0 {
                    self.left -= 1;
                    whole += usize::from(self.left == 0);
                }
                continue;
            }
            self.line.push(*byte);
            if self.line.ends_with(b"\r\n") {
                let number = std::str::from_utf8(&self.line[1..self.line.len() - 2]).unwrap().parse().unwrap();
                match self.line[0] {
                    b'*' => self.left = number,
                    b'$' => self.skip = number + 2,
                    other => panic!("a client sent {other}"),
                }
                self.line.clear();
            }
        }
        whole
    }
}

#[test]
fn proxy_counts_commands_across_chunks() {
    let sent = b"*2\r\n$3\r\nGET\r\n$2\r\n\r\n\r\n*1\r\n$4\r\nPING\r\n";
    for at in 0..sent.len() {
        let mut commands = Commands::default();
        assert_eq!(commands.count(&sent[..at]) + commands.count(&sent[at..]), 2, "{at}");
    }
}
