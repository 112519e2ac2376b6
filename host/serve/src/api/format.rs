//! Structured output as the protocols ask for it: one reader for all of them.
//!
//! | protocol | where |
//! |---|---|
//! | Chat completions, completions | `response_format` |
//! | Responses | `text.format` |
//! | Messages | `output_config.format`, `output_format` |
//! | any, as vLLM has it | `structured_outputs`, `guided_json`, `guided_regex`, `guided_choice`, `guided_grammar` |
//!
//! **Invariant:** a format that was read can be enforced, but for what only compiling it shows; what cannot is refused
//! rather than ignored, for callers parse what they get.

use serde_json::Value;

use super::fields::Fields;
use crate::prompt::{Format, PromptError, check_schema};
use crate::request::Refusal;

/// Chosen: a label is short; a grammar has a notation of its own.
const CHOICES_MAX: usize = 1024;
/// What the `type` of a format may be.
const TYPES: &str = "\"text\", \"json_object\" or \"json_schema\"";

/// The form that a body asks for, at the first of `places` that has one (such as `text.format`), or in vLLM's fields.
///
/// Errors: a refusal of the field, down to the keyword of a schema; or of the second of two forms.
pub(super) fn parse(body: &Fields<'_>, places: &[&str]) -> Result<Format, Refusal> {
    let mut found: Vec<(String, Format)> = Vec::new();
    for place in places {
        let (folder, name) =
            place.rsplit_once('.').map_or((None, *place), |(folder, name)| (Some(folder), name));
        let inner = folder.map(|folder| body.object(folder)).transpose()?;
        let format = match (folder, &inner) {
            (Some(_), Some(Some(fields))) => fields.object(name)?,
            (Some(_), _) => None,
            (None, _) => body.object(name)?,
        };
        if let Some(format) = format {
            found.push(((*place).to_owned(), object(&format)?));
        }
    }
    extras(body, &mut found)?;
    let mut asked = found.into_iter().filter(|(_, format)| *format != Format::Text);
    let first = asked.next();
    if let (Some((first, _)), Some((second, _))) = (&first, asked.next()) {
        let message = format!("`{second}` asks for a second form beside `{first}`; give one of them");
        return Err(Refusal::field(second, message));
    }
    Ok(first.map_or(Format::Text, |(_, format)| format))
}

/// A format object, in the shape of chat completions or in that of Responses and Messages.
fn object(format: &Fields<'_>) -> Result<Format, Refusal> {
    match format.text("type")? {
        Some("text") => Ok(Format::Text),
        Some("json_object") => match format.get("schema") {
            Some(value) => schema(value, format.path("schema"), false),
            None => Ok(Format::JsonObject),
        },
        Some("json_schema") => {
            let nested = format.object("json_schema")?;
            let holder = nested.as_ref().unwrap_or(format);
            let value = holder.get("schema").ok_or_else(|| match nested {
                // Both shapes are known; the one that is there is the one to mend.
                Some(_) => holder.wrong("schema", "a JSON schema"),
                None => format.wrong("json_schema", "an object with a `schema`"),
            })?;
            schema(value, holder.path("schema"), holder.flag("strict")?)
        }
        _ => Err(format.wrong("type", TYPES)),
    }
}

/// vLLM's fields, which any protocol may carry.
fn extras(body: &Fields<'_>, found: &mut Vec<(String, Format)>) -> Result<(), Refusal> {
    let structured = body.object("structured_outputs")?;
    let named = |name: &'static str| (body, name);
    let inner = |name: &'static str| structured.as_ref().map(|fields| (fields, name));
    for (fields, name) in [Some(named("guided_json")), inner("json")].into_iter().flatten() {
        if let Some(value) = fields.get(name) {
            found.push((fields.path(name), json(fields, name, value)?));
        }
    }
    for (fields, name) in [Some(named("guided_regex")), inner("regex")].into_iter().flatten() {
        if let Some(pattern) = words(fields, name)? {
            found.push((fields.path(name), Format::Regex { pattern, param: fields.path(name) }));
        }
    }
    for (fields, name) in [Some(named("guided_grammar")), inner("grammar")].into_iter().flatten() {
        if let Some(grammar) = words(fields, name)? {
            found.push((fields.path(name), Format::Lark { grammar, param: fields.path(name) }));
        }
    }
    for (fields, name) in [Some(named("guided_choice")), inner("choice")].into_iter().flatten() {
        if let Some(texts) = choices(fields, name)? {
            found.push((fields.path(name), Format::Choice { texts, param: fields.path(name) }));
        }
    }
    if let Some(fields) = &structured
        && fields.flag("json_object")?
    {
        found.push((fields.path("json_object"), Format::JsonObject));
    }
    Ok(())
}

