//! The arguments of `pointsman bench`, and what is made of them.
//!
//! **Invariant:** an argument that is wrong is named, with what would be right, before anything is sent.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use http::{HeaderMap, HeaderName, HeaderValue, Uri, header};
use serde_json::{Map, Value};
use trace::{Agents, Spread};

use crate::api::Api;
use crate::caller::Target;
use crate::clock::fresh_seed;
use crate::conversation::Answers;
use crate::error::LoadError;
use crate::identity::Identity;
use crate::plan::{Arrivals, Bounds, Pauses, Plan, REQUESTS_MAX, RateOf, Shape, Slo, Warmup};
use crate::workload::{Rounds, Source, Workload};

/// Chosen: a day. Longer waits are mistakes, and times beyond are of no use to anybody.
const SECONDS_MAX: f64 = 86_400.0;
/// Sessions of a round that nobody counted. Chosen: no cache keeps the first until they begin again.
const SESSIONS: u32 = 256;
/// Chosen: as fine as any server's blocks.
const BLOCK_TOKENS: u32 = 16;
/// Chosen: how long a load runs if nobody says. Percentiles of a fast server are steady by then.
const DURATION_S: f64 = 30.0;

/// Arguments of `pointsman bench`.
#[derive(Clone, Debug, Args)]
pub struct BenchArgs {
    /// The server, with or without `/v1`.
    #[arg(default_value = "http://127.0.0.1:8080")]
    url: String,
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    load: LoadArgs,
    #[command(flatten)]
    workload: WorkloadArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Server")]
struct TargetArgs {
    /// Which endpoint is asked.
    #[arg(long, value_enum, default_value = "chat")]
    api: Api,
    /// The model; by default the first that the server names.
    #[arg(long)]
    model: Option<String>,
    /// Variable of the environment that holds the key of the API.
    #[arg(long, value_name = "NAME")]
    api_key_env: Option<String>,
    /// A header of every request, `NAME: VALUE`; may be repeated.
    #[arg(long, value_name = "HEADER")]
    header: Vec<String>,
    /// How requests name their session: `claude-code`, `opencode` (`x-session-id`), `dynamo`, `none`, or a header.
    #[arg(long, value_name = "HOW")]
    session_as: Option<String>,
    /// Fields merged into every body, as a JSON object.
    #[arg(long, value_name = "JSON")]
    extra: Option<String>,
    /// Authorities of the server's certificate, as PEM; by default those that this machine believes.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Seconds in which an answer has to be whole.
    #[arg(long, value_name = "SECONDS", default_value_t = 300.0)]
    timeout: f64,
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Load")]
struct LoadArgs {
    /// Closed loop: so many sessions at once. [default: 8]
    #[arg(long, value_name = "SESSIONS", conflicts_with_all = ["rate", "schedule"])]
    concurrency: Option<usize>,
    /// Open loop: so many arrivals in a second.
    #[arg(long, value_name = "PER_SECOND", conflicts_with = "schedule")]
    rate: Option<f64>,
    /// What arrives at `--rate`.
    #[arg(long, value_enum, default_value = "sessions", requires = "rate")]
    rate_of: RateOf,
    /// How arrivals follow each other.
    #[arg(long, value_enum, default_value = "poisson", requires = "rate")]
    arrivals: Arrivals,
    /// Open loop: sessions begin when they did in the trace.
    #[arg(long, requires = "trace")]
    schedule: bool,
    /// What the times of a schedule, and its pauses, are divided by.
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0, requires = "schedule")]
    speedup: f64,
    /// What is not counted at the beginning: so many requests, or seconds (`5s`).
    #[arg(long, value_name = "REQUESTS|SECONDS", default_value = "0")]
    warmup: String,
    /// Counted seconds. [default: 30, if nothing else ends the load]
    #[arg(long, value_name = "SECONDS")]
    duration: Option<f64>,
    /// Counted requests.
    #[arg(long)]
    requests: Option<u64>,
    /// Seconds for which requests that run at the end may go on.
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0)]
    grace: f64,
    /// Open loop: sessions, or requests, at once; who comes beyond is turned away, and counted.
    #[arg(long, value_name = "COUNT", default_value_t = 4096)]
    in_flight_max: usize,
    /// Threads that send. One is enough for some 20,000 requests in a second.
    #[arg(long, default_value_t = 1)]
    threads: usize,
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Sessions")]
struct WorkloadArgs {
    /// A trace: a file of the Mooncake format, or a file or folder of agents' sessions. Without it sessions are made up.
    #[arg(long, value_name = "PATH")]
    trace: Option<PathBuf>,
    /// Begin the trace again, with other text, until something else ends the load.
    #[arg(long, requires = "trace", conflicts_with = "schedule")]
    repeat: bool,
    /// Sessions to be made up; by default as many as it takes.
    #[arg(long, conflicts_with = "trace")]
    sessions: Option<u32>,
    /// Turns of a session.
    #[arg(long, default_value_t = 8, conflicts_with = "trace")]
    turns: u32,
    /// Tokens of a system prompt that all sessions share.
    #[arg(long, value_name = "TOKENS", default_value_t = 1000, conflicts_with = "trace")]
    system_tokens: u32,
    /// Median tokens of what a session begins with, besides the system prompt.
    #[arg(long, value_name = "TOKENS", default_value_t = 500, conflicts_with = "trace")]
    first_tokens: u32,
    /// Median tokens of what a turn adds: what a tool or a user says.
    #[arg(long, value_name = "TOKENS", default_value_t = 300, conflicts_with = "trace")]
    turn_tokens: u32,
    /// Median tokens of an answer.
    #[arg(long, value_name = "TOKENS", default_value_t = 100, conflicts_with = "trace")]
    output_tokens: u32,
    /// Median milliseconds between an answer and the next turn.
    #[arg(long, value_name = "MS", default_value_t = 500.0, conflicts_with = "trace")]
    pause_ms: f64,
    /// How much sizes and pauses vary: deviation of their logarithm. 0: not at all; most sizes are within a factor of
    /// two at 0.7.
    #[arg(long, default_value_t = 0.5, conflicts_with = "trace")]
    spread: f64,
    /// Share of turns that start a sub-agent, which asks at its parent's side, and whose end its parent waits for.
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, conflicts_with = "trace")]
    sub_agents: f64,
    /// Seed of sizes, pauses, arrivals and text; by default another in each run, so that no cache knows the text.
    #[arg(long)]
    seed: Option<u64>,
    /// Turns follow answers at once.
    #[arg(long, conflicts_with = "pause_max")]
    ignore_pauses: bool,
    /// Longest pause, in seconds.
    #[arg(long, value_name = "SECONDS")]
    pause_max: Option<f64>,
    /// Most tokens of an answer.
    #[arg(long, value_name = "TOKENS")]
    max_output: Option<u64>,
    /// The history has text of the workload's lengths for answers, instead of what the model said.
    #[arg(long)]
    replay_answers: bool,
    /// Tokens that the server makes of a word; by default asked of it, with two requests.
    #[arg(long, value_name = "RATIO")]
    tokens_per_word: Option<f64>,
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Report")]
struct OutputArgs {
    /// Write the report as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the report as a page.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// A good answer begins within so many milliseconds.
    #[arg(long, value_name = "MS")]
    ttft_slo_ms: Option<f64>,
    /// A good answer has so many milliseconds between its tokens, on average.
    #[arg(long, value_name = "MS")]
    itl_slo_ms: Option<f64>,
}

