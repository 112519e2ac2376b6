//! How a model writes tool calls, in the literal pieces around names and arguments.
//!
//! ```text
//! section_open (begin NAME after_name ARGUMENTS end) [between (…)]… section_close
//! ```
//!
//! What reads calls out of an answer knows this too, and more: models err. Here is what a call looks like that a
//! grammar makes them write. A piece that spells an added token of the tokenizer is written as that token.
//! **Invariant:** what a grammar made of these pieces accepts is read as calls by the same family's parser.

/// The literal pieces of a family's calls.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CallSyntax {
    /// Before the first call.
    pub section_open: &'static str,
    /// Before a call's name.
    pub begin: &'static str,
    /// Between a call's name and its arguments.
    pub after_name: &'static str,
    /// After a call's arguments.
    pub end: &'static str,
    /// Between two calls.
    pub between: &'static str,
    /// After the last call.
    pub section_close: &'static str,
    /// How the name is written.
    pub name: NameStyle,
    /// How the arguments are written.
    pub arguments: ArgumentStyle,
}

/// How a call writes its tool's name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NameStyle {
    /// As it is.
    Plain,
    /// Inside a JSON string, whose quotes the literal pieces have.
    JsonString,
}

/// How a call writes its arguments.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ArgumentStyle {
    /// One JSON object.
    Json,
    /// One after the other: a string as plain text up to `close`, any other value as JSON.
    Parameters {
        /// Before a parameter's name.
        open: &'static str,
        /// Between its name and its value.
        after_key: &'static str,
        /// After its value.
        close: &'static str,
    },
}

impl CallSyntax {
    /// The calls of Hermes and of Qwen 2.5 and 3.
    pub const HERMES: Self = Self {
        section_open: "",
        begin: "<tool_call>\n{\"name\": \"",
        after_name: "\", \"arguments\": ",
        end: "}\n</tool_call>",
        between: "\n",
        section_close: "",
        name: NameStyle::JsonString,
        arguments: ArgumentStyle::Json,
    };
}
