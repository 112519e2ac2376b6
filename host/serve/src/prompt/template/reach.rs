//! How far back a message that is added changes what a template wrote before it.
//!
//! Most templates write a message by itself; some drop old reasoning when the user asks again, or write the system
//! prompt into the last question. What one does is found out with conversations that are rendered whole and, as the
//! incremental path does it, with a part left out.
//! **Invariant:** a reach is granted only where every probe agreed; a template that is not understood reaches all.

use minijinja::value::Value;
use serde_json::json;

use super::{ChatTemplate, Setting};
use crate::prompt::canonical::neutral;

/// Kinds of messages, as far as templates tell them apart.
const KINDS: usize = 5;

/// What a message is to a template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Turn {
    pub(crate) by: By,
    /// Whether it has reasoning, which templates drop.
    pub(crate) thought: bool,
    /// Whether it has more than one call.
    pub(crate) several: bool,
}

/// Whose a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    /// The user.
    User = 0,
    /// The assistant, who answers.
    Answer = 1,
    /// The assistant, who calls tools.
    Call = 2,
    /// A tool.
    Tool = 3,
    /// The operator, or whoever else.
    Other = 4,
}

impl Turn {
    pub(super) fn of(message: &serde_json::Value) -> Self {
        let by = match message["role"].as_str() {
            Some("user") => By::User,
            Some("assistant") if message["tool_calls"].is_array() => By::Call,
            Some("assistant") => By::Answer,
            Some("tool") => By::Tool,
            _ => By::Other,
        };
        let marked = |text: &serde_json::Value| text.as_str().is_some_and(|text| text.contains("think>"));
        let content = &message["content"];
        let in_parts = || content.as_array().into_iter().flatten().any(|part| marked(&part["text"]));
        let known = ["role", "content", "name", "tool_calls", "tool_call_id"];
        let mut keys = message.as_object().into_iter().flatten().map(|(key, _)| key.as_str());
        // Reasoning, or whatever else a caller gave that templates may have rules about.
        let more = keys.any(|key| !known.contains(&key));
        let several = message["tool_calls"].as_array().is_some_and(|calls| calls.len() > 1);
        Self {
            by,
            several,
            thought: more || (message["role"] == "assistant" && (marked(content) || in_parts())),
        }
    }

    /// Its letter in the shape of a conversation.
    fn letter(self) -> char {
        match self.by {
            By::User => 'u',
            By::Answer => 'a',
            By::Call if self.several => '2',
            By::Call => 'c',
            By::Tool => 't',
            By::Other => 's',
        }
    }

    pub(crate) fn is_assistant(self) -> bool {
        matches!(self.by, By::Answer | By::Call)
    }
}

/// How far back what was written may change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reach {
    /// Within the last two turns of the assistant.
    Near,
    /// To the last question of the user.
    Question,
    /// To the beginning.
    #[default]
    All,
}

/// The reach of each kind of message, in conversations without tools and with them, without reasoning and with it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reaches {
    known: [[[Reach; KINDS]; 2]; 2],
    /// Whether there are orders of messages that the template refuses, without tools and with them.
    strict: [bool; 2],
}

impl Reaches {
    /// How far back these messages reach, which are added to a conversation.
    pub(crate) fn of(&self, added: impl Iterator<Item = Turn>, has_tools: bool, thought: bool) -> Reach {
        let known = &self.known[usize::from(has_tools)];
        let reach = |turn: Turn| known[usize::from(thought || turn.thought)][turn.by as usize];
        added.map(reach).max().unwrap_or_default()
    }

    /// Whether the order of a whole conversation has to be looked at, for its end does not tell that it is refused.
    pub(crate) fn is_strict(&self, has_tools: bool) -> bool {
        self.strict[usize::from(has_tools)]
    }
}

/// The messages that stand for a conversation while something is added to it: its head, and its end.
#[derive(Clone, Debug, Default)]
pub(crate) struct Window {
    head: Vec<Value>,
    /// The last user's message before `recent`, if something before that is left out.
    before: Option<Value>,
    recent: Vec<(Turn, Value)>,
    /// Kinds of all messages of the conversation, a letter each.
    shape: String,
    /// Whether the conversation has messages with reasoning.
    thought: bool,
    /// Places in `recent` of the last question, and where the last two turns of the assistant begin.
    question: usize,
    near: usize,
}