/// A schema as an object or as JSON text.
fn json(fields: &Fields<'_>, name: &str, value: &Value) -> Result<Format, Refusal> {
    let param = fields.path(name);
    match value {
        Value::String(text) => match serde_json::from_str(text) {
            Ok(parsed) => schema(&parsed, param, false),
            Err(_) => {
                Err(Refusal::field(&param, format!("`{param}` must be a JSON schema, but is not valid JSON")))
            }
        },
        value => schema(value, param, false),
    }
}

fn schema(value: &Value, param: String, strict: bool) -> Result<Format, Refusal> {
    check_schema(value, &param, strict).map_err(refuse)?;
    Ok(Format::JsonSchema { schema: value.clone(), strict, param })
}

/// A text that is not empty.
fn words(fields: &Fields<'_>, name: &str) -> Result<Option<String>, Refusal> {
    match fields.text(name)? {
        Some("") => {
            Err(Refusal::field(fields.path(name), format!("`{}` must not be empty", fields.path(name))))
        }
        text => Ok(text.map(str::to_owned)),
    }
}

fn choices(fields: &Fields<'_>, name: &str) -> Result<Option<Vec<String>>, Refusal> {
    let wanted = format!("a list of 1 to {CHOICES_MAX} strings, none of them empty");
    let Some(list) = fields.list(name)? else { return Ok(None) };
    let texts: Option<Vec<String>> =
        list.iter().map(|v| v.as_str().filter(|text| !text.is_empty()).map(str::to_owned)).collect();
    let texts = texts.filter(|texts| (1..=CHOICES_MAX).contains(&texts.len()));
    texts.map(Some).ok_or_else(|| fields.wrong(name, &wanted))
}

fn refuse(error: PromptError) -> Refusal {
    match error {
        PromptError::Refused { param, message } => Refusal::Field { param, message },
        other => Refusal::Internal(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(body: Value) -> Result<Format, Refusal> {
        let places = ["response_format", "text.format", "output_config.format"];
        parse(&Fields::body(&body).expect("an object"), &places)
    }

    fn param(body: Value) -> String {
        match read(body) {
            Err(Refusal::Field { param, .. }) => param,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_protocol_has_its_place() {
        let schema = json!({"type": "object"});
        let expected =
            |strict, param: &str| Format::JsonSchema { schema: schema.clone(), strict, param: param.into() };
        let nested =
            json!({"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": true}});
        let path = "response_format.json_schema.schema";
        assert_eq!(read(json!({"response_format": nested})), Ok(expected(true, path)));
        let flat = json!({"type": "json_schema", "name": "n", "schema": schema});
        assert_eq!(
            read(json!({"text": {"format": flat, "verbosity": "low"}})),
            Ok(expected(false, "text.format.schema"))
        );
        let path = "output_config.format.schema";
        assert_eq!(read(json!({"output_config": {"format": flat}})), Ok(expected(false, path)));
        assert_eq!(read(json!({"guided_json": schema.to_string()})), Ok(expected(false, "guided_json")));
        assert_eq!(read(json!({"response_format": {"type": "json_object"}})), Ok(Format::JsonObject));
        for free in
            [json!({}), json!({"response_format": {"type": "text"}, "text": {}, "output_config": null})]
        {
            assert_eq!(read(free), Ok(Format::Text));
        }
        let choice = Format::Choice { texts: vec!["a".into()], param: "structured_outputs.choice".into() };
        assert_eq!(read(json!({"structured_outputs": {"choice": ["a"]}})), Ok(choice));
        let regex = Format::Regex { pattern: "a+".into(), param: "guided_regex".into() };
        assert_eq!(read(json!({"guided_regex": "a+"})), Ok(regex));
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert_eq!(param(json!({"response_format": {"type": "xml"}})), "response_format.type");
        assert_eq!(param(json!({"response_format": {}})), "response_format.type");
        let none = json!({"type": "json_schema"});
        assert_eq!(param(json!({"response_format": none})), "response_format.json_schema");
        let none = json!({"type": "json_schema", "json_schema": {"name": "n"}});
        assert_eq!(param(json!({"response_format": none})), "response_format.json_schema.schema");
        let wrong = json!({"properties": {"x": {"type": "strin"}}});
        let format = json!({"type": "json_schema", "json_schema": {"name": "n", "schema": wrong}});
        let path = "response_format.json_schema.schema.properties.x.type";
        assert_eq!(param(json!({"response_format": format})), path);
        assert_eq!(param(json!({"guided_json": "{"})), "guided_json");
        assert_eq!(param(json!({"guided_choice": []})), "guided_choice");
        assert_eq!(param(json!({"guided_regex": ""})), "guided_regex");
        assert_eq!(param(json!({"guided_regex": "a", "guided_choice": ["b"]})), "guided_choice");
    }
}
