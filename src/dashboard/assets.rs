//! The files of the page. They are in the binary: the page needs no network.

use std::sync::LazyLock;

use axum::{
    body::Bytes,
    extract::Path,
    http::{
        HeaderMap, HeaderValue, StatusCode,
        header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH},
    },
    response::{IntoResponse, Response},
};
use sha2::{Digest, Sha256};

use crate::http::error::{ApiError, Code};

/// The page itself.
const PAGE: &str = "index.html";

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const PICTURE: &str = "image/svg+xml";
const STYLE: &str = "text/css; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";

struct Asset {
    name: &'static str,
    content_type: &'static str,
    content: &'static [u8],
    /// A hash of the content.
    etag: HeaderValue,
}

macro_rules! assets {
    ($($name:literal: $content_type:expr,)*) => {
        /// Every file of `src/dashboard/assets/`.
        static ASSETS: LazyLock<Vec<Asset>> = LazyLock::new(|| {
            vec![$(Asset::new($name, $content_type, include_bytes!(concat!("assets/", $name))),)*]
        });
    };
}

assets! {
    "actions.js": SCRIPT,
    "address.js": SCRIPT,
    "api.js": SCRIPT,
    "app.css": STYLE,
    "app.js": SCRIPT,
    "charts.js": SCRIPT,
    "dialogs.js": SCRIPT,
    "dom.js": SCRIPT,
    "early.js": SCRIPT,
    "engine.js": SCRIPT,
    "feed.js": SCRIPT,
    "forms.js": SCRIPT,
    "i18n.js": SCRIPT,
    "icon.svg": PICTURE,
    "index.html": HTML,
    "messages.js": SCRIPT,
    "operator-log.js": SCRIPT,
    "plan.js": SCRIPT,
    "products.js": SCRIPT,
    "recoveries.js": SCRIPT,
    "refund.js": SCRIPT,
    "sale.js": SCRIPT,
    "sales.js": SCRIPT,
    "status.js": SCRIPT,
    "timeline.js": SCRIPT,
    "uplot.LICENSE": TEXT,
    "uplot.min.css": STYLE,
    "uplot.min.js": SCRIPT,
    "webhooks.js": SCRIPT,
}

impl Asset {
    fn new(name: &'static str, content_type: &'static str, content: &'static [u8]) -> Self {
        let hash = hex::encode(&Sha256::digest(content)[..16]);
        let etag = HeaderValue::try_from(format!("\"{hash}\"")).unwrap_or(HeaderValue::from_static("\"\""));
        Asset { name, content_type, content, etag }
    }

    /// The file, or 304 if the browser has it.
    fn answer(&self, headers: &HeaderMap) -> Response {
        let ours = [
            (ETAG, self.etag.clone()),
            // Stored, and revalidated each time: a new program may have a new file of the same name.
            (CACHE_CONTROL, HeaderValue::from_static("no-cache")),
            (CONTENT_TYPE, HeaderValue::from_static(self.content_type)),
        ];
        if self.is_known(headers) {
            return (StatusCode::NOT_MODIFIED, ours).into_response();
        }
        (ours, Bytes::from_static(self.content)).into_response()
    }

    fn is_known(&self, headers: &HeaderMap) -> bool {
        let lines = headers.get_all(IF_NONE_MATCH).iter().filter_map(|line| line.to_str().ok());
        let mut tags = lines.flat_map(|line| line.split(',')).map(str::trim);
        tags.any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag).as_bytes() == self.etag.as_bytes())
    }
}

fn find(name: &str, headers: &HeaderMap) -> Result<Response, ApiError> {
    let asset = ASSETS.iter().find(|asset| asset.name == name).ok_or(Code::NotFound)?;
    Ok(asset.answer(headers))
}

pub async fn page(headers: HeaderMap) -> Result<Response, ApiError> {
    find(PAGE, &headers)
}

pub async fn file(Path(name): Path<String>, headers: HeaderMap) -> Result<Response, ApiError> {
    find(&name, &headers)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn assets_served_with_content_type() {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/src/dashboard/assets");
        let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let served = ASSETS.iter().map(|asset| asset.name.to_owned());
        assert_eq!(served.collect::<BTreeSet<_>>(), files.collect::<BTreeSet<_>>());
        for Asset { name, content_type, content, .. } in ASSETS.iter() {
            let expected = match name.rsplit('.').next().unwrap() {
                "html" => HTML,
                "js" => SCRIPT,
                "css" => STYLE,
                "svg" => PICTURE,
                _ => TEXT,
            };
            assert_eq!(*content_type, expected, "{name}");
            assert!(!content.is_empty(), "{name}");
        }
    }

    #[test]
    fn assets_not_sent_when_etag_matches() {
        let status = |tags: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for tag in tags {
                headers.append(IF_NONE_MATCH, HeaderValue::from_static(tag));
            }
            Asset::new("x", TEXT, b"abc").answer(&headers).status()
        };
        const TAG: &str = "\"ba7816bf8f01cfea414140de5dae2223\"";
        for known in [&[TAG][..], &["W/\"ba7816bf8f01cfea414140de5dae2223\""], &["\"1\", \"2\"", TAG], &["*"]] {
            assert_eq!(status(known), StatusCode::NOT_MODIFIED, "{known:?}");
        }
        for other in [&[][..], &["\"1\""], &["ba7816bf8f01cfea414140de5dae2223"], &[""]] {
            assert_eq!(status(other), StatusCode::OK, "{other:?}");
        }
    }
}
