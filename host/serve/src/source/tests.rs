//! Sources that are files or bytes, against keys, pins and roots.

use std::path::{Path, PathBuf};

use policy::Stage;

use super::*;

/// The smallest component.
const EMPTY: &[u8] = b"\0asm\x0d\0\x01\0";

struct Place {
    folder: tempfile::TempDir,
    key: Signing,
    supply: Supply,
}

impl Place {
    /// A folder with a component `it.wasm`, and a key that is trusted.
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("there is a place for temporary files");
        let (private, public) = Signing::generate().expect("there is randomness");
        let write = |name: &str, bytes: &[u8]| {
            let path = folder.path().join(name);
            std::fs::write(&path, bytes).expect("it can be written");
            path
        };
        write("it.wasm", EMPTY);
        let key = Signing::read(&write("own.key", private.as_bytes())).expect("it is a key");
        let keys = vec![write("own.pub", public.as_bytes())];
        let supply = Supply { keys, cache_dir: "off".to_owned(), ..Supply::default() };
        Self { folder, key, supply }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        std::fs::write(self.path(name), bytes).expect("it can be written");
        self.path(name)
    }

    fn fetch(&self, path: &Path, asked_by: AskedBy) -> Result<Fetched, SourceError> {
        self.fetch_pinned(path, "", asked_by)
    }

    fn fetch_pinned(&self, path: &Path, sha256: &str, asked_by: AskedBy) -> Result<Fetched, SourceError> {
        let source = path.to_str().expect("the path is UTF-8");
        component(&self.supply, Wanted { source, sha256, signature: "", asked_by })
    }

    fn refused(&self, path: &Path, asked_by: AskedBy, stage: Stage, words: &[&str]) {
        let error = self.fetch(path, asked_by).expect_err("it is refused");
        says(&error, stage, words);
    }
}

fn says(error: &SourceError, stage: Stage, words: &[&str]) {
    assert_eq!(error.stage(), stage, "{error}");
    for word in words {
        assert!(error.to_string().contains(word), "`{word}` is missing in `{error}`");
    }
}

#[test]
fn a_source_is_one_of_three() {
    assert!(matches!(Source::parse("builtin:x"), Ok(Source::Builtin(name)) if name == "x"));
    for text in ["/a/b.wasm", "b.wasm", "file:/a/b.wasm", "file:b.wasm"] {
        let path = text.trim_start_matches("file:");
        assert!(matches!(Source::parse(text), Ok(Source::File(file)) if file == Path::new(path)), "{text}");
    }
    assert!(matches!(Source::parse("oci://localhost:1/it:2"), Ok(Source::Oci(_))));
    for text in ["", "file:", "https://host/it.wasm", "file:///it.wasm", "oci://it"] {
        let error = Source::parse(text).expect_err(text);
        says(&error, Stage::Fetched, &["no source"]);
    }
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let place = Place::new();
    place.refused(&place.path("none.wasm"), AskedBy::Config, Stage::Fetched, &["none.wasm"]);
}

#[test]
fn a_pin_holds_its_component_and_no_other() {
    let place = Place::new();
    let right = digest(EMPTY);
    let path = place.path("it.wasm");
    for pin in [right.clone(), format!("sha256:{right}")] {
        assert!(place.fetch_pinned(&path, &pin, AskedBy::Config).is_ok());
    }
    let wrong = "0".repeat(64);
    let error = place.fetch_pinned(&path, &wrong, AskedBy::Config).expect_err("it is another");
    says(&error, Stage::Verified, &[&right, &wrong]);
    for junk in ["12", "sha512:12", &"G".repeat(64)] {
        let error = place.fetch_pinned(&path, junk, AskedBy::Config).expect_err("it is no digest");
        says(&error, Stage::Fetched, &["64 hexadecimal digits"]);
    }
}

#[test]
fn a_signature_beside_a_file_is_checked_although_none_has_to_be_there() {
    let place = Place::new();
    let path = place.path("it.wasm");
    assert!(place.fetch(&path, AskedBy::Config).is_ok(), "none is there");
    place.write("it.wasm.sig", place.key.sign(EMPTY));
    assert!(place.fetch(&path, AskedBy::Config).is_ok());
    place.write("it.wasm.sig", place.key.sign(b"another"));
    place.refused(&path, AskedBy::Config, Stage::Verified, &["it.wasm", "does not hold"]);
}

