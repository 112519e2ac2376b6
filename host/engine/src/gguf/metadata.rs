//! The metadata of a GGUF file: values by key, lists left where they lie.

use std::collections::BTreeMap;
use std::ops::Range;

use super::Cursor;

/// Values by key.
pub(crate) type Values = BTreeMap<String, Value>;

/// One value. Texts and lists are ranges of the file, so that a vocabulary is not held twice.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Flag(bool),
    Text(Range<usize>),
    /// `len` values of one kind.
    List {
        kind: Kind,
        len: usize,
        bytes: Range<usize>,
    },
}

/// What a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Flag,
    Text,
    List,
    U64,
    I64,
    F64,
}

impl Kind {
    pub(super) fn of(number: u32) -> Result<Self, String> {
        use Kind::{F32, F64, Flag, I8, I16, I32, I64, List, Text, U8, U16, U32, U64};
        const KINDS: [Kind; 13] = [U8, I8, U16, I16, U32, I32, F32, Flag, Text, List, U64, I64, F64];
        KINDS.get(number as usize).copied().ok_or_else(|| format!("no value has kind {number}"))
    }

    /// Bytes of a value, at least.
    fn bytes_min(self) -> usize {
        match self {
            Self::U8 | Self::I8 | Self::Flag => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::Text | Self::U64 | Self::I64 | Self::F64 => 8,
            Self::List => 12,
        }
    }
}

/// Reads one value.
pub(super) fn read_value(cursor: &mut Cursor<'_>, kind: Kind) -> Result<Value, String> {
    Ok(match kind {
        Kind::U8 => Value::Unsigned(u64::from(cursor.array::<1>()?[0])),
        Kind::U16 => Value::Unsigned(u64::from(u16::from_le_bytes(cursor.array()?))),
        Kind::U32 => Value::Unsigned(u64::from(cursor.u32()?)),
        Kind::U64 => Value::Unsigned(cursor.u64()?),
        Kind::I8 => Value::Signed(i64::from(i8::from_le_bytes(cursor.array()?))),
        Kind::I16 => Value::Signed(i64::from(i16::from_le_bytes(cursor.array()?))),
        Kind::I32 => Value::Signed(i64::from(i32::from_le_bytes(cursor.array()?))),
        Kind::I64 => Value::Signed(i64::from_le_bytes(cursor.array()?)),
        Kind::F32 => Value::Float(f64::from(f32::from_le_bytes(cursor.array()?))),
        Kind::F64 => Value::Float(f64::from_le_bytes(cursor.array()?)),
        Kind::Flag => match cursor.array::<1>()?[0] {
            byte @ (0 | 1) => Value::Flag(byte == 1),
            byte => return Err(format!("{byte} is neither true nor false")),
        },
        Kind::Text => {
            let text = cursor.text(usize::MAX, "a text")?;
            Value::Text(cursor.at - text.len()..cursor.at)
        }
        Kind::List => return read_list(cursor),
    })
}

/// Steps over a list, checking every value of it.
fn read_list(cursor: &mut Cursor<'_>) -> Result<Value, String> {
    let kind = Kind::of(cursor.u32()?)?;
    let len = cursor.u64()?;
    if kind == Kind::List {
        return Err("lists of lists are not supported".to_owned());
    }
    cursor.check_count("values of a list", len, kind.bytes_min())?;
    let (start, len) = (cursor.at, len as usize);
    match kind {
        Kind::Text | Kind::Flag => {
            for _ in 0..len {
                read_value(cursor, kind)?;
            }
        }
        _ => drop(cursor.take(len * kind.bytes_min())?),
    }
    Ok(Value::List { kind, len, bytes: start..cursor.at })
}

/// The metadata of a GGUF file: model shape, tokenizer, chat template.
///
/// A getter gives nothing both for a key that is absent and for one of another kind; [`Self::has`] tells them apart.
#[derive(Clone, Copy)]
pub struct GgufMetadata<'a> {
    pub(super) values: &'a Values,
    pub(super) bytes: &'a [u8],
}

impl<'a> GgufMetadata<'a> {
    pub(crate) fn new(values: &'a Values, bytes: &'a [u8]) -> Self {
        Self { values, bytes }
    }

    /// All keys, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.values.keys().map(String::as_str)
    }

    /// Whether a key is there.
    pub fn has(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    /// A text, such as `general.architecture` or `tokenizer.chat_template`.
    pub fn text(&self, key: &str) -> Option<&'a str> {
        match self.values.get(key)? {
            // Checked when it was read.
            Value::Text(range) => std::str::from_utf8(&self.bytes[range.clone()]).ok(),
            _ => None,
        }
    }

    /// A whole number that is not negative, such as `tokenizer.ggml.eos_token_id`.
    pub fn unsigned(&self, key: &str) -> Option<u64> {
        match self.values.get(key)? {
            Value::Unsigned(number) => Some(*number),
            Value::Signed(number) => u64::try_from(*number).ok(),
            _ => None,
        }
    }

    /// Any number.
    pub fn number(&self, key: &str) -> Option<f64> {
        match self.values.get(key)? {
            Value::Unsigned(number) => Some(*number as f64),
            Value::Signed(number) => Some(*number as f64),
            Value::Float(number) => Some(*number),
            _ => None,
        }
    }

    /// A flag, such as `tokenizer.ggml.add_bos_token`.
    pub fn flag(&self, key: &str) -> Option<bool> {
        match self.values.get(key)? {
            Value::Flag(flag) => Some(*flag),
            _ => None,
        }
    }

    /// A list of texts, such as `tokenizer.ggml.tokens`; read as it is walked.
    pub fn texts(&self, key: &str) -> Option<impl ExactSizeIterator<Item = &'a str> + use<'a>> {
        let Value::List { kind: Kind::Text, len, bytes } = self.values.get(key)? else { return None };
        let mut cursor = Cursor { bytes: &self.bytes[bytes.clone()], at: 0 };
        Some(
            (0..*len)
                .map(move |_| cursor.text(usize::MAX, "a text").expect("every text was checked when read")),
        )
    }

    /// A list of numbers or flags, such as `tokenizer.ggml.scores`; read as it is walked.
    pub fn numbers(&self, key: &str) -> Option<impl ExactSizeIterator<Item = f64> + use<'a>> {
        let Value::List { kind, len, bytes } = self.values.get(key)? else { return None };
        if *kind == Kind::Text {
            return None;
        }
        let mut cursor = Cursor { bytes: &self.bytes[bytes.clone()], at: 0 };
        Some((0..*len).map(move |_| {
            match read_value(&mut cursor, *kind).expect("the bytes were counted when read") {
                Value::Unsigned(number) => number as f64,
                Value::Signed(number) => number as f64,
                Value::Float(number) => number,
                Value::Flag(flag) => f64::from(u8::from(flag)),
                Value::Text(_) | Value::List { .. } => unreachable!("a list of numbers holds neither"),
            }
        }))
    }

    /// Values of a list, of any kind.
    pub fn list_len(&self, key: &str) -> Option<usize> {
        match self.values.get(key)? {
            Value::List { len, .. } => Some(*len),
            _ => None,
        }
    }
}
