//! A model's chat template: messages to the text that the model was trained on.
//!
//! Jinja as Hugging Face runs it, compiled once. At load the template is rendered with a few probe
//! conversations, to learn which spelling of content and of tool arguments it wants, and how far back a message
//! that is added changes what was written before it.
//! Called once a request.
//! **Invariant:** the same conversation gives the same text; a longer one has a shorter one's text as its
//! prefix wherever the template allows it.

mod layout;
mod printed;
mod python;
mod reach;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value};
use minijinja::{Environment, Error, ErrorKind, State};
use parking_lot::Mutex;
use serde_json::{Map, json};

use self::layout::Layout;
pub(crate) use self::python::strftime;
use self::python::{dumps, tojson};
#[cfg(test)]
pub(crate) use self::reach::By;
pub(crate) use self::reach::{Change, Reaches, Turn, Window, is_end_of};
use super::canonical::{Arguments, Content, Rules, neutral, spelled};
use super::segments::Span;
use super::{Guard, PromptError};

/// Most instructions of one rendering. Chosen: a thousand turns take well under a million; the limit stops
/// a template that never ends in about a second.
const FUEL_MAX: u64 = 20_000_000;

/// Where the time of a rendering is kept for `strftime_now`.
const NOW: &str = "__now_unix_s";

/// The conversation format of Hermes and Qwen 2.5, for models that come without a template.
const CHATML: &str = include_str!("chatml.jinja");

/// A model's templates and the texts that they ask for, as its files give them.
#[derive(Clone, Debug, Default)]
pub struct TemplateSource {
    /// The model's folder, for messages.
    pub path: PathBuf,
    /// The template; ChatML when there is none.
    pub template: Option<String>,
    /// The template for conversations with tools, where that is another one.
    pub with_tools: Option<String>,
    /// `bos_token`, `eos_token` and their like.
    pub specials: Map<String, serde_json::Value>,
}

impl TemplateSource {
    /// Reads `tokenizer_config.json` (`null` if absent) and `chat_template.jinja`; the latter wins.
    pub fn from_config(path: &Path, config: &serde_json::Value, file: Option<String>) -> Self {
        let mut source = Self { path: path.to_owned(), template: file, ..Self::default() };
        let Some(config) = config.as_object() else { return source };
        for (key, value) in config.iter().filter(|(key, _)| key.ends_with("_token")) {
            if let Some(text) = value.as_str().or_else(|| value.get("content")?.as_str()) {
                source.specials.insert(key.clone(), text.into());
            }
        }
        if source.template.is_some() {
            return source;
        }
        let templates = config.get("chat_template");
        let named = |name: &str| {
            let all = templates?.as_array()?;
            all.iter().find(|t| t["name"] == name)?["template"].as_str().map(str::to_owned)
        };
        source.template = templates.and_then(|t| t.as_str()).map(str::to_owned).or_else(|| named("default"));
        source.with_tools = named("tool_use");
        source
    }
}

/// What is rendered.
#[derive(Clone, Copy, Debug)]
pub struct RenderInput<'a> {
    /// Messages in the shape of OpenAI's chat completions.
    pub messages: &'a [serde_json::Value],
    /// Tools in that shape; `None` and an empty list mean the same.
    pub tools: Option<&'a [serde_json::Value]>,
    /// Whether the text ends where the model's turn begins.
    pub add_generation_prompt: bool,
    /// `chat_template_kwargs`: further variables of the template.
    pub extra: &'a Map<String, serde_json::Value>,
    /// The time that `strftime_now` tells, in milliseconds since 1970.
    pub now_unix_ms: u64,
}

/// A compiled chat template. Shared by all requests.
pub struct ChatTemplate {
    env: Environment<'static>,
    /// The template, and the one for conversations with tools where that is another.
    kinds: Vec<Kind>,
    specials: Map<String, serde_json::Value>,
    guard: Guard,
    /// The reaches under variables that callers gave.
    learned: Mutex<Vec<Learned>>,
}

/// Which template, the variables, and what was learned.
type Learned = (usize, Map<String, serde_json::Value>, Arc<Reaches>);

/// Most sets of variables that something is learned about. Chosen: a client has a handful; for more, conversations are
/// rendered whole.
const LEARNED_MAX: usize = 16;

