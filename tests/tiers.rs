//! KV that fell out of a worker's memory comes back from the tiers below; what they lose is computed again.

use std::path::Path;

use serde_json::{Value, json};
use serve::client::{Client, Reply};

use crate::process::{self, Served};
use crate::support::{Host, user};

/// A worker with room for one of these prompts, so that the next one takes its place.
const SMALL: &str = "[engine]\nworkers = 1\n[kv]\nmemory_mib_per_worker = 1\n";

fn long(of: &str) -> Value {
    user(&format!("{of} river stone ").repeat(90))
}

fn asked(messages: &Value) -> Value {
    json!({ "model": "tiny-agent", "messages": messages, "max_tokens": 8, "temperature": 0.0 })
}

fn count(reply: &Value, name: &str) -> u64 {
    let usage = &reply["usage"];
    let field =
        if name == "cached" { &usage["prompt_tokens_details"]["cached_tokens"] } else { &usage[name] };
    field.as_u64().expect("a count")
}

/// Whole blocks of a prompt.
fn blocks(reply: &Value) -> u64 {
    count(reply, "prompt_tokens") / 16
}

fn text(reply: &Value) -> &Value {
    &reply["choices"][0]["message"]["content"]
}

/// All whole blocks of a prompt came from somewhere, and the answer is the one that it had at first.
fn found(first: &Value, again: &Value) {
    let prompt = count(first, "prompt_tokens");
    assert!((512..1024).contains(&prompt), "{prompt} tokens fill a worker by more than half");
    assert!(count(again, "cached") + 17 > prompt, "{} of {prompt} tokens were found", count(again, "cached"));
    assert_eq!(text(again), text(first));
}

/// A host as a process of its own, which can be killed.
struct Killable {
    served: Served,
    client: Client,
}

impl Killable {
    async fn start(config: &Path) -> Self {
        let path = config.to_str().expect("the path is UTF-8").to_owned();
        let served = tokio::task::spawn_blocking(move || process::serve(&["--config", &path])).await;
        let served = served.expect("no panic");
        let client = Client::new(format!("http://{}", served.api));
        Self { served, client }
    }

    async fn chat(&self, messages: &Value) -> Value {
        let reply: Reply =
            self.client.post("/v1/chat/completions", &asked(messages)).await.expect("an answer");
        assert_eq!(reply.status, 200, "{}", reply.json);
        reply.json
    }

