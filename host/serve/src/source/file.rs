//! Components in files: which folders they may lie in, and the signature beside them.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use super::error::SourceError;
use super::settings::Supply;
use super::{AskedBy, COMPONENT_BYTES_MAX};

/// Far more than a signature in base64 has.
const SIGNATURE_BYTES_MAX: usize = 4096;

/// The component at a path, and the signature that is named for it or lies beside it.
pub(super) fn fetch(
    supply: &Supply,
    path: &Path,
    signature: &str,
    asked_by: AskedBy,
) -> Result<(Vec<u8>, Option<String>), SourceError> {
    if asked_by == AskedBy::AdminApi && supply.roots.is_empty() {
        let problem = "may not be read for the admin API: `supply.roots` names no folder".to_owned();
        return Err(SourceError::Forbidden { path: path.to_owned(), problem });
    }
    // What is read is the path without links: a link that changes later leads nowhere else.
    let real = path.canonicalize().map_err(|error| SourceError::absent(path.display(), error))?;
    if !supply.roots.is_empty() && !roots(supply).any(|root| real.starts_with(root)) {
        let roots = supply.roots.iter().map(|root| root.display().to_string()).collect::<Vec<_>>().join(", ");
        let problem = format!("does not lie under a folder of `supply.roots` ({roots})");
        return Err(SourceError::Forbidden { path: real, problem });
    }
    let component = read(&real, COMPONENT_BYTES_MAX)?;
    let beside = beside(path);
    let signature = match signature {
        "" if beside.exists() => Some(text(&beside)?),
        "" => None,
        named => Some(text(Path::new(named))?),
    };
    Ok((component, signature))
}

/// Where the signature of a file lies if nothing else is said: `FILE.sig`.
pub fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".sig");
    name.into()
}

/// A file of at most so many bytes.
pub fn read(path: &Path, bytes_max: usize) -> Result<Vec<u8>, SourceError> {
    let absent =
        |error: std::io::Error| SourceError::absent(format!("cannot read {}", path.display()), error);
    let file = std::fs::File::open(path).map_err(absent)?;
    let mut bytes = Vec::new();
    file.take(bytes_max as u64 + 1).read_to_end(&mut bytes).map_err(absent)?;
    if bytes.len() > bytes_max {
        return Err(SourceError::absent(path.display(), format!("it has more than {bytes_max} bytes")));
    }
    Ok(bytes)
}

/// Roots as they really are; one that is not there allows nothing.
fn roots(supply: &Supply) -> impl Iterator<Item = PathBuf> {
    supply.roots.iter().filter_map(|root| root.canonicalize().ok())
}

fn text(path: &Path) -> Result<String, SourceError> {
    let bytes = read(path, SIGNATURE_BYTES_MAX)?;
    String::from_utf8(bytes).map_err(|_| SourceError::Signature {
        what: path.display().to_string(),
        why: "it is not text; a signature in base64 is wanted".to_owned(),
    })
}