/// One template of a model, and what was learned of it.
#[derive(Debug)]
struct Kind {
    name: &'static str,
    rules: Rules,
    layout: Layout,
    reach: Arc<Reaches>,
    /// Seconds within which it tells the same time, if it tells the time at all.
    tick_s: Option<u64>,
}

/// Messages as a template sees them, for those who read them and for the template.
pub(crate) struct Shown {
    seen: Vec<serde_json::Value>,
    pub(crate) objects: Vec<(Turn, Value)>,
}

/// What is the same for all renderings of a conversation: tools, variables, the time.
#[derive(Clone, Debug)]
pub(crate) struct Setting {
    kind: usize,
    variables: BTreeMap<String, Value>,
    /// Variables of the caller's own, which may change what a template does.
    extra: Map<String, serde_json::Value>,
}

/// Names of the templates in the environment.
const DEFAULT: &str = "chat";
const WITH_TOOLS: &str = "chat_with_tools";

impl Setting {
    /// Whether there are tools.
    pub(crate) fn has_tools(&self) -> bool {
        self.variables.get("tools").is_some_and(Value::is_true)
    }
}

impl ChatTemplate {
    /// The template of a model's files; `tokenizer_config` is `null` if absent, and `file` is the text of
    /// `chat_template.jinja`. See [`ChatTemplate::new`].
    pub fn from_config(
        folder: &Path,
        tokenizer_config: &serde_json::Value,
        file: Option<String>,
        guard: &Guard,
    ) -> Result<Self, PromptError> {
        Self::new(&TemplateSource::from_config(folder, tokenizer_config, file), guard)
    }

    /// Compiles and probes a template. Content is marked with `guard`, so the text goes through
    /// [`Tokenizer::encode_prompt`](super::Tokenizer::encode_prompt).
    ///
    /// Errors: [`PromptError::Template`] when it does not compile.
    pub fn new(source: &TemplateSource, guard: &Guard) -> Result<Self, PromptError> {
        let specials = source.specials.clone();
        let (env, guard, learned) = (environment(), guard.clone(), Mutex::default());
        let mut this = Self { env, kinds: Vec::new(), specials, guard, learned };
        let template = source.template.as_deref().unwrap_or(CHATML);
        this.learn(DEFAULT, template, source)?;
        if let Some(template) = &source.with_tools {
            this.learn(WITH_TOOLS, template, source)?;
        }
        Ok(this)
    }

    fn learn(&mut self, name: &'static str, text: &str, source: &TemplateSource) -> Result<(), PromptError> {
        self.compile(name, text, source)?;
        let rules = self.probe(name, text);
        let layout = self.layout_of(name, &rules);
        let tick_s = text.contains("strftime_now").then(|| self.tick_s_of(name, &rules));
        self.kinds.push(Kind { name, rules, layout, reach: Arc::default(), tick_s });
        let kind = self.kinds.len() - 1;
        self.kinds[kind].reach = Arc::new(reach::learn(self, kind, &Map::new()));
        Ok(())
    }

    /// The text of a conversation, with what content spells of added tokens marked.
    ///
    /// Errors: [`PromptError::Refused`] for content that is no text, and when the template raises or fails:
    /// templates index and concatenate without checks, and what trips them is the conversation's shape.
    pub fn render(&self, input: &RenderInput<'_>) -> Result<String, PromptError> {
        let tools = input.tools.map(|tools| self.tools(tools));
        let mut setting = self.setting(tools, input.extra, input.now_unix_ms);
        setting.variables.insert("add_generation_prompt".into(), input.add_generation_prompt.into());
        let messages = self.seen(&neutral_all(input.messages)?, setting.kind);
        self.text(&setting, self.values(&messages, setting.kind))
    }

    /// What each stretch of a rendered text is, as far as the template's layout is known.
    ///
    /// Cost: about that of reading the messages and the text a few times.
    pub fn spans(&self, input: &RenderInput<'_>, text: &str) -> Vec<Span> {
        let tools = input.tools.is_some_and(|tools| !tools.is_empty());
        let kind = self.kind(tools);
        match neutral_all(input.messages) {
            Ok(messages) => {
                let messages = self.seen(&messages, kind);
                self.kinds[kind].layout.spans(&messages, tools, text, &self.guard)
            }
            Err(_) => vec![],
        }
    }

