//! Certificates of the listeners: read at start, read again on a reload, used from the next connection on.
//!
//! **Invariant:** a pair that does not fit, or cannot be read, never replaces one that is in use.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

/// What a connection may agree on, best first.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Why a certificate cannot be used. Each names its configuration key and the file.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or is not PEM.
    #[error("`{key}`: cannot read {path}: {source}")]
    Read {
        /// The configuration key.
        key: String,
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<rustls::pki_types::pem::Error>,
    },
    /// The file has no certificate.
    #[error("`{key}`: {path} has no `BEGIN CERTIFICATE` section")]
    Empty {
        /// The configuration key.
        key: String,
        /// The file.
        path: PathBuf,
    },
    /// Certificate and private key do not belong together, or are of a kind that is not known.
    #[error("`{table}.tls_cert` ({cert}) and `{table}.tls_key` ({key}) cannot be used together: {source}")]
    Pair {
        /// Table of the configuration.
        table: &'static str,
        /// File of the certificate.
        cert: PathBuf,
        /// File of the private key.
        key: PathBuf,
        /// Why.
        source: Box<rustls::Error>,
    },
}

/// The certificate of one listener.
#[derive(Debug)]
pub struct Certificate {
    table: &'static str,
    cert: PathBuf,
    key: PathBuf,
    current: ArcSwap<ServerConfig>,
}

/// A pair that was read and may take its predecessor's place.
pub struct Renewal<'a> {
    certificate: &'a Certificate,
    config: Arc<ServerConfig>,
}

impl Certificate {
    /// Reads the pair of a table of the configuration; none where no file is named.
    pub fn load(table: &'static str, cert: &Path, key: &Path) -> Result<Option<Self>, TlsError> {
        if cert.as_os_str().is_empty() {
            return Ok(None);
        }
        let current = ArcSwap::from(read(table, cert, key)?);
        Ok(Some(Self { table, cert: cert.to_owned(), key: key.to_owned(), current }))
    }

    /// Reads the same files again; nothing changes before [`Renewal::install`].
    pub fn renew(&self) -> Result<Renewal<'_>, TlsError> {
        Ok(Renewal { certificate: self, config: read(self.table, &self.cert, &self.key)? })
    }

    /// What the next handshake is made with.
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.current.load_full())
    }
}

impl Renewal<'_> {
    /// Has connections from here on get the pair.
    pub fn install(self) {
        self.certificate.current.store(self.config);
    }
}

fn read(table: &'static str, cert: &Path, key: &Path) -> Result<Arc<ServerConfig>, TlsError> {
    let unread = |name: &str, path: &Path, source| TlsError::Read {
        key: format!("{table}.{name}"),
        path: path.to_owned(),
        source: Box::new(source),
    };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect)
        .map_err(|e| unread("tls_cert", cert, e))?;
    if chain.is_empty() {
        return Err(TlsError::Empty { key: format!("{table}.tls_cert"), path: cert.to_owned() });
    }
    let private = PrivateKeyDer::from_pem_file(key).map_err(|e| unread("tls_key", key, e))?;
    let pair = |why: rustls::Error| TlsError::Pair {
        table,
        cert: cert.to_owned(),
        key: key.to_owned(),
        source: Box::new(why),
    };
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(pair)?
        .with_no_client_auth()
        .with_single_cert(chain, private)
        .map_err(pair)?;
    config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
    Ok(Arc::new(config))
}
