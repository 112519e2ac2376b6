//! Families of models: which markup each writes, and how a model's files tell its family.
//!
//! **Invariant:** a family is known at load; requests only read it.

use super::gemma::{self, Gemma};
use super::harmony::{self, Harmony};
use super::json_call::JsonCall;
use super::marked::{self, Marked};
use super::mistral::{self, Mistral};
use super::python::Pythonic;
use super::schema::Schemas;
use super::syntax::{ArgumentStyle, CallSyntax, NameStyle};
use super::xml::Xml;
use super::{Body, xml_dialects};
use crate::prompt::Tokenizer;

/// The format of a model's output.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    /// Hermes, Qwen 2.5 and 3.
    Hermes,
    /// Qwen3-Coder, Qwen 3.5, Nemotron 3.
    QwenCoder,
    /// Llama 3.
    Llama,
    /// Llama 4.
    LlamaPythonic,
    /// Mistral since its eleventh tokenizer.
    Mistral,
    /// Mistral before that.
    MistralJson,
    /// DeepSeek V3 and R1.
    Deepseek,
    /// DeepSeek V3.1.
    DeepseekV31,
    /// DeepSeek V3.2 and V4.
    DeepseekDsml,
    /// GLM 4.5 and later.
    Glm,
    /// Kimi K2.
    Kimi,
    /// gpt-oss.
    Harmony,
    /// MiniMax M2.
    Minimax,
    /// Gemma 4.
    Gemma,
    /// No markup at all.
    Plain,
}

/// What stands around reasoning.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReasoningMarks {
    /// Before it.
    pub open: &'static str,
    /// After it.
    pub close: &'static str,
}

const THINK: ReasoningMarks = ReasoningMarks { open: "<think>", close: "</think>" };

/// What a family looks for in text and reasoning.
struct Markup {
    /// Where nothing has been said: reasoning, calls, and markers that stand alone by mistake.
    first: &'static [&'static str],
    /// Elsewhere in text: the same without reasoning.
    text: &'static [&'static str],
    /// What ends reasoning, with tools.
    reasoning: &'static [&'static str],
    /// Markers of which nothing is left where they stand alone.
    stray: &'static [&'static str],
    /// What ends a body that is no call.
    closers: &'static [&'static str],
}

/// Markers of a family that thinks between two given ones. `[calls] [strays] [closers] [calls that end reasoning]`.
macro_rules! markup {
    ($open:literal $close:literal [$($call:expr),*] [$($stray:expr),*] [$($closer:expr),*] [$($end:expr),*]) => {
        Markup {
            first: &[$open, $($call,)* $($stray,)*],
            text: &[$($call,)* $($stray,)*],
            reasoning: &[$close, $($end,)*],
            stray: &[$($stray,)*],
            closers: &[$($closer,)*],
        }
    };
}

const HERMES: Markup = markup!("<think>" "</think>" ["<tool_call>"] [] ["</tool_call>"] []);
const QWEN: Markup = markup!("<think>" "</think>" ["<tool_call>", "<function="] [] ["</tool_call>"] []);
const LLAMA: Markup =
    markup!("<think>" "</think>" ["<|python_tag|>", "<|python_start|>"] ["<|python_end|>"] [] []);
const MISTRAL: Markup = markup!("[THINK]" "[/THINK]" [mistral::OPEN] [] [] []);
const DEEPSEEK: Markup = markup!("<think>" "</think>"
    ["<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>"] ["<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"]
    ["<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"] []);
const DSML: Markup = markup!("<think>" "</think>"
    ["<｜DSML｜function_calls>", "<｜DSML｜tool_calls>", "<｜DSML｜invoke name=\""]
    ["</｜DSML｜function_calls>", "</｜DSML｜tool_calls>", "</｜DSML｜invoke>"]
    ["</｜DSML｜function_calls>", "</｜DSML｜tool_calls>"] []);
const KIMI: Markup = markup!("<think>" "</think>"
    ["<|tool_calls_section_begin|>", "<|tool_call_section_begin|>", "<|tool_call_begin|>"]
    ["<|tool_calls_section_end|>", "<|tool_call_section_end|>", "<|tool_call_end|>"]
    ["<|tool_calls_section_end|>", "<|tool_call_section_end|>", "<|tool_call_end|>"]
    ["<|tool_calls_section_begin|>", "<|tool_call_section_begin|>"]);
const MINIMAX: Markup = markup!("<think>" "</think>"
    ["<minimax:tool_call>"] ["</minimax:tool_call>"] ["</minimax:tool_call>"] []);
