//! What to say to a registry that asks who we are: the `auths` of Docker's `config.json`.
//!
//! **Invariant:** never logged; helpers that would have to be run are not.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use oci_client::secrets::RegistryAuth;
use serde_json::Value;

/// The credentials of this user for a registry; anonymous where there are none.
pub(super) fn of(registry: &str) -> RegistryAuth {
    let found = path().and_then(|path| in_file(&path, registry));
    found.map_or(RegistryAuth::Anonymous, |(user, password)| RegistryAuth::Basic(user, password))
}

fn path() -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let docker = folder("DOCKER_CONFIG").or_else(|| Some(folder("HOME")?.join(".docker")))?;
    Some(docker.join("config.json"))
}

fn in_file(path: &Path, registry: &str) -> Option<(String, String)> {
    let text = std::fs::read_to_string(path).ok()?;
    let file: Value = serde_json::from_str(&text)
        .inspect_err(|_| tracing::warn!(file = %path.display(), "no JSON; registries are asked anonymously"))
        .ok()?;
    let auths = file["auths"].as_object()?;
    let entry =
        [registry.to_owned(), format!("https://{registry}")].iter().find_map(|name| auths.get(name))?;
    let Some(auth) = entry["auth"].as_str() else {
        tracing::warn!(
            registry,
            "its credentials lie with a helper, which is not run; it is asked anonymously"
        );
        return None;
    };
    let decoded = String::from_utf8(BASE64_STANDARD.decode(auth).ok()?).ok()?;
    let (user, password) = decoded.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_those_of_docker() {
        let folder = tempfile::tempdir().expect("there is a place for temporary files");
        let path = folder.path().join("config.json");
        let text =
            r#"{"auths":{"r.example:5000":{"auth":"bWU6YTpi"},"h.example":{},"j.example":{"auth":"%"}}}"#;
        std::fs::write(&path, text).expect("it can be written");
        let found = in_file(&path, "r.example:5000");
        assert_eq!(found, Some(("me".to_owned(), "a:b".to_owned())), "a password may have a colon");
        for other in ["r.example", "h.example", "j.example"] {
            assert_eq!(in_file(&path, other), None, "{other}");
        }
        assert_eq!(in_file(&folder.path().join("none.json"), "r.example"), None);
    }
}
