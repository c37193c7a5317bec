//! HTTPS with a certificate that was given: what HTTP serves, by TLS (rustls with ring).
//!
//! The files are looked at again when somebody connects, at most once a second: a renewed certificate
//! counts without a restart, and one that is damaged leaves the former in use.

use std::fmt::Display;
use std::fs::Metadata;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use x509_cert::der::Decode as _;

use crate::Error;
use crate::net::http::{self, Server};
use crate::net::stream::Sending;

/// Most connections at once. Nodes' agents use plain HTTP; these are firmware's and users'.
const CONNECTIONS_MAX: usize = 1024;
/// How long a client may take until it may ask.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);
/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Largest file that is read: a chain of certificates takes a few kilobytes.
const FILE_MAX_BYTES: u64 = 1 << 20;

/// A certificate and its key, both in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The server's certificate, and behind it those that lead to its authority.
    pub certificate: PathBuf,
    /// The private key of the first of them.
    pub key: PathBuf,
}

impl CertificateFiles {
    /// Whether they can be served with; what is wrong but does not keep from that.
    pub fn check(&self) -> Result<Vec<String>, Error> {
        let (_, mut warnings) = self.load()?;
        warnings.extend(self.validity(SystemTime::now())?);
        Ok(warnings)
    }

    fn load(&self) -> Result<(ServerConfig, Vec<String>), Error> {
        let chain = self.chain()?;
        let (text, meta) = read(&self.key)?;
        let key = PrivateKeyDer::from_pem_slice(&text).map_err(|error| {
            bad(
                &self.key,
                "a private key in PEM, without a password",
                &error,
            )
        })?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(|it| it.with_no_client_auth().with_single_cert(chain, key))
            .map_err(|error| self.refused(&error))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let readable = meta.mode() & 0o004 != 0;
        let warning = readable.then(|| {
            let key = self.key.display();
            format!("every user of this machine can read the key {key}: chmod o-r {key}")
        });
        Ok((config, warning.into_iter().collect()))
    }

    fn chain(&self) -> Result<Vec<CertificateDer<'static>>, Error> {
        let (text, _) = read(&self.certificate)?;
        let expected = "a certificate in PEM";
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&text)
            .collect::<Result<_, _>>()
            .map_err(|error| bad(&self.certificate, expected, &error))?;
        if chain.is_empty() {
            return Err(bad(&self.certificate, expected, &"none"));
        }
        Ok(chain)
    }

    fn refused(&self, error: &rustls::Error) -> Error {
        match error {
            rustls::Error::InconsistentKeys(_) => {
                let expected = format!("the key of {}", self.certificate.display());
                bad(&self.key, &expected, &"the key of another certificate")
            }
            rustls::Error::InvalidCertificate(_) => {
                bad(&self.certificate, "a certificate of version 3", error)
            }
            _ => bad(&self.key, "an RSA, ECDSA or Ed25519 key", &error),
        }
    }

    /// Why clients refuse the certificate at a time, if they do.
    fn validity(&self, now: SystemTime) -> Result<Option<String>, Error> {
        let chain = self.chain()?;
        let parsed = x509_cert::Certificate::from_der(&chain[0])
            .map_err(|error| bad(&self.certificate, "a certificate of version 3", &error))?;
        let validity = parsed.tbs_certificate.validity;
        let shown = self.certificate.display();
        if now > validity.not_after.to_system_time() {
            return Ok(Some(format!(
                "the certificate {shown} expired at {}: clients refuse it until it is renewed",
                validity.not_after
            )));
        }
        if now < validity.not_before.to_system_time() {
            return Ok(Some(format!(
                "the certificate {shown} is not valid before {}, by this machine's clock: clients refuse it",
                validity.not_before
            )));
        }
        Ok(None)
    }
}

fn bad(path: &Path, expected: &str, got: &dyn Display) -> Error {
    Error::Certificate {
        path: path.to_owned(),
        expected: expected.to_owned(),
        got: got.to_string(),
    }
}

fn read(path: &Path) -> Result<(Vec<u8>, Metadata), Error> {
    let failed = |error| Error::io(format!("reading {}", path.display()), error);
    let meta = std::fs::metadata(path).map_err(failed)?;
    if !meta.is_file() || meta.len() > FILE_MAX_BYTES {
        return Err(bad(path, "a file of at most 1 MiB", &"something else"));
    }
    Ok((std::fs::read(path).map_err(failed)?, meta))
}

/// What tells that a file was replaced or changed.
type Marks = [Option<(u64, u64, i64, i64)>; 2];

fn marks(files: &CertificateFiles) -> Marks {
    [&files.certificate, &files.key].map(|path| {
        let meta = std::fs::metadata(path).ok()?;
        Some((meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec()))
    })
}

/// A certificate in use.
pub struct Certificate {
    files: CertificateFiles,
    state: Mutex<State>,
}

struct State {
    config: Arc<ServerConfig>,
    marks: Marks,
    looked: Instant,
}

impl Certificate {
    /// Takes it from its files.
    pub fn open(files: CertificateFiles) -> Result<Certificate, Error> {
        // Before the files: what changes meanwhile is seen at the next look.
        let marks = marks(&files);
        let (config, _) = files.load()?;
        let state = State {
            config: Arc::new(config),
            marks,
            looked: Instant::now(),
        };
        let state = Mutex::new(state);
        Ok(Certificate { files, state })
    }

    /// What to serve with now.
    fn current(&self, now: Instant) -> Arc<ServerConfig> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_duration_since(state.looked) >= LOOK_EVERY {
            state.looked = now;
            let found = marks(&self.files);
            if found != state.marks {
                // Also where it fails, so that each change is told of once.
                state.marks = found;
                match self.files.load() {
                    Ok((config, _)) => {
                        state.config = Arc::new(config);
                        tracing::info!("the certificate was renewed");
                    }
                    Err(error) => {
                        tracing::warn!(%error, "the former certificate stays in use");
                    }
                }
            }
        }
        Arc::clone(&state.config)
    }
}

/// Serves what connects, for ever.
pub async fn serve(listener: TcpListener, certificate: Arc<Certificate>, server: Arc<Server>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, peer)) => {
                let acceptor = TlsAcceptor::from(certificate.current(Instant::now()));
                let server = Arc::clone(&server);
                tokio::spawn(async move {
                    connection(stream, peer, &acceptor, server).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "accepting HTTPS");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    acceptor: &TlsAcceptor,
    server: Arc<Server>,
) {
    let SocketAddr::V4(peer) = peer else {
        return;
    };
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => http::connection(stream, peer, server, Sending::default()).await,
        Ok(Err(error)) => tracing::debug!(%error, %peer, "a TLS handshake failed"),
        Err(_) => tracing::debug!(%peer, "a TLS handshake took too long"),
    }
}
