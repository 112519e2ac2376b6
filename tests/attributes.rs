//! What a hint plugin makes up reaches those who declare it; and who a request is reaches those who learn.

use serde_json::json;

use crate::support::{Host, component, user};

fn tagged(more: &str) -> String {
    let source = component("tagger");
    format!(
        "{more}\n[tenants]\nheader = \"x-tenant\"\n[plugins.tagger]\nsource = {source:?}\n\
         [engine]\ndevice = \"sim\"\nworkers = 3\n"
    )
}

const BOTH: &str =
    "[chain]\nhints = [\"tagger\"]\nscore = [{ plugin = \"tagger\" }]\npick = \"pick-max-score\"";

#[tokio::test(flavor = "multi_thread")]
async fn an_attribute_that_a_hint_plugin_made_up_decides_where_a_request_goes() {
    let host = Host::start(&tagged(BOTH)).await;
    let body = json!({ "messages": user("hello"), "max_tokens": 1 });
    for row in ["0", "2", "1", "2"] {
        let heard = host.chat_with(&[("x-pointsman-row", row)], body.clone()).await;
        assert_eq!(heard.status(), "200", "{}", heard.json);
        assert_eq!(heard.header("x-pointsman-worker"), format!("worker-{row}"));
    }
    assert_eq!(host.chat_with(&[], body).await.status(), "200");
    assert_eq!(
        host.calls("tagger", "score", "abstained").await,
        1,
        "without the header there is no attribute"
    );
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn outcomes_say_whose_request_it_was_and_refused_ones_have_none() {
    let host = Host::start(&tagged(BOTH)).await;
    let body = json!({ "messages": user("hello"), "max_tokens": 1 });
    for tenant in ["acme", "beta", "acme"] {
        assert_eq!(host.chat_with(&[("x-tenant", tenant)], body.clone()).await.status(), "200");
    }
    // A first token and an end each.
    host.until("all are told", async || host.said("tagger", "outcomes_of_acme").await == 4).await;
    host.stop().await;

    let doorman = component("doorman");
    let closed = format!(
        "{BOTH}\nadmit = [\"doorman\"]\n[plugins.doorman]\nsource = {doorman:?}\n\
         config = {{ running_max = 0, patience_ms = 0.0 }}"
    );
    let host = Host::start(&tagged(&closed)).await;
    assert_eq!(host.chat_with(&[("x-tenant", "acme")], body).await.status(), "429");
    assert!(
        host.said("tagger", "outcomes_of_acme").await.is_null()
            || host.said("tagger", "outcomes_of_acme").await == 0
    );
    assert_eq!(host.calls("tagger", "observe", "ok").await, 0);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_names_its_chain_unless_it_is_the_default_one() {
    let named = format!("{BOTH}\n[[chains]]\nname = \"gold\"\nmatch = {{ tenants = [\"acme\"] }}");
    let host = Host::start(&tagged(&named)).await;
    let body = json!({ "messages": user("hello"), "max_tokens": 1 });
    for (tenant, chain) in [("acme", "gold"), ("beta", "")] {
        let heard = host.chat_with(&[("x-tenant", tenant)], body.clone()).await;
        assert_eq!(heard.header("x-pointsman-chain"), chain, "{tenant}");
    }
    host.stop().await;
}
