//! One request over HTTP/1.1: sent, its stream read and timed.
//!
//! **Invariant:** an exchange ends within its limit of time, and no answer fills the memory.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{Client, Error};
use hyper_util::rt::TokioExecutor;
use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use rustls_platform_verifier::BuilderVerifierExt;
use serde_json::Value;

use crate::api::Api;
use crate::clock::{Clock, Moment};
use crate::error::LoadError;
use crate::failure::Failure;
use crate::hearing::{Brought, Hearing, Told};
use crate::sse::Parser;

/// Chosen: refusals and lists of models are short; the rest of a longer one is of no use here.
const BODY_BYTES_MAX: usize = 1 << 20;
/// Chosen: a hundred times what the longest answer takes; a server that streams without end must not fill the memory.
const STREAM_BYTES_MAX: usize = 256 << 20;

/// A keep-alive client of one server. It has as many connections as there are requests in flight.
#[derive(Debug)]
pub(crate) struct Caller {
    pool: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    clock: Clock,
    api: Api,
    /// Such as `http://127.0.0.1:8080/v1`.
    base: String,
    uri: http::Uri,
    headers: HeaderMap,
    timeout: Duration,
}

/// What became of a request.
#[derive(Debug)]
pub(crate) struct Exchange {
    /// When its bytes were handed to the connection, or a connection was asked for.
    pub(crate) sent: Moment,
    /// When the first event came that brought something of the answer.
    pub(crate) first: Option<Moment>,
    /// When the last of them came.
    pub(crate) last: Option<Moment>,
    /// When the stream said that it is over, or failed.
    pub(crate) end: Moment,
    /// Events that brought something.
    pub(crate) events: u64,
    /// Microseconds between two of those.
    pub(crate) gaps_us: Vec<u32>,
    pub(crate) hearing: Hearing,
    pub(crate) failure: Option<Failure>,
}

/// Whom requests go to.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) api: Api,
    /// With `/v1`.
    pub(crate) base: String,
    /// Sent with every request.
    pub(crate) headers: HeaderMap,
    /// Authorities of the server's certificate, as PEM; none for those that this machine believes.
    pub(crate) authorities: Option<Vec<u8>>,
    pub(crate) timeout: Duration,
}

impl Caller {
    /// Errors: the address or the certificates cannot be used.
    pub(crate) fn new(target: &Target, clock: Clock) -> Result<Self, LoadError> {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.enforce_http(false);
        let tls = trust(target).map_err(|e| LoadError::argument("--ca", e))?;
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(connector);
        let uri = format!("{}{}", target.base, target.api.path());
        let uri =
            uri.parse().map_err(|e: http::uri::InvalidUri| LoadError::argument("URL", e.to_string()))?;
        let mut headers = target.headers.clone();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(ACCEPT, HeaderValue::from_static("text/event-stream"));
        Ok(Self {
            pool: Client::builder(TokioExecutor::new()).build(connector),
            clock,
            api: target.api,
            base: target.base.clone(),
            uri,
            headers,
            timeout: target.timeout,
        })
    }

    /// Sends a body and reads what comes to its end, at most for the time that a request has.
    pub(crate) async fn call(&self, more: &[(http::HeaderName, HeaderValue)], body: String) -> Exchange {
        let sent = self.clock.now();
        let mut exchange = Exchange {
            sent,
            first: None,
            last: None,
            end: sent,
            events: 0,
            gaps_us: Vec::new(),
            hearing: Hearing::new(self.api),
            failure: None,
        };
        let mut request = Request::new(Full::new(Bytes::from(body)));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        for (name, value) in more {
            request.headers_mut().insert(name, value.clone());
        }
        let outcome = tokio::time::timeout(self.timeout, self.exchange(request, &mut exchange)).await;
        exchange.failure = match outcome {
            Ok(outcome) => outcome.err(),
            Err(_) => Some(Failure::Timeout { limit_s: self.timeout.as_secs() }),
        };
        if exchange.failure.is_some() {
            exchange.end = self.clock.now();
        }
        exchange
    }

