//! Bodies that are not JSON, too large, or cut short.

use super::*;

#[tokio::test]
async fn request_refused_when_body_not_json_object() {
    let (test, writes) = shop().await;
    let before = test.snapshot().await;
    for write in &writes {
        let right = write.body(None);
        let deep = |open: &str, close: &str, depth: usize| open.repeat(depth) + &close.repeat(depth);
        let unknown = |json: String| right.replacen('{', &format!("{{\"unknown\":{json},"), 1);
        let mut bodies: Vec<Vec<u8>> = [
            String::new(),
            " ".to_owned(),
            "{".to_owned(),
            "{}".to_owned() + &right,
            right.clone() + &right,
            right.clone() + "x",
            right.replace(':', "="),
            right.replace('"', "'"),
            right.replacen('}', ",}", 1),
            format!("[{right}]"),
            format!("\u{feff}{right}"),
            format!("/* */{right}"),
            format!("{}0", right),
            right[..right.len() - 1].to_owned(),
            "null".to_owned(),
            "true".to_owned(),
            "1".to_owned(),
            "\"\"".to_owned(),
            "[]".to_owned(),
            "amount=1&userId=1".to_owned(),
            deep("[", "]", 20_000),
            deep("{\"a\":", "}", 5_000),
            "[".repeat(60_000),
            "{\"unknown\":".repeat(5_000),
            unknown("\"\\x\"".to_owned()),
            unknown("01".to_owned()),
        ]
        .map(String::into_bytes)
        .into();
        // Each field of a PATCH is optional, but an empty object is invalid.
        bodies.push(b"{}".to_vec());
        for garbage in GARBAGE {
            bodies.push([right.as_bytes(), *garbage].concat());
            bodies.push([b"{\"", *garbage, b"\":0,", &right.as_bytes()[1..]].concat());
        }
        for utf16 in [
            right.encode_utf16().flat_map(u16::to_le_bytes).collect(),
            right.encode_utf16().flat_map(u16::to_be_bytes).collect(),
        ] {
            bodies.push(utf16);
        }
        for body in bodies {
            let shown = String::from_utf8_lossy(&body[..body.len().min(120)]).into_owned();
            let reply = raw(&test, &write.method, &write.path, body).await;
            let right = reply.status == 400 && reply.json()["errorCode"] == write.invalid;
            assert!(right, "{} {shown}: {} {}", write.path, reply.status, reply.text);
        }
    }
    assert_eq!(test.snapshot().await, before);
    test.finish().await;
}

#[tokio::test]
async fn request_refused_when_content_type_not_json() {
    let (test, writes) = shop().await;
    let before = test.snapshot().await;
    for write in &writes {
        for kinds in [
            &[][..],
            &[""],
            &["text/plain"],
            &["application/x-www-form-urlencoded"],
            &["multipart/form-data; boundary=x"],
            &["application/jsonp"],
            &["text/json"],
            &["application"],
            &["application/json", "application/json"],
            &["application/json, text/plain"],
            &["\u{e9}"],
        ] {
            let headers: Vec<(&str, &[u8])> = kinds.iter().map(|kind| ("content-type", kind.as_bytes())).collect();
            for body in [write.body(None), String::new(), "{".to_owned()] {
                let reply = headed(&test, &write.method, &write.path, &headers, body).await;
                reply.refused(415, "UNSUPPORTED_MEDIA_TYPE");
            }
        }
    }
    assert_eq!(test.snapshot().await, before);
    let path = &writes[0].path;
    for kind in [
        "application/json;charset=UTF-8",
        "Application/JSON",
        "application/vnd.shop+json",
        "application/json ; a=\"b\"",
    ] {
        let reply = headed(&test, &Method::PUT, path, &[("content-type", kind.as_bytes())], "{\"amount\":1}").await;
        assert_eq!(reply.status, 200, "{kind}");
    }
    test.finish().await;
}

