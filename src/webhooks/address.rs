//! The addresses that receivers may have. A name is checked when it is resolved for a connection, so that a name that leads to another
//! address later (DNS rebinding) does not get around the check.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::{Ipv4Net, Ipv6Net};
use reqwest::{
    Url,
    dns::{Addrs, Name, Resolve, Resolving},
};

/// The longest URL of a receiver.
pub const MAX_URL_LEN: usize = 2048;

/// Networks that are not the public internet, those that embed other addresses included.
const REFUSED_V4: [(Ipv4Addr, u8); 14] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 0, 2, 0), 24),
    (Ipv4Addr::new(192, 88, 99, 0), 24),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(198, 51, 100, 0), 24),
    (Ipv4Addr::new(203, 0, 113, 0), 24),
    // Multicast, reserved and broadcast.
    (Ipv4Addr::new(224, 0, 0, 0), 3),
];
/// The public addresses of IPv6 are in here.
const GLOBAL_V6: (Ipv6Addr, u8) = (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);
/// Parts of them that are not: special purposes with Teredo, documentation (twice), 6to4.
const REFUSED_V6: [(Ipv6Addr, u8); 4] = [
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23),
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32),
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16),
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20),
];

/// An address that is refused.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("a private, loopback, link-local or reserved address")]
pub struct AddressRefused;

/// Whether an address is one of the public internet.
fn is_public(address: IpAddr) -> bool {
    let in_v4 = |address: Ipv4Addr| {
        let refused = |(network, bits): &(Ipv4Addr, u8)| {
            Ipv4Net::new(*network, *bits).is_ok_and(|network| network.contains(&address))
        };
        REFUSED_V4.iter().any(refused)
    };
    let in_v6 = |(network, bits): &(Ipv6Addr, u8), address: Ipv6Addr| {
        Ipv6Net::new(*network, *bits).is_ok_and(|network| network.contains(&address))
    };
    match address.to_canonical() {
        IpAddr::V4(address) => !in_v4(address),
        IpAddr::V6(address) => in_v6(&GLOBAL_V6, address) && !REFUSED_V6.iter().any(|network| in_v6(network, address)),
    }
}

/// The addresses that a process may connect to.
#[derive(Clone, Copy, Debug)]
pub struct AddressPolicy {
    /// Private addresses, and plain HTTP.
    pub allow_private: bool,
}

impl AddressPolicy {
    /// The URL of a receiver; `None` if it can't be one. Its name is not resolved.
    pub fn url(self, text: &str) -> Option<Url> {
        let url = Url::parse(text).ok().filter(|_| text.len() <= MAX_URL_LEN)?;
        let has_scheme = url.scheme() == "https" || url.scheme() == "http" && self.allow_private;
        let is_plain = url.username().is_empty() && url.password().is_none() && url.fragment().is_none();
        let may_connect = self.literal(&url).ok()?.is_none_or(|address| self.admits(address));
        (has_scheme && is_plain && may_connect).then_some(url)
    }

    /// Whether a connection to this URL may be tried: a client does not resolve an address.
    ///
    /// # Errors
    /// The URL has an address that is refused.
    pub fn check(self, url: &Url) -> Result<(), AddressRefused> {
        match self.literal(url)? {
            Some(address) if !self.admits(address) => Err(AddressRefused),
            _ => Ok(()),
        }
    }

    /// The address in place of a name.
    fn literal(self, url: &Url) -> Result<Option<IpAddr>, AddressRefused> {
        let host = url.host_str().filter(|host| !host.is_empty()).ok_or(AddressRefused)?;
        Ok(host.trim_matches(['[', ']']).parse().ok())
    }

    fn admits(self, address: IpAddr) -> bool {
        self.allow_private || is_public(address)
    }
}

impl Resolve for AddressPolicy {
    fn resolve(&self, name: Name) -> Resolving {
        let policy = *self;
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let admitted: Vec<SocketAddr> = found.filter(|address| policy.admits(address.ip())).collect();
            if admitted.is_empty() {
                return Err(AddressRefused.into());
            }
            let addresses: Addrs = Box::new(admitted.into_iter());
            Ok(addresses)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_public_addresses_admitted() {
        for refused in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "127.0.0.1",
            "127.8.8.8",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.1",
            "192.168.1.1",
            "198.19.0.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::127.0.0.1",
            "64:ff9b::a00:1",
            "2001::1",
            "2001:db8::1",
            "2002:a00:1::",
            "fc00::1",
            "fd12::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(!is_public(refused.parse().unwrap()), "{refused}");
        }
        for public in
            ["1.1.1.1", "8.8.8.8", "100.128.0.1", "172.32.0.1", "223.255.255.255", "2606:4700::1111", "::ffff:8.8.8.8"]
        {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
    }

    #[test]
    fn urls_of_receivers_checked() {
        let (strict, open) = (AddressPolicy { allow_private: false }, AddressPolicy { allow_private: true });
        for url in ["https://shop.example.com/hooks?token=1", "https://8.8.8.8:8443/", "https://[2606:4700::1111]/"] {
            assert!(strict.url(url).is_some(), "{url}");
        }
        for refused in [
            "",
            "x",
            "//shop.example.com",
            "http://shop.example.com/",
            "ftp://shop.example.com/",
            "file:///etc/passwd",
            "https://127.0.0.1/",
            "https://2130706433/",
            "https://0x7f.1/",
            "https://127.1/",
            "https://[::1]/",
            "https://[::ffff:10.0.0.1]/",
            "https://user@shop.example.com/",
            "https://user:password@shop.example.com/",
            "https://shop.example.com/#part",
            "https:///",
            &format!("https://shop.example.com/{}", "x".repeat(MAX_URL_LEN)),
        ] {
            assert!(strict.url(refused).is_none(), "{refused}");
        }
        assert!(open.url("http://127.0.0.1:9000/hook").is_some());
        assert!(open.url("ftp://127.0.0.1/").is_none());
    }

    #[tokio::test]
    async fn names_of_private_addresses_refused_when_resolved() {
        let name = || "localhost".parse::<Name>().unwrap();
        let refused = AddressPolicy { allow_private: false }.resolve(name()).await.err().unwrap();
        assert!(refused.is::<AddressRefused>(), "{refused}");
        let found = AddressPolicy { allow_private: true }.resolve(name()).await.unwrap();
        assert!(found.count() > 0);
    }
}
