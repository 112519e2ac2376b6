//! The component that a call brings, or names: fetched and checked before anything else happens.
//!
//! **Invariant:** what `[supply]` asks of components in the configuration is asked of those of calls too.

use axum::body::Bytes;
use axum::http::HeaderMap;
use serde::Deserialize;

use crate::source::{self, AskedBy, Fetched, SourceError, Supply, Wanted};

/// The signature of a component that comes with a call, in base64.
const SIGNATURE: &str = "x-pointsman-signature";

/// Where a component is, in place of its bytes.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Place {
    source: String,
    #[serde(default)]
    sha256: String,
}

/// The component that a call brings or names, checked. Blocks.
pub(super) fn fetched(supply: &Supply, headers: &HeaderMap, body: &Bytes) -> Result<Fetched, SourceError> {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let is_json = header("content-type").is_some_and(|kind| kind.starts_with("application/json"));
    // No component begins with a brace, and not every client names the type of its bytes.
    if is_json && body.trim_ascii_start().starts_with(b"{") {
        let place: Place = serde_json::from_slice(body).map_err(|error| SourceError::Malformed {
            source_text: "the body".to_owned(),
            problem: format!("{error}; {{\"source\": \"oci://…\", \"sha256\": \"…\"}} is wanted"),
        })?;
        let Place { source, sha256 } = &place;
        let wanted = Wanted { source, sha256, signature: "", asked_by: AskedBy::AdminApi };
        return source::component(supply, wanted);
    }
    source::admit(supply, "the component that came with the call", body, header(SIGNATURE))?;
    Ok(Fetched { bytes: body.to_vec(), origin: "admin".to_owned() })
}
