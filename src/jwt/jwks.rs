//! An issuer's set of keys, behind a URL or in a file.
//!
//! A task reads the set on a timer, and when a token names an unknown key. The number of such tokens does not matter: two
//! reads are at least [`MIN_INTERVAL`] apart, and no request waits longer than [`WAIT_TIMEOUT`]. If a read fails, the keys
//! of the last one remain valid.

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

use super::keys::TokenKeys;

/// The minimum time between two reads.
const MIN_INTERVAL: Duration = Duration::from_secs(10);
/// The maximum time that a request waits for a read.
const WAIT_TIMEOUT: Duration = Duration::from_secs(2);
/// The time limit of a read.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// The maximum size of a set in bytes.
const MAX_SET_BYTES: usize = 256 * 1024;

/// A set of keys that a task keeps up to date.
pub struct Jwks {
    source: SetLocation,
    /// The interval of the timer.
    refresh_interval: Duration,
    /// [`MIN_INTERVAL`], except in tests.
    min_interval: Duration,
    keys: RwLock<Arc<TokenKeys>>,
    /// A token named an unknown key.
    requested: Notify,
    /// The end of the last read.
    last_read: watch::Sender<Option<Instant>>,
}

enum SetLocation {
    Url(Client, Url),
    File(PathBuf),
}

impl Jwks {
    /// The set behind a URL. Fetches nothing yet.
    ///
    /// # Errors
    /// The URL is not https (or http on this machine), or holds a password.
    pub fn of_url(url: &str, refresh_interval: Duration) -> anyhow::Result<Arc<Jwks>> {
        let url = validated(url).map_err(|problem| anyhow!("AUTH_JWKS_URL {problem}"))?;
        let client = client(url.scheme() == "https", "AUTH_JWKS_URL")?;
        Ok(Jwks::new(SetLocation::Url(client, url), refresh_interval, TokenKeys::default()))
    }

    /// Reads the set from a file.
    ///
    /// # Errors
    /// The file can't be read, or is no set of keys.
    pub fn of_file(file: &Path, refresh_interval: Duration) -> anyhow::Result<Arc<Jwks>> {
        let metadata = std::fs::metadata(file).with_context(|| format!("{} can't be read", file.display()))?;
        anyhow::ensure!(
            metadata.len() <= MAX_SET_BYTES as u64,
            "{} has more than {MAX_SET_BYTES} bytes",
            file.display()
        );
        let set = std::fs::read(file).with_context(|| format!("{} can't be read", file.display()))?;
        let keys = TokenKeys::of_set(&set).map_err(|problem| anyhow!("{}: {problem}", file.display()))?;
        let keys = TokenKeys::default().next(keys).unwrap_or_default();
        Ok(Jwks::new(SetLocation::File(file.to_owned()), refresh_interval, keys))
    }

    fn new(source: SetLocation, refresh_interval: Duration, keys: TokenKeys) -> Arc<Jwks> {
        Arc::new(Jwks {
            source,
            refresh_interval: refresh_interval.max(MIN_INTERVAL),
            min_interval: MIN_INTERVAL,
            keys: RwLock::new(Arc::new(keys)),
            requested: Notify::new(),
            last_read: watch::Sender::new(None),
        })
    }

    /// The keys of the last successful read.
    pub fn current(&self) -> Arc<TokenKeys> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Requests a read, and returns the keys after it. Returns the current keys at once if they are newer than `generation`,
    /// or if the last read is less than [`MIN_INTERVAL`] ago; and when the read takes longer than [`WAIT_TIMEOUT`].
    pub async fn newer(&self, generation: u64) -> Arc<TokenKeys> {
        let mut last_read = self.last_read.subscribe();
        let before = *last_read.borrow_and_update();
        let current = self.current();
        if current.generation != generation || before.is_some_and(|at| at.elapsed() < self.min_interval) {
            return current;
        }
        self.requested.notify_one();
        // After a timeout the current keys are the best there are.
        let _ = timeout(WAIT_TIMEOUT, last_read.changed()).await;
        self.current()
    }

    /// Reads the set again and again, for ever.
    pub async fn follow(&self) {
        let mut failing = false;
        loop {
            match timeout(READ_TIMEOUT, self.read_set()).await.unwrap_or_else(|_| Err(anyhow!("timed out"))) {
                Ok(changed) => {
                    if changed || failing {
                        tracing::info!(keys = self.current().len(), "read the keys of users' tokens");
                    }
                    failing = false;
                }
                Err(error) if !failing => {
                    let (kept, error) = (self.current().len(), format!("{error:#}"));
                    tracing::warn!(kept, error, "can't read the keys of users' tokens: the last ones remain valid");
                    failing = true;
                }
                Err(error) => tracing::debug!(error = format!("{error:#}"), "can't read the keys of users' tokens"),
            }
            self.last_read.send_replace(Some(Instant::now()));
            tokio::select! {
                () = sleep(self.refresh_interval) => {}
                () = async {
                    self.requested.notified().await;
                    // The notification may be older than the last read.
                    let since = self.last_read.borrow().map_or(self.min_interval, |at| at.elapsed());
                    sleep(self.min_interval.saturating_sub(since)).await;
                } => {}
            }
        }
    }