#[test]
fn under_require_only_what_is_signed_passes() {
    let mut place = Place::new();
    place.supply.verify = Verify::Require;
    let path = place.path("it.wasm");
    place.refused(&path, AskedBy::Config, Stage::Verified, &["no signature", ".sig"]);
    place.write("it.wasm.sig", format!("{}\n", place.key.sign(EMPTY)));
    assert!(place.fetch(&path, AskedBy::Config).is_ok());
    let (private, _) = Signing::generate().expect("there is randomness");
    let stranger = Signing::read(&place.write("stranger.key", private)).expect("it is a key");
    place.write("it.wasm.sig", stranger.sign(EMPTY));
    place.refused(&path, AskedBy::Config, Stage::Verified, &["does not hold"]);

    // A signature elsewhere, by name.
    let elsewhere = place.write("elsewhere", place.key.sign(EMPTY));
    let (source, signature) = (path.to_str(), elsewhere.to_str());
    let (Some(source), Some(signature)) = (source, signature) else { panic!("the paths are UTF-8") };
    let wanted = Wanted { source, sha256: "", signature, asked_by: AskedBy::Config };
    assert!(component(&place.supply, wanted).is_ok());

    // What is part of the binary needs none.
    let builtin = Wanted { source: "builtin:pick-max-score", signature: "", ..wanted };
    assert!(component(&place.supply, builtin).is_ok());
}

#[test]
fn bytes_of_a_call_are_judged_like_files() {
    let mut place = Place::new();
    let signed = place.key.sign(EMPTY);
    let check = |supply: &Supply, signature| admit(supply, "the call", EMPTY, signature);
    assert!(check(&place.supply, None).is_ok());
    place.supply.verify = Verify::Require;
    assert!(check(&place.supply, Some(&signed)).is_ok());
    says(&check(&place.supply, None).expect_err("it is unsigned"), Stage::Verified, &["no signature"]);
    let error = check(&place.supply, Some("AAAA")).expect_err("it is junk");
    says(&error, Stage::Verified, &["does not hold"]);
}

#[test]
fn a_file_outside_the_roots_is_refused() {
    let mut place = Place::new();
    std::fs::create_dir(place.path("root")).expect("it can be made");
    let inside = place.write("root/it.wasm", EMPTY);
    let outside = place.path("it.wasm");
    place.supply.roots = vec![place.path("no such root"), place.path("root")];
    for asked_by in [AskedBy::Config, AskedBy::AdminApi] {
        assert!(place.fetch(&inside, asked_by).is_ok());
        place.refused(&outside, asked_by, Stage::Fetched, &["it.wasm", "supply.roots"]);
        place.refused(&place.path("root/../it.wasm"), asked_by, Stage::Fetched, &["supply.roots"]);
    }
    let link = place.path("root/link.wasm");
    std::os::unix::fs::symlink(&outside, &link).expect("it can be made");
    place.refused(&link, AskedBy::Config, Stage::Fetched, &["supply.roots"]);
}

#[test]
fn the_admin_api_reads_no_file_unless_a_root_allows_it() {
    let place = Place::new();
    let path = place.path("it.wasm");
    assert!(place.fetch(&path, AskedBy::Config).is_ok());
    place.refused(&path, AskedBy::AdminApi, Stage::Fetched, &["supply.roots"]);
}

#[test]
fn what_is_no_component_goes_nowhere() {
    let place = Place::new();
    for (bytes, words) in [
        (&b"\x7fELF\x02\x01\x01\0\0\0\0\0"[..], "precompiled machine code"),
        (b"\0asm\x01\0\0\0", "core module"),
        (b"(component)", "no component"),
        (b"", "there are none"),
    ] {
        let path = place.write("other.wasm", bytes);
        place.refused(&path, AskedBy::Config, Stage::Compiled, &["other.wasm", words]);
        let error = admit(&place.supply, "the call", bytes, None).expect_err("it is no component");
        says(&error, Stage::Compiled, &[words]);
    }
}
