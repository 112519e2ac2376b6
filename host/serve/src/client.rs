//! A small HTTP client for the command line and the demo: JSON in, JSON out.

use axum::body::Bytes;
use axum::http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client as Pool;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

/// A keep-alive client of one host.
#[derive(Clone)]
pub struct Client {
    base: String,
    pool: Pool<HttpConnector, Full<Bytes>>,
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
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let base = base.into().trim_end_matches('/').to_owned();
        Self { base, pool: Pool::builder(TokioExecutor::new()).build(connector) }
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
