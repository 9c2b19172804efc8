//! The page and the stream: sessions, clients, end of the stream.

use super::*;

async fn plain(test: &TestApp, method: Method, path: &str, known: Option<&str>) -> Reply {
    let mut request = test.client.request(method, format!("{}{path}", test.base));
    if let Some(tag) = known {
        request = request.header("if-none-match", tag);
    }
    harness::read(request).await
}

#[tokio::test]
async fn dashboard_page_served_with_strict_policy() {
    let test = TestApp::start().await;
    let page = plain(&test, Method::GET, "/ops", None).await;
    assert_eq!(
        (page.status, &page.headers["content-type"]),
        (StatusCode::OK, &"text/html; charset=utf-8".parse().unwrap())
    );
    guarded(&page.headers);
    assert_eq!(plain(&test, Method::GET, "/ops/", None).await.text, page.text);
    // The page has nothing that its own policy forbids.
    for forbidden in ["<style", "style=", "onclick=", "onload=", "javascript:", "http://", "https://"] {
        assert!(!page.text.contains(forbidden), "{forbidden}");
    }
    let named = page.text.split("/ops/assets/").skip(1).map(|rest| rest.split('"').next().unwrap().to_owned());
    let files: Vec<String> = named.chain(["uplot.min.js", "uplot.min.css"].map(str::to_owned)).collect();
    assert!(files.iter().any(|file| file == "app.js") && files.iter().any(|file| file == "app.css"), "{files:?}");
    for file in &files {
        let path = format!("/ops/assets/{file}");
        let reply = plain(&test, Method::GET, &path, None).await;
        assert_eq!(reply.status, 200, "{path}");
        guarded(&reply.headers);
        let content_type = match file.rsplit('.').next().unwrap() {
            "js" => "text/javascript; charset=utf-8",
            "css" => "text/css; charset=utf-8",
            "svg" => "image/svg+xml",
            other => panic!("{other}"),
        };
        assert_eq!(reply.headers["content-type"], content_type, "{path}");
        assert_eq!(reply.headers["cache-control"], "no-cache", "{path}");
        let tag = reply.headers["etag"].to_str().unwrap();
        let again = plain(&test, Method::GET, &path, Some(tag)).await;
        assert_eq!((again.status, again.text.as_str()), (StatusCode::NOT_MODIFIED, ""), "{path}");
        guarded(&again.headers);
        let head = plain(&test, Method::HEAD, &path, None).await;
        assert_eq!((head.status, &head.headers["etag"]), (StatusCode::OK, &reply.headers["etag"]), "{path}");
    }
    for path in ["/ops/assets/nothing.js", "/ops/assets/..%2fmod.rs", "/ops/nothing", "/ops/assets/"] {
        let reply = plain(&test, Method::GET, path, None).await;
        reply.refused(404, "NOT_FOUND");
        guarded(&reply.headers);
    }
    plain(&test, Method::POST, "/ops", None).await.refused(405, "METHOD_NOT_ALLOWED");
    test.finish().await;
}

#[tokio::test]
async fn feed_refused_without_session() {
    let test = TestApp::start().await;
    let reply = plain(&test, Method::GET, "/ops/feed", None).await;
    reply.refused(401, "UNAUTHORIZED");
    guarded(&reply.headers);
    // The feed takes session cookies only, since the page does not keep the token.
    let with_token = test.client.get(format!("{}/ops/feed", test.base)).bearer_auth(ADMIN);
    harness::read(with_token).await.refused(401, "UNAUTHORIZED");
    harness::read(feed_request(&test.base, "firstcome_ops=admin.9999999999999.00.00"))
        .await
        .refused(401, "UNAUTHORIZED");
    guarded(&plain(&test, Method::GET, "/ops/session", None).await.headers);
    test.finish().await;
}

