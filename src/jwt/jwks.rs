//! A set of keys that somebody else keeps: behind a URL, or in a file.
//!
//! It is looked at again on a timer, and when a token names a key that is not in it. However many tokens do, it is asked no
//! more often than every [`APART`], and no request waits for it longer than [`PATIENCE`]. While it can't be had, the keys of
//! the last time stay.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use anyhow::{Context, anyhow};
use reqwest::{Client, Url, redirect, retry};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, timeout},
};

use super::keys::Keys;

/// What passes at least between two looks.
const APART: Duration = Duration::from_secs(10);
/// How long a request waits for a look at most.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a look may take.
const LONGEST_LOOK: Duration = Duration::from_secs(5);
/// Bytes of the largest set.
const LARGEST: usize = 256 * 1024;

/// A set of keys, kept up with.
pub struct Jwks {
    source: Source,
    /// The timer's.
    every: Duration,
    /// [`APART`], but in tests.
    apart: Duration,
    keys: RwLock<Arc<Keys>>,
    /// Somebody wants a key that is not there.
    wanted: Notify,
    /// When the last look ended.
    looked: watch::Sender<Option<Instant>>,
}

enum Source {
    Url(Client, Url),
    File(PathBuf),
}

impl Jwks {
    /// The set behind a URL; nothing is fetched yet.
    ///
    /// # Errors
    /// It is not https (or http on this machine), or names a password.
    pub fn of_url(url: &str, every: Duration) -> anyhow::Result<Arc<Jwks>> {
        let url = checked(url).map_err(|problem| anyhow!("AUTH_JWKS_URL {problem}"))?;
        // reqwest takes the process's provider, and panics where there is none. An error says that there is one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let encrypted = url.scheme() == "https";
        let mut client = Client::builder()
            .user_agent(concat!("firstcome/", env!("CARGO_PKG_VERSION")))
            .redirect(redirect::Policy::none())
            .retry(retry::never())
            .no_proxy()
            .https_only(encrypted)
            .timeout(LONGEST_LOOK);
        if !encrypted {
            // A slim image may have no certificates.
            client = client.tls_certs_only([]);
        }
        let client = client.build().map_err(reqwest::Error::without_url).context("no HTTP client for AUTH_JWKS_URL")?;
        Ok(Jwks::new(Source::Url(client, url), every, Keys::default()))
    }

    /// The set in a file, which is read.
    ///
    /// # Errors
    /// It can't be, or is no set of keys.
    pub fn of_file(file: &Path, every: Duration) -> anyhow::Result<Arc<Jwks>> {
        let metadata = std::fs::metadata(file).with_context(|| format!("{} can't be read", file.display()))?;
        anyhow::ensure!(metadata.len() <= LARGEST as u64, "{} has more than {LARGEST} bytes", file.display());
        let set = std::fs::read(file).with_context(|| format!("{} can't be read", file.display()))?;
        let keys = Keys::of_set(&set).map_err(|problem| anyhow!("{}: {problem}", file.display()))?;
        let keys = Keys::default().next(keys).unwrap_or_default();
        Ok(Jwks::new(Source::File(file.to_owned()), every, keys))
    }

    fn new(source: Source, every: Duration, keys: Keys) -> Arc<Jwks> {
        let (keys, looked) = (RwLock::new(Arc::new(keys)), watch::Sender::new(None));
        Arc::new(Jwks { source, every: every.max(APART), apart: APART, keys, wanted: Notify::new(), looked })
    }

    /// The keys as known.
    pub fn current(&self) -> Arc<Keys> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The keys once they have been looked at again, or as they are: if they are not those of `generation` any more, if they
    /// were looked at just now, or if that takes too long.
    pub async fn newer(&self, generation: u64) -> Arc<Keys> {
        let mut looked = self.looked.subscribe();
        let before = *looked.borrow_and_update();
        let current = self.current();
        if current.generation != generation || before.is_some_and(|at| at.elapsed() < self.apart) {
            return current;
        }
        self.wanted.notify_one();
        // Whatever comes of it, that is what there is.
        let _ = timeout(PATIENCE, looked.changed()).await;
        self.current()
    }