impl Window {
    /// The window of a conversation to which these messages were added.
    pub(crate) fn extended(&self, added: &[(Turn, Value)]) -> Self {
        let mut next = self.clone();
        next.shape.extend(added.iter().map(|(turn, _)| turn.letter()));
        let mut added = added.iter();
        if next.recent.is_empty() && next.before.is_none() {
            while let Some((_, value)) = added.as_slice().first().filter(|(turn, _)| turn.by == By::Other) {
                next.head.push(value.clone());
                added.next();
            }
        }
        next.thought |= added.as_slice().iter().any(|(turn, _)| turn.thought);
        next.recent.extend(added.cloned());
        let question = next.recent.iter().rposition(|(turn, _)| turn.by == By::User).unwrap_or(0);
        let said = |(at, (turn, _)): (usize, &(Turn, Value))| turn.is_assistant().then_some(at);
        let near = next.recent.iter().enumerate().rev().filter_map(said).nth(1).unwrap_or(0);
        let from = question.min(near);
        let left: Vec<(Turn, Value)> = next.recent.drain(..from).collect();
        let last = left.into_iter().rev().find(|(turn, _)| turn.by == By::User);
        next.before = last.map(|(_, value)| value).or(next.before);
        (next.question, next.near) = (question - from, near - from);
        next
    }

    /// Whether the conversation has messages with reasoning.
    pub(crate) fn thought(&self) -> bool {
        self.thought
    }

    /// Kinds of all messages of the conversation, a letter each.
    pub(crate) fn shape(&self) -> &str {
        &self.shape
    }

    /// The messages to render for additions of this reach; `None` if only the whole conversation will do.
    pub(crate) fn messages(&self, reach: Reach) -> Option<Vec<Value>> {
        let is_user = |at: usize| self.recent.get(at).is_some_and(|(turn, _)| turn.by == By::User);
        let (before, from) = match reach {
            Reach::All => return None,
            Reach::Question if is_user(self.question) => (None, self.question),
            Reach::Question => return None,
            Reach::Near => {
                let within = self.recent[..self.near].iter().rev().find(|(turn, _)| turn.by == By::User);
                (within.map(|(_, value)| value).or(self.before.as_ref()), self.near)
            }
        };
        let recent = self.recent[from..].iter().map(|(_, value)| value);
        Some(self.head.iter().chain(before).chain(recent).cloned().collect())
    }

    /// Bytes that the strings of a message take, about.
    pub(crate) fn len(&self) -> usize {
        self.head.len() + self.recent.len()
    }
}

/// What is appended to a text: its last bytes go, others come.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Change {
    /// Bytes that go.
    pub(crate) back: usize,
    /// The text that comes.
    pub(crate) added: String,
}

impl Change {
    /// How one text became another.
    pub(crate) fn between(old: &str, new: &str) -> Self {
        let same = old.as_bytes().iter().zip(new.as_bytes()).take_while(|(a, b)| a == b).count();
        let same = new.floor_char_boundary(old.floor_char_boundary(same));
        Self { back: old.len() - same, added: new[same..].to_owned() }
    }
}

/// Finds out the reach of each kind of message.
pub(super) fn learn(
    template: &ChatTemplate,
    kind: usize,
    extra: &serde_json::Map<String, serde_json::Value>,
) -> Reaches {
    let tool = json!({"type": "function", "function": {"name": "f", "description": "d",
        "parameters": {"type": "object", "properties": {"a": {"type": "string"}}}}});
    let tools = template.tools(&[tool]);
    let with_tools = (kind + 1 == template.kinds.len()).then_some((1, Some(tools)));
    let settings = (kind == 0).then_some((0, None)).into_iter().chain(with_tools);
    let mut reaches = Reaches::default();
    for (has_tools, tools) in settings {
        let setting = template.setting(tools, extra, 0);
        for thought in [false, true] {
            let probe = |shape: &&str| Probe::new(template, &setting, &conversation(shape, thought));
            let probes: Vec<Probe> = CONVERSATIONS.iter().filter_map(probe).collect();
            let strict = &mut reaches.strict[has_tools];
            *strict |= probes.len() < CONVERSATIONS.len();
            let mut known = [None; KINDS];
            for added in ADDED {
                for probe in &probes {
                    *strict |= !probe.note(template, &setting, (added, thought), &mut known);
                }
            }
            // What no probe could show is not understood.
            reaches.known[has_tools][usize::from(thought)] = known.map(Option::unwrap_or_default);
        }
    }
    reaches
}

/// Whether the template takes messages in this order, a letter each.
pub(super) fn takes(template: &ChatTemplate, setting: &Setting, shape: &str) -> bool {
    let objects = template.shown(setting, &conversation(shape, false)).objects;
    template.text(setting, objects.into_iter().map(|(_, value)| value).collect()).is_ok()
}

/// Conversations, a letter a message: system, user, answer, call, two calls, tool.
const CONVERSATIONS: [&str; 13] = [
    "suauauau",
    "uauau",
    "suctctctct",
    "suctauctctct",
    "uau2ttct2tt",
    "suauctctau",
    "uctcttauau",
    "suauaus",
    "uctctau2tt",
    "suctuct",
    "uctuctuct",
    "suctuauctct",
    "suctctuuct",
];
/// What may be added to one, in an order that blames few kinds of messages for what is found.
const ADDED: [&str; 10] = ["ct", "2tt", "u", "a", "s", "au", "cts", "asu", "ctctau", "aus"];

