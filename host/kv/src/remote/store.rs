//! The store itself: one value read or written, once, through opendal.
//!
//! Called by the tasks of the remote tier, under their limits of time. Nothing here waits twice or tries again.
//! **Invariant:** what is read into a slot counts only when the whole value verified; a value that is too long is not
//! read to its end.

use std::time::Duration;

use bytes::{Buf, Bytes};
use futures_util::TryStreamExt;
use opendal::services::{Fs, Memory, Redis, S3};
use opendal::{Buffer, ErrorKind, HttpTransporter, OperationContext, Operator};
use opendal_http_transport_reqwest::ReqwestTransport;

use super::config::{Config, RemoteError, Service};
use super::record::{self, HEADER_BYTES};
use crate::{BlockName, Geometry, Slot, SlotMut};

/// How long a file is being written at most; what is older was given up. It is the longest limit of time of a write.
const UNFINISHED_MAX: Duration = Duration::from_secs(3_600);

/// Files looked at by one sweep; the next start goes on.
const SWEEP_MAX: usize = 10_000;

pub(super) struct Store {
    operator: Operator,
    geometry: Geometry,
    prefix: String,
    /// The service writes only what is absent, when it is asked to.
    if_not_exists: bool,
    /// The service keeps what it is given, so that it is given a copy and not a slot.
    keeps: bool,
}

/// What a read found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Found {
    /// The block; the slot holds it.
    Block,
    Nothing,
    /// Something else, so that the block is not there.
    Garbage,
}

/// What a write did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wrote {
    Block,
    /// Nothing: somebody else wrote it before.
    AlreadyThere,
}

/// Why a store did not do what it was asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Failed {
    /// The same may succeed the next time.
    pub again: bool,
}

impl Store {
    /// Asks nothing of the store. A folder is made if it is not there.
    pub(super) fn open(config: &Config, service: &Service, geometry: Geometry) -> Result<Self, RemoteError> {
        let operator = operator(config, service)?;
        let if_not_exists = operator.info().capability().write_with_if_not_exists;
        let keeps = *service == Service::Memory;
        Ok(Self { operator, geometry, prefix: config.prefix.clone(), if_not_exists, keeps })
    }

    pub(super) async fn read(&self, name: BlockName, slot: &mut SlotMut) -> Result<Found, Failed> {
        let key = record::key(&self.prefix, &self.geometry, name);
        match self.read_value(&key, slot).await {
            Ok(Some(header)) if record::verifies(&header, &self.geometry, name, slot) => Ok(Found::Block),
            Ok(_) => Ok(Found::Garbage),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Found::Nothing),
            Err(error) => Err(failed(&error)),
        }
    }

    /// Fills the slot, and gives the header; `None` for a value of another length.
    async fn read_value(&self, key: &str, slot: &mut SlotMut) -> opendal::Result<Option<[u8; HEADER_BYTES]>> {
        let reader = self.operator.reader(key).await?;
        let mut chunks = reader.into_stream(..).await?;
        let (mut header, mut at) = ([0; HEADER_BYTES], 0);
        let whole = HEADER_BYTES + slot.len();
        while let Some(mut chunk) = chunks.try_next().await? {
            if at + chunk.remaining() > whole {
                return Ok(None);
            }
            let head = chunk.remaining().min(HEADER_BYTES.saturating_sub(at));
            if head > 0 {
                chunk.copy_to_slice(&mut header[at..][..head]);
                at += head;
            }
            let rest = chunk.remaining();
            if rest > 0 {
                chunk.copy_to_slice(&mut slot[at - HEADER_BYTES..][..rest]);
                at += rest;
            }
        }
        Ok((at == whole).then_some(header))
    }

    /// Writes a block unless it is there. `replace` writes it whatever is there.
    pub(super) async fn write(&self, name: BlockName, slot: &Slot, replace: bool) -> Result<Wrote, Failed> {
        let key = record::key(&self.prefix, &self.geometry, name);
        let header = Bytes::copy_from_slice(&record::header(&self.geometry, name, slot));
        let payload =
            if self.keeps { Bytes::copy_from_slice(slot) } else { Bytes::from_owner(Payload(slot.clone())) };
        let value = Buffer::from(vec![header, payload]);
        let write = self.operator.write_with(&key, value);
        // A service that cannot say "only if absent" overwrites: equal names are equal bytes.
        match write.if_not_exists(self.if_not_exists && !replace).await {
            Ok(_) => Ok(Wrote::Block),
            Err(error) if error.kind() == ErrorKind::ConditionNotMatch => Ok(Wrote::AlreadyThere),
            Err(error) => Err(failed(&error)),
        }
    }
}

