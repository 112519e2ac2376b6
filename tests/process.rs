//! The command line as a process: arguments, signals, exit codes.
//!
//! The test binary runs itself as `pointsman`: the same `main`, in a process of its own.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use crate::support::component;

const ARGS: &str = "POINTSMAN_TEST_ARGS";

/// What the child process runs; without arguments from a parent it is not a test at all.
#[test]
fn pointsman() {
    if let Ok(args) = std::env::var(ARGS) {
        let args = std::iter::once("pointsman").chain(args.split('\n')).map(Into::into);
        assert_eq!(serve::cli::main(args), std::process::ExitCode::SUCCESS);
    }
}

/// `pointsman` with these arguments.
pub(crate) fn command(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("a test knows its own path"));
    command
        .args(["--exact", "process::pointsman", "--nocapture"])
        .env(ARGS, args.join("\n"))
        .env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR"))
        .env_remove("RUST_LOG");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

pub(crate) fn run(args: &[&str]) -> Output {
    command(args).output().expect("the process starts")
}

pub(crate) fn refused(args: &[&str], words: &[&str]) {
    let output = run(args);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{args:?} succeeded");
    for word in words {
        assert!(said.contains(word), "{args:?}: `{word}` is missing in {said}");
    }
}

/// A serving child and its two addresses.
pub(crate) struct Served {
    pub(crate) child: Child,
    /// Held open: a process that prints into a closed pipe fails.
    _stdout: std::io::Lines<BufReader<std::process::ChildStdout>>,
    pub(crate) api: String,
    pub(crate) admin: String,
}

pub(crate) fn serve(more: &[&str]) -> Served {
    serve_as(serving(more))
}

/// `pointsman serve` on ports of its own, with more arguments.
pub(crate) fn serving(more: &[&str]) -> Command {
    let mut args = vec!["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"];
    args.extend(more);
    command(&args)
}

pub(crate) fn serve_as(mut command: Command) -> Served {
    let mut child = command.spawn().expect("the process starts");
    let mut lines = BufReader::new(child.stdout.take().expect("stdout is piped")).lines();
    let mut address = |name: &str| {
        let line =
            lines.find_map(|l| l.ok().filter(|l| l.starts_with(name))).expect("the addresses are printed");
        line.split("://").nth(1).and_then(|a| a.split('/').next()).expect("a line has an address").to_owned()
    };
    let (api, admin) = (address("api"), address("admin"));
    Served { child, _stdout: lines, api, admin }
}

pub(crate) fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill").args([name, &child.id().to_string()]).status().expect("kill is there");
    assert!(sent.success());
}

#[test]
fn a_configuration_is_checked() {
    let folder = tempfile::tempdir().expect("there is a place for temporary files");
    let file = folder.path().join("pointsman.toml");
    let path = file.to_str().expect("the path is UTF-8");
    std::fs::write(&file, serve::config::REFERENCE).expect("it can be written");
    let output = run(&["config", "check", path]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("ok (6 plugins)"), "{output:?}");
    std::fs::write(&file, "[kv]\npages = 3").expect("it can be written");
    refused(&["config", "check", path], &["unknown field `pages`", "block_tokens"]);
    refused(&["config", "check", "/no/such/file.toml"], &["/no/such/file.toml"]);
}

#[test]
fn sigterm_lets_a_running_stream_end() {
    let folder = tempfile::tempdir().expect("there is a place for temporary files");
    let file = folder.path().join("pointsman.toml");
    let text = "[engine]\ndevice = \"sim\"\n[engine.sim]\nstep_us = 10000.0\n";
    std::fs::write(&file, text).expect("it can be written");
    let mut served = serve(&["--config", file.to_str().expect("the path is UTF-8")]);
    let mut socket = TcpStream::connect(&served.api).expect("the host listens");
    let body = "{\"model\":\"tiny-agent\",\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"max_tokens\":60,\"stream\":true}";
    let length = body.len();
    write!(socket, "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n{body}")
        .expect("the host reads");
    let mut first = [0; 64];
    socket.read_exact(&mut first).expect("tokens come");
    signal(&served.child, "-TERM");
    let mut rest = String::new();
    socket.read_to_string(&mut rest).expect("the stream goes on");
    assert!(rest.contains("[DONE]"), "{rest}");
    assert!(served.child.wait().expect("it ends").success());
    assert!(TcpStream::connect(&served.api).is_err());
}

