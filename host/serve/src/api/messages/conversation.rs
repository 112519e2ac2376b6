//! Messages of content blocks become messages in the shape that chat templates read.
//!
//! ```text
//! user       text, text           user: parts          assistant  thinking     assistant: reasoning_content
//!            tool_result          tool                            text                    content
//!            text                 user: parts                     tool_use                tool_calls
//! system     in its place         system
//! ```
//!
//! Nothing is moved, joined or left out that a later turn would have elsewhere: a longer conversation begins with the
//! messages of a shorter one. Which spelling a template wants is not known here.
//! **Invariant:** every result of a tool follows its call.

use rustc_hash::FxHashMap;
use serde_json::{Map, Value, json};

use super::blocks::{self, Content};
use super::signature;
use super::tools::{self, Tools};
use crate::api::fields::Fields;
use crate::api::marks::Mark;
use crate::api::sampling::Rules;
use crate::request::Refusal;

/// The system prompt and the messages as templates read them, and the marks on them and on the tools.
pub(super) fn parse(
    fields: &Fields<'_>,
    tools: &Tools,
    rules: &Rules<'_>,
) -> Result<(Vec<Value>, Vec<Mark>), Refusal> {
    let list = fields.list("messages")?.ok_or_else(|| fields.wrong("messages", "a list of messages"))?;
    if list.is_empty() {
        return Err(Refusal::field("messages", "`messages`: at least one message is required"));
    }
    let (marks, calls) = (tools.marks.clone(), FxHashMap::default());
    let mut out = Translation { tools, rules, messages: Vec::new(), marks, calls };
    out.system_prompt(fields)?;
    let last_user = list.iter().rposition(|message| message["role"] == "user");
    for (i, message) in list.iter().enumerate() {
        let message = Fields::at(message, &format!("messages.{i}"))?;
        match blocks::required(&message, "role")? {
            "user" => out.user(&message)?,
            "assistant" => out.assistant(&message)?,
            "system" if is_cleared(&message, last_user.is_some_and(|last| last > i))? => {}
            "system" => out.system(&message)?,
            _ => return Err(message.wrong("role", "\"user\", \"assistant\" or \"system\"")),
        }
    }
    let last = out.messages.len().saturating_sub(1) as i32;
    // One mark for whatever comes last.
    out.marks.extend(fields.object("cache_control")?.and(mark_on_all(fields, last)));
    for mark in &mut out.marks {
        mark.segment = mark.segment.min(last);
    }
    Ok((out.messages, out.marks))
}

fn mark_on_all(fields: &Fields<'_>, last: i32) -> Option<Mark> {
    Mark::on(&json!({"cache_control": fields.get("cache_control")}), last)
}

/// Whether a system message was meant for a turn that is over.
fn is_cleared(message: &Fields<'_>, is_over: bool) -> Result<bool, Refusal> {
    Ok(is_over && message.text("clear_at")? == Some("next_user_message"))
}

struct Translation<'a> {
    tools: &'a Tools,
    rules: &'a Rules<'a>,
    messages: Vec<Value>,
    marks: Vec<Mark>,
    /// Tools by the ids of their calls.
    calls: FxHashMap<&'a str, &'a str>,
}

impl<'a> Translation<'a> {
    fn system_prompt(&mut self, fields: &Fields<'a>) -> Result<(), Refusal> {
        let parts = blocks::texts(fields, "system")?;
        if let Some(Content::Blocks(blocks)) = Content::of(fields, "system")? {
            blocks.iter().for_each(|block| self.mark(block));
        }
        if parts.iter().any(|part| !part.is_empty()) {
            self.push("system", parts);
        }
        Ok(())
    }

    fn user(&mut self, message: &Fields<'a>) -> Result<(), Refusal> {
        let Some(blocks) = self.blocks_of("user", message)? else { return Ok(()) };
        let mut parts = Vec::new();
        for (i, value) in blocks.iter().enumerate() {
            let block = Fields::at(value, &message.path(&format!("content.{i}")))?;
            if blocks::kind(&block)? == "tool_result" {
                self.flush("user", &mut parts);
                self.mark(value);
                self.tool_result(&block)?;
                continue;
            }
            self.mark(value);
            parts.extend(blocks::text(&block)?);
        }
        if blocks.is_empty() {
            parts.push(String::new());
        }
        self.flush("user", &mut parts);
        Ok(())
    }

    fn tool_result(&mut self, block: &Fields<'a>) -> Result<(), Refusal> {
        let id = blocks::required(block, "tool_use_id")?;
        let Some(name) = self.calls.get(id) else {
            let path = block.path("tool_use_id");
            let id: String = id.chars().take(64).collect();
            let message = format!(
                "`{path}`: unexpected `tool_use_id` found in `tool_result` blocks: {id}. Each `tool_result` block must \
                 have a corresponding `tool_use` block in a message before it"
            );
            return Err(Refusal::field(path, message));
        };
        let mut message = json!({"role": "tool", "tool_call_id": id, "name": name});
        let mut parts = match Content::of(block, "content")? {
            None => Vec::new(),
            Some(Content::Text(text)) => vec![text.to_owned()],
            Some(Content::Blocks(blocks)) => self.result_parts(block, blocks)?,
        };
        if block.flag("is_error")? {
            say_error(&mut parts);
        }
        message["content"] = joined(parts);
        self.messages.push(message);
        Ok(())
    }

    fn result_parts(&mut self, result: &Fields<'a>, blocks: &'a [Value]) -> Result<Vec<String>, Refusal> {
        let mut parts = Vec::with_capacity(blocks.len());
        for (i, value) in blocks.iter().enumerate() {
            let block = Fields::at(value, &result.path(&format!("content.{i}")))?;
            self.mark(value);
            parts.push(blocks::result_text(&block, self.tools)?);
        }
        Ok(parts)
    }

