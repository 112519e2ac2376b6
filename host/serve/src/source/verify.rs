//! Signatures: ECDSA on P-256 over SHA-256, DER in base64, as cosign writes them with a key.
//!
//! **Invariant:** under `require` nothing passes but what one of the configured keys has signed.

use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use p256::SecretKey;
use p256::ecdsa::signature::{Signer, Verifier};
use p256::ecdsa::{DerSignature, Signature, SigningKey, VerifyingKey};
use p256::elliptic_curve::Generate;
use p256::pkcs8::{DecodePublicKey, EncodePrivateKey, EncodePublicKey, LineEnding};

use super::error::SourceError;
use super::settings::{Supply, Verify};

/// Who checks signatures: the keys of `[supply]`, and whether a signature must be there.
pub struct Judge {
    keys: Vec<VerifyingKey>,
    required: bool,
}

impl Judge {
    /// Reads the keys. Errors: one of them is no public key on P-256.
    pub fn new(supply: &Supply) -> Result<Self, SourceError> {
        let keys = supply.keys.iter().map(|path| public_key(path)).collect::<Result<_, _>>()?;
        Ok(Self { keys, required: supply.verify == Verify::Require })
    }

    /// Whether signatures are looked at.
    pub(super) fn looks(&self) -> bool {
        self.required || !self.keys.is_empty()
    }

    /// Whether a signature must be there.
    pub(super) fn requires(&self) -> bool {
        self.required
    }

    /// Whether one of the keys signed these bytes. Errors say why not.
    pub(super) fn holds(&self, message: &[u8], signature: &str) -> Result<(), String> {
        let der = BASE64_STANDARD
            .decode(signature.trim())
            .map_err(|_| "it is not base64; `cosign sign-blob` and `pointsman plugin sign` write it so")?;
        let signature = Signature::from_der(&der).map_err(|_| "it is no ECDSA signature in DER")?;
        if self.keys.is_empty() {
            return Err("`supply.keys` names no key to check it against".to_owned());
        }
        if self.keys.iter().any(|key| key.verify(message, &signature).is_ok()) {
            return Ok(());
        }
        Err(format!("none of the {} keys of `supply.keys` made it over these bytes", self.keys.len()))
    }

    /// Judges bytes with the signature that was found beside them.
    pub(super) fn judge(&self, what: &str, bytes: &[u8], signature: Option<&str>) -> Result<(), SourceError> {
        match signature {
            Some(signature) if self.looks() => self
                .holds(bytes, signature)
                .map_err(|why| SourceError::Signature { what: what.to_owned(), why }),
            None if self.required => Err(SourceError::Unsigned {
                what: what.to_owned(),
                cure: "put it beside the file as FILE.sig, or name it".to_owned(),
            }),
            _ => Ok(()),
        }
    }
}

/// A key that signs.
pub struct Signing(SigningKey);

impl Signing {
    /// Reads a private key on P-256, in PKCS #8 or SEC 1.
    pub fn read(path: &Path) -> Result<Self, SourceError> {
        let why = |why: &str| SourceError::Key { path: path.to_owned(), why: why.to_owned() };
        let pem = std::fs::read_to_string(path).map_err(|e| SourceError::absent(path.display(), e))?;
        if pem.contains("BEGIN ENCRYPTED") {
            return Err(why("it is encrypted; sign with the tool that made it, or hand in a plain one"));
        }
        let key = SecretKey::from_pem(&pem)
            .map_err(|_| why("a private key on the curve P-256 in PEM is wanted (PKCS #8 or SEC 1)"))?;
        Ok(Self(key.into()))
    }

    /// A signature in base64.
    pub fn sign(&self, message: &[u8]) -> String {
        let signature: DerSignature = self.0.sign(message);
        BASE64_STANDARD.encode(signature.to_bytes())
    }

    /// A pair of keys made from the system's randomness: private and public, in PEM.
    pub fn generate() -> Result<(String, String), String> {
        let key = SigningKey::try_generate().map_err(|error| error.to_string())?;
        let public = key.verifying_key().to_public_key_pem(LineEnding::LF);
        let private = key.to_pkcs8_pem(LineEnding::LF).map_err(|error| error.to_string())?;
        Ok((private.to_string(), public.map_err(|error| error.to_string())?))
    }
}