/// A slot that the client of the store reads in place, and frees when it is done.
struct Payload(Slot);

impl AsRef<[u8]> for Payload {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// Removes what writes that were given up left in a folder. To be run where it may take its time.
pub(super) fn sweep(service: &Service) -> impl FnOnce() + Send + 'static {
    let folder = match service {
        Service::Files { path } => Some(unfinished(path)),
        Service::Memory | Service::S3 { .. } | Service::Redis { .. } => None,
    };
    move || {
        let entries = folder.and_then(|folder| std::fs::read_dir(folder).ok());
        for entry in entries.into_iter().flatten().flatten().take(SWEEP_MAX) {
            let modified = entry.metadata().and_then(|file| file.modified());
            let age = modified.ok().and_then(|modified| modified.elapsed().ok());
            if age.is_some_and(|age| age > UNFINISHED_MAX) {
                // It may be gone, or another host's to remove.
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}

/// Where files lie until they are whole, in the same file system.
fn unfinished(path: &str) -> String {
    format!("{}/.unfinished", path.trim_end_matches('/'))
}

fn failed(error: &opendal::Error) -> Failed {
    Failed { again: error.is_temporary() }
}

fn operator(config: &Config, service: &Service) -> Result<Operator, RemoteError> {
    let refused = |error| RemoteError::Store(Box::new(error));
    match service {
        Service::Memory => Operator::new(Memory::default()).map_err(refused),
        Service::Files { path } => {
            // A value appears whole, under its name, when it is on the disk.
            Operator::new(Fs::default().root(path).atomic_write_dir(&unfinished(path))).map_err(refused)
        }
        Service::S3 { bucket, path, endpoint, region, anonymous } => {
            let mut s3 = S3::default().bucket(bucket).root(path);
            if let Some(endpoint) = endpoint {
                s3 = s3.endpoint(endpoint);
            }
            match (region, std::env::var("AWS_REGION").is_ok(), std::env::var("AWS_DEFAULT_REGION").is_ok()) {
                (Some(region), ..) => s3 = s3.region(region),
                // Stores other than Amazon's take any.
                (None, false, false) => s3 = s3.region("us-east-1"),
                (None, ..) => {}
            }
            if *anonymous {
                s3 = s3.skip_signature();
            }
            let context = OperationContext::new().with_http_transport(http(config)?);
            Ok(Operator::new(s3).map_err(refused)?.with_context(context))
        }
        Service::Redis { endpoint, db, ttl_s } => {
            install_tls();
            let secret = |name: &str| std::env::var(name).unwrap_or_default();
            let mut redis = Redis::default().endpoint(endpoint).db(*db);
            redis = redis.username(&secret("REDIS_USERNAME")).password(&secret("REDIS_PASSWORD"));
            redis = redis.connection_pool_max_size(config.in_flight_max * 2);
            if let Some(ttl_s) = ttl_s {
                redis = redis.default_ttl(Duration::from_secs(*ttl_s));
            }
            Operator::new(redis).map_err(refused)
        }
    }
}

/// A client of this store alone. A shared one would keep connections whose threads end with another store.
fn http(config: &Config) -> Result<HttpTransporter, RemoteError> {
    install_tls();
    let client = reqwest::Client::builder()
        .pool_max_idle_per_host(config.in_flight_max * 2)
        .connect_timeout(Duration::from_millis(config.read_timeout_ms))
        .build()
        .map_err(RemoteError::Http)?;
    Ok(HttpTransporter::new(ReqwestTransport::new(client)))
}

/// TLS has one provider here; the clients take it from the process.
fn install_tls() {
    // It fails when it is installed already, by us or by the host, which is the same one.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
