//! JSON Schemas before and after they are compiled: what the compiler would enforce loosely is made strict or refused by
//! name, what it cannot bear is bounded, and its reasons are put into words that name the keyword. docs/schemas.md lists
//! what is enforced.

use serde_json::{Map, Value, json};

use crate::request::Refusal;

use super::grammar::unusable;

/// Expressions that one `allOf` makes hold at once: the time to intersect them doubles with each.
const MAX_INTERSECTED: usize = 8;
/// What all `multipleOf` of a schema have as their least common multiple, without their decimal point: the automaton that
/// divides has as many states, and building one of 100,000 takes seconds.
const MAX_DIVISOR: u128 = 10_000;

/// Keywords that say something about a schema and nothing about what is valid. The compiler knows the others.
const ANNOTATIONS: &[&str] = &["deprecated", "contentSchema"];
/// Annotations since draft 2019-09; before, they could be assertions.
const CONTENT: &[&str] = &["contentEncoding", "contentMediaType"];
/// Keywords whose value is one schema.
const ONE: &[&str] = &["items", "additionalItems", "additionalProperties"];
/// Keywords whose value is a list of schemas. `items` is one in older drafts.
const LISTS: &[&str] = &["allOf", "anyOf", "oneOf", "prefixItems", "items"];
/// Keywords whose value names schemas.
const MAPS: &[&str] = &["properties", "patternProperties", "$defs", "definitions"];
/// Keywords whose value is a whole number, which JSON may write as `2.0`.
const COUNTS: &[&str] =
    &["minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"];

/// ECMA 262's white space, which `\s` means in a schema. The compiler's own `\s` leaves out the byte order mark.
const SPACE: &str = r"\t\n\x0b\x0c\r \x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}\x{feff}";
/// No 30 February, and 29 only in leap years. The compiler looks at the length of months, not at years.
const DATE: &str = "^(?:[0-9]{4}-(?:0[13-9]|1[0-2])|[0-9]{4}-02-(?:[01][0-9]|2[0-8])\
                    |(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)-02-29)";
/// No leap seconds: whether there was one at some time is not to be seen from the time.
const TIME: &str = "^[0-9]{2}:[0-9]{2}:[0-5]";
const DATE_TIME: &str = "^[^:]*:[0-9]{2}:[0-5]";
/// No two hyphens together: labels that begin with `xn--` have rules of their own.
const HOSTNAME: &str = "^[A-Za-z0-9]+(?:[.-][A-Za-z0-9]+)*$";
/// Characters of a host name in text form.
const MAX_HOSTNAME: usize = 253;

/// Reads a schema and makes it one that the compiler enforces as it is meant.
///
/// # Errors
/// `bad_request` where it is no schema or holds what cannot be enforced, with the keyword.
pub(super) fn read(source: &str) -> Result<Value, Refusal> {
    let mut value: Value = serde_json::from_str(source)
        .map_err(|error| unusable(format!("it is not JSON: {error}")))?;
    match &value {
        Value::Bool(true) => return Ok(json!({})),
        Value::Bool(false) => return Err(unusable("no text can satisfy `false`")),
        Value::Object(_) => {}
        _ => return Err(unusable("a schema is an object")),
    }
    check_intersections(&value)?;
    let mut reader = Reader { old: is_old(&value), divisor: 1, digits: 0 };
    reader.schema(&mut value)?;
    Ok(value)
}

/// Whether the schema says that it is of a draft up to 7, where `$ref` stands alone and contents may be asserted.
fn is_old(schema: &Value) -> bool {
    let named = schema.get("$schema").and_then(Value::as_str).unwrap_or_default();
    ["draft-03", "draft-04", "draft-06", "draft-07"].iter().any(|draft| named.contains(draft))
}

/// One way through a schema.
struct Reader {
    old: bool,
    /// Least common multiple of all `multipleOf` so far, with `digits` of them behind the point.
    divisor: u128,
    digits: u32,
}