    /// Which template renders a conversation.
    fn kind(&self, tools: bool) -> usize {
        if tools { self.kinds.len() - 1 } else { 0 }
    }

    /// Tools as templates see them, each with the JSON that it is printed as.
    pub(crate) fn tools(&self, tools: &[serde_json::Value]) -> Vec<Value> {
        let one = |tool: &serde_json::Value| {
            let mut tool = tool.clone();
            self.guard.value(&mut tool, false);
            printed::tool(&tool)
        };
        tools.iter().map(one).collect()
    }

    /// What stays the same while a conversation grows. `tools` are those of [`ChatTemplate::tools`].
    pub(crate) fn setting(
        &self,
        tools: Option<Vec<Value>>,
        extra: &Map<String, serde_json::Value>,
        now_unix_ms: u64,
    ) -> Setting {
        let tools = tools.filter(|tools| !tools.is_empty());
        let kind = self.kind(tools.is_some());
        let mut given = serde_json::Value::from(extra.clone());
        self.guard.value(&mut given, false);
        let named = given.as_object().into_iter().flatten().chain(&self.specials);
        let mut variables: BTreeMap<String, Value> =
            named.map(|(name, value)| (name.clone(), Value::from(Serde(value)))).collect();
        if let Some(tools) = tools {
            variables.insert("tools".into(), tools.into());
        }
        variables.entry("tools".into()).or_insert(().into());
        variables.insert("add_generation_prompt".into(), true.into());
        variables.insert(NOW.into(), (now_unix_ms / 1000).into());
        Setting { kind, variables, extra: extra.clone() }
    }

    /// Seconds within which the text of a conversation stays the same; `None` if it tells no time.
    pub(crate) fn tick_s(&self, setting: &Setting) -> Option<u64> {
        self.kinds[setting.kind].tick_s
    }

    /// Whether the template takes messages in this order, a letter each as in [`Window::shape`].
    pub(crate) fn takes(&self, setting: &Setting, shape: &str) -> bool {
        reach::takes(self, setting, shape)
    }

    /// How far back messages that are added change what was written.
    ///
    /// Cost: for variables that were not seen before, some ten milliseconds.
    pub(crate) fn reach(&self, setting: &Setting) -> Arc<Reaches> {
        let Setting { kind, extra, .. } = setting;
        if extra.is_empty() {
            return Arc::clone(&self.kinds[*kind].reach);
        }
        let known = |learned: &[Learned]| {
            let found = learned.iter().find(|(of, with, _)| of == kind && with == extra);
            found.map(|(_, _, reach)| Arc::clone(reach))
        };
        let (found, full) = {
            let learned = self.learned.lock();
            (known(&learned), learned.len() >= LEARNED_MAX)
        };
        match found {
            Some(found) => found,
            None if full => Arc::default(),
            None => {
                let reach = Arc::new(reach::learn(self, *kind, extra));
                let mut learned = self.learned.lock();
                if known(&learned).is_none() && learned.len() < LEARNED_MAX {
                    learned.push((*kind, extra.clone(), Arc::clone(&reach)));
                }
                reach
            }
        }
    }

    /// Whether system messages in the middle of a conversation become a part of their neighbours.
    pub(crate) fn folds(&self, setting: &Setting) -> bool {
        !self.kinds[setting.kind].rules.late_system
    }

    /// Neutral messages as the template sees them.
    pub(crate) fn shown(&self, setting: &Setting, messages: &[serde_json::Value]) -> Shown {
        let seen = self.seen(messages, setting.kind);
        let turns: Vec<Turn> = seen.iter().map(Turn::of).collect();
        let objects = turns.into_iter().zip(self.values(&seen, setting.kind)).collect();
        Shown { seen, objects }
    }

    /// What each stretch of a text is that goes on with these messages; with `first`, it is all of the text.
    pub(crate) fn spans_of(&self, setting: &Setting, shown: &Shown, text: &str, first: bool) -> Vec<Span> {
        let tools = first && setting.has_tools();
        self.kinds[setting.kind].layout.spans(&shown.seen, tools, text, &self.guard)
    }

