//! What Python does in Hugging Face's template environment and minijinja does otherwise: JSON and dates.
//!
//! Models were trained on Python's spelling, so a space or an escape that differs is out of distribution.
//! **Invariant:** for equal data, equal to `json.dumps` and `strftime` to the byte.

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind};

use super::printed::Printed;

/// How JSON is laid out.
#[derive(Debug)]
struct Layout {
    indent: Option<usize>,
    between_items: String,
    after_key: String,
    ascii: bool,
    sorted: bool,
}

impl Layout {
    fn python(indent: Option<usize>) -> Self {
        let between_items = if indent.is_some() { "," } else { ", " };
        Self {
            indent,
            between_items: between_items.into(),
            after_key: ": ".into(),
            ascii: false,
            sorted: false,
        }
    }
}

/// The filter `tojson(indent=none, ensure_ascii=false, separators=none, sort_keys=false)`.
///
/// Source: `apply_chat_template` of transformers, which replaces Jinja's own filter because it escapes HTML.
pub(super) fn tojson(value: &Value, indent: Option<usize>, options: Kwargs) -> Result<String, Error> {
    let mut layout = Layout::python(indent.or(options.get("indent")?));
    layout.ascii = options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    layout.sorted = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    if let Some(separators) = options.get::<Option<Vec<String>>>("separators")? {
        let pair = <[String; 2]>::try_from(separators);
        let wrong = |_| Error::new(ErrorKind::InvalidOperation, "separators are two strings");
        [layout.between_items, layout.after_key] = pair.map_err(wrong)?;
    }
    options.assert_all_used()?;
    let mut out = String::new();
    layout.write(value, 0, &mut out)?;
    Ok(out)
}

/// JSON as Python's `json.dumps(value, ensure_ascii=False)` writes it.
pub(super) fn dumps(value: &serde_json::Value) -> Result<String, Error> {
    let mut out = String::new();
    Layout::python(None).write(&Value::from(minijinja::value::Serde(value)), 0, &mut out)?;
    Ok(out)
}

impl Layout {
    fn is_pythons_own(&self) -> bool {
        let separators = self.between_items == ", " && self.after_key == ": ";
        self.indent.is_none() && separators && !self.ascii && !self.sorted
    }

    fn write(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        let printed = value.downcast_object_ref::<Printed>();
        if let Some(json) = printed.and_then(|printed| printed.json(self.is_pythons_own())) {
            out.push_str(json);
            return Ok(());
        }
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number if value.is_integer() => out.push_str(&value.to_string()),
            ValueKind::Number => out.push_str(&float(f64::try_from(value.clone())?)),
            ValueKind::String => self.string(value.as_str().unwrap_or_default(), out),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                out.push('[');
                self.items(&items, depth, out, |item, out| self.write(item, depth + 1, out))?;
                out.push(']');
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sorted {
                    keys.sort();
                }
                out.push('{');
                self.items(&keys, depth, out, |key, out| {
                    self.string(&key.to_string(), out);
                    out.push_str(&self.after_key);
                    self.write(&value.get_item(key)?, depth + 1, out)
                })?;
                out.push('}');
            }
            kind => {
                let reason = format!("{kind} is not JSON serializable");
                return Err(Error::new(ErrorKind::InvalidOperation, reason));
            }
        }
        Ok(())
    }

    /// Items between brackets, each on its own line where the layout is indented.
    fn items(
        &self,
        items: &[Value],
        depth: usize,
        out: &mut String,
        mut write: impl FnMut(&Value, &mut String) -> Result<(), Error>,
    ) -> Result<(), Error> {
        for (i, item) in items.iter().enumerate() {
            if i > 0 {
                out.push_str(&self.between_items);
            }
            self.new_line(depth + 1, out);
            write(item, out)?;
        }
        if !items.is_empty() {
            self.new_line(depth, out);
        }
        Ok(())
    }

    fn new_line(&self, depth: usize, out: &mut String) {
        if let Some(indent) = self.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    }

    fn string(&self, text: &str, out: &mut String) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                '\0'..='\u{1f}' => out.push_str(&format!("\\u{:04x}", c as u32)),
                c if self.ascii && !c.is_ascii() => {
                    c.encode_utf16(&mut [0; 2])
                        .iter()
                        .for_each(|unit| out.push_str(&format!("\\u{unit:04x}")));
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

/// `repr` of a Python float: shortest digits, scientific below 1e-4 and from 1e16 on.
fn float(value: f64) -> String {
    let scientific = format!("{value:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else { return scientific };
    match exponent.parse::<i32>() {
        Ok(exponent @ -4..16) if exponent >= 0 || value != 0.0 => {
            let plain = value.to_string();
            if plain.contains('.') { plain } else { plain + ".0" }
        }
        Ok(exponent) => format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs()),
        Err(_) => scientific,
    }
}

/// `strftime` of a moment in UTC, for the directives that templates use; others stay as they are.
///
/// Source: civil-from-days, howardhinnant.github.io/date_algorithms.html.
pub(crate) fn strftime(format: &str, unix_s: i64) -> String {
    let (days, second) = (unix_s.div_euclid(86_400), unix_s.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let weekday = WEEKDAYS[(days + 4).rem_euclid(7) as usize];
    let month_name = MONTHS[month as usize - 1];
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let directive = chars.next();
        let text = match directive {
            Some('Y') => format!("{year}"),
            Some('y') => format!("{:02}", year.rem_euclid(100)),
            Some('m') => format!("{month:02}"),
            Some('d') => format!("{day:02}"),
            Some('e') => format!("{day:2}"),
            Some('B') => month_name.into(),
            Some('b' | 'h') => month_name[..3].into(),
            Some('A') => weekday.into(),
            Some('a') => weekday[..3].into(),
            Some('H') => format!("{hour:02}"),
            Some('I') => format!("{:02}", (hour + 11) % 12 + 1),
            Some('M') => format!("{minute:02}"),
            Some('S') => format!("{second:02}"),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.into(),
            Some('j') => format!("{:03}", days - days_of(year) + 1),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('Z') => "UTC".into(),
            Some('z') => "+0000".into(),
            Some('%') => "%".into(),
            Some('-') => match chars.next() {
                Some('d') => format!("{day}"),
                Some('m') => format!("{month}"),
                Some('H') => format!("{hour}"),
                Some('I') => format!("{}", (hour + 11) % 12 + 1),
                other => format!("%-{}", other.map(String::from).unwrap_or_default()),
            },
            other => format!("%{}", other.map(String::from).unwrap_or_default()),
        };
        out.push_str(&text);
    }
    out
}

const WEEKDAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// Year, month and day of a day counted from 1970-01-01.
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day_of_year - (153 * shifted + 2) / 5 + 1)
}