    /// Looks, and looks again, for ever.
    pub async fn follow(&self) {
        let mut failing = false;
        loop {
            match timeout(LONGEST_LOOK, self.look()).await.unwrap_or_else(|_| Err(anyhow!("it takes too long"))) {
                Ok(changed) => {
                    if changed || failing {
                        tracing::info!(keys = self.current().len(), "the keys of users' tokens are known");
                    }
                    failing = false;
                }
                Err(error) if !failing => {
                    let (kept, error) = (self.current().len(), format!("{error:#}"));
                    tracing::warn!(kept, error, "the keys of users' tokens can't be had: those of the last time stay");
                    failing = true;
                }
                Err(error) => tracing::debug!(error = format!("{error:#}"), "the keys of users' tokens can't be had"),
            }
            self.looked.send_replace(Some(Instant::now()));
            tokio::select! {
                () = sleep(self.every) => {}
                () = async {
                    self.wanted.notified().await;
                    // A want of before the last look may be what is notified.
                    let since = self.looked.borrow().map_or(self.apart, |at| at.elapsed());
                    sleep(self.apart.saturating_sub(since)).await;
                } => {}
            }
        }
    }

    /// Whether the keys have changed.
    async fn look(&self) -> anyhow::Result<bool> {
        let set = match &self.source {
            Source::Url(client, url) => fetch(client, url.clone()).await?,
            Source::File(file) => read(file).await?,
        };
        let keys = Keys::of_set(&set).map_err(|problem| anyhow!(problem))?;
        let mut current = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        let next = current.next(keys);
        let changed = next.is_some();
        if let Some(next) = next {
            *current = Arc::new(next);
        }
        Ok(changed)
    }
}

/// The whole body, within bounds.
async fn fetch(client: &Client, url: Url) -> anyhow::Result<Vec<u8>> {
    let mut response = client.get(url).send().await.map_err(reqwest::Error::without_url)?;
    anyhow::ensure!(response.status().is_success(), "the answer is {}", response.status());
    let mut set = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(reqwest::Error::without_url)? {
        anyhow::ensure!(set.len() + chunk.len() <= LARGEST, "it has more than {LARGEST} bytes");
        set.extend_from_slice(&chunk);
    }
    Ok(set)
}

async fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
    use tokio::io::AsyncReadExt;
    let mut set = Vec::new();
    tokio::fs::File::open(file).await?.take(LARGEST as u64 + 1).read_to_end(&mut set).await?;
    anyhow::ensure!(set.len() <= LARGEST, "it has more than {LARGEST} bytes");
    Ok(set)
}

