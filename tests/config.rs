//! The configuration file: what it accepts, how it says no, and what the command line says of it.

use std::path::PathBuf;

use serde_json::{Value, json};
use serve::config::{Config, Plugin, REFERENCE, chain_spec, schema};
use sha2::{Digest, Sha256};

use crate::process::run;
use crate::support::{Host, user};

fn refused(toml: &str, words: &[&str]) {
    let error = Config::parse(toml).expect_err(toml).to_string();
    for word in words {
        assert!(error.contains(word), "`{word}` is missing in `{error}`");
    }
}

#[test]
fn the_reference_file_is_the_default() {
    assert_eq!(
        Config::parse(REFERENCE).expect("it parses"),
        Config::parse("").expect("nothing is a file too")
    );
}

#[test]
fn mistakes_are_named() {
    refused("[listen]\nprot = 1", &["prot", "api"]);
    refused("[engine]\ndevice = \"gpu\"", &["gpu", "cpu"]);
    refused("[engine]\nworkers = 0", &["engine.workers", "at least 1"]);
    refused("[engine]\nworkers = 65", &["engine.workers", "at most 64"]);
    refused("[engine]\nroles = [\"both\"]", &["engine.roles", "1 roles for 2 workers"]);
    refused("[engine]\nroles = [\"decode\", \"decode\"]", &["engine.roles", "`prefill` or `both`"]);
    refused("[engine]\nroles = [\"prefill\", \"prefill\"]", &["engine.roles", "`decode` or `both`"]);
    refused("[engine]\nroles = [\"router\", \"decode\"]", &["router", "prefill", "decode", "both"]);
    refused("[kv]\nblock_tokens = 0", &["kv.block_tokens", "1 to 256"]);
    refused("[engine.sim]\nstep_us = -1.0", &["engine.sim.step_us"]);
    refused(
        "[chain]\npick = \"no-such\"",
        &["chain.pick", "no-such", "[plugins.no-such]", "route-least-load"],
    );
    refused("[[chain.score]]\nplugin = \"route-least-load\"\nweight = -1", &["chain.score.weight"]);
    refused("[plugins.x]\nsource = \"builtin:nothing\"", &["plugins.x.source", "pick-max-score"]);
    refused("[plugins.x]\nlimit = 1", &["limit"]);
    refused("[supply]\nverify = \"require\"", &["supply.keys", "public key"]);
    refused("[supply]\nverify = \"maybe\"", &["maybe", "require"]);
    refused("[supply]\ntimeout_seconds = 0", &["supply.timeout_seconds", "at least 1"]);
    refused("[plugins.x]\nsource = \"oci://it\"", &["plugins.x.source", "oci://HOST"]);
    refused("[plugins.x]\nsource = \"https://host/it.wasm\"", &["plugins.x.source", "file:PATH"]);
    refused("[plugins.pick-max-score]\nsha256 = \"12\"", &["plugins.pick-max-score.sha256", "64"]);
    refused("[plugins.pick-max-score]\nsignature = \"x\"", &["plugins.pick-max-score.signature", "files"]);
    let unchecked = "[plugins.x]\nsource = \"it.wasm\"\nsignature = \"it.sig\"";
    refused(unchecked, &["plugins.x.signature", "supply.keys"]);
    refused("[rollout]\ntrap_rate_max = 2.0", &["rollout.trap_rate_max", "from 0 to 1"]);
    refused("[rollout]\ntick_ms = 0", &["rollout.tick_ms", "1 to 60000"]);
    refused("[plugins.pick-max-score.limits]\ndeadline_us = 0", &["deadline_us", "at least 1"]);
}

/// A named chain that fits the tenant `acme`, with more lines.
fn named(name: &str, lines: &str) -> String {
    format!("[[chains]]\nname = \"{name}\"\nmatch = {{ tenants = [\"acme\"] }}\n{lines}\n")
}

