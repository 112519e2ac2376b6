//! What was answered is there after the process was killed, at whatever moment.

use serde_json::{Value, json};
use serve::client::Client;

use crate::process;

/// Chosen: each kills at another moment of the database's own work; a start takes a second or two.
const ROUNDS: usize = 6;

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_survives_being_killed_after_each_answer() {
    let folder = tempfile::tempdir().expect("there is a place for temporary files");
    let file = folder.path().join("pointsman.toml");
    std::fs::write(&file, "[engine]\ndevice = \"sim\"\n[state]\nfolder = \"state\"\n")
        .expect("it can be written");
    let path = file.to_str().expect("the path is UTF-8").to_owned();
    let mut last = Value::Null;
    for round in 0..ROUNDS {
        let path = path.clone();
        let started = tokio::task::spawn_blocking(move || process::serve(&["--config", &path])).await;
        let mut served = started.expect("no panic");
        let client = Client::new(format!("http://{}", served.api));
        for turn in 0..=round {
            let body = json!({ "model": "tiny-agent", "input": format!("{round} {turn}"), "max_output_tokens": 3,
                "previous_response_id": last });
            let reply = client.post("/v1/responses", &body).await.expect("the host answers");
            assert_eq!(reply.status, 200, "round {round}, turn {turn}: {}", reply.json);
            last = reply.json["id"].clone();
        }
        // No word of warning, and no time after the answer.
        served.child.kill().expect("it is there");
        served.child.wait().expect("it ended");
    }
    let served = tokio::task::spawn_blocking(move || process::serve(&["--config", &path])).await;
    let mut served = served.expect("no panic");
    let client = Client::new(format!("http://{}", served.api));
    let items = format!("/v1/responses/{}/input_items?limit=100", last.as_str().expect("an id"));
    let listed = client.get(&items).await.expect("the host answers").json;
    let turns = ROUNDS * (ROUNDS + 1) / 2;
    let asked = listed["data"].as_array().into_iter().flatten().filter(|item| item["role"] == "user").count();
    assert_eq!(asked, turns, "{listed}");
    served.child.kill().expect("it is there");
    served.child.wait().expect("it ended");
}
