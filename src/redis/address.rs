//! The configured address of Redis: a server or nodes of a cluster (`redis://`, `rediss://`, `redis+unix://`), or Sentinels that
//! name the server (`redis+sentinel://`, `rediss+sentinel://`); and the certificates for TLS.

use std::path::Path;

use anyhow::{Context, bail, ensure};
use redis::{
    Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, TlsCertificates, io::tcp::TcpSettings,
};

use super::sentinels::Sentinels;
use crate::config::{RedisConfig, url_of};

/// The default port of a Sentinel.
const SENTINEL_PORT: u16 = 26379;
/// The form of a URL with several nodes of a cluster, for messages.
const CLUSTER_FORM: &str = "redis://[user:password@]host:port,host:port...";
/// The form of a URL with Sentinels, for messages.
const SENTINEL_FORM: &str = "redis+sentinel://[user:password@]host:port[,host:port...]/master[/database]";

/// The address and the credentials.
pub(super) struct Address {
    /// Its address is that of the first server or Sentinel.
    pub info: ConnectionInfo,
    /// The servers: several if they are nodes of a cluster, none with Sentinels.
    pub seeds: Vec<ConnectionAddr>,
    pub sentinels: Option<Sentinels>,
}

impl Address {
    /// # Errors
    /// A setting is invalid. The error quotes no secret.
    pub(super) fn read(config: &RedisConfig) -> anyhow::Result<Address> {
        let certificates = certificates(config)?;
        let url = config.redis_url.expose().trim();
        let (scheme, rest) = url.split_once("://").context("REDIS_URL is not a Redis URL")?;
        let sentinel = match scheme {
            "redis+sentinel" => Some("redis"),
            "rediss+sentinel" => Some("rediss"),
            _ => None,
        };
        let Some(scheme) = sentinel else {
            let urls = single_urls(scheme, rest)?;
            let infos = urls.iter().map(|url| connection_info(url, certificates.as_ref()));
            let infos: Vec<ConnectionInfo> = infos.collect::<anyhow::Result<_>>()?;
            let seeds = infos.iter().map(|info| info.addr().clone()).collect();
            let info = infos.into_iter().next().context("REDIS_URL names no server")?;
            return Ok(Address { info, seeds, sentinels: None });
        };
        let SentinelUrl { hosts, server, sentinel, master } = SentinelUrl::read(scheme, rest)?;
        let credentials = connection_info(&sentinel, None)?.redis_settings().clone();
        let mut clients = Vec::new();
        for host in hosts {
            let info = connection_info(&host, certificates.as_ref())?.set_redis_settings(credentials.clone());
            clients.push(Client::open(info).context("REDIS_URL names no Sentinels that can be asked")?);
        }
        let info = connection_info(&server, certificates.as_ref())?;
        Ok(Address { info, seeds: Vec::new(), sentinels: Some(Sentinels::new(clients, master)) })
    }

    /// An address of the same kind, with or without TLS.
    pub(super) fn like(address: &ConnectionAddr, host: String, port: u16) -> ConnectionAddr {
        match address {
            ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
                ConnectionAddr::TcpTls { host, port, insecure: *insecure, tls_params: tls_params.clone() }
            }
            _ => ConnectionAddr::Tcp(host, port),
        }
    }
}

/// The URLs of the single servers in a URL whose part after `://` is `rest`.
fn single_urls(scheme: &str, rest: &str) -> anyhow::Result<Vec<String>> {
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let (user, hosts) = authority.split_at(authority.rfind('@').map_or(0, |at| at + 1));
    if !hosts.contains(',') {
        return Ok(vec![format!("{scheme}://{rest}")]);
    }
    let hosts: Vec<&str> = hosts.split(',').map(str::trim).collect();
    ensure!(
        matches!(scheme, "redis" | "rediss") && hosts.iter().all(|host| !host.is_empty() && !host.starts_with(':')),
        "REDIS_URL has a list of servers that can't be read: it is {CLUSTER_FORM}"
    );
    Ok(hosts.iter().map(|host| format!("{scheme}://{user}{host}{path}")).collect())
}

/// A URL with Sentinels, split into URLs of single servers.
struct SentinelUrl {
    /// The URLs of the Sentinels.
    hosts: Vec<String>,
    /// A URL with the credentials for the master; its host is the first Sentinel.
    server: String,
    /// A URL with the credentials for the Sentinels; its host is the first Sentinel.
    sentinel: String,
    /// The name of the master.
    master: String,
}

