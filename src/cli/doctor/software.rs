//! What was installed and written: configuration, libonnxruntime, model, files and who may read them, sandbox.

use std::fs::Metadata;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{Finding, Grade};
use crate::cli::with_causes;
use crate::engine::escape::Outcome;
use crate::inference::{self, inspect};
use crate::settings::{self, Environment, Settings, find_library};

/// A disk with less than this left stops the record soon.
const DISK_BYTES: u64 = 64 << 20;

/// Looks at all of it, as far as the configuration can be read.
pub(super) fn look(config: &Path, environment: &Environment) -> (Option<Settings>, Vec<Finding>) {
    let settings = match settings::load(config, environment) {
        Ok(settings) => settings,
        Err(error) => {
            let fix = format!(
                "`promptd config check --config {}` tells every mistake with its place",
                config.display()
            );
            return (
                None,
                vec![Finding::bad("configuration", Grade::Problem, with_causes(&error), fix)],
            );
        }
    };
    let mut findings = vec![Finding::ok("configuration", format!("{} is right", config.display()))];
    findings.extend(inline_password(config, &settings));
    let library = library(&settings, environment, &mut findings);
    findings.extend(model(&settings, library.as_deref()));
    findings.extend(library.map(|library| sandbox(&settings, &library)));
    findings.extend(state(&settings));
    findings.extend(secrets(&settings));
    (Some(settings), findings)
}

fn inline_password(config: &Path, settings: &Settings) -> Option<Finding> {
    let mqtt = settings.mqtt.as_ref()?;
    let inline = mqtt.url.iter().chain(&mqtt.urls).any(|url| {
        let user = url.split_once("://").and_then(|(_, rest)| rest.rsplit_once('@'));
        user.is_some_and(|(user, _)| user.contains(':'))
    });
    let mode = config.metadata().ok()?.permissions().mode();
    (inline && mode & 0o004 != 0).then(|| {
        Finding::bad(
            "secrets",
            Grade::Warning,
            format!("{} holds the broker's password, and everybody may read it", config.display()),
            "put it into a file that `mqtt.password_file` names, or make it a systemd credential (examples/credentials.conf)",
        )
    })
}

/// Which library it is, and what it can do.
fn library(
    settings: &Settings,
    environment: &Environment,
    findings: &mut Vec<Finding>,
) -> Option<PathBuf> {
    let about = "library";
    let program = std::env::current_exe().unwrap_or_default();
    let variable = environment.get("ORT_DYLIB_PATH").map(String::as_str);
    let located = match find_library(settings.runtime.library.as_deref(), variable, &program) {
        Ok(located) => located,
        Err(message) => {
            let fix = "install the package of promptd, or set `runtime.library`";
            findings.push(Finding::bad(about, Grade::Problem, message, fix));
            return None;
        }
    };
    let path = located.path.display();
    if let Some(fault) = inference::library_fault(&located.path) {
        let says = format!("{path} (by {}): {fault}", located.chosen_by);
        findings.push(Finding::bad(
            about,
            Grade::Problem,
            says,
            "set `runtime.library` to a libonnxruntime for this board",
        ));
        return None;
    }
    let target = located.path.canonicalize().unwrap_or_else(|_| located.path.clone());
    let name = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let version = name.split_once(".so.").map_or("of unknown version", |(_, version)| version);
    let beside = |word: &str| {
        let named = format!("libonnxruntime_providers_{word}.so");
        target.parent().is_some_and(|folder| folder.join(named).exists())
    };
    let mut providers = vec!["CPU"];
    providers.extend(beside("cuda").then_some("CUDA"));
    providers.extend(beside("tensorrt").then_some("TensorRT"));
    let says = format!(
        "ONNX Runtime {version}, {path} (by {}); providers: {}",
        located.chosen_by,
        providers.join(", ")
    );
    findings.push(if settings.runtime.provider == settings::Provider::Cuda && !beside("cuda") {
        let fix = "set `runtime.library` to one built with CUDA for this board, or `runtime.provider` to \"auto\"";
        Finding::bad(about, Grade::Problem, format!("{says}; `runtime.provider` wants CUDA"), fix)
    } else {
        Finding::ok(about, says)
    });
    Some(located.path)
}

