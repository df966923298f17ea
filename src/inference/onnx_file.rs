//! Walks an ONNX file just far enough to learn which other files it needs and how long they must be, so that ONNX
//! Runtime never sees a folder that points outside itself or whose weights are cut short. Builds no graph.
//!
//! The field numbers are those of onnx.proto (<https://github.com/onnx/onnx/blob/main/onnx/onnx.proto>); the encoding
//! is <https://protobuf.dev/programming-guides/encoding/>.

use std::collections::BTreeMap;

/// Graphs nest through attributes of control-flow nodes; honest ones a few levels deep.
const MAX_DEPTH: u32 = 16;

/// What a graph needs that is not in its file.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Needs {
    /// How much of each external file: file name as written in the model → bytes.
    pub(super) files: BTreeMap<String, u64>,
    /// Positions for which the graph has rotary embeddings, where it carries them as a table (`cos_cache`). A longer
    /// context reads behind the table's end.
    pub(super) rotary_positions: Option<u64>,
}

/// What an ONNX file turned out not to be.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum Fault {
    #[error("is cut short: a field at byte {at} needs {needed} more bytes, {have} are left")]
    Truncated { at: usize, needed: u64, have: usize },
    #[error("is no ONNX model: {0}")]
    Malformed(&'static str),
    #[error("tensor `{tensor}` gives {key} = `{value}` for its external data, which is no number")]
    Number { tensor: String, key: String, value: String },
    #[error("tensor `{0}` lies in another file, but does not say which")]
    NoLocation(String),
    #[error("tensor `{tensor}` has {have} bytes of data, its shape needs {needed}")]
    Data { tensor: String, have: usize, needed: u64 },
}

/// What a model needs beside its own file.
pub(super) fn needs(model: &[u8]) -> Result<Needs, Fault> {
    let mut needs = Needs::default();
    let mut graph_seen = false;
    let mut reader = Reader { bytes: model, at: 0, base: 0 };
    while let Some(field) = reader.field()? {
        match (field.number, field.value) {
            // ModelProto.graph
            (7, Value::Bytes(graph)) => {
                graph_seen = true;
                walk_graph(graph, &mut needs, 0)?;
            }
            // ModelProto.functions: FunctionProto.node
            (25, Value::Bytes(function)) => walk_nodes(function, 7, &mut needs, 0)?,
            _ => {}
        }
    }
    if graph_seen { Ok(needs) } else { Err(Fault::Malformed("it has no graph")) }
}

