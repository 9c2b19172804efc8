//! Reads the environment by the same rules for every setting.
//!
//! - An empty variable, or one of white space, counts as not set: compose files and unit files write `NAME=` for a value
//!   that they do not have.
//! - Booleans are `1`, `0`, `yes`, `no`, `on`, `off`, `true`, `false`, in any case.
//! - A secret may be in a file that `NAME_FILE` names. It may not be a command-line option: every user of the machine can
//!   list the arguments of processes.
//!
//! A setting with `hide_env_values` is a secret.

use std::{
    env::var_os,
    ffi::{OsStr, OsString},
    fs,
    io::Read,
    process::ExitCode,
};

use anyhow::{Context, bail, ensure};
use clap::{
    Arg, ArgAction, ArgMatches, Command,
    builder::{BoolishValueParser, Resettable},
    parser::ValueSource,
};

use super::secrets::{self, redact, secret_parts};

/// The maximum size of a secret's file.
const MAX_FILE_BYTES: u64 = 65_536;
/// Renamed settings: the old name, the new one, and what to do. A process refuses to start with an old name, instead of
/// ignoring it.
const RENAMED: &[(&str, &str, &str)] = &[
    ("REDIS_LANES", "REDIS_CONNECTIONS", "rename the variable"),
    ("ALLOW_UNSAFE_REDIS", "REDIS_DURABILITY", "instead of true set it to asserted, instead of false leave it out"),
];
/// Variables with secrets that libraries read.
const OTHERS_SECRETS: &[&str] =
    &["OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS", "PGPASSWORD", "PGOPTIONS"];

/// Reads the command line and the environment. From then on [`redact`] removes their secrets from all output.
///
/// # Errors
/// The exit code of the process; the message is already printed.
pub fn read(command: Command) -> Result<ArgMatches, ExitCode> {
    let mut environment = Environment::default();
    let command = environment.resolve(command);
    let mut secrets = environment.secrets;
    secrets.extend(OTHERS_SECRETS.iter().filter_map(var_os).filter_map(|value| value.into_string().ok()));
    secrets.extend(given_as_options(&environment.options));
    let hidden = secrets::hide(&secrets).and_then(|()| match environment.problem.or_else(renamed_setting) {
        Some(problem) => Err(problem),
        None => Ok(()),
    });
    if let Err(problem) = hidden {
        return Err(refuse(&format!("error: {problem:#}\n")));
    }
    match command.try_get_matches() {
        Ok(matches) => match refused_options(&environment.options, &matches) {
            None => Ok(matches),
            Some(reason) => Err(refuse(&format!("error: {reason}\n"))),
        },
        // `--help` and `--version` are "errors" of clap that print to stdout.
        Err(help) if !help.use_stderr() => {
            let _ = help.print();
            Err(ExitCode::SUCCESS)
        }
        Err(error) => Err(refuse(&without_passwords(&error.render().to_string()))),
    }
}

fn refuse(text: &str) -> ExitCode {
    use std::io::Write;
    let _ = std::io::stderr().write_all(redact(text).as_bytes());
    ExitCode::from(2)
}

/// Hides what stands between `://` and `@`. clap quotes unexpected arguments, and such an argument may be a URL.
fn without_passwords(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    for word in text.split_inclusive(char::is_whitespace) {
        match word.split_once("://").map(|(scheme, rest)| (scheme, rest.rsplit_once('@'))) {
            Some((scheme, Some((_, rest)))) => kept.extend([scheme, "://***@", rest]),
            _ => kept.push_str(word),
        }
    }
    kept
}

/// The findings of a walk over all settings.
#[derive(Default)]
struct Environment {
    secrets: Vec<String>,
    /// The settings that are secrets: option id and variable name.
    options: Vec<(String, String)>,
    /// The first error.
    problem: Option<anyhow::Error>,
}

impl Environment {
    fn resolve(&mut self, command: Command) -> Command {
        let command = command.mut_args(|arg| self.setting(arg));
        command.mut_subcommands(|command| self.resolve(command))
    }

