//! Which execution provider runs the graph. What was asked for and cannot be had is an error, and where the nodes of the
//! graph really are is counted, never assumed: ONNX Runtime itself falls back to the CPU without a word.

use serde::{Deserialize, Serialize};

/// Where the graph is to run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Provider {
    /// On the GPU where there is one that libonnxruntime can use, else on the CPU.
    #[default]
    Auto,
    /// On the CPU.
    Cpu,
    /// On the GPU, or not at all.
    Cuda,
}

/// Where a graph runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// The execution provider that was taken: `CPU` or `CUDA`.
    pub provider: String,
    /// Why it was taken, where that was not asked for.
    pub why: Option<String>,
    /// Execution providers and how many nodes of the graph, as ONNX Runtime optimised it, run in each.
    pub nodes: Vec<(String, u32)>,
    /// Whether the weights come from a prepared copy.
    pub prepared: bool,
}

/// What a placement says of a GPU.
pub(super) const CUDA: &str = "CUDA";

/// What a session can be built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Device {
    Cpu,
    Cuda,
}

impl Device {
    fn name(self) -> &'static str {
        match self {
            Device::Cpu => "CPU",
            Device::Cuda => CUDA,
        }
    }
}

/// Why there is no session. `E` is what building one fails with.
#[derive(Debug)]
pub(super) enum Refused<E> {
    /// The provider that was asked for cannot be had; a reason in words.
    Provider(String),
    /// ONNX Runtime cannot load the graph, wherever it would run.
    Graph(E),
}

/// Execution providers and how many nodes of a graph run in each.
pub(super) type Nodes = Vec<(String, u32)>;

/// What a library without CUDA lacks, in words.
const WITHOUT_CUDA: &str = "this libonnxruntime was built without CUDA";

/// Builds a session where it is wanted. `build` makes one for a device and tells where its nodes are.
pub(super) fn choose<S, E: std::fmt::Display>(
    wanted: Provider,
    has_cuda: bool,
    mut build: impl FnMut(Device) -> Result<(S, Nodes), E>,
) -> Result<(S, Placement), Refused<E>> {
    let on_gpu = match wanted {
        Provider::Cpu => None,
        Provider::Auto | Provider::Cuda if !has_cuda => Some(Err(WITHOUT_CUDA.to_owned())),
        Provider::Auto | Provider::Cuda => Some(on_cuda(&mut build)),
    };
    let why = match on_gpu {
        Some(Ok((session, nodes))) => {
            let why = (wanted == Provider::Auto).then(|| "libonnxruntime can use a GPU".to_owned());
            return Ok((session, placement(Device::Cuda, why, nodes)));
        }
        Some(Err(reason)) if wanted == Provider::Cuda => return Err(Refused::Provider(reason)),
        Some(Err(reason)) => Some(reason),
        None => None,
    };
    let (session, nodes) = build(Device::Cpu).map_err(Refused::Graph)?;
    Ok((session, placement(Device::Cpu, why, nodes)))
}

/// A session on the GPU, where at least one node is.
fn on_cuda<S, E: std::fmt::Display>(
    build: &mut impl FnMut(Device) -> Result<(S, Nodes), E>,
) -> Result<(S, Nodes), String> {
    let (session, nodes) =
        build(Device::Cuda).map_err(|error| format!("CUDA cannot be used: {}", words(&error)))?;
    if nodes.iter().any(|(provider, count)| provider == Device::Cuda.name() && *count > 0) {
        return Ok((session, nodes));
    }
    Err("CUDA has kernels for none of the graph's nodes; all would run on the CPU".to_owned())
}

/// What ONNX Runtime says, without the places in its source that it says it from: `… [ONNXRuntimeError] : 1 : FAIL : Failed to load
/// library …`, and `… CUDA failure 304: OS call failed … ; GPU=-1 ; hostname=… ; file=… ; …`.
fn words(error: &impl std::fmt::Display) -> String {
    let text = error.to_string();
    if let Some(at) = text.find("CUDA failure") {
        let said = text.get(at..).unwrap_or_default();
        return said.split(" ; ").next().unwrap_or(said).trim().to_owned();
    }
    let said =
        text.split_once("[ONNXRuntimeError]").and_then(|(_, said)| said.splitn(4, ':').nth(3));
    said.unwrap_or(&text).trim().to_owned()
}

