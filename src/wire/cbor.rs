//! Requests and answers in CBOR (RFC 8949), for devices that have no JSON: the same objects in other bytes.

use ciborium::value::Value as Cbor;
use serde_json::{Map, Number, Value};

use crate::request::Refusal;

/// As deep as `serde_json` reads JSON.
const DEPTH: usize = 127;

/// A request in CBOR as the JSON that it means. What JSON has no word for (bytes, tags, other numbers) is refused.
///
/// # Errors
/// `bad_request` with what is wrong.
pub fn cbor_to_json(bytes: &[u8]) -> Result<Value, Refusal> {
    let wrong = |why: &str| Refusal::bad_request(format!("the request is no valid CBOR: {why}"));
    let mut rest = bytes;
    let value = ciborium::de::from_reader_with_recursion_limit(&mut rest, DEPTH).map_err(
        |error: ciborium::de::Error<std::io::Error>| match error {
            ciborium::de::Error::Syntax(at) => wrong(&format!("it is malformed at byte {at}")),
            ciborium::de::Error::RecursionLimitExceeded => wrong("it is nested too deeply"),
            ciborium::de::Error::Io(_) => wrong("it ends too early"),
            ciborium::de::Error::Semantic(..) => wrong("it is malformed"),
        },
    )?;
    if !rest.is_empty() {
        return Err(wrong("bytes follow the object"));
    }
    match json(value).map_err(wrong)? {
        object @ Value::Object(_) => Ok(object),
        _ => Err(wrong("it must be a map with text keys")),
    }
}

fn json(value: Cbor) -> Result<Value, &'static str> {
    Ok(match value {
        Cbor::Null => Value::Null,
        Cbor::Bool(value) => value.into(),
        Cbor::Text(text) => text.into(),
        Cbor::Integer(number) => {
            let number = i128::from(number);
            if let Ok(number) = u64::try_from(number) {
                number.into()
            } else if let Ok(number) = i64::try_from(number) {
                number.into()
            } else {
                return Err("it holds a whole number of more than 64 bits");
            }
        }
        Cbor::Float(number) => {
            Number::from_f64(number).ok_or("it holds a number that is not finite")?.into()
        }
        Cbor::Array(values) => values.into_iter().map(json).collect::<Result<Vec<_>, _>>()?.into(),
        Cbor::Map(pairs) => {
            let mut map = Map::new();
            for (name, value) in pairs {
                let Cbor::Text(name) = name else { return Err("it has a key that is no text") };
                map.insert(name, json(value)?);
            }
            map.into()
        }
        Cbor::Bytes(_) => return Err("it holds a byte string; texts are text strings"),
        Cbor::Tag(..) => return Err("it holds a tag"),
        _ => return Err("it holds what JSON has no word for"),
    })
}

/// An answer's JSON in CBOR. It is never longer than the JSON.
pub fn json_to_cbor(value: &Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A vector takes everything, and every JSON value has a form in CBOR.
    let _ = ciborium::into_writer(value, &mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn back_and_forth() {
        let object = json!({"v": 1, "id": "a", "n": -5, "big": u64::MAX, "f": 0.5, "l": [true, null], "t": "ü\n\"x"});
        let bytes = json_to_cbor(&object);
        assert!(bytes.len() <= object.to_string().len());
        assert_eq!(cbor_to_json(&bytes).unwrap(), object);
        // An example of RFC 8949, appendix A: {"a": 1, "b": [2, 3]} with lengths that are not told first.
        let indefinite = b"\xbf\x61\x61\x01\x61\x62\x9f\x02\x03\xff\xff";
        assert_eq!(cbor_to_json(indefinite).unwrap(), json!({"a": 1, "b": [2, 3]}));
    }

    #[test]
    fn what_is_no_request() {
        let deep = [[0x81_u8; 200].as_slice(), b"\x00"].concat();
        for (bytes, why) in [
            (&b""[..], "ends too early"),
            (b"\xa1\x61a", "ends too early"),
            (b"\x01", "map"),
            (b"\xa1\x01\x01", "no text"),
            (b"\xa1\x61a\x41x", "byte string"),
            (b"\xa1\x61a\xc0\x61x", "tag"),
            (b"\xa1\x61a\xf9\x7e\x00", "not finite"),
            (b"\xa1\x61a\x3b\xff\xff\xff\xff\xff\xff\xff\xff", "64 bits"),
            (b"\xa0\xa0", "follow"),
            (b"\xff", "malformed"),
            (&deep, "deeply"),
        ] {
            let refusal = cbor_to_json(bytes).unwrap_err();
            assert!(refusal.message.contains(why), "{bytes:?}: {}", refusal.message);
        }
    }

    #[test]
    fn hostile_bytes_never_panic() {
        let good = json_to_cbor(&json!({"prompt": "hi", "stop": ["a"], "temperature": 0.5}));
        for at in 0..good.len() {
            for byte in 0..=255 {
                let mut bytes = good.clone();
                bytes[at] = byte;
                let _ = cbor_to_json(&bytes);
            }
            let _ = cbor_to_json(&good[..at]);
        }
    }
}
