//! The payload that cosign signs in place of an image: a "simple signing" document with the manifest's digest.
//!
//! Pure. Source: cosign `specs/SIGNATURE_SPEC.md`; the format is that of containers/image,
//! `docs/atomic-signature.md`.

use serde_json::{Value, json};

/// Media type of the payload, as a layer of the signature's manifest.
pub(super) const PAYLOAD_TYPE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// Annotation of that layer with the signature in base64.
pub(super) const ANNOTATION: &str = "dev.cosignproject.cosign/signature";
/// What the payload says it is.
const KIND: &str = "cosign container image signature";

/// The payload for a manifest in a repository.
pub(super) fn payload(repository: &str, manifest: &str) -> Vec<u8> {
    let payload = json!({
        "critical": {
            "identity": { "docker-reference": repository },
            "image": { "docker-manifest-digest": format!("sha256:{manifest}") },
            "type": KIND,
        },
        "optional": null,
    });
    payload.to_string().into_bytes()
}

/// Whether a payload speaks of this manifest. Errors say what it speaks of.
pub(super) fn names(payload: &[u8], manifest: &str) -> Result<(), String> {
    let payload: Value =
        serde_json::from_slice(payload).map_err(|error| format!("its payload is no JSON: {error}"))?;
    let critical = &payload["critical"];
    if critical["type"] != KIND {
        return Err(format!("its payload is of type {}, not `{KIND}`", critical["type"]));
    }
    let signed = critical["image"]["docker-manifest-digest"].as_str().unwrap_or("nothing");
    if signed != format!("sha256:{manifest}") {
        return Err(format!("it was made for {signed}, not for sha256:{manifest}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_names_one_manifest() {
        let (one, two) = ("1".repeat(64), "2".repeat(64));
        let made = payload("r.example/it", &one);
        assert_eq!(names(&made, &one), Ok(()));
        let error = names(&made, &two).expect_err("it is for another");
        assert!(error.contains(&one) && error.contains(&two), "{error}");
    }

    /// The bytes of `cosign generate`, whose order of keys is its own.
    #[test]
    fn the_payload_of_cosign_is_read() {
        let hex = "87ef60f558bad79beea6425a3b28989f01dd417164150ab3baab98dcbf04def8";
        let text = format!(
            r#"{{"critical":{{"identity":{{"docker-reference":"r.example/it"}},"image":{{"docker-manifest-digest":"sha256:{hex}"}},"type":"cosign container image signature"}},"optional":{{"creator":"x"}}}}"#
        );
        assert_eq!(names(text.as_bytes(), hex), Ok(()));
    }

    #[test]
    fn junk_names_nothing() {
        let hex = "1".repeat(64);
        for (junk, words) in [("junk", "no JSON"), ("{}", "type"), ("[]", "type")] {
            let error = names(junk.as_bytes(), &hex).expect_err("it is junk");
            assert!(error.contains(words), "{error}");
        }
        let nameless = json!({ "critical": { "type": KIND } }).to_string();
        assert!(names(nameless.as_bytes(), &hex).expect_err("it names none").contains("nothing"));
    }
}