impl BenchArgs {
    /// The plan and its sessions.
    ///
    /// Errors: [`LoadError::Argument`], [`LoadError::Trace`].
    pub(crate) fn checked(&self) -> Result<(Plan, Source), LoadError> {
        let seed = self.workload.seed.unwrap_or_else(fresh_seed);
        let extra = self.extra()?;
        let plan = Plan {
            target: self.target()?,
            model: self.target.model.clone(),
            identity: self.identity()?,
            extra,
            shape: self.shape()?,
            bounds: self.bounds()?,
            answers: if self.workload.replay_answers { Answers::Replayed } else { Answers::AsCame },
            pauses: self.pauses()?,
            output_max: self
                .workload
                .max_output
                .map(|most| at_least_one("--max-output", most))
                .transpose()?,
            tokens_per_word: self
                .workload
                .tokens_per_word
                .map(|ratio| within("--tokens-per-word", ratio, 0.05, 50.0))
                .transpose()?,
            slo: Slo {
                ttft_ms: positive("--ttft-slo-ms", self.output.ttft_slo_ms)?,
                itl_ms: positive("--itl-slo-ms", self.output.itl_slo_ms)?,
            },
            seed,
            threads: within("--threads", self.load.threads as f64, 1.0, 256.0)? as usize,
            json: self.output.json.clone(),
            html: self.output.html.clone(),
        };
        Ok((plan, self.source(seed)?))
    }