/// Days from 1970-01-01 to the first day of a year.
fn days_of(year: i64) -> i64 {
    let before = year - 1;
    before * 365 + before.div_euclid(4) - before.div_euclid(100) + before.div_euclid(400) - 719_162
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_json(json: &str, expected: &str) {
        let value = serde_json::from_str(json).expect("JSON");
        assert_eq!(dumps(&value).expect("JSON"), expected);
    }

    #[test]
    fn json_has_pythons_separators_and_escapes() {
        check_json(
            r#"{"b":1,"a":[true,null,"x"],"e":{},"f":[]}"#,
            r#"{"b": 1, "a": [true, null, "x"], "e": {}, "f": []}"#,
        );
        check_json(
            r#"["<é'\"\\\n\r\t\b\f\u0001\u007f/>"]"#,
            "[\"<é'\\\"\\\\\\n\\r\\t\\b\\f\\u0001\u{7f}/>\"]",
        );
    }

    #[test]
    fn floats_are_pythons() {
        check_json(
            "[1.0,0.1,1e16,123456789012345680.0,1e15,0.0001,0.00001,-2.5e-7,1e300,0.0]",
            "[1.0, 0.1, 1e+16, 1.2345678901234568e+17, 1000000000000000.0, 0.0001, 1e-05, -2.5e-07, 1e+300, 0.0]",
        );
        check_json(
            "[18446744073709551615,-9223372036854775808]",
            "[18446744073709551615, -9223372036854775808]",
        );
    }

    #[test]
    fn json_can_be_indented_sorted_and_ascii() {
        let mut env = minijinja::Environment::new();
        env.add_filter("tojson", tojson);
        let render = |source: &str| env.render_str(source, ()).expect("rendered");
        assert_eq!(
            render("{{ {'b': [1, 2], 'a': {}}|tojson(indent=2) }}"),
            "{\n  \"b\": [\n    1,\n    2\n  ],\n  \"a\": {}\n}"
        );
        assert_eq!(
            render("{{ {'b': 'é🚂', 'a': 1}|tojson(ensure_ascii=true, sort_keys=true) }}"),
            r#"{"a": 1, "b": "\u00e9\ud83d\ude82"}"#
        );
        assert_eq!(render("{{ [1, 2]|tojson(separators=(',', ':')) }}"), "[1,2]");
    }

    fn check_date(unix_s: i64, expected: &str) {
        assert_eq!(strftime("%a %A %d %-d %e %b %B %Y %y-%m %H:%M:%S %I%p %j %% %Q", unix_s), expected);
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        check_date(0, "Thu Thursday 01 1  1 Jan January 1970 70-01 00:00:00 12AM 001 % %Q");
        check_date(1_709_210_096, "Thu Thursday 29 29 29 Feb February 2024 24-02 12:34:56 12PM 060 % %Q");
        check_date(1_798_761_599, "Thu Thursday 31 31 31 Dec December 2026 26-12 23:59:59 11PM 365 % %Q");
    }
}
