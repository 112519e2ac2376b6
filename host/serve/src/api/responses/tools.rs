//! Tools as the Responses API names them, and as the model does.
//!
//! A model knows functions with one name each. Tools of a namespace get a name of both parts, `NAMESPACE__NAME`;
//! a custom tool, which takes free text, becomes a function with one text, `input`. Tools that a vendor hosts
//! cannot be called here and are left out.
//! **Invariant:** the name that a model writes is told back as the caller's own, whatever the tools of this turn are.

use serde_json::{Map, Value, json};

use crate::api::fields::Fields;
use crate::request::{Refusal, ToolChoice};

/// A tool by its caller's names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Callable {
    /// Its name within its namespace.
    pub(super) name: String,
    /// Its namespace, if it has one.
    pub(super) namespace: Option<String>,
    /// Whether it takes free text.
    pub(super) custom: bool,
}

/// The tools of a request.
#[derive(Clone, Debug, Default)]
pub(super) struct Tools {
    /// As chat templates read them.
    pub(super) chat: Vec<Value>,
    /// As the response repeats them.
    pub(super) echo: Vec<Value>,
    /// What each of `chat` is to the caller, in the same order.
    known: Vec<Callable>,
}

/// The name that a model writes.
pub(super) fn written(namespace: Option<&str>, name: &str) -> String {
    match namespace {
        Some(namespace) if !namespace.is_empty() => format!("{namespace}__{name}"),
        _ => name.to_owned(),
    }
}

/// The arguments with which a model calls a custom tool, spelled as models spell JSON.
pub(super) fn custom_arguments(input: &str) -> String {
    format!("{{\"input\": {}}}", Value::from(input))
}

/// The text that a custom tool was called with. A model that wrote something else meant all of it.
pub(super) fn custom_input(arguments: &str) -> String {
    let parsed: Option<Value> = serde_json::from_str(arguments).ok();
    match parsed.as_ref().and_then(|p| p.get("input")).and_then(Value::as_str) {
        Some(input) => input.to_owned(),
        None => arguments.to_owned(),
    }
}

