//! Reads the fields of a JSON object with their types and ranges checked, and names the field in every complaint.
//! Knows no field by name.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::names::shown;
use crate::request::Refusal;

/// An object of a request, and where in the request it stands.
#[derive(Clone, Debug)]
pub(super) struct Fields<'a> {
    map: &'a Map<String, Value>,
    at: String,
}

impl<'a> Fields<'a> {
    /// The request itself.
    pub(super) fn root(map: &'a Map<String, Value>) -> Self {
        Fields { map, at: String::new() }
    }

    /// The value as an object that stands at `path`.
    pub(super) fn nested(value: &'a Value, path: String) -> Result<Self, Refusal> {
        match value {
            Value::Object(map) => Ok(Fields { map, at: path }),
            other => Err(wrong(&path, "an object", other)),
        }
    }

    /// Where a field stands, as refusals name it: `messages[2].content`.
    pub(super) fn path(&self, name: &str) -> String {
        if self.at.is_empty() { name.to_owned() } else { format!("{}.{name}", self.at) }
    }

    /// The names that are there.
    pub(super) fn names(&self) -> impl Iterator<Item = &'a str> {
        self.map.keys().map(String::as_str)
    }

    /// A value; `null` counts as absent.
    pub(super) fn get(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    /// A string.
    pub(super) fn string(&self, name: &str) -> Result<Option<&'a str>, Refusal> {
        self.get(name)
            .map(|value| value.as_str().ok_or_else(|| self.wrong(name, "a string", value)))
            .transpose()
    }

    /// `true` or `false`.
    pub(super) fn boolean(&self, name: &str) -> Result<Option<bool>, Refusal> {
        self.get(name)
            .map(|value| value.as_bool().ok_or_else(|| self.wrong(name, "true or false", value)))
            .transpose()
    }

    /// An array.
    pub(super) fn array(&self, name: &str) -> Result<Option<&'a [Value]>, Refusal> {
        let read = |value: &'a Value| {
            value.as_array().map(Vec::as_slice).ok_or_else(|| self.wrong(name, "an array", value))
        };
        self.get(name).map(read).transpose()
    }

    /// An object.
    pub(super) fn object(&self, name: &str) -> Result<Option<Fields<'a>>, Refusal> {
        self.get(name).map(|value| Fields::nested(value, self.path(name))).transpose()
    }

    /// A whole number in a range.
    pub(super) fn integer(
        &self,
        name: &str,
        range: &RangeInclusive<u64>,
    ) -> Result<Option<u64>, Refusal> {
        let read = |value: &Value| {
            let number = whole(value).and_then(|number| u64::try_from(number).ok());
            number.filter(|number| range.contains(number)).ok_or_else(|| {
                self.wrong(
                    name,
                    &format!("a whole number from {} to {}", range.start(), range.end()),
                    value,
                )
            })
        };
        self.get(name).map(read).transpose()
    }

    /// A seed: any whole number of 64 bits. A negative one counts as the unsigned number with the same bits.
    pub(super) fn seed(&self, name: &str) -> Result<Option<u64>, Refusal> {
        let read = |value: &Value| {
            let number = whole(value)
                .ok_or_else(|| self.wrong(name, "a whole number of at most 64 bits", value))?;
            u64::try_from(number)
                .or_else(|_| i64::try_from(number).map(i64::cast_unsigned))
                .map_err(|_| self.wrong(name, "a whole number of at most 64 bits", value))
        };
        self.get(name).map(read).transpose()
    }

    /// A number in a range.
    pub(super) fn number(
        &self,
        name: &str,
        range: &RangeInclusive<f64>,
    ) -> Result<Option<f64>, Refusal> {
        let read = |value: &Value| {
            value.as_f64().filter(|number| range.contains(number)).ok_or_else(|| {
                self.wrong(
                    name,
                    &format!("a number from {} to {}", range.start(), range.end()),
                    value,
                )
            })
        };
        self.get(name).map(read).transpose()
    }

    /// The refusal of a field's value.
    pub(super) fn wrong(&self, name: &str, expected: &str, value: &Value) -> Refusal {
        wrong(&self.path(name), expected, value)
    }

    /// The refusal of a request that lacks a field.
    pub(super) fn missing(&self, name: &str, what: &str) -> Refusal {
        let path = self.path(name);
        Refusal::bad_request(format!("`{path}` is missing: {what}")).with_param(path)
    }
}

/// The refusal of a value at a path.
pub(super) fn wrong(path: &str, expected: &str, value: &Value) -> Refusal {
    let message = format!("`{path}` must be {expected}, but is {}", describe(value));
    Refusal::bad_request(message).with_param(path)
}

/// A whole number, also one that is written with a decimal point (`64.0`): some languages have no other kind.
fn whole(value: &Value) -> Option<i128> {
    // Above this not every whole number can be written as an f64, so one cannot know which was meant.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let integer = value.as_u64().map(i128::from).or_else(|| value.as_i64().map(i128::from));
    integer.or_else(|| {
        let number =
            value.as_f64().filter(|number| number.fract() == 0.0 && number.abs() <= EXACT)?;
        format!("{number:.0}").parse().ok()
    })
}

/// A value in words, short.
pub(super) fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Number(number) => format!("the number {number}"),
        Value::String(text) => format!("the string {}", shown(text)),
        Value::Array(_) => "an array".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_numbers() {
        for (text, expected) in [
            ("0", Some(0)),
            ("-1", Some(-1)),
            ("64.0", Some(64)),
            ("-0.0", Some(0)),
            ("9223372036854775808", Some(1 << 63)),
            ("18446744073709551615", Some(i128::from(u64::MAX))),
            ("18446744073709551616", None),
            ("1e308", None),
            ("0.5", None),
            ("\"1\"", None),
            ("true", None),
        ] {
            assert_eq!(whole(&serde_json::from_str(text).unwrap()), expected, "{text}");
        }
    }
}