    /// The text of messages that [`ChatTemplate::shown`] gave, up to where the model's turn begins.
    pub(crate) fn text(&self, setting: &Setting, messages: Vec<Value>) -> Result<String, PromptError> {
        let mut variables = setting.variables.clone();
        variables.insert("messages".into(), messages.into());
        let name = self.kinds[setting.kind].name;
        let template = self.env.get_template(name).map_err(refusal)?;
        template.render(Value::from(variables)).map_err(refusal)
    }

    /// Neutral messages as the template sees them: in its spelling, with what content spells of added tokens marked.
    fn seen(&self, messages: &[serde_json::Value], kind: usize) -> Vec<serde_json::Value> {
        let mut messages = spelled(messages, &self.kinds[kind].rules);
        for message in &mut messages {
            let said_by_assistant = message["role"] == "assistant";
            self.guard.value(message, said_by_assistant);
        }
        messages
    }

    fn values(&self, seen: &[serde_json::Value], kind: usize) -> Vec<Value> {
        let as_objects = self.kinds[kind].rules.arguments == Arguments::Object;
        seen.iter().map(|message| printed::message(message, as_objects)).collect()
    }

    /// How long a template that tells the time tells the same.
    fn tick_s_of(&self, name: &str, rules: &Rules) -> u64 {
        let user = spelled(&[json!({"role": "user", "content": "u"})], rules);
        let tool = json!({"type": "function", "function": {"name": "f", "parameters": {}}});
        let texts = |now_s: u64| {
            [json!(null), json!([tool])].map(|tools| {
                let values = json!({"messages": user, "tools": tools, "add_generation_prompt": true});
                self.render_values(name, values, now_s * 1000).unwrap_or_default()
            })
        };
        // A midnight, so that each step changes what is shorter than it, too.
        const MIDNIGHT_S: u64 = 86_400 * 10_000;
        let same = texts(MIDNIGHT_S);
        let changed = |step: &u64| texts(MIDNIGHT_S + step) != same;
        [1, 60, 3600, 86_400].into_iter().find(changed).unwrap_or(1)
    }

    fn layout_of(&self, name: &str, rules: &Rules) -> Layout {
        let render = |messages: &serde_json::Value, tools: &serde_json::Value, begin: bool| {
            let values = json!({"messages": messages, "tools": tools, "add_generation_prompt": begin});
            self.render_values(name, values, 0).unwrap_or_default()
        };
        Layout::learn(&render, rules)
    }

    fn render_values(&self, name: &str, mut values: serde_json::Value, now_ms: u64) -> Result<String, Error> {
        for (key, text) in &self.specials {
            values[key] = text.clone();
        }
        if values.get("tools").is_none() {
            values["tools"] = serde_json::Value::Null;
        }
        values[NOW] = (now_ms / 1000).into();
        self.env.get_template(name)?.render(Value::from(Serde(&values)))
    }

    fn compile(
        &mut self,
        name: &'static str,
        text: &str,
        source: &TemplateSource,
    ) -> Result<(), PromptError> {
        let compiled = self.env.add_template_owned(name, without_generation_tags(text));
        compiled.map_err(|error| PromptError::Template { path: source.path.clone(), source: error })
    }

