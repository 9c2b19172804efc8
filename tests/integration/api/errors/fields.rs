//! Fields that violate their schema.

use super::*;

#[tokio::test]
async fn request_refused_when_field_out_of_schema() {
    let (test, writes) = shop().await;
    let before = test.snapshot().await;
    for write in &writes {
        let refused = async |what: &str, body: String| {
            let reply = raw(&test, &write.method, &write.path, body.clone()).await;
            let code = reply.json()["errorCode"].as_str().map(str::to_owned);
            let right = (reply.status.as_u16(), code.as_deref()) == (400, Some(write.invalid));
            assert!(right, "{} {} {what} {body:.200}: {} {}", write.method, write.path, reply.status, reply.text);
        };
        for field in &write.fields {
            for json in wrong(field) {
                refused(field.name, write.body(Some((field.name, Some(&json))))).await;
            }
            if !field.optional {
                refused("without", write.body(Some((field.name, None)))).await;
                // Field names are case-sensitive.
                refused(
                    "in upper case",
                    write
                        .body(None)
                        .replace(&format!("\"{}\"", field.name), &format!("\"{}\"", field.name.to_uppercase())),
                )
                .await;
            }
            let twice = write.body(None).replacen('{', &format!("{{\"{}\":{},", field.name, field.right), 1);
            refused("twice", twice).await;
        }
    }
    assert_eq!(test.snapshot().await, before);

    // Every write succeeds with its valid body: the public API ignores unknown fields at any depth, and 1000.0 is the
    // integer 1000.
    for write in &writes {
        let unknown = format!("{{\"unknown\":{}{{}}{},\"amounts\":0.5,", "[".repeat(20_000), "]".repeat(20_000));
        let mut body = write.body(None);
        if !write.path.starts_with("/admin/") {
            body = body.replacen('{', &unknown, 1);
        }
        for field in write.fields.iter().filter(|field| matches!(field.kind, Kind::Int(..))) {
            let spelled = format!("\"{}\" :\n{}.0", field.name, field.right);
            body = body.replace(&format!("\"{}\":{}", field.name, field.right), &spelled);
        }
        let reply = raw(&test, &write.method, &write.path, body.clone()).await;
        assert!(reply.status.is_success(), "{} {}: {}", write.path, write.body(None), reply.text);
    }
    test.finish().await;
}

#[tokio::test]
async fn request_refused_when_ignored_field_not_utf8() {
    let (test, writes) = shop().await;
    let before = test.snapshot().await;
    for write in &writes {
        for garbage in GARBAGE {
            let body = [b"{\"unknown\":\"", *garbage, b"\",", &write.body(None).as_bytes()[1..]].concat();
            raw(&test, &write.method, &write.path, body).await.refused(400, write.invalid);
        }
    }
    assert_eq!(test.snapshot().await, before);
    test.finish().await;
}