#[test]
fn mistakes_in_chains_are_named() {
    let router = "[plugins.r]\nsource = \"/r.wasm\"\n";
    refused(&named("a", "filter = [\"nobody\"]"), &["chains.a.filter", "nobody", "[plugins.nobody]"]);
    refused("[chain]\nretain = \"nobody\"", &["chain.retain", "nobody"]);
    refused("[chain]\nhints = [\"hints-agent\", \"hints-agent\"]", &["chain.hints", "hints-agent", "twice"]);
    let twice = "score = [{ plugin = \"route-least-load\" }, { plugin = \"route-least-load\" }]";
    refused(&named("a", twice), &["chains.a.score", "route-least-load", "twice"]);
    let cycle =
        named("a", "extends = \"b\"") + &named("b", "extends = \"c\"") + &named("c", "extends = \"b\"");
    refused(&cycle, &["extends", "cycle", "b → c → b", "`default`"]);
    refused(&named("a", "extends = \"a\""), &["chains.a.extends", "a → a"]);
    refused(&named("a", "extends = \"z\""), &["chains.a.extends", "`z`", "default"]);
    refused(&(named("a", "") + &named("a", "")), &["chains[1].name", "two chains", "`a`"]);
    refused(&named("default", ""), &["chains.default.name", "[chain]"]);
    refused(&named("a b", ""), &["chains[0].name", "letters"]);
    refused("[[chains]]\nname = \"a\"", &["chains.a.match", "models", "tenants", "headers"]);
    refused("[[chains]]\nmatch = { models = [\"x\"] }", &["name"]);
    refused(&named("a", "schedule = \"\""), &["chains.a.schedule", "`[chain]` only", "chain.schedule"]);
    refused(&named("a", "retain = \"x\""), &["chains.a.retain", "`[chain]` only"]);
    refused(&named("a", "pikc = \"x\""), &["pikc", "pick"]);
    let both = "route = \"r\"\npick = \"pick-max-score\"";
    refused(&(router.to_owned() + &named("a", both)), &["chains.a.route", "`score` or `pick`"]);
    refused(&format!("{router}[chain]\n{both}"), &["chain.route", "`score` or `pick`"]);
    refused(
        &named("a", "score = [{ plugin = \"route-least-load\", weight = 1e9 }]"),
        &["chains.a.score.weight", "1000000"],
    );
}

#[test]
fn mistakes_in_rules_and_limits_are_named() {
    let plugin = |lines: &str| format!("[plugins.route-least-load]\n{lines}\n");
    refused(&plugin("match = { model = [\"x\"] }"), &["model", "models"]);
    refused(
        &plugin("match = { models = [\"a*b\"] }"),
        &["plugins.route-least-load.match.models", "end only"],
    );
    refused(&plugin("match = { tenants = [\"\"] }"), &["match.tenants", "empty"]);
    refused(&plugin("match = { headers = { X-Tier = \"a\" } }"), &["match.headers.X-Tier", "lower case"]);
    refused(&plugin("match = { headers = { cookie = \"a\" } }"), &["match.headers.cookie", "credentials"]);
    refused(&plugin("limits = { state_kib = 70000 }"), &["limits.state_kib", "at most 65536"]);
    refused(&plugin("limits = { store_kib = 70000 }"), &["limits.store_kib", "at most 65536"]);
    let scheduler = "[plugins.schedule-agent-priority]\nmatch = { tenants = [\"a\"] }";
    refused(scheduler, &["plugins.schedule-agent-priority.match", "chain.schedule"]);
}

#[test]
fn mistakes_in_keys_and_tenants_are_named() {
    let secret = "sk-do-not-print-me";
    let error = Config::parse(&format!("[auth]\nkeys = [{{ sha256 = \"{secret}\", tenant = \"a\" }}]"))
        .expect_err("a key is not its hash")
        .to_string();
    assert!(error.contains("auth.keys[0].sha256") && error.contains("64 hexadecimal"), "{error}");
    assert!(!error.contains(secret), "{error}");
    let key = format!("{{ sha256 = \"{}\", tenant = \"a\" }}", "0".repeat(64));
    refused(&format!("[auth]\nkeys = [{key}, {key}]"), &["auth.keys[1].sha256", "auth.keys[0]"]);
    refused(
        &format!("[auth]\nkeys = [{}]", key.replace("\"a\"", "\"\"")),
        &["auth.keys[0].tenant", "1 to 128"],
    );
    refused("[tenants]\nheader = \"X-Tenant\"", &["tenants.header", "lower case"]);
    refused("[tenants]\nheader = \"x-api-key\"", &["tenants.header", "credentials"]);
    for header in ["authorization", "Cookie", "x-api-key"] {
        refused(&format!("[hints]\nheaders = [\"{header}\"]"), &["hints.headers", header, "credentials"]);
    }
}