/// Sends a request head and as much of the body as the service accepts. Returns the whole reply.
async fn raw_request(test: &TestApp, head: &str, body: impl Iterator<Item = Vec<u8>>) -> String {
    let mut stream = TcpStream::connect(test.base.trim_start_matches("http://")).await.unwrap();
    let (mut from, mut to) = stream.split();
    let send = async {
        to.write_all(head.as_bytes()).await?;
        for part in body {
            to.write_all(&part).await?;
        }
        std::io::Result::Ok(())
    };
    let mut reply = Vec::new();
    // The service may close the connection before it has read the body; the reply that precedes the close must arrive.
    let (_sent, received) = tokio::join!(send, from.read_to_end(&mut reply));
    let text = String::from_utf8_lossy(&reply).into_owned();
    assert!(!text.is_empty(), "no reply: {received:?}");
    text
}

#[tokio::test]
async fn request_refused_when_body_too_large() {
    let (test, writes) = shop().await;
    let before = test.snapshot().await;
    for write in &writes {
        // Bodies just over the limit and far over it, with a length and in chunks.
        let over = write.body(None).replacen('{', &format!("{{{}", " ".repeat(65_536)), 1);
        raw(&test, &write.method, &write.path, over).await.refused(413, "PAYLOAD_TOO_LARGE");
        let admin = format!("authorization: Bearer {ADMIN}\r\n");
        let head = format!(
            "{} {} HTTP/1.1\r\nhost: a\r\nconnection: close\r\nx-request-id: big-1\r\n\
             content-type: application/json\r\n{admin}",
            write.method, write.path
        );
        let ten = || (0..160).map(|_| vec![b' '; 65_536]);
        let whole = raw_request(&test, &format!("{head}content-length: {}\r\n\r\n", 160 * 65_536), ten()).await;
        let chunk = |part: Vec<u8>| [b"10000\r\n", &part[..], b"\r\n"].concat();
        let chunked = ten().map(chunk).chain([b"0\r\n\r\n".to_vec()]);
        let chunked = raw_request(&test, &format!("{head}transfer-encoding: chunked\r\n\r\n"), chunked).await;
        for reply in [whole, chunked] {
            assert!(reply.starts_with("HTTP/1.1 413 "), "{reply}");
            assert!(reply.contains("\"PAYLOAD_TOO_LARGE\"") && reply.contains("x-request-id: big-1"), "{reply}");
        }
    }
    assert_eq!(test.snapshot().await, before);
    // A body of exactly the limit is accepted.
    let write = &writes[0];
    let body = write.body(None);
    let at = body.replacen('{', &format!("{{{}", " ".repeat(65_536 - body.len())), 1);
    assert_eq!(raw(&test, &write.method, &write.path, at).await.status, 200);
    test.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn client_reads_reply_when_body_too_large() {
    let (test, writes) = shop().await;
    let before = test.snapshot().await;
    let ten_megabytes = || vec![b' '; 10_000_000];
    for _ in 0..5 {
        for write in &writes {
            raw(&test, &write.method, &write.path, ten_megabytes()).await.refused(413, "PAYLOAD_TOO_LARGE");
        }
        // Refusals for other reasons than the size.
        raw(&test, &Method::POST, "/nothing", ten_megabytes()).await.refused(404, "NOT_FOUND");
        raw(&test, &Method::PATCH, "/api/v1/orders", ten_megabytes()).await.refused(405, "METHOD_NOT_ALLOWED");
        let untyped = headed(&test, &Method::POST, "/api/v1/orders", &[], ten_megabytes()).await;
        untyped.refused(415, "UNSUPPORTED_MEDIA_TYPE");
        let unauthenticated = test.client.post(format!("{}/admin/v1/users", test.base)).body(ten_megabytes());
        read(unauthenticated).await.refused(401, "UNAUTHORIZED");
    }
    assert_eq!(test.snapshot().await, before);
    test.finish().await;
}

#[tokio::test]
async fn request_changes_nothing_when_body_breaks_off() {
    let (test, writes) = shop().await;
    let before = test.snapshot().await;
    for write in &writes {
        let body = write.body(None);
        let head = format!(
            "{} {} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n\
             authorization: Bearer {ADMIN}\r\ncontent-length: {}\r\n\r\n{body}",
            write.method,
            write.path,
            body.len() + 1
        );
        let mut stream = TcpStream::connect(test.base.trim_start_matches("http://")).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await.unwrap();
        assert!(reply.is_empty() || reply.contains(write.invalid), "{reply}");
    }
    assert_eq!(test.snapshot().await, before);
    test.finish().await;
}