fn conversation(shape: &str, thought: bool) -> Vec<serde_json::Value> {
    let mut called = 0;
    let message = |(i, letter): (usize, char)| {
        let text = format!("text {i} of some words");
        let call = |id: usize| {
            let arguments = format!("{{\"a\":  \"{id}\"}}");
            json!({"id": format!("call{id:05}"), "function": {"name": "f", "arguments": arguments}})
        };
        let mut message = match letter {
            's' => json!({"role": "system", "content": text}),
            'u' => json!({"role": "user", "content": text}),
            'a' => json!({"role": "assistant", "content": text}),
            'c' => json!({"role": "assistant", "content": "", "tool_calls": [call(i)]}),
            '2' => json!({"role": "assistant", "content": text, "tool_calls": [call(i), call(i + 100)]}),
            _ => {
                json!({"role": "tool", "content": text, "name": "f", "tool_call_id": format!("call{called:05}")})
            }
        };
        if letter == 'c' || letter == '2' {
            called = i;
        } else if letter == 't' {
            called += 100;
        }
        if thought && message["role"] == "assistant" {
            message["reasoning_content"] = format!("thought {i}").into();
        }
        neutral(&message, "probe").unwrap_or_default()
    };
    shape.chars().enumerate().map(message).collect()
}

/// A conversation, its text, and the windows that may stand for it.
struct Probe {
    objects: Vec<(Turn, Value)>,
    text: String,
    windows: Vec<(Reach, String, Vec<Value>)>,
}

impl Probe {
    /// `None` for a conversation that the template refuses, which says nothing about it.
    fn new(template: &ChatTemplate, setting: &Setting, messages: &[serde_json::Value]) -> Option<Self> {
        let objects = template.shown(setting, messages).objects;
        let text = template.text(setting, objects.iter().map(|(_, value)| value.clone()).collect()).ok()?;
        let window = Window::default().extended(&objects);
        let rendered = |reach: Reach| {
            let messages = window.messages(reach)?;
            Some((reach, template.text(setting, messages.clone()).ok()?, messages))
        };
        let windows = [Reach::Near, Reach::Question].into_iter().filter_map(rendered).collect();
        Some(Self { objects, text, windows })
    }

    /// Notes how far back messages have to be granted to reach, unless some of them may reach as far already. False if the
    /// template refuses them there.
    fn note(
        &self,
        template: &ChatTemplate,
        setting: &Setting,
        (added, thought): (&str, bool),
        known: &mut [Option<Reach>; KINDS],
    ) -> bool {
        let before = self.objects.len();
        let shape = " ".repeat(before) + added;
        let added = template.shown(setting, &conversation(&shape, thought)[before..]).objects;
        let with = |messages: &[Value]| {
            let all = messages.iter().chain(added.iter().map(|(_, value)| value)).cloned().collect();
            template.text(setting, all).ok()
        };
        let objects: Vec<Value> = self.objects.iter().map(|(_, value)| value.clone()).collect();
        let Some(new) = with(&objects) else { return false };
        let change = Change::between(&self.text, &new);
        let fits = |(reach, text, messages): &(Reach, String, Vec<Value>)| {
            let foreseen = Change::between(text, &with(messages)?);
            (foreseen == change && is_end_of(text, &self.text, change.back)).then_some(*reach)
        };
        let fitting: Vec<Reach> = self.windows.iter().filter_map(fits).collect();
        let granted = added.iter().filter_map(|(turn, _)| known[turn.by as usize]).max();
        let granted = granted.unwrap_or(Reach::Near);
        let is_enough = granted == Reach::All || fitting.contains(&granted);
        let needed = match is_enough {
            true => Reach::Near,
            false => fitting.into_iter().find(|reach| *reach > granted).unwrap_or(Reach::All),
        };
        for (turn, _) in &added {
            let known = &mut known[turn.by as usize];
            *known = (*known).max(Some(needed));
        }
        true
    }
}

/// Bytes before a change that have to be equal in a window and in the whole conversation. Chosen: a template\'s marks
/// around a message are about as long.
const SAME_BYTES_MIN: usize = 32;

/// Whether the end of a window's text, of which `back` bytes will go, is that of the whole text.
pub(crate) fn is_end_of(window: &str, whole: &str, back: usize) -> bool {
    let wanted = (back + SAME_BYTES_MIN).min(window.len());
    window.as_bytes().iter().rev().zip(whole.as_bytes().iter().rev()).take_while(|(a, b)| a == b).count()
        >= wanted
}
