//! The text of a request's grammar, in Lark's notation.
//!
//! **Invariant:** what callers wrote stands in it as strings, JSON or expressions, never as rules, unless they ask
//! for a grammar of their own.

use llguidance::regex_to_lark;
use serde_json::{Value, json};

use super::schema::{self, Spacing};
use super::vocabulary::Vocabulary;
use super::{Format, PromptError, calls, refused};
use crate::prompt::CallSyntax;

/// What an answer may be.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// The form of its text.
    pub format: &'a Format,
    /// The calls that it may or has to make.
    pub calls: Calls<'a>,
    /// How the model writes calls; `None` where no grammar can say it.
    pub syntax: Option<&'a CallSyntax>,
}

/// The calls of an answer.
#[derive(Clone, Copy, Debug)]
pub enum Calls<'a> {
    /// None.
    None,
    /// Some of these tools, or a text.
    May(&'a [Value]),
    /// Some of these tools, and no text.
    Must {
        /// The tools, as templates read them.
        tools: &'a [Value],
        /// Whether there may be more than one call.
        many: bool,
        /// The one that has to be called, if there is no choice.
        named: Option<&'a str>,
    },
}

/// A grammar to compile, and the field to blame.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) lark: String,
    pub(super) param: String,
    /// The schema at `param`, where there is one.
    pub(super) schema: Option<Value>,
    /// Whether a caller wrote the rules.
    pub(super) foreign: bool,
}

impl Ask<'_> {
    /// Whether any text will do.
    pub(super) fn is_free(&self) -> bool {
        !matches!(self.calls, Calls::Must { .. }) && *self.format == Format::Text
    }

    /// The grammar. Errors: [`PromptError::Refused`] with the field that cannot be met.
    pub(super) fn source(&self, vocabulary: &Vocabulary) -> Result<Source, PromptError> {
        match (&self.calls, self.syntax) {
            (Calls::Must { tools, many, named }, Some(syntax)) => {
                calls::forced(vocabulary, syntax, (*tools, *named), *many)
            }
            (Calls::Must { .. }, None) => Err(refused(
                "tool_choice",
                "`tool_choice` cannot force a call with this model, whose calls no grammar describes; use \"auto\"",
            )),
            (Calls::May(tools), Some(syntax)) => self.text_or_calls(vocabulary, (*tools, syntax)),
            (Calls::May(_), None) | (Calls::None, _) => self.text(),
        }
    }

    fn text(&self) -> Result<Source, PromptError> {
        let (body, schema) = match self.format {
            Format::Lark { grammar, param } => {
                let (lark, param) = (grammar.clone(), param.clone());
                return Ok(Source { lark, param, schema: None, foreign: true });
            }
            format => body(format)?,
        };
        let (lark, param) = (format!("start: {body}\n"), self.format.param().to_owned());
        Ok(Source { lark, param, schema, foreign: false })
    }

    /// A text of the format, or calls: whoever gives tools and a format wants either.
    fn text_or_calls(
        &self,
        vocabulary: &Vocabulary,
        (tools, syntax): (&[Value], &CallSyntax),
    ) -> Result<Source, PromptError> {
        if matches!(self.format, Format::Lark { .. }) {
            return self.text();
        }
        let (body, schema) = body(self.format)?;
        let rules = calls::rules(vocabulary, syntax, (tools, None), true)?;
        let lark = format!("start: answer | calls\nanswer: {body}\n{rules}");
        Ok(Source { lark, param: self.format.param().to_owned(), schema, foreign: false })
    }
}

/// The right side of the rule of a format that is no grammar, and the schema in it.
fn body(format: &Format) -> Result<(String, Option<Value>), PromptError> {
    let object = json!({"type": "object"});
    let (schema, strict, param) = match format {
        Format::Text | Format::Lark { .. } => return Ok((String::new(), None)),
        Format::Regex { pattern, .. } => return Ok((format!("/{}/", regex_to_lark(pattern, "")), None)),
        Format::Choice { texts, .. } => {
            return Ok((texts.iter().map(|text| string(text)).collect::<Vec<_>>().join(" | "), None));
        }
        Format::JsonObject => (&object, false, "response_format"),
        Format::JsonSchema { schema, strict, param } => (schema, *strict, param.as_str()),
    };
    let prepared = schema::prepare(schema, param, strict)?;
    Ok((format!("%json {}", schema::text(prepared, strict, Spacing::None)), Some(schema.clone())))
}

/// A text as a string of the notation, which is JSON's but for one character.
pub(super) fn string(text: &str) -> String {
    Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}