impl Reader {
    fn schema(&mut self, schema: &mut Value) -> Result<(), Refusal> {
        // `true`, `false`, and what the compiler refuses by itself.
        let Value::Object(fields) = schema else { return Ok(()) };
        if self.old && fields.contains_key("$ref") {
            // Up to draft 7 nothing beside a `$ref` counts, not even an `$id`.
            let stays = |key: &str| matches!(key, "$ref" | "$schema" | "definitions" | "$defs");
            fields.retain(|key, _| stays(key));
        }
        fields.retain(|key, _| !ANNOTATIONS.contains(&key.as_str()));
        if let Some(content) = CONTENT.iter().find(|key| self.old && fields.contains_key(**key)) {
            return Err(unusable(format!("`{content}` is not enforced; leave it out")));
        }
        for key in COUNTS {
            if let Some(number) = fields.get_mut(*key) {
                whole(number);
            }
        }
        if let Some(Value::String(pattern)) = fields.get_mut("pattern") {
            *pattern = of_ecma(pattern);
        }
        if let Some(Value::Object(patterns)) = fields.get_mut("patternProperties") {
            let of = std::mem::take(patterns);
            patterns.extend(of.into_iter().map(|(pattern, schema)| (of_ecma(&pattern), schema)));
        }
        check_characters(fields)?;
        check_numbers(fields)?;
        self.divide(fields)?;
        check_count_of_properties(fields)?;
        for key in ONE {
            if let Some(inner) = fields.get_mut(*key) {
                self.schema(inner)?;
            }
        }
        for key in LISTS {
            for inner in fields.get_mut(*key).and_then(Value::as_array_mut).into_iter().flatten() {
                self.schema(inner)?;
            }
        }
        for key in MAPS {
            let map = fields.get_mut(*key).and_then(Value::as_object_mut);
            for inner in map.into_iter().flat_map(Map::values_mut) {
                self.schema(inner)?;
            }
        }
        tighten_format(fields);
        Ok(())
    }

    /// Notes a `multipleOf`. Any two of a schema may come to hold together, and the compiler's own arithmetic on them can
    /// overflow, so all of them have to go together.
    fn divide(&mut self, fields: &Map<String, Value>) -> Result<(), Refusal> {
        let Some(number) = fields.get("multipleOf").and_then(Value::as_f64) else { return Ok(()) };
        let too_fine = || {
            unusable(format!(
                "`multipleOf` takes too long to enforce: taken together the divisors of this schema have a least common \
                 multiple of more than {MAX_DIVISOR} (without the decimal point)"
            ))
        };
        // The shortest way of writing it is what was written.
        let text = number.abs().to_string();
        let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
        let digits = u32::try_from(fraction.len()).map_err(|_| too_fine())?;
        let coefficient: u128 = format!("{whole}{fraction}").parse().map_err(|_| too_fine())?;
        if coefficient == 0 {
            return Err(unusable("`multipleOf` must be above 0"));
        }
        let scale =
            |number: u128, by: u32| 10_u128.checked_pow(by).and_then(|by| number.checked_mul(by));
        let most = self.digits.max(digits);
        let a = scale(self.divisor, most - self.digits).ok_or_else(too_fine)?;
        let b = scale(coefficient, most - digits).ok_or_else(too_fine)?;
        let (mut divisor, mut rest) = (a, b);
        while rest != 0 {
            (divisor, rest) = (rest, divisor % rest);
        }
        let multiple = (a / divisor).checked_mul(b).ok_or_else(too_fine)?;
        // The first one alone has nothing to go together with.
        let multiple = if self.divisor == 1 && self.digits == 0 { coefficient } else { multiple };
        if multiple > MAX_DIVISOR {
            return Err(too_fine());
        }
        (self.divisor, self.digits) = (multiple, most);
        Ok(())
    }
}

/// `2.0` as `2`.
fn whole(number: &mut Value) {
    let whole =
        number.as_f64().filter(|_| number.is_f64()).filter(|n| n.fract() == 0.0 && *n >= 0.0);
    if let Some(count) = whole.and_then(|n| format!("{n:.0}").parse::<u64>().ok()) {
        *number = count.into();
    }
}

/// Two properties of the same name are one, but the compiler counts them as two. So it may be asked for one more than those
/// that are required by name, not for several of any name.
fn check_count_of_properties(fields: &Map<String, Value>) -> Result<(), Refusal> {
    let Some(least) = fields.get("minProperties").and_then(Value::as_u64) else { return Ok(()) };
    let required = fields.get("required").and_then(Value::as_array).map_or(0, Vec::len);
    let closed = fields.get("additionalProperties") == Some(&Value::Bool(false))
        && !fields.contains_key("patternProperties");
    if closed || least <= required as u64 + 1 {
        return Ok(());
    }
    Err(unusable(format!(
        "`minProperties` of {least} is enforced only where at most one of the properties has a name of the model's own; list \
         the others in `required`"
    )))
}

/// Control characters in what must be written: forms have no way to write them.
fn check_characters(fields: &Map<String, Value>) -> Result<(), Refusal> {
    fn odd(text: &str) -> bool {
        let written = |c| matches!(c, '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' | '\u{7f}');
        text.chars().any(|c| c.is_ascii_control() && !written(c))
    }
    fn holds(value: &Value) -> bool {
        match value {
            Value::String(text) => odd(text),
            Value::Array(items) => items.iter().any(holds),
            Value::Object(fields) => fields.iter().any(|(key, value)| odd(key) || holds(value)),
            _ => false,
        }
    }
    let names = fields.get("properties").and_then(Value::as_object);
    let values = ["const", "enum", "required"].into_iter();
    let found = values
        .filter(|key| fields.get(*key).is_some_and(holds))
        .chain(names.filter(|names| names.keys().any(|name| odd(name))).map(|_| "properties"))
        .next();
    found.map_or(Ok(()), |key| {
        Err(unusable(format!("`{key}` holds a control character, which cannot be enforced")))
    })
}

