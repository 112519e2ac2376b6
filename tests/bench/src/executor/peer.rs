//! llama.cpp's own benchmarks, run one after the other beside ours.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

use super::subject::{DECODE_STEPS, SHORT, Work};

/// llama.cpp's programs, and a model for them.
pub(super) struct Peer {
    bench: PathBuf,
    batched: PathBuf,
    model: PathBuf,
}

impl Peer {
    pub(super) fn new(folder: &Path, model: &str) -> anyhow::Result<Self> {
        let found = |name: &str| {
            let path = folder.join(name);
            ensure!(path.exists(), "{} is not there", path.display());
            Ok(path)
        };
        Ok(Self {
            bench: found("llama-bench")?,
            batched: found("llama-batched-bench")?,
            model: found(model)?,
        })
    }

    /// Tokens a second on so many threads.
    pub(super) fn rate(&self, work: Work, threads: usize) -> anyhow::Result<f64> {
        match work {
            Work::Prefill(tokens) => self.alone(&["-p", &tokens.to_string(), "-n", "0"], threads),
            Work::Decode(1) => self.alone(&["-p", "0", "-n", &DECODE_STEPS.to_string()], threads),
            Work::Decode(sequences) => self.together(sequences, threads),
        }
    }

    /// `llama-bench`: one prompt or one output.
    fn alone(&self, what: &[&str], threads: usize) -> anyhow::Result<f64> {
        let mut command = Command::new(&self.bench);
        command.arg("-m").arg(&self.model).args(["-r", "1", "-o", "json"]);
        command.args(["-t", &threads.to_string()]).args(what);
        let rows: serde_json::Value = serde_json::from_str(&output(command)?)?;
        rows[0]["avg_ts"].as_f64().context("llama-bench says tokens a second")
    }

    /// `llama-batched-bench`: outputs of several sequences, after a short prompt of each.
    fn together(&self, sequences: usize, threads: usize) -> anyhow::Result<f64> {
        let context = (sequences * (SHORT + DECODE_STEPS)).next_multiple_of(256);
        let mut command = Command::new(&self.batched);
        command.arg("-m").arg(&self.model).args(["--output-format", "jsonl"]);
        command.args(["-c", &context.to_string(), "-npp", &SHORT.to_string()]);
        command.args(["-ntg", &DECODE_STEPS.to_string(), "-npl", &sequences.to_string()]);
        command.args(["-t", &threads.to_string(), "-tb", &threads.to_string()]);
        let out = output(command)?;
        let line =
            out.lines().find(|line| line.starts_with('{')).context("llama-batched-bench says a row")?;
        let row: serde_json::Value = serde_json::from_str(line)?;
        row["speed_tg"].as_f64().context("llama-batched-bench says tokens a second")
    }
}

fn output(mut command: Command) -> anyhow::Result<String> {
    let out = command.output().with_context(|| format!("cannot run {:?}", command.get_program()))?;
    ensure!(
        out.status.success(),
        "{:?} failed: {}",
        command.get_program(),
        String::from_utf8_lossy(&out.stderr)
    );
    Ok(String::from_utf8(out.stdout)?)
}
