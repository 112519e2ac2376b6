//! Counts its calls twice: in its state, which a swap carries over, and in its store, which outlives the host.
//!
//! Both counts are gauges, so that a test can see them. The state leaves trial calls out, whose clock is 0; the
//! store counts them too, so that a trial that left a trace would show.

use pointsman_sdk::{Columns, Policy, RouteView, Score, State, export, host, state};
use serde::Deserialize;

/// What goes wrong with the state.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// Nothing.
    #[default]
    Ok,
    /// It writes and reads another form.
    Foreign,
    /// It panics.
    Panic,
    /// It writes half of its state.
    Torn,
    /// It refuses whatever it is given, after it took half of it.
    Refuse,
}

/// Settings.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// What goes wrong when it writes its state.
    pub export: Fault,
    /// What goes wrong when it reads another's.
    pub import: Fault,
    /// Bytes by which its state is larger than it need be.
    pub padding_bytes: usize,
    /// Bytes that it tries to keep in its store beside the count, in one value.
    pub hoard_bytes: usize,
}

/// The policy.
pub struct Keeper {
    config: Config,
    count: u64,
}

impl Policy for Keeper {
    type Config = Config;

    fn new(config: Config) -> Result<Self, String> {
        Ok(Self { config, count: 0 })
    }
}

impl Score for Keeper {
    const CANDIDATE: Columns = Columns::numbers(&["queue_len"]);

    fn score(&mut self, view: &RouteView<'_>) -> Option<Vec<f32>> {
        let stored =
            host::store::get("count").and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes);
        // A store without room is no reason to fail: the old count stays.
        let _ = host::store::set("count", &(stored + 1).to_le_bytes());
        if view.frame.now_ms > 0 {
            self.count += 1;
            host::gauge_set("count", self.count as f64);
            host::gauge_set("stored", (stored + 1) as f64);
        }
        if self.config.hoard_bytes > 0 {
            let refused = host::store::set("hoard", &vec![7; self.config.hoard_bytes]).is_err();
            host::gauge_set("refused", f64::from(u8::from(refused)));
            host::gauge_set("hoard", host::store::get("hoard").map_or(0, |hoard| hoard.len()) as f64);
        }
        None
    }
}

impl State for Keeper {
    const SCHEMA: &'static str = "keeper/1";

    fn export_state(&self, schema: &str) -> Option<Vec<u8>> {
        state::expect::<Self>(schema).ok()?;
        let whole = state::to_bytes(&(self.count, " ".repeat(self.config.padding_bytes)))?;
        match self.config.export {
            Fault::Foreign => None,
            Fault::Panic => panic!("this state stays here"),
            Fault::Torn => Some(whole[..whole.len() / 2].to_vec()),
            Fault::Ok | Fault::Refuse => Some(whole),
        }
    }

    fn import_state(&mut self, schema: &str, bytes: &[u8]) -> Result<(), String> {
        state::expect::<Self>(schema)?;
        let (count, _): (u64, String) = state::from_bytes(bytes)?;
        self.count = count;
        match self.config.import {
            Fault::Panic => panic!("this state is not wanted"),
            Fault::Refuse => Err("this state is not wanted".to_owned()),
            Fault::Ok | Fault::Foreign | Fault::Torn => Ok(()),
        }
    }
}

export!(Keeper: score, state);
