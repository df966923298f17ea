//! Walks an ONNX file just far enough to learn what the graph takes and gives, which operators it is made of, and which
//! other files it needs and how long they must be: so that ONNX Runtime never sees a folder that points outside itself or
//! whose weights are cut short, nor a graph that is no language model's. Builds no graph.
//!
//! The field numbers are those of onnx.proto (<https://github.com/onnx/onnx/blob/main/onnx/onnx.proto>).

use std::collections::{BTreeMap, BTreeSet};

use super::protobuf::{self, Reader, Value};

/// Graphs nest through attributes of control-flow nodes; honest ones a few levels deep.
const MAX_DEPTH: u32 = 16;

/// An ONNX file without the values of its tensors.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct OnnxFile {
    /// How much of each external file: file name as written in the model → bytes.
    pub(super) files: BTreeMap<String, u64>,
    /// What the graph takes, tensors that have a value in the file left out.
    pub(super) inputs: Vec<Port>,
    /// What the graph gives.
    pub(super) outputs: Vec<Port>,
    /// The nodes, those of subgraphs and functions included.
    pub(super) nodes: Vec<Node>,
    /// The weights and constants of the graph and its subgraphs.
    pub(super) tensors: Vec<Tensor>,
    /// Functions that the file itself defines: domain and name.
    pub(super) functions: BTreeSet<(String, String)>,
}

/// An input or output of a graph.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Port {
    pub(super) name: String,
    /// `TensorProto.DataType`; 0 where it is no tensor.
    pub(super) element: u64,
    /// The dimensions; `None` where one is left open.
    pub(super) dims: Vec<Option<u64>>,
}

/// One node: what it does with what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) operator: String,
    /// Empty for ONNX's own operators.
    pub(super) domain: String,
    pub(super) inputs: Vec<String>,
    pub(super) outputs: Vec<String>,
    /// Attributes that are one whole number.
    pub(super) numbers: BTreeMap<String, i64>,
}

/// A tensor whose values are in the file or in another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tensor {
    pub(super) name: String,
    /// `TensorProto.DataType`
    pub(super) element: u64,
    pub(super) dims: Vec<u64>,
    /// Bytes of its values; 0 where elements have no fixed size.
    pub(super) bytes: u64,
    /// Its values lie in another file.
    pub(super) is_external: bool,
}

/// `TensorProto.DataType` of what the program handles itself.
pub(super) mod element {
    pub(in crate::inference) const FLOAT32: u64 = 1;
    pub(in crate::inference) const UINT8: u64 = 2;
    pub(in crate::inference) const INT8: u64 = 3;
    pub(in crate::inference) const INT32: u64 = 6;
    pub(in crate::inference) const INT64: u64 = 7;
    pub(in crate::inference) const BOOL: u64 = 9;
    pub(in crate::inference) const FLOAT16: u64 = 10;

    /// The type's name, for people.
    pub(in crate::inference) fn name(element: u64) -> String {
        match element {
            FLOAT32 => "float32".into(),
            UINT8 => "uint8".into(),
            INT8 => "int8".into(),
            INT32 => "int32".into(),
            INT64 => "int64".into(),
            BOOL => "bool".into(),
            FLOAT16 => "float16".into(),
            11 => "float64".into(),
            16 => "bfloat16".into(),
            other => format!("the element type {other}"),
        }
    }
}

