//! Secrets, and the redaction of output.
//!
//! A [`Secret`] prints as `***`, and the crate's own errors never quote one. Errors of libraries may: a parser, a driver or a
//! server can quote a part of a URL. Therefore the log and the final error of the process pass through [`redact`], which
//! replaces every configured secret, and every part of one that a library could quote.

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

/// Replaces a secret.
const STARS: &str = "***";
/// Shorter secrets are not redacted: too many other texts contain them.
const MIN_SECRET_LEN: usize = 4;
/// Common words of the log. Such a word is no real password, and redacting it would garble every line.
const LOG_WORDS: &[&str] = &[
    "firstcome",
    "postgres",
    "postgresql",
    "redis",
    "rediss",
    "default",
    "http",
    "https",
    "info",
    "true",
    "viewer",
    "operator",
    "admin",
];
/// The supported parameters of `DATABASE_URL` whose values are not secret: all but the password.
pub const PUBLIC_POSTGRES_PARAMETERS: &[&str] = &[
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
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "application_name",
    "options",
];
/// Parameters of `REDIS_URL`; none is secret.
const REDIS_PARAMETERS: &[&str] = &["db", "protocol"];
/// The advice for a URL whose password is not percent-encoded.
const PERCENT_ENCODING: &str = "in a user name or password every character but letters, digits, - . _ ~ is percent-encoded (/ is %2F, # is \
                       %23, ? is %3F, @ is %40, % is %25)";

/// A value that is never printed: a URL with a password in it, a token.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(value: impl Into<String>) -> Self {
        Secret(value.into())
    }

    /// The value, for the one place that uses it.
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

    /// Trims the value: files and `$'...\n'` end in a newline that is not part of the secret.
    fn from_str(value: &str) -> Result<Self, Self::Err> {
        Ok(Secret(value.trim().to_owned()))
    }
}

/// The secret parts of a value: of a URL, its password and the parameters that may hold one; of any other value, all of it.
/// Empty if the value has no secret.
pub(super) fn secret_parts(value: &str) -> Vec<String> {
    let mut parts = Vec::new();
    let mut add = |part: &str| {
        parts.push(part.to_owned());
        if let Some(decoded) = percent_decoded(part) {
            parts.push(decoded);
        }
    };
    let Some((_, rest)) = value.split_once("://") else {
        // A token; or names, roles and tokens, as in ADMIN_TOKENS.
        add(value);
        for entry in value.split(',').map(str::trim) {
            add(entry);
            if let Some((name, token)) = entry.split_once(':') {
                add(token);
                add(token.split_once(':').map_or("", |(_role, token)| token));
                add(token.rsplit(':').next().unwrap_or_default());
                // `token:` instead of `name:token`, by mistake.
                if token.trim().is_empty() {
                    add(name);
                }
            }
        }
        return parts;
    };
    // An unencoded password may contain a delimiter. A parser takes the rest for a path, and may quote that.
    if let Some((before, _)) = rest.rsplit_once('@')
        && let Some((_, password)) = before.split_once(':')
    {
        add(password);
        password.split(['/', '?', '#', '@', ':', '&', '=', '[', ']', ' ']).for_each(&mut add);
    }
    if let Some((_, query)) = rest.split_once('?') {
        for pair in query.split(['&', '#']) {
            match pair.split_once('=') {
                Some((key, _)) if PUBLIC_POSTGRES_PARAMETERS.contains(&key) || REDIS_PARAMETERS.contains(&key) => {}
                Some((key, value)) => {
                    add(value);
                    // No parameter has such a name: it is a part of a password.
                    if !key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_') {
                        add(key);
                    }
                }
                None => add(pair),
            }
        }
    }
    if Url::parse(&with_one_host(value)).is_err() {
        add(rest);
        rest.split(['/', '?', '#', '@', ':', '&', '=', ' ']).for_each(&mut add);
    }
    parts.retain(|part| !part.is_empty());
    parts
}

/// A URL of Redis without its hosts but the first: a list of hosts is no URL by itself.
fn with_one_host(value: &str) -> Cow<'_, str> {
    let lists = |scheme: &str| scheme.ends_with("+sentinel") || matches!(scheme, "redis" | "rediss");
    let Some((scheme, rest)) = value.split_once("://").filter(|(scheme, _)| lists(scheme)) else {
        return value.into();
    };
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let (user, hosts) = authority.split_at(authority.rfind('@').map_or(0, |at| at + 1));
    let host = hosts.split(',').next().unwrap_or_default();
    format!("{scheme}://{user}{host}{path}").into()
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

/// Makes [`redact`] replace these secrets. Call it once, before the first output.
///
/// # Errors
/// The secrets are too large to search for.
pub fn hide(secrets: &[String]) -> anyhow::Result<()> {
    let mut needles = std::collections::BTreeSet::new();
    for secret in secrets {
        for part in secret_parts(secret.trim()).into_iter().chain([secret.trim().to_owned()]) {
            if part.chars().count() < MIN_SECRET_LEN || LOG_WORDS.contains(&part.to_ascii_lowercase().as_str()) {
                continue;
            }
            // The escaped forms of JSON and of `Debug`.
            for quoted in [serde_json::to_string(&part).unwrap_or_default(), format!("{part:?}")] {
                needles.insert(quoted.trim_matches('"').to_owned());
            }
            needles.insert(part);
        }
    }
    let searcher = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(needles)?;
    // Only tests call this twice; the first call counts.
    let _ = SECRETS.set(searcher);
    Ok(())
}

/// Replaces the secrets in a text.
pub fn redact(text: &str) -> Cow<'_, str> {
    match SECRETS.get() {
        Some(secrets) if secrets.is_match(text) => {
            let stars = vec![STARS; secrets.patterns_len()];
            Cow::Owned(secrets.replace_all(text, &stars))
        }
        _ => Cow::Borrowed(text),
    }
}

/// A writer that redacts. Each write must be a whole line: a secret split over two writes is not found.
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

/// Parses the URL of the variable `name`. Rejects passwords with unencoded delimiters (`/`, `?`, `#`, `@`), which would make
/// the URL mean something else. The error quotes nothing.
///
/// # Errors
/// The value is no URL, or its password must be percent-encoded.
pub fn url_of(name: &str, value: &str) -> anyhow::Result<Url> {
    let Ok(url) = Url::parse(value) else {
        anyhow::bail!("{name} can't be read as a URL: {PERCENT_ENCODING}, and a port is a number up to 65535");
    };
    let authority =
        value.split_once("://").map_or("", |(_, rest)| rest.split(['/', '?', '#']).next().unwrap_or_default());
    let ats = |text: &str| text.matches('@').count();
    ensure!(ats(value) == ats(authority), "{name} has an @ after its host: {PERCENT_ENCODING}");
    ensure!(!url.path().contains('@') && ats(authority) <= 1, "{name} has more than one @: {PERCENT_ENCODING}");
    Ok(url)
}

#[cfg(test)]
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
            ("kim:viewer:hunter2,lee:other", "hunter2"),
            ("kim:viewer:hun:ter2,lee:other", "hun:ter2"),
            ("redis+sentinel://app:hunter2@one:26379,two:26379/mymaster", "hunter2"),
            ("rediss://app:hunter2@one:7001,two:7001/0", "hunter2"),
            ("redis+sentinel://one:26379,two:26379/mymaster?sentinel_password=hunter2", "hunter2"),
            ("redis+sentinel://app:hun/ter2@one:26379,two:26379/mymaster", "ter2"),
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
            "redis+sentinel://10.0.0.1:26379,10.0.0.2:26379/mymaster",
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
