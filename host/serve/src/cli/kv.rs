//! `pointsman kv …`: what lies in the KV cache of a running host, and to give some of it up.

use axum::http::Method;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::operate::{Admin, checked};

#[derive(Debug, Args)]
pub(super) struct KvArgs {
    #[command(subcommand)]
    command: KvCommand,
    #[command(flatten)]
    admin: Admin,
}

#[derive(Debug, Subcommand)]
enum KvCommand {
    /// Show what each tier holds, what it gave, and how fast it is believed to be.
    Stat {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show the sessions that workers remember, and what is kept for a time.
    Held,
    /// Give up the blocks of a session, but those that others have too.
    Drop {
        /// Its id, as `held` shows it.
        session: String,
    },
    /// Give up everything in a tier that nobody uses.
    Flush {
        /// `hbm`, `host`, `disk`, or `remote`, of which only what is known of it is forgotten.
        tier: String,
    },
}

pub(super) async fn kv(args: KvArgs) -> anyhow::Result<()> {
    let client = args.admin.client()?;
    match args.command {
        KvCommand::Stat { json } => {
            let all = checked(client.get("/admin/v1/kv").await?)?;
            if json { println!("{all:#}") } else { stat(&all) }
        }
        KvCommand::Held => held(&checked(client.get("/admin/v1/kv/held").await?)?),
        KvCommand::Drop { session } => {
            let path = format!("/admin/v1/kv/sessions/{session}");
            let reply = checked(client.send(Method::DELETE, &path, "").await?)?;
            println!("{} blocks of session {session} are given up", reply["blocks"]);
        }
        KvCommand::Flush { tier } => {
            let body = json!({ "tier": tier }).to_string();
            checked(client.send(Method::POST, "/admin/v1/kv/flush", body).await?)?;
            println!("{tier} is empty");
        }
    }
    Ok(())
}

fn stat(all: &Value) {
    println!(
        "{:<10} {:>10} {:>10} {:>10} {:>10} {:>10} {:>12}",
        "tier", "blocks", "MiB", "kept", "hits", "evicted", "believed"
    );
    let block_mib = all["block_bytes"].as_f64().unwrap_or(0.0) / f64::from(1 << 20);
    let count = |value: &Value| value.as_u64().unwrap_or(0);
    for worker in all["hbm"].as_array().into_iter().flatten() {
        let blocks = count(&worker["in_use"]) + count(&worker["cached"]);
        println!(
            "{:<10} {:>10} {:>10.1} {:>10} {:>10} {:>10} {:>12}",
            worker["worker"].as_str().unwrap_or_default(),
            blocks,
            blocks as f64 * block_mib,
            count(&worker["kept"]),
            "",
            count(&worker["evictions"]),
            "",
        );
    }
    for tier in ["host", "disk", "remote"] {
        let own = &all[tier];
        if !own.is_object() {
            continue;
        }
        let evicted: u64 = own["evictions"].as_object().into_iter().flatten().map(|(_, n)| count(n)).sum();
        let speed = own["believed"]["bytes_per_s"].as_f64().unwrap_or(0.0) / 1e6;
        println!(
            "{tier:<10} {:>10} {:>10.1} {:>10} {:>10} {evicted:>10} {:>12}",
            count(&own["blocks"]),
            own["bytes"].as_f64().unwrap_or(0.0) / f64::from(1 << 20),
            count(&own["kept"]),
            count(&own["hits"]),
            format!("{speed:.0} MB/s"),
        );
        for problem in ["corrupt", "read_errors", "write_errors", "errors", "timeouts"] {
            if count(&own[problem]) > 0 {
                println!("{tier:<10} {problem}: {}", own[problem]);
            }
        }
        if let Some(error) = own["last_error"].as_str() {
            println!("{tier:<10} last error: {error}");
        }
    }
    let decisions = &all["decisions"];
    if decisions.is_object() {
        println!(
            "{} prompts waited for blocks; {} blocks decided to be fetched, {} to be computed; regret {:.1} ms, saved {:.1} ms",
            decisions["fetches"],
            decisions["fetch_blocks"],
            decisions["compute_blocks"],
            decisions["regret_us"].as_f64().unwrap_or(0.0) / 1e3,
            decisions["saved_us"].as_f64().unwrap_or(0.0) / 1e3,
        );
    }
}

fn held(all: &Value) {
    for worker in all["workers"].as_array().into_iter().flatten() {
        println!("{}", worker["worker"].as_str().unwrap_or_default());
        for session in worker["sessions"].as_array().into_iter().flatten() {
            println!(
                "  session {} of tenant {}: {} of {} blocks, idle for {:.1} s{}",
                session["session"].as_str().unwrap_or_default(),
                session["tenant"].as_str().unwrap_or_default(),
                session["resident"],
                session["blocks"],
                session["idle_ms"].as_f64().unwrap_or(0.0) / 1e3,
                if session["live"] == true { "" } else { ", over" },
            );
        }
        for pin in worker["pins"].as_array().into_iter().flatten() {
            println!(
                "  {} blocks of tenant {} kept until {} at priority {}",
                pin["blocks"],
                pin["tenant"].as_str().unwrap_or_default(),
                pin["until_ms"],
                pin["priority"],
            );
        }
    }
}