/// Whole numbers that the compiler would write as a neighbour of theirs: it holds them in double precision.
fn check_numbers(fields: &Map<String, Value>) -> Result<(), Refusal> {
    /// From here on not every whole number has a double of its own (2^53).
    const EXACT: u64 = 1 << 53;
    fn holds(value: &Value) -> bool {
        match value {
            Value::Number(number) => number
                .as_i64()
                .map(i64::unsigned_abs)
                .or(number.as_u64())
                .is_some_and(|n| n > EXACT),
            Value::Array(items) => items.iter().any(holds),
            Value::Object(fields) => fields.values().any(holds),
            _ => false,
        }
    }
    match ["const", "enum"].into_iter().find(|key| fields.get(*key).is_some_and(holds)) {
        None => Ok(()),
        Some(key) => Err(unusable(format!(
            "`{key}` holds a whole number beyond {EXACT}, which cannot be enforced to the last digit; say it as a string"
        ))),
    }
}

/// Adds what the compiler's own idea of a format leaves open.
fn tighten_format(fields: &mut Map<String, Value>) {
    let more = match fields.get("format").and_then(Value::as_str) {
        Some("date") => vec![json!({"pattern": DATE})],
        Some("time") => vec![json!({"pattern": TIME})],
        Some("date-time") => vec![json!({"pattern": DATE}), json!({"pattern": DATE_TIME})],
        Some("hostname") => vec![json!({"pattern": HOSTNAME}), json!({"maxLength": MAX_HOSTNAME})],
        _ => return,
    };
    let all = fields.entry("allOf").or_insert_with(|| json!([]));
    // What is no list is refused by the compiler.
    if let Value::Array(all) = all {
        all.extend(more);
    }
}

/// A regular expression as ECMA 262 means it, in the words of the compiler's own dialect.
fn of_ecma(pattern: &str) -> String {
    let (mut out, mut in_class, mut escaped) = (String::with_capacity(pattern.len()), false, false);
    for c in pattern.chars() {
        if std::mem::take(&mut escaped) {
            match c {
                's' if in_class => out.push_str(SPACE),
                's' => out.extend(["[", SPACE, "]"]),
                'S' => out.extend(["[^", SPACE, "]"]),
                c => out.extend(['\\', c]),
            }
            continue;
        }
        match c {
            '\\' => escaped = true,
            '[' => in_class = true,
            ']' => in_class = false,
            _ => {}
        }
        if !escaped {
            out.push(c);
        }
    }
    if escaped {
        out.push('\\');
    }
    out
}

/// Refuses `allOf`s over many expressions.
fn check_intersections(schema: &Value) -> Result<(), Refusal> {
    fn expressions(value: &Value) -> usize {
        match value {
            Value::Array(values) => values.iter().map(expressions).sum(),
            Value::Object(fields) => fields
                .iter()
                .map(|(key, value)| {
                    usize::from(matches!(key.as_str(), "pattern" | "multipleOf"))
                        + expressions(value)
                })
                .sum(),
            _ => 0,
        }
    }
    match schema {
        Value::Array(values) => values.iter().try_for_each(check_intersections),
        Value::Object(fields) => fields.iter().try_for_each(|(key, value)| {
            let count = if key == "allOf" { expressions(value) } else { 0 };
            if count > MAX_INTERSECTED {
                let what = "`pattern` and `multipleOf`";
                return Err(unusable(format!(
                    "an `allOf` holds {count} of {what}, at most {MAX_INTERSECTED} are compiled"
                )));
            }
            check_intersections(value)
        }),
        _ => Ok(()),
    }
}

