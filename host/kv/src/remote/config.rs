//! Where the store is, and how much it is trusted: everything an operator sets.
//!
//! **Invariant:** a configuration that is accepted bounds every queue, wait and retry; credentials are no part of it.

use reqwest::Url;

/// A remote store and its bounds. Times are in milliseconds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// The store: `s3://bucket/path?endpoint=http://host:port&region=...`, `redis://host:port/db?ttl_s=3600`,
    /// `file:///path`, or `memory:`, which is gone with the process.
    ///
    /// Credentials come from the environment: `AWS_ACCESS_KEY_ID` and the rest of the usual chain (profiles, roles, the
    /// machine's metadata), unless `anonymous=true`; `REDIS_USERNAME` and `REDIS_PASSWORD`. `rediss://` is TLS. A bucket has to
    /// allow `s3:ListBucket` beside reading and writing: without it, S3 answers 403 for what is missing, which is a failure.
    pub url: String,
    /// Stands before `/v1/...` in every key. Hosts that share blocks have the same.
    pub prefix: String,
    /// Threads of the store's own runtime. One moves about 1 GB a second.
    pub threads: usize,
    /// Reads that the store works on at once, and as many writes.
    pub in_flight_max: usize,
    /// Reads of one fetch that the store works on at once.
    pub fetch_in_flight_max: usize,
    /// Fetches that wait or run; another one is declined.
    pub fetches_max: usize,
    /// Writes that wait or run, each holding a slot; another one is declined.
    pub writes_max: usize,
    /// How long one read may take.
    pub read_timeout_ms: u64,
    /// How long one fetch may take, waiting for others included; what arrived by then is used.
    pub fetch_timeout_ms: u64,
    /// How long one try of a write may take.
    pub write_timeout_ms: u64,
    /// Tries of a write. A read that fails at once is tried twice, one that is too slow is not.
    pub write_attempts_max: u32,
    /// Failures in a row after which the store is left alone.
    pub failures_max: u32,
    /// How long it is left alone at first; twice as long after each probe that fails.
    pub open_ms_min: u64,
    /// How long it is left alone at most.
    pub open_ms_max: u64,
    /// How long a block that was seen counts as there. Set it well below the store's own time to live.
    pub present_ttl_ms: u64,
    /// How long a block that was missed counts as absent, while another host may store it.
    pub absent_ttl_ms: u64,
    /// Blocks whose presence is remembered, 48 bytes each.
    pub known_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            url: "memory:".to_owned(),
            prefix: "kv".to_owned(),
            threads: 2,
            in_flight_max: 16,
            fetch_in_flight_max: 8,
            fetches_max: 64,
            writes_max: 128,
            read_timeout_ms: 2_000,
            fetch_timeout_ms: 5_000,
            write_timeout_ms: 10_000,
            write_attempts_max: 3,
            failures_max: 5,
            open_ms_min: 1_000,
            open_ms_max: 60_000,
            present_ttl_ms: 60_000,
            absent_ttl_ms: 5_000,
            known_max: 65_536,
        }
    }
}

