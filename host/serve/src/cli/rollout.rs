//! `pointsman rollout …`: a candidate beside the active generation, from a terminal.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context;
use axum::http::Method;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::operate::{Admin, checked, outcomes, text};
use crate::client::Client;

#[derive(Debug, Args)]
pub(super) struct RolloutArgs {
    #[command(subcommand)]
    command: RolloutCommand,
    #[command(flatten)]
    admin: Admin,
}

#[derive(Debug, Subcommand)]
enum RolloutCommand {
    /// Ask a component after each live decision; it decides nothing.
    Shadow {
        /// Name of the plugin in the chain.
        name: String,
        /// The component.
        file: PathBuf,
    },
    /// Let a candidate decide for a share of sessions: the shadow that runs, or a component.
    Canary {
        /// Name of the plugin in the chain; without it the shadow that runs moves on.
        #[arg(requires = "file")]
        name: Option<String>,
        /// The component.
        file: Option<PathBuf>,
        /// Share of the sessions that match, above 0 and at most 100.
        #[arg(long)]
        percent: f64,
        #[command(flatten)]
        matches: MatchArgs,
    },
    /// Show the rollout that runs, or the last one, and what was taken back.
    Status {
        /// As the admin API says it.
        #[arg(long)]
        json: bool,
    },
    /// Make the candidate the active generation.
    Promote,
    /// Let the candidate go.
    Abort,
}

/// The requests that a canary can get; a pattern may end in `*`.
#[derive(Debug, Args)]
struct MatchArgs {
    /// Model, any of those given.
    #[arg(long)]
    model: Vec<String>,
    /// Tenant, any of those given.
    #[arg(long)]
    tenant: Vec<String>,
    /// Header and pattern, all of those given.
    #[arg(long, value_name = "NAME=PATTERN", value_parser = header)]
    header: Vec<(String, String)>,
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, pattern) = text.split_once('=').ok_or("a header is NAME=PATTERN")?;
    Ok((name.to_ascii_lowercase(), pattern.to_owned()))
}

impl MatchArgs {
    fn is_empty(&self) -> bool {
        self.model.is_empty() && self.tenant.is_empty() && self.header.is_empty()
    }

    fn query(&self) -> String {
        let mut query = String::new();
        let headers: Vec<String> = self.header.iter().map(|(name, it)| format!("{name}:{it}")).collect();
        for (key, values) in [("model", &self.model), ("tenant", &self.tenant), ("header", &headers)] {
            for value in values {
                let _ = write!(query, "&{key}={}", encoded(value));
            }
        }
        query
    }

    fn json(&self) -> Value {
        let headers: serde_json::Map<String, Value> =
            self.header.iter().map(|(name, pattern)| (name.clone(), json!(pattern))).collect();
        json!({ "models": self.model, "tenants": self.tenant, "headers": headers })
    }
}

/// A value in a query.
fn encoded(value: &str) -> String {
    value.bytes().fold(String::new(), |mut text, byte| {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'*' => text.push(byte.into()),
            _ => _ = write!(text, "%{byte:02X}"),
        }
        text
    })
}

pub(super) async fn rollout(args: RolloutArgs) -> anyhow::Result<()> {
    let client = args.admin.client()?;
    match args.command {
        RolloutCommand::Shadow { name, file } => {
            begin(&client, &name, &file, "rollout=shadow").await?;
        }
        RolloutCommand::Canary { name: Some(name), file: Some(file), percent, matches } => {
            let query = format!("rollout=canary&percent={percent}{}", matches.query());
            begin(&client, &name, &file, &query).await?;
        }
        RolloutCommand::Canary { percent, matches, .. } => {
            let mut body = json!({ "mode": "canary", "percent": percent });
            if !matches.is_empty() {
                body["match"] = matches.json();
            }
            say(&checked(client.post("/admin/v1/rollout", &body).await?)?);
        }
        RolloutCommand::Status { json } => {
            let reply = checked(client.get("/admin/v1/rollout").await?)?;
            match json {
                true => println!("{}", serde_json::to_string_pretty(&reply)?),
                false => status(&reply),
            }
        }
        RolloutCommand::Promote => {
            say(&checked(client.send(Method::POST, "/admin/v1/rollout/promote", "").await?)?);
        }
        RolloutCommand::Abort => {
            say(&checked(client.send(Method::DELETE, "/admin/v1/rollout", "").await?)?);
        }
    }
    Ok(())
}

