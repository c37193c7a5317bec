//! HTTP/1.1 for boot files and identities. Headers in title case, exact lengths and no chunks:
//! GRUB's parser takes nothing else.

use std::net::{SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use engine::{
    Digest, HOLD_SECONDS, HttpAnswer, HttpBody, HttpRequest, Input, MAX_HTTP_BODY_BYTES, Service,
    TransferOutcome,
};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Body as _, Incoming};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, oneshot};
use wire::identity::Capable;
use wire::ranges::{ContentRange, PartRequest, Selection};
use wire::upload::{Claim, MAX_UPLOAD_BYTES, Piece};

use crate::blob::Blob;
use crate::content::Contents;
use crate::hub::{Inbox, Message};
use crate::identity::Identities;
use crate::net::stream::{FileStream, Sending};
use crate::uploads::Uploads;

/// Most connections at once, those of agents that wait for orders among them.
const CONNECTIONS_MAX: usize = 8192;
/// Most pieces of uploads that are read and written at once, each of [`MAX_UPLOAD_BYTES`].
const PIECES_MAX: usize = 16;
/// How long a client may take for a piece of an upload.
const PIECE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a client may take for its headers.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(20);

/// What every connection needs.
pub struct Server {
    /// The files.
    pub contents: Arc<Contents>,
    /// Makes identity documents.
    pub identities: Identities,
    /// Decides.
    pub hub: Inbox,
    /// Takes what orders upload.
    pub uploads: Arc<Uploads>,
    /// A place for each piece that is under way.
    pieces: Semaphore,
}