#[tokio::test]
async fn feed_ends_with_session() {
    let test = TestApp::start().await;
    let (ours, theirs) = (sign_in(&test.base).await, sign_in(&test.base).await);
    let mut signed_out = Watch::with(&test.base, &ours).await;
    let mut expires = Watch::with(&test.base, &theirs).await;
    for watch in [&mut signed_out, &mut expires] {
        watch.next().await.unwrap();
    }
    let out = test.client.delete(format!("{}/ops/session", test.base)).header("cookie", &ours);
    assert_eq!(harness::read(out).await.status, 204);
    while signed_out.block().await.is_some() {}
    expires.next().await.unwrap();
    test.clock.advance(8 * 3_600_000);
    while expires.block().await.is_some() {}
    for cookie in [&ours, &theirs] {
        harness::read(feed_request(&test.base, cookie)).await.refused(401, "UNAUTHORIZED");
    }
    test.finish().await;
}

/// All clients get identical snapshots, as the equal millisecond times show.
#[tokio::test]
async fn feed_reader_shared_and_stopped_with_last_watcher() {
    let test = TestApp::with(Options { clock: None, ..Options::default() }).await;
    let mut first = Watch::open(&test.base).await;
    first.next().await.unwrap();
    let mut second = Watch::open(&test.base).await;
    second.until("two watchers", |snapshot| snapshot["watchers"] == 2).await;
    first.until("two watchers", |snapshot| snapshot["watchers"] == 2).await;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        ours.push(first.text().await.unwrap());
        theirs.push(second.text().await.unwrap());
    }
    assert!(ours.iter().any(|snapshot| theirs.contains(snapshot)), "{ours:?} {theirs:?}");
    drop(second);
    first.until("one watcher", |snapshot| snapshot["watchers"] == 1).await;
    drop(first);
    // Only the feed reader scans hashes here.
    let mut redis = test.raw().await;
    let (mut calls, mut since) = (String::new(), Instant::now());
    until("the feed reader stops", async || {
        let info: String = redis::cmd("INFO").arg("commandstats").query_async(&mut redis).await.unwrap();
        let now = info.lines().find(|line| line.starts_with("cmdstat_hscan:")).unwrap_or_default().to_owned();
        assert!(!now.is_empty(), "{info}");
        if now != calls {
            (calls, since) = (now, Instant::now());
        }
        (since.elapsed().as_secs() >= 5).then_some(())
    })
    .await;
    let mut again = Watch::open(&test.base).await;
    assert_eq!(again.next().await.unwrap()["watchers"], 1);
    test.finish().await;
}

#[tokio::test]
async fn feed_refused_when_hundred_watchers() {
    let test = TestApp::start().await;
    let cookie = sign_in(&test.base).await;
    let mut seats = join_all((0..100).map(|_| Watch::with(&test.base, &cookie))).await;
    let turned_away = harness::read(feed_request(&test.base, &cookie)).await;
    turned_away.refused(503, "SERVICE_UNAVAILABLE");
    assert!(turned_away.headers.contains_key("retry-after"));
    seats.pop();
    let free = async || (feed_request(&test.base, &cookie).send().await.unwrap().status() == 200).then_some(());
    until("a seat is free", free).await;
    drop(seats);
    test.finish().await;
}

#[tokio::test]
async fn feed_ends_when_process_stops() {
    let test = TestApp::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let http = test.http_config();
    let serving = test.app.serve(listener, None, &http);
    let watching = async {
        let cookie = sign_in(&base).await;
        let mut watch = Watch::with(&base, &cookie).await;
        watch.next().await.unwrap();
        test.app.stopping.cancel();
        while watch.block().await.is_some() {}
        cookie
    };
    // The drain may take minutes; only the end of the stream ends the wait early.
    let ended = tokio::time::timeout(Duration::from_secs(200), async { tokio::join!(watching, serving) }).await;
    let (cookie, served) = ended.expect("the stop waits for the stream");
    assert_eq!(served.unwrap(), 0, "a connection was cut");
    // A new watcher is refused during a stop.
    harness::read(feed_request(&test.base, &cookie)).await.refused(503, "SERVICE_UNAVAILABLE");
    test.finish().await;
}