impl SentinelUrl {
    /// `rest` is the part of the URL after `://`.
    fn read(scheme: &str, rest: &str) -> anyhow::Result<SentinelUrl> {
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (user, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (master, database) = path.split_once('/').unwrap_or((path, ""));
        let named = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        ensure!(
            !master.is_empty() && master.chars().all(named),
            "REDIS_URL names no master: it is {SENTINEL_FORM}, with the name that the Sentinels have for it"
        );
        let hosts: Vec<String> = hosts.split(',').map(|host| with_port(host.trim())).collect();
        let Some(first) = hosts.first().filter(|host| !host.starts_with(':')) else {
            bail!("REDIS_URL names no Sentinel: it is {SENTINEL_FORM}");
        };
        let (mut sentinel_user, mut sentinel_password, mut protocol) = ("", "", "resp2");
        for (name, value) in query.split('&').filter(|part| !part.is_empty()).filter_map(|part| part.split_once('=')) {
            match name {
                "sentinel_user" => sentinel_user = value,
                "sentinel_password" => sentinel_password = value,
                "protocol" => protocol = value,
                _ => bail!(
                    "REDIS_URL has an unknown parameter {name}: with Sentinels there are sentinel_user, sentinel_password \
                     and protocol"
                ),
            }
        }
        let user = if user.is_empty() { String::new() } else { format!("{user}@") };
        let server = format!("{scheme}://{user}{first}/{database}?protocol={protocol}");
        let sentinel = match (sentinel_user, sentinel_password) {
            ("", "") => format!("{scheme}://{first}"),
            (user, password) => format!("{scheme}://{user}:{password}@{first}"),
        };
        let hosts = hosts.iter().map(|host| format!("{scheme}://{host}")).collect();
        Ok(SentinelUrl { hosts, server, sentinel, master: master.to_owned() })
    }
}

fn with_port(host: &str) -> String {
    let port = host.rsplit_once(':').map(|(_, port)| port).filter(|port| !port.contains(']'));
    if port.is_some() { host.to_owned() } else { format!("{host}:{SENTINEL_PORT}") }
}

fn connection_info(url: &str, certificates: Option<&TlsCertificates>) -> anyhow::Result<ConnectionInfo> {
    url_of("REDIS_URL", url).context("REDIS_URL is not a Redis URL")?;
    let info = url.into_connection_info().context("REDIS_URL is not a Redis URL")?;
    // Off by default in redis 1.x. It is worth 40 % and more of the throughput on a real network.
    let info = info.set_tcp_settings(TcpSettings::default().set_nodelay(true));
    // `CLIENT SETINFO` would need one more permission, which servers before 7.2 can't even grant.
    let settings = info.redis_settings().clone().set_skip_set_lib_name();
    let info = info.set_redis_settings(settings);
    let Some(certificates) = certificates else { return Ok(info) };
    ensure!(
        matches!(info.addr(), ConnectionAddr::TcpTls { .. }),
        "REDIS_TLS_CA, REDIS_TLS_CERT and REDIS_TLS_KEY are for rediss:// addresses, and REDIS_URL is none"
    );
    let client = redis::Client::build_with_tls(info, certificates.clone());
    Ok(client.context("the certificates for Redis can't be used")?.get_connection_info().clone())
}

/// Reads the configured certificates; `None` if there are none.
fn certificates(config: &RedisConfig) -> anyhow::Result<Option<TlsCertificates>> {
    let RedisConfig { redis_tls_ca: authority, redis_tls_cert: certificate, redis_tls_key: key, .. } = config;
    let client_tls = match (certificate, key) {
        (None, None) => None,
        (Some(certificate), Some(key)) => Some(ClientTlsConfig {
            client_cert: pem("REDIS_TLS_CERT", certificate, "CERTIFICATE")?,
            client_key: pem("REDIS_TLS_KEY", key, "PRIVATE KEY")?,
        }),
        _ => bail!("REDIS_TLS_CERT and REDIS_TLS_KEY belong together: set both, or none of them"),
    };
    let root_cert = authority.as_deref().map(|file| pem("REDIS_TLS_CA", file, "CERTIFICATE")).transpose()?;
    Ok((client_tls.is_some() || root_cert.is_some()).then_some(TlsCertificates { client_tls, root_cert }))
}

/// Reads a PEM file that has at least one section whose label contains `label`.
fn pem(setting: &str, file: &Path, label: &str) -> anyhow::Result<Vec<u8>> {
    let text = std::fs::read(file).with_context(|| format!("{setting}: {} can't be read", file.display()))?;
    let has = String::from_utf8_lossy(&text).lines().any(|line| line.starts_with("-----BEGIN") && line.contains(label));
    ensure!(has, "{setting}: {} has no {label} in PEM", file.display());
    Ok(text)
}

#[cfg(test)]
mod tests {
    use redis::ProtocolVersion;

