//! `thread`: a caller has the host hold the conversation, and sends only what is new.
//!
//! What is sent is joined with what is held before it is read, so that behind here nobody knows how it came.

use serde_json::{Map, Value};

use crate::api::fields::Fields;
use crate::request::Refusal;
use crate::threads::{Conversation, Threads, Turn};

/// Fields that a conversation begins with, and that no later turn repeats.
const SETTINGS: [&str; 2] = ["system", "tools"];

/// Puts what is held of a conversation into the body of its next turn; `None` where nothing is to be held.
pub(super) fn join(body: &mut Value, threads: &Threads, tenant: &str) -> Result<Option<Turn>, Refusal> {
    let fields = Fields::body(body)?;
    let Some(thread) = fields.object("thread")? else { return Ok(None) };
    let new = inner(fields.list("messages")?.map(Vec::as_slice).unwrap_or_default());
    match thread.text("type")? {
        Some("create") => {
            let settings: Map<String, Value> = SETTINGS
                .iter()
                .filter_map(|name| Some(((*name).to_owned(), fields.get(name)?.clone())))
                .collect();
            let conversation = Conversation { settings: Value::from(settings).to_string(), messages: new };
            Ok(Some(threads.create(tenant, conversation)))
        }
        Some("continue") => {
            if let Some(name) = SETTINGS.into_iter().find(|name| fields.get(name).is_some()) {
                return Err(
                    fields.wrong(name, "left out where `thread` continues a conversation, which has its own")
                );
            }
            let previous = thread.text("previous_message_id")?;
            let previous =
                previous.ok_or_else(|| thread.wrong("previous_message_id", "the id of an answer"))?;
            let mut turn = threads.proceed(tenant, previous)?;
            turn.conversation.push(&new);
            restore(body, &turn.conversation);
            Ok(Some(turn))
        }
        _ => Err(thread.wrong("type", "\"create\" or \"continue\"")),
    }
}

/// The answer, as the next turn has it before its own messages.
pub(super) fn answered(turn: &mut Turn, content: &[Value]) {
    if !content.is_empty() {
        let message = serde_json::json!({"role": "assistant", "content": content});
        turn.conversation.push(&message.to_string());
    }
}

fn restore(body: &mut Value, held: &Conversation) {
    let parse = |text: &str| serde_json::from_str::<Value>(text).expect("it was written from JSON");
    if let Value::Object(settings) = parse(&held.settings) {
        for (name, value) in settings {
            body[name] = value;
        }
    }
    body["messages"] = parse(&format!("[{}]", held.messages));
}

/// A list as it stands between its brackets.
fn inner(messages: &[Value]) -> String {
    let texts: Vec<String> = messages.iter().map(Value::to_string).collect();
    texts.join(",")
}
