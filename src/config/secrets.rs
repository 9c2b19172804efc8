//! Secrets: values that are never printed, and the last line of defence where somebody else prints them.
//!
//! A [`Secret`] prints as `***`, and our own errors never quote one. Libraries do: an error of a parser, of a driver or of a
//! server may have a part of a URL in it. So whatever leaves the process by its log, or as the reason of its end, goes through
//! [`redact`], which knows every secret that it was configured with, and the parts of each that a library could quote.

use std::{
    borrow::Cow,
    fmt,
    io::{self, Write},
    str::FromStr,
    sync::OnceLock,
};

use aho_corasick::{AhoCorasick, MatchKind};
use anyhow::ensure;
use reqwest::Url;

/// What stands in place of a secret.
const STARS: &str = "***";
/// Secrets that are shorter are not looked for: too much else is spelled like them.
const SHORTEST: usize = 4;
/// Words of the log itself. A password that is one of them is none, and hiding it would garble every line.
const SECRET_PARAMETERS: &[&str] =
    &["firstcome", "postgres", "postgresql", "redis", "rediss", "default", "http", "https", "info", "true"];
/// Parameters of URLs whose values are no secrets.
const PUBLIC_PARAMETERS: &[&str] = &[
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "application_name",
    "options",
    "sslmode",
    "ssl-mode",
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "statement-cache-capacity",
    "db",
    "protocol",
];
/// What to do about a password that a URL can't be read with.
const PERCENT: &str = "in a user name or password every character but letters, digits, - . _ ~ is percent-encoded (/ is %2F, # is \
                       %23, ? is %3F, @ is %40, % is %25)";

/// A value that is never printed: a URL with a password in it, a token.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(value: impl Into<String>) -> Self {
        Secret(value.into())
    }

    /// The value, for the one place that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(STARS)
    }
}

impl FromStr for Secret {
    type Err = std::convert::Infallible;

    /// Without the white space around it: files and `$'...\n'` end in a newline that nobody meant.
    fn from_str(value: &str) -> Result<Self, Self::Err> {
        Ok(Secret(value.trim().to_owned()))
    }
}

/// The parts of a value that must not be seen: of a URL its password and the parameters that may hold one, of anything else all
/// of it. Empty where there is nothing to hide.
pub(super) fn secret_parts(value: &str) -> Vec<String> {
    let mut parts = Vec::new();
    let mut add = |part: &str| {
        parts.push(part.to_owned());
        if let Some(decoded) = percent_decoded(part) {
            parts.push(decoded);
        }
    };
    let Some((_, rest)) = value.split_once("://") else {
        // A token; or names and tokens, as in ADMIN_TOKENS.
        add(value);
        for entry in value.split(',').map(str::trim) {
            add(entry);
            if let Some((name, token)) = entry.split_once(':') {
                add(token);
                add(token.rsplit(':').next().unwrap_or_default());
                // The other way round, by mistake.
                if token.trim().is_empty() {
                    add(name);
                }
            }
        }
        return parts;
    };
    // A password may hold what ends one for a parser: a `/` makes a path of what follows, and what follows may be quoted.
    if let Some((before, _)) = rest.rsplit_once('@')
        && let Some((_, password)) = before.split_once(':')
    {
        add(password);
        password.split(['/', '?', '#', '@', ':', '&', '=', '[', ']', ' ']).for_each(&mut add);
    }
    if let Some((_, query)) = rest.split_once('?') {
        for pair in query.split(['&', '#']) {
            match pair.split_once('=') {
                Some((key, _)) if PUBLIC_PARAMETERS.contains(&key) => {}
                Some((key, value)) => {
                    add(value);
                    // No parameter is called so: it is a part of a password.
                    if !key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_') {
                        add(key);
                    }
                }
                None => add(pair),
            }
        }
    }
    if Url::parse(value).is_err() {
        add(rest);
        rest.split(['/', '?', '#', '@', ':', '&', '=', ' ']).for_each(&mut add);
    }
    parts.retain(|part| !part.is_empty());
    parts
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let escaped = after.get(..2).filter(|_| *first == b'%').and_then(|hex| {
            let hex = std::str::from_utf8(hex).ok()?;
            u8::from_str_radix(hex, 16).ok()
        });
        bytes.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() { &after[2..] } else { after };
    }
    String::from_utf8(bytes).ok().filter(|decoded| decoded != text)
}

static SECRETS: OnceLock<AhoCorasick> = OnceLock::new();

