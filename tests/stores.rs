//! What plugins keep in their store outlives the host.

use serde_json::json;

use crate::support::{Host, component, user};

async fn ask_once(host: &Host) {
    let reply = host.chat(json!({ "messages": user("hello"), "max_tokens": 1 })).await;
    assert_eq!(reply.status, 200, "{}", reply.json);
}

fn keeping(folder: &str) -> String {
    let source = component("keeper");
    format!(
        "[state]\nfolder = {folder:?}\n[chain]\nscore = [{{ plugin = \"keeper\" }}]\n\
         [plugins.keeper]\nsource = {source:?}\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugins_store_survives_a_restart_of_the_host() {
    let folder = tempfile::tempdir().expect("a folder of its own");
    let folder = folder.path().join("state");
    let toml = keeping(&folder.display().to_string());
    for started in 0..3u32 {
        let host = Host::simulated(&toml).await;
        ask_once(&host).await;
        ask_once(&host).await;
        assert_eq!(host.said("keeper", "stored").await, f64::from(2 * started + 2));
        assert_eq!(host.said("keeper", "count").await, 2.0, "its state lasts as long as the host");
        host.stop().await;
    }
    let entries = std::fs::read_dir(&folder).expect("the host made it").flatten();
    let files = entries.filter(|entry| entry.path().is_file()).count();
    assert_eq!(files, 1, "one plugin has something to keep");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_without_a_folder_ends_with_the_host() {
    for _ in 0..2 {
        let host = Host::simulated(&keeping("")).await;
        ask_once(&host).await;
        assert_eq!(host.said("keeper", "stored").await, 1.0);
        host.stop().await;
    }
}
