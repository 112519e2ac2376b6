//! One registry, spoken to: manifests and blobs up and down.
//!
//! Called by `oci`. **Invariant:** what comes down is bounded in size and in time, and has the digest that
//! was asked for.

use std::error::Error;
use std::time::Duration;

use futures_util::StreamExt as _;
use oci_client::Client;
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::errors::{DigestError, OciDistributionError, OciErrorCode};
use oci_client::manifest::{OCI_IMAGE_MEDIA_TYPE, OciDescriptor};
use oci_client::secrets::RegistryAuth;

use super::address::Address;
use super::digest;
use super::error::SourceError;
use super::settings::Supply;

/// Chosen: the manifest of one component has about 500 bytes; registries take 4 MiB.
const MANIFEST_BYTES_MAX: usize = 4 << 20;
/// A registry that does not answer at all is down.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// A client of the registry of an address.
pub(super) struct Registry {
    client: Client,
    auth: RegistryAuth,
    timeout: Duration,
}

impl Registry {
    pub(super) fn open(supply: &Supply, address: &Address) -> Result<Self, SourceError> {
        // The first provider of the process stays; another part may have set this very one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let registry = address.registry().to_owned();
        let plain = address.is_loopback() || supply.plain_http_hosts.contains(&registry);
        let config = ClientConfig {
            protocol: ClientProtocol::HttpsExcept(if plain { vec![registry.clone()] } else { vec![] }),
            connect_timeout: Some(CONNECT_MAX.min(supply.timeout())),
            read_timeout: Some(supply.timeout()),
            user_agent: concat!("pointsman/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        };
        let client = Client::try_from(config).map_err(|error| absent(address, &error))?;
        Ok(Self { client, auth: super::credentials::of(&registry), timeout: supply.timeout() })
    }

    /// The bytes of a manifest; none if the registry has no such tag or digest.
    pub(super) async fn manifest(&self, address: &Address) -> Result<Option<Vec<u8>>, SourceError> {
        let ask = self.client.pull_manifest_raw(&address.0, &self.auth, &[OCI_IMAGE_MEDIA_TYPE]);
        let bytes = match self.in_time(address, ask).await? {
            Ok((bytes, _)) => bytes,
            Err(error) if is_not_found(&error) => return Ok(None),
            Err(error) => return Err(absent(address, &error)),
        };
        if bytes.len() > MANIFEST_BYTES_MAX {
            return Err(SourceError::absent(address, format!("its manifest has {} bytes", bytes.len())));
        }
        // Hashed here too, so that no other crate has to be right about it.
        matches(&address.to_string(), &bytes, address.digest())?;
        Ok(Some(bytes.to_vec()))
    }

    /// A blob of at most so many bytes.
    pub(super) async fn blob(
        &self,
        address: &Address,
        hex: &str,
        bytes_max: usize,
    ) -> Result<Vec<u8>, SourceError> {
        let what = format!("blob sha256:{hex} of {address}");
        let descriptor = OciDescriptor { digest: format!("sha256:{hex}"), ..OciDescriptor::default() };
        self.client.store_auth_if_needed(address.0.resolve_registry(), &self.auth).await;
        let read = async {
            let mut stream =
                self.client.pull_blob_stream(&address.0, &descriptor).await.map_err(|e| absent(&what, &e))?;
            let mut bytes = Vec::new();
            while let Some(part) = stream.stream.next().await {
                match part {
                    Ok(part) => bytes.extend_from_slice(&part),
                    // It comes behind the last byte; the digest is found wrong below, in our words.
                    Err(error) if error.get_ref().is_some_and(|e| e.is::<DigestError>()) => break,
                    Err(error) => return Err(SourceError::absent(&what, causes(&error))),
                }
                if bytes.len() > bytes_max {
                    return Err(SourceError::absent(&what, format!("it has more than {bytes_max} bytes")));
                }
            }
            Ok(bytes)
        };
        let bytes = self.in_time(address, read).await??;
        matches(&what, &bytes, Some(hex))?;
        Ok(bytes)
    }

    /// Puts blobs, and then the manifest that names them. Returns the manifest's digest.
    pub(super) async fn push(
        &self,
        address: &Address,
        blobs: &[&[u8]],
        manifest: Vec<u8>,
    ) -> Result<String, SourceError> {
        let hex = digest(&manifest);
        let put = async {
            self.client.auth(&address.0, &self.auth, oci_client::RegistryOperation::Push).await?;
            self.client.store_auth_if_needed(address.0.resolve_registry(), &self.auth).await;
            for blob in blobs {
                let digest = format!("sha256:{}", digest(blob));
                self.client.push_blob(&address.0, blob.to_vec(), &digest).await?;
            }
            let media_type = OCI_IMAGE_MEDIA_TYPE.parse().expect("a media type is a header value");
            self.client.push_manifest_raw(&address.0, manifest, media_type).await
        };
        self.in_time(address, put).await?.map_err(|error| absent(address, &error))?;
        Ok(hex)
    }

    async fn in_time<T>(&self, address: &Address, work: impl Future<Output = T>) -> Result<T, SourceError> {
        let slow = |_| SourceError::absent(address, format!("no answer within {} s", self.timeout.as_secs()));
        tokio::time::timeout(self.timeout, work).await.map_err(slow)
    }
}

fn matches(what: &str, bytes: &[u8], wanted: Option<&str>) -> Result<(), SourceError> {
    let found = digest(bytes);
    match wanted {
        Some(wanted) if wanted != found => {
            Err(SourceError::Digest { what: what.to_owned(), found, wanted: wanted.to_owned() })
        }
        _ => Ok(()),
    }
}

fn is_not_found(error: &OciDistributionError) -> bool {
    use OciErrorCode::{ManifestUnknown, NameUnknown, NotFound};
    match error {
        OciDistributionError::RegistryError { envelope, .. } => {
            envelope.errors.iter().any(|e| matches!(e.code, ManifestUnknown | NameUnknown | NotFound))
        }
        OciDistributionError::ServerError { code, .. } => *code == 404,
        _ => false,
    }
}

fn absent(what: impl std::fmt::Display, error: &OciDistributionError) -> SourceError {
    match error {
        OciDistributionError::DigestError(DigestError::VerificationError { expected, actual }) => {
            let hex = |digest: &str| digest.trim_start_matches("sha256:").to_owned();
            SourceError::Digest { what: what.to_string(), found: hex(actual), wanted: hex(expected) }
        }
        _ => SourceError::absent(what, causes(error)),
    }
}

/// An error with what caused it: `reqwest` says "connection refused" at the third level only.
fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}
