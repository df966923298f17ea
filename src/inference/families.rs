//! Which families of models promptd runs, and by which words it refuses the others. Knows no file.

/// Dense decoder-only families whose graphs take token ids and a key/value cache, by the names their configurations use.
/// docs/models.md says which of them were run. `OPT`, Galactica and the large `BlenderBot` 3 are all `opt`; `SmolLM` 1 and 2
/// are `llama`.
const SUPPORTED: &[&str] = &[
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "phi",
    "phi3",
    "smollm3",
    "gemma",
    "gemma2",
    "gemma3_text",
    "granite",
    "olmo",
    "olmo2",
    "internlm2",
    "ernie4_5",
    "nemotron",
    "opt",
    "gpt_neox",
];

/// What other models are, by the names their configurations use, and why such a model is not run.
const REFUSED: &[(&str, &[&str])] = &[
    (
        "an encoder-decoder model; promptd runs decoder-only models",
        &[
            "t5",
            "mt5",
            "umt5",
            "bart",
            "mbart",
            "pegasus",
            "marian",
            "marian-ssru",
            "m2m_100",
            "nllb",
            "led",
            "blenderbot",
            "blenderbot-small",
            "whisper",
            "speecht5",
            "encoder-decoder",
            "vision-encoder-decoder",
            "nemotron_speech",
            "parakeet",
        ],
    ),
    (
        "a model of images or several media; promptd runs text models",
        &[
            "phi3v",
            "phi4mm",
            "qwen2_vl",
            "qwen2_5_vl",
            "qwen3_vl",
            "qwen3_5",
            "gemma3",
            "gemma4",
            "llava",
            "mllama",
            "idefics3",
            "smolvlm",
            "paligemma",
            "fara",
            "sam",
            "sam2",
            "clip",
            "siglip",
            "vit",
            "mistral3",
            "videochat_flash_qwen",
        ],
    ),
    (
        "a mixture of experts; promptd runs dense models",
        &[
            "mixtral",
            "qwen2_moe",
            "qwen3_moe",
            "phimoe",
            "gptoss",
            "gpt_oss",
            "granitemoe",
            "olmoe",
            "deepseek_v2",
            "deepseek_v3",
            "llama4",
            "dbrx",
            "jetmoe",
        ],
    ),
    (
        "a state-space or convolution hybrid, whose state is no key/value cache",
        &[
            "lfm2",
            "mamba",
            "mamba2",
            "jamba",
            "granitemoehybrid",
            "nemotron_h",
            "falcon_h1",
            "bamba",
            "recurrent_gemma",
            "rwkv",
            "qwen3_next",
            "qwen3_5_text",
            "zamba2",
        ],
    ),
    (
        "an encoder, which writes no text",
        &["bert", "roberta", "distilbert", "xlm-roberta", "deberta-v2", "modernbert", "nomic_bert"],
    ),
    ("a pipeline of several graphs, made for one kind of accelerator", &["decoder-pipeline"]),
];

/// Why a model of this type is not run; `None` where it is.
pub(super) fn refusal(name: &str) -> Option<String> {
    if SUPPORTED.contains(&name) {
        return None;
    }
    let known = REFUSED.iter().find(|(_, names)| names.contains(&name));
    Some(match known {
        Some((what, _)) => format!("which is {what}"),
        None => format!("which promptd does not run; it runs {}", SUPPORTED.join(", ")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_refused_in_its_own_words() {
        assert!(SUPPORTED.iter().all(|name| refusal(name).is_none()));
        for (name, words) in [
            ("whisper", "encoder-decoder"),
            ("qwen2_5_vl", "images"),
            ("mixtral", "mixture of experts"),
            ("lfm2", "hybrid"),
            ("bert", "encoder"),
            ("gpt2", "does not run; it runs llama"),
        ] {
            assert!(refusal(name).is_some_and(|reason| reason.contains(words)), "{name}");
        }
        let refused = REFUSED.iter().flat_map(|(_, names)| *names);
        assert!({ refused }.all(|name| !SUPPORTED.contains(name)));
    }
}