/// The compiler's reason with the keyword it is about and the way out, where its own words leave those open.
pub(super) fn explained(reason: &str) -> String {
    let rest = |start: &str| reason.strip_prefix(start).map(str::trim);
    if let Some(keys) = rest("Unimplemented keys:") {
        let names: Vec<String> = serde_json::from_str(keys).unwrap_or_default();
        let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
        return format!(
            "{} cannot be enforced; leave it out (docs/schemas.md lists what is)",
            names.join(", ")
        );
    }
    if let Some(format) = rest("Unknown format:") {
        return format!(
            "the `format` {format} cannot be enforced; describe it with a `pattern`, or leave it out"
        );
    }
    if reason.starts_with("oneOf constraints") {
        return "`oneOf` is enforced only where no value can satisfy two of its alternatives, as their types, constants or \
                required constants show; use `anyOf`"
            .to_owned();
    }
    if let Some(unsatisfiable) = rest("Unsatisfiable schema:") {
        return format!("no text can satisfy it: {unsatisfiable}");
    }
    if reason.starts_with("min/maxProperties") {
        return "`minProperties` and `maxProperties` are enforced only where all that `properties` lists is `required`"
            .to_owned();
    }
    let keyword = [
        ("Resource ", "`$ref` leads out of the schema, and nothing is fetched"),
        ("Anchor ", "`$ref` leads to an anchor that is not there"),
        ("Pointer ", "`$ref` leads to a place that is not there"),
        ("patternProperty regexes", "`patternProperties` must exclude each other"),
        (
            "Failed to generate regex for",
            "`minimum`, `maximum`, `exclusiveMinimum` or `exclusiveMaximum` is too large",
        ),
        ("Unable to determine if regex", "`pattern` is too complex, or too many hold at once"),
        ("regex parse error", "the regular expression (in a schema, `pattern`) is not understood"),
    ];
    let reason = reason.split_whitespace().collect::<Vec<_>>().join(" ");
    let about = keyword.iter().find(|(start, _)| reason.contains(start));
    about.map_or_else(|| reason.clone(), |(_, about)| format!("{about}: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(source: &Value) -> String {
        read(&source.to_string()).unwrap_err().message
    }

    #[test]
    fn divisors_go_together_or_are_refused() {
        let of = |divisors: &[f64]| {
            let all: Vec<Value> = divisors.iter().map(|d| json!({"multipleOf": d})).collect();
            read(&json!({"anyOf": all}).to_string())
        };
        for fine in [&[0.01][..], &[1e-8], &[2.0, 3.0, 5.0], &[0.5, 100.0], &[9973.0], &[7.5, 7.5]]
        {
            assert!(of(fine).is_ok(), "{fine:?}");
        }
        for wrong in
            [&[99_991.0][..], &[101.0, 103.0], &[0.001, 1000.0], &[1e300], &[0.0], &[1e-300, 3.0]]
        {
            assert!(of(wrong).unwrap_err().message.contains("`multipleOf`"), "{wrong:?}");
        }
    }

    #[test]
    fn several_properties_of_any_name_are_not_counted() {
        assert!(message(&json!({"minProperties": 2})).contains("`minProperties`"));
        for fine in [
            json!({"minProperties": 1}),
            json!({"minProperties": 2.0, "required": ["a"]}),
            json!({"minProperties": 2, "additionalProperties": false, "properties": {"a": {}, "b": {}}}),
        ] {
            read(&fine.to_string()).unwrap();
        }
    }

    #[test]
    fn older_drafts_read_ref_alone() {
        let source = json!({"$schema": "http://json-schema.org/draft-07/schema#",
            "properties": {"a": {"$ref": "#/definitions/b", "maxItems": 2, "$id": "x"}}, "definitions": {"b": {}}});
        let read = read(&source.to_string()).unwrap();
        assert_eq!(read["properties"]["a"], json!({"$ref": "#/definitions/b"}));
        let content = json!({"$schema": "http://json-schema.org/draft-07/schema#", "contentEncoding": "base64"});
        assert!(message(&content).contains("`contentEncoding`"));
    }

    #[test]
    fn names_of_properties_are_no_keywords() {
        let source = json!({"properties": {"multipleOf": {"type": "string"}, "pattern": {"const": {"format": "date"}}},
            "enum": [{"multipleOf": 1e300, "minProperties": 7}]});
        assert_eq!(read(&source.to_string()).unwrap(), source);
    }

    #[test]
    fn whole_numbers_without_a_double_of_their_own_are_refused() {
        let fine = json!({"enum": [9_007_199_254_740_992_u64, -9_007_199_254_740_992_i64, 1.5]});
        read(&fine.to_string()).unwrap();
        for wrong in [
            json!({"items": {"enum": ["a", 23_372_036_854_775_809_u64]}}),
            json!({"const": {"a": [-9_007_199_254_740_993_i64]}}),
        ] {
            assert!(message(&wrong).contains("9007199254740992"), "{wrong}");
        }
    }

    #[test]
    fn white_space_is_that_of_ecma() {
        assert_eq!(of_ecma(r"a\d\\s"), r"a\d\\s");
        assert_eq!(of_ecma(r"\s[\sx]\S"), format!("[{SPACE}][{SPACE}x][^{SPACE}]"));
        assert_eq!(of_ecma("a\\"), "a\\");
    }
}