/// Serves what connects, for ever.
pub async fn serve(listener: TcpListener, server: Arc<Server>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, SocketAddr::V4(peer))) => {
                let server = Arc::clone(&server);
                tokio::spawn(async move {
                    let sending = Sending::default();
                    let stream = FileStream::new(stream, sending.clone());
                    connection(stream, peer, server, sending).await;
                    drop(place);
                });
            }
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(%error, "accepting HTTP");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// One connection, plain or by TLS, until it ends; `sending` is told of the boot files that go out.
pub(super) async fn connection<S>(
    stream: S,
    peer: SocketAddrV4,
    server: Arc<Server>,
    sending: Sending,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| {
        let (server, sending) = (Arc::clone(&server), sending.clone());
        async move { Ok::<_, std::convert::Infallible>(server.answer(peer, request, &sending).await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .title_case_headers(true)
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, %peer, "an HTTP connection ended");
    }
}

impl Server {
    /// A server of these.
    pub fn new(
        contents: Arc<Contents>,
        identities: Identities,
        hub: Inbox,
        uploads: Arc<Uploads>,
    ) -> Server {
        Server {
            contents,
            identities,
            hub,
            uploads,
            pieces: Semaphore::new(PIECES_MAX),
        }
    }

    async fn answer(
        &self,
        peer: SocketAddrV4,
        request: Request<Incoming>,
        sending: &Sending,
    ) -> Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        let target = head.uri.path_and_query().map_or("/", |it| it.as_str());
        if head.method == Method::POST && target == "/upload" {
            return self.upload(body).await;
        }
        let Ok(body) = Limited::new(body, MAX_HTTP_BODY_BYTES).collect().await else {
            return plain(413, "the request's body is too long");
        };
        let request = HttpRequest {
            method: head.method.to_string(),
            target: target.to_owned(),
            body: body.to_bytes().into(),
        };
        let (sender, receiver) = oneshot::channel();
        let asked = self.send(Message::Http(Input::Http { peer, request }, sender));
        let waited = tokio::time::timeout(Duration::from_secs(HOLD_SECONDS), receiver).await;
        match (asked, waited) {
            (true, Ok(Ok(answer))) => self.respond(peer, &head, answer, sending).await,
            (true, Err(_)) => response(204, "application/octet-stream", Bytes::new()),
            // The decision could not be kept, or the daemon stops: both pass.
            _ => plain(503, "try again"),
        }
    }

    /// `POST /upload`: a piece of what an order uploads. Whether it may is the engine's to say.
    async fn upload(&self, body: Incoming) -> Response<Full<Bytes>> {
        let Ok(_place) = self.pieces.acquire().await else {
            return plain(503, "try again");
        };
        let body = Limited::new(body, MAX_UPLOAD_BYTES).collect();
        let body = match tokio::time::timeout(PIECE_TIMEOUT, body).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(_)) => return plain(413, "the piece is too long"),
            Err(_) => return plain(408, "the piece does not come"),
        };
        let claim = match Claim::peek(&body) {
            Ok(claim) => claim,
            Err(error) => return plain(400, &error.to_string()),
        };
        let (sender, receiver) = oneshot::channel();
        let asked = self.send(Message::Ask(Box::new(move |engine| {
            let _ = sender.send(engine.upload_leave(claim));
        })));
        let leave = match (asked, receiver.await) {
            (true, Ok(leave)) => leave,
            _ => return plain(503, "try again"),
        };
        let Some(leave) = leave else {
            return plain(403, "no order of this boot that may upload is under way");
        };
        let uploads = Arc::clone(&self.uploads);
        let taken = tokio::task::spawn_blocking(move || {
            let piece = Piece::open(&body, &leave.key).map_err(|it| (403, it.to_string()))?;
            let taken = uploads.take(claim.order, &piece, leave.max_bytes);
            taken.map_err(|it| it.answer())
        });
        match taken.await {
            Ok(Ok(())) => plain(200, "taken"),
            Ok(Err((status, cause))) => plain(status, &cause),
            Err(_) => plain(500, "taking the piece failed"),
        }
    }

    /// False: too much waits, or the daemon stops. A runtime's thread must not block.
    fn send(&self, message: Message) -> bool {
        self.hub.try_send(message).is_ok()
    }

    /// The files of an image version that have capabilities. Without them a node boots all the same.
    async fn capable(&self, version: Option<Digest>) -> Arc<[Capable]> {
        let Some(version) = version else {
            return [].into();
        };
        let contents = Arc::clone(&self.contents);
        let found = tokio::task::spawn_blocking(move || contents.capable(version)).await;
        found.unwrap_or_else(|_| [].into())
    }

    async fn respond(
        &self,
        peer: SocketAddrV4,
        head: &Parts,
        answer: HttpAnswer,
        sending: &Sending,
    ) -> Response<Full<Bytes>> {
        let content = match answer.body {
            HttpBody::Identity(grant) => match self
                .identities
                .seal(&grant, &self.capable(grant.image).await)
            {
                Ok(sealed) => return response(answer.status, answer.content_type, sealed.into()),
                Err(error) => return plain(403, &error.to_string()),
            },
            HttpBody::Content(content) => content,
        };
        let is_file = answer.status == 200 && [Method::GET, Method::HEAD].contains(&head.method);
        let contents = Arc::clone(&self.contents);
        let made = tokio::task::spawn_blocking(move || {
            let blob = contents.get(&content)?;
            // Here too, since the digest of a large file takes a while to make.
            let tag = is_file.then(|| format!("\"{}\"", blob.digest()));
            Ok::<_, String>((blob, tag))
        });
        let (blob, tag) = match made.await {
            Ok(Ok(made)) => made,
            Ok(Err(cause)) => return plain(500, &cause),
            Err(_) => return plain(500, "making the file failed"),
        };
        let Some(tag) = tag else {
            return response(answer.status, answer.content_type, blob.bytes().clone());
        };
        let response = part(head, answer.content_type, &blob, &tag);
        if let (true, Some(path)) = (response.status().is_success(), answer.path) {
            let ended = Input::TransferEnded {
                peer: *peer.ip(),
                service: Service::Http,
                path,
                bytes: response.body().size_hint().lower(),
                outcome: TransferOutcome::Done,
            };
            let _ = self.send(Message::Input(ended));
        }
        sending.set(blob);
        response
    }
}

/// A file, or what of it was asked for, by RFC 9110, 14.
fn part(head: &Parts, content_type: &'static str, blob: &Blob, tag: &str) -> Response<Full<Bytes>> {
    let size = blob.len() as u64;
    let (status, part) = match select(head, size, tag) {
        Selection::Whole => (200, 0..size),
        Selection::Part(part) => (206, part),
        Selection::Unsatisfiable => {
            let mut refusal = plain(416, &format!("the file has {size} bytes"));
            let none = ContentRange { part: None, size };
            add(&mut refusal, header::CONTENT_RANGE, &none.to_string());
            return refusal;
        }
        Selection::Changed => return plain(412, "the file is of another version"),
        Selection::Unchanged => return unchanged(tag),
    };
    // Within what is in memory.
    let bytes = blob.bytes().slice(part.start as usize..part.end as usize);
    let mut response = response(status, content_type, bytes);
    add(&mut response, header::ACCEPT_RANGES, "bytes");
    add(&mut response, header::ETAG, tag);
    if status == 206 {
        let part = Some(part);
        let said = ContentRange { part, size }.to_string();
        add(&mut response, header::CONTENT_RANGE, &said);
    }
    response
}