    /// Waits until so many blocks are on the disk.
    async fn synced(&self, blocks: u64) {
        let admin = Client::new(format!("http://{}", self.served.admin));
        for _ in 0..2000 {
            let disk = admin.get("/admin/v1/kv").await.expect("the host answers").json["disk"].clone();
            if disk["writes"].as_u64() >= Some(blocks) && disk["unsynced"] == 0 {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        panic!("{blocks} blocks never came to the disk");
    }

    /// Without a word of warning.
    fn kill(mut self) {
        self.served.child.kill().expect("it is there");
        self.served.child.wait().expect("it ended");
    }
}

async fn chat(host: &Host, messages: &Value) -> Value {
    let reply = host.chat(asked(messages)).await;
    assert_eq!(reply.status, 200, "{}", reply.json);
    reply.json
}

async fn kv(host: &Host) -> Value {
    host.admin.get("/admin/v1/kv").await.expect("the host answers").json
}

/// Waits until blocks of so many prompts were copied down.
async fn saved(host: &Host, tier: &str, field: &str, blocks: u64) {
    host.until("blocks are copied down", async || kv(host).await[tier][field].as_u64() >= Some(blocks)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_that_fell_out_of_a_workers_memory_comes_back_from_the_hosts() {
    for write in ["through", "back"] {
        let host = Host::start(&format!("{SMALL}[kv.host]\nmemory_mib = 64\nwrite = \"{write}\"\n")).await;
        let first = chat(&host, &long("amber")).await;
        saved(&host, "host", "saved", blocks(&first)).await;
        for of in ["basalt", "cedar"] {
            chat(&host, &long(of)).await;
        }
        let again = chat(&host, &long("amber")).await;
        found(&first, &again);
        assert!(kv(&host).await["host"]["loaded"].as_u64() >= Some(32), "{}", kv(&host).await);
        host.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_tier_it_is_computed_again() {
    let host = Host::start(SMALL).await;
    let first = chat(&host, &long("amber")).await;
    for of in ["basalt", "cedar"] {
        chat(&host, &long(of)).await;
    }
    let again = chat(&host, &long("amber")).await;
    assert!(count(&again, "cached") < 64, "nothing else kept it");
    assert_eq!(text(&again), text(&first));
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_on_disk_survive_a_kill() {
    let folder = tempfile::tempdir().expect("there is a place for temporary files");
    let file = folder.path().join("pointsman.toml");
    std::fs::write(&file, format!("{SMALL}[kv.disk]\nfolder = \"blocks\"\nsync_ms = 5\n"))
        .expect("it is written");
    let host = Killable::start(&file).await;
    let first = host.chat(&long("amber")).await;
    host.synced(blocks(&first)).await;
    host.kill();
    let host = Killable::start(&file).await;
    let again = host.chat(&long("amber")).await;
    found(&first, &again);
    host.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_disk_corrupts_is_computed_again() {
    let folder = tempfile::tempdir().expect("there is a place for temporary files");
    let blocks = folder.path().join("blocks");
    let config = format!("{SMALL}[kv.disk]\nfolder = {blocks:?}\n");
    let host = Host::start(&config).await;
    let first = chat(&host, &long("amber")).await;
    saved(&host, "disk", "writes", 32).await;
    host.stop().await;
    for entry in std::fs::read_dir(&blocks).expect("the folder is there").flatten() {
        let path = entry.path();
        if !path.is_file() || entry.metadata().map_or(0, |meta| meta.len()) < 1 << 16 {
            continue;
        }
        let mut bytes = std::fs::read(&path).expect("a slab is read");
        // A bit of each block, behind its header.
        bytes.iter_mut().skip(5000).step_by(4096).for_each(|byte| *byte ^= 1);
        std::fs::write(&path, bytes).expect("a slab is written");
    }
    let host = Host::start(&config).await;
    let again = chat(&host, &long("amber")).await;
    assert_eq!(text(&again), text(&first));
    assert!(count(&again, "cached") < 64, "a damaged block is not served");
    let disk = kv(&host).await["disk"].clone();
    assert!(disk["corrupt"].as_u64() > Some(0) || disk["blocks"].as_u64() < Some(32), "{disk}");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_share_a_store() {
    let folder = tempfile::tempdir().expect("there is a place for temporary files");
    let config = format!("{SMALL}[kv.remote]\nurl = \"file://{}\"\n", folder.path().display());
    let one = Host::start(&config).await;
    let first = chat(&one, &long("amber")).await;
    saved(&one, "remote", "puts", blocks(&first)).await;
    let other = Host::start(&config).await;
    let again = chat(&other, &long("amber")).await;
    found(&first, &again);
    one.stop().await;
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_not_there_costs_nothing_but_hits() {
    let config = format!("{SMALL}[kv.remote]\nurl = \"redis://127.0.0.1:1/0\"\nread_timeout_ms = 200\n");
    let host = Host::start(&config).await;
    let first = chat(&host, &long("amber")).await;
    for of in ["basalt", "cedar"] {
        chat(&host, &long(of)).await;
    }
    let again = chat(&host, &long("amber")).await;
    assert_eq!(text(&again), text(&first));
    let remote = kv(&host).await["remote"].clone();
    let failed = |name: &str| remote[name].as_u64().unwrap_or(0);
    assert!(failed("errors") + failed("timeouts") > 0, "{remote}");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_folder_belongs_to_one_host() {
    let folder = tempfile::tempdir().expect("there is a place for temporary files");
    let file = folder.path().join("pointsman.toml");
    std::fs::write(&file, format!("{SMALL}[kv.disk]\nfolder = \"blocks\"\n")).expect("it is written");
    let host = Killable::start(&file).await;
    let path = file.to_str().expect("the path is UTF-8").to_owned();
    let args = ["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--config", &path];
    process::refused(&args, &["kv.disk", "blocks", "in use by another process"]);
    host.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_settings_name_their_field() {
    for (text, words) in [
        ("[kv.disk]\nthreads = 0", ["kv.disk.threads", "1 to 64"]),
        ("[kv.disk]\nsize_mib_max = 0", ["kv.disk.size_mib_max", "at least 1"]),
        ("[kv.host]\nwrite = \"never\"", ["write", "through"]),
        ("[kv.remote]\nin_flight_max = 0", ["kv.remote.in_flight_max", "at least 1"]),
    ] {
        let error = serve::config::Config::parse(text).expect_err("it is refused").to_string();
        for word in words {
            assert!(error.contains(word), "{text}: `{word}` is missing in {error}");
        }
    }
    let folder = tempfile::tempdir().expect("there is a place for temporary files");
    let file = folder.path().join("pointsman.toml");
    std::fs::write(&file, "[kv.remote]\nurl = \"ftp://somewhere/\"\n").expect("it is written");
    let path = file.to_str().expect("the path is UTF-8").to_owned();
    let args = ["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--config", &path];
    process::refused(&args, &["kv.remote", "url", "s3://"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_see_and_empty_the_tiers() {
    let host = Host::start(&format!("{SMALL}[kv.host]\nmemory_mib = 64\n")).await;
    chat(&host, &long("amber")).await;
    saved(&host, "host", "saved", 32).await;
    let before = kv(&host).await;
    assert!(before["hbm"][0]["cached"].as_u64() >= Some(32), "{before}");
    assert!(before["host"]["blocks"].as_u64() >= Some(32), "{before}");
    for tier in ["hbm", "host"] {
        let flushed =
            host.admin.post("/admin/v1/kv/flush", &json!({ "tier": tier })).await.expect("an answer");
        assert_eq!(flushed.status, 200, "{}", flushed.json);
    }
    host.until("a step later it shows", async || kv(&host).await["host"]["blocks"] == 0).await;
    let again = chat(&host, &long("amber")).await;
    assert!(count(&again, "cached") < 64, "everything is gone");
    for (tier, word) in [("disk", "not configured"), ("tape", "`hbm`, `host`, `disk` or `remote`")] {
        let refused =
            host.admin.post("/admin/v1/kv/flush", &json!({ "tier": tier })).await.expect("an answer");
        assert_eq!(refused.status, 400);
        assert!(refused.json.to_string().contains(word), "{}", refused.json);
    }
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_shows_and_empties_them() {
    let folder = tempfile::tempdir().expect("there is a place for temporary files");
    let file = folder.path().join("pointsman.toml");
    let retaining = "[chain]\nhints = [\"hints-agent\"]\nretain = \"retain-cache-control\"\n";
    std::fs::write(&file, format!("{SMALL}[kv.disk]\nfolder = \"blocks\"\nsync_ms = 5\n{retaining}"))
        .expect("it is written");
    let host = Killable::start(&file).await;
    let mut body = asked(&long("amber"));
    body["nvext"] = json!({ "session_control": { "session_id": "river" } });
    let reply = host.client.post("/v1/chat/completions", &body).await.expect("an answer");
    host.synced(blocks(&reply.json)).await;
    let admin = format!("http://{}", host.served.admin);
    let said = |args: &[&str]| {
        let all = [&["kv"], args, &["--admin", &admin]].concat();
        let output = process::run(&all);
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let stat = said(&["stat"]);
    for word in ["worker-0", "host", "disk", "believed", "MB/s"] {
        assert!(stat.contains(word), "`{word}` is missing in {stat}");
    }
    assert!(said(&["stat", "--json"]).contains("\"fetch_blocks\""));
    let held = said(&["held"]);
    let session =
        held.split("session ").nth(1).and_then(|rest| rest.split(' ').next()).expect("a session is held");
    assert!(said(&["drop", session]).contains("are given up"), "{held}");
    assert!(!said(&["held"]).contains(session));
    assert!(said(&["flush", "disk"]).contains("disk is empty"));
    process::refused(&["kv", "drop", session, "--admin", &admin], &["no worker remembers"]);
    host.kill();
}
