//! The address of a client, and the addresses that count as one client.
//!
//! Any client can send an X-Forwarded-For. Each proxy appends the address of its peer, so the right end of the list comes from our
//! own proxies. The list is read from the right, as far as trusted proxies wrote it; the first address that is not a trusted proxy is
//! the client. The client may have invented the addresses to the left of it.

use std::net::{IpAddr, SocketAddr};

use axum::http::HeaderMap;

use crate::{config::TrustedProxies, http::headers::X_FORWARDED_FOR};

/// The client of a request from `peer`, in its canonical form.
pub fn client(peer: IpAddr, headers: &HeaderMap, proxies: &TrustedProxies) -> IpAddr {
    let mut client = peer.to_canonical();
    if !proxies.contains(client) {
        return client;
    }
    // Several lines are one list, in their order.
    let lines = headers.get_all(X_FORWARDED_FOR).iter().rev();
    for hop in lines.flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b',')) {
        // A proxy that writes no address may have got the rest wrong too.
        let Some(hop) = address(hop) else { break };
        client = hop;
        if !proxies.contains(client) {
            break;
        }
    }
    client
}

/// An address, with or without a port.
fn address(hop: &[u8]) -> Option<IpAddr> {
    let hop = std::str::from_utf8(hop).ok()?.trim();
    let bracketed = || hop.strip_prefix('[')?.strip_suffix(']')?.parse::<IpAddr>().ok().filter(IpAddr::is_ipv6);
    let with_port = || hop.parse::<SocketAddr>().ok().map(|address| address.ip());
    let address = hop.parse::<IpAddr>().ok().or_else(with_port).or_else(bracketed)?;
    Some(address.to_canonical())
}

/// The key of a client: an IPv4 address, or the /64 of an IPv6 address, which is the least that a subscriber gets.
///
/// The two do not collide: an IPv4 address is a number below 2³², and no IPv6 client comes from `::/32`.
pub fn key(client: IpAddr) -> u64 {
    match client.to_canonical() {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => (address.to_bits() >> 64) as u64,
    }
}

