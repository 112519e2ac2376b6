//! Middleware of the vLLM router: built against its contract alone, with nothing of ours.
//!
//! A body that says `__reject__` is turned away, `__trap__` traps it, `__short__` is changed to ask for one token. It
//! turns away whoever shows it credentials, and names each request's session after what `x-team` says.
#![allow(unsafe_code, reason = "generated from the contract")]

#[allow(missing_docs, reason = "generated from the contract")]
#[allow(clippy::allow_attributes_without_reason, reason = "generated")]
mod bindings {
    wit_bindgen::generate!({ path: "../../../host/policy/foreign", world: "middleware" });
}

use bindings::exports::vllm::router_middleware::on_request::Guest;
use bindings::vllm::router_middleware::types::{Action, Header, ModifyAction, Request};

struct Gate;

impl Guest for Gate {
    fn handle(request: Request) -> Action {
        let text = String::from_utf8_lossy(&request.body);
        let shown = |name: &str| request.headers.iter().find(|header| header.name == name);
        if shown("authorization").is_some() || shown("x-api-key").is_some() || shown("cookie").is_some() {
            return Action::Reject(500);
        }
        if request.method != "POST" || request.path != "/v1/chat/completions" || request.request_id.is_empty()
        {
            return Action::Reject(501);
        }
        if text.contains("__reject__") {
            return Action::Reject(403);
        }
        assert!(!text.contains("__trap__"), "this middleware traps on purpose");
        let team =
            shown("x-team").map(|team| Header { name: "x-session-id".to_owned(), value: team.value.clone() });
        let short = text.contains("__short__");
        if team.is_none() && !short {
            return Action::Continue;
        }
        Action::Modify(ModifyAction {
            headers_set: team.into_iter().collect(),
            // Not on the allow-list: the host leaves it out.
            headers_add: vec![Header { name: "authorization".to_owned(), value: b"Bearer forged".to_vec() }],
            headers_remove: vec![],
            body_replace: short.then(|| text.replace("\"max_tokens\":9", "\"max_tokens\":1").into_bytes()),
        })
    }
}

#[cfg(target_arch = "wasm32")]
bindings::export!(Gate with_types_in bindings);