    fn setting(&mut self, arg: Arg) -> Arg {
        let Some(name) = arg.get_env().and_then(OsStr::to_str).map(str::to_owned) else { return arg };
        let arg = match arg.get_action() {
            ArgAction::SetTrue => arg.value_parser(BoolishValueParser::new()),
            _ => arg,
        };
        let value = var_os(&name);
        let is_set = is_given(value.as_deref());
        let mut arg = if value.is_some() && !is_set { arg.env(Resettable::Reset) } else { arg };
        if !arg.is_hide_env_values_set() {
            return arg;
        }
        self.options.push((arg.get_id().to_string(), name.clone()));
        if let Some(value) = value.filter(|_| is_set).and_then(|value| value.into_string().ok()) {
            self.secrets.push(value);
        }
        match from_file(&name, is_set) {
            Ok(None) => {}
            Ok(Some(secret)) => {
                self.secrets.push(secret.clone());
                arg = arg.env(Resettable::Reset).required(false).default_value(secret).hide_default_value(true);
            }
            Err(problem) => {
                self.problem.get_or_insert(problem);
            }
        }
        arg
    }
}

/// The error for a variable under its old name.
fn renamed_setting() -> Option<anyhow::Error> {
    let (old, new, remedy) = RENAMED.iter().find(|(old, ..)| is_given(var_os(old).as_deref()))?;
    Some(anyhow::anyhow!("{old} has the new name {new}: {remedy}"))
}

fn is_given(value: Option<&OsStr>) -> bool {
    value.is_some_and(|value| value.to_str().is_none_or(|value| !value.trim().is_empty()))
}

/// Reads the secret from the file that `NAME_FILE` names, if it is set.
fn from_file(name: &str, is_set: bool) -> anyhow::Result<Option<String>> {
    let file_name = format!("{name}_FILE");
    let Some(path) = var_os(&file_name).filter(|path| is_given(Some(path))) else { return Ok(None) };
    ensure!(!is_set, "{name} and {file_name} are both set: keep one of them");
    let mut text = String::new();
    let file = fs::File::open(&path).with_context(|| format!("{file_name} names a file that can't be read"))?;
    file.take(MAX_FILE_BYTES + 1)
        .read_to_string(&mut text)
        .with_context(|| format!("{file_name} names a file that can't be read"))?;
    ensure!(text.len() as u64 <= MAX_FILE_BYTES, "{file_name} names a file of more than {MAX_FILE_BYTES} bytes");
    match text.trim() {
        "" => bail!("{file_name} names a file that is empty"),
        secret => Ok(Some(secret.to_owned())),
    }
}

/// The values of these settings on the command line, also if clap rejects the command line.
fn given_as_options(options: &[(String, String)]) -> Vec<String> {
    let long = |name: &str| format!("--{}", name.replace('_', "-").to_lowercase());
    let longs: Vec<String> = options.iter().map(|(_, name)| long(name)).collect();
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let mut values = Vec::new();
    for (n, argument) in arguments.iter().enumerate() {
        let Some(argument) = argument.to_str() else { continue };
        let (option, value) =
            argument.split_once('=').map_or((argument, None), |(option, value)| (option, Some(value)));
        if longs.iter().any(|long| long == option) {
            let next = arguments.get(n + 1).and_then(|next| next.to_str());
            values.extend(value.or(next).map(str::to_owned));
        }
    }
    values
}

/// The reason to refuse the command line: it has a secret. A URL without a password is no secret.
fn refused_options(options: &[(String, String)], matches: &ArgMatches) -> Option<String> {
    let mut level = Some(matches);
    while let Some(matches) = level {
        for (id, name) in options {
            let given = matches.try_contains_id(id).is_ok_and(|there| there)
                && matches.value_source(id) == Some(ValueSource::CommandLine);
            let mut values = matches.try_get_raw(id).ok().flatten().into_iter().flatten();
            if given && values.any(|value| value.to_str().is_none_or(|value| !secret_parts(value.trim()).is_empty())) {
                return Some(format!(
                    "every user of this machine can see a secret on the command line: pass it as the variable {name}, or in \
                     a file that {name}_FILE names"
                ));
            }
        }
        level = matches.subcommand().map(|(_, matches)| matches);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::without_passwords;

    #[test]
    fn url_quoted_without_password() {
        assert_eq!(
            without_passwords("unexpected argument 'redis://:hunter2@host/0' found\n"),
            "unexpected argument 'redis://***@host/0' found\n"
        );
        assert_eq!(without_passwords("a  b\n c"), "a  b\n c");
    }
}
