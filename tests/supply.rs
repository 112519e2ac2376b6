//! Where components come from, as an operator sees it: files, keys, a registry, what is kept between starts.
//!
//! The registry is a real one, `docker-registry` of Debian, on a loopback port; a machine without it skips
//! those tests, and continuous integration installs it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use axum::http::Method;
use serde_json::{Value, json};
use serve::app::{App, ReloadError};
use serve::client::{Client, Reply};
use serve::config::{Config, chain_spec};
use serve::source::{Signing, digest};

use crate::process::{refused, run};
use crate::support::{Host, PATIENCE, component, component_bytes, user};

const SWAPPED: &str = "/admin/v1/plugins/route-prefix-affinity";

/// A folder with two pairs of keys: `own`, and `stranger`.
struct Keys(tempfile::TempDir);

impl Keys {
    fn new() -> Self {
        let keys = Self(tempfile::tempdir().expect("there is a place for temporary files"));
        for name in ["own", "stranger"] {
            let (private, public) = Signing::generate().expect("there is randomness");
            std::fs::write(keys.path(&format!("{name}.key")), private).expect("it can be written");
            std::fs::write(keys.path(&format!("{name}.pub")), public).expect("it can be written");
        }
        keys
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// A configuration that trusts `own` alone, and keeps things in this folder.
    fn require(&self) -> String {
        format!(
            "[supply]\nverify = \"require\"\nkeys = [{:?}]\ncache_dir = {:?}\n",
            self.path("own.pub"),
            self.path("kept")
        )
    }

    fn sign(&self, name: &str, bytes: &[u8]) -> String {
        Signing::read(&self.path(name)).expect("it is a key").sign(bytes)
    }
}

fn is_active(reply: &Reply) {
    assert_eq!(reply.status, 200, "{}", reply.json);
}

/// A refusal says its stage and why; the active generation goes on.
async fn is_refused(host: &Host, reply: &Reply, stage: &str, words: &[&str]) {
    assert_eq!(
        (reply.status.as_u16(), &reply.json["error"]["stage"]),
        (422, &json!(stage)),
        "{}",
        reply.json
    );
    let message = reply.json["error"]["message"].as_str().unwrap_or_default();
    for word in words {
        assert!(message.contains(word), "`{word}` is missing in `{message}`");
    }
    assert_eq!(host.chat(json!({ "messages": user("hello"), "max_tokens": 1 })).await.status, 200);
}

async fn put(host: &Host, headers: &[(&str, &str)], body: impl Into<axum::body::Bytes>) -> Reply {
    host.admin.send_with(Method::PUT, SWAPPED, headers, body).await.expect("the admin API answers")
}

/// Asks the host to fetch a component itself.
async fn fetch(host: &Host, place: Value) -> Reply {
    put(host, &[("content-type", "application/json")], place.to_string()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn under_require_the_admin_api_takes_signed_components_only() {
    let keys = Keys::new();
    let host = Host::simulated(&keys.require()).await;
    let wasm = component_bytes("first-plugin");
    is_refused(&host, &put(&host, &[], wasm.clone()).await, "verified", &["no signature"]).await;
    let stranger = keys.sign("stranger.key", &wasm);
    let reply = put(&host, &[("x-pointsman-signature", &stranger)], wasm.clone()).await;
    is_refused(&host, &reply, "verified", &["does not hold"]).await;
    let other = keys.sign("own.key", b"another component");
    let reply = put(&host, &[("x-pointsman-signature", &other)], wasm.clone()).await;
    is_refused(&host, &reply, "verified", &["does not hold"]).await;
    assert_eq!(host.generation().await, 1);
    let own = keys.sign("own.key", &wasm);
    is_active(&put(&host, &[("x-pointsman-signature", &own)], wasm).await);
    assert_eq!(host.generation().await, 2);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_swapped_in_by_name_only_from_under_a_root() {
    let file = component("first-plugin");
    let source = json!({ "source": format!("file:{}", file.display()) });
    let host = Host::simulated("").await;
    is_refused(&host, &fetch(&host, source.clone()).await, "fetched", &["supply.roots"]).await;
    is_refused(&host, &fetch(&host, json!({ "sauce": 1 })).await, "fetched", &["source", "sha256"]).await;
    host.stop().await;

    let elsewhere = tempfile::tempdir().expect("there is a place for temporary files");
    let host = Host::simulated(&format!("[supply]\nroots = [{:?}]\n", elsewhere.path())).await;
    is_refused(&host, &fetch(&host, source.clone()).await, "fetched", &["supply.roots"]).await;
    host.stop().await;

    let root = file.parent().expect("a file lies in a folder");
    let host = Host::simulated(&format!("[supply]\nroots = [{root:?}]\n")).await;
    let wrong = json!({ "source": source["source"], "sha256": "0".repeat(64) });
    is_refused(&host, &fetch(&host, wrong).await, "verified", &["0000", "sha256"]).await;
    is_active(&fetch(&host, source).await);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn machine_code_from_outside_is_refused() {
    let host = Host::simulated("").await;
    let elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    is_refused(&host, &put(&host, &[], elf).await, "compiled", &["precompiled machine code"]).await;
    host.stop().await;
}

#[test]
fn a_file_outside_the_roots_does_not_start() {
    let root = tempfile::tempdir().expect("there is a place for temporary files");
    let toml = format!(
        "[supply]\nroots = [{:?}]\n[plugins.route-least-load]\nsource = {:?}\n",
        root.path(),
        component("first-plugin")
    );
    let config = Config::parse(&toml).expect("the text is fine");
    let error = chain_spec(&config).expect_err("it lies elsewhere").to_string();
    assert!(error.contains("route-least-load") && error.contains("supply.roots"), "{error}");
}

#[test]
fn what_the_command_line_signs_starts_under_require() {
    let keys = Keys::new();
    let file = keys.path("score.wasm");
    std::fs::copy(component("first-plugin"), &file).expect("it can be copied");
    let toml = format!("{}[plugins.route-least-load]\nsource = \"score.wasm\"\n", keys.require());
    let config = keys.path("pointsman.toml");
    std::fs::write(&config, toml).expect("it can be written");
    let check = ["config", "check", &keys.text("pointsman.toml")];
    refused(&check, &["route-least-load", "no signature", "score.wasm"]);
    let key = keys.text("own.key");
    let output = run(&["plugin", "sign", &keys.text("score.wasm"), "--key", &key]);
    assert!(output.status.success(), "{output:?}");
    assert!(run(&check).status.success());
    refused(&["plugin", "sign", &keys.text("own.pub"), "--key", &key], &["no component"]);

    let output = run(&["plugin", "keygen", &keys.text("made")]);
    assert!(output.status.success(), "{output:?}");
    let output = run(&["plugin", "sign", &keys.text("score.wasm"), "--key", &keys.text("made.key")]);
    assert!(output.status.success(), "{output:?}");
    refused(&check, &["does not hold"]);
    refused(&["plugin", "keygen", &keys.text("made")], &["made.key"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_does_not_relax_what_must_be_shown() {
    let keys = Keys::new();
    let path = keys.path("pointsman.toml");
    let sim = "[engine]\ndevice = \"sim\"\n";
    std::fs::write(&path, format!("{sim}{}", keys.require())).expect("it can be written");
    let file = component("first-plugin");
    let reloaded = tokio::task::spawn_blocking(move || {
        let config = Config::load(&path).expect("it is right");
        let app = App::start(config, Some(path.clone())).expect("the host starts");
        let relaxed = "[supply]\nverify = \"off\"\n[plugins.route-least-load]\n";
        std::fs::write(&path, format!("{sim}{relaxed}source = {file:?}\n")).expect("it can be written");
        let reloaded = app.reload();
        app.stop();
        reloaded
    });
    let error = reloaded.await.expect("it does not panic").expect_err("it is not signed");
    let ReloadError::Chain(error) = error else { panic!("{error}") };
    assert_eq!(error.stage, policy::Stage::Verified, "{error}");
    assert!(error.message.contains("no signature"), "{error}");
}

/// A count of the compile cache, as the metrics say it.
async fn cached(host: &Host, outcome: &str) -> u64 {
    let text = host.raw(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    let name = format!("pointsman_compile_cache_total{{outcome=\"{outcome}\"}} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&name)).expect("it is a metric");
    line.trim().parse().expect("a count is a number")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_start_compiles_nothing_and_trusts_no_tampered_entry() {
    let kept = tempfile::tempdir().expect("there is a place for temporary files");
    let toml = format!("[supply]\ncache_dir = {:?}\n", kept.path());
    let counts = async || {
        let host = Host::simulated(&toml).await;
        let counts =
            [cached(&host, "hit").await, cached(&host, "miss").await, cached(&host, "discarded").await];
        assert_eq!(host.chat(json!({ "messages": user("hello"), "max_tokens": 1 })).await.status, 200);
        host.stop().await;
        counts
    };
    assert_eq!(counts().await, [0, 6, 0]);
    assert_eq!(counts().await, [6, 0, 0]);
    let folder = kept.path().join("code");
    for entry in std::fs::read_dir(&folder).expect("it is there").flatten() {
        if entry.file_name() != "key" {
            let mut bytes = std::fs::read(entry.path()).expect("it is ours");
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            std::fs::write(entry.path(), bytes).expect("it is ours");
        }
    }
    assert_eq!(counts().await, [0, 6, 6]);
    assert_eq!(counts().await, [6, 0, 0]);
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o755)).expect("it is ours");
    assert_eq!(counts().await, [0, 0, 0], "the cache is off, and the host starts all the same");
}

/// A registry process with a folder of its own.
struct Registry {
    child: Child,
    folder: tempfile::TempDir,
    host: String,
}

impl Registry {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("there is a place for temporary files");
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback ports are free");
        let host = listener.local_addr().expect("it is bound").to_string();
        drop(listener);
        let config = folder.path().join("config.yml");
        let root = folder.path().join("data");
        let text = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {host}\n",
            root.display()
        );
        std::fs::write(&config, text).expect("it can be written");
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().expect("`docker-registry` is installed, as `.ci/run` does");
        let registry = Self { child, folder, host };
        for _ in 0..200 {
            if std::net::TcpStream::connect(&registry.host).is_ok() {
                return registry;
            }
            std::thread::sleep(PATIENCE / 1000);
        }
        panic!("the registry does not listen");
    }

    fn stop(&mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
    }

    fn address(&self, rest: &str) -> String {
        format!("oci://{}/team/{rest}", self.host)
    }

    /// Pushes with the command line. Returns the digest of the manifest.
    fn push(&self, file: &Path, tag: &str, key: Option<String>) -> String {
        let (file, address) = (file.display().to_string(), self.address(tag));
        let mut args = vec!["plugin", "push", &file, &address];
        if let Some(key) = &key {
            args.extend(["--key", key]);
        }
        let output = run(&args);
        assert!(output.status.success(), "{output:?}");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let at = said.find("@sha256:").expect("it says the digest") + "@sha256:".len();
        said[at..at + 64].to_owned()
    }

    /// Puts a manifest and its one layer by hand, as a tool that checks nothing would.
    async fn put_by_hand(&self, tag: &str, media_type: &str, layer: &[u8], annotations: Value) {
        let client = Client::new(format!("http://{}", self.host));
        let mut descriptors = Vec::new();
        for blob in [layer, b"{}"] {
            let digest = format!("sha256:{}", digest(blob));
            let reply =
                client.send(Method::POST, "/v2/team/it/blobs/uploads/", "").await.expect("it answers");
            let place = reply.header("location").to_owned();
            let place = place.strip_prefix(&format!("http://{}", self.host)).unwrap_or(&place).to_owned();
            let path = format!("{place}&digest={digest}");
            let binary = [("content-type", "application/octet-stream")];
            let reply =
                client.send_with(Method::PUT, &path, &binary, blob.to_vec()).await.expect("it answers");
            assert_eq!(reply.status, 201, "{}", reply.json);
            descriptors.push(json!({ "mediaType": media_type, "size": blob.len(), "digest": digest }));
        }
        let mut config = descriptors.remove(1);
        config["mediaType"] = json!("application/vnd.wasm.config.v0+json");
        descriptors[0]["annotations"] = annotations;
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let manifest =
            json!({ "schemaVersion": 2, "mediaType": kind, "config": config, "layers": descriptors });
        let (path, headers) = (format!("/v2/team/it/manifests/{tag}"), [("content-type", kind)]);
        let reply =
            client.send_with(Method::PUT, &path, &headers, manifest.to_string()).await.expect("it answers");
        assert_eq!(reply.status, 201, "{}", reply.json);
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
#[ignore = "needs docker-registry"]
fn what_is_pushed_is_pulled() {
    let (keys, registry) = (Keys::new(), Registry::start());
    let file = component("first-plugin");
    let manifest = registry.push(&file, "it:1", Some(keys.text("own.key")));
    assert_eq!(registry.push(&file, "it:2", None), manifest, "the same component has the same digest");
    let output = keys.text("pulled.wasm");
    for from in [registry.address("it:1"), registry.address(&format!("it@sha256:{manifest}"))] {
        let done = run(&["plugin", "pull", &from, "-o", &output, "--key", &keys.text("own.pub")]);
        assert!(done.status.success(), "{done:?}");
        assert!(String::from_utf8_lossy(&done.stdout).contains(&manifest), "{done:?}");
        assert_eq!(std::fs::read(&output).ok(), Some(component_bytes("first-plugin")));
    }
    let pull = |from: &str, key: &str| -> Vec<String> {
        ["plugin", "pull", from, "-o", &output, "--key", &keys.text(key)].map(str::to_owned).into()
    };
    let says = |args: Vec<String>, words: &[&str]| {
        refused(&args.iter().map(String::as_str).collect::<Vec<_>>(), words);
    };
    says(pull(&registry.address("it:1"), "stranger.pub"), &["does not hold"]);
    says(pull(&registry.address("it:3"), "own.pub"), &["it:3", "no such component"]);
    let elsewhere = registry.address(&format!("it@sha256:{}", "0".repeat(64)));
    says(pull(&elsewhere, "own.pub"), &["no such component"]);
    let junk = keys.text("own.pub");
    refused(&["plugin", "push", &junk, &registry.address("junk:1")], &["no component"]);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs docker-registry"]
async fn a_host_starts_from_a_registry_and_swaps_from_it() {
    let (keys, registry) = (Keys::new(), Registry::start());
    let manifest = registry.push(&component("first-plugin"), "it:1", Some(keys.text("own.key")));
    let source = registry.address("it:1");
    let toml = format!("{}[plugins.route-prefix-affinity]\nsource = {source:?}\n", keys.require());
    let host = Host::simulated(&toml).await;
    let plugins = host.admin.get("/admin/v1/plugins").await.expect("it answers").json;
    let one =
        plugins["plugins"].as_array().into_iter().flatten().find(|p| p["name"] == "route-prefix-affinity");
    let origin = one.expect("it is in the chain")["origin"].as_str().unwrap_or_default().to_owned();
    assert!(origin.contains(&registry.host) && origin.contains(&manifest), "{origin}");
    host.chat(json!({ "messages": user("hello"), "max_tokens": 1 })).await;
    assert_eq!(host.calls("route-prefix-affinity", "score", "ok").await, 1);

    let nothing = json!({ "source": registry.address("none:1") });
    is_refused(&host, &fetch(&host, nothing).await, "fetched", &["none:1", "no such component"]).await;
    let by_hand = format!("http://{}", host.server.admin);
    let swap = ["plugin", "swap", "route-prefix-affinity", &source, "--admin", &by_hand].map(str::to_owned);
    let output = tokio::task::spawn_blocking(move || run(&swap.each_ref().map(String::as_str)));
    let output = output.await.expect("it does not panic");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(host.generation().await, 2);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs docker-registry"]
async fn a_registry_that_is_down_costs_nothing_when_the_digest_is_known() {
    let (keys, mut registry) = (Keys::new(), Registry::start());
    let manifest = registry.push(&component("first-plugin"), "it:1", Some(keys.text("own.key")));
    let sha256 = digest(&component_bytes("first-plugin"));
    let (tag, pinned) = (registry.address("it:1"), registry.address(&format!("it@sha256:{manifest}")));
    let host = Host::simulated(&keys.require()).await;
    is_active(&fetch(&host, json!({ "source": tag })).await);
    registry.stop();
    let before = host.generation().await;
    let down = fetch(&host, json!({ "source": tag })).await;
    is_refused(&host, &down, "fetched", &[&registry.host, "refused"]).await;
    let never_seen = registry.address(&format!("it@sha256:{}", "0".repeat(64)));
    is_refused(&host, &fetch(&host, json!({ "source": never_seen })).await, "fetched", &["refused"]).await;
    assert_eq!(host.generation().await, before);
    is_active(&fetch(&host, json!({ "source": pinned })).await);
    is_active(&fetch(&host, json!({ "source": tag, "sha256": sha256 })).await);
    host.stop().await;

    // The same at a start.
    let toml = format!("{}[plugins.route-prefix-affinity]\nsource = {pinned:?}\n", keys.require());
    Host::simulated(&toml).await.stop().await;
    let toml = format!("{}[plugins.route-prefix-affinity]\nsource = {tag:?}\n", keys.require());
    let config = Config::parse(&toml).expect("the text is fine");
    let error = tokio::task::spawn_blocking(move || chain_spec(&config)).await.expect("it does not panic");
    let error = error.expect_err("the registry is down").to_string();
    assert!(error.contains(&registry.host) && error.contains("refused"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs docker-registry"]
async fn bytes_of_another_digest_are_refused() {
    let registry = Registry::start();
    registry.push(&component("first-plugin"), "it:1", None);
    let host = Host::simulated("").await;
    let source = registry.address("it:1");
    let wrong = json!({ "source": source, "sha256": "1".repeat(64) });
    is_refused(&host, &fetch(&host, wrong).await, "verified", &["1111", "asked for"]).await;
    // Somebody changes the bytes in the registry's own folder.
    let hex = digest(&component_bytes("first-plugin"));
    let blob = format!("data/docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]);
    let blob = registry.folder.path().join(blob);
    let mut bytes = std::fs::read(&blob).expect("the registry keeps it there");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&blob, bytes).expect("it is ours");
    is_refused(&host, &fetch(&host, json!({ "source": source })).await, "verified", &[&hex]).await;
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs docker-registry"]
async fn a_signature_must_be_there_by_our_key_and_for_this_component() {
    let (keys, registry) = (Keys::new(), Registry::start());
    let unsigned = registry.push(&component("first-plugin"), "it:1", None);
    let host = Host::simulated(&keys.require()).await;
    let source = json!({ "source": registry.address("it:1") });
    let words = ["no signature", &format!("sha256-{unsigned}.sig")];
    is_refused(&host, &fetch(&host, source.clone()).await, "verified", &words).await;

    // A right signature by our key, for another manifest, under this one's tag.
    let moved = json!({ "critical": {
        "identity": { "docker-reference": "team/it" },
        "image": { "docker-manifest-digest": format!("sha256:{}", "2".repeat(64)) },
        "type": "cosign container image signature",
    }, "optional": null })
    .to_string();
    let signature = json!({ "dev.cosignproject.cosign/signature": keys.sign("own.key", moved.as_bytes()) });
    let kind = "application/vnd.dev.cosign.simplesigning.v1+json";
    registry.put_by_hand(&format!("sha256-{unsigned}.sig"), kind, moved.as_bytes(), signature).await;
    is_refused(&host, &fetch(&host, source.clone()).await, "verified", &["it was made for", "2222"]).await;

    registry.push(&component("first-plugin"), "it:1", Some(keys.text("stranger.key")));
    is_refused(&host, &fetch(&host, source.clone()).await, "verified", &["does not hold", "keys"]).await;
    assert_eq!(host.generation().await, 1);
    registry.push(&component("first-plugin"), "it:1", Some(keys.text("own.key")));
    is_active(&fetch(&host, source).await);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs docker-registry"]
async fn what_a_registry_calls_a_component_is_looked_at() {
    let registry = Registry::start();
    let host = Host::simulated("").await;
    let elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0";
    registry.put_by_hand("elf", "application/wasm", elf, json!({})).await;
    let reply = fetch(&host, json!({ "source": registry.address("it:elf") })).await;
    is_refused(&host, &reply, "compiled", &["precompiled machine code"]).await;
    let wasm = component_bytes("first-plugin");
    registry.put_by_hand("tar", "application/vnd.oci.image.layer.v1.tar", &wasm, json!({})).await;
    let reply = fetch(&host, json!({ "source": registry.address("it:tar") })).await;
    is_refused(&host, &reply, "compiled", &["application/wasm", "layer.v1.tar"]).await;
    host.stop().await;
}
