//! Server-sent events, taken apart as their bytes come.
//!
//! **Invariant:** what is read does not depend on how the bytes were split, and no more than [`EVENT_BYTES_MAX`] of it are
//! kept.
//! Source: WHATWG HTML, section 9.2.6, and one liberty: an event that the end of the stream cuts off before its empty
//! line counts, for some servers leave out the last one.

use memchr::memchr2;

/// Chosen: far beyond any event of a model; a server that never ends a line must not fill our memory.
const EVENT_BYTES_MAX: usize = 16 << 20;

/// One event. Its name is empty if it has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Event<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) data: &'a [u8],
}

/// An event is longer than anybody's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooLong;

/// What is known of the event that is being read.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    /// A line whose end has not come.
    line: Vec<u8>,
    name: Vec<u8>,
    /// Lines of data, each with a line feed after it.
    data: Vec<u8>,
    /// The last byte ended a line as a carriage return; a line feed after it ends no other.
    after_return: bool,
    begun: bool,
}

impl Parser {
    /// Takes bytes as they came and hands over the events that are whole.
    ///
    /// Cost: each byte is looked at once; lines that came in one piece are not copied, data are once.
    pub(crate) fn feed(&mut self, mut bytes: &[u8], mut each: impl FnMut(Event<'_>)) -> Result<(), TooLong> {
        if !bytes.is_empty() && std::mem::take(&mut self.after_return) {
            bytes = bytes.strip_prefix(b"\n").unwrap_or(bytes);
        }
        while let Some(end) = memchr2(b'\n', b'\r', bytes) {
            if self.line.is_empty() {
                self.line(&bytes[..end], &mut each);
            } else {
                self.line.extend_from_slice(&bytes[..end]);
                let line = std::mem::take(&mut self.line);
                self.line(&line, &mut each);
            }
            let is_return = bytes[end] == b'\r';
            bytes = &bytes[end + 1..];
            if is_return {
                self.after_return = bytes.is_empty();
                bytes = bytes.strip_prefix(b"\n").unwrap_or(bytes);
            }
        }
        self.line.extend_from_slice(bytes);
        if self.line.len() + self.data.len() > EVENT_BYTES_MAX { Err(TooLong) } else { Ok(()) }
    }

    /// The stream is over: what came of an event is one.
    pub(crate) fn finish(mut self, mut each: impl FnMut(Event<'_>)) {
        let line = std::mem::take(&mut self.line);
        self.line(&line, &mut each);
        self.line(b"", &mut each);
    }

    fn line(&mut self, mut line: &[u8], each: &mut impl FnMut(Event<'_>)) {
        if !self.begun {
            self.begun = true;
            line = line.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(line);
        }
        if line.is_empty() {
            if let Some((_, data)) = self.data.split_last() {
                each(Event { name: &self.name, data });
            }
            self.data.clear();
            self.name.clear();
        } else if let Some(data) = field(line, b"data") {
            self.data.extend_from_slice(data);
            self.data.push(b'\n');
        } else if let Some(name) = field(line, b"event") {
            self.name.clear();
            self.name.extend_from_slice(name);
        }
    }
}

/// The value of a line if that is its field: after the colon and one space. Comments and other fields are nobody's.
fn field<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let rest = line.strip_prefix(name)?;
    if rest.is_empty() {
        return Some(rest);
    }
    let value = rest.strip_prefix(b":")?;
    Some(value.strip_prefix(b" ").unwrap_or(value))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Owned = (String, String);

    fn read(pieces: &[&[u8]]) -> Vec<Owned> {
        let mut events = Vec::new();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let mut keep = |event: Event<'_>| events.push((text(event.name), text(event.data)));
        let mut parser = Parser::default();
        for piece in pieces {
            parser.feed(piece, &mut keep).expect("it is short");
        }
        parser.finish(&mut keep);
        events
    }

    fn check(stream: &str, expected: &[(&str, &str)]) {
        let expected: Vec<Owned> = expected.iter().map(|(n, d)| ((*n).to_owned(), (*d).to_owned())).collect();
        assert_eq!(read(&[stream.as_bytes()]), expected, "{stream:?}");
    }

    #[test]
    fn every_end_of_a_line_is_one() {
        for end in ["\n", "\r", "\r\n"] {
            check(&format!("event: a{end}data: 1{end}{end}data: 2{end}{end}"), &[("a", "1"), ("", "2")]);
        }
    }

    #[test]
    fn comments_and_foreign_fields_are_nobodys() {
        check(": keep-alive\n\nid: 7\nretry: 3\ndata: x\n\ndatabase: y\n\n", &[("", "x")]);
    }

    #[test]
    fn several_lines_of_data_are_one_event() {
        check("data: a\ndata:b\ndata\n\n", &[("", "a\nb\n")]);
    }

    #[test]
    fn an_event_without_data_is_none_and_its_name_is_forgotten() {
        check("event: ping\n\ndata: x\n\n", &[("", "x")]);
    }

    #[test]
    fn the_last_event_needs_no_empty_line() {
        check("data: a\n\ndata: [DONE]", &[("", "a"), ("", "[DONE]")]);
    }

    #[test]
    fn a_mark_of_byte_order_is_no_part_of_the_first_field() {
        check("\u{feff}data: a\n\n", &[("", "a")]);
    }

    #[test]
    fn a_line_without_end_is_refused() {
        let mut parser = Parser::default();
        let long = vec![b'x'; EVENT_BYTES_MAX / 2 + 1];
        assert_eq!(parser.feed(&long, |_| ()), Ok(()));
        assert_eq!(parser.feed(&long, |_| ()), Err(TooLong));
    }

    fn any_line() -> impl Strategy<Value = String> {
        prop_oneof![
            3 => "data: ?[ -~]{0,12}",
            1 => "event: [a-z]{0,6}",
            1 => ": ?[a-z]{0,6}",
            2 => Just(String::new()),
        ]
    }

    proptest! {
        /// Wherever the bytes are split, and whatever ends the lines, the events are the same.
        #[test]
        fn splits_change_nothing(
            lines in prop::collection::vec((any_line(), prop::sample::select(vec!["\n", "\r", "\r\n"])), 0..24),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let plain: String = lines.iter().map(|(line, _)| format!("{line}\n")).collect();
            // A return and a line feed are one end: an empty line ended by a line feed would vanish after a return.
            let mut stream = String::new();
            for (line, end) in &lines {
                let joins = line.is_empty() && *end == "\n" && stream.ends_with('\r');
                stream.push_str(line);
                stream.push_str(if joins { "\r\n" } else { end });
            }
            let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
            at.extend([0, stream.len()]);
            at.sort_unstable();
            let pieces: Vec<&[u8]> = at.windows(2).map(|w| &stream.as_bytes()[w[0]..w[1]]).collect();
            prop_assert_eq!(read(&pieces), read(&[plain.as_bytes()]));
        }
    }
}
