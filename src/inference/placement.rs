//! Asks ONNX Runtime where the nodes of a session really are, and where it takes its inputs. The second place that calls its C
//! interface: the safe wrapper has no word for this.

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char};

use ort::AsPointer;
use ort::session::Session;
use ort::sys::{
    OrtEpAssignedNode, OrtEpAssignedSubgraph, OrtMemoryInfo, OrtMemoryInfoDeviceType, OrtStatusPtr,
};

/// Makes a session remember where its nodes are.
pub(super) const RECORD: &str = "session.record_ep_graph_assignment_info";

/// Execution providers (`CPU`, `CUDA`) and how many nodes run in each, the most first.
pub(super) fn count(session: &Session) -> ort::Result<Vec<(String, u32)>> {
    let mut subgraphs: *const *const OrtEpAssignedSubgraph = std::ptr::null();
    let mut length = 0;
    let pointer = session.ptr();
    #[expect(unsafe_code, reason = "the C interface")]
    // SAFETY: the session is alive and borrowed; the other pointers are to locals that live through the call.
    let status = unsafe {
        (ort::api().Session_GetEpGraphAssignmentInfo)(pointer, &raw mut subgraphs, &raw mut length)
    };
    check(status)?;
    let mut counted: BTreeMap<String, u32> = BTreeMap::new();
    for index in 0..length {
        let subgraph = element(subgraphs, index)?;
        let name = provider(subgraph)?;
        let nodes = u32::try_from(nodes(subgraph)?).unwrap_or(u32::MAX);
        let all = counted.entry(name).or_default();
        *all = all.saturating_add(nodes);
    }
    let mut counted: Vec<_> = counted.into_iter().collect();
    counted.sort_by_key(|(_, nodes)| std::cmp::Reverse(*nodes));
    Ok(counted)
}

/// Whether the graph takes this input in the memory of a GPU, because what reads it runs there.
pub(super) fn is_taken_on_gpu(session: &Session, input: &CStr) -> ort::Result<bool> {
    let inputs = session.inputs();
    let name = input.to_string_lossy();
    let Some(at) = inputs.iter().position(|outlet| outlet.name() == name) else { return Ok(false) };
    let mut places: Vec<*const OrtMemoryInfo> = vec![std::ptr::null(); inputs.len()];
    let session = session.ptr();
    #[expect(unsafe_code, reason = "the C interface")]
    // SAFETY: the session is alive and borrowed, and the array has room for as many places as it has inputs.
    let status = unsafe {
        (ort::api().SessionGetMemoryInfoForInputs)(session, places.as_mut_ptr(), places.len())
    };
    check(status)?;
    let Some(place) = places.get(at).filter(|place| !place.is_null()) else { return Ok(false) };
    let mut device = OrtMemoryInfoDeviceType::OrtMemoryInfoDeviceType_CPU;
    #[expect(unsafe_code, reason = "the C interface")]
    // SAFETY: the description belongs to the session, which is borrowed; the other pointer is to a local.
    unsafe {
        (ort::api().MemoryInfoGetDeviceType)(*place, &raw mut device);
    }
    Ok(device == OrtMemoryInfoDeviceType::OrtMemoryInfoDeviceType_GPU)
}

/// One of the subgraphs that ONNX Runtime told of.
fn element(
    all: *const *const OrtEpAssignedSubgraph,
    index: usize,
) -> ort::Result<*const OrtEpAssignedSubgraph> {
    if all.is_null() {
        return Err(ort::Error::new("ONNX Runtime told of nodes and gave none"));
    }
    #[expect(unsafe_code, reason = "the C interface")]
    // SAFETY: the array belongs to the session, which is borrowed by the caller, and has more than `index` elements.
    let subgraph = unsafe { all.wrapping_add(index).read() };
    if subgraph.is_null() {
        return Err(ort::Error::new("ONNX Runtime told of a subgraph and gave none"));
    }
    Ok(subgraph)
}

/// The provider of a subgraph, without the word that all end with.
fn provider(subgraph: *const OrtEpAssignedSubgraph) -> ort::Result<String> {
    let mut name: *const c_char = std::ptr::null();
    #[expect(unsafe_code, reason = "the C interface")]
    // SAFETY: the subgraph belongs to a session that is borrowed by the caller; the other pointer is to a local.
    let status = unsafe { (ort::api().EpAssignedSubgraph_GetEpName)(subgraph, &raw mut name) };
    check(status)?;
    if name.is_null() {
        return Err(ort::Error::new("ONNX Runtime told of a provider and gave no name"));
    }
    #[expect(unsafe_code, reason = "the C interface")]
    // SAFETY: a string that ends with a zero and belongs to the session.
    let name = unsafe { CStr::from_ptr(name) };
    let name = name.to_string_lossy();
    Ok(name.strip_suffix("ExecutionProvider").unwrap_or(&name).to_owned())
}

fn nodes(subgraph: *const OrtEpAssignedSubgraph) -> ort::Result<usize> {
    let mut nodes: *const *const OrtEpAssignedNode = std::ptr::null();
    let mut length = 0;
    #[expect(unsafe_code, reason = "the C interface")]
    // SAFETY: as above; the nodes themselves are not looked at.
    let status = unsafe {
        (ort::api().EpAssignedSubgraph_GetNodes)(subgraph, &raw mut nodes, &raw mut length)
    };
    check(status).map(|()| length)
}

fn check(status: OrtStatusPtr) -> ort::Result<()> {
    #[expect(unsafe_code, reason = "the C interface")]
    // SAFETY: the status comes straight from a call of the C interface and is given away here.
    unsafe {
        ort::Error::<()>::result_from_status(status)
    }
}
