//! `firstcome health`: what a container's health check runs. Images without a shell have no curl either.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context;
use clap::Args;

use super::{print, status};

/// How long an answer may take: health checks come every few seconds.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Args)]
pub(super) struct HealthArgs {
    /// What to ask [default: /readyz of the service that is bound to BIND_ADDR]
    #[arg(long)]
    url: Option<String>,
    /// The address that it serves on
    #[arg(long, env = "BIND_ADDR", default_value = "127.0.0.1:8080")]
    bind_addr: SocketAddr,
}

pub(super) async fn run(options: HealthArgs) -> anyhow::Result<ExitCode> {
    let url = options.url.unwrap_or_else(|| readiness_url(options.bind_addr));
    let (ready, answer) = probe(&url).await?;
    print(&answer)?;
    Ok(status(ready))
}

/// The readiness endpoint, as this machine reaches it, of a service that is bound to `address`.
fn readiness_url(address: SocketAddr) -> String {
    let host = match address.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        host => host,
    };
    format!("http://{}/readyz", SocketAddr::new(host, address.port()))
}

/// Requests `url`; returns whether the status is a success, and the body.
///
/// # Errors
/// There is no answer.
async fn probe(url: &str) -> anyhow::Result<(bool, String)> {
    let client = reqwest::Client::builder().no_proxy().timeout(PROBE_TIMEOUT).build()?;
    // Errors do not quote it as given: it may contain a password.
    let url = reqwest::Url::parse(url).ok().context("what to ask is no URL")?;
    let silent = || format!("{}://{}{} does not answer", url.scheme(), url.host_str().unwrap_or_default(), url.path());
    let response = client.get(url.clone()).send().await.map_err(reqwest::Error::without_url).with_context(silent)?;
    let good = response.status().is_success();
    Ok((good, response.text().await.map_err(reqwest::Error::without_url).with_context(silent)?))
}

#[cfg(test)]
mod tests {
    use super::readiness_url;

    #[test]
    fn probe_uses_loopback_when_bound_to_all_addresses() {
        for (address, url) in [
            ("0.0.0.0:8080", "http://127.0.0.1:8080/readyz"),
            ("[::]:80", "http://[::1]:80/readyz"),
            ("10.1.2.3:9", "http://10.1.2.3:9/readyz"),
        ] {
            assert_eq!(readiness_url(address.parse().unwrap()), url);
        }
    }
}