    fn target(&self) -> Result<Target, LoadError> {
        let wrong = |why: &str| {
            LoadError::argument("URL", format!("`{}` {why}, such as http://127.0.0.1:8080", self.url))
        };
        let uri: Uri = self.url.parse().map_err(|_| wrong("is no address"))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none_or(str::is_empty) {
            return Err(wrong("is not the address of an HTTP server"));
        }
        if uri.query().is_some() {
            return Err(wrong("has a query; give a server"));
        }
        let base = self.url.trim_end_matches('/');
        let base = if base.ends_with("/v1") { base.to_owned() } else { format!("{base}/v1") };
        let authorities =
            match &self.target.ca {
                None => None,
                Some(path) => Some(std::fs::read(path).map_err(|e| {
                    LoadError::argument("--ca", format!("cannot read {}: {e}", path.display()))
                })?),
            };
        let timeout = seconds("--timeout", self.target.timeout)?;
        Ok(Target { api: self.target.api, base, headers: self.headers()?, authorities, timeout })
    }

    fn headers(&self) -> Result<HeaderMap, LoadError> {
        let mut headers = HeaderMap::new();
        if self.target.api == Api::Messages {
            // Specified: https://docs.anthropic.com/en/api/versioning
            headers.insert("anthropic-version", HeaderValue::from_static("2023-06-01"));
        }
        if let Some(name) = &self.target.api_key_env {
            let wrong = |why: &str| LoadError::argument("--api-key-env", format!("`{name}` {why}"));
            let key = std::env::var(name).map_err(|_| wrong("is not in the environment"))?;
            let (header, value) = match self.target.api {
                Api::Messages => (HeaderName::from_static("x-api-key"), key),
                Api::Chat | Api::Completions => (header::AUTHORIZATION, format!("Bearer {key}")),
            };
            let mut value = HeaderValue::try_from(value).map_err(|_| wrong("holds no key"))?;
            value.set_sensitive(true);
            headers.insert(header, value);
        }
        for line in &self.target.header {
            let pair = line.split_once(':').and_then(|(name, value)| {
                Some((name.trim().parse::<HeaderName>().ok()?, HeaderValue::try_from(value.trim()).ok()?))
            });
            let (name, value) = pair
                .ok_or_else(|| LoadError::argument("--header", format!("`{line}` is not `NAME: VALUE`")))?;
            headers.append(name, value);
        }
        Ok(headers)
    }

    fn identity(&self) -> Result<Identity, LoadError> {
        let own = if self.target.api == Api::Messages { "claude-code" } else { "opencode" };
        let name = self.target.session_as.as_deref().unwrap_or(own);
        Identity::parse(name).map_err(|why| LoadError::argument("--session-as", why))
    }

    fn extra(&self) -> Result<Map<String, Value>, LoadError> {
        let Some(text) = &self.target.extra else { return Ok(Map::new()) };
        let wrong = |why: String| LoadError::argument("--extra", why);
        let extra: Map<String, Value> =
            serde_json::from_str(text).map_err(|e| wrong(format!("is no JSON object: {e}")))?;
        let ours = ["stream", "messages", "prompt", "system"];
        match ours.iter().find(|name| extra.contains_key(**name)) {
            Some(name) => Err(wrong(format!("`{name}` is written by the load itself; leave it out"))),
            None => Ok(extra),
        }
    }

    fn shape(&self) -> Result<Shape, LoadError> {
        let load = &self.load;
        if load.schedule {
            return Ok(Shape::Schedule { speedup: within("--speedup", load.speedup, 0.001, 1e6)? });
        }
        let Some(rate) = load.rate else {
            let sessions = load.concurrency.unwrap_or(8);
            let sessions = within("--concurrency", sessions as f64, 1.0, 100_000.0)? as usize;
            return Ok(Shape::Closed { sessions });
        };
        let (per_second, arrivals) = (within("--rate", rate, 1e-4, 1e6)?, load.arrivals);
        Ok(match load.rate_of {
            RateOf::Sessions => Shape::Sessions { per_second, arrivals },
            RateOf::Requests => Shape::Requests { per_second, arrivals },
        })
    }

