//! How the hidden states of a text's tokens become one vector: what the model's folder says of it, and the sum itself. The
//! files are those of sentence-transformers: `modules.json` and the pooling's own `config.json`.

use std::path::Path;

use serde_json::Value;

use super::error::LoadError;
use super::files::{below, read_json};

/// Which tokens a vector is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Pooling {
    /// All, each as much as the others: what is usual where a folder says nothing.
    #[default]
    Mean,
    /// The first one.
    First,
    /// The last one.
    Last,
}

/// The folder in which the pooling's configuration lies where no list of modules names another. It comes along where models
/// are fetched and brought in.
pub const POOLING_FOLDER: &str = "1_Pooling";
/// sentence-transformers' names for the ways that promptd knows.
const KNOWN: [(&str, Pooling); 3] =
    [("mean_tokens", Pooling::Mean), ("cls_token", Pooling::First), ("lasttoken", Pooling::Last)];
/// The same in newer files, where one string names the way.
const NAMED: [(&str, Pooling); 3] =
    [("mean", Pooling::Mean), ("cls", Pooling::First), ("lasttoken", Pooling::Last)];
/// What is said where a folder asks for something else.
const POSSIBLE: &str = "promptd takes the mean of all tokens, the first or the last one";

impl Pooling {
    /// What the folder of a model says, whose hidden states have `width` numbers.
    ///
    /// # Errors
    /// It asks for what promptd does not compute, or for another number of numbers.
    pub(super) fn of(root: &Path, width: usize) -> Result<Self, LoadError> {
        let modules = root.join("modules.json");
        let place =
            if exists(&modules) { pooling_module(&modules)? } else { Some(POOLING_FOLDER.into()) };
        let Some(place) = place else { return Ok(Pooling::default()) };
        let name = format!("{place}/config.json");
        let file = below(root, &modules, "path", &name)?;
        if !exists(&file) {
            if exists(&modules) {
                return Err(LoadError::file(file, "is missing; modules.json names it"));
            }
            return Ok(Pooling::default());
        }
        let config = read_json(&file)?;
        let size = ["word_embedding_dimension", "embedding_dimension"]
            .iter()
            .find_map(|key| Some((key, config.get(*key).filter(|value| !value.is_null())?)));
        if let Some((key, size)) = size
            && size.as_u64() != u64::try_from(width).ok()
        {
            let reason = format!("{key} is {size}, the graph's hidden states have {width} numbers");
            return Err(LoadError::file(file, reason));
        }
        read(&config).map_err(|reason| LoadError::file(file, reason))
    }
}

/// The way that a pooling's configuration names.
fn read(config: &Value) -> Result<Pooling, String> {
    let of = |table: &[(&str, Pooling)], name: &str| {
        table.iter().find(|(known, _)| *known == name).map(|(_, pooling)| *pooling)
    };
    if let Some(name) = config.get("pooling_mode").filter(|name| !name.is_null()) {
        let known = name.as_str().and_then(|name| of(&NAMED, name));
        return known.ok_or_else(|| format!("pooling_mode is {name}; {POSSIBLE}"));
    }
    let wanted: Vec<&str> = (config.as_object().into_iter().flatten())
        .filter(|(_, value)| value.as_bool() == Some(true))
        .filter_map(|(key, _)| key.strip_prefix("pooling_mode_"))
        .collect();
    match wanted[..] {
        [one] => of(&KNOWN, one).ok_or_else(|| format!("pooling_mode_{one} is true; {POSSIBLE}")),
        [] => Err(format!("names no pooling; {POSSIBLE}")),
        _ => {
            let all = wanted.join(", pooling_mode_");
            Err(format!("pooling_mode_{all} are true together; promptd makes a vector of one"))
        }
    }
}

/// Where the module that pools has its configuration; `None` where there is none. A module that changes the vector and
/// that promptd does not compute is refused: without it the vector would be another model's.
fn pooling_module(file: &Path) -> Result<Option<String>, LoadError> {
    let list = read_json(file)?;
    let list = list.as_array().ok_or_else(|| LoadError::file(file, "is no list of modules"))?;
    let mut place = None;
    for module in list {
        let text = |key: &str| module.get(key).and_then(Value::as_str).unwrap_or_default();
        match text("type").rsplit('.').next().unwrap_or_default() {
            // Vectors have the length 1 here whether the folder says so or not.
            "Transformer" | "Normalize" => {}
            "Pooling" => place = Some(text("path").to_owned()),
            other => {
                let reason = format!(
                    "has the module `{}`, which promptd does not compute; it knows Transformer, Pooling and Normalize",
                    other.escape_debug()
                );
                return Err(LoadError::file(file, reason));
            }
        }
    }
    Ok(place)
}

fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// The hidden states of one text as they come.
#[derive(Debug)]
pub(super) struct Pool {
    pooling: Pooling,
    width: usize,
    /// Of thousands of tokens; in single precision the last ones would count less.
    sum: Vec<f64>,
    tokens: usize,
}

