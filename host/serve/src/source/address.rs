//! Addresses of components in registries: `oci://HOST[:PORT]/REPOSITORY[:TAG][@sha256:…]`.

use std::fmt;
use std::net::IpAddr;

use oci_client::Reference;

use super::error::SourceError;

/// What an address begins with.
pub const SCHEME: &str = "oci://";

/// A place in a registry.
#[derive(Clone, Debug)]
pub struct Address(pub(super) Reference);

impl Address {
    /// Parses an address; without a tag and a digest it means `latest`.
    pub fn parse(text: &str) -> Result<Self, SourceError> {
        let malformed = |problem: String| SourceError::Malformed { source_text: text.to_owned(), problem };
        let rest =
            text.strip_prefix(SCHEME).ok_or_else(|| malformed(format!("it must begin with {SCHEME}")))?;
        let form = "an address is oci://HOST[:PORT]/REPOSITORY[:TAG][@sha256:DIGEST]";
        let (host, repository) = rest.split_once('/').ok_or_else(|| malformed(form.to_owned()))?;
        // A reference without a host would mean one certain public registry; an address says where it leads.
        if !(host.contains(['.', ':']) || host == "localhost") || repository.is_empty() {
            return Err(malformed(form.to_owned()));
        }
        let reference: Reference = rest.parse().map_err(|error| malformed(format!("{error}; {form}")))?;
        if reference.digest().is_some_and(|digest| hex_of(digest).is_none()) {
            return Err(malformed("its digest must be `sha256:` and 64 hexadecimal digits".to_owned()));
        }
        Ok(Self(reference))
    }

    /// The registry, as `host` or `host:port`.
    pub(super) fn registry(&self) -> &str {
        self.0.registry()
    }

    /// The digest of the manifest, in hexadecimal, if the address pins it.
    pub(super) fn digest(&self) -> Option<&str> {
        self.0.digest().and_then(hex_of)
    }

    /// The same place, with a manifest of this digest.
    pub(super) fn pinned(&self, hex: &str) -> Self {
        Self(self.0.clone_with_digest(format!("sha256:{hex}")))
    }

    /// Where cosign puts the signatures of a manifest: a tag beside it.
    pub(super) fn signatures(&self, manifest: &str) -> Self {
        let (registry, repository) = (self.0.registry().to_owned(), self.0.repository().to_owned());
        Self(Reference::with_tag(registry, repository, format!("sha256-{manifest}.sig")))
    }

    /// Whether it lies on this machine, where nobody needs TLS.
    pub(super) fn is_loopback(&self) -> bool {
        let host = self.registry().split(':').next().unwrap_or_default();
        host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}", self.0.whole())
    }
}

/// The digits of `sha256:…`, if it is one.
pub(super) fn hex_of(digest: &str) -> Option<&str> {
    digest.strip_prefix("sha256:").filter(|hex| is_hex(hex))
}

/// Whether this is a SHA-256 in hexadecimal, as we write it.
pub(super) fn is_hex(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_host_a_repository_and_a_tag_or_a_digest() {
        let hex = "5".repeat(64);
        for (text, whole, digest) in [
            ("oci://127.0.0.1:5000/team/it:1.2", "oci://127.0.0.1:5000/team/it:1.2".to_owned(), None),
            ("oci://localhost/it", "oci://localhost/it:latest".to_owned(), None),
            (
                &format!("oci://r.example/a/b@sha256:{hex}"),
                format!("oci://r.example/a/b@sha256:{hex}"),
                Some(&*hex),
            ),
            (
                &format!("oci://r.example/a:1@sha256:{hex}"),
                format!("oci://r.example/a:1@sha256:{hex}"),
                Some(&*hex),
            ),
        ] {
            let address = Address::parse(text).expect(text);
            assert_eq!((address.to_string(), address.digest()), (whole, digest), "{text}");
        }
        for text in [
            "oci://",
            "oci://it",
            "oci://team/it",
            "oci://r.example/",
            "oci://r.example/UPPER",
            "oci://r.example/it@sha256:12",
            "https://r.example/it",
        ] {
            let error = Address::parse(text).expect_err(text).to_string();
            assert!(error.contains("oci://"), "{error}");
        }
    }

    #[test]
    fn loopback_is_known_by_its_name_and_its_numbers() {
        let is = |text: &str| Address::parse(text).expect(text).is_loopback();
        assert!(is("oci://localhost:5000/it") && is("oci://127.0.0.1:5000/it") && is("oci://127.9.9.9/it"));
        assert!(!is("oci://localhost.example/it") && !is("oci://10.0.0.1:5000/it"));
    }

    #[test]
    fn signatures_lie_under_the_tag_that_cosign_gives_them() {
        let address = Address::parse("oci://r.example/team/it:1").expect("it is an address");
        let tag = format!("oci://r.example/team/it:sha256-{}.sig", "a".repeat(64));
        assert_eq!(address.signatures(&"a".repeat(64)).to_string(), tag);
    }
}
