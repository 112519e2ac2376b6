//! Decision logs through the whole host: recorded under load and swaps, replayed by the command line.

use std::path::Path;
use std::sync::Arc;

use axum::http::Method;
use serde_json::{Value, json};

use crate::process::{refused, run};
use crate::support::{Host, component, component_bytes, user};

/// A word of the prompts that no log may have.
const SECRET: &str = "xylophone";

fn recorded(folder: &Path, more: &str) -> String {
    format!(
        "[record]\nfolder = {:?}\nfile_mib_max = 1\ntotal_mib_max = 16\n{more}",
        folder.display().to_string()
    )
}

/// Requests of a few sessions, side by side.
async fn load(host: &Arc<Host>, clients: u64, requests: u64) {
    let mut running = tokio::task::JoinSet::new();
    for client in 0..clients {
        let host = Arc::clone(host);
        running.spawn(async move {
            for request in 0..requests {
                let text = format!("{SECRET} {client} says {}", "again and ".repeat(request as usize + 1));
                let reply = host
                    .chat(json!({
                        "messages": user(&text),
                        "max_tokens": 4 + request,
                        "prompt_cache_key": format!("session-{client}"),
                        "nvext": { "agent_hints": { "priority": client } },
                    }))
                    .await;
                assert_eq!(reply.status, 200, "{}", reply.json);
            }
        });
    }
    while let Some(client) = running.join_next().await {
        client.expect("no request failed");
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("the path is UTF-8")
}

#[tokio::test(flavor = "multi_thread")]
async fn decisions_under_load_and_swaps_are_replayed_bit_for_bit() {
    let folder = tempfile::tempdir().expect("there is a place for temporary files");
    let log = folder.path().join("log");
    // More clients than workers have places: some of them wait beside each other, and their order is decided.
    let crowded = "[engine.sim]\nstep_us = 2000.0\n[schedule]\nstep_rows_max = 1\n";
    let host = Arc::new(Host::simulated(&recorded(&log, crowded)).await);
    load(&host, 8, 6).await;
    let other = component_bytes("first-plugin");
    let swap = host.admin.send(Method::PUT, "/admin/v1/plugins/route-prefix-affinity", other);
    let (swapped, ()) = tokio::join!(swap, load(&host, 4, 6));
    let swapped = swapped.expect("the admin API answers");
    assert_eq!(swapped.status, 200, "{}", swapped.json);
    load(&host, 2, 4).await;

    let metrics = host.raw(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(metrics.contains("pointsman_record_active 1"), "{metrics}");
    let stopped = host.admin.send(Method::DELETE, "/admin/v1/record", "").await.expect("it answers");
    assert_eq!(stopped.status, 200, "{}", stopped.json);
    assert_eq!((&stopped.json["on"], &stopped.json["dropped"]), (&json!(false), &json!(0)));
    let records = stopped.json["records"].as_u64().expect("a number");
    let metrics = host.raw(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(metrics.contains(&format!("pointsman_record_records_total {records}")), "{metrics}");
    Arc::into_inner(host).expect("all clients are gone").stop().await;

    for file in std::fs::read_dir(&log).expect("it is there").flatten().filter(|file| file.path().is_file()) {
        let bytes = std::fs::read(file.path()).expect("it can be read");
        assert!(!bytes.windows(SECRET.len()).any(|part| part == SECRET.as_bytes()), "a prompt is in a log");
    }
    let json = folder.path().join("table.json");
    let output = run(&["replay", "--log", text(&log), "--expect-identical", "--json", text(&json)]);
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("every answer is the recorded one, bit for bit"), "{said}");
    let table: Value =
        serde_json::from_slice(&std::fs::read(&json).expect("it is there")).expect("it is JSON");
    let comparison = &table["comparison"];
    assert_eq!(table["records"], records);
    assert_eq!(comparison["route"]["decisions"], 8 * 6 + 4 * 6 + 2 * 4);
    assert_eq!(comparison["route"]["identical"], comparison["route"]["decisions"]);
    assert!(comparison["schedule"]["decisions"].as_u64() > Some(0), "{table}");

    let output = run(&["simulate", "--trace", text(&log), "--workers", "2", "--json", text(&json)]);
    assert!(output.status.success(), "{output:?}");
    let told: Value =
        serde_json::from_slice(&std::fs::read(&json).expect("it is there")).expect("it is JSON");
    let summary = &told["summaries"][0];
    assert_eq!(summary["answered"], comparison["route"]["decisions"], "its requests are simulated");
    let outputs: u64 =
        (0..6).map(|request| (8 + 4) * (4 + request)).sum::<u64>() + (0..4).map(|r| 2 * (4 + r)).sum::<u64>();
    assert_eq!(summary["output_tokens"], outputs, "answers are as long as they were");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_scorer_is_compared_and_a_broken_one_fails() {
    let folder = tempfile::tempdir().expect("there is a place for temporary files");
    let log = folder.path().join("log");
    let host = Arc::new(Host::simulated(&recorded(&log, "")).await);
    load(&host, 4, 8).await;
    Arc::into_inner(host).expect("all clients are gone").stop().await;

    let first = format!("route-prefix-affinity={}", text(&component("first-plugin")));
    let output = run(&["replay", "--log", text(&log), "--plugin", &first]);
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("counterfactual") && said.contains("broken laws: 0"), "{said}");
    refused(
        &["replay", "--log", text(&log), "--plugin", &first, "--expect-identical"],
        &["answers are not those of the log"],
    );
    refused(
        &["replay", "--log", text(&log), "--plugin", "route-prefix-affinity=/dev/null"],
        &["route-prefix-affinity", "compiled"],
    );
    refused(&["replay", "--log", text(&log), "--plugin", "nonsense"], &["NAME=FILE.wasm"]);
    refused(&["replay", "--log", "/no/such/log"], &["/no/such/log"]);

    let chain = folder.path().join("chain.toml");
    let faulty = |fault: &str| crate::support::faulty_scorer(fault, "");
    std::fs::write(&chain, faulty("ok")).expect("it can be written");
    let output = run(&["replay", "--log", text(&log), "--chain", text(&chain)]);
    assert!(output.status.success(), "{output:?}");
    std::fs::write(&chain, faulty("trap")).expect("it can be written");
    refused(&["replay", "--log", text(&log), "--chain", text(&chain)], &["broke a law"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_configured_folder_is_written_to() {
    let host = Host::simulated("").await;
    let reply = host.admin.send(Method::POST, "/admin/v1/record", "").await.expect("it answers");
    assert_eq!(reply.status, 409, "{}", reply.json);
    assert!(reply.json["error"]["message"].as_str().is_some_and(|it| it.contains("record.folder")));
    host.stop().await;

    let folder = tempfile::tempdir().expect("there is a place for temporary files");
    let host = Host::simulated(&recorded(folder.path(), "at_start = false\n")).await;
    for (body, status) in [
        (json!({ "folder": "/tmp" }), 400),
        (json!({ "folder": "../up" }), 400),
        (json!({ "path": "x" }), 400),
        (json!({ "folder": "below" }), 200),
        (json!({}), 409),
    ] {
        let reply = host.admin.send(Method::POST, "/admin/v1/record", body.to_string()).await;
        assert_eq!(reply.expect("it answers").status, status, "{body}");
    }
    let reply = host.admin.get("/admin/v1/record").await.expect("it answers");
    assert_eq!(reply.json["on"], true);
    assert_eq!(reply.json["folder"], json!(folder.path().join("below")));
    host.stop().await;
}
