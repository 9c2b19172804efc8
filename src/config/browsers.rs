//! Settings for browsers: CORS and HSTS.

use std::str::FromStr;

use axum::http::{HeaderValue, Uri};
use clap::Args;

use super::items;

/// Headers for browsers.
#[derive(Args, Clone, Debug, Default)]
pub struct BrowserConfig {
    /// Origins whose pages may call the public API (never /admin or /ops), such as https://shop.example, separated by
    /// commas, or *
    #[arg(long, env = "CORS_ORIGINS", default_value = "", hide_default_value = true)]
    pub cors_origins: CorsOrigins,
    /// Seconds for which browsers must use HTTPS (Strict-Transport-Security): only for a host that is served by HTTPS
    /// throughout. 0: no header
    #[arg(long, env = "HSTS_SECONDS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=63_072_000))]
    pub hsts_seconds: u64,
}

/// The origins whose pages may call the public API from a browser.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum CorsOrigins {
    /// The service's own origin only.
    #[default]
    Own,
    Any,
    Listed(Vec<HeaderValue>),
}

impl FromStr for CorsOrigins {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim() {
            "" => Ok(CorsOrigins::Own),
            "*" => Ok(CorsOrigins::Any),
            text => items(text).map(origin).collect::<Result<_, _>>().map(CorsOrigins::Listed),
        }
    }
}

/// Parses an origin in the exact form that browsers send: scheme, host, and the port unless it is the scheme's default.
/// Any other spelling would never match.
fn origin(text: &str) -> Result<HeaderValue, String> {
    let wrong = || format!("`{text}` is no origin such as https://shop.example or http://localhost:3000");
    let uri: Uri = text.parse().map_err(|_| wrong())?;
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else { return Err(wrong()) };
    let default_port = matches!((scheme, authority.port_u16()), ("http", Some(80)) | ("https", Some(443)));
    let canonical = text.to_ascii_lowercase() == text && text == format!("{scheme}://{authority}");
    if default_port || !canonical || !matches!(scheme, "http" | "https") || authority.as_str().contains('@') {
        return Err(wrong());
    }
    text.parse().map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_refused_unless_spelled_as_browsers_do() {
        assert_eq!("".parse(), Ok(CorsOrigins::Own));
        assert_eq!(" * ".parse(), Ok(CorsOrigins::Any));
        let two = "https://shop.example, http://localhost:3000,".parse::<CorsOrigins>().unwrap();
        let CorsOrigins::Listed(two) = two else { panic!("{two:?}") };
        assert_eq!(two, ["https://shop.example", "http://localhost:3000"]);
        for wrong in [
            "shop.example",
            "https://shop.example/",
            "https://shop.example/x",
            "https://Shop.example",
            "https://shop.example:443",
            "ftp://shop.example",
            "https://user@shop.example",
            "https://a.example,*",
            "null",
            "https://",
        ] {
            assert!(wrong.parse::<CorsOrigins>().is_err(), "{wrong}");
        }
    }
}
