//! Unicode classes as split patterns see them: `\p{L}`, `\p{M}`, `\p{N}`, `\s`, `[\r\n]`.
//!
//! Called for every character of every prompt, so ASCII is a table and the rest is two look-ups.
//! **Invariant:** the classes come from `regex-syntax`, the tables of the reference tokenizer's own regex.

use std::sync::LazyLock;

/// What a character is to a split pattern.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Class {
    /// None of the others: punctuation, symbols, controls, unassigned.
    Other,
    /// `\p{L}`.
    Letter,
    /// `\p{M}`.
    Mark,
    /// `\p{N}`.
    Number,
    /// `\r` or `\n`.
    Newline,
    /// Any other `\s`.
    Space,
}

/// The class of the character at byte `at`, and its length in bytes; `None` at the end.
#[inline]
pub(super) fn class_at(text: &str, at: usize) -> Option<(Class, usize)> {
    let byte = *text.as_bytes().get(at)?;
    if byte < 128 {
        return Some((ASCII[byte as usize], 1));
    }
    let c = text[at..].chars().next()?;
    Some((TABLE.class(c), c.len_utf8()))
}

/// Builds the table, in about a millisecond, so that no request waits for it.
pub(super) fn prepare() {
    LazyLock::force(&TABLE);
}

const ASCII: [Class; 128] = {
    let mut classes = [Class::Other; 128];
    let mut byte = 0;
    while byte < 128 {
        classes[byte] = match byte as u8 {
            b'a'..=b'z' | b'A'..=b'Z' => Class::Letter,
            b'0'..=b'9' => Class::Number,
            b'\r' | b'\n' => Class::Newline,
            b'\t' | 0x0b | 0x0c | b' ' => Class::Space,
            _ => Class::Other,
        };
        byte += 1;
    }
    classes
};

static TABLE: LazyLock<Table> = LazyLock::new(Table::new);

/// Classes of all characters, in distinct rows of 256.
struct Table {
    row_of: Vec<u16>,
    rows: Vec<[Class; 256]>,
}

impl Table {
    fn new() -> Self {
        let mut flat = vec![Class::Other; 0x11_0000];
        for (pattern, class) in
            [(r"\p{L}", Class::Letter), (r"\p{M}", Class::Mark), (r"\p{N}", Class::Number)]
        {
            for (first, last) in ranges(pattern) {
                flat[first as usize..=last as usize].fill(class);
            }
        }
        for c in ('\0'..='\u{ffff}').filter(|c| c.is_whitespace()) {
            flat[c as usize] = if matches!(c, '\r' | '\n') { Class::Newline } else { Class::Space };
        }
        let mut table = Self { row_of: Vec::new(), rows: Vec::new() };
        for row in flat.chunks_exact(256) {
            let found = table.rows.iter().position(|known| known == row).unwrap_or_else(|| {
                table.rows.push(row.try_into().expect("the flat table is cut into rows of 256"));
                table.rows.len() - 1
            });
            table.row_of.push(found as u16);
        }
        table
    }

    #[inline]
    fn class(&self, c: char) -> Class {
        let c = c as usize;
        self.rows[self.row_of[c >> 8] as usize][c & 255]
    }
}

/// Character ranges of a class pattern, both ends included.
fn ranges(pattern: &str) -> Vec<(char, char)> {
    let hir = regex_syntax::parse(pattern).expect("the pattern is one of three constants");
    match hir.into_kind() {
        regex_syntax::hir::HirKind::Class(regex_syntax::hir::Class::Unicode(class)) => {
            class.iter().map(|range| (range.start(), range.end())).collect()
        }
        _ => unreachable!("a property is a Unicode class"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ascii_table_is_the_start_of_the_whole_table() {
        for byte in 0..128u8 {
            assert_eq!(ASCII[byte as usize], TABLE.class(byte as char), "{byte:#x}");
        }
    }

    #[test]
    fn whitespace_is_the_property_of_the_regex_crate() {
        let mut count = 0;
        for (first, last) in ranges(r"\s") {
            for c in first..=last {
                assert!(matches!(TABLE.class(c), Class::Space | Class::Newline), "{c:?}");
                count += 1;
            }
        }
        let all = ('\0'..=char::MAX).filter(|&c| matches!(TABLE.class(c), Class::Space | Class::Newline));
        assert_eq!(all.count(), count);
    }

    #[test]
    fn classes_are_those_of_unicode() {
        for (c, class) in [
            ('é', Class::Letter),
            ('漢', Class::Letter),
            ('٣', Class::Number),
            ('½', Class::Number),
            ('\u{301}', Class::Mark),
            ('\u{a0}', Class::Space),
            ('\u{2028}', Class::Space),
            ('🚂', Class::Other),
        ] {
            assert_eq!(TABLE.class(c), class, "{c:?}");
        }
    }
}