    /// Learns what a template wants, by what it makes of conversations in either spelling.
    ///
    /// Content is text unless only a list of parts comes through. Arguments stay text, which keeps what a
    /// model wrote to the byte, unless the template escapes text or fails on it.
    fn probe(&self, name: &str, source: &str) -> Rules {
        let render = |messages: serde_json::Value, tools: serde_json::Value| {
            let values = json!({"messages": messages, "tools": tools, "add_generation_prompt": true});
            self.render_values(name, values, 0).unwrap_or_default()
        };
        let user =
            |content: serde_json::Value| render(json!([{"role": "user", "content": content}]), json!(null));
        let parts = !user(json!("a probe")).contains("a probe")
            && user(json!([{"type": "text", "text": "a probe"}])).contains("a probe");
        let content = |text: &str| if parts { json!([{"type": "text", "text": text}]) } else { json!(text) };
        let call = |arguments: serde_json::Value| {
            let function = json!({"name": "probe", "arguments": arguments});
            let parameters = json!({"type": "object", "properties": {"probed": {"type": "string"}}});
            let messages = json!([
                {"role": "user", "content": content("a")},
                {"role": "assistant", "content": content(""),
                    "tool_calls": [{"id": "callprobe", "type": "function", "function": function}]},
                {"role": "tool", "tool_call_id": "callprobe", "name": "probe", "content": content("b")},
            ]);
            let tool = json!({"name": "probe", "description": "c", "parameters": parameters});
            render(messages, json!([{"type": "function", "function": tool}]))
        };
        // Two spaces: no serialiser writes them, so only text that was left alone has them.
        let as_text = call(json!("{\"probed\":  \"p1\"}")).contains("{\"probed\":  \"p1\"}");
        let as_object = || call(json!({"probed": "p1"})).contains("p1");
        let message = |role: &str, text: &str| json!({"role": role, "content": content(text)});
        let stays = |roles: &[&str]| {
            let texts = ["probefirst", "probesecond", "probethird", "probefourth", "probefifth"];
            let messages = roles.iter().zip(texts).map(|(role, text)| message(role, text)).collect();
            let text = render(messages, json!(null));
            let places: Vec<Option<usize>> =
                texts[..roles.len()].iter().map(|word| text.find(word)).collect();
            places.is_sorted() && places.iter().all(Option::is_some)
        };
        Rules {
            content: if parts { Content::Parts } else { Content::Text },
            arguments: if !as_text && as_object() { Arguments::Object } else { Arguments::Text },
            developer: source.contains("developer"),
            late_system: stays(&["system", "user", "assistant", "system", "user"])
                && stays(&["user", "assistant", "user", "system"]),
        }
    }
}

/// Messages in the form that they are known by.
fn neutral_all(messages: &[serde_json::Value]) -> Result<Vec<serde_json::Value>, PromptError> {
    let one = |(i, message): (usize, &serde_json::Value)| neutral(message, &format!("messages[{i}]"));
    messages.iter().enumerate().map(one).collect()
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate").field("kinds", &self.kinds).finish_non_exhaustive()
    }
}

fn environment() -> Environment<'static> {
    let mut env = Environment::new();
    let mut syntax = SyntaxConfig::builder();
    syntax.trim_blocks(true).lstrip_blocks(true);
    env.set_syntax(syntax.build().expect("the default delimiters are valid"));
    env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    env.set_fuel(Some(FUEL_MAX));
    env.add_filter("tojson", |value: &Value, indent: Option<usize>, options: Kwargs| {
        tojson(value, indent, options)
    });
    env.add_function("raise_exception", |reason: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, reason.clone()).with_source(Raised(reason)))
    });
    env.add_function("strftime_now", |state: &State, format: &str| {
        let now = state.lookup(NOW).and_then(|now| now.as_i64());
        strftime(format, now.unwrap_or_default())
    });
    env
}

/// What a template gave to `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn refusal(error: Error) -> PromptError {
    let mut source = std::error::Error::source(&error);
    while let Some(inner) = source {
        if let Some(Raised(reason)) = inner.downcast_ref() {
            return PromptError::Refused { param: "messages".into(), message: reason.clone() };
        }
        source = inner.source();
    }
    let message = format!("`messages`: the model's chat template cannot render them: {error}");
    PromptError::Refused { param: "messages".into(), message }
}

/// Training tools mark what an assistant generated with tags that Jinja does not know. A condition that is
/// always true has the same effect on the text, white space included.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at + 2);
        out.push_str(before);
        let end = tag.find("%}").unwrap_or(tag.len());
        let word = tag[..end].trim_matches(|c: char| c.is_whitespace() || matches!(c, '-' | '+'));
        let replacement = match word {
            "generation" => "if true",
            "endgeneration" => "endif",
            _ => word,
        };
        out.push_str(&tag[..end].replacen(word, replacement, usize::from(word != replacement)));
        rest = &tag[end..];
    }
    out + rest
}

/// JSON in Python's spelling, for arguments that a caller sent as an object.
pub(super) fn python_json(value: &serde_json::Value) -> String {
    dumps(value).unwrap_or_else(|_| value.to_string())
}

#[cfg(test)]
mod tests;