    fn assistant(&mut self, message: &Fields<'a>) -> Result<(), Refusal> {
        let Some(blocks) = self.blocks_of("assistant", message)? else { return Ok(()) };
        let (mut parts, mut thoughts, mut calls) = (Vec::new(), Vec::new(), Vec::new());
        for (i, value) in blocks.iter().enumerate() {
            let block = Fields::at(value, &message.path(&format!("content.{i}")))?;
            self.mark(value);
            match blocks::kind(&block)? {
                "thinking" => thoughts.push(thought(&block)?),
                "tool_use" => calls.push(self.call(&block)?),
                _ => parts.extend(blocks::text(&block)?),
            }
        }
        let mut turn =
            Map::from_iter([("role".to_owned(), "assistant".into()), ("content".to_owned(), joined(parts))]);
        thoughts.retain(|thought| !thought.is_empty());
        if !thoughts.is_empty() {
            turn.insert("reasoning_content".to_owned(), thoughts.join("\n").into());
        }
        if !calls.is_empty() {
            turn.insert("tool_calls".to_owned(), calls.into());
        }
        self.messages.push(turn.into());
        Ok(())
    }

    fn call(&mut self, block: &Fields<'a>) -> Result<Value, Refusal> {
        let (id, name) = (blocks::required(block, "id")?, blocks::required(block, "name")?);
        block.object("input")?.ok_or_else(|| block.wrong("input", "an object"))?;
        self.calls.insert(id, name);
        let input = block.get("input");
        // The protocol's object says what the model wrote, and not how.
        let written = input.and_then(|input| self.rules.prompts.written_call(self.rules.tenant, id, input));
        let function = match written {
            Some(text) => json!({"name": name, "arguments": *text}),
            None => json!({"name": name, "arguments": input}),
        };
        Ok(json!({"id": id, "type": "function", "function": function}))
    }

    fn system(&mut self, message: &Fields<'a>) -> Result<(), Refusal> {
        let Some(blocks) = self.blocks_of("system", message)? else { return Ok(()) };
        let mut parts = Vec::new();
        for (i, value) in blocks.iter().enumerate() {
            let block = Fields::at(value, &message.path(&format!("content.{i}")))?;
            self.mark(value);
            match blocks::kind(&block)? {
                "tool_addition" => parts.extend(self.added_tool(&block)?),
                "tool_removal" => parts.extend(removed_tool(&block)?),
                _ => parts.extend(blocks::text(&block)?),
            }
        }
        self.flush("system", &mut parts);
        Ok(())
    }

    fn added_tool(&self, block: &Fields<'_>) -> Result<Option<String>, Refusal> {
        let tool = block.object("tool")?.ok_or_else(|| block.wrong("tool", "an object"))?;
        match (blocks::kind(&tool)?, tool.object("definition")?) {
            ("tool_definition", Some(definition)) => tools::defined(&definition),
            ("tool_reference", _) => Ok(Some(self.tools.referred(blocks::required(&tool, "name")?))),
            _ => Ok(None),
        }
    }

    /// The blocks of a message; a string becomes a message at once. Messages about nothing but settings have none.
    fn blocks_of(&mut self, role: &str, message: &Fields<'a>) -> Result<Option<&'a [Value]>, Refusal> {
        match Content::of(message, "content")? {
            Some(Content::Blocks(blocks)) => Ok(Some(blocks)),
            Some(Content::Text(text)) => {
                self.push(role, vec![text.to_owned()]);
                Ok(None)
            }
            None if role == "system" => Ok(None),
            None => Err(message.wrong("content", "a string or a list of content blocks")),
        }
    }

    /// Takes the mark of a block whose message is the next to be pushed.
    fn mark(&mut self, block: &Value) {
        self.marks.extend(Mark::on(block, self.messages.len() as i32));
    }

    fn flush(&mut self, role: &str, parts: &mut Vec<String>) {
        if !parts.is_empty() {
            self.push(role, std::mem::take(parts));
        }
    }

    fn push(&mut self, role: &str, parts: Vec<String>) {
        self.messages.push(json!({"role": role, "content": joined(parts)}));
    }
}

/// One text is a string, several are parts: how they are joined is the template's business.
fn joined(mut parts: Vec<String>) -> Value {
    match parts.len() {
        0 => "".into(),
        1 => parts.swap_remove(0).into(),
        _ => parts.into_iter().map(|text| json!({"type": "text", "text": text})).collect(),
    }
}

/// What a block of reasoning says, or what its signature holds where the text was kept back.
fn thought(block: &Fields<'_>) -> Result<String, Refusal> {
    let text = blocks::required(block, "thinking")?;
    match (text, block.text("signature")?) {
        ("", Some(signature)) => Ok(signature::held(signature).unwrap_or_default()),
        (text, _) => Ok(text.to_owned()),
    }
}

/// Templates have no place for the flag; a result that says so itself is left as it is.
fn say_error(parts: &mut Vec<String>) {
    let Some(first) = parts.first_mut() else {
        parts.push("Error".to_owned());
        return;
    };
    let begins = |word: &str| {
        first.trim_start().get(..word.len()).is_some_and(|start| start.eq_ignore_ascii_case(word))
    };
    if !begins("error") && !begins("<tool_use_error>") {
        first.insert_str(0, "Error: ");
    }
}

fn removed_tool(block: &Fields<'_>) -> Result<Option<String>, Refusal> {
    let tool = block.object("tool")?.ok_or_else(|| block.wrong("tool", "an object"))?;
    Ok(tool.text("name")?.map(|name| format!("The tool `{name}` is not available any more.")))
}
