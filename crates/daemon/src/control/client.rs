//! A blocking client of the control socket.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{EventRecord, Hello, MAX_LINE_BYTES, Request, Response, SOCKET_NAME, VERSION};

/// Why a request did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("no daemon answers on {}: {source}", path.display())]
    NotRunning {
        /// The socket.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// This user may not.
    #[error("{}: {source}", path.display())]
    NotAllowed {
        /// The socket.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The socket belongs to another protocol version.
    #[error("the daemon speaks control protocol {got}, expected {expected}")]
    Version {
        /// Version of this client.
        expected: u32,
        /// Version of the server.
        got: u32,
    },
    /// The connection broke.
    #[error("talking to the daemon: {0}")]
    Io(#[from] io::Error),
    /// A line was not what the protocol allows.
    #[error("reading the daemon's answer: {0}")]
    Malformed(String),
    /// The daemon refused.
    #[error("{message}")]
    Refused {
        /// Why.
        message: String,
        /// What to do next; may be empty.
        hint: String,
    },
}

impl ClientError {
    /// What to do next.
    pub fn hint(&self) -> String {
        match self {
            ClientError::NotAllowed { .. } => "Use sudo, or join the group slate.".into(),
            ClientError::NotRunning { .. } => "Start one: slate up --interface IF".into(),
            ClientError::Version { .. } => {
                "Use the slate that belongs to the running daemon, or restart it.".into()
            }
            ClientError::Io(_) | ClientError::Malformed(_) => {
                "See the daemon's log: journalctl -u slate".into()
            }
            ClientError::Refused { hint, .. } => hint.clone(),
        }
    }
}

/// A connection to a running daemon.
#[derive(Debug)]
pub struct Client {
    reader: BufReader<UnixStream>,
    hello: Hello,
}

impl Client {
    /// Connects to the daemon of `run_dir`.
    pub fn connect(run_dir: &Path) -> Result<Client, ClientError> {
        let path = run_dir.join(SOCKET_NAME);
        let stream = UnixStream::connect(&path).map_err(|source| match source.kind() {
            io::ErrorKind::PermissionDenied => ClientError::NotAllowed { path, source },
            _ => ClientError::NotRunning { path, source },
        })?;
        Client::over(stream)
    }

    /// Speaks over a connected stream.
    pub fn over(stream: UnixStream) -> Result<Client, ClientError> {
        stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
        let mut reader = BufReader::new(stream);
        let hello = parse_hello(&read_line(&mut reader)?)?;
        if hello.slate_control != VERSION {
            return Err(ClientError::Version {
                expected: VERSION,
                got: hello.slate_control,
            });
        }
        Ok(Client { reader, hello })
    }

    /// What the server said of itself.
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// Sends one request and waits for its answer; a refusal is an error.
    pub fn request(&mut self, request: &Request) -> Result<Response, ClientError> {
        self.send(request)?;
        self.receive()
    }

    /// Events after `since`; with `follow` the iterator does not end by itself.
    pub fn events(mut self, since: u64, follow: bool) -> Result<Events, ClientError> {
        self.send(&Request::Events { since, follow })?;
        if follow {
            self.reader.get_ref().set_read_timeout(None)?;
        }
        Ok(Events {
            client: self,
            ended: false,
        })
    }

    fn send(&mut self, request: &Request) -> Result<(), ClientError> {
        let mut line =
            serde_json::to_vec(request).map_err(|e| ClientError::Malformed(e.to_string()))?;
        line.push(b'\n');
        Ok(self.reader.get_mut().write_all(&line)?)
    }

    fn receive(&mut self) -> Result<Response, ClientError> {
        match parse_line(&read_line(&mut self.reader)?)? {
            Response::Error { message, hint } => Err(ClientError::Refused { message, hint }),
            response => Ok(response),
        }
    }
}

/// How long the daemon may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Events as they come. See [`Client::events`].
#[derive(Debug)]
pub struct Events {
    client: Client,
    ended: bool,
}

impl Iterator for Events {
    type Item = Result<EventRecord, ClientError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        match self.client.receive() {
            Ok(Response::Event(event)) => Some(Ok(event)),
            Ok(Response::Done) => {
                self.ended = true;
                None
            }
            Ok(other) => {
                self.ended = true;
                Some(Err(ClientError::Malformed(format!(
                    "expected an event, got {other:?}"
                ))))
            }
            Err(error) => {
                self.ended = true;
                Some(Err(error))
            }
        }
    }
}

/// One line without its end, of at most [`MAX_LINE_BYTES`].
fn read_line(reader: &mut impl BufRead) -> Result<Vec<u8>, ClientError> {
    let mut line = Vec::new();
    reader
        .take(MAX_LINE_BYTES as u64)
        .read_until(b'\n', &mut line)?;
    if line.pop() != Some(b'\n') {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    Ok(line)
}

fn parse_line<T: serde::de::DeserializeOwned>(line: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(line)
        .map_err(|e| ClientError::Malformed(format!("{e} in {}", String::from_utf8_lossy(line))))
}

/// The server's first line: its hello, or why it will not talk to this user.
fn parse_hello(line: &[u8]) -> Result<Hello, ClientError> {
    match parse_line(line) {
        Ok(Response::Error { message, hint }) => Err(ClientError::Refused { message, hint }),
        _ => parse_line(line),
    }
}