/// Has [`redact`] look for these secrets from now on; once, before anything is printed.
///
/// # Errors
/// They are more than can be looked for.
pub fn hide(secrets: &[String]) -> anyhow::Result<()> {
    let mut needles = std::collections::BTreeSet::new();
    for secret in secrets {
        for part in secret_parts(secret.trim()).into_iter().chain([secret.trim().to_owned()]) {
            if part.chars().count() < SHORTEST || SECRET_PARAMETERS.contains(&part.to_ascii_lowercase().as_str()) {
                continue;
            }
            // As they stand in a line of JSON, and in what is printed for debugging.
            for quoted in [serde_json::to_string(&part).unwrap_or_default(), format!("{part:?}")] {
                needles.insert(quoted.trim_matches('"').to_owned());
            }
            needles.insert(part);
        }
    }
    let found = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(needles)?;
    // Twice in tests only.
    let _ = SECRETS.set(found);
    Ok(())
}

/// A text without the secrets in it.
pub fn redact(text: &str) -> Cow<'_, str> {
    match SECRETS.get() {
        Some(secrets) if secrets.is_match(text) => {
            let stars = vec![STARS; secrets.patterns_len()];
            Cow::Owned(secrets.replace_all(text, &stars))
        }
        _ => Cow::Borrowed(text),
    }
}

/// Writes what it is given without the secrets in it. Each write has to be a whole line: a secret in two of them is missed.
pub struct Redacting<W>(pub W);

impl<W: Write> Write for Redacting<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match std::str::from_utf8(line) {
            Ok(text) => self.0.write_all(redact(text).as_bytes())?,
            Err(_) => self.0.write_all(redact(&String::from_utf8_lossy(line)).as_bytes())?,
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Reads a URL that may hold a password, which must mean what it seems to mean: a password with a `/`, `?` or `#` in it makes
/// something else of the rest. `name` is the variable's. The error quotes nothing.
///
/// # Errors
/// It is no URL, or a password in it has to be percent-encoded.
pub fn url_of(name: &str, value: &str) -> anyhow::Result<Url> {
    let Ok(url) = Url::parse(value) else {
        anyhow::bail!("{name} can't be read as a URL: {PERCENT}, and a port is a number up to 65535");
    };
    let authority =
        value.split_once("://").map_or("", |(_, rest)| rest.split(['/', '?', '#']).next().unwrap_or_default());
    let ats = |text: &str| text.matches('@').count();
    ensure!(ats(value) == ats(authority), "{name} has an @ after its host: {PERCENT}");
    ensure!(!url.path().contains('@') && ats(authority) <= 1, "{name} has more than one @: {PERCENT}");
    Ok(url)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn secret_parts_of_url_hold_every_piece_of_password() {
        for (value, part) in [
            ("postgres://user:hunter2@host/database", "hunter2"),
            ("postgres://user:hun/ter2@host/database", "ter2"),
            ("postgres://user:hun#ter2@host/database", "ter2"),
            ("postgres://user:12?hunter2@host/database", "hunter2"),
            ("postgres://user:hunter%212@host/database", "hunter!2"),
            ("postgres://host/database?sslpassword=hunter2", "hunter2"),
            ("redis+unix:///run/redis.sock?pass=hunter2", "hunter2"),
            ("redis://:hunter2@host:99999/", "hunter2"),
            ("hunter2", "hunter2"),
            ("kim:hunter2,lee:other", "hunter2"),
        ] {
            assert!(secret_parts(value).iter().any(|found| found == part), "{value}: {:?}", secret_parts(value));
        }
    }

    #[test]
    fn secret_parts_of_url_empty_without_password() {
        for value in [
            "redis://localhost",
            "postgres://firstcome@localhost:5432/shop?host=/run/postgresql&sslmode=disable",
            "https://a/b",
        ] {
            assert!(secret_parts(value).is_empty(), "{value}: {:?}", secret_parts(value));
        }
    }

    #[test]
    fn url_refused_when_password_not_percent_encoded() {
        for value in [
            "postgres://user:hun/ter2@host/database",
            "postgres://user:12/hunter2@host/database",
            "postgres://user:12?hunter2@host/database",
            "postgres://user:12#hunter2@host/database",
            "postgres://user:hun@ter2@host/database",
            "postgres://user:hunter2@host:99999/database",
            "hunter2",
        ] {
            let reason = url_of("DATABASE_URL", value).unwrap_err().to_string();
            assert!(reason.starts_with("DATABASE_URL ") && !reason.contains("hunter2"), "{value}: {reason}");
        }
        url_of("DATABASE_URL", "postgres://user:hunter%2F2@host/database?sslmode=require").unwrap();
    }

    #[test]
    fn secret_trimmed_when_read() {
        assert_eq!(" hunter2\n".parse::<Secret>().unwrap().expose(), "hunter2");
        assert_eq!(format!("{:?}", Secret::new("hunter2")), "***");
    }
}