fn model(settings: &Settings, library: Option<&Path>) -> Vec<Finding> {
    let path = &crate::daemon::model_folder(settings);
    let wrong = |error: inference::LoadError| {
        let fix = "`promptd model check DIR` looks again; docs/models.md says what runs";
        vec![Finding::bad("model", Grade::Problem, with_causes(&error), fix)]
    };
    let model = match inspect::check(path) {
        Ok(model) => model,
        Err(error) => return wrong(error),
    };
    let store = settings.state.models_dir();
    // A GPU has no use for a copy.
    let on_cpu = settings.runtime.provider != settings::Provider::Cuda;
    let copies = store.as_deref().zip(library).filter(|_| on_cpu);
    let copies = copies.map(|(store, library)| inspect::Copies { store, library });
    let (slots, context) = (settings.model.slots, settings.model.context);
    let (plan, _) = match inspect::plan(path, slots, context, copies) {
        Ok(plan) => plan,
        Err(error) => return wrong(error),
    };
    let mebibytes = |bytes: u64| bytes >> 20;
    let says = format!(
        "{}: {}, {} tokens of context for {} prompts; at most {} MiB of memory",
        path.display(),
        model.architecture,
        plan.context,
        plan.slots,
        mebibytes(plan.peak)
    );
    let mut findings: Vec<Finding> = model
        .warnings
        .iter()
        .map(|warning| Finding {
            about: "model",
            grade: Grade::Note,
            says: warning.clone(),
            fix: None,
        })
        .collect();
    findings.push(if plan.fits() {
        Finding::ok("model", says)
    } else {
        let fix = match plan.largest_context {
            context if context > 0 => {
                format!("set `model.context` to {context} or less, or `model.slots` lower")
            }
            _ => "take a smaller model".to_owned(),
        };
        let left = plan
            .available
            .map(|left| format!("; {} MiB are left", mebibytes(left)))
            .unwrap_or_default();
        Finding::bad("model", Grade::Problem, format!("{says}{left}"), fix)
    });
    findings
}

/// Tries to break out of the engine's sandbox, in a process of its own.
fn sandbox(settings: &Settings, library: &Path) -> Finding {
    let about = "sandbox";
    if !settings.runtime.sandbox {
        let fix = "remove `runtime.sandbox = false`, unless an accelerator's driver needs it";
        return Finding::bad(
            about,
            Grade::Warning,
            "it is switched off: the engine may do all that promptd may",
            fix,
        );
    }
    let tried = std::env::current_exe().and_then(|program| {
        let mut command = Command::new(program);
        command
            .arg("try-sandbox")
            .arg("--model")
            .arg(crate::daemon::model_folder(settings))
            .arg("--library")
            .arg(library);
        command.stdin(Stdio::null()).output()
    });
    let tried = match tried {
        Ok(tried) => tried,
        Err(error) => {
            return Finding::bad(
                about,
                Grade::Note,
                format!("it could not be tried: {error}"),
                "run promptd doctor as root",
            );
        }
    };
    let text = String::from_utf8_lossy(&tried.stdout);
    let attempts: Vec<serde_json::Value> =
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let possible = serde_json::json!(Outcome::Possible);
    let escaped: Vec<&str> = attempts
        .iter()
        .filter(|attempt| attempt.get("outcome") == Some(&possible))
        .filter_map(|attempt| attempt.get("what")?.as_str())
        .collect();
    if attempts.is_empty() || !escaped.is_empty() {
        let what = if attempts.is_empty() { "everything".to_owned() } else { escaped.join(", ") };
        let fix = "a kernel from 5.13 with Landlock (`lsm=landlock,…` on its command line) keeps files closed";
        return Finding::bad(
            about,
            Grade::Warning,
            format!("the engine could still do: {what}"),
            fix,
        );
    }
    Finding::ok(
        about,
        format!("{} attempts of the engine to break out were refused", attempts.len()),
    )
}

