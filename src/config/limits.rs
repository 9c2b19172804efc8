//! Limits on clients, users, requests and connections, and the proxies that may name a client.

use std::{net::IpAddr, str::FromStr, sync::Arc, time::Duration};

use clap::Args;
use ipnet::{IpNet, Ipv4Net};

use super::items;

/// The default of `RATE_LIMIT_GUESSES_PER_MINUTE`.
pub const GUESSES_PER_MINUTE: u32 = 30;

/// Limits on clients, users and connections. 0 turns a limit off.
#[derive(Args, Clone, Debug)]
pub struct LimitsConfig {
    /// The proxies in front of this service, as addresses or CIDR blocks, separated by commas; X-Forwarded-For counts from
    /// these only
    #[arg(long, env = "TRUSTED_PROXIES", default_value = "", hide_default_value = true)]
    pub trusted_proxies: TrustedProxies,
    /// Requests to the public API per second and client (an IPv4 address, an IPv6 /64); beyond it 429. 0: no limit
    #[arg(long, env = "RATE_LIMIT_CLIENT_PER_SECOND", default_value_t = 200, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub rate_limit_client_per_second: u32,
    /// Requests that a client may send at once after a pause
    #[arg(long, env = "RATE_LIMIT_CLIENT_BURST", default_value_t = 400, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub rate_limit_client_burst: u32,
    /// Requests per second that name the same user; beyond it 429. 0: no limit
    #[arg(long, env = "RATE_LIMIT_USER_PER_SECOND", default_value_t = 20, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub rate_limit_user_per_second: u32,
    /// Requests that may name the same user at once after a pause
    #[arg(long, env = "RATE_LIMIT_USER_BURST", default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub rate_limit_user_burst: u32,
    /// Wrong tokens of operators and of /metrics per minute and client, also the burst; beyond it 429 before a token is
    /// checked. 0: no limit
    #[arg(long, env = "RATE_LIMIT_GUESSES_PER_MINUTE", default_value_t = GUESSES_PER_MINUTE, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub rate_limit_guesses_per_minute: u32,
    /// Clients, and users, with a limit of their own at a time (about 60 bytes each); further ones share one limit
    #[arg(long, env = "RATE_LIMIT_KEYS", default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1..=100_000_000))]
    pub rate_limit_keys: u32,
    /// Requests of the public API under way at once; beyond it 503. 0: no limit
    #[arg(long, env = "MAX_IN_FLIGHT", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(0..=10_000_000))]
    pub max_in_flight: u32,
    /// Connections of one client (trusted proxies: any number); more are closed at once. 0: no limit
    #[arg(long, env = "MAX_CONNECTIONS_PER_CLIENT", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(0..=10_000_000))]
    pub max_connections_per_client: u32,
    /// Milliseconds for the body of a request to arrive, then 408; less than REQUEST_TIMEOUT_MS, which ends any request
    #[arg(long, env = "BODY_TIMEOUT_MS", default_value_t = 5_000, value_parser = clap::value_parser!(u64).range(1..=3_600_000))]
    pub body_timeout_ms: u64,
    /// Milliseconds that a write to a client may make no progress before its connection is closed
    #[arg(long, env = "WRITE_TIMEOUT_MS", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=3_600_000))]
    pub write_timeout_ms: u64,
}

impl LimitsConfig {
    /// No limits and long timeouts: for load generators, which are one client.
    pub fn off() -> Self {
        LimitsConfig {
            trusted_proxies: TrustedProxies::default(),
            rate_limit_client_per_second: 0,
            rate_limit_client_burst: 1,
            rate_limit_user_per_second: 0,
            rate_limit_user_burst: 1,
            rate_limit_guesses_per_minute: 0,
            rate_limit_keys: 1,
            max_in_flight: 0,
            max_connections_per_client: 0,
            body_timeout_ms: 3_600_000,
            write_timeout_ms: 3_600_000,
        }
    }

    pub fn body_timeout(&self) -> Duration {
        Duration::from_millis(self.body_timeout_ms)
    }

    pub fn write_timeout(&self) -> Duration {
        Duration::from_millis(self.write_timeout_ms)
    }
}

/// An address or a CIDR block. An IPv4-mapped block becomes an IPv4 block, because addresses are compared in their canonical form.
fn block(text: &str) -> Result<IpNet, String> {
    let wrong = || format!("`{text}` is neither an address nor a CIDR block such as 10.0.0.0/8");
    let block = match text.parse() {
        Ok(block) => block,
        Err(_) => IpNet::from(text.parse::<IpAddr>().map_err(|_| wrong())?),
    };
    match (block.addr().to_canonical(), block.prefix_len().checked_sub(96)) {
        (IpAddr::V4(first), Some(prefix)) if block.addr().is_ipv6() => {
            Ipv4Net::new(first, prefix).map(IpNet::from).map_err(|_| wrong())
        }
        _ => Ok(block),
    }
}

/// The proxies whose `X-Forwarded-For` names the client.
#[derive(Clone, Debug, Default)]
pub struct TrustedProxies(Arc<[IpNet]>);

impl TrustedProxies {
    /// Whether `address`, in its canonical form, is a trusted proxy.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.iter().any(|block| block.contains(&address))
    }
}

impl FromStr for TrustedProxies {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        items(text).map(block).collect::<Result<_, _>>().map(TrustedProxies)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trusts(proxies: &str, address: &str) -> bool {
        proxies.parse::<TrustedProxies>().unwrap().contains(address.parse::<IpAddr>().unwrap().to_canonical())
    }

    #[test]
    fn trusted_proxies_read_as_addresses_and_blocks() {
        assert!(trusts("10.0.0.0/8, 192.0.2.1", "10.255.0.1"));
        assert!(trusts("10.0.0.0/8, 192.0.2.1", "192.0.2.1"));
        assert!(trusts("10.9.9.9/8", "10.1.1.1"), "host bits do not matter");
        assert!(!trusts("10.0.0.0/8, 192.0.2.1", "192.0.2.2"));
        assert!(!trusts("10.0.0.0/8", "11.0.0.0"));
        assert!(trusts("0.0.0.0/0", "203.0.113.1"));
        assert!(!trusts("0.0.0.0/0", "2001:db8::1"));
        assert!(trusts("::/0", "2001:db8::1"));
        assert!(!trusts("::/0", "203.0.113.1"));
        assert!(trusts("fd00::/8", "fdff::1"));
        assert!(!trusts("fd00::/8", "fe00::1"));
        assert!(trusts("2001:db8::1", "2001:db8::1"));
        assert!(!trusts("2001:db8::1", "2001:db8::2"));
        assert!(!trusts("", "127.0.0.1"));
    }

    #[test]
    fn ipv4_mapped_address_matches_ipv4_block() {
        assert!(trusts("10.0.0.0/8", "::ffff:10.1.2.3"));
        assert!(trusts("::ffff:10.0.0.0/104", "10.1.2.3"));
        assert!(!trusts("::ffff:10.0.0.0/104", "11.1.2.3"));
        assert!(trusts("::ffff:192.0.2.1", "192.0.2.1"));
    }

    #[test]
    fn trusted_proxies_refused_when_not_a_block() {
        for wrong in ["10.0.0.0/33", "::/129", "10.0.0.0/", "10.0.0.0/-1", "10.0.0/8", "proxy", "10.0.0.0/8/8", "*"] {
            assert!(wrong.parse::<TrustedProxies>().unwrap_err().contains(wrong), "{wrong}");
        }
    }
}
