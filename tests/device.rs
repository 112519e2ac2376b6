//! Devices: which one computes, what happens where it is not there, and what becomes of answers when it is lost.

use std::io::Read;
use std::process::{Command, Output};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use serde_json::{Value, json};
use serve::client::Client;

use crate::process::{command, serve_as, serving, signal};
use crate::support::{Host, PATIENCE, standin, user, with_model};

/// `pointsman` on a machine whose GPUs, if it has any, are hidden from it.
fn without_devices(mut command: Command) -> Command {
    command.env("CUDA_VISIBLE_DEVICES", "");
    command
}

/// A file with a configuration, and the folder that it lies in.
fn file(toml: &str) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().expect("there is a place for temporary files");
    let path = folder.path().join("pointsman.toml");
    std::fs::write(&path, toml).expect("it can be written");
    let path = path.to_str().expect("the path is UTF-8").to_owned();
    (folder, path)
}

fn run(args: &[&str]) -> Output {
    without_devices(command(args)).output().expect("the process starts")
}

/// A host in a process of its own, as it is asked a question: what it answers, its workers, and its log.
async fn asked(toml: &str, environment: impl FnOnce(Command) -> Command) -> (Value, Value, String) {
    let (_folder, path) = file(toml);
    let mut served = serve_as(environment(serving(&["--config", &path])));
    let body = with_model(json!({ "messages": user("hello"), "temperature": 0.0 }));
    let api = Client::new(format!("http://{}", served.api));
    let reply = tokio::time::timeout(PATIENCE, api.post("/v1/chat/completions", &body)).await;
    let reply = reply.expect("an answer comes").expect("the connection holds");
    assert_eq!(reply.status, 200, "{}", reply.json);
    let admin = Client::new(format!("http://{}", served.admin));
    let workers = admin.get("/admin/v1/workers").await.expect("the admin API answers").json;
    signal(&served.child, "-TERM");
    assert!(served.child.wait().expect("it ends").success());
    let mut log = String::new();
    served.child.stderr.take().expect("it is piped").read_to_string(&mut log).expect("a log is text");
    (reply.json, workers["workers"].clone(), log)
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_gpu_the_cpu_computes_and_the_log_says_why() {
    for device in ["\"cuda\"", "[\"cuda:0\", \"cuda:1\"]"] {
        let (answer, workers, log) = asked(&format!("[engine]\ndevice = {device}\n"), without_devices).await;
        assert_eq!(answer["choices"][0]["message"]["content"], HELLO, "{answer}");
        for worker in workers.as_array().expect("a list") {
            assert!(worker["device"].as_str().is_some_and(|name| name.starts_with("cpu")), "{worker}");
            assert_eq!(worker["healthy"], true);
        }
        let told: Vec<&str> = log.lines().filter(|line| line.contains("CPU computes instead")).collect();
        assert!(told.len() == 1 && told[0].contains("WARN") && told[0].contains("error="), "{log}");
        assert!(!log.contains("panicked"), "{log}");
    }
}

#[test]
fn a_gpu_that_is_required_and_not_there_stops_the_start() {
    let (_folder, path) = file("[engine]\ndevice = \"cuda:3\"\ndevice_required = true\n");
    let output = run(&["serve", "--config", &path]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{said}");
    for word in ["`engine.device`", "`engine.device_required`"] {
        assert!(said.contains(word), "`{word}` is missing in {said}");
    }
    assert!(!said.contains("panicked") || said.contains("assertion"), "{said}");
}

#[test]
fn devices_are_listed_or_it_is_said_why_there_are_none() {
    let output = run(&["devices"]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert!(said.contains("no CUDA device"), "{said}");
}

/// What the model says where the CPU computes it.
const HELLO: &str = "Hello! How can I help?";

/// Asks a host on the stand-in driver, with more settings of that; `None` where it cannot be built.
async fn asked_on_standin(toml: &str, settings: &[(&str, &str)]) -> Option<(Value, Value, String)> {
    let folder = standin::folder()?;
    let on_standin = |mut command: Command| {
        command.env("LD_LIBRARY_PATH", folder).envs(settings.iter().copied());
        command
    };
    Some(asked(toml, on_standin).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gpu_answers_as_the_cpu_does() {
    let toml = "[engine]\ndevice = [\"cuda:1\", \"cuda:0\"]\nworkers = 2\n[kv.host]\nmemory_mib = 64\n";
    let Some((answer, workers, log)) = asked_on_standin(toml, &[("STANDIN_DEVICES", "2")]).await else {
        return;
    };
    assert_eq!(answer["choices"][0]["message"]["content"], HELLO, "{answer}");
    for (worker, device) in workers.as_array().expect("a list").iter().zip(["cuda:1", "cuda:0"]) {
        assert!(worker["device"].as_str().is_some_and(|name| name.starts_with(device)), "{worker}");
        assert!(worker["pages"].as_u64().is_some_and(|pages| pages > 1000), "{worker}");
    }
    assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gpu_that_is_lost_while_it_answers_changes_no_answer() {
    // With the prompt, with a later token, with both, and once more when it is to be restarted. 719 stays until the context
    // is gone.
    for (faults, losses, attempts_in_vain) in [
        ("kernel sample:1:719", 1, 0),
        ("cuGraphLaunch:4:719", 1, 0),
        ("kernel sample:1:719,cuGraphLaunch:4:719", 2, 0),
        ("kernel sample:1:719,cuModuleLoadData:2:209", 1, 1),
    ] {
        let toml = "[engine]\ndevice = \"cuda\"\nworkers = 1\n";
        let Some((answer, workers, log)) = asked_on_standin(toml, &[("STANDIN_FAIL", faults)]).await else {
            return;
        };
        assert_eq!(answer["choices"][0]["message"]["content"], HELLO, "{faults}: {answer}\n{log}");
        let worker = &workers[0];
        let counts = ["executor_failures", "executor_restarts"].map(|count| worker[count].as_u64());
        assert_eq!((counts, &worker["healthy"]), ([Some(losses); 2], &json!(true)), "{faults}: {log}");
        let told = |words: &str| log.lines().filter(|line| line.contains(words)).collect::<Vec<_>>();
        let failed = told("executor failed");
        assert_eq!(failed.len() as u64, losses, "{faults}: {log}");
        assert!(failed[0].contains("cuda:0") && failed[0].contains("LAUNCH_FAILED"), "{log}");
        assert_eq!(told("no executor could be made").len(), attempts_in_vain, "{faults}: {log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_gpu_goes_on_where_one_was_lost() {
    let toml = "[engine]\ndevice = [\"cuda:0\", \"cuda:1\"]\nworkers = 2\n";
    let settings = [("STANDIN_DEVICES", "2"), ("STANDIN_FAIL", "cuGraphLaunch:4:719")];
    let Some((answer, workers, log)) = asked_on_standin(toml, &settings).await else { return };
    assert_eq!(answer["choices"][0]["message"]["content"], HELLO, "{answer}\n{log}");
    let sum = |count: &str| workers.as_array().into_iter().flatten().filter_map(|w| w[count].as_u64()).sum();
    // Whether the lost one is back by then is a matter of time.
    let counts: [u64; 2] = ["executor_failures", "sequences_moved"].map(sum);
    assert_eq!(counts, [1, 1], "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gpu_that_is_too_old_is_named_and_the_cpu_computes() {
    let toml = "[engine]\ndevice = \"cuda\"\n";
    let Some((answer, workers, log)) = asked_on_standin(toml, &[("STANDIN_CC", "7.5")]).await else { return };
    assert_eq!(answer["choices"][0]["message"]["content"], HELLO, "{answer}");
    assert!(workers[0]["device"].as_str().is_some_and(|name| name.starts_with("cpu")), "{workers}");
    let told: Vec<&str> = log.lines().filter(|line| line.contains("CPU computes instead")).collect();
    assert!(told.len() == 1 && told[0].contains("7.5") && told[0].contains("8.0 or newer"), "{log}");
}

/// Answers to some requests that come at once, in order. Who comes while there is no device comes again, as told.
async fn answers(host: &Host, requests: usize) -> Vec<Value> {
    let ask = async |number: usize| {
        let body = json!({
            "messages": user(&format!("{number} silver river stone ").repeat(20)),
            "max_tokens": 60,
            "temperature": if number.is_multiple_of(2) { 0.0 } else { 0.8 },
            "seed": number,
            "n": 1 + number % 2,
        });
        loop {
            let reply = host.chat(body.clone()).await;
            if reply.status == 200 {
                let choices = reply.json["choices"].as_array().cloned().unwrap_or_default();
                return choices.iter().map(|choice| choice["message"]["content"].clone()).collect();
            }
            assert_eq!(reply.status, 503, "{}", reply.json);
            assert_eq!(reply.header("retry-after"), "5", "{}", reply.json);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    futures_util::future::join_all((0..requests).map(ask)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_the_same_whatever_devices_are_lost() {
    let toml = |more: &str| format!("[engine]\ndevice = \"sim\"\n{more}\n");
    let steady = Host::start(&toml("")).await;
    let expected = answers(&steady, 12).await;
    steady.stop().await;
    for more in ["", "roles = [\"prefill\", \"decode\"]\n", "workers = 1\n"] {
        let host = Host::start(&toml(&format!("{more}[engine.sim]\nlost_after_steps = 100"))).await;
        for _ in 0..2 {
            assert_eq!(answers(&host, 12).await, expected, "{more}");
        }
        let failures = host.metric("pointsman_executor_failures_total").await;
        assert!(failures > 0, "{more}");
        // One that was lost with nobody there is replaced in a moment.
        host.until("all executors are replaced", || async {
            host.metric("pointsman_executor_restarts_total").await
                == host.metric("pointsman_executor_failures_total").await
        })
        .await;
        assert_eq!(host.metric("pointsman_worker_healthy").await as usize, host.server.app.workers.len());
        host.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_sent_to_a_worker_without_device() {
    let host = Host::simulated("").await;
    let workers = &host.server.app.workers;
    workers[0].load.unhealthy.store(true, Relaxed);
    for number in 0..6 {
        let body = json!({ "messages": user(&format!("{number}")), "max_tokens": 2 });
        let reply = host.chat_with(&[], body).await;
        assert_eq!((reply.status(), reply.header("x-pointsman-worker")), ("200", "worker-1"));
    }
    workers[1].load.unhealthy.store(true, Relaxed);
    let refused = host.chat_with(&[], json!({ "messages": user("x") })).await;
    assert_eq!((refused.status(), refused.header("retry-after")), ("503", "5"), "{}", refused.json);
    assert_eq!(refused.json["error"]["code"], "unavailable", "{}", refused.json);
    let message = refused.json["error"]["message"].as_str().unwrap_or_default();
    assert!(message.contains("devices failed"), "{message}");
    let body = json!({ "messages": user("x"), "max_tokens": 2 });
    let refused = host.post_with("/v1/messages", &[("anthropic-version", "2023-06-01")], body).await;
    assert_eq!((refused.status(), &refused.json["error"]["type"]), ("529", &json!("overloaded_error")));
    let ready = host.raw(b"GET /ready HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(ready.starts_with("HTTP/1.1 503") && ready.contains("no worker can compute"), "{ready}");
    workers.iter().for_each(|worker| worker.load.unhealthy.store(false, Relaxed));
    assert_eq!(host.chat(json!({ "messages": user("x"), "max_tokens": 2 })).await.status, 200);
    assert_eq!(host.server.app.requests_running(), 0);
    host.stop().await;
}
