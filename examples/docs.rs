//! Writes what packages take along beside the program: man pages of the commands, of promptd.toml and of the service, and completions
//! for bash, zsh and fish. `cargo run --example docs -- DIR`.

use std::error::Error;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::CommandFactory as _;
use clap_complete::Shell;
use promptd::cli::args::Args;
use serde_json::Value;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = PathBuf::from(
        std::env::args_os().nth(1).ok_or("where to? cargo run --example docs -- DIR")?,
    );
    std::fs::create_dir_all(&folder)?;
    let command = shown(&Args::command());
    clap_mangen::generate_to(command.clone(), &folder)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut command.clone(), "promptd", &folder)?;
    }
    std::fs::write(folder.join("promptd.toml.5"), configuration(&promptd::settings::schema()))?;
    std::fs::write(folder.join("promptd.8"), include_str!("promptd.8"))?;
    see_also(&folder.join("promptd.1"))?;
    Ok(())
}

/// The command line without what people do not type.
fn shown(command: &clap::Command) -> clap::Command {
    let hidden: Vec<String> = command
        .get_subcommands()
        .filter(|command| command.is_hide_set())
        .map(|command| command.get_name().to_owned())
        .collect();
    let mut all = clap::Command::new("promptd").version(env!("CARGO_PKG_VERSION"));
    if let Some(about) = command.get_about() {
        all = all.about(about.clone());
    }
    all.subcommands(
        command
            .get_subcommands()
            .filter(|command| !hidden.contains(&command.get_name().to_owned()))
            .cloned(),
    )
}

fn see_also(page: &Path) -> std::io::Result<()> {
    let text = std::fs::read_to_string(page)?;
    std::fs::write(
        page,
        format!("{text}.SH \"SEE ALSO\"\n.BR promptd.toml (5),\n.BR promptd (8)\n"),
    )
}

/// promptd.toml(5): every section and key that the schema has, in its order.
fn configuration(schema: &Value) -> String {
    let mut page = format!(
        ".TH promptd.toml 5 \"\" \"promptd {}\" \"File formats\"\n.SH NAME\npromptd.toml \\- configuration of promptd\n\
         .SH SYNOPSIS\n.I /etc/promptd/promptd.toml\n.br\n.I /etc/promptd/conf.d/*.toml\n.SH DESCRIPTION\n\
         The configuration is TOML. The files of conf.d are laid over it in the order of their names, and environment variables\n\
         .RI ( PROMPTD__SECTION__KEY )\nover both. A key that promptd does not know is an error that names the nearest one it does.\n\
         .BR \"promptd config check\" \" tells every mistake with its place,\"\n.BR \"promptd config show\" \" what holds and who wrote it,\"\n\
         .BR \"promptd config init\" \" begins a new file.\"\n",
        env!("CARGO_PKG_VERSION")
    );
    for (name, section) in properties(schema) {
        let (definition, is_map) = resolve(schema, section);
        let title = if is_map { format!("[{name}.NAME]") } else { format!("[{name}]") };
        let _ = write!(page, ".SH \"{title}\"\n{}", paragraph(section));
        for (key, value) in properties(definition) {
            let (inner, _) = resolve(schema, value);
            let _ = write!(
                page,
                ".TP\n.B {}\n{}",
                escape(key),
                paragraph(if value.get("description").is_some() { value } else { inner })
            );
            let _ = write!(page, "{}", allowed(inner));
            if let Some(default) = value.get("default").filter(|default| !default.is_null()) {
                let _ = writeln!(page, "Default: {}.", escape(&default.to_string()));
            }
        }
    }
    page.push_str(".SH FILES\n.TP\n.I /usr/share/doc/promptd/examples\nDrop-ins for the unit: credentials, a memory limit, Jetson.\n");
    page.push_str(".SH \"SEE ALSO\"\n.BR promptd (1),\n.BR promptd (8)\n");
    page
}

fn properties(schema: &Value) -> impl Iterator<Item = (&String, &Value)> {
    schema.get("properties").and_then(Value::as_object).into_iter().flatten()
}

/// What a `$ref` names, an optional one too; and whether it is the value of a map of names.
fn resolve<'a>(root: &'a Value, value: &'a Value) -> (&'a Value, bool) {
    if let Some(reference) = value.get("$ref").and_then(Value::as_str) {
        let found = root.pointer(reference.trim_start_matches('#')).unwrap_or(value);
        return (found, false);
    }
    if let Some(some) = value.get("anyOf").and_then(Value::as_array).and_then(|all| all.first()) {
        return resolve(root, some);
    }
    match value.get("additionalProperties") {
        Some(inner) if inner.is_object() => (resolve(root, inner).0, true),
        _ => (value, false),
    }
}

fn paragraph(value: &Value) -> String {
    let text = value.get("description").and_then(Value::as_str).unwrap_or_default();
    if text.is_empty() { String::new() } else { format!("{}\n", escape(text)) }
}

/// The words of an enumeration.
fn allowed(value: &Value) -> String {
    let constants = value
        .get("oneOf")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|one| one.get("const"));
    let words = value.get("enum").and_then(Value::as_array).into_iter().flatten();
    let all: Vec<String> = words.chain(constants).map(ToString::to_string).collect();
    if all.is_empty() { String::new() } else { format!("One of {}.\n", escape(&all.join(", "))) }
}

/// Text that is nothing but text to roff.
fn escape(text: &str) -> String {
    let lines = text.lines().map(|line| {
        // Links are for those who read the source.
        let line = line.trim().replace("[`", "`").replace("`]", "`");
        let line = line.replace('\\', "\\e").replace('-', "\\-");
        if line.starts_with(['.', '\'']) { format!("\\&{line}") } else { line }
    });
    lines.collect::<Vec<_>>().join("\n")
}
