//! The adapter for components of the vLLM router's middleware contract: they have no `describe` and no settings.

use super::Instance;
use crate::bindings::exports::pointsman::policy::describe;
use crate::bindings::middleware::vllm::router_middleware::types as foreign;
use crate::sandbox::HOSTCALL_BYTES_MAX;
use crate::slot::{Action, Answer, Changes, Header, MiddlewarePolicy, MiddlewareView, Slot};

/// What the host says of such a component in its place.
pub(super) fn description() -> describe::Description {
    describe::Description {
        name: "vllm:router-middleware".to_owned(),
        version: "0.1.0".to_owned(),
        slots: vec![Slot::Middleware.as_str().to_owned()],
        inputs: vec![],
        wishes: vec![],
    }
}

impl MiddlewarePolicy for Instance {
    fn handle(&mut self, view: &MiddlewareView<'_>) -> Answer<Action> {
        let header = |(name, value): &Header| foreign::Header { name: name.clone(), value: value.clone() };
        let request = foreign::Request {
            method: view.method.to_owned(),
            path: view.path.to_owned(),
            query: view.query.to_owned(),
            headers: view.headers.iter().map(header).collect(),
            body: view.body.to_vec(),
            request_id: view.request_id.to_owned(),
        };
        // Room for a changed body.
        self.store.set_hostcall_fuel(HOSTCALL_BYTES_MAX.saturating_add(view.body.len().saturating_mul(2)));
        let action = self.guarded(|guest, store, _, _| match &guest.middleware {
            Some(guest) => guest.call_handle(store, &request).map(Some),
            None => Ok(None),
        })?;
        action.map(Action::from)
    }
}

impl From<foreign::Action> for Action {
    fn from(action: foreign::Action) -> Self {
        let plain = |headers: Vec<foreign::Header>| -> Vec<Header> {
            headers.into_iter().map(|foreign::Header { name, value }| (name, value)).collect()
        };
        match action {
            foreign::Action::Continue => Self::Continue,
            foreign::Action::Reject(status) => Self::Reject(status),
            foreign::Action::Modify(changes) => Self::Modify(Changes {
                set: plain(changes.headers_set),
                add: plain(changes.headers_add),
                remove: changes.headers_remove,
                body: changes.body_replace,
            }),
        }
    }
}