/// Says that the client has the file: without what describes one, its length neither (RFC 9110, 8.6
/// and 15.4.5).
fn unchanged(tag: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    add(&mut response, header::ETAG, tag);
    response
}

fn select(head: &Parts, size: u64, tag: &str) -> Selection {
    // Ranges are of GET only (RFC 9110, 14.2).
    let is_get = head.method == Method::GET;
    let range = field(&head.headers, header::RANGE).filter(|_| is_get);
    let if_range = field(&head.headers, header::IF_RANGE);
    let if_match = field(&head.headers, header::IF_MATCH);
    let if_none_match = field(&head.headers, header::IF_NONE_MATCH);
    let request = PartRequest {
        range: range.as_deref(),
        if_range: if_range.as_deref(),
        if_match: if_match.as_deref(),
        if_none_match: if_none_match.as_deref(),
    };
    request.select(size, tag)
}

/// The lines of a field as one (RFC 9110, 5.3), each empty that is no text.
fn field(headers: &HeaderMap, name: HeaderName) -> Option<String> {
    let lines = headers.get_all(name).iter();
    let lines: Vec<&str> = lines.map(|it| it.to_str().unwrap_or_default()).collect();
    (!lines.is_empty()).then(|| lines.join(","))
}

fn add(response: &mut Response<Full<Bytes>>, name: HeaderName, value: &str) {
    let value = HeaderValue::from_str(value).expect("digits, digests and plain words");
    response.headers_mut().insert(name, value);
}

fn plain(status: u16, text: &str) -> Response<Full<Bytes>> {
    response(
        status,
        "text/plain; charset=utf-8",
        format!("{text}\n").into(),
    )
}