impl Pool {
    /// No token yet.
    pub(super) fn new(pooling: Pooling, width: usize) -> Self {
        Pool { pooling, width, sum: vec![0.0; width], tokens: 0 }
    }

    /// Takes the hidden states of the next tokens, one behind the other.
    pub(super) fn push(&mut self, hidden: &[f32]) {
        for state in hidden.chunks_exact(self.width.max(1)) {
            self.tokens += 1;
            match self.pooling {
                Pooling::First if self.tokens > 1 => continue,
                Pooling::Last => self.sum.fill(0.0),
                Pooling::First | Pooling::Mean => {}
            }
            for (sum, number) in self.sum.iter_mut().zip(state) {
                *sum += f64::from(*number);
            }
        }
    }

    /// The vector, of length 1: the sum points where the mean does. `None` where it has no direction, or numbers that are none.
    pub(super) fn vector(&self) -> Option<Vec<f32>> {
        let length = self.sum.iter().map(|number| number * number).sum::<f64>().sqrt();
        if !length.is_finite() || length <= 0.0 {
            return None;
        }
        #[expect(clippy::cast_possible_truncation, reason = "numbers from -1 to 1 lose digits")]
        Some(self.sum.iter().map(|number| (number / length) as f32).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pooled(pooling: Pooling, steps: &[&[f32]]) -> Option<Vec<f32>> {
        let mut pool = Pool::new(pooling, 2);
        for step in steps {
            pool.push(step);
        }
        pool.vector()
    }

    #[test]
    fn vectors_have_the_length_1_whatever_the_steps() {
        let whole: &[&[f32]] = &[&[6.0, 0.0, 0.0, 5.0, 0.0, 3.0]];
        let cut: &[&[f32]] = &[&[6.0, 0.0], &[0.0, 5.0, 0.0, 3.0]];
        for steps in [whole, cut] {
            assert_eq!(pooled(Pooling::Mean, steps), Some(vec![0.6, 0.8]));
            assert_eq!(pooled(Pooling::First, steps), Some(vec![1.0, 0.0]));
            assert_eq!(pooled(Pooling::Last, steps), Some(vec![0.0, 1.0]));
        }
        assert_eq!(pooled(Pooling::Mean, &[&[0.0, 0.0]]), None);
        assert_eq!(pooled(Pooling::Mean, &[&[f32::NAN, 1.0]]), None);
    }

    #[test]
    fn the_folder_says_how() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, value: &Value| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, value.to_string()).unwrap();
        };
        let of = || Pooling::of(dir.path(), 8).map_err(|error| error.to_string());
        assert_eq!(of(), Ok(Pooling::Mean));
        let told = |value: Value| {
            write("1_Pooling/config.json", &value);
            of()
        };
        let mode = |name: &str| json!({"word_embedding_dimension": 8, "pooling_mode_cls_token": false, "include_prompt": true, name: true});
        assert_eq!(told(mode("pooling_mode_lasttoken")), Ok(Pooling::Last));
        assert_eq!(told(mode("pooling_mode_cls_token")), Ok(Pooling::First));
        assert_eq!(told(mode("pooling_mode_mean_tokens")), Ok(Pooling::Mean));
        assert_eq!(
            told(json!({"embedding_dimension": 8, "pooling_mode": "cls"})),
            Ok(Pooling::First)
        );
        let mut both = mode("pooling_mode_mean_tokens");
        both["pooling_mode_max_tokens"] = true.into();
        for (value, words) in [
            (mode("pooling_mode_max_tokens"), "pooling_mode_max_tokens is true"),
            (both, "pooling_mode_mean_tokens, pooling_mode_max_tokens are true together"),
            (json!({"pooling_mode": "weightedmean"}), "pooling_mode is \"weightedmean\""),
            (json!({}), "names no pooling"),
            (json!({"word_embedding_dimension": 9}), "have 8 numbers"),
        ] {
            let error = told(value).unwrap_err();
            assert!(error.contains(words) && error.contains("1_Pooling/config.json"), "{error}");
        }
        let module = |kind: &str, path: &str| json!({"type": format!("sentence_transformers.models.{kind}"), "path": path});
        let modules = |more: Value| {
            json!([module("Transformer", ""), more, module("Normalize", "2_Normalize")])
        };
        write("pool/config.json", &mode("pooling_mode_lasttoken"));
        write("modules.json", &modules(module("Pooling", "pool")));
        assert_eq!(of(), Ok(Pooling::Last));
        write("modules.json", &modules(module("Dense", "2_Dense")));
        assert!(of().unwrap_err().contains("the module `Dense`"));
        write("modules.json", &modules(module("Pooling", "../pool")));
        assert!(of().unwrap_err().contains("outside the model folder"));
        write("modules.json", &modules(module("Pooling", "gone")));
        assert!(of().unwrap_err().contains("is missing"));
        write("modules.json", &modules(module("Normalize", "")));
        assert_eq!(of(), Ok(Pooling::Mean));
    }
}
