//! What Codex says of a request: in its metadata, which travels in the body and as a header, and in further headers.
//!
//! The body goes first: over a WebSocket the headers are those of the connection, and stay what they were in its first
//! turn.

use crate::Lineage;
use pointsman_sdk::HintsView;
use serde_json::{Map, Value as Json};

/// The metadata of a turn: a text with JSON.
const TURN_METADATA: &str = "x-codex-turn-metadata";

/// Everything that Codex said.
#[derive(Debug)]
pub(crate) struct Codex<'a> {
    view: &'a HintsView<'a>,
    client: Map<String, Json>,
    turn: Map<String, Json>,
}

impl<'a> Codex<'a> {
    /// Reads it; what is no JSON object is as good as absent.
    pub(crate) fn read(view: &'a HintsView<'a>) -> Self {
        let client = view.extension("client_metadata").map(object).unwrap_or_default();
        let in_body = client.get(TURN_METADATA).and_then(Json::as_str);
        let turn = in_body.or_else(|| view.header(TURN_METADATA)).map(object).unwrap_or_default();
        Self { view, client, turn }
    }

    /// A thread is what grows turn by turn; a sub-agent has a thread of its own.
    pub(crate) fn lineage(&self) -> Option<Lineage> {
        let root = self.said("session_id", "session-id");
        let thread = self.said("thread_id", "thread-id");
        let session = thread.or_else(|| Some(self.window()?.0)).or_else(|| root.clone())?;
        let parent = self.said("parent_thread_id", "x-codex-parent-thread-id");
        // Reviews and the like do not say whose they are: of the session in which they run.
        let parent = parent.or_else(|| root.filter(|root| self.subagent().is_some() && *root != session));
        Some(Lineage { session, parent })
    }

    /// In which way a sub-agent was started.
    pub(crate) fn subagent(&self) -> Option<String> {
        self.said("subagent_kind", "x-openai-subagent")
    }

    /// `turn`, `prewarm`, `compaction`, `memory`, or another word.
    pub(crate) fn request_kind(&self) -> Option<String> {
        self.turn("request_kind")
    }

    /// The turn that the request belongs to, and the one of its user.
    pub(crate) fn turns(&self) -> (Option<String>, Option<String>) {
        (self.said("turn_id", "turn_id"), self.said("root_turn_id", "root_turn_id"))
    }

    /// How often the thread was compacted.
    pub(crate) fn compactions(&self) -> Option<f64> {
        self.window()?.1.parse().ok().map(|count: u32| count.into())
    }

    /// Milliseconds since its turn began.
    pub(crate) fn turn_age_ms(&self) -> Option<f64> {
        let began = self.turn.get("turn_started_at_unix_ms")?;
        let began = began.as_u64().or_else(|| began.as_str()?.parse().ok()).filter(|ms| *ms > 0)?;
        Some(self.view.frame.now_ms.saturating_sub(began) as f64)
    }

    /// A window is named `<thread>:<number>`.
    fn window(&self) -> Option<(String, String)> {
        let window = self.said("window_id", "x-codex-window-id")?;
        let (thread, number) = window.rsplit_once(':')?;
        (!thread.is_empty()).then(|| (thread.to_owned(), number.to_owned()))
    }

    /// A field of the turn's metadata, or what says the same beside it.
    fn said(&self, name: &str, header: &str) -> Option<String> {
        let beside = || [name, header].into_iter().find_map(|name| text(&self.client, name));
        self.turn(name).or_else(beside).or_else(|| self.view.header(header).map(str::to_owned))
    }

    fn turn(&self, name: &str) -> Option<String> {
        text(&self.turn, name)
    }
}

fn text(object: &Map<String, Json>, name: &str) -> Option<String> {
    object.get(name)?.as_str().filter(|text| !text.is_empty()).map(str::to_owned)
}

fn object(json: &str) -> Map<String, Json> {
    match serde_json::from_str(json) {
        Ok(Json::Object(object)) => object,
        _ => Map::new(),
    }
}