fn walk_graph(graph: Reader<'_>, needs: &mut Needs, depth: u32) -> Result<(), Fault> {
    if depth > MAX_DEPTH {
        return Err(Fault::Malformed("its graphs are nested too deeply"));
    }
    let mut reader = graph;
    while let Some(field) = reader.field()? {
        match (field.number, field.value) {
            // GraphProto.node
            (1, Value::Bytes(node)) => walk_node(node, needs, depth)?,
            // GraphProto.initializer
            (5, Value::Bytes(tensor)) => walk_tensor(tensor, needs)?,
            // GraphProto.sparse_initializer: SparseTensorProto.values, .indices
            (15, Value::Bytes(mut sparse)) => {
                while let Some(part) = sparse.field()? {
                    if let (1 | 2, Value::Bytes(tensor)) = (part.number, part.value) {
                        walk_tensor(tensor, needs)?;
                    }
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn walk_nodes(
    parent: Reader<'_>,
    node_field: u64,
    needs: &mut Needs,
    depth: u32,
) -> Result<(), Fault> {
    let mut reader = parent;
    while let Some(field) = reader.field()? {
        if let (number, Value::Bytes(node)) = (field.number, field.value)
            && number == node_field
        {
            walk_node(node, needs, depth)?;
        }
    }
    Ok(())
}

fn walk_node(node: Reader<'_>, needs: &mut Needs, depth: u32) -> Result<(), Fault> {
    let mut reader = node;
    while let Some(field) = reader.field()? {
        // NodeProto.attribute
        let (5, Value::Bytes(mut attribute)) = (field.number, field.value) else { continue };
        while let Some(part) = attribute.field()? {
            match (part.number, part.value) {
                // AttributeProto.t, .tensors
                (5 | 10, Value::Bytes(tensor)) => walk_tensor(tensor, needs)?,
                // AttributeProto.g, .graphs
                (6 | 11, Value::Bytes(graph)) => walk_graph(graph, needs, depth + 1)?,
                _ => {}
            }
        }
    }
    Ok(())
}

fn walk_tensor(tensor: Reader<'_>, needs: &mut Needs) -> Result<(), Fault> {
    let mut reader = tensor;
    let (mut name, mut elements, mut data_type, mut raw, mut is_external) =
        (String::new(), 1_u64, 0, None, false);
    let mut first_dim = None;
    let mut entries = Vec::new();
    while let Some(field) = reader.field()? {
        match (field.number, field.value) {
            // TensorProto.dims, packed or not
            (1, Value::Number(dim)) => {
                first_dim.get_or_insert(dim);
                elements = elements.saturating_mul(dim);
            }
            (1, Value::Bytes(mut dims)) => {
                while dims.left() > 0 {
                    let dim = dims.varint()?;
                    first_dim.get_or_insert(dim);
                    elements = elements.saturating_mul(dim);
                }
            }
            (2, Value::Number(number)) => data_type = number,
            (8, Value::Bytes(text)) => name = text.text(),
            (9, Value::Bytes(data)) => raw = Some(data.left()),
            // external_data: StringStringEntryProto { key = 1, value = 2 }
            (13, Value::Bytes(entry)) => entries.push(string_entry(entry)?),
            // data_location: EXTERNAL = 1
            (14, Value::Number(location)) => is_external = location == 1,
            _ => {}
        }
    }
    if name.ends_with("cos_cache") {
        needs.rotary_positions = first_dim;
    }
    let needed = bits(data_type).map(|bits| elements.saturating_mul(bits).div_ceil(8));
    if is_external {
        return note_external(&name, &entries, needed, needs);
    }
    match (raw, needed) {
        (Some(have), Some(needed)) if have > 0 && have as u64 != needed => {
            Err(Fault::Data { tensor: name, have, needed })
        }
        _ => Ok(()),
    }
}

fn note_external(
    tensor: &str,
    entries: &[(String, String)],
    needed: Option<u64>,
    needs: &mut Needs,
) -> Result<(), Fault> {
    let (mut location, mut offset, mut length) = (None, 0, None);
    for (key, value) in entries {
        let number = || {
            value.parse().map_err(|_| Fault::Number {
                tensor: tensor.to_owned(),
                key: key.clone(),
                value: value.clone(),
            })
        };
        match key.as_str() {
            "location" => location = Some(value.clone()),
            "offset" => offset = number()?,
            "length" => length = Some(number()?),
            _ => {}
        }
    }
    let location = location.ok_or_else(|| Fault::NoLocation(tensor.to_owned()))?;
    if let (Some(length), Some(needed)) = (length, needed)
        && length != needed
    {
        let have = usize::try_from(length).unwrap_or(usize::MAX);
        return Err(Fault::Data { tensor: tensor.to_owned(), have, needed });
    }
    let end: u64 = length.or(needed).unwrap_or(0).saturating_add(offset);
    let file = needs.files.entry(location).or_insert(0);
    *file = end.max(*file);
    Ok(())
}

/// Bits of one element of `TensorProto.DataType`; `None` where elements have no fixed size.
fn bits(data_type: u64) -> Option<u64> {
    match data_type {
        21..=23 => Some(4),
        2 | 3 | 9 | 17..=20 => Some(8),
        4 | 5 | 10 | 16 => Some(16),
        1 | 6 | 12 => Some(32),
        7 | 11 | 13 | 14 => Some(64),
        15 => Some(128),
        _ => None,
    }
}

fn string_entry(entry: Reader<'_>) -> Result<(String, String), Fault> {
    let mut reader = entry;
    let (mut key, mut value) = (String::new(), String::new());
    while let Some(field) = reader.field()? {
        match (field.number, field.value) {
            (1, Value::Bytes(text)) => key = text.text(),
            (2, Value::Bytes(text)) => value = text.text(),
            _ => {}
        }
    }
    Ok((key, value))
}

/// A cursor over one message; `base` is where its bytes begin in the file, for error messages.
#[derive(Clone, Copy)]
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    base: usize,
}

struct Field<'a> {
    number: u64,
    value: Value<'a>,
}

enum Value<'a> {
    Number(u64),
    Bytes(Reader<'a>),
    Fixed,
}

impl<'a> Reader<'a> {
    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(self.bytes).into_owned()
    }

    fn field(&mut self) -> Result<Option<Field<'a>>, Fault> {
        if self.left() == 0 {
            return Ok(None);
        }
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Value::Number(self.varint()?),
            1 => self.take(8).map(|_| Value::Fixed)?,
            2 => {
                let length = self.varint()?;
                Value::Bytes(self.take(length)?)
            }
            5 => self.take(4).map(|_| Value::Fixed)?,
            _ => return Err(Fault::Malformed("it is not encoded as protobuf")),
        };
        if tag >> 3 == 0 {
            return Err(Fault::Malformed("it is not encoded as protobuf"));
        }
        Ok(Some(Field { number: tag >> 3, value }))
    }

    fn varint(&mut self) -> Result<u64, Fault> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = *self.bytes.get(self.at).ok_or(Fault::Truncated {
                at: self.base + self.at,
                needed: 1,
                have: 0,
            })?;
            self.at += 1;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Fault::Malformed("it holds a number of more than 64 bits"))
    }

    fn take(&mut self, length: u64) -> Result<Reader<'a>, Fault> {
        let end = usize::try_from(length).ok().and_then(|length| self.at.checked_add(length));
        let bytes = end.and_then(|end| self.bytes.get(self.at..end));
        let Some(bytes) = bytes else {
            return Err(Fault::Truncated {
                at: self.base + self.at,
                needed: length,
                have: self.left(),
            });
        };
        let taken = Reader { bytes, at: 0, base: self.base + self.at };
        self.at += bytes.len();
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(field: u8, body: &[u8]) -> Vec<u8> {
        let mut out = vec![field << 3 | 2, u8::try_from(body.len()).unwrap()];
        out.extend_from_slice(body);
        out
    }

    fn entry(key: &str, value: &str) -> Vec<u8> {
        bytes(13, &[bytes(1, key.as_bytes()), bytes(2, value.as_bytes())].concat())
    }

    /// A model of one float tensor [2, 3] in `w.data` at 64.
    fn model(entries: &[Vec<u8>]) -> Vec<u8> {
        let mut tensor = vec![8, 2, 8, 3, 16, 1];
        tensor.extend(bytes(8, b"w"));
        tensor.extend(entries.concat());
        tensor.extend([14 << 3, 1]);
        bytes(7, &bytes(5, &tensor))
    }

    #[test]
    fn the_end_of_the_last_tensor_is_what_a_file_needs() {
        let whole = [entry("location", "w.data"), entry("offset", "64"), entry("length", "24")];
        assert_eq!(needs(&model(&whole)).unwrap().files, BTreeMap::from([("w.data".into(), 88)]));
        assert_eq!(
            needs(&model(&whole[..2])).unwrap().files,
            BTreeMap::from([("w.data".into(), 88)])
        );
    }

    #[test]
    fn damage_is_named() {
        let location = entry("location", "w.data");
        let cases = [
            (model(&[]), "does not say which"),
            (model(&[location.clone(), entry("offset", "-1")]), "no number"),
            (model(&[location.clone(), entry("length", "7")]), "its shape needs 24"),
            (vec![0, 0xff, 0, 0xff], "no ONNX model"),
            (vec![], "no graph"),
            (bytes(7, b""), ""),
        ];
        for (model, words) in cases {
            match needs(&model) {
                Ok(_) => assert_eq!(words, ""),
                Err(fault) => assert!(
                    fault.to_string().contains(words) && !words.is_empty(),
                    "{fault}: {words}"
                ),
            }
        }
        let whole = model(&[location]);
        for end in 1..whole.len() {
            assert!(needs(&whole[..end]).is_err(), "cut at {end}");
        }
    }

    #[test]
    fn no_bytes_make_it_panic() {
        let whole = model(&[entry("location", "w.data")]);
        for at in 0..whole.len() {
            for byte in [0, 1, 0x7f, 0x80, 0xff] {
                let mut broken = whole.clone();
                broken[at] = byte;
                let _ = needs(&broken);
            }
        }
    }
}
