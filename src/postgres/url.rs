//! Parses and checks `DATABASE_URL`.
//!
//! sqlx ignores an unknown parameter and logs it with its value, and the errors of its parser quote the URL. So this
//! module checks the URL first, quotes nothing that may be a secret, and refuses a parameter without effect: an
//! operator who sets `channel_binding=require` relies on it.

use std::{fs, path::Path};

use anyhow::{Context, bail, ensure};
use sqlx::{ConnectOptions, postgres::PgConnectOptions};

use crate::config::{PUBLIC_POSTGRES_PARAMETERS, url_of};

/// The one supported parameter whose value is secret.
const PASSWORD: &str = "password";
/// Parameters of other clients, and what to do instead of each.
const UNSUPPORTED: &[(&str, &str)] = &[
    ("channel_binding", "sslmode=verify-full says that the server is the right one"),
    ("connect_timeout", "DATABASE_TIMEOUT_MS is for it"),
    ("gssencmode", "Kerberos is not supported"),
    ("keepalives", "a connection that does not answer is given up after DATABASE_TIMEOUT_MS"),
    ("keepalives_idle", "a connection that does not answer is given up after DATABASE_TIMEOUT_MS"),
    ("load_balance_hosts", "one host is connected to: the primary"),
    ("passfile", "the password belongs in the URL; DATABASE_URL_FILE keeps it out of the environment"),
    ("pgbouncer", "nothing has to be said: a pooler is noticed"),
    ("pool_mode", "it is a setting of the pooler"),
    ("pool_timeout", "DATABASE_TIMEOUT_MS is for it"),
    ("connection_limit", "DATABASE_CONNECTIONS is for it"),
    ("schema", "options=-csearch_path=... is for it"),
    ("service", "the URL has to say it all"),
    ("sslcrl", "revocation lists are not looked at"),
    ("sslnegotiation", "TLS is asked for after connecting, as ever"),
    ("sslpassword", "a key for client certificates has to be without a password: `openssl pkey` takes it off"),
    ("target_session_attrs", "one host is connected to: the primary"),
];
const SSL_MODES: &[&str] = &["disable", "allow", "prefer", "require", "verify-ca", "verify-full"];

/// The connect options of a URL, checked as far as possible without connecting.
///
/// # Errors
/// The URL is wrong. The message quotes no part that may be a secret.
pub(super) fn options(url: &str) -> anyhow::Result<PgConnectOptions> {
    ensure!(
        url.starts_with("postgres://") || url.starts_with("postgresql://"),
        "DATABASE_URL is no PostgreSQL URL: postgres://user:password@host/database"
    );
    let parsed = url_of("DATABASE_URL", url)?;
    ensure!(parsed.fragment().is_none(), "DATABASE_URL has a #: in a password it is percent-encoded, as %23");
    ensure!(
        !parsed.path().trim_start_matches('/').contains('/'),
        "DATABASE_URL has more than one / after its host: in a name or password it is percent-encoded, as %2F"
    );
    for (key, value) in parsed.query_pairs() {
        check(&key, &value)?;
    }
    for name in ["PGSSLCERT", "PGSSLKEY", "PGOPTIONS"] {
        let empty = std::env::var_os(name).is_some_and(|value| value.is_empty());
        ensure!(!empty, "{name} is set and empty: unset it, PostgreSQL's driver does not take that for the same");
    }
    // The checks above name the known faults. The parser's own error would quote the URL, so it is dropped.
    let options: Result<PgConnectOptions, _> = url.parse();
    let mut options = options.ok().context("DATABASE_URL can't be read")?;
    if std::env::var_os("PGSSLROOTCERT").is_some_and(|value| value.is_empty()) {
        let given = parsed.query_pairs().any(|(key, _)| is_root_certificate(&key));
        if !given {
            options = options.ssl_root_cert_from_pem(Vec::new());
        }
    }
    // A pooler refuses this startup parameter. The server's default is precise enough.
    options = options.extra_float_digits(None).application_name("firstcome");
    Ok(options.disable_statement_logging())
}

fn is_root_certificate(key: &str) -> bool {
    matches!(key, "sslrootcert" | "ssl-root-cert" | "ssl-ca")
}

