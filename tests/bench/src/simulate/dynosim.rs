//! The peer: DynoSim, as ai-dynamo-runtime has it, in a process of its own.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use serde_json::Value;

/// A Python that has it.
pub(super) struct DynoSim(PathBuf);

/// What it says of a replay.
#[derive(Clone, Copy, Debug)]
pub(super) struct Told {
    pub(super) reuse: f64,
    pub(super) ttft_ms_mean: f64,
    pub(super) ttft_ms_p99: f64,
    /// Of the replay alone, the trace read within.
    pub(super) wall_s: f64,
}

impl DynoSim {
    pub(super) fn new(python: PathBuf) -> anyhow::Result<Self> {
        let found = Command::new(&python).args(["-c", "import dynamo._core"]).status();
        let found = found.with_context(|| format!("cannot run {}", python.display()))?;
        anyhow::ensure!(found.success(), "{} has no ai-dynamo-runtime", python.display());
        Ok(Self(python))
    }

    /// Replays a trace with its default timing. A folder of conversations is joined into one file first.
    pub(super) fn replay(&self, trace: &Path, is_sessions: bool, mode: &str) -> anyhow::Result<Told> {
        let joined = tempfile::tempdir()?;
        let file = joined.path().join("trace.jsonl");
        let (trace, format) = match is_sessions {
            true => (join(trace, &file)?, "weka"),
            false => (trace.to_owned(), "mooncake"),
        };
        let script = include_str!("dynosim.py");
        let out = Command::new(&self.0)
            .args(["-c", script])
            .arg(&trace)
            .args([format, mode])
            .env("DYN_LOG", "error")
            .output()
            .with_context(|| format!("cannot run {}", self.0.display()))?;
        let text = String::from_utf8_lossy(&out.stdout);
        let line = text.lines().last().unwrap_or_default();
        let told: Value = serde_json::from_str(line)
            .with_context(|| format!("DynoSim said: {line} {}", String::from_utf8_lossy(&out.stderr)))?;
        let number =
            |name: &str| told[name].as_f64().with_context(|| format!("DynoSim tells no {name}: {line}"));
        Ok(Told {
            reuse: number("reuse")?,
            ttft_ms_mean: number("ttft_ms_mean")?,
            ttft_ms_p99: number("ttft_ms_p99")?,
            wall_s: number("wall_s")?,
        })
    }
}

/// Conversations, one a line, with all the models named that they use.
fn join(folder: &Path, file: &Path) -> anyhow::Result<PathBuf> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<anyhow::Result<_>>()?;
    files.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    files.sort();
    let mut lines = String::new();
    for path in files {
        let mut conversation: Value = serde_json::from_slice(&std::fs::read(path)?)?;
        let mut models = Vec::new();
        models_of(&conversation, &mut models);
        models.sort();
        models.dedup();
        conversation["models"] = models.into();
        lines += &(conversation.to_string() + "\n");
    }
    std::fs::write(file, lines)?;
    Ok(file.to_owned())
}

fn models_of(of: &Value, models: &mut Vec<String>) {
    models.extend(of["model"].as_str().filter(|model| !model.is_empty()).map(str::to_owned));
    models.extend(of["models"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned));
    of["requests"].as_array().into_iter().flatten().for_each(|request| models_of(request, models));
}