#[test]
fn sighup_makes_the_file_a_new_generation() {
    let folder = tempfile::tempdir().expect("there is a place for temporary files");
    let file = folder.path().join("pointsman.toml");
    std::fs::write(&file, "[engine]\ndevice = \"sim\"\n").expect("it can be written");
    let mut served = serve(&["--config", file.to_str().expect("the path is UTF-8")]);
    signal(&served.child, "-HUP");
    let admin = format!("http://{}", served.admin);
    let reloaded = (0..200).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(50));
        let output = run(&["generations", "--admin", &admin]);
        String::from_utf8_lossy(&output.stdout).contains("\"active\": 2")
    });
    assert!(reloaded, "the host did not reload");
    signal(&served.child, "-TERM");
    assert!(served.child.wait().expect("it ends").success());
}

#[test]
fn plugins_are_listed_swapped_and_rolled_back() {
    let mut served = serve(&[]);
    let admin = format!("http://{}", served.admin);
    let say = |args: &[&str]| {
        let output = run(&[args, &["--admin", &admin]].concat());
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert!(say(&["plugin", "list"]).contains("route-prefix-affinity"));
    let first = component("first-plugin");
    let first = first.to_str().expect("the path is UTF-8");
    assert!(say(&["plugin", "swap", "route-prefix-affinity", first]).contains("generation 2 is active"));
    assert!(say(&["plugin", "rollback"]).contains("is active"));
    assert!(say(&["generations"]).contains("active"));
    refused(&["plugin", "swap", "route-prefix-affinity", "/dev/null", "--admin", &admin], &["compiled"]);
    refused(&["plugin", "list", "--admin", "http://127.0.0.1:9"], &["127.0.0.1:9", "refused"]);
    signal(&served.child, "-INT");
    assert!(served.child.wait().expect("it ends").success());
}

#[test]
fn a_rollout_is_led_from_a_terminal() {
    let mut served = serve(&[]);
    let admin = format!("http://{}", served.admin);
    let file = component("route-prefix-affinity");
    let file = file.to_str().expect("a path is text");
    let say = |args: &[&str], words: &[&str]| {
        let output = run(&[args, &["--admin", &admin]].concat());
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        for word in words {
            assert!(said.contains(word), "{args:?}: `{word}` is missing in {said}");
        }
    };
    say(&["rollout", "status"], &["active generation 1", "no rollout"]);
    say(&["rollout", "shadow", "route-prefix-affinity", file], &["generation 2 is shadow"]);
    say(&["rollout", "canary", "--percent", "12.5"], &["generation 2 is canary"]);
    say(&["rollout", "status"], &["generation 2 is canary at 12.5 % beside 1", "0 by the candidate"]);
    say(&["rollout", "abort"], &["generation 2 is aborted"]);
    let narrow = ["--tenant", "acme*", "--header", "x-pointsman-ring=early", "--percent", "5"];
    let begin = ["rollout", "canary", "route-prefix-affinity", file];
    say(&[begin.as_slice(), &narrow].concat(), &["generation 3 is canary"]);
    say(
        &["rollout", "status", "--json"],
        &["\"acme*\"", "\"x-pointsman-ring\": \"early\"", "\"percent\": 5.0"],
    );
    refused(&["rollout", "canary", "--percent", "0", "--admin", &admin], &["`percent`", "above 0"]);
    refused(&["plugin", "rollback", "--admin", &admin], &["generation 3 (canary)", "abort it"]);
    say(&["rollout", "promote"], &["generation 3 is promoted"]);
    say(&["generations", "diff", "1", "3"], &["\"changed\"", "\"from\": 1"]);
    refused(&["generations", "diff", "1", "9", "--admin", &admin], &["generation 9 is not remembered"]);
    signal(&served.child, "-TERM");
    assert!(served.child.wait().expect("it ends").success());
}

#[test]
fn a_recording_is_started_shown_and_stopped() {
    let folder = tempfile::tempdir().expect("there is a place for temporary files");
    let file = folder.path().join("pointsman.toml");
    let text = "[engine]\ndevice = \"sim\"\n[record]\nfolder = \"logs\"\nat_start = false\n";
    std::fs::write(&file, text).expect("it can be written");
    let mut served = serve(&["--config", file.to_str().expect("the path is UTF-8")]);
    let admin = format!("http://{}", served.admin);
    let say = |args: &[&str]| {
        let output = run(&[args, &["--admin", &admin]].concat());
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert!(say(&["record", "status"]).contains("not recording"));
    assert!(say(&["record", "start", "--folder", "one"]).contains("recording into"));
    refused(&["record", "start", "--admin", &admin], &["already", "one"]);
    assert!(say(&["record", "status"]).contains("recording into"));
    let body =
        "{\"model\":\"tiny-agent\",\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"max_tokens\":4}";
    let mut socket = TcpStream::connect(&served.api).expect("the host listens");
    let length = body.len();
    write!(
        socket,
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    )
    .expect("the host reads");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).expect("it answers");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(say(&["record", "stop"]).contains("recorded into"));
    refused(&["record", "stop", "--admin", &admin], &["no decisions are being recorded"]);
    refused(&["record", "start", "--folder", "../two", "--admin", &admin], &["below `record.folder`"]);
    signal(&served.child, "-TERM");
    assert!(served.child.wait().expect("it ends").success());
    let log = folder.path().join("logs/one");
    let output = run(&["replay", "--expect-identical", "--log", log.to_str().expect("the path is UTF-8")]);
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("bit for bit"), "{output:?}");
}

