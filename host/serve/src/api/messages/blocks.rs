//! Content blocks as the text that a model reads of them.
//!
//! What was said by a caller or a model is text or is refused by name: an answer to half of a question is worse than
//! none. A tool's result is taken as far as it can be read, with a word for what was left out: the agent that called
//! the tool has no way to ask for another kind of result.

use serde_json::Value;

use super::tools::Tools;
use crate::api::fields::Fields;
use crate::request::Refusal;

/// A content: a string is one block of text.
pub(super) enum Content<'a> {
    Text(&'a str),
    Blocks(&'a [Value]),
}

impl<'a> Content<'a> {
    /// The content under a name, if there is any.
    pub(super) fn of(fields: &Fields<'a>, name: &str) -> Result<Option<Self>, Refusal> {
        match fields.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(Self::Text(text))),
            Some(Value::Array(blocks)) => Ok(Some(Self::Blocks(blocks))),
            Some(_) => Err(fields.wrong(name, "a string or a list of content blocks")),
        }
    }
}

/// The text of a block of a message; `None` for one that a vendor's own tools left, of which there is none to read.
pub(super) fn text(block: &Fields<'_>) -> Result<Option<String>, Refusal> {
    match kind(block)? {
        "text" => Ok(Some(required(block, "text")?.to_owned())),
        "search_result" => search_result(block).map(Some),
        "document" => match document(block)? {
            Some(text) => Ok(Some(text)),
            None => Err(unreadable(block, "document")),
        },
        // The summary of what came before.
        "compaction" => Ok(block.text("content")?.map(str::to_owned)),
        "redacted_thinking" | "container_upload" | "fallback" | "server_tool_use" | "mcp_tool_use"
        | "mcp_tool_listing" => Ok(None),
        kind if kind.ends_with("_tool_result") => Ok(None),
        kind => Err(unreadable(block, kind)),
    }
}

/// The text of a block of a tool's result.
pub(super) fn result_text(block: &Fields<'_>, tools: &Tools) -> Result<String, Refusal> {
    let left_out = |kind: &str| format!("[{kind} left out: this model reads text]");
    match kind(block)? {
        "text" => Ok(required(block, "text")?.to_owned()),
        "search_result" => search_result(block),
        "document" => Ok(document(block)?.unwrap_or_else(|| left_out("document"))),
        "tool_reference" => Ok(tools.referred(required(block, "tool_name")?)),
        kind => Ok(left_out(kind)),
    }
}

/// The type of a block.
pub(super) fn kind<'a>(block: &Fields<'a>) -> Result<&'a str, Refusal> {
    required(block, "type")
}

/// A text that has to be there.
pub(super) fn required<'a>(block: &Fields<'a>, name: &str) -> Result<&'a str, Refusal> {
    block.text(name)?.ok_or_else(|| block.wrong(name, "a string"))
}

/// Texts of a list of text blocks, or the one text that a string is.
pub(super) fn texts(fields: &Fields<'_>, name: &str) -> Result<Vec<String>, Refusal> {
    let blocks = match Content::of(fields, name)? {
        None => return Ok(Vec::new()),
        Some(Content::Text(text)) => return Ok(vec![text.to_owned()]),
        Some(Content::Blocks(blocks)) => blocks,
    };
    let one = |(i, block)| {
        let block = Fields::at(block, &fields.path(&format!("{name}.{i}")))?;
        match kind(&block)? {
            "text" => Ok(required(&block, "text")?.to_owned()),
            kind => Err(unreadable(&block, kind)),
        }
    };
    blocks.iter().enumerate().map(one).collect()
}

fn unreadable(block: &Fields<'_>, kind: &str) -> Refusal {
    let kind: String = kind.chars().take(64).collect();
    let path = block.path("type");
    let message = format!("`{path}`: content of type `{kind}` is not supported: this model reads text");
    Refusal::field(path, message)
}

fn search_result(block: &Fields<'_>) -> Result<String, Refusal> {
    let mut lines = vec![required(block, "title")?.to_owned(), required(block, "source")?.to_owned()];
    lines.extend(texts(block, "content")?);
    Ok(lines.join("\n"))
}

/// The text of a document, if it is one of text.
fn document(block: &Fields<'_>) -> Result<Option<String>, Refusal> {
    let source = block.object("source")?.ok_or_else(|| block.wrong("source", "an object"))?;
    let body = match kind(&source)? {
        "text" => vec![required(&source, "data")?.to_owned()],
        "content" => texts(&source, "content")?,
        _ => return Ok(None),
    };
    let head = [block.text("title")?, block.text("context")?];
    let lines: Vec<String> = head.into_iter().flatten().map(str::to_owned).chain(body).collect();
    Ok(Some(lines.join("\n")))
}
