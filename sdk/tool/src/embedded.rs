//! The files of this workspace that new projects are made of, by their path in it.

include!(concat!(env!("OUT_DIR"), "/embedded.rs"));

/// The files below a folder, each by its path from there.
pub(crate) fn below(folder: &str) -> impl Iterator<Item = (&'static str, &'static str)> {
    FILES.iter().filter_map(move |(path, text)| Some((path.strip_prefix(folder)?.strip_prefix('/')?, *text)))
}

/// One file. Asking for a file that is not embedded is a mistake of this crate.
pub(crate) fn file(path: &str) -> &'static str {
    find(path).unwrap_or_else(|| panic!("`{path}` is not embedded"))
}

/// One file, if it is there.
pub(crate) fn find(path: &str) -> Option<&'static str> {
    FILES.iter().find(|(name, _)| *name == path).map(|(_, text)| *text)
}