/// The reference file with its commented examples in force.
fn with_examples() -> String {
    let mut in_example = false;
    let mut text = String::new();
    for line in REFERENCE.lines() {
        in_example = line.starts_with("# [") || (in_example && line.starts_with('#'));
        text += if in_example { line.strip_prefix('#').unwrap_or(line).trim_start() } else { line };
        text += "\n";
    }
    text
}

#[test]
fn the_examples_in_the_reference_file_are_right() {
    let config = Config::parse(&with_examples()).expect("the examples can be taken as they are");
    let plugin = &config.plugins["route-prefix-affinity"];
    let source = "builtin:route-prefix-affinity".to_owned();
    assert_eq!(*plugin, Plugin { source, ..Plugin::default() }, "a plugin's table shows the defaults");
    assert_eq!((config.chains.len(), config.chains[0].name.as_str()), (1, "gold"));
}

#[test]
fn a_missing_component_file_is_named() {
    let config = Config::parse("[plugins.x]\nsource = \"/no/such/file.wasm\"").expect("the text is fine");
    let error = chain_spec(&config).expect_err("the file is not there").to_string();
    assert!(error.contains("/no/such/file.wasm"), "{error}");
}

fn tempfolder() -> tempfile::TempDir {
    tempfile::tempdir().expect("there is a place for temporary files")
}

/// Runs `pointsman config …`: whether it succeeded, what it printed, what it complained of.
fn said(args: &[&str]) -> (bool, String, String) {
    let output = run(&[&["config"], args].concat());
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout), text(&output.stderr))
}

fn written(folder: &tempfile::TempDir, name: &str, text: &str) -> PathBuf {
    let path = folder.path().join(name);
    std::fs::write(&path, text).expect("it can be written");
    path
}

#[test]
fn check_names_chain_slot_plugin_and_what_it_exports() {
    let folder = tempfolder();
    let check = |toml: &str, words: &[&str]| {
        let file = written(&folder, "pointsman.toml", toml);
        let (ok, _, complaint) = said(&["check", file.to_str().expect("the path is UTF-8")]);
        assert!(!ok, "{toml}");
        for word in words {
            assert!(complaint.contains(word), "`{word}` is missing in {complaint}");
        }
    };
    check(
        "[chain]\npick = \"route-least-load\"",
        &["`default`", "`pick`", "`route-least-load`", "exports `score`"],
    );
    let wrong = named("gold", "filter = [\"hints-agent\"]");
    check(&wrong, &["`gold`", "`filter`", "`hints-agent`", "exports `hints`"]);
    check("[chain]\nretain = \"pick-max-score\"", &["`default`", "`retain`", "exports `pick`"]);
    check("[plugins.pick-max-score]\nconfig = { tolerance = -1 }", &["pick-max-score", "tolerance"]);
}

const PICKER: &str = "
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: header-profile-handler
  parameters: { headerName: EPP-Profile, defaultProfile: calm }
- type: queue-scorer
- type: lora-affinity-scorer
- type: prefix-cache-scorer
- type: random-picker
schedulingProfiles:
- name: calm
  plugins: [{ pluginRef: queue-scorer }, { pluginRef: prefix-cache-scorer, weight: 3 }]
- name: wild
  plugins: [{ pluginRef: random-picker }, { pluginRef: lora-affinity-scorer }]
";

