//! Components in registries: a manifest of one `application/wasm` layer, and cosign's signatures beside it.
//!
//! What is pinned by a digest and kept here is not asked for again: a registry that is down costs nothing.
//! **Invariant:** the manifest's digest, the layer's digest and the signature are checked on every way in,
//! from the registry and from the folder alike.

use std::future::Future;

use oci_client::manifest::{OCI_IMAGE_MEDIA_TYPE, OciDescriptor, OciImageManifest};
use serde_json::json;

use super::address::{Address, hex_of};
use super::error::SourceError;
use super::kept::Kept;
use super::registry::Registry;
use super::settings::Supply;
use super::verify::{Judge, Signing};
use super::{COMPONENT_BYTES_MAX, Fetched, cosign, digest, is_component};

/// Specified: CNCF "Wasm OCI artifact layout".
const LAYER_TYPE: &str = "application/wasm";
const CONFIG_TYPE: &str = "application/vnd.wasm.config.v0+json";
/// Signatures of one manifest that are looked at.
const SIGNATURES_MAX: usize = 16;
/// Far more than a payload has.
const PAYLOAD_BYTES_MAX: usize = 64 << 10;

/// Fetches a component, and checks digests and signature. Blocks, on a thread of its own.
pub(super) fn fetch(
    supply: &Supply,
    address: &Address,
    pin: Option<&str>,
    judge: &Judge,
) -> Result<Fetched, SourceError> {
    let open = |folder: std::path::PathBuf| {
        Kept::open(&folder.join("oci"))
            .inspect_err(|error| tracing::warn!(folder = %folder.display(), %error, "nothing is kept there"))
            .ok()
    };
    let kept = supply.folder().and_then(open);
    aside(address, Pull { supply, address, pin, judge, kept, registry: None }.run())?
}

/// Pushes a component, signed if there is a key. Returns the digest of its manifest.
pub async fn push(
    supply: &Supply,
    address: &Address,
    component: &[u8],
    key: Option<&Signing>,
) -> Result<String, SourceError> {
    is_component("the file", component)?;
    let layer_digest = format!("sha256:{}", digest(component));
    // No date: the same component gets the same digest wherever it is pushed from.
    let config =
        json!({ "architecture": "wasm", "os": "wasip2", "layerDigests": [layer_digest] }).to_string();
    let manifest = manifest(&config, vec![descriptor(LAYER_TYPE, component)]);
    let registry = Registry::open(supply, address)?;
    let hex = registry.push(address, &[component, config.as_bytes()], manifest).await?;
    if let Some(key) = key {
        let payload = cosign::payload(&format!("{}/{}", address.0.registry(), address.0.repository()), &hex);
        let mut layer = descriptor(cosign::PAYLOAD_TYPE, &payload);
        layer.annotations = Some([(cosign::ANNOTATION.to_owned(), key.sign(&payload))].into());
        let manifest = self::manifest("{}", vec![layer]);
        registry.push(&address.signatures(&hex), &[&payload, b"{}"], manifest).await?;
    }
    Ok(hex)
}

struct Pull<'a> {
    supply: &'a Supply,
    address: &'a Address,
    pin: Option<&'a str>,
    judge: &'a Judge,
    kept: Option<Kept>,
    registry: Option<Registry>,
}

/// A manifest, its digest, and whether it was here already.
struct Found {
    manifest: OciImageManifest,
    hex: String,
    kept: bool,
}