    fn bounds(&self) -> Result<Bounds, LoadError> {
        let load = &self.load;
        let requests = load.requests.unwrap_or(REQUESTS_MAX);
        let ends = load.requests.is_some() || self.rounds() == Rounds::Once;
        let duration = load.duration.or((!ends).then_some(DURATION_S));
        let in_flight = within("--in-flight-max", load.in_flight_max as f64, 1.0, 1e5)? as usize;
        Ok(Bounds {
            warmup: warmup(&load.warmup)?,
            requests: within("--requests", requests as f64, 1.0, REQUESTS_MAX as f64)? as u64,
            duration: duration.map(|s| seconds("--duration", s)).transpose()?,
            grace: Duration::from_secs_f64(within("--grace", load.grace, 0.0, SECONDS_MAX)?),
            in_flight,
        })
    }

    fn pauses(&self) -> Result<Pauses, LoadError> {
        if self.workload.ignore_pauses {
            return Ok(Pauses::Ignored);
        }
        let most = within("--pause-max", self.workload.pause_max.unwrap_or(SECONDS_MAX), 0.0, SECONDS_MAX)?;
        Ok(Pauses::AtMost(Duration::from_secs_f64(most)))
    }

    /// A trace is gone through once, and sessions that were counted are; others begin again.
    fn rounds(&self) -> Rounds {
        let workload = &self.workload;
        let counted = workload.sessions.is_some() || workload.trace.is_some() && !workload.repeat;
        if counted { Rounds::Once } else { Rounds::Endless }
    }

    fn source(&self, seed: u64) -> Result<Source, LoadError> {
        let workload = &self.workload;
        if let Some(path) = &workload.trace {
            return Ok(Source::new(Workload::new(trace::read(path)?, 0), self.rounds()));
        }
        let around = |median: f64| Spread { median, spread: workload.spread, max: median * 20.0 };
        within("--spread", workload.spread, 0.0, 3.0)?;
        within("--pause-ms", workload.pause_ms, 0.0, SECONDS_MAX * 1e3)?;
        within("--sub-agents", workload.sub_agents, 0.0, 1.0)?;
        for (name, tokens) in [
            ("--system-tokens", workload.system_tokens),
            ("--first-tokens", workload.first_tokens),
            ("--turn-tokens", workload.turn_tokens),
            ("--output-tokens", workload.output_tokens),
        ] {
            within(name, f64::from(tokens), 0.0, 2e6)?;
        }
        within("--sessions", f64::from(workload.sessions.unwrap_or(1)), 1.0, 1e5)?;
        within("--turns", f64::from(workload.turns), 1.0, 1e4)?;
        // Whole blocks, so that the text of the system prompt does not depend on what follows it.
        let prompt_tokens = workload.system_tokens.div_ceil(BLOCK_TOKENS) * BLOCK_TOKENS;
        let agents = Agents {
            sessions: workload.sessions.unwrap_or(SESSIONS),
            prompts: 1,
            prompt_tokens,
            first_tokens: around(f64::from(workload.first_tokens)),
            turn_tokens: around(f64::from(workload.turn_tokens)),
            output_tokens: around(f64::from(workload.output_tokens)),
            turns_max: workload.turns,
            // Every turn is followed by another, after the same kind of pause.
            tools_share: 1.0,
            tool_s: around(workload.pause_ms / 1e3),
            subagent_share: workload.sub_agents,
            context_tokens: u32::MAX / 2,
            block_tokens: BLOCK_TOKENS,
            seed,
            ..Agents::default()
        };
        Ok(Source::new(Workload::new(agents.trace()?, u64::from(prompt_tokens)), self.rounds()))
    }
}

fn warmup(text: &str) -> Result<Warmup, LoadError> {
    let wrong = || {
        LoadError::argument(
            "--warmup",
            format!("`{text}` is neither a number of requests nor of seconds (`5s`)"),
        )
    };
    match text.strip_suffix('s') {
        Some(seconds) => {
            let seconds: f64 = seconds.parse().map_err(|_| wrong())?;
            Ok(Warmup::Time(Duration::from_secs_f64(within("--warmup", seconds, 0.0, SECONDS_MAX)?)))
        }
        None => Ok(Warmup::Requests(text.parse().map_err(|_| wrong())?)),
    }
}

fn within(name: &'static str, value: f64, least: f64, most: f64) -> Result<f64, LoadError> {
    if (least..=most).contains(&value) {
        Ok(value)
    } else {
        Err(LoadError::argument(name, format!("is {value}; it lies between {least} and {most}")))
    }
}

fn seconds(name: &'static str, value: f64) -> Result<Duration, LoadError> {
    within(name, value, 0.001, SECONDS_MAX).map(Duration::from_secs_f64)
}

fn positive(name: &'static str, value: Option<f64>) -> Result<Option<f64>, LoadError> {
    value.map(|value| within(name, value, 0.001, SECONDS_MAX * 1e3)).transpose()
}