fn placement(device: Device, why: Option<String>, nodes: Nodes) -> Placement {
    Placement { provider: device.name().to_owned(), why, nodes, prepared: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a machine gives: nodes on the CPU and, where CUDA works, on the GPU.
    fn machine(cuda: Result<u32, &str>) -> impl FnMut(Device) -> Result<(Device, Nodes), String> {
        move |device| match (device, cuda) {
            (Device::Cpu, _) => Ok((device, nodes(9, 0))),
            (Device::Cuda, Ok(count)) => Ok((device, nodes(9 - count, count))),
            (Device::Cuda, Err(error)) => Err(error.to_owned()),
        }
    }

    fn nodes(cpu: u32, cuda: u32) -> Nodes {
        let all = [("CPU".to_owned(), cpu), ("CUDA".to_owned(), cuda)];
        all.into_iter().filter(|(_, count)| *count > 0).collect()
    }

    #[test]
    fn what_is_asked_for_is_taken_or_refused() {
        let lost = Err("libcudart.so.12: cannot open shared object file");
        for (wanted, has_cuda, gpu, taken, words) in [
            (Provider::Cpu, true, Ok(8), Some(Device::Cpu), ""),
            (Provider::Cuda, true, Ok(8), Some(Device::Cuda), ""),
            (Provider::Auto, true, Ok(8), Some(Device::Cuda), "can use a GPU"),
            (Provider::Auto, false, Ok(8), Some(Device::Cpu), "built without CUDA"),
            (Provider::Auto, true, lost, Some(Device::Cpu), "libcudart.so.12"),
            (Provider::Auto, true, Ok(0), Some(Device::Cpu), "none of the graph's nodes"),
            (Provider::Cuda, false, Ok(8), None, "built without CUDA"),
            (Provider::Cuda, true, lost, None, "libcudart.so.12"),
            // The fall-back that nobody is told of: the session was built, and everything is on the CPU.
            (Provider::Cuda, true, Ok(0), None, "none of the graph's nodes"),
        ] {
            let case = format!("{wanted:?} {has_cuda} {gpu:?}");
            match choose(wanted, has_cuda, machine(gpu)) {
                Ok((device, placement)) => {
                    assert_eq!(Some(device), taken, "{case}");
                    assert_eq!(placement.provider, device.name(), "{case}");
                    let why = placement.why.unwrap_or_default();
                    assert_eq!(why.is_empty(), words.is_empty(), "{case}: {why}");
                    assert!(why.contains(words), "{case}: {why}");
                    let there = placement.nodes.iter().any(|(name, _)| name == device.name());
                    assert!(there, "{case}: {:?}", placement.nodes);
                }
                Err(Refused::Provider(reason)) => {
                    assert_eq!(taken, None, "{case}: {reason}");
                    assert!(reason.contains(words), "{case}: {reason}");
                }
                Err(Refused::Graph(error)) => panic!("{case}: {error}"),
            }
        }
    }

    #[test]
    fn a_reason_begins_with_what_is_wrong() {
        let long = "/src/provider_bridge_ort.cc:2043 onnxruntime::Provider& Get() [ONNXRuntimeError] : 1 : FAIL : Failed to load \
                    library /x.so with error: libcublasLt.so.13: cannot open shared object file\n";
        let short = "Failed to load library /x.so with error: libcublasLt.so.13: cannot open shared object file";
        assert_eq!(words(&long), short);
        let long = "/src/cuda_call.cc:154 CudaCall(ERRTYPE) [with THRW = true] CUDA failure 304: OS call failed ; GPU=-1 ; line=355 ; \n";
        assert_eq!(words(&long), "CUDA failure 304: OS call failed");
        assert_eq!(words(&"no such: thing"), "no such: thing");
    }

    #[test]
    fn a_graph_that_no_provider_loads_is_the_graphs_fault() {
        let broken = |_: Device| Err::<(Device, Nodes), _>("no such operator");
        for wanted in [Provider::Auto, Provider::Cpu] {
            let refused = choose(wanted, true, broken).unwrap_err();
            assert!(matches!(refused, Refused::Graph("no such operator")), "{refused:?}");
        }
    }
}