impl Pull<'_> {
    async fn run(mut self) -> Result<Fetched, SourceError> {
        let found = self.manifest().await?;
        let layer = layer(self.address, &found.manifest)?;
        if let Some(pin) = self.pin
            && pin != layer
        {
            let what = format!("the component at {}", self.address);
            return Err(SourceError::Digest { what, found: layer.to_owned(), wanted: pin.to_owned() });
        }
        if self.judge.looks() {
            self.signature(&found).await?;
        }
        let bytes = self.blob(self.address, layer, COMPONENT_BYTES_MAX).await?;
        is_component(&self.address.to_string(), &bytes)?;
        // Only now: what is no component, or is not signed, is not kept.
        if let Some(kept) = &self.kept {
            kept.keep_blob(&bytes);
        }
        Ok(Fetched { bytes, origin: self.address.pinned(&found.hex).to_string() })
    }

    /// The manifest: the kept one if a digest says that it is the right one, else the registry's.
    async fn manifest(&mut self) -> Result<Found, SourceError> {
        if let Some(found) = self.kept_manifest() {
            return Ok(found);
        }
        let address = self.address;
        let unknown = || SourceError::absent(address, "the registry has no such component");
        let bytes = self.registry()?.manifest(address).await?.ok_or_else(unknown)?;
        let hex = digest(&bytes);
        if let Some(kept) = &self.kept {
            kept.keep_blob(&bytes);
            kept.keep_tag(&address.to_string(), &hex);
        }
        Ok(Found { manifest: parse(address, &bytes)?, hex, kept: false })
    }

    fn kept_manifest(&self) -> Option<Found> {
        let kept = self.kept.as_ref()?;
        let hex = match self.address.digest() {
            Some(hex) => hex.to_owned(),
            // A tag moves; only a pinned component says that it still means the same.
            None if self.pin.is_some() => kept.tag(&self.address.to_string())?,
            None => return None,
        };
        let manifest = parse(self.address, &kept.blob(&hex)?).ok()?;
        let is_right =
            self.pin.is_none_or(|pin| layer(self.address, &manifest).is_ok_and(|layer| layer == pin));
        is_right.then_some(Found { manifest, hex, kept: true })
    }

    /// Looks for a signature that holds, here and then in the registry.
    async fn signature(&mut self, found: &Found) -> Result<(), SourceError> {
        let address = self.address.signatures(&found.hex);
        let here = self.kept.as_ref().and_then(|kept| kept.blob(&kept.tag(&address.to_string())?));
        let mut bytes = here;
        if let Some(manifest) = &bytes
            && self.holds(&address, manifest, &found.hex).await.is_ok()
        {
            return Ok(());
        }
        // Kept or not, the registry may have a signature by a key that was not known then.
        if !found.kept || self.judge.requires() {
            bytes = self.registry()?.manifest(&address).await?;
        }
        let Some(bytes) = bytes else {
            return match self.judge.requires() {
                true => Err(SourceError::Unsigned {
                    what: self.address.pinned(&found.hex).to_string(),
                    cure: format!(
                        "sign it with cosign or `pointsman plugin push --key`; {address} is not there"
                    ),
                }),
                false => Ok(()),
            };
        };
        self.holds(&address, &bytes, &found.hex).await?;
        if let Some(kept) = &self.kept {
            kept.keep_blob(&bytes);
            kept.keep_tag(&address.to_string(), &digest(&bytes));
        }
        Ok(())
    }

    /// Whether one of the signatures in this manifest is by one of our keys, for that component's manifest.
    async fn holds(&mut self, address: &Address, bytes: &[u8], hex: &str) -> Result<(), SourceError> {
        let manifest = parse(address, bytes)?;
        let mut why = "there is none in its manifest".to_owned();
        for layer in
            manifest.layers.iter().filter(|l| l.media_type == cosign::PAYLOAD_TYPE).take(SIGNATURES_MAX)
        {
            let signature = layer.annotations.as_ref().and_then(|a| a.get(cosign::ANNOTATION));
            let (Some(signature), Some(payload)) = (signature, hex_of(&layer.digest)) else { continue };
            let payload = self.blob(address, payload, PAYLOAD_BYTES_MAX).await?;
            match self.judge.holds(&payload, signature).and_then(|()| cosign::names(&payload, hex)) {
                Ok(()) => {
                    if let Some(kept) = &self.kept {
                        kept.keep_blob(&payload);
                    }
                    return Ok(());
                }
                Err(error) => why = error,
            }
        }
        Err(SourceError::Signature { what: self.address.pinned(hex).to_string(), why })
    }

    async fn blob(&mut self, address: &Address, hex: &str, bytes_max: usize) -> Result<Vec<u8>, SourceError> {
        if let Some(bytes) = self.kept.as_ref().and_then(|kept| kept.blob(hex)) {
            return Ok(bytes);
        }
        self.registry()?.blob(address, hex, bytes_max).await
    }

    fn registry(&mut self) -> Result<&Registry, SourceError> {
        let open = match self.registry.take() {
            Some(open) => open,
            None => Registry::open(self.supply, self.address)?,
        };
        Ok(self.registry.insert(open))
    }
}

fn parse(address: &Address, bytes: &[u8]) -> Result<OciImageManifest, SourceError> {
    serde_json::from_slice(bytes).map_err(|error| {
        SourceError::absent(address, format!("its manifest is not that of one artifact: {error}"))
    })
}

/// The digest of the one layer that is a component.
fn layer<'a>(address: &Address, manifest: &'a OciImageManifest) -> Result<&'a str, SourceError> {
    let why = match manifest.layers.as_slice() {
        [layer] if layer.media_type == LAYER_TYPE => match hex_of(&layer.digest) {
            Some(hex) => return Ok(hex),
            None => format!("its layer has the digest `{}`, and sha256 is wanted", layer.digest),
        },
        [layer] => format!("its layer is `{}`, and `{LAYER_TYPE}` is wanted", layer.media_type),
        layers => format!("it has {} layers, and one of `{LAYER_TYPE}` is wanted", layers.len()),
    };
    Err(SourceError::NotAComponent { what: address.to_string(), why })
}

fn descriptor(media_type: &str, bytes: &[u8]) -> OciDescriptor {
    OciDescriptor {
        media_type: media_type.to_owned(),
        digest: format!("sha256:{}", digest(bytes)),
        size: bytes.len() as i64,
        ..OciDescriptor::default()
    }
}

fn manifest(config: &str, layers: Vec<OciDescriptor>) -> Vec<u8> {
    let config_type = if layers.iter().any(|l| l.media_type == LAYER_TYPE) {
        CONFIG_TYPE
    } else {
        "application/vnd.oci.image.config.v1+json"
    };
    let manifest = OciImageManifest {
        media_type: Some(OCI_IMAGE_MEDIA_TYPE.to_owned()),
        config: descriptor(config_type, config.as_bytes()),
        layers,
        ..OciImageManifest::default()
    };
    serde_json::to_vec(&manifest).expect("a manifest is text, numbers and maps")
}

/// Runs a future to its end on a thread of its own: callers are inside a runtime, or have none.
fn aside<T: Send>(address: &Address, future: impl Future<Output = T> + Send) -> Result<T, SourceError> {
    std::thread::scope(|scope| {
        let work = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.map(|runtime| runtime.block_on(future))
        });
        match work.join() {
            Ok(done) => done.map_err(|error| SourceError::absent(address, error)),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