fn check(key: &str, value: &str) -> anyhow::Result<()> {
    if let Some((name, instead)) = UNSUPPORTED.iter().find(|(name, _)| *name == key) {
        bail!("DATABASE_URL: the parameter {name} is not supported: {instead}. Leave it out");
    }
    // The message does not quote the key, which may be a part of a password.
    ensure!(
        PUBLIC_POSTGRES_PARAMETERS.contains(&key) || key == PASSWORD || key.starts_with("options["),
        "DATABASE_URL has a parameter that is not known (these are: {}, {PASSWORD}); a ? or & in a password is percent-encoded, as %3F or %26",
        PUBLIC_POSTGRES_PARAMETERS.join(", ")
    );
    match key {
        "sslmode" | "ssl-mode" => {
            ensure!(SSL_MODES.contains(&value), "DATABASE_URL: sslmode is one of {}", SSL_MODES.join(", "))
        }
        "port" => ensure!(value.parse::<u16>().is_ok(), "DATABASE_URL: port is no port"),
        "hostaddr" => ensure!(value.parse::<std::net::IpAddr>().is_ok(), "DATABASE_URL: hostaddr is no IP address"),
        "host" => ensure!(
            !value.contains(','),
            "DATABASE_URL: one host is connected to, the primary: give its own name, or that of what leads there"
        ),
        "statement-cache-capacity" => ensure!(
            value.parse::<u16>().is_ok_and(|capacity| capacity > 0),
            "DATABASE_URL: statement-cache-capacity is a number from 1 to 65535"
        ),
        "sslcert" | "ssl-cert" | "sslkey" | "ssl-key" => check_pem(key, value)?,
        _ if is_root_certificate(key) => check_pem(key, value)?,
        _ => {}
    }
    Ok(())
}

/// Checks the file of a certificate or a key. The message may quote the path, which is no secret.
fn check_pem(key: &str, path: &str) -> anyhow::Result<()> {
    ensure!(path != "system", "DATABASE_URL: the system's certificates are looked at anyway: leave {key}=system out");
    let text = fs::read_to_string(Path::new(path));
    let text = text.map_err(|error| anyhow::anyhow!("DATABASE_URL: {key} can't be read: {path}: {}", error.kind()))?;
    ensure!(text.contains("-----BEGIN "), "DATABASE_URL: {key} is no PEM file: {path}");
    ensure!(!text.contains("ENCRYPTED"), "DATABASE_URL: {key} has a password: `openssl pkey -in {path}` takes it off");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::options;

    #[test]
    fn database_url_refused_without_printing_its_secret() {
        for (url, word) in [
            ("mysql://user:hunter2@host/database", "no PostgreSQL URL"),
            ("postgres://user:hun/hunter2@host/database", "percent-encoded"),
            ("postgres://user:12/hunter2@host/database", "percent-encoded"),
            ("postgres://user:hunter2#3@host/database", "percent-encoded"),
            ("postgres://user:12?hunter2=1@host/database", "percent-encoded"),
            ("postgres://user:x@host:hunter2/database", "port"),
            ("postgres://host/database?hunter2=1", "percent-encoded"),
            ("postgres://host/database?sslpassword=hunter2", "sslpassword"),
            ("postgres://user:hunter2@host/database?channel_binding=require", "channel_binding"),
            ("postgres://host/database?sslmode=hunter2", "sslmode"),
            ("postgres://host/database?port=hunter2", "port"),
            ("postgres://host/database?hostaddr=hunter2", "hostaddr"),
            ("postgres://host/database?statement-cache-capacity=hunter2", "statement-cache-capacity"),
            ("postgres://host/database?statement-cache-capacity=0", "statement-cache-capacity"),
            ("postgres://host/database?sslrootcert=/nonexistent", "sslrootcert can't be read"),
            ("postgres://host/database?sslrootcert=/etc/hostname", "no PEM file"),
            ("postgres:///database?host=one,two", "one host"),
        ] {
            let reason = format!("{:#}", options(url).unwrap_err());
            assert!(reason.contains(word) && reason.contains("DATABASE_URL"), "{url}: {reason}");
            assert!(!reason.contains("hunter2"), "{url}: {reason}");
        }
    }

    #[test]
    fn database_url_accepted_in_every_spelling() {
        for url in [
            "postgres://user:hunter%2F2@host:5432/database?sslmode=verify-full",
            "postgresql://host/database?user=a&password=b&dbname=c",
            "postgres://firstcome@localhost:5432/a?host=%2Frun%2Fpostgresql&sslmode=disable",
            "postgres://host/database?options=-csearch_path%3Dshop&options[work_mem]=8MB",
        ] {
            options(url).unwrap();
        }
    }
}