impl Tools {
    /// Adds the tools of a list, which stands at `path`.
    pub(super) fn add(&mut self, list: &[Value], path: &str) -> Result<(), Refusal> {
        for (i, tool) in list.iter().enumerate() {
            let path = format!("{path}[{i}]");
            let fields = Fields::at(tool, &path)?;
            match fields.text("type")?.unwrap_or("function") {
                "function" => {
                    self.function(&fields, None, "")?;
                    self.echo.push(echoed(tool));
                }
                "custom" => {
                    self.custom(&fields, None, "")?;
                    self.echo.push(tool.clone());
                }
                "namespace" => {
                    self.namespace(&fields)?;
                    self.echo.push(tool.clone());
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// What a model means by a name.
    pub(super) fn called(&self, name: &str) -> Callable {
        let same = |c: &&Callable| written(c.namespace.as_deref(), &c.name) == name;
        // A model that leaves the namespace out is understood as long as there is one tool that it can mean.
        let mut bare = self.known.iter().filter(|c| c.name == name);
        let alone = bare.next().filter(|_| bare.next().is_none());
        self.known.iter().find(same).or(alone).cloned().unwrap_or_else(|| Callable {
            name: name.to_owned(),
            namespace: None,
            custom: false,
        })
    }

    /// The choice that a request makes, and the tools that it leaves.
    pub(super) fn choose(&mut self, fields: &Fields<'_>) -> Result<ToolChoice, Refusal> {
        const WANTED: &str = "\"none\", \"auto\", \"required\", or an object that names a function, a custom tool or `allowed_tools`";
        let auto = if self.chat.is_empty() { ToolChoice::None } else { ToolChoice::Auto };
        match fields.get("tool_choice") {
            None => Ok(auto),
            Some(Value::String(word)) => match word.as_str() {
                "none" => Ok(ToolChoice::None),
                "auto" => Ok(auto),
                "required" => self.required(),
                _ => Err(fields.wrong("tool_choice", WANTED)),
            },
            Some(Value::Object(_)) => {
                let choice =
                    fields.object("tool_choice")?.ok_or_else(|| fields.wrong("tool_choice", WANTED))?;
                match choice.text("type")? {
                    Some("function" | "custom") => self.named(&choice),
                    Some("allowed_tools") => self.allowed(&choice),
                    // A tool that is not here cannot be called; to answer without it would not be what was asked.
                    _ => Err(choice.wrong("type", "\"function\", \"custom\" or \"allowed_tools\": tools that a vendor hosts cannot be called here")),
                }
            }
            Some(_) => Err(fields.wrong("tool_choice", WANTED)),
        }
    }

    fn required(&self) -> Result<ToolChoice, Refusal> {
        match self.chat.is_empty() {
            false => Ok(ToolChoice::Required),
            true => Err(Refusal::field(
                "tool_choice",
                "`tool_choice` is \"required\", but `tools` has no function",
            )),
        }
    }

    fn named(&self, choice: &Fields<'_>) -> Result<ToolChoice, Refusal> {
        let name = choice.text("name")?.ok_or_else(|| choice.wrong("name", "a tool's name"))?;
        let namespace = choice.text("namespace")?;
        match self.position(namespace, name) {
            Some(at) => Ok(ToolChoice::Named(self.written_at(at))),
            None => {
                let known: Vec<String> = (0..self.known.len()).map(|at| self.written_at(at)).collect();
                let message = format!(
                    "`tool_choice` names the tool `{name}`, which is not in `tools` ({})",
                    known.join(", ")
                );
                Err(Refusal::field("tool_choice", message))
            }
        }
    }

    /// Leaves the tools that are on a list. The others leave the prompt too: a model cannot call what it does not know.
    fn allowed(&mut self, choice: &Fields<'_>) -> Result<ToolChoice, Refusal> {
        let list = choice.list("tools")?.ok_or_else(|| choice.wrong("tools", "a list of tools"))?;
        let text = |tool: &'_ Value, key: &str| tool.get(key).and_then(Value::as_str).map(str::to_owned);
        let mut kept = vec![false; self.known.len()];
        for tool in list {
            let (name, namespace) = (text(tool, "name"), text(tool, "namespace"));
            if tool["type"] == "namespace" {
                let of = |c: &Callable| c.namespace.is_some() && c.namespace == name;
                self.known.iter().zip(&mut kept).for_each(|(c, kept)| *kept |= of(c));
            } else if let Some(at) = name.and_then(|name| self.position(namespace.as_deref(), &name)) {
                kept[at] = true;
            }
        }
        let mut keep = kept.iter().copied();
        self.chat.retain(|_| keep.next().unwrap_or(false));
        let mut keep = kept.iter().copied();
        self.known.retain(|_| keep.next().unwrap_or(false));
        match choice.text("mode")? {
            Some("required") => self.required(),
            Some("auto") | None if self.chat.is_empty() => Ok(ToolChoice::None),
            Some("auto") | None => Ok(ToolChoice::Auto),
            _ => Err(choice.wrong("mode", "\"auto\" or \"required\"")),
        }
    }

    fn position(&self, namespace: Option<&str>, name: &str) -> Option<usize> {
        let same =
            |c: &Callable| c.name == name && namespace.is_none_or(|n| c.namespace.as_deref() == Some(n));
        let full = |c: &Callable| written(c.namespace.as_deref(), &c.name) == name;
        self.known.iter().position(same).or_else(|| self.known.iter().position(full))
    }

    fn written_at(&self, at: usize) -> String {
        written(self.known[at].namespace.as_deref(), &self.known[at].name)
    }

    fn namespace(&mut self, fields: &Fields<'_>) -> Result<(), Refusal> {
        let name = fields.text("name")?.ok_or_else(|| fields.wrong("name", "the namespace's name"))?;
        let mut about = fields.text("description")?.unwrap_or_default();
        for (i, tool) in fields.list("tools")?.into_iter().flatten().enumerate() {
            let path = fields.path(&format!("tools[{i}]"));
            let own = Fields::at(tool, &path)?;
            match own.text("type")?.unwrap_or("function") {
                "function" => self.function(&own, Some(name), about)?,
                "custom" => self.custom(&own, Some(name), about)?,
                _ => continue,
            }
            // What is said of the namespace is said once, to its first tool.
            about = "";
        }
        Ok(())
    }

    fn function(&mut self, fields: &Fields<'_>, namespace: Option<&str>, about: &str) -> Result<(), Refusal> {
        let mut function = self.begun(fields, namespace, about)?;
        fields.object("parameters")?;
        if let Some(parameters) = fields.get("parameters") {
            function.insert("parameters".into(), parameters.clone());
        }
        if fields.flag("strict")? {
            function.insert("strict".into(), true.into());
        }
        self.push(function, fields, namespace, false)
    }

    fn custom(&mut self, fields: &Fields<'_>, namespace: Option<&str>, about: &str) -> Result<(), Refusal> {
        let mut function = self.begun(fields, namespace, about)?;
        let format = fields.object("format")?;
        let definition = format.as_ref().map(|f| f.text("definition")).transpose()?.flatten();
        if let (Some(format), Some(definition)) = (&format, definition) {
            let syntax = format.text("syntax")?.unwrap_or("lark");
            let said = function.get("description").and_then(Value::as_str).unwrap_or_default();
            let said = format!("{said}\n\n`input` is text of this {syntax} grammar:\n{definition}");
            function.insert("description".into(), said.trim_start().into());
        }
        let parameters = json!({
            "type": "object",
            "properties": { "input": { "type": "string" } },
            "required": ["input"],
        });
        function.insert("parameters".into(), parameters);
        self.push(function, fields, namespace, true)
    }

    fn begun(
        &self,
        fields: &Fields<'_>,
        namespace: Option<&str>,
        about: &str,
    ) -> Result<Map<String, Value>, Refusal> {
        let name = fields.text("name")?.filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| fields.wrong("name", "the name of a tool"))?;
        let mut function = Map::from_iter([("name".to_owned(), written(namespace, name).into())]);
        let own = fields.text("description")?;
        if own.is_some() || !about.is_empty() {
            let all: Vec<&str> =
                [about, own.unwrap_or_default()].into_iter().filter(|t| !t.is_empty()).collect();
            function.insert("description".into(), all.join("\n\n").into());
        }
        Ok(function)
    }

    fn push(
        &mut self,
        function: Map<String, Value>,
        fields: &Fields<'_>,
        namespace: Option<&str>,
        custom: bool,
    ) -> Result<(), Refusal> {
        let name = fields.text("name")?.unwrap_or_default().to_owned();
        let known = Callable { name, namespace: namespace.map(str::to_owned), custom };
        // The first of two tools with one name is the one that is called.
        if self.known.iter().all(|c| (&c.name, &c.namespace) != (&known.name, &known.namespace)) {
            self.chat.push(json!({ "type": "function", "function": function }));
            self.known.push(known);
        }
        Ok(())
    }
}

/// A function tool as the response repeats it: strict validators want both keys.
fn echoed(tool: &Value) -> Value {
    let mut tool = tool.clone();
    if let Some(tool) = tool.as_object_mut() {
        tool.entry("type").or_insert_with(|| "function".into());
        tool.entry("description").or_insert(Value::Null);
        tool.entry("parameters").or_insert(Value::Null);
        let strict = tool.get("strict").and_then(Value::as_bool).unwrap_or(false);
        tool.insert("strict".into(), strict.into());
    }
    tool
}

#[cfg(test)]
mod tests;
