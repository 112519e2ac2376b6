//! A small HTTP client for the command line and the demo: JSON in, JSON out.
//!
//! **Invariant:** what is shown to a host over `https` is shown to nobody whose certificate was not checked.

use std::sync::Arc;

use anyhow::Context;
use axum::body::Bytes;
use axum::http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as Pool;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use rustls_platform_verifier::BuilderVerifierExt;
use serde_json::Value;

/// A keep-alive client of one host.
#[derive(Clone)]
pub struct Client {
    base: String,
    key: Option<String>,
    pool: Pool<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

/// Whose certificates a client believes.
#[derive(Clone, Copy, Debug)]
pub enum Trust<'a> {
    /// Nobody's: plain HTTP alone.
    Nobody,
    /// Those that this machine believes.
    System,
    /// Those in this PEM text, as authorities or themselves.
    These(&'a [u8]),
}

impl Trust<'_> {
    fn config(self) -> anyhow::Result<ClientConfig> {
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?;
        let mut roots = RootCertStore::empty();
        if let Self::These(pem) = self {
            for certificate in CertificateDer::pem_slice_iter(pem) {
                roots.add(certificate?)?;
            }
            anyhow::ensure!(!roots.is_empty(), "there is no `BEGIN CERTIFICATE` section");
        }
        Ok(match self {
            Self::System => builder.with_platform_verifier()?.with_no_client_auth(),
            Self::Nobody | Self::These(_) => builder.with_root_certificates(roots).with_no_client_auth(),
        })
    }
}

/// A response: its status, what decided it, its body.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The status.
    pub status: StatusCode,
    /// Headers.
    pub headers: axum::http::HeaderMap,
    /// The body; null if it is not JSON.
    pub json: Value,
}

impl Reply {
    /// A header as text; empty if it is not there.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default()
    }
}

impl Client {
    /// A client of `base`, such as `http://127.0.0.1:8081`.
    pub fn new(base: impl Into<String>) -> Self {
        Self::trusting(base, Trust::Nobody).expect("whoever believes nobody needs no certificates")
    }

    /// A client of `base`, which may begin with `https`. Errors: the certificates to be believed cannot be read.
    pub fn trusting(base: impl Into<String>, trust: Trust<'_>) -> anyhow::Result<Self> {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.enforce_http(false);
        let tls = trust.config().context("cannot use the certificates to be believed")?;
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(connector);
        let base = base.into().trim_end_matches('/').to_owned();
        Ok(Self { base, key: None, pool: Pool::builder(TokioExecutor::new()).build(connector) })
    }

    /// The same, showing a key or a token with everything that it sends.
    pub fn showing(self, key: impl Into<String>) -> Self {
        Self { key: Some(key.into()), ..self }
    }

    /// Sends a request and reads the whole response.
    pub async fn send(&self, method: Method, path: &str, body: impl Into<Bytes>) -> anyhow::Result<Reply> {
        self.send_with(method, path, &[("content-type", "application/json")], body).await
    }

    /// The same with other headers.
    pub async fn send_with(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> anyhow::Result<Reply> {
        let uri = format!("{}{path}", self.base);
        let mut request = Request::builder().method(method).uri(&uri);
        if let Some(key) = &self.key {
            request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body.into()))?;
        let response = self
            .pool
            .request(request)
            .await
            .map_err(|e| anyhow::anyhow!("no answer from {uri}: {}", cause(&e)))?;
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await?.to_bytes();
        Ok(Reply {
            status: parts.status,
            headers: parts.headers,
            json: serde_json::from_slice(&bytes).unwrap_or(Value::Null),
        })
    }

    /// Sends JSON.
    pub async fn post(&self, path: &str, json: &Value) -> anyhow::Result<Reply> {
        self.send(Method::POST, path, json.to_string()).await
    }

    /// Puts bytes in a place.
    pub async fn put(&self, path: &str, bytes: impl Into<Bytes>) -> anyhow::Result<Reply> {
        self.send(Method::PUT, path, bytes).await
    }

    /// Asks for JSON.
    pub async fn get(&self, path: &str) -> anyhow::Result<Reply> {
        self.send(Method::GET, path, Bytes::new()).await
    }
}

/// The innermost reason: "connection refused" says more than "client error".
fn cause(error: &dyn std::error::Error) -> String {
    let mut inner = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}