/// A copy of the embedded model's folder, with one file changed.
fn model_with(change: impl Fn(&Path)) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("there is a place for temporary files");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/models/tiny-agent");
    for file in [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        "model.safetensors",
    ] {
        std::fs::copy(source.join(file), folder.path().join(file)).expect("the model can be copied");
    }
    change(folder.path());
    folder
}

#[test]
fn a_model_that_cannot_be_served_is_named() {
    let edit = |from: &'static str, to: &'static str| {
        move |folder: &Path| {
            let path = folder.join("config.json");
            let text = std::fs::read_to_string(&path).expect("it can be read");
            assert!(text.contains(from), "{from}");
            std::fs::write(path, text.replace(from, to)).expect("it can be written");
        }
    };
    let remove = |file: &'static str| {
        move |folder: &Path| std::fs::remove_file(folder.join(file)).expect("it is there")
    };
    let truncate = |folder: &Path| {
        let file =
            std::fs::File::options().write(true).open(folder.join("model.safetensors")).expect("it is there");
        file.set_len(100_000).expect("it can be cut");
    };
    let check = |folder: tempfile::TempDir, words: &[&str]| {
        refused(
            &["serve", "--listen", "127.0.0.1:0", "--model", folder.path().to_str().expect("UTF-8")],
            words,
        );
    };
    check(model_with(remove("model.safetensors")), &["model.safetensors"]);
    check(model_with(remove("tokenizer.json")), &["tokenizer.json"]);
    check(model_with(truncate), &["model.safetensors"]);
    check(
        model_with(edit("Qwen3ForCausalLM", "MambaForCausalLM")),
        &["MambaForCausalLM", "LlamaForCausalLM"],
    );
    let wide = edit("\"intermediate_size\": 384", "\"intermediate_size\": 512");
    check(model_with(wide), &["model.safetensors", "mlp", "384", "512"]);
    refused(&["serve", "--model", "/no/such/folder"], &["/no/such/folder"]);
}