/// What an ONNX file turned out not to be.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum Fault {
    #[error(transparent)]
    Wire(#[from] protobuf::Fault),
    #[error("is no ONNX model: {0}")]
    Malformed(&'static str),
    #[error("tensor `{tensor}` gives {key} = `{value}` for its external data, which is no number")]
    Number { tensor: String, key: String, value: String },
    #[error("tensor `{0}` lies in another file, but does not say which")]
    NoLocation(String),
    #[error("tensor `{tensor}` has {have} bytes of data, its shape needs {needed}")]
    Data { tensor: String, have: usize, needed: u64 },
}

/// Reads a model.
pub(super) fn read(model: &[u8]) -> Result<OnnxFile, Fault> {
    let mut found = OnnxFile::default();
    let mut graph_seen = false;
    let mut reader = Reader::new(model);
    while let Some(field) = reader.field()? {
        match (field.number, field.value) {
            // ModelProto.graph
            (7, Value::Bytes(graph)) => {
                graph_seen = true;
                walk_graph(graph, &mut found, 0)?;
            }
            // ModelProto.functions
            (25, Value::Bytes(function)) => walk_function(function, &mut found)?,
            _ => {}
        }
    }
    if !graph_seen {
        return Err(Fault::Malformed("it has no graph"));
    }
    let valued: BTreeSet<&str> = found.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    found.inputs.retain(|input| !valued.contains(input.name.as_str()));
    Ok(found)
}

fn walk_graph(graph: Reader<'_>, found: &mut OnnxFile, depth: u32) -> Result<(), Fault> {
    if depth > MAX_DEPTH {
        return Err(Fault::Malformed("its graphs are nested too deeply"));
    }
    let mut reader = graph;
    while let Some(field) = reader.field()? {
        match (field.number, field.value) {
            // GraphProto.node
            (1, Value::Bytes(node)) => walk_node(node, found, depth)?,
            // GraphProto.initializer
            (5, Value::Bytes(tensor)) => walk_tensor(tensor, found)?,
            // GraphProto.input, .output: those of subgraphs are nobody's business
            (11, Value::Bytes(input)) if depth == 0 => found.inputs.push(port(input)?),
            (12, Value::Bytes(output)) if depth == 0 => found.outputs.push(port(output)?),
            // GraphProto.sparse_initializer: SparseTensorProto.values, .indices
            (15, Value::Bytes(mut sparse)) => {
                while let Some(part) = sparse.field()? {
                    if let (1 | 2, Value::Bytes(tensor)) = (part.number, part.value) {
                        walk_tensor(tensor, found)?;
                    }
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// `FunctionProto`: name = 1, node = 7, domain = 10.
fn walk_function(function: Reader<'_>, found: &mut OnnxFile) -> Result<(), Fault> {
    let mut reader = function;
    let (mut name, mut domain) = (String::new(), String::new());
    while let Some(field) = reader.field()? {
        match (field.number, field.value) {
            (1, Value::Bytes(text)) => name = text.text(),
            (7, Value::Bytes(node)) => walk_node(node, found, 1)?,
            (10, Value::Bytes(text)) => domain = text.text(),
            _ => {}
        }
    }
    found.functions.insert((domain, name));
    Ok(())
}

fn walk_node(node: Reader<'_>, found: &mut OnnxFile, depth: u32) -> Result<(), Fault> {
    let mut reader = node;
    let mut this = Node::default();
    while let Some(field) = reader.field()? {
        match (field.number, field.value) {
            // NodeProto.input, .output, .op_type, .domain
            (1, Value::Bytes(text)) => this.inputs.push(text.text()),
            (2, Value::Bytes(text)) => this.outputs.push(text.text()),
            (4, Value::Bytes(text)) => this.operator = text.text(),
            (7, Value::Bytes(text)) => this.domain = text.text(),
            // NodeProto.attribute
            (5, Value::Bytes(attribute)) => {
                if let Some((name, number)) = walk_attribute(attribute, found, depth)? {
                    this.numbers.insert(name, number);
                }
            }
            _ => {}
        }
    }
    found.nodes.push(this);
    Ok(())
}

/// Gives the attribute's name and value where it is one whole number.
fn walk_attribute(
    attribute: Reader<'_>,
    found: &mut OnnxFile,
    depth: u32,
) -> Result<Option<(String, i64)>, Fault> {
    let mut reader = attribute;
    let (mut name, mut number) = (String::new(), None);
    while let Some(part) = reader.field()? {
        match (part.number, part.value) {
            (1, Value::Bytes(text)) => name = text.text(),
            // AttributeProto.i: a signed number in two's complement
            (3, Value::Number(value)) => number = Some(value.cast_signed()),
            // AttributeProto.t, .tensors
            (5 | 10, Value::Bytes(tensor)) => walk_tensor(tensor, found)?,
            // AttributeProto.g, .graphs
            (6 | 11, Value::Bytes(graph)) => walk_graph(graph, found, depth + 1)?,
            _ => {}
        }
    }
    Ok(number.map(|number| (name, number)))
}

/// `ValueInfoProto`: name = 1, type = 2; `TypeProto.tensor_type` = 1; `TypeProto.Tensor`: `elem_type` = 1, shape = 2;
/// `TensorShapeProto.dim` = 1; `Dimension.dim_value` = 1.
fn port(info: Reader<'_>) -> Result<Port, Fault> {
    let mut port = Port::default();
    let mut reader = info;
    while let Some(field) = reader.field()? {
        match (field.number, field.value) {
            (1, Value::Bytes(text)) => port.name = text.text(),
            (2, Value::Bytes(mut kind)) => {
                while let Some(part) = kind.field()? {
                    if let (1, Value::Bytes(tensor)) = (part.number, part.value) {
                        tensor_type(tensor, &mut port)?;
                    }
                }
            }
            _ => {}
        }
    }
    Ok(port)
}

fn tensor_type(tensor: Reader<'_>, port: &mut Port) -> Result<(), Fault> {
    let mut reader = tensor;
    while let Some(field) = reader.field()? {
        match (field.number, field.value) {
            (1, Value::Number(element)) => port.element = element,
            (2, Value::Bytes(mut shape)) => {
                while let Some(part) = shape.field()? {
                    let (1, Value::Bytes(mut dim)) = (part.number, part.value) else { continue };
                    let mut size = None;
                    while let Some(part) = dim.field()? {
                        if let (1, Value::Number(value)) = (part.number, part.value) {
                            size = Some(value);
                        }
                    }
                    port.dims.push(size);
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn walk_tensor(tensor: Reader<'_>, found: &mut OnnxFile) -> Result<(), Fault> {
    let mut reader = tensor;
    let (mut this, mut raw) = (Tensor::default(), None);
    let mut entries = Vec::new();
    while let Some(field) = reader.field()? {
        match (field.number, field.value) {
            // TensorProto.dims, packed or not
            (1, Value::Number(dim)) => this.dims.push(dim),
            (1, Value::Bytes(mut dims)) => {
                while dims.left() > 0 {
                    this.dims.push(dims.varint()?);
                }
            }
            (2, Value::Number(number)) => this.element = number,
            (8, Value::Bytes(text)) => this.name = text.text(),
            (9, Value::Bytes(data)) => raw = Some(data.left()),
            // external_data: StringStringEntryProto { key = 1, value = 2 }
            (13, Value::Bytes(entry)) => entries.push(string_entry(entry)?),
            // data_location: EXTERNAL = 1
            (14, Value::Number(location)) => this.is_external = location == 1,
            _ => {}
        }
    }
    let elements = this.dims.iter().fold(1_u64, |all, dim| all.saturating_mul(*dim));
    let needed = bits(this.element).map(|bits| elements.saturating_mul(bits).div_ceil(8));
    this.bytes = needed.unwrap_or(0);
    if this.is_external {
        note_external(&this.name, &entries, needed, found)?;
    } else if let (Some(have), Some(needed)) = (raw, needed)
        && have > 0
        && have as u64 != needed
    {
        return Err(Fault::Data { tensor: this.name, have, needed });
    }
    found.tensors.push(this);
    Ok(())
}

fn note_external(
    tensor: &str,
    entries: &[(String, String)],
    needed: Option<u64>,
    found: &mut OnnxFile,
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
    let file = found.files.entry(location).or_insert(0);
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
        assert_eq!(read(&model(&whole)).unwrap().files, BTreeMap::from([("w.data".into(), 88)]));
        assert_eq!(
            read(&model(&whole[..2])).unwrap().files,
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
            match read(&model) {
                Ok(_) => assert_eq!(words, ""),
                Err(fault) => assert!(
                    fault.to_string().contains(words) && !words.is_empty(),
                    "{fault}: {words}"
                ),
            }
        }
        let whole = model(&[location]);
        for end in 1..whole.len() {
            assert!(read(&whole[..end]).is_err(), "cut at {end}");
        }
    }

    #[test]
    fn no_bytes_make_it_panic() {
        let whole = model(&[entry("location", "w.data")]);
        for at in 0..whole.len() {
            for byte in [0, 1, 0x7f, 0x80, 0xff] {
                let mut broken = whole.clone();
                broken[at] = byte;
                let _ = read(&broken);
            }
        }
    }
}