const GEMMA: Markup = markup!("<|channel>thought" "<channel|>" ["<|tool_call>"] ["<tool_call|>", "<channel|>"] [gemma::CLOSE] []);
const NONE: Markup = Markup { first: &[], text: &[], reasoning: &[], stray: &[], closers: &[] };

impl Family {
    /// All families, for messages.
    pub const ALL: [Self; 15] = [
        Self::Hermes,
        Self::QwenCoder,
        Self::Llama,
        Self::LlamaPythonic,
        Self::Mistral,
        Self::MistralJson,
        Self::Deepseek,
        Self::DeepseekV31,
        Self::DeepseekDsml,
        Self::Glm,
        Self::Kimi,
        Self::Harmony,
        Self::Minimax,
        Self::Gemma,
        Self::Plain,
    ];

    /// The family of a model, by what its chat template spells or, where that says nothing, its vocabulary.
    pub fn detect(template: &str, tokenizer: &Tokenizer) -> Self {
        let in_vocabulary = |marker: &str| tokenizer.added_id(marker).is_some();
        Self::by_markers(&|marker| template.contains(marker))
            .or_else(|| Self::by_markers(&in_vocabulary))
            .unwrap_or(Self::Plain)
    }

    /// Families whose markers are their own come before those that share them.
    fn by_markers(has: &dyn Fn(&str) -> bool) -> Option<Self> {
        let all = |markers: &[&str]| markers.iter().all(|marker| has(marker));
        let families: [(&[&str], Self); 17] = [
            (&["<|channel|>", "<|message|>"], Self::Harmony),
            (&["｜DSML｜"], Self::DeepseekDsml),
            (&["<｜tool▁call▁begin｜>", "```json"], Self::Deepseek),
            (&["<｜tool▁call▁begin｜>"], Self::DeepseekV31),
            (&["<|tool_calls_section_begin|>"], Self::Kimi),
            (&["<minimax:tool_call>"], Self::Minimax),
            (&["<|tool_call>"], Self::Gemma),
            (&["[TOOL_CALLS]", "[ARGS]"], Self::Mistral),
            (&["[TOOL_CALLS]"], Self::MistralJson),
            (&["<arg_key>"], Self::Glm),
            (&["<function=", "<parameter="], Self::QwenCoder),
            (&["<tool_call>"], Self::Hermes),
            (&["<|python_start|>"], Self::LlamaPythonic),
            (&["<|header_start|>"], Self::LlamaPythonic),
            (&["<|python_tag|>"], Self::Llama),
            (&["<|start_header_id|>"], Self::Llama),
            (&["<think>"], Self::Hermes),
        ];
        families.into_iter().find(|(markers, _)| all(markers)).map(|(_, family)| family)
    }

