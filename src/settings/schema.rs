//! The configuration's JSON Schema, for editors and for the manual page: the same types that read the file.

use schemars::generate::SchemaSettings;

use super::Settings;

/// JSON Schema 2020-12 of promptd.toml.
pub fn schema() -> serde_json::Value {
    let generator = SchemaSettings::draft2020_12().into_generator();
    let mut schema = generator.into_root_schema_for::<Settings>().to_value();
    if let Some(object) = schema.as_object_mut() {
        object.insert("title".into(), "promptd.toml".into());
        // A file need not be the whole of it: conf.d and variables may bring what is required.
        object.remove("required");
    }
    schema
}