    /// Reads the set once. Returns whether the keys changed.
    async fn read_set(&self) -> anyhow::Result<bool> {
        let set = match &self.source {
            SetLocation::Url(client, url) => fetch(client, url.clone()).await?,
            SetLocation::File(file) => read(file).await?,
        };
        let keys = TokenKeys::of_set(&set).map_err(|problem| anyhow!(problem))?;
        let mut current = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        let next = current.next(keys);
        let changed = next.is_some();
        if let Some(next) = next {
            *current = Arc::new(next);
        }
        Ok(changed)
    }
}

/// A client for an issuer. Follows no redirects, ignores the environment's proxies, and never resends. `encrypted`: it uses https
/// only. `setting` names the issuer in the message.
///
/// # Errors
/// The system has no root certificates.
pub(crate) fn client(encrypted: bool, setting: &str) -> anyhow::Result<Client> {
    // reqwest panics without a default provider. The error means that one is already installed.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut client = Client::builder()
        .user_agent(concat!("firstcome/", env!("CARGO_PKG_VERSION")))
        .redirect(redirect::Policy::none())
        .retry(retry::never())
        .no_proxy()
        .https_only(encrypted)
        .timeout(READ_TIMEOUT);
    if !encrypted {
        // Plain HTTP needs no certificates, and a slim image may have none.
        client = client.tls_certs_only([]);
    }
    client.build().map_err(reqwest::Error::without_url).with_context(|| format!("no HTTP client for {setting}"))
}

/// Fetches the whole body, up to [`MAX_SET_BYTES`].
pub(crate) async fn fetch(client: &Client, url: Url) -> anyhow::Result<Vec<u8>> {
    let mut response = client.get(url).send().await.map_err(reqwest::Error::without_url)?;
    anyhow::ensure!(response.status().is_success(), "the answer is {}", response.status());
    let mut set = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(reqwest::Error::without_url)? {
        anyhow::ensure!(set.len() + chunk.len() <= MAX_SET_BYTES, "it has more than {MAX_SET_BYTES} bytes");
        set.extend_from_slice(&chunk);
    }
    Ok(set)
}

async fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
    use tokio::io::AsyncReadExt;
    let mut set = Vec::new();
    tokio::fs::File::open(file).await?.take(MAX_SET_BYTES as u64 + 1).read_to_end(&mut set).await?;
    anyhow::ensure!(set.len() <= MAX_SET_BYTES, "it has more than {MAX_SET_BYTES} bytes");
    Ok(set)
}

/// Parses and validates the URL. The error never quotes it.
pub(crate) fn validated(url: &str) -> Result<Url, &'static str> {
    let url = Url::parse(url).map_err(|_| "is not a URL")?;
    let loopback = url.host_str().is_some_and(|host| {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    });
    match url.scheme() {
        "https" => {}
        "http" if loopback => {}
        "http" => return Err("is http:// to another machine: an attacker on the network could replace the keys"),
        _ => return Err("is not https://"),
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("holds a user or a password");
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use axum::{Router, http::StatusCode, routing::get};
    use serde_json::json;

    use super::*;

    /// An issuer's answer, and the number of requests.
    type Issuer = Arc<Mutex<((StatusCode, String), usize)>>;

    /// A set of one key, named `kid`.
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

    fn has(keys: &TokenKeys, kid: &str) -> bool {
        keys.have(Some(kid), jsonwebtoken::Algorithm::EdDSA)
    }

    /// Without a minimum interval between reads.
    fn eager(jwks: Arc<Jwks>) -> Arc<Jwks> {
        let mut jwks = Arc::into_inner(jwks).unwrap();
        jwks.min_interval = Duration::ZERO;
        Arc::new(jwks)
    }

    /// Waits until the keys include `kid`.
    async fn newer(jwks: &Jwks, kid: &str) -> Arc<TokenKeys> {
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
            (StatusCode::OK, set("three").1 + &" ".repeat(MAX_SET_BYTES)),
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
        // A slow run may include a read of every interval.
        let most = 2 + (began.elapsed().as_secs() / MIN_INTERVAL.as_secs()) as usize;
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
            assert!(validated(good).is_ok(), "{good}");
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
            let said = validated(bad).unwrap_err();
            assert!(!said.contains("hunter2"), "{said}");
        }
    }
}