#[test]
fn an_imported_configuration_passes_its_check() {
    let folder = tempfolder();
    let yaml = written(&folder, "epp.yaml", PICKER);
    let toml = folder.path().join("out.toml");
    let (yaml, toml) = (yaml.to_str().expect("UTF-8"), toml.to_str().expect("UTF-8"));

    let (ok, _, complaint) = said(&["import", yaml, "-o", toml, "--strict"]);
    assert!(!ok && complaint.contains("1 parts have no counterpart"), "{complaint}");
    assert!(!std::path::Path::new(toml).exists(), "nothing is written where the import is strict");

    let (ok, _, complaint) = said(&["import", yaml, "-o", toml]);
    assert!(ok && complaint.contains("imported with 1 warnings"), "{complaint}");
    assert!(complaint.contains("plugins[2] (lora-affinity-scorer)"), "{complaint}");
    let (ok, page, complaint) = said(&["check", toml]);
    assert!(ok, "{page} {complaint}");

    let (ok, page, _) = said(&["explain", toml, "--header", "EPP-Profile=wild"]);
    assert!(ok && page.contains("takes chain `wild`") && page.contains("pick       pick-random"), "{page}");

    let (ok, page, _) = said(&["import", yaml]);
    assert!(
        ok && page.contains(
            "#   plugins[2] (lora-affinity-scorer): every worker of a host has all of its adapters"
        ),
        "{page}"
    );

    let (ok, _, complaint) = said(&["import", "/no/such/file.yaml"]);
    assert!(!ok && complaint.contains("/no/such/file.yaml"), "{complaint}");
}

#[test]
fn explain_says_who_is_asked_and_what_a_request_meets() {
    let (ok, page, _) = said(&["explain"]);
    assert!(ok);
    for words in [
        "chain `default` is for every request",
        "route-prefix-affinity × 2",
        "2000 us",
        "schedule-agent-priority",
    ] {
        assert!(page.contains(words), "`{words}` is missing in {page}");
    }
    let folder = tempfolder();
    let file = written(&folder, "pointsman.toml", &named("gold", "pick = \"pick-max-score\""));
    let file = file.to_str().expect("UTF-8");
    let (_, page, _) = said(&["explain", file, "--tenant", "acme"]);
    assert!(page.contains("of tenant acme") && page.contains("takes chain `gold`"), "{page}");
    let (_, page, _) = said(&["explain", file, "--tenant", "other"]);
    assert!(page.contains("does not fit chain `gold`") && page.contains("takes chain `default`"), "{page}");
    let (ok, _, complaint) = said(&["explain", "--header", "no-value"]);
    assert!(!ok && complaint.contains("name=value"), "{complaint}");
}

/// Whether a text is right by the schema that editors use.
fn fits_schema(schema: &Value, text: &str) -> Result<(), String> {
    let table: toml::Table = text.parse().expect("it is TOML");
    let instance = serde_json::to_value(table).expect("TOML can be JSON");
    let (mut schemas, mut compiler) = (boon::Schemas::new(), boon::Compiler::new());
    compiler.add_resource("pointsman.json", schema.clone()).expect("the schema is JSON");
    let index = compiler.compile("pointsman.json", &mut schemas).expect("the schema is a schema");
    schemas.validate(&instance, index).map_err(|e| e.to_string())
}

#[test]
fn the_schema_takes_what_the_host_takes() {
    let (ok, page, _) = said(&["schema"]);
    assert!(ok);
    // The test runner prints around it.
    let json = &page[page.find('{').expect("it begins")..=page.rfind('}').expect("it ends")];
    let printed: Value = serde_json::from_str(json).expect("the schema is JSON");
    assert_eq!(printed, schema::schema());
    assert_eq!(printed["$schema"], "http://json-schema.org/draft-07/schema#");

    for right in [REFERENCE, &with_examples(), &named("a", "score = [{ plugin = \"x\" }]")] {
        fits_schema(&printed, right).unwrap_or_else(|e| panic!("{e}\n{right}"));
    }
    for wrong in [
        "[listen]\nprot = 1",
        "[engine]\ndevice = \"gpu\"",
        "[limits]\nrequests_max = \"many\"",
        "[plugins.x]\non_failure = \"shrug\"",
        "[auth]\nkeys = [{ tenant = \"a\" }]",
        &named("a", "schedule = \"x\""),
    ] {
        assert!(fits_schema(&printed, wrong).is_err(), "{wrong}");
        assert!(Config::parse(wrong).is_err(), "{wrong}");
    }
    assert_eq!(printed["properties"]["kv"]["properties"]["block_tokens"]["default"], 16);
}

