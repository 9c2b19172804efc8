//! What a container's health check runs: images without a shell have no curl either.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::Context;

/// How long an answer may take: health checks come every few seconds.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where a service that is bound to `address` says, to this machine, whether it is ready.
pub fn readiness_of(address: SocketAddr) -> String {
    let host = match address.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        host => host,
    };
    format!("http://{}/readyz", SocketAddr::new(host, address.port()))
}

/// Asks `url`: whether the answer is a good one, and what it says.
///
/// # Errors
/// There is no answer.
pub async fn ask(url: &str) -> anyhow::Result<(bool, String)> {
    let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build()?;
    // Not as it was given: there may be a password in it.
    let url = reqwest::Url::parse(url).ok().context("what to ask is no URL")?;
    let silent = || format!("{}://{}{} does not answer", url.scheme(), url.host_str().unwrap_or_default(), url.path());
    let response = client.get(url.clone()).send().await.map_err(reqwest::Error::without_url).with_context(silent)?;
    let good = response.status().is_success();
    Ok((good, response.text().await.map_err(reqwest::Error::without_url).with_context(silent)?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::readiness_of;

    #[test]
    fn probe_uses_loopback_when_bound_to_all_addresses() {
        for (address, url) in [
            ("0.0.0.0:8080", "http://127.0.0.1:8080/readyz"),
            ("[::]:80", "http://[::1]:80/readyz"),
            ("10.1.2.3:9", "http://10.1.2.3:9/readyz"),
        ] {
            assert_eq!(readiness_of(address.parse().unwrap()), url);
        }
    }
}