/// Why a remote tier could not be opened. A store that does not answer is not among the reasons.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// A field of the configuration cannot be used.
    #[error("remote tier: `{field}` is {given}; {wanted}")]
    Field {
        /// The field.
        field: &'static str,
        /// What it holds, without credentials.
        given: String,
        /// What would be right.
        wanted: String,
    },
    /// The service behind `url` refuses its settings.
    #[error("remote tier: `url` names a store that cannot be set up")]
    Store(#[source] Box<opendal::Error>),
    /// The client for HTTP cannot be made.
    #[error("remote tier: no client for HTTP")]
    Http(#[source] reqwest::Error),
    /// Threads are refused by the machine.
    #[error("remote tier: no threads")]
    Threads(#[source] std::io::Error),
}

impl RemoteError {
    pub(super) fn field(field: &'static str, given: impl ToString, wanted: impl Into<String>) -> Self {
        Self::Field { field, given: given.to_string(), wanted: wanted.into() }
    }
}

/// What `url` says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Service {
    Memory,
    Files { path: String },
    S3 { bucket: String, path: String, endpoint: Option<String>, region: Option<String>, anonymous: bool },
    Redis { endpoint: String, db: i64, ttl_s: Option<u64> },
}

impl Config {
    /// Errors: [`RemoteError::Field`], for the first field that is out of its bounds.
    pub(super) fn check(&self) -> Result<Service, RemoteError> {
        let hour = 3_600_000;
        let bounds: [(&'static str, u64, u64, u64); 15] = [
            ("threads", self.threads as u64, 1, 64),
            ("in_flight_max", self.in_flight_max as u64, 1, 1024),
            ("fetch_in_flight_max", self.fetch_in_flight_max as u64, 1, 1024),
            ("fetches_max", self.fetches_max as u64, 1, 1 << 16),
            ("writes_max", self.writes_max as u64, 1, 1 << 16),
            ("read_timeout_ms", self.read_timeout_ms, 1, hour),
            ("fetch_timeout_ms", self.fetch_timeout_ms, self.read_timeout_ms, hour),
            ("write_timeout_ms", self.write_timeout_ms, 1, hour),
            ("write_attempts_max", u64::from(self.write_attempts_max), 1, 10),
            ("failures_max", u64::from(self.failures_max), 1, 1000),
            ("open_ms_min", self.open_ms_min, 1, hour),
            ("open_ms_max", self.open_ms_max, self.open_ms_min, 24 * hour),
            ("present_ttl_ms", self.present_ttl_ms, 0, 24 * hour),
            ("absent_ttl_ms", self.absent_ttl_ms, 0, hour),
            ("known_max", self.known_max as u64, 1, 1 << 24),
        ];
        for (field, given, min, max) in bounds {
            if !(min..=max).contains(&given) {
                return Err(RemoteError::field(field, given, format!("it has to be from {min} to {max}")));
            }
        }
        let part =
            |part: &str| !part.is_empty() && !part.chars().all(|c| c == '.') && part.chars().all(plain);
        let plain_prefix = self.prefix.len() <= 200 && self.prefix.split('/').all(part);
        if !plain_prefix {
            let wanted = "it has to be names of letters, digits, `-`, `_` and `.`, separated by `/`";
            return Err(RemoteError::field("prefix", format!("{:?}", self.prefix), wanted));
        }
        service(&self.url)
    }
}

fn plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-_.".contains(c)
}

fn service(url: &str) -> Result<Service, RemoteError> {
    let forms = "it has to be `s3://bucket/path`, `redis://host:port/db`, `file:///path` or `memory:`";
    let wrong = |given: &str, wanted: &str| RemoteError::field("url", given, wanted);
    let parsed = Url::parse(url).map_err(|error| wrong(&format!("no URL ({error})"), forms))?;
    if !parsed.username().is_empty() || parsed.password().is_some() {
        return Err(wrong("a URL with credentials", "they come from the environment"));
    }
    let mut options = Options::of(&parsed)?;
    let path = parsed.path().trim_matches('/').to_owned();
    let host = parsed.host_str().unwrap_or_default();
    let service = match (parsed.scheme(), host) {
        ("memory", _) => Service::Memory,
        ("file", "") if !path.is_empty() => Service::Files { path: file_path(&parsed)? },
        ("s3", bucket) if !bucket.is_empty() => Service::S3 {
            bucket: bucket.to_owned(),
            path,
            endpoint: options.take("endpoint"),
            region: options.take("region"),
            anonymous: options.parse("anonymous", "`true` or `false`")?.unwrap_or(false),
        },
        (scheme @ ("redis" | "rediss"), host) if !host.is_empty() => Service::Redis {
            endpoint: format!("{scheme}://{host}:{}", parsed.port().unwrap_or(6379)),
            db: if path.is_empty() { Ok(0) } else { path.parse() }.map_err(|_| {
                wrong(&format!("a Redis with the database {path:?}"), "it has to be a number")
            })?,
            ttl_s: options.parse("ttl_s", "a number of seconds")?,
        },
        // Without what follows a `?`, which may be meant to be secret.
        (scheme, host) => return Err(wrong(&format!("{scheme}://{host}{}", parsed.path()), forms)),
    };
    options.are_used_up()?;
    Ok(service)
}

fn file_path(url: &Url) -> Result<String, RemoteError> {
    let path = url.to_file_path().ok().and_then(|path| path.into_os_string().into_string().ok());
    path.ok_or_else(|| RemoteError::field("url", url, "a path has to be absolute and UTF-8"))
}

/// What follows the `?` of a URL: each name once.
struct Options(Vec<(String, String)>);

impl Options {
    fn of(url: &Url) -> Result<Self, RemoteError> {
        let pairs: Vec<(String, String)> = url.query_pairs().into_owned().collect();
        for (at, (name, _)) in pairs.iter().enumerate() {
            if pairs[..at].iter().any(|(other, _)| other == name) {
                return Err(RemoteError::field("url", format!("with `{name}` twice"), "it is said once"));
            }
        }
        Ok(Self(pairs))
    }

    fn take(&mut self, name: &str) -> Option<String> {
        let at = self.0.iter().position(|(n, _)| n == name)?;
        Some(self.0.swap_remove(at).1)
    }

    fn parse<T: std::str::FromStr>(&mut self, name: &str, wanted: &str) -> Result<Option<T>, RemoteError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let wrong =
            |_| RemoteError::field("url", format!("with {name}={value:?}"), format!("it has to be {wanted}"));
        value.parse().map(Some).map_err(wrong)
    }

    fn are_used_up(&self) -> Result<(), RemoteError> {
        match self.0.first() {
            None => Ok(()),
            Some((name, _)) => {
                let wanted = "that is no option of this service";
                Err(RemoteError::field("url", format!("with `{name}`"), wanted))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(url: &str, expected: &Service) {
        let config = Config { url: url.to_owned(), ..Config::default() };
        assert_eq!(&config.check().expect("it is right"), expected, "{url}");
    }

    fn refused(config: &Config, words: &[&str]) {
        let message = config.check().expect_err("it is wrong").to_string();
        assert!(words.iter().all(|word| message.contains(word)), "{message}");
        assert!(!message.contains("hunter2"), "{message}");
    }

    #[test]
    fn a_url_chooses_the_service() {
        check("memory:", &Service::Memory);
        check("file:///var/cache%20kv/", &Service::Files { path: "/var/cache kv/".to_owned() });
        let redis = |endpoint: &str, db, ttl_s| Service::Redis { endpoint: endpoint.to_owned(), db, ttl_s };
        check("redis://h", &redis("redis://h:6379", 0, None));
        check("rediss://h:7/3?ttl_s=60", &redis("rediss://h:7", 3, Some(60)));
        check(
            "s3://bucket/a/b?endpoint=http://127.0.0.1:9000&region=eu-west-1&anonymous=true",
            &Service::S3 {
                bucket: "bucket".to_owned(),
                path: "a/b".to_owned(),
                endpoint: Some("http://127.0.0.1:9000".to_owned()),
                region: Some("eu-west-1".to_owned()),
                anonymous: true,
            },
        );
    }

    #[test]
    fn what_is_wrong_is_named_and_credentials_are_not_repeated() {
        let url = |url: &str| Config { url: url.to_owned(), ..Config::default() };
        refused(&url("bucket"), &["`url`", "s3://bucket/path"]);
        refused(&url("ftp://host/path"), &["`url`", "ftp://host/path", "redis://"]);
        refused(&url("s3:///path?secret=hunter2"), &["`url`", "s3:///path;"]);
        refused(&url("file:///"), &["`url`"]);
        refused(&url("redis://user:hunter2@host"), &["credentials", "environment"]);
        refused(&url("redis://host/x"), &["\"x\"", "number"]);
        refused(&url("redis://host?ttl_s=soon"), &["ttl_s", "seconds"]);
        refused(&url("s3://b?secret_access_key=hunter2"), &["secret_access_key", "no option"]);
        refused(&url("s3://b?region=a&region=b"), &["region", "twice"]);
        refused(&Config { threads: 0, ..Config::default() }, &["`threads` is 0", "from 1 to 64"]);
        refused(
            &Config { fetch_timeout_ms: 1, ..Config::default() },
            &["`fetch_timeout_ms` is 1", "from 2000"],
        );
        for prefix in ["", "/a", "a/", "a//b", "../a", "a b"] {
            refused(&Config { prefix: prefix.to_owned(), ..Config::default() }, &["`prefix`"]);
        }
    }
}