    /// The family of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|family| family.as_str() == name)
    }

    /// Its name in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hermes => "hermes",
            Self::QwenCoder => "qwen-coder",
            Self::Llama => "llama",
            Self::LlamaPythonic => "llama-pythonic",
            Self::Mistral => "mistral",
            Self::MistralJson => "mistral-json",
            Self::Deepseek => "deepseek",
            Self::DeepseekV31 => "deepseek-v3.1",
            Self::DeepseekDsml => "deepseek-dsml",
            Self::Glm => "glm",
            Self::Kimi => "kimi",
            Self::Harmony => "harmony",
            Self::Minimax => "minimax",
            Self::Gemma => "gemma",
            Self::Plain => "plain",
        }
    }

    /// What stands around reasoning, if the family has some.
    pub fn reasoning(self) -> Option<ReasoningMarks> {
        match self {
            Self::Plain => None,
            Self::Mistral | Self::MistralJson => Some(ReasoningMarks { open: "[THINK]", close: "[/THINK]" }),
            Self::Gemma => Some(ReasoningMarks { open: "<|channel>thought", close: "<channel|>" }),
            Self::Harmony => {
                Some(ReasoningMarks { open: "<|channel|>analysis<|message|>", close: "<|end|>" })
            }
            _ => Some(THINK),
        }
    }

    /// Whether a prompt ends inside reasoning.
    pub fn opens_reasoning(self, prompt: &str) -> bool {
        self.reasoning().is_some_and(|marks| prompt.trim_end().ends_with(marks.open))
    }

    /// Special tokens that end an output of this family whether or not the model's files say so.
    pub fn stop_texts(self) -> &'static [&'static str] {
        match self {
            Self::Harmony => &["<|call|>", "<|return|>"],
            Self::Llama => &["<|eom_id|>"],
            Self::LlamaPythonic => &["<|eom|>"],
            _ => &[],
        }
    }

    /// Whether a special token of this text is markup that the parser has to see.
    pub fn is_marker(self, text: &str) -> bool {
        let Markup { first, text: _, reasoning, stray, closers } = self.markup();
        let seen = [first, reasoning, stray, closers, self.inner()];
        seen.iter().any(|markers| markers.contains(&text))
    }

    /// The id of a call to which the model gave none: `minted`, or what the family's templates take instead.
    /// Mistral's refuse all but nine letters and digits.
    pub fn call_id(self, minted: String) -> String {
        match self {
            Self::Mistral | Self::MistralJson => nine(&minted),
            _ => minted,
        }
    }

    /// How a call is written where a grammar makes the model write one.
    pub fn call_syntax(self) -> Option<CallSyntax> {
        match self {
            Self::Hermes => Some(CallSyntax::HERMES),
            Self::Llama | Self::MistralJson | Self::Mistral => self.syntax_of_json(),
            Self::Deepseek | Self::DeepseekV31 | Self::Kimi => self.syntax_of_tokens(),
            Self::QwenCoder => Some(parameters(
                ("<tool_call>\n<function=", ">\n", "</function>\n</tool_call>"),
                ("<parameter=", ">\n", "\n</parameter>\n"),
            )),
            Self::Glm => Some(parameters(
                ("<tool_call>", "\n", "</tool_call>"),
                ("<arg_key>", "</arg_key>\n<arg_value>", "</arg_value>\n"),
            )),
            Self::Minimax => Some(CallSyntax {
                section_open: "<minimax:tool_call>\n",
                section_close: "\n</minimax:tool_call>",
                ..parameters(
                    ("<invoke name=\"", "\">\n", "</invoke>"),
                    ("<parameter name=\"", "\">", "</parameter>\n"),
                )
            }),
            // Python, values whose markup tells their type, bare keys, and an end that is a stop token.
            Self::LlamaPythonic | Self::DeepseekDsml | Self::Gemma | Self::Harmony | Self::Plain => None,
        }
    }

    /// Of families whose calls are JSON with little around it.
    fn syntax_of_json(self) -> Option<CallSyntax> {
        let json = CallSyntax { begin: "{\"name\": \"", end: "}", ..CallSyntax::HERMES };
        Some(match self {
            Self::Llama => CallSyntax { after_name: "\", \"parameters\": ", between: "; ", ..json },
            Self::MistralJson => {
                CallSyntax { section_open: "[TOOL_CALLS][", between: ", ", section_close: "]", ..json }
            }
            Self::Mistral => plain_name(CallSyntax {
                begin: "[TOOL_CALLS]",
                after_name: "[ARGS]",
                end: "",
                between: "",
                ..json
            }),
            _ => return None,
        })
    }

    /// Of families whose calls stand between tokens of their own.
    fn syntax_of_tokens(self) -> Option<CallSyntax> {
        let deepseek = plain_name(CallSyntax {
            section_open: "<｜tool▁calls▁begin｜>",
            begin: "<｜tool▁call▁begin｜>",
            after_name: "<｜tool▁sep｜>",
            end: "<｜tool▁call▁end｜>",
            between: "",
            section_close: "<｜tool▁calls▁end｜>",
            ..CallSyntax::HERMES
        });
        Some(match self {
            Self::Deepseek => CallSyntax {
                begin: "<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
                after_name: "\n```json\n",
                end: "\n```<｜tool▁call▁end｜>",
                between: "\n",
                ..deepseek
            },
            Self::DeepseekV31 => deepseek,
            Self::Kimi => plain_name(CallSyntax {
                section_open: "<|tool_calls_section_begin|>",
                begin: "<|tool_call_begin|>functions.",
                // The index counts calls of the whole conversation, which no fixed piece can: the host mints the id.
                after_name: "<|tool_call_argument_begin|>",
                end: "<|tool_call_end|>",
                between: "",
                section_close: "<|tool_calls_section_end|>",
                ..CallSyntax::HERMES
            }),
            _ => return None,
        })
    }

    fn markup(self) -> Markup {
        match self {
            Self::Hermes | Self::Glm => HERMES,
            Self::QwenCoder => QWEN,
            Self::Llama | Self::LlamaPythonic => LLAMA,
            Self::Mistral | Self::MistralJson => MISTRAL,
            Self::Deepseek | Self::DeepseekV31 => DEEPSEEK,
            Self::DeepseekDsml => DSML,
            Self::Kimi => KIMI,
            Self::Minimax => MINIMAX,
            Self::Gemma => GEMMA,
            Self::Harmony | Self::Plain => NONE,
        }
    }

    /// Markers inside calls that may be special tokens.
    fn inner(self) -> &'static [&'static str] {
        match self {
            Self::QwenCoder => &["<parameter=", "</parameter>", "</function>"],
            Self::Mistral | Self::MistralJson => &["[ARGS]", "[CALL_ID]"],
            Self::Deepseek | Self::DeepseekV31 => marked::DEEPSEEK.all,
            Self::DeepseekDsml => &["｜DSML｜"],
            Self::Glm => &["<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"],
            Self::Kimi => marked::KIMI.all,
            Self::Harmony => harmony::MARKERS,
            Self::Gemma => &["<|channel>", "<|\"|>"],
            _ => &[],
        }
    }

    /// What is looked for in text; `first` where nothing has been said.
    pub(super) fn in_text(self, tools: bool, first: bool) -> &'static [&'static str] {
        match (tools, first) {
            (true, true) => self.markup().first,
            (true, false) => self.markup().text,
            (false, true) => self.markup().first.get(..1).unwrap_or_default(),
            (false, false) => &[],
        }
    }

    /// What is looked for in reasoning.
    pub(super) fn ends_reasoning(self, tools: bool) -> &'static [&'static str] {
        let all = self.markup().reasoning;
        if tools { all } else { all.get(..1).unwrap_or_default() }
    }

    pub(super) fn is_stray(self, marker: &str) -> bool {
        self.markup().stray.contains(&marker)
    }

    pub(super) fn closers(self) -> &'static [&'static str] {
        self.markup().closers
    }

    /// Newlines before a call that belong to its markup.
    pub(super) fn newlines(self) -> usize {
        match self {
            Self::DeepseekDsml => 2,
            Self::Plain => 0,
            _ => 1,
        }
    }

    /// What reads a whole answer, in a family whose text has markup, too.
    pub(super) fn whole(self, in_reasoning: bool) -> Option<Box<dyn Body>> {
        (self == Self::Harmony).then(|| Box::new(Harmony::new(in_reasoning)) as Box<dyn Body>)
    }

    /// What reads calls without a marker, where an answer begins with `text`.
    pub(super) fn bare(self, text: &str) -> Option<Box<dyn Body>> {
        let llama = matches!(self, Self::Llama | Self::LlamaPythonic);
        (llama && text.starts_with(['{', '['])).then(|| Box::new(Pythonic::new()) as Box<dyn Body>)
    }

    /// What reads calls after a marker.
    pub(super) fn body(self, opener: &str, schemas: &Schemas) -> Box<dyn Body> {
        let xml = |dialect| Box::new(Xml::new(dialect, opener, schemas));
        match self {
            Self::QwenCoder => xml(&xml_dialects::QWEN),
            Self::Glm => xml(&xml_dialects::GLM),
            Self::Minimax => xml(&xml_dialects::MINIMAX),
            Self::DeepseekDsml => xml(&xml_dialects::DSML),
            Self::Llama | Self::LlamaPythonic => Box::new(Pythonic::new()),
            Self::Mistral | Self::MistralJson => Box::<Mistral>::default(),
            Self::Deepseek | Self::DeepseekV31 => Box::new(Marked::new(&marked::DEEPSEEK, opener)),
            Self::Kimi => Box::new(Marked::new(&marked::KIMI, opener)),
            Self::Gemma => Box::<Gemma>::default(),
            Self::Hermes | Self::Harmony | Self::Plain => Box::new(JsonCall::between(self.closers())),
        }
    }
}

/// Nine letters and digits that depend on all of an id (FNV-1a): two ids share them once in 10^14.
fn nine(id: &str) -> String {
    const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let mut hash = id.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    // The last bytes reach only the low bits: spread them.
    hash = (hash ^ (hash >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash ^= hash >> 29;
    (0..9)
        .map(|_| {
            let digit = DIGITS[(hash % 36) as usize];
            hash /= 36;
            char::from(digit)
        })
        .collect()
}

const fn plain_name(syntax: CallSyntax) -> CallSyntax {
    CallSyntax { name: NameStyle::Plain, ..syntax }
}

/// Calls one a line: what stands before and after a name and at the end, and the same of a parameter.
const fn parameters(
    (begin, after_name, end): (&'static str, &'static str, &'static str),
    (open, after_key, close): (&'static str, &'static str, &'static str),
) -> CallSyntax {
    CallSyntax {
        begin,
        after_name,
        end,
        name: NameStyle::Plain,
        arguments: ArgumentStyle::Parameters { open, after_key, close },
        ..CallSyntax::HERMES
    }
}