/// The URL, or what is wrong with it, which never quotes it.
fn checked(url: &str) -> Result<Url, &'static str> {
    let url = Url::parse(url).map_err(|_| "is not a URL")?;
    let here = url.host_str().is_some_and(|host| {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    });
    match url.scheme() {
        "https" => {}
        "http" if here => {}
        "http" => return Err("is http:// to another machine: anybody on the way could put keys of its own into it"),
        _ => return Err("is not https://"),
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("holds a user or a password");
    }
    Ok(url)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Mutex;

    use axum::{Router, http::StatusCode, routing::get};
    use serde_json::json;

    use super::*;

    /// What an issuer answers, and how often it was asked.
    type Issuer = Arc<Mutex<((StatusCode, String), usize)>>;

    /// A set of one key, which is called so.
    fn set(kid: &str) -> (StatusCode, String) {
        let key = json!({"kty": "OKP", "crv": "Ed25519", "kid": kid, "x": "A".repeat(43)});
        (StatusCode::OK, json!({"keys": [key]}).to_string())
    }

    async fn issuer(answer: (StatusCode, String)) -> (Issuer, Arc<Jwks>) {
        let issuer: Issuer = Arc::new(Mutex::new((answer, 0)));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/jwks", listener.local_addr().unwrap());
        let asked = issuer.clone();
        let answer = async move || {
            let mut issuer = asked.lock().unwrap();
            issuer.1 += 1;
            issuer.0.clone()
        };
        tokio::spawn(async move { axum::serve(listener, Router::new().route("/jwks", get(answer))).await });
        (issuer, Jwks::of_url(&url, Duration::from_secs(3600)).unwrap())
    }

    fn has(keys: &Keys, kid: &str) -> bool {
        keys.have(Some(kid), jsonwebtoken::Algorithm::EdDSA)
    }

    /// The same, looked at again without a pause.
    fn eager(jwks: Arc<Jwks>) -> Arc<Jwks> {
        let mut jwks = Arc::into_inner(jwks).unwrap();
        jwks.apart = Duration::ZERO;
        Arc::new(jwks)
    }

    /// Waits for the keys to be looked at, however long that takes here.
    async fn newer(jwks: &Jwks, kid: &str) -> Arc<Keys> {
        for _ in 0..100 {
            let keys = jwks.newer(jwks.current().generation).await;
            if has(&keys, kid) {
                return keys;
            }
        }
        panic!("{kid} does not come");
    }

    #[tokio::test]
    async fn new_key_fetched_on_demand_and_old_keys_kept_on_failure() {
        let (issuer, jwks) = issuer(set("one")).await;
        let jwks = eager(jwks);
        assert!(jwks.current().is_empty(), "nothing is fetched by itself");
        let following = tokio::spawn({
            let jwks = jwks.clone();
            async move { jwks.follow().await }
        });
        let one = newer(&jwks, "one").await;
        issuer.lock().unwrap().0 = set("two");
        let two = newer(&jwks, "two").await;
        assert!(!has(&two, "one") && two.generation > one.generation);
        let bad = [
            (StatusCode::INTERNAL_SERVER_ERROR, set("three").1),
            (StatusCode::FOUND, set("three").1),
            (StatusCode::OK, "{".to_owned()),
            (StatusCode::OK, "{\"keys\":[]}".to_owned()),
            (StatusCode::OK, set("three").1 + &" ".repeat(LARGEST)),
        ];
        for answer in bad {
            let asked = {
                let mut issuer = issuer.lock().unwrap();
                issuer.0 = answer;
                issuer.1
            };
            while issuer.lock().unwrap().1 < asked + 2 {
                let kept = jwks.newer(two.generation).await;
                assert!(has(&kept, "two") && kept.generation == two.generation);
            }
        }
        following.abort();
    }

    #[tokio::test]
    async fn unknown_keys_fetched_once_when_concurrent() {
        let (issuer, jwks) = issuer(set("one")).await;
        let following = tokio::spawn({
            let jwks = jwks.clone();
            async move { jwks.follow().await }
        });
        newer(&jwks, "one").await;
        let generation = jwks.current().generation;
        let began = Instant::now();
        for _ in 0..1000 {
            assert!(!has(&*jwks.newer(generation).await, "none"));
        }
        // One more for as often as it may be asked, should this have taken so long.
        let most = 2 + (began.elapsed().as_secs() / APART.as_secs()) as usize;
        assert!(issuer.lock().unwrap().1 <= most);
        following.abort();
    }

    #[tokio::test]
    async fn key_file_read_again() {
        let dir = crate::dev::ScratchDir::new().unwrap();
        let file = dir.path().join("jwks.json");
        std::fs::write(&file, set("one").1).unwrap();
        let jwks = eager(Jwks::of_file(&file, Duration::from_secs(3600)).unwrap());
        assert!(has(&jwks.current(), "one"), "at once");
        let following = tokio::spawn({
            let jwks = jwks.clone();
            async move { jwks.follow().await }
        });
        std::fs::write(&file, set("two").1).unwrap();
        newer(&jwks, "two").await;
        std::fs::remove_file(&file).unwrap();
        assert!(has(&*jwks.newer(jwks.current().generation).await, "two"));
        following.abort();
    }

    #[test]
    fn keys_url_refused_unless_https_or_loopback() {
        for good in ["https://id.example/jwks", "http://127.0.0.1:9/jwks", "http://[::1]/jwks", "http://localhost:81/"]
        {
            assert!(checked(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "hunter2",
            "ftp://127.0.0.1/",
            "http://id.example/jwks",
            "http://127.0.0.1.hunter2.example/",
            "https://hunter2@id.example/",
            "https://a:hunter2@id.example/",
            "file:///etc/hunter2",
        ] {
            let said = checked(bad).unwrap_err();
            assert!(!said.contains("hunter2"), "{said}");
        }
    }
}