    async fn exchange(&self, request: Request<Full<Bytes>>, exchange: &mut Exchange) -> Result<(), Failure> {
        let response = self.pool.request(request).await.map_err(|e| failure(&e))?;
        if response.status() != StatusCode::OK {
            return Err(refusal(response).await);
        }
        let kind = response.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        if !kind.starts_with("text/event-stream") {
            return Err(Failure::Protocol(format!("the answer is `{kind}`, not an event stream")));
        }
        let mut body = response.into_body();
        let mut parser = Parser::default();
        let mut bytes = 0;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|e| Failure::Cut(innermost(&e)))?;
            let Some(data) = frame.data_ref() else { continue };
            bytes += data.len();
            if bytes > STREAM_BYTES_MAX {
                return Err(Failure::Protocol("the stream has more than 256 MiB".to_owned()));
            }
            let now = self.clock.now();
            let read = parser.feed(data, |event| exchange.heard(event, now));
            read.map_err(|_| Failure::Protocol("an event has more than 16 MiB".to_owned()))?;
            if let Some(fault) = exchange.hearing.fault.take() {
                return Err(fault.into());
            }
        }
        let now = self.clock.now();
        parser.finish(|event| exchange.heard(event, now));
        match exchange.hearing.fault.take() {
            Some(fault) => Err(fault.into()),
            None if exchange.hearing.is_whole => Ok(()),
            None => Err(Failure::Cut("the stream ended without its last event".to_owned())),
        }
    }

    /// The first model that the server names. Errors: what it said instead.
    pub(crate) async fn first_model(&self) -> Result<String, String> {
        let mut request = Request::new(Full::new(Bytes::new()));
        *request.uri_mut() = format!("{}/models", self.base).parse().map_err(|e| format!("{e}"))?;
        *request.headers_mut() = self.headers.clone();
        let ask = async {
            let response = self.pool.request(request).await.map_err(|e| failure(&e).message())?;
            let status = response.status();
            let body = short(response).await;
            let list: Value = serde_json::from_slice(&body).unwrap_or_default();
            let first = list["data"][0]["id"].as_str().map(str::to_owned);
            first.ok_or_else(|| format!("it names no model (status {})", status.as_u16()))
        };
        // Chosen: whoever takes longer to name its models will not say them at all.
        match tokio::time::timeout(Duration::from_secs(10), ask).await {
            Ok(answer) => answer,
            Err(_) => Err("no answer within 10 s".to_owned()),
        }
    }
}

impl Exchange {
    fn heard(&mut self, event: crate::sse::Event<'_>, now: Moment) {
        self.end = now;
        if self.hearing.hear(event) == Brought::Nothing {
            return;
        }
        self.events += 1;
        self.first.get_or_insert(now);
        if let Some(last) = self.last.replace(now) {
            self.gaps_us.push(u32::try_from((now - last).as_micros()).unwrap_or(u32::MAX));
        }
    }

    /// Tokens of the answer: as the server counted them, else its events.
    pub(crate) fn output_tokens(&self) -> u64 {
        self.hearing.usage.output.unwrap_or(self.events)
    }
}

fn trust(target: &Target) -> Result<ClientConfig, String> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().map_err(|e| e.to_string())?;
    let mut roots = RootCertStore::empty();
    match &target.authorities {
        Some(pem) => {
            for certificate in CertificateDer::pem_slice_iter(pem) {
                roots.add(certificate.map_err(|e| e.to_string())?).map_err(|e| e.to_string())?;
            }
            if roots.is_empty() {
                return Err("there is no `BEGIN CERTIFICATE` section".to_owned());
            }
        }
        None if target.base.starts_with("https") => {
            return Ok(builder.with_platform_verifier().map_err(|e| e.to_string())?.with_no_client_auth());
        }
        // Over plain HTTP nobody shows a certificate.
        None => {}
    }
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

fn failure(error: &Error) -> Failure {
    let why = innermost(error);
    if error.is_connect() { Failure::Connect(why) } else { Failure::Cut(why) }
}

async fn refusal<B>(response: Response<B>) -> Failure
where
    B: BodyExt<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let status = response.status().as_u16();
    let (kind, message) = Told::of(&short(response).await);
    Failure::Status { status, kind, message }
}

/// A short body; empty if it is not one.
async fn short<B>(response: Response<B>) -> Bytes
where
    B: BodyExt<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let body = Limited::new(response.into_body(), BODY_BYTES_MAX);
    body.collect().await.map(|body| body.to_bytes()).unwrap_or_default()
}

/// The innermost reason: "connection refused" says more than "client error".
fn innermost(error: &dyn std::error::Error) -> String {
    let mut inner = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}
