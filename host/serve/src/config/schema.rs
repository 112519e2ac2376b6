//! The configuration as a JSON Schema, for editors: derived from the types that read the file.
//!
//! **Invariant:** nothing is written by hand here but titles; descriptions are the doc comments.

use schemars::generate::SchemaSettings;
use schemars::transform::{Transform, transform_subschemas};
use serde_json::Value;

use super::Config;

/// JSON Schema of the configuration file, draft 7: the newest that editors of TOML understand in full.
pub fn schema() -> Value {
    let settings = SchemaSettings::draft07().with(|settings| {
        // Some editors lose the description beside a `$ref`.
        settings.inline_subschemas = true;
        settings.transforms.push(Box::new(PlainText));
    });
    let mut schema = settings.into_generator().into_root_schema_for::<Config>();
    schema.insert("title".to_owned(), Value::from("Pointsman's configuration"));
    schema.to_value()
}

/// Leaves out what only Rust knows: the widths of numbers, which validators report as unknown formats.
#[derive(Clone)]
struct PlainText;

impl Transform for PlainText {
    fn transform(&mut self, schema: &mut schemars::Schema) {
        schema.remove("format");
        transform_subschemas(self, schema);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_of_the_schema_is_described() {
        let mut nameless = Vec::new();
        undescribed("", &schema(), &mut nameless);
        assert!(nameless.is_empty(), "{nameless:?}");
    }

    /// Names the properties without a description, as deep as objects lie in objects.
    fn undescribed(path: &str, schema: &Value, nameless: &mut Vec<String>) {
        for (key, property) in schema["properties"].as_object().into_iter().flatten() {
            let path = format!("{path}.{key}");
            if property["description"].as_str().is_none_or(str::is_empty) {
                nameless.push(path.clone());
            }
            undescribed(&path, property, nameless);
        }
        for inner in ["items", "additionalProperties"] {
            if schema[inner].is_object() {
                undescribed(&format!("{path}.{inner}"), &schema[inner], nameless);
            }
        }
    }

    #[test]
    fn keys_that_the_file_must_not_have_are_not_in_the_schema() {
        let schema = schema();
        assert_eq!(schema["additionalProperties"], false);
        let named = &schema["properties"]["chains"]["items"];
        assert_eq!(named["additionalProperties"], false);
        assert!(named["properties"]["match"].is_object(), "{named}");
        assert!(named["properties"]["schedule"].is_null(), "{named}");
    }
}
