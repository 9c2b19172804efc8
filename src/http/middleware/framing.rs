//! Refuses requests with an ambiguous length or host.
//!
//! A proxy that reads such a head differently could take a part of a request for another one (request smuggling) or send it to
//! another host's users. hyper refuses folded lines, lengths that differ or are no numbers, spaces before a colon, and a last
//! transfer coding other than `chunked`. If a length stands beside `chunked`, it ignores the length and closes the connection after
//! the reply, as RFC 9112, 6.3 asks. It accepts the rest, which is refused here; the connection is then closed, since the start of
//! the next request is not certain.

use axum::http::{
    HeaderMap, Request, Uri, Version,
    header::{HOST, TRANSFER_ENCODING},
};

/// The reason to refuse a request; `None` for a sound one.
pub fn flaw<B>(request: &Request<B>) -> Option<&'static str> {
    host_flaw(request.version(), request.uri(), request.headers()).or_else(|| coding_flaw(request.headers()))
}

/// RFC 9112, 3.2: one Host, of legal characters. HTTP/1.0 does not require it: old health checks leave it out.
fn host_flaw(version: Version, uri: &Uri, headers: &HeaderMap) -> Option<&'static str> {
    let mut hosts = headers.get_all(HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (Some(host), None) => host.as_bytes(),
        (None, _) if version < Version::HTTP_11 => return None,
        (None, _) => return Some("no Host"),
        (Some(_), Some(_)) => return Some("more than one Host"),
    };
    if host.is_empty() || !host.iter().copied().all(is_of_host) {
        return Some("Host is not a host");
    }
    // `GET http://other.example/ HTTP/1.1`: the target would be right, and a proxy may have gone by the Host.
    match uri.authority() {
        Some(authority) if !authority.as_str().as_bytes().eq_ignore_ascii_case(host) => {
            Some("Host and the request's target differ")
        }
        _ => None,
    }
}

/// RFC 9112, 6.1: `chunked`, once, is the only supported transfer coding.
fn coding_flaw(headers: &HeaderMap) -> Option<&'static str> {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let coding = codings.next()?;
    let sound = coding.as_bytes().eq_ignore_ascii_case(b"chunked") && codings.next().is_none();
    (!sound).then_some("a Transfer-Encoding other than chunked")
}

/// RFC 3986, 3.2.2 and 3.2.3: names, addresses, `[` and `]` around IPv6, and a port.
const fn is_of_host(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(byte, b'-' | b'.' | b'_' | b'~' | b':' | b'[' | b']' | b'%')
        || matches!(byte, b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=')
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn fault_of(target: &str, version: Version, headers: &[(&str, &str)]) -> Option<&'static str> {
        let mut request = Request::builder().uri(target).version(version);
        for (name, value) in headers {
            request = request.header(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        flaw(&request.body(()).unwrap())
    }

    #[test]
    fn host_header_refused_unless_single_and_valid() {
        let of = |hosts: &[&str]| {
            fault_of("/", Version::HTTP_11, &hosts.iter().map(|host| ("host", *host)).collect::<Vec<_>>())
        };
        for sound in ["shop.example", "shop.example:8080", "127.0.0.1:80", "[::1]:80", "localhost", "a_b.example"] {
            assert_eq!(of(&[sound]), None, "{sound}");
        }
        for (flawed, why) in [
            (&[][..], "no Host"),
            (&["a.example", "a.example"], "more than one Host"),
            (&["a.example", "b.example"], "more than one Host"),
            (&[""], "Host is not a host"),
            (&["a.example, b.example "], "Host is not a host"),
            (&["user@a.example"], "Host is not a host"),
            (&["a.example/x"], "Host is not a host"),
            (&["가.example"], "Host is not a host"),
        ] {
            assert_eq!(of(flawed), Some(why), "{flawed:?}");
        }
        assert_eq!(fault_of("/", Version::HTTP_10, &[]), None);
        assert!(fault_of("/", Version::HTTP_10, &[("host", "a"), ("host", "a")]).is_some());
    }

    #[test]
    fn absolute_target_refused_when_host_differs() {
        let of = |target: &str, host: &str| fault_of(target, Version::HTTP_11, &[("host", host)]);
        assert_eq!(of("http://Shop.example/x", "shop.example"), None);
        for (target, host) in [
            ("http://other.example/x", "shop.example"),
            ("http://shop.example:81/x", "shop.example"),
            ("http://user@shop.example/x", "shop.example"),
        ] {
            assert_eq!(of(target, host), Some("Host and the request's target differ"), "{target}");
        }
    }

    #[test]
    fn transfer_encoding_refused_unless_chunked() {
        let of = |codings: &[&str]| {
            let headers: Vec<_> = codings.iter().map(|coding| ("transfer-encoding", *coding)).collect();
            fault_of("/", Version::HTTP_11, &[&[("host", "x")], &headers[..]].concat())
        };
        for sound in [&[][..], &["chunked"], &["Chunked"]] {
            assert_eq!(of(sound), None, "{sound:?}");
        }
        for flawed in [
            &["gzip, chunked"][..],
            &["gzip", "chunked"],
            &["chunked", "chunked"],
            &["chunked, chunked"],
            &["identity, chunked"],
            &[", chunked"],
            &["chunked;q=1"],
            &[""],
        ] {
            assert!(of(flawed).is_some(), "{flawed:?}");
        }
    }
}
