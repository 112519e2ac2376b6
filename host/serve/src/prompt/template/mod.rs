//! A model's chat template: messages to the text that the model was trained on.
//!
//! Jinja as Hugging Face runs it, compiled once. At load the template is rendered with a few probe
//! conversations, to learn which spelling of content and of tool arguments it wants.
//! Called once a request.
//! **Invariant:** the same conversation gives the same text; a longer one has a shorter one's text as its
//! prefix wherever the template allows it.

mod layout;
mod python;

use std::path::{Path, PathBuf};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value};
use minijinja::{Environment, Error, ErrorKind, State};
use serde_json::{Map, json};

use self::layout::Layout;
pub(crate) use self::python::strftime;
use self::python::{dumps, tojson};
use super::canonical::{Arguments, Content, Rules, canonical};
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
    rules: Rules,
    rules_with_tools: Option<Rules>,
    layout: Layout,
    layout_with_tools: Layout,
    specials: Map<String, serde_json::Value>,
    guard: Guard,
}

/// Names of the templates in the environment.
const DEFAULT: &str = "chat";
const WITH_TOOLS: &str = "chat_with_tools";

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
        let mut this = Self {
            env: environment(),
            rules: Rules::default(),
            rules_with_tools: None,
            layout: Layout::default(),
            layout_with_tools: Layout::default(),
            specials: source.specials.clone(),
            guard: guard.clone(),
        };
        let template = source.template.as_deref().unwrap_or(CHATML);
        this.compile(DEFAULT, template, source)?;
        this.rules = this.probe(DEFAULT, template);
        this.layout = this.layout_of(DEFAULT, &this.rules);
        if let Some(template) = &source.with_tools {
            this.compile(WITH_TOOLS, template, source)?;
            let rules = this.probe(WITH_TOOLS, template);
            this.layout_with_tools = this.layout_of(WITH_TOOLS, &rules);
            this.rules_with_tools = Some(rules);
        }
        Ok(this)
    }

    /// The text of a conversation, with what content spells of added tokens marked.
    ///
    /// Errors: [`PromptError::Refused`] for content that is no text, and when the template raises or fails:
    /// templates index and concatenate without checks, and what trips them is the conversation's shape.
    pub fn render(&self, input: &RenderInput<'_>) -> Result<String, PromptError> {
        let tools = input.tools.filter(|tools| !tools.is_empty());
        let (name, rules) = match (tools, &self.rules_with_tools) {
            (Some(_), Some(rules)) => (WITH_TOOLS, rules),
            _ => (DEFAULT, &self.rules),
        };
        let messages = self.seen(input.messages, rules)?;
        let mut variables = serde_json::Value::from(input.extra.clone());
        if let Some(tools) = tools {
            variables["tools"] = tools.into();
        }
        self.guard.value(&mut variables, false);
        variables["messages"] = messages.into();
        variables["add_generation_prompt"] = input.add_generation_prompt.into();
        self.render_values(name, variables, input.now_unix_ms).map_err(refusal)
    }

    /// What each stretch of a rendered text is, as far as the template's layout is known.
    ///
    /// Cost: about that of reading the messages and the text a few times.
    pub fn spans(&self, input: &RenderInput<'_>, text: &str) -> Vec<Span> {
        let tools = input.tools.is_some_and(|tools| !tools.is_empty());
        let (layout, rules) = match &self.rules_with_tools {
            Some(rules) if tools => (&self.layout_with_tools, rules),
            _ => (&self.layout, &self.rules),
        };
        match self.seen(input.messages, rules) {
            Ok(messages) => layout.spans(&messages, tools, text, &self.guard),
            Err(_) => vec![],
        }
    }

    /// Messages as the template sees them: in one spelling, with what content spells of added tokens marked.
    fn seen(
        &self,
        messages: &[serde_json::Value],
        rules: &Rules,
    ) -> Result<Vec<serde_json::Value>, PromptError> {
        let mut messages = canonical(messages, rules)?;
        for message in &mut messages {
            let said_by_assistant = message["role"] == "assistant";
            self.guard.value(message, said_by_assistant);
        }
        Ok(messages)
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
        let call = |arguments: serde_json::Value| {
            let content =
                |text: &str| if parts { json!([{"type": "text", "text": text}]) } else { json!(text) };
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
        Rules {
            content: if parts { Content::Parts } else { Content::Text },
            arguments: if !as_text && as_object() { Arguments::Object } else { Arguments::Text },
            developer: source.contains("developer"),
        }
    }
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut fields = f.debug_struct("ChatTemplate");
        fields.field("rules", &self.rules).field("rules_with_tools", &self.rules_with_tools);
        fields.finish_non_exhaustive()
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