fn state(settings: &Settings) -> Option<Finding> {
    let dir = settings.state.dir.as_ref()?;
    let about = "state";
    let shown = dir.display();
    let Ok(metadata) = dir.metadata() else {
        let says = format!("{shown} is not there yet; promptd makes it");
        return Some(Finding { about, grade: Grade::Note, says, fix: None });
    };
    if metadata.permissions().mode() & 0o077 != 0 {
        let fix = format!("sudo chmod 700 {shown}");
        return Some(Finding::bad(
            about,
            Grade::Warning,
            format!("others may look into {shown}"),
            fix,
        ));
    }
    let left =
        rustix::fs::statvfs(dir).ok().map(|disk| disk.f_bavail.saturating_mul(disk.f_frsize))?;
    let says = format!("{shown}, {} MiB are left on its disk", left >> 20);
    Some(if left < DISK_BYTES {
        let fix = "make room: what cannot be recorded is not acknowledged before its answer";
        Finding::bad(about, Grade::Warning, says, fix)
    } else {
        Finding::ok(about, says)
    })
}

/// Files with secrets that everybody may read, or that are not there.
fn secrets(settings: &Settings) -> Vec<Finding> {
    let mut files: Vec<&PathBuf> = Vec::new();
    if let Some(mqtt) = &settings.mqtt {
        files.extend(mqtt.password_file.iter().chain(&mqtt.tls.key_file));
    }
    files.extend(settings.socket.iter().flat_map(|socket| &socket.tcp_key_file));
    files.extend(settings.clients.values().filter_map(|client| client.api_key_file.as_ref()));
    files.into_iter().filter_map(|file| secret(file)).collect()
}

fn secret(file: &Path) -> Option<Finding> {
    let shown = file.display();
    let fix = format!("sudo chown root:promptd {shown} && sudo chmod 640 {shown}");
    match file.metadata() {
        Ok(metadata) if metadata.permissions().mode() & 0o004 != 0 => Some(Finding::bad(
            "secrets",
            Grade::Warning,
            format!("everybody may read {shown}"),
            fix,
        )),
        Ok(metadata) if of_service().is_some_and(|who| !may_read(&metadata, who)) => {
            let says = format!("promptd's user may not read {shown}");
            Some(Finding::bad("secrets", Grade::Problem, says, fix))
        }
        Ok(_) => None,
        // systemd lays it there when the service starts.
        Err(_) if file.starts_with("/run/credentials") => None,
        Err(error) => Some(Finding::bad(
            "secrets",
            Grade::Problem,
            format!("{shown} cannot be read: {error}"),
            fix,
        )),
    }
}

/// The service's user and its group, where it was installed.
fn of_service() -> Option<(u32, u32)> {
    let users = std::fs::read_to_string("/etc/passwd").ok()?;
    let line = users.lines().find_map(|line| line.strip_prefix("promptd:"))?;
    let mut fields = line.split(':').skip(1).map(str::parse);
    Some((fields.next()?.ok()?, fields.next()?.ok()?))
}

/// Whether a user with this group alone may read a file.
fn may_read(metadata: &Metadata, (user, group): (u32, u32)) -> bool {
    let bit = if metadata.uid() == user {
        0o400
    } else if metadata.gid() == group {
        0o040
    } else {
        0o004
    };
    metadata.mode() & bit != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_read_a_file_is_told_by_its_mode() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (owner, group) = {
            let metadata = file.as_file().metadata().unwrap();
            (metadata.uid(), metadata.gid())
        };
        let with_mode = |mode| {
            file.as_file().set_permissions(std::fs::Permissions::from_mode(mode)).unwrap();
            file.as_file().metadata().unwrap()
        };
        let (stranger, others) = (owner + 1, group + 1);
        for (mode, who, may) in [
            (0o600, (owner, group), true),
            (0o600, (stranger, group), false),
            (0o640, (stranger, group), true),
            (0o640, (stranger, others), false),
            (0o604, (stranger, others), true),
            // The owner's own bits count for the owner, whatever others may.
            (0o044, (owner, group), false),
        ] {
            assert_eq!(may_read(&with_mode(mode), who), may, "{mode:o} {who:?}");
        }
    }
}