fn response(status: u16, content_type: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, content_type)
        .header(header::CONTENT_LENGTH, body.len())
        .body(Full::new(body))
        .expect("a status and two plain headers make a response")
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::sync::mpsc::sync_channel;

    use engine::Content;

    use super::*;
    use crate::keys::Keys;

    /// The raw answer to a raw request, from a server that answers every target alike.
    fn exchange(request: &[u8]) -> String {
        let dir = tempfile::tempdir().unwrap();
        let store = image::Store::open(dir.path().join("store")).unwrap();
        let profile = image::initramfs::Profile::Virtual;
        let (hub, messages) = sync_channel(16);
        let server = Server::new(
            Arc::new(Contents::new(
                store,
                dir.path().to_owned(),
                dir.path().to_owned(),
                Arc::<[u8]>::default(),
                profile,
            )),
            Identities {
                keys: Keys::open(dir.path()).unwrap(),
            },
            hub,
            Arc::new(Uploads::open(dir.path()).unwrap()),
        );
        std::thread::spawn(move || {
            for message in messages {
                if let Message::Http(_, asker) = message {
                    let _ = asker.send(HttpAnswer {
                        status: 200,
                        content_type: "application/octet-stream",
                        body: HttpBody::Content(Content::Bytes(b"bytes".to_vec())),
                        path: None,
                    });
                }
            }
        });
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let _entered = runtime.enter();
        let listener = TcpListener::from_std(listener).unwrap();
        runtime.spawn(serve(listener, Arc::new(server)));
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        let patience = Some(Duration::from_secs(60));
        stream.set_read_timeout(patience).unwrap();
        stream.write_all(request).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn headers_are_what_grub_can_read() {
        let answer = exchange(b"GET /file HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("\r\nContent-Length: 5\r\n"), "{answer}");
        assert!(!answer.contains("Transfer-Encoding"), "{answer}");
        assert!(answer.contains("\r\nAccept-Ranges: bytes\r\n"), "{answer}");
        assert!(answer.ends_with("\r\n\r\nbytes"), "{answer}");
    }

    /// The answer to a request of some method with more fields, as lines.
    fn with_fields(method: &str, fields: &str) -> String {
        let head = format!("{method} /file HTTP/1.1\r\nHost: x\r\nConnection: close\r\n");
        exchange(format!("{head}{fields}\r\n").as_bytes())
    }

    fn tag_of(answer: &str) -> &str {
        let tag = answer.lines().find_map(|it| it.strip_prefix("Etag: "));
        tag.unwrap_or_else(|| panic!("no tag in {answer}"))
    }

    #[test]
    fn a_range_is_answered_with_that_part() {
        let whole = with_fields("GET", "");
        let tag = tag_of(&whole);
        for (fields, part, body) in [
            ("Range: bytes=1-2\r\n", "1-2", "yt"),
            ("Range: bytes=2-\r\n", "2-4", "tes"),
            ("Range: bytes=-1\r\n", "4-4", "s"),
            (
                &format!("Range: bytes=2-9\r\nIf-Range: {tag}\r\n"),
                "2-4",
                "tes",
            ),
            (
                &format!("Range: bytes=0-0\r\nIf-Match: \"x\"\r\nIf-Match: {tag}\r\n"),
                "0-0",
                "b",
            ),
        ] {
            let answer = with_fields("GET", fields);
            assert!(answer.starts_with("HTTP/1.1 206 Partial"), "{answer}");
            let length = format!("\r\nContent-Length: {}\r\n", body.len());
            assert!(answer.contains(&length), "{answer}");
            let range = format!("\r\nContent-Range: bytes {part}/5\r\n");
            assert!(answer.contains(&range), "{answer}");
            assert_eq!(tag_of(&answer), tag);
            assert!(answer.ends_with(&format!("\r\n\r\n{body}")), "{answer}");
        }
    }

    #[test]
    fn what_cannot_be_a_part_is_whole_or_refused() {
        for fields in [
            "Range: bytes=1-2,4-4\r\n",
            "Range: bytes=1-2\r\nRange: bytes=4-4\r\n",
            "Range: bytes=x\r\n",
            "Range: bytes=1-2\r\nIf-Range: \"x\"\r\n",
            "Range: bytes=1-2\r\nIf-Range: Sun, 06 Nov 1994 08:49:37 GMT\r\n",
        ] {
            let answer = with_fields("GET", fields);
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
            assert!(!answer.contains("Content-Range"), "{answer}");
            assert!(answer.ends_with("\r\n\r\nbytes"), "{answer}");
        }
        let answer = with_fields("HEAD", "Range: bytes=1-2\r\n");
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(answer.contains("\r\nContent-Length: 5\r\n"), "{answer}");

        let answer = with_fields("GET", "Range: bytes=5-\r\n");
        assert!(answer.starts_with("HTTP/1.1 416 "), "{answer}");
        assert!(
            answer.contains("\r\nContent-Range: bytes */5\r\n"),
            "{answer}"
        );
        for method in ["GET", "HEAD"] {
            let answer = with_fields(method, "Range: bytes=1-2\r\nIf-Match: \"x\"\r\n");
            assert!(answer.starts_with("HTTP/1.1 412 "), "{answer}");
        }
    }

    #[test]
    fn what_the_client_has_is_not_sent_again() {
        let whole = with_fields("GET", "");
        let tag = tag_of(&whole);
        for method in ["GET", "HEAD"] {
            for fields in [
                format!("If-None-Match: {tag}\r\n"),
                format!("If-None-Match: \"x\"\r\nIf-None-Match: W/{tag}\r\nRange: bytes=9-\r\n"),
            ] {
                let answer = with_fields(method, &fields);
                assert!(answer.starts_with("HTTP/1.1 304 "), "{answer}");
                assert_eq!(tag_of(&answer), tag);
                assert!(!answer.contains("Content-"), "{answer}");
                assert!(answer.ends_with("\r\n\r\n"), "{answer}");
            }
            let answer = with_fields(method, "If-None-Match: \"x\"\r\n");
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
            let both = format!("If-None-Match: {tag}\r\nIf-Match: \"x\"\r\n");
            let answer = with_fields(method, &both);
            assert!(answer.starts_with("HTTP/1.1 412 "), "{answer}");
        }
    }

    #[test]
    fn head_has_the_length_without_the_body() {
        let answer = exchange(b"HEAD /file HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        assert!(answer.contains("\r\nContent-Length: 5\r\n"), "{answer}");
        assert!(answer.ends_with("\r\n\r\n"), "{answer}");
    }

    #[test]
    fn a_piece_that_is_none_is_refused_before_anybody_is_asked() {
        let head = "POST /upload HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: ";
        let answer = exchange(format!("{head}4\r\n\r\nSLU1").as_bytes());
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
        let body = vec![b'x'; MAX_UPLOAD_BYTES + 1];
        let head = format!("{head}{}\r\n\r\n", body.len());
        let answer = exchange(&[head.as_bytes(), &body].concat());
        assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    }

    #[test]
    fn a_body_that_is_too_long_is_refused() {
        let head = format!(
            "POST /identity HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            MAX_HTTP_BODY_BYTES + 1
        );
        let body = vec![b'x'; MAX_HTTP_BODY_BYTES + 1];
        let answer = exchange(&[head.as_bytes(), &body].concat());
        assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    }
}
