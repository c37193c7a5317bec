//! Manifests, read as far as they may be long: the library reads whatever a registry sends.
//!
//! OCI distribution specification 1.1, "Pulling manifests".

use std::time::Duration;

use image::import::container::{BlobDigest, DOCUMENT_MAX};
use oci_client::errors::{OciDistributionError, OciEnvelope};
use oci_client::manifest::{
    IMAGE_MANIFEST_LIST_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE, OCI_IMAGE_INDEX_MEDIA_TYPE,
    OCI_IMAGE_MEDIA_TYPE,
};
use oci_client::secrets::RegistryAuth;
use oci_client::{Reference, RegistryOperation};
use reqwest::StatusCode;
use reqwest::header::ACCEPT;

use super::{CONNECT_TIMEOUT, READ_TIMEOUT, Remote, is_on_this_machine};

const KINDS: [&str; 4] = [
    OCI_IMAGE_INDEX_MEDIA_TYPE,
    OCI_IMAGE_MEDIA_TYPE,
    IMAGE_MANIFEST_LIST_MEDIA_TYPE,
    IMAGE_MANIFEST_MEDIA_TYPE,
];
/// How long a registry may take to let somebody in, and to send a manifest.
const TIME_MAX: Duration = Duration::from_secs(60);

/// What fetches manifests, with the limits that everything has.
pub fn client() -> reqwest::Result<reqwest::Client> {
    reqwest::Client::builder()
        .read_timeout(READ_TIMEOUT)
        .connect_timeout(CONNECT_TIMEOUT)
        .user_agent(concat!("slate/", env!("CARGO_PKG_VERSION")))
        .build()
}

impl Remote {
    /// The manifest or index that a name leads to, and for a digest nothing but what that says.
    pub(super) async fn fetch_manifest(
        &self,
        image: &Reference,
    ) -> Result<Vec<u8>, OciDistributionError> {
        let fetched = tokio::time::timeout(TIME_MAX, self.fetch_bounded(image)).await;
        let text = fetched.unwrap_or_else(|_| {
            let why = format!("no manifest within {} s", TIME_MAX.as_secs());
            Err(OciDistributionError::GenericError(Some(why)))
        })?;
        let digest = image.digest().map(str::parse::<BlobDigest>).transpose();
        let digest = digest.map_err(|error| violation(&error.to_string()))?;
        match digest {
            Some(digest) if !digest.is_of(&text) => {
                let got = BlobDigest::of(&text);
                Err(violation(&format!(
                    "expected a manifest {digest}, got {got}"
                )))
            }
            _ => Ok(text),
        }
    }

    async fn fetch_bounded(&self, image: &Reference) -> Result<Vec<u8>, OciDistributionError> {
        // Asked for by itself, a refused password is told as such.
        let pull = RegistryOperation::Pull;
        let token = self.client.auth(image, &self.auth, pull).await?;
        let url = url_of(image);
        let request = self.http.get(&url).header(ACCEPT, KINDS.join(", "));
        let request = match (token, &self.auth) {
            (Some(token), _) => request.bearer_auth(token),
            (None, RegistryAuth::Basic(user, password)) => request.basic_auth(user, Some(password)),
            _ => request,
        };
        let mut response = request.send().await?;
        let mut text = Vec::new();
        while let Some(chunk) = response.chunk().await? {
            if (text.len() + chunk.len()) as u64 > DOCUMENT_MAX {
                return Err(violation(&format!(
                    "expected a manifest of at most {DOCUMENT_MAX} bytes, got more from {url}"
                )));
            }
            text.extend_from_slice(&chunk);
        }
        judge(response.status(), &text, url).map(|()| text)
    }
}

fn violation(why: &str) -> OciDistributionError {
    OciDistributionError::SpecViolationError(why.to_owned())
}

/// Says what a status means, in the library's words.
fn judge(status: StatusCode, text: &[u8], url: String) -> Result<(), OciDistributionError> {
    if status == StatusCode::OK {
        return Ok(());
    }
    if status == StatusCode::UNAUTHORIZED {
        return Err(OciDistributionError::UnauthorizedError { url });
    }
    match serde_json::from_slice::<OciEnvelope>(text) {
        Ok(envelope) => Err(OciDistributionError::RegistryError { envelope, url }),
        Err(_) => Err(OciDistributionError::ServerError {
            code: status.as_u16(),
            url,
            message: String::from_utf8_lossy(&text[..text.len().min(500)]).into_owned(),
        }),
    }
}

fn url_of(image: &Reference) -> String {
    let registry = image.resolve_registry();
    let scheme = if is_on_this_machine(registry) {
        "http"
    } else {
        "https"
    };
    let name = image.digest().or(image.tag()).unwrap_or("latest");
    let repository = image.repository();
    format!("{scheme}://{registry}/v2/{repository}/manifests/{name}")
}