fn public_key(path: &Path) -> Result<VerifyingKey, SourceError> {
    let why = |why: String| SourceError::Key { path: path.to_owned(), why };
    let pem = std::fs::read_to_string(path).map_err(|error| why(error.to_string()))?;
    VerifyingKey::from_public_key_pem(&pem)
        .map_err(|_| why("a public key on the curve P-256 in PEM is wanted".to_owned()))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    /// Made with `openssl ecparam -genkey -name prime256v1`; the message is signed with `openssl dgst -sha256 -sign`.
    const PUBLIC: &str = "-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEH9rKY/i5ABbX7gyuagRzPLiK1m+J
2ebLuXbGusZihe54svHEIQ4vuvtn7tNntinOJpuxoYa7KgofgJ2iUFjmzg==
-----END PUBLIC KEY-----
";
    const SIGNATURE: &str = "MEUCIAKBG2pCUg8p1f8HNiX6RFp1simHkguf9kxxndSpwekqAiEAsHm5b9qFwwg3PEXFund0Nq+30S1+\
        ykapdyce37VHR3E=";
    const MESSAGE: &[u8] = b"a message that OpenSSL has signed\n";

    struct Folder(tempfile::TempDir);

    impl Folder {
        fn new() -> Self {
            Self(tempfile::tempdir().expect("there is a place for temporary files"))
        }

        fn file(&self, name: &str, text: &str) -> PathBuf {
            let path = self.0.path().join(name);
            std::fs::write(&path, text).expect("it can be written");
            path
        }

        fn judge(&self, verify: Verify, keys: &[&str]) -> Judge {
            let write = |(number, pem): (usize, &&str)| self.file(&format!("{number}.pub"), pem);
            let keys = keys.iter().enumerate().map(write).collect();
            Judge::new(&Supply { verify, keys, ..Supply::default() }).expect("these are keys")
        }
    }

    #[test]
    fn a_signature_of_openssl_holds() {
        let folder = Folder::new();
        let (_, other) = Signing::generate().expect("there is randomness");
        let judge = folder.judge(Verify::Require, &[&other, PUBLIC]);
        assert_eq!(judge.holds(MESSAGE, SIGNATURE), Ok(()), "any of the keys will do");
        let error = judge.holds(b"another message", SIGNATURE).expect_err("it was not signed");
        assert!(error.contains("none of the 2 keys"), "{error}");
        let judge = folder.judge(Verify::Require, &[&other]);
        assert!(judge.holds(MESSAGE, SIGNATURE).is_err(), "another key");
    }

    #[test]
    fn what_we_sign_holds_with_both_forms_of_a_key() {
        let folder = Folder::new();
        let (private, public) = Signing::generate().expect("there is randomness");
        let judge = folder.judge(Verify::Off, &[&public]);
        let sec1 = SecretKey::from_pem(&private).expect("it is a key").to_sec1_pem(LineEnding::LF);
        for pem in [private.as_str(), sec1.expect("it can be written").as_str()] {
            let key = Signing::read(&folder.file("private", pem)).expect("it is a key");
            assert_eq!(judge.holds(MESSAGE, &key.sign(MESSAGE)), Ok(()));
        }
    }

    #[test]
    fn junk_is_no_signature() {
        let judge = Folder::new().judge(Verify::Off, &[PUBLIC]);
        for (junk, words) in [("%%%", "base64"), ("", "DER"), ("AAAA", "DER")] {
            let error = judge.holds(MESSAGE, junk).expect_err("it is junk");
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn a_missing_signature_is_refused_only_where_it_must_be_there() {
        let folder = Folder::new();
        let judge = |verify, keys: &[&str]| folder.judge(verify, keys);
        assert!(judge(Verify::Off, &[PUBLIC]).judge("it", MESSAGE, None).is_ok());
        assert!(judge(Verify::Off, &[]).judge("it", MESSAGE, Some("junk")).is_ok(), "there is no key");
        assert!(judge(Verify::Off, &[PUBLIC]).judge("it", MESSAGE, Some("junk")).is_err());
        assert!(judge(Verify::Require, &[PUBLIC]).judge("it", MESSAGE, Some(SIGNATURE)).is_ok());
        let error = judge(Verify::Require, &[PUBLIC]).judge("it", MESSAGE, None).expect_err("it must be");
        assert!(matches!(error, SourceError::Unsigned { .. }), "{error}");
    }

    #[test]
    fn what_is_no_key_is_named() {
        let folder = Folder::new();
        let (private, _) = Signing::generate().expect("there is randomness");
        for (name, text) in [("private-as-public", private.as_str()), ("junk", "junk")] {
            let keys = vec![folder.file(name, text)];
            let error =
                Judge::new(&Supply { keys, ..Supply::default() }).err().expect("it is no key").to_string();
            assert!(error.contains(name) && error.contains("P-256"), "{error}");
        }
        let error = Signing::read(&folder.file("public-as-private", PUBLIC)).err().expect("it is no key");
        assert!(error.to_string().contains("P-256"), "{error}");
        let encrypted = "-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\n";
        let error = Signing::read(&folder.file("encrypted", encrypted)).err().expect("it is encrypted");
        assert!(error.to_string().contains("encrypted"), "{error}");
    }
}
