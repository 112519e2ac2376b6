//! Tools, and which of them the answer has to call.
//!
//! A tool of the caller's own has a schema. Tools that a vendor runs, or whose schema only a vendor's model knows, cannot
//! be called here and are left out. A tool that is to be loaded later is left out of the prompt too; where a message
//! refers to it, its definition stands there, so that what came before stays as it was.

use rustc_hash::FxHashSet;
use serde_json::{Map, Value, json};

use crate::api::fields::Fields;
use crate::api::marks::{self, Mark};
use crate::request::{Refusal, ToolChoice};

/// The tools of a request, in the shape that templates read.
#[derive(Debug, Default)]
pub(super) struct Tools {
    offered: Vec<Value>,
    deferred: Vec<Value>,
    /// Marks on them.
    pub(super) marks: Vec<Mark>,
}

impl Tools {
    /// Reads and checks `tools`.
    pub(super) fn parse(fields: &Fields<'_>) -> Result<Self, Refusal> {
        let mut tools = Self::default();
        let mut names = FxHashSet::default();
        for (i, tool) in fields.list("tools")?.into_iter().flatten().enumerate() {
            let object = Fields::at(tool, &format!("tools.{i}"))?;
            let Some(function) = function(&object)? else { continue };
            let name = function["function"]["name"].as_str().unwrap_or_default();
            if !names.insert(name.to_owned()) {
                let message =
                    format!("`tools.{i}.name`: tool names must be unique, and `{name}` is there twice");
                return Err(Refusal::field(object.path("name"), message));
            }
            if object.flag("defer_loading")? {
                tools.deferred.push(function);
                continue;
            }
            tools.marks.extend(Mark::on(tool, marks::TOOLS));
            tools.offered.push(function);
        }
        Ok(tools)
    }

    /// Those that stand in the prompt. An empty list says that calls are to be expected all the same.
    pub(super) fn offered(self) -> Option<Vec<Value>> {
        let any = !(self.offered.is_empty() && self.deferred.is_empty());
        any.then_some(self.offered)
    }

    /// What a message that refers to a tool has to say of it.
    pub(super) fn referred(&self, name: &str) -> String {
        let named = |tool: &&Value| tool["function"]["name"] == name;
        match self.deferred.iter().find(named) {
            Some(tool) => definition(tool),
            None => format!("The tool `{name}` is available."),
        }
    }

    fn names(&self) -> Vec<&str> {
        self.offered.iter().filter_map(|tool| tool["function"]["name"].as_str()).collect()
    }
}

/// A tool that a message defines where it stands; `None` for one that cannot be called here.
pub(super) fn defined(tool: &Fields<'_>) -> Result<Option<String>, Refusal> {
    Ok(function(tool)?.as_ref().map(definition))
}

/// The way in which models are commonly shown tools.
fn definition(tool: &Value) -> String {
    format!("<tools>\n{tool}\n</tools>")
}

fn function(tool: &Fields<'_>) -> Result<Option<Value>, Refusal> {
    if tool.text("type")?.is_some_and(|kind| kind != "custom") {
        return Ok(None);
    }
    let name = tool.text("name")?.filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| tool.wrong("name", "the name of a tool"))?;
    tool.object("input_schema")?.ok_or_else(|| tool.wrong("input_schema", "a JSON schema"))?;
    let mut function = Map::from_iter([("name".to_owned(), name.into())]);
    if let Some(description) = tool.text("description")? {
        function.insert("description".to_owned(), description.into());
    }
    function.insert("parameters".to_owned(), tool.get("input_schema").cloned().unwrap_or_default());
    if tool.flag("strict")? {
        function.insert("strict".to_owned(), true.into());
    }
    Ok(Some(json!({"type": "function", "function": function})))
}

/// Which tool the answer has to call, and whether it may call several.
pub(super) fn choice(fields: &Fields<'_>, tools: &Tools) -> Result<(ToolChoice, bool), Refusal> {
    let any = !(tools.offered.is_empty() && tools.deferred.is_empty());
    let auto = if any { ToolChoice::Auto } else { ToolChoice::None };
    let Some(choice) = fields.object("tool_choice")? else { return Ok((auto, true)) };
    let parallel = !choice.flag("disable_parallel_tool_use")?;
    let wanted = match choice.text("type")? {
        Some("auto") => auto,
        Some("none") => ToolChoice::None,
        Some("any") if tools.offered.is_empty() => {
            return Err(
                choice.wrong("type", "\"auto\" or \"none\" where `tools` has no tool that can be called")
            );
        }
        Some("any") => ToolChoice::Required,
        Some("tool") => ToolChoice::Named(named(&choice, tools)?),
        _ => return Err(choice.wrong("type", "\"auto\", \"any\", \"tool\" or \"none\"")),
    };
    Ok((wanted, parallel))
}

fn named(choice: &Fields<'_>, tools: &Tools) -> Result<String, Refusal> {
    let name = choice.text("name")?.ok_or_else(|| choice.wrong("name", "the name of a tool"))?;
    let known = tools.names();
    if known.contains(&name) {
        return Ok(name.to_owned());
    }
    let path = choice.path("name");
    let message = format!("`{path}`: the tool `{name}` is not in `tools` ({})", known.join(", "));
    Err(Refusal::field(path, message))
}