async fn begin(client: &Client, name: &str, file: &Path, query: &str) -> anyhow::Result<()> {
    let component = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let path = format!("/admin/v1/plugins/{}?{query}", encoded(name));
    say(&checked(client.put(&path, component).await?)?);
    Ok(())
}

fn say(reply: &Value) {
    println!("generation {} is {}", reply["generation"], text(&reply["state"]));
}

fn status(reply: &Value) {
    println!("active generation {}", reply["active"]);
    let probation = &reply["probation"];
    if !probation.is_null() {
        let left = probation["seconds_left"].as_f64().unwrap_or(0.0);
        println!("generation {} is on probation for {left:.0} s", probation["generation"]);
    }
    let rollout = &reply["rollout"];
    match rollout.is_null() {
        true => println!("no rollout"),
        false => print_rollout(rollout),
    }
    for taken_back in reply["rollbacks"].as_array().into_iter().flatten() {
        println!(
            "rolled back: generation {} to {}: {}",
            taken_back["generation"],
            taken_back["to"],
            text(&taken_back["why"])
        );
    }
}

fn print_rollout(rollout: &Value) {
    let share = rollout["percent"].as_f64().map(|percent| format!(" at {percent} %")).unwrap_or_default();
    println!(
        "generation {} is {}{share} beside {}: {}",
        rollout["candidate"],
        text(&rollout["state"]),
        rollout["beside"],
        text(&rollout["reason"])
    );
    if let Some(why) = rollout["why"].as_str() {
        println!("  {}: {why}", text(&rollout["state"]));
    }
    let requests = &rollout["requests"];
    println!("  requests: {} by the candidate, {} by the active", requests["candidate"], requests["active"]);
    for (slot, seen) in rollout["shadow"].as_object().into_iter().flatten() {
        let number = |value: &Value| value.as_f64().unwrap_or(0.0);
        let (agreement, share) =
            (number(&seen["agreement"]) * 100.0, number(&seen["compared_share"]) * 100.0);
        println!(
            "  shadow {slot}: {agreement:.1} % agree, {} of {} compared ({share:.1} %)",
            seen["compared"], seen["decisions"]
        );
        let route = &seen["route"];
        if !route.is_null() {
            println!(
                "    scores differ by {:.4} (at most {:.4}); its choice has {:+.1} overlap tokens, {:+.2} waiting, {:+.1} load tokens",
                number(&route["score_delta_mean"]),
                number(&route["score_delta_max"]),
                number(&route["overlap_tokens_delta"]),
                number(&route["queue_len_delta"]),
                number(&route["load_tokens_delta"])
            );
        }
    }
    for (plugin, slots) in rollout["calls"].as_object().into_iter().flatten() {
        for (slot, calls) in slots.as_object().into_iter().flatten() {
            println!("  {plugin} {slot}: {}", outcomes(calls));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_match_travels_whole() {
        let matches = MatchArgs {
            model: vec!["a b".to_owned()],
            tenant: vec!["acme*".to_owned(), "ü&".to_owned()],
            header: vec![header("X-Tier=gold=1").expect("a header")],
        };
        assert_eq!(matches.query(), "&model=a%20b&tenant=acme*&tenant=%C3%BC%26&header=x-tier%3Agold%3D1");
        assert_eq!(matches.json()["headers"]["x-tier"], "gold=1");
        assert!(header("gold").is_err());
    }
}