/// Whether an address belongs to a host or a site, as that of a proxy does, and not to a client on the internet.
pub fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let shared = address.octets()[0] == 100 && address.octets()[1] & 0b1100_0000 == 64;
            shared || address.is_loopback() || address.is_private() || address.is_link_local()
        }
        IpAddr::V6(address) => address.is_loopback() || address.is_unique_local() || address.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    const PROXIES: &str = "10.0.0.0/8, fd00::/8";

    fn from(peer: &str, lines: &[&[u8]]) -> String {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(X_FORWARDED_FOR, HeaderValue::from_bytes(line).unwrap());
        }
        client(peer.parse().unwrap(), &headers, &PROXIES.parse().unwrap()).to_string()
    }

    #[test]
    fn forwarded_header_ignored_without_trusted_proxy() {
        for forged in [&b"198.51.100.7"[..], b"10.0.0.1", b"127.0.0.1, 10.0.0.1"] {
            assert_eq!(from("203.0.113.1", &[forged]), "203.0.113.1");
            assert_eq!(from("2001:db8::1", &[forged]), "2001:db8::1");
        }
    }

    #[test]
    fn client_address_taken_from_trusted_proxy_only() {
        assert_eq!(from("10.0.0.1", &[b"198.51.100.7"]), "198.51.100.7");
        assert_eq!(from("10.0.0.1", &[b"1.1.1.1, 198.51.100.7"]), "198.51.100.7");
        assert_eq!(from("10.0.0.1", &[b"10.0.0.66, 198.51.100.7"]), "198.51.100.7", "not what looks like a proxy");
        assert_eq!(from("10.0.0.1", &[b"1.1.1.1, 198.51.100.7, 10.2.0.1 ,10.3.0.1"]), "198.51.100.7");
        assert_eq!(from("fd00::1", &[b"198.51.100.7, fd00::2"]), "198.51.100.7");
        assert_eq!(from("::ffff:10.0.0.1", &[b"::ffff:198.51.100.7"]), "198.51.100.7");
    }

    #[test]
    fn forwarded_header_lines_joined() {
        assert_eq!(from("10.0.0.1", &[b"1.1.1.1", b"198.51.100.7", b"10.2.0.1"]), "198.51.100.7");
        assert_eq!(from("10.0.0.1", &[b"1.1.1.1, 2.2.2.2", b"10.3.0.1, 10.2.0.1"]), "2.2.2.2");
    }

    #[test]
    fn client_address_is_proxy_when_header_names_none() {
        assert_eq!(from("10.0.0.1", &[]), "10.0.0.1");
        assert_eq!(from("10.0.0.1", &[b"10.9.0.1, 10.2.0.1"]), "10.9.0.1");
    }

    #[test]
    fn forwarded_list_ends_at_unreadable_entry() {
        for hostile in [
            &b"1.1.1.1, unknown"[..],
            b"1.1.1.1, _hidden",
            b"1.1.1.1,",
            b"1.1.1.1,,",
            b"1.1.1.1, 999.1.1.1",
            b"1.1.1.1, 1.2.3",
            b"1.1.1.1, 0x7f000001",
            b"1.1.1.1, \xff\xfe",
            b"1.1.1.1, 2.2.2.2 3.3.3.3",
            b"1.1.1.1, [2001:db8::1",
            b"1.1.1.1, [2.2.2.2]",
            b"1.1.1.1, 2.2.2.2:99999",
            b"1.1.1.1, \"2.2.2.2\"",
            b"1.1.1.1; 2.2.2.2",
            b"",
            b" ",
        ] {
            assert_eq!(from("10.0.0.1", &[hostile]), "10.0.0.1", "{}", String::from_utf8_lossy(hostile));
            let behind = [hostile, b"10.7.0.1"].map(<[u8]>::to_vec);
            assert_eq!(from("10.0.0.1", &[&behind[0], &behind[1]]), "10.7.0.1");
        }
        let long = [b"1.1.1.1,".repeat(2_000), b"198.51.100.7".to_vec()].concat();
        assert_eq!(from("10.0.0.1", &[&long]), "198.51.100.7");
    }

    #[test]
    fn forwarded_address_read_without_port_and_brackets() {
        for hop in ["2001:db8::7", "[2001:db8::7]", "[2001:db8::7]:443", "2001:DB8:0::7"] {
            assert_eq!(from("10.0.0.1", &[hop.as_bytes()]), "2001:db8::7", "{hop}");
        }
        assert_eq!(from("10.0.0.1", &[b"198.51.100.7:50000"]), "198.51.100.7");
    }

    #[test]
    fn client_identified_by_ipv4_address_or_ipv6_prefix() {
        let key = |address: &str| key(address.parse().unwrap());
        assert_eq!(key("2001:db8:0:1::1"), key("2001:db8:0:1:ffff::2"));
        assert_ne!(key("2001:db8:0:1::1"), key("2001:db8:0:2::1"));
        assert_eq!(key("192.0.2.1"), key("::ffff:192.0.2.1"));
        assert_ne!(key("192.0.2.1"), key("192.0.2.2"));
        assert_ne!(key("192.0.2.1"), key("2001:db8::192.0.2.1"));
    }

    #[test]
    fn private_address_recognized() {
        for private in [
            "127.0.0.1",
            "10.1.1.1",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.1.1",
            "100.64.0.1",
            "::1",
            "fd00::1",
            "fe80::1",
        ] {
            assert!(is_private(private.parse().unwrap()), "{private}");
        }
        for public in ["198.51.100.7", "100.128.0.1", "172.32.0.1", "2001:db8::1", "8.8.8.8"] {
            assert!(!is_private(public.parse().unwrap()), "{public}");
        }
    }
}