    use super::*;

    fn read(url: &str) -> anyhow::Result<Address> {
        Address::read(&RedisConfig::at(url))
    }

    #[test]
    fn sentinel_url_read_as_hosts_master_and_credentials() {
        let url = "redis+sentinel://app:p%40ss@one:26380,two,[::1]:7/my-master/3?sentinel_user=s&sentinel_password=t%2F&protocol=resp3";
        let found = SentinelUrl::read("redis", url.split_once("://").unwrap().1).unwrap();
        assert_eq!(found.hosts, ["redis://one:26380", "redis://two:26379", "redis://[::1]:7"]);
        assert_eq!((found.master.as_str(), found.sentinel.as_str()), ("my-master", "redis://s:t%2F@one:26380"));
        let address = read(url).unwrap();
        assert!(address.sentinels.is_some());
        let settings = address.info.redis_settings();
        assert_eq!((settings.username(), settings.password(), settings.db()), (Some("app"), Some("p@ss"), 3));
        assert_eq!(settings.protocol(), ProtocolVersion::RESP3);
        assert!(read("rediss+sentinel://one/mymaster").unwrap().sentinels.is_some());
    }

    #[test]
    fn cluster_url_read_as_several_servers_with_the_same_credentials() {
        let address = read("redis://app:p%2C%40ss@one:7001,two,[::1]:7/0?protocol=resp3").unwrap();
        let seeds: Vec<String> = address.seeds.iter().map(ToString::to_string).collect();
        assert_eq!(seeds, ["one:7001", "two:6379", "::1:7"]);
        let settings = address.info.redis_settings();
        assert_eq!((settings.username(), settings.password()), (Some("app"), Some("p,@ss")));
        assert_eq!(settings.protocol(), ProtocolVersion::RESP3);
        assert_eq!(read("rediss://one,two").unwrap().seeds.len(), 2);
        assert_eq!(read("redis+unix:///run/a,b.sock").unwrap().seeds.len(), 1);
    }

    #[test]
    fn address_refused_without_printing_its_secrets() {
        let refused = [
            ("redis+sentinel://app:hunter2@one", "names no master"),
            ("redis+sentinel://app:hunter2@one/", "names no master"),
            ("redis+sentinel://app:hunter2@/mymaster", "names no Sentinel"),
            ("redis+sentinel://app:hunter2@one/my/master", "not a Redis URL"),
            ("redis+sentinel://one/m?sentinel_pass=hunter2", "unknown parameter sentinel_pass"),
            ("redis://app:hunter2@host:99999/", "not a Redis URL"),
            ("redis://app:hunter2@one,", "list of servers that can't be read"),
            ("redis://app:hunter2@one,:7001", "list of servers that can't be read"),
            ("redis://app:hunter2@one,two:99999", "not a Redis URL"),
            ("redis://app:hunter2/@host", "not a Redis URL"),
            ("postgres://app:hunter2@host", "not a Redis URL"),
            ("hunter2", "not a Redis URL"),
        ];
        for (url, why) in refused {
            let error = format!("{:#}", read(url).err().unwrap());
            assert!(error.contains(why) && !error.contains("hunter2"), "{url}: {error}");
        }
    }

    #[test]
    fn certificates_refused_when_unusable() {
        let file = |name: &str| Some(Path::new(env!("CARGO_MANIFEST_DIR")).join(name));
        let of = |url: &str, ca: &str, cert: &str, key: &str| {
            let mut config = RedisConfig::at(url);
            let set = |name: &str| if name.is_empty() { None } else { file(name) };
            (config.redis_tls_ca, config.redis_tls_cert, config.redis_tls_key) = (set(ca), set(cert), set(key));
            format!("{:#}", Address::read(&config).err().unwrap())
        };
        let tls = "rediss://host";
        assert!(of(tls, "no-such-file", "", "").contains("REDIS_TLS_CA"));
        assert!(of(tls, "Cargo.toml", "", "").contains("has no CERTIFICATE in PEM"));
        assert!(of(tls, "", "Cargo.toml", "").contains("belong together"));
        assert!(of(tls, "", "Cargo.toml", "Cargo.toml").contains("REDIS_TLS_CERT"));
    }
}