/// Two named chains with pickers of their own; the reply says who decided.
#[tokio::test(flavor = "multi_thread")]
async fn named_chains_send_requests_to_different_pickers() {
    let key = |key: &str, tenant: &str| {
        let hash: String = Sha256::digest(key).iter().map(|b| format!("{b:02x}")).collect();
        format!("{{ sha256 = \"{hash}\", tenant = \"{tenant}\" }}")
    };
    let toml = format!(
        "[plugins.pick-gold]\nsource = \"builtin:pick-max-score\"\n\
         [plugins.pick-acme]\nsource = \"builtin:pick-max-score\"\n\
         [auth]\nkeys = [{}, {}]\n\
         [[chains]]\nname = \"gold\"\nmatch = {{ headers = {{ x-tier = \"gold*\" }} }}\nextends = \"default\"\npick = \"pick-gold\"\n\
         [[chains]]\nname = \"acme\"\nmatch = {{ tenants = [\"ac*\"] }}\nextends = \"gold\"\npick = \"pick-acme\"\n\
         [[chains]]\nname = \"bare\"\nmatch = {{ headers = {{ x-tier = \"none\" }} }}\n",
        key("sk-acme", "acme"),
        key("sk-other", "other"),
    );
    let host = Host::simulated(&toml).await;
    let ask = async |headers: &str| {
        let body = json!({ "model": "tiny-agent", "messages": user("hello"), "max_tokens": 1 }).to_string();
        let length = body.len();
        let request = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}content-length: {length}\r\n\r\n{body}"
        );
        host.raw(request.as_bytes()).await.to_ascii_lowercase()
    };
    let other = "authorization: Bearer sk-other\r\n";
    for (headers, picker) in [
        (format!("{other}x-tier: golden\r\n"), "pick-gold"),
        ("x-api-key: sk-acme\r\n".to_owned(), "pick-acme"),
        ("x-api-key: sk-acme\r\nx-tier: gold\r\n".to_owned(), "pick-gold"),
        (format!("{other}x-tier: none\r\n"), "builtin"),
        (other.to_owned(), "pick-max-score"),
    ] {
        let reply = ask(&headers).await;
        assert!(reply.starts_with("http/1.1 200"), "{headers}: {reply}");
        assert!(reply.contains(&format!("x-pointsman-decided-by: {picker}\r\n")), "{headers}: {reply}");
    }
    for headers in ["", "authorization: Bearer sk-wrong\r\n", "x-tier: gold\r\n"] {
        let reply = ask(headers).await;
        assert!(reply.starts_with("http/1.1 401"), "{reply}");
        assert!(reply.contains("www-authenticate: bearer") && reply.contains("invalid_api_key"), "{reply}");
    }
    let reply = host.raw(b"GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(reply.starts_with("HTTP/1.1 401") && reply.contains("\"error\""), "{reply}");
    let health = host.raw(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(health.starts_with("HTTP/1.1 200"), "{health}");
    host.stop().await;
}

/// A plugin with a rule is asked for the requests that fit it, and for no others.
#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_with_a_rule_is_asked_only_for_its_requests() {
    let toml =
        "[tenants]\nheader = \"x-tenant\"\n[plugins.route-least-load]\nmatch = { tenants = [\"acme\"] }\n";
    let host = Host::simulated(toml).await;
    let ask = async |tenant: &str| {
        let body = json!({ "model": "tiny-agent", "messages": user("hello"), "max_tokens": 1 }).to_string();
        let length = body.len();
        let request = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-tenant: {tenant}\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        assert!(host.raw(request.as_bytes()).await.starts_with("HTTP/1.1 200"));
    };
    for _ in 0..3 {
        ask("other").await;
    }
    assert_eq!(host.calls("route-least-load", "score", "ok").await, 0);
    ask("acme").await;
    assert_eq!(host.calls("route-least-load", "score", "ok").await, 1);
    assert_eq!(host.calls("pick-max-score", "pick", "ok").await, 4);
    host.stop().await;
}
