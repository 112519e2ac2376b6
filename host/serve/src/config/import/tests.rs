use super::*;

const HEAD: &str = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n";

fn imported(body: &str) -> Imported {
    import(&format!("{HEAD}{body}")).expect("the file is right")
}

fn refused(yaml: &str, words: &[&str]) {
    let error = import(yaml).expect_err(yaml).to_string();
    for word in words {
        assert!(error.contains(word), "`{word}` is missing in `{error}`");
    }
}

/// What is usual: scorers with weights, a picker, an old group, a type that is not here.
#[test]
fn a_single_profile_becomes_the_default_chain() {
    let yaml = "
apiVersion: inference.networking.x-k8s.io/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: queue-scorer
- type: kv-cache-utilization-scorer
- type: active-request-scorer
- name: prefix
  type: prefix-cache-scorer
  parameters: { hashBlockSize: 64, lruCapacityPerServer: 31250 }
- type: max-score-picker
  parameters: { maxNumOfEndpoints: 1 }
- type: single-profile-handler
schedulingProfiles:
- name: default
  plugins:
  - pluginRef: queue-scorer
  - { pluginRef: kv-cache-utilization-scorer, weight: 2 }
  - { pluginRef: active-request-scorer, weight: 0.5 }
  - { pluginRef: prefix, weight: 3 }
  - pluginRef: max-score-picker
";
    let imported = import(yaml).expect("the file is right");
    insta::assert_snapshot!(imported.toml);
    assert_eq!(imported.unmapped.len(), 1, "{:?}", imported.unmapped);
    let chain = Config::parse(&imported.toml).expect("it is right").chain;
    let score: Vec<_> = chain.score.iter().map(|s| (s.plugin.as_str(), s.weight)).collect();
    assert_eq!(score, [("route-least-load", 1.5), ("route-prefix-affinity", 3.0)]);
}

#[test]
fn profiles_that_a_header_chooses_become_named_chains() {
    let imported = imported(
        "
plugins:
- type: header-profile-handler
  parameters: { headerName: X-Profile, defaultProfile: calm }
- type: random-picker
- type: prefix-cache-scorer
- type: session-affinity-scorer
schedulingProfiles:
- name: fast
  plugins: [{ pluginRef: session-affinity-scorer }, { pluginRef: random-picker }]
- name: calm
  plugins: [{ pluginRef: prefix-cache-scorer, weight: 2 }]
",
    );
    insta::assert_snapshot!(imported.toml);
    assert!(imported.unmapped.is_empty(), "{:?}", imported.unmapped);
}

#[test]
fn a_header_without_a_default_profile_is_remarked() {
    let imported = imported(
        "plugins: [{ type: header-profile-handler }, { type: queue-scorer }]\nschedulingProfiles:\n\
         - { name: a, plugins: [{ pluginRef: queue-scorer }] }\n- { name: b, plugins: [] }\n",
    );
    let [only] = imported.unmapped.as_slice() else { panic!("{:?}", imported.unmapped) };
    assert!(only.text.contains("without the header `epp-profile` takes the profile `a`"), "{only}");
    assert!(imported.toml.contains("match = { headers = { \"epp-profile\" = \"b\" } }"), "{}", imported.toml);
}

#[test]
fn of_split_roles_the_decode_profile_is_taken() {
    let imported = imported(
        "
plugins: [{ type: disagg-profile-handler }, { type: prefill-filter }, { type: decode-filter }, { type: prefix-cache-scorer }]
schedulingProfiles:
- name: prefill
  plugins: [{ pluginRef: prefill-filter }, { pluginRef: prefix-cache-scorer, weight: 9 }]
- name: decode
  plugins: [{ pluginRef: decode-filter }, { pluginRef: prefix-cache-scorer, weight: 2 }]
",
    );
    let config = Config::parse(&imported.toml).expect("it is right");
    assert_eq!((config.chain.score[0].weight, config.chains.len()), (2.0, 0));
    let paths: Vec<&str> = imported.unmapped.iter().map(|r| r.path.as_str()).collect();
    assert_eq!(paths, ["plugins[1] (prefill-filter)", "schedulingProfiles (prefill)"]);
}

#[test]
fn without_profiles_every_plugin_is_in_one() {
    let imported = imported("plugins: [{ type: token-load-scorer }, { type: precise-prefix-cache-scorer }]");
    let chain = Config::parse(&imported.toml).expect("it is right").chain;
    assert_eq!((chain.score.len(), chain.pick.as_str()), (2, "pick-max-score"));
}

#[test]
fn sections_and_parameters_without_a_counterpart_are_named() {
    let imported = imported(
        "
plugins:
- type: load-aware-scorer
  parameters: { threshold: 100 }
- type: acme-scorer
featureGates: [flowControl]
flowControl: { maxBytes: 1 }
dataLayer: { sources: [] }
saturationDetector: {}
moon: 1
",
    );
    let paths: Vec<&str> = imported.unmapped.iter().map(|r| r.path.as_str()).collect();
    let wanted = [
        "plugins[0].parameters.threshold",
        "plugins[1] (acme-scorer)",
        "featureGates",
        "flowControl",
        "moon",
    ];
    assert_eq!(paths.len(), wanted.len(), "{paths:?}");
    for path in wanted {
        assert!(paths.contains(&path), "{paths:?}");
        assert!(imported.toml.contains(&format!("#   {path}: ")), "{}", imported.toml);
    }
}

#[test]
fn a_name_cannot_leave_its_comment() {
    let imported = imported("plugins: [{ type: \"x\\n[chain]\\npick = 1\" }]");
    assert!(imported.toml.contains("#   plugins[0] (x [chain] pick = 1): unknown"), "{}", imported.toml);
}

#[test]
fn what_is_no_endpoint_picker_configuration_is_refused() {
    refused("kind: [", &["line 1"]);
    refused("apiVersion: v1\nkind: ConfigMap\ndata: {}", &["`kind` is `ConfigMap`", "EndpointPickerConfig"]);
    refused("apiVersion: apps/v1\nkind: EndpointPickerConfig", &["`apiVersion` is `apps/v1`", "llm-d.ai/v1"]);
    refused(&format!("{HEAD}plugins: [{{ typ: x }}]"), &["typ"]);
    let profile = |plugin: &str| {
        format!(
            "{HEAD}plugins: [{{ type: queue-scorer }}]\nschedulingProfiles: [{{ name: a, plugins: [{plugin}] }}]"
        )
    };
    refused(
        &profile("{ pluginRef: other }"),
        &["schedulingProfiles[0].plugins[0].pluginRef", "other", "queue-scorer"],
    );
    refused(
        &profile("{ pluginRef: queue-scorer, weight: -1 }"),
        &["schedulingProfiles[0].plugins[0].weight", "at least 0"],
    );
    refused(&profile("{ pluginRef: queue-scorer, weight: 1e60 }"), &["chain.score.weight"]);
}
