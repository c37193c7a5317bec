//! Container images in registries: `docker://REGISTRY/REPOSITORY:TAG`, for an import.

mod credentials;
mod manifest;

use std::io::{self, Write};
use std::net::IpAddr;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use image::import::container::{Origin, Part};
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;
use oci_client::manifest::OciDescriptor;
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference};
use tokio::io::AsyncWrite;
use tokio::runtime::{Builder, Runtime};

use crate::failure::{Code, Failure, Outcome};

/// What a source in a registry begins with.
const SCHEME: &str = "docker://";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a registry may send nothing.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// An image in a registry.
pub struct Remote {
    image: Reference,
    auth: RegistryAuth,
    client: Client,
    /// For what the client would read without end.
    http: reqwest::Client,
    runtime: Runtime,
}

/// What is behind `docker://`; `None` for other sources.
pub fn reference(source: &Path) -> Option<&str> {
    source.to_str()?.strip_prefix(SCHEME)
}

impl Remote {
    /// Finds the image that a reference names (`debian:13`, `registry.local:5000/node@sha256:…`).
    pub fn find(reference: &str) -> Outcome<Self> {
        let image: Reference = reference.parse().map_err(|error| {
            Failure::because(format!("{SCHEME}{reference} names no image"), &error)
                .hint("write docker://REGISTRY/REPOSITORY:TAG, such as docker://quay.io/fedora/fedora:43")
                .code(Code::Usage)
        })?;
        let auth = match credentials::find(image.registry(), image.repository())? {
            Some((user, password)) => RegistryAuth::Basic(user, password),
            None => RegistryAuth::Anonymous,
        };
        // Only the first call sets it: what it says of later ones does not matter.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Failure::because("starting to fetch", &error))?;
        let client = Client::try_from(ClientConfig {
            protocol: protocol_for(image.resolve_registry()),
            read_timeout: Some(READ_TIMEOUT),
            connect_timeout: Some(CONNECT_TIMEOUT),
            user_agent: concat!("slate/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        });
        let client = client.map_err(|error| {
            Failure::because("preparing TLS", &error).hint(
                "install the certificates of public authorities: apt-get install ca-certificates",
            )
        })?;
        let http = manifest::client()
            .map_err(|error| Failure::because("preparing to fetch manifests", &error))?;
        Ok(Self {
            image,
            auth,
            client,
            http,
            runtime,
        })
    }

    /// Fetches the manifest, or the index of several platforms, that the name leads to.
    pub fn manifest(&self) -> Outcome<Vec<u8>> {
        let fetched = self.runtime.block_on(self.fetch_manifest(&self.image));
        fetched.map_err(|error| self.failure(&error))
    }

    /// What to do where a part of the image does not come, or not as it should be.
    pub fn hint(&self) -> String {
        format!(
            "try again, or see what the registry has: skopeo inspect {SCHEME}{}",
            self.image
        )
    }

    fn failure(&self, error: &OciDistributionError) -> Failure {
        let registry = self.image.registry();
        let hint = match error {
            OciDistributionError::AuthenticationFailure(_)
            | OciDistributionError::UnauthorizedError { .. } => format!(
                "log in: docker login {registry}, or podman login {registry} (credential helpers are not asked)"
            ),
            OciDistributionError::RegistryError { .. } => {
                format!(
                    "see what the registry has: skopeo list-tags {SCHEME}{registry}/{}",
                    self.image.repository()
                )
            }
            _ => format!(
                "see whether {registry} can be reached from here, by https with a certificate that this machine trusts"
            ),
        };
        Failure::because(format!("fetching {SCHEME}{}", self.image), error).hint(hint)
    }
}

impl Origin for Remote {
    fn fetch(&self, part: Part<'_>, out: &mut dyn Write) -> io::Result<()> {
        let fetched = self.runtime.block_on(async {
            if !part.is_manifest {
                let blob = OciDescriptor {
                    digest: part.digest.to_owned(),
                    ..OciDescriptor::default()
                };
                return match self.client.pull_blob(&self.image, &blob, Sink(out)).await {
                    // It has all come. The import checks it as well, and says which part it is.
                    Err(OciDistributionError::DigestError(_)) => Ok(()),
                    done => done,
                };
            }
            let image = self.image.clone_with_digest(part.digest.to_owned());
            let text = self.fetch_manifest(&image).await?;
            Ok(out.write_all(&text)?)
        });
        fetched.map_err(|error| match error {
            // A full disk is one however deep it is said.
            OciDistributionError::IoError(error) => error,
            error => io::Error::other(error),
        })
    }
}

/// Writes at once: nothing else waits on this thread.
struct Sink<'a>(&'a mut dyn Write);

impl AsyncWrite for Sink<'_> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(self.0.write(bytes))
    }

    fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.0.flush())
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(context)
    }
}

/// A registry on this machine speaks plain HTTP, as Docker has it; all others have to prove who they
/// are.
fn protocol_for(registry: &str) -> ClientProtocol {
    if is_on_this_machine(registry) {
        ClientProtocol::HttpsExcept(vec![registry.to_owned()])
    } else {
        ClientProtocol::Https
    }
}

fn is_on_this_machine(registry: &str) -> bool {
    let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
    host == "localhost" || host.parse().is_ok_and(|it: IpAddr| it.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machines_registries_are_asked_in_clear_text() {
        for here in ["localhost", "localhost:5000", "127.0.0.1:5000", "127.9.9.9"] {
            assert!(is_on_this_machine(here), "{here}");
        }
        for elsewhere in [
            "localhost.example",
            "127.0.0.1.example:5000",
            "10.0.0.1:5000",
            "index.docker.io",
        ] {
            assert!(!is_on_this_machine(elsewhere), "{elsewhere}");
        }
    }

    #[test]
    fn sources_in_registries_are_told_from_paths() {
        let of = |source: &'static str| reference(Path::new(source));
        assert_eq!(of("docker://debian:13"), Some("debian:13"));
        assert_eq!(of("docker:/debian"), None);
        assert_eq!(of("./docker://debian"), None);
    }
}