fn at_least_one(name: &'static str, value: u64) -> Result<u64, LoadError> {
    within(name, value as f64, 1.0, f64::from(u32::MAX)).map(|_| value)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        args: BenchArgs,
    }

    fn parsed(args: &[&str]) -> Result<(Plan, Source), String> {
        let args = std::iter::once("bench").chain(args.iter().copied());
        Cli::try_parse_from(args).map_err(|e| e.to_string())?.args.checked().map_err(|e| e.to_string())
    }

    fn refused(args: &[&str], words: &[&str]) {
        let error = parsed(args).map(|_| ()).expect_err("it is refused");
        for word in words {
            assert!(error.contains(word), "{args:?}: `{word}` is missing in {error}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_what_would_be_right() {
        refused(&["ftp://x"], &["URL: `ftp://x`", "http://127.0.0.1:8080"]);
        refused(&["http://x?y=1"], &["has a query"]);
        refused(&["--concurrency", "0"], &["--concurrency: is 0; it lies between 1 and"]);
        refused(&["--rate=-1"], &["--rate: is -1; it lies between 0.0001 and"]);
        refused(&["--rate=NaN"], &["--rate: is NaN"]);
        refused(&["--rate", "1", "--concurrency", "3"], &["cannot be used with"]);
        refused(&["--schedule"], &["--trace"]);
        refused(&["--speedup", "3"], &["--schedule"]);
        refused(&["--warmup", "5m"], &["--warmup: `5m`", "`5s`"]);
        refused(&["--duration", "0"], &["--duration: is 0"]);
        refused(&["--requests", "2000000"], &["--requests", "1000000"]);
        refused(&["--sessions", "0"], &["--sessions: is 0"]);
        refused(&["--turns", "0"], &["--turns: is 0"]);
        refused(&["--extra", "[1]"], &["--extra: is no JSON object"]);
        refused(&["--extra", "{\"stream\":false}"], &["--extra: `stream` is written by the load"]);
        refused(&["--header", "nonsense"], &["--header: `nonsense` is not `NAME: VALUE`"]);
        refused(&["--api-key-env", "NO_SUCH_VARIABLE"], &["`NO_SUCH_VARIABLE` is not in the environment"]);
        refused(&["--trace", "/no/such/trace.jsonl"], &["/no/such/trace.jsonl"]);
        refused(&["--session-as", "a b"], &["--session-as: `a b` is no header"]);
        refused(&["--ca", "/no/such.pem"], &["--ca: cannot read /no/such.pem"]);
    }

    #[test]
    fn without_arguments_the_load_has_an_end() {
        let (plan, source) = parsed(&[]).expect("nothing is wrong");
        assert_eq!(plan.shape, Shape::Closed { sessions: 8 });
        assert_eq!(plan.bounds.duration, Some(Duration::from_secs(30)));
        assert_eq!(plan.target.base, "http://127.0.0.1:8080/v1");
        assert_eq!(source.workload.roots_len(), 256);
        let (plan, _) = parsed(&["http://x/v1/", "--sessions", "3"]).expect("nothing is wrong");
        assert_eq!((plan.bounds.duration, plan.target.base.as_str()), (None, "http://x/v1"));
        let (plan, _) = parsed(&["--requests", "3", "--warmup", "2.5s"]).expect("nothing is wrong");
        assert_eq!(plan.bounds.warmup, Warmup::Time(Duration::from_millis(2500)));
        assert_eq!(plan.bounds.duration, None);
    }

    #[test]
    fn made_up_sessions_are_as_long_as_was_asked_for() {
        let args = [
            "--spread",
            "0",
            "--turns",
            "3",
            "--system-tokens",
            "100",
            "--first-tokens",
            "50",
            "--sessions",
            "2",
        ];
        let (_, source) = parsed(&args).expect("nothing is wrong");
        let sizes: Vec<u32> = (0..3).map(|turn| source.workload.turn(1, turn).prompt_tokens).collect();
        assert_eq!(
            sizes,
            [162, 562, 962],
            "112 of the prompt are whole blocks; a turn adds 300 and the answer's 100"
        );
        assert_eq!(source.workload.turn(1, 1).pause_ms, Some(500.0));
        let blocks = |session| source.workload.trace.blocks(source.workload.turn(session, 0)).to_vec();
        let shared = blocks(0).iter().zip(&blocks(1)).take_while(|(a, b)| a == b).count();
        assert_eq!(shared, 7);
    }
}
