//! A gateway that replies with random bytes: only an exact approval approves; any other reply is unknown or refused,
//! within bounded time. (The unit tests of the decoder cover the meaning of status and body.)

use std::time::Duration;

use firstcome::{
    gateway::{Charge, HttpGateway, HttpGatewayConfig, PayOutcome, PaymentGateway},
    model::{OrderId, PaymentType, UserId},
};
use proptest::{prelude::*, test_runner::TestRunner};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use crate::projector::fuzz_events::config;

/// A reply, and whether it is a valid approval.
fn replies() -> impl Strategy<Value = (Vec<u8>, bool)> {
    let status = prop_oneof![
        4 => Just(200_u16),
        1 => prop::sample::select(&[100, 101, 103, 201, 202, 204, 206, 226, 299, 300, 302, 304, 400, 402, 404, 408, 429, 500][..]),
        1 => 100..1000_u16,
    ];
    let body = prop_oneof![
        6 => Just(r#"{"approved": true, "transactionId": "tx-1"}"#.to_owned()),
        1 => Just(r#"{"approved": false, "reason": "limit"}"#.to_owned()),
        1 => Just(r#"{"approved": true}"#.to_owned()),
        1 => any::<String>(),
        1 => Just(String::new()),
    ];
    // The deviation of the content-length header from the true length.
    let length = prop_oneof![6 => Just(0_i64), 1 => -60..60_i64, 1 => any::<i64>()];
    let header = prop_oneof![
        6 => Just(""),
        1 => Just("transfer-encoding: chunked\r\n"),
        1 => Just("content-encoding: gzip\r\n"),
        1 => Just("content-type: text/html\r\n"),
        1 => Just("location: http://127.0.0.1:1/\r\n"),
        1 => Just("content-length: 5\r\n"),
        1 => Just("\0: \0\r\n"),
    ];
    let whole = (status, body, length, header).prop_map(|(status, body, off, header)| {
        let length = (body.len() as i64).wrapping_add(off);
        let reply = format!("HTTP/1.1 {status} OK\r\n{header}content-length: {length}\r\n\r\n{body}");
        // A reply with status 204 or 205 has no body, even if bytes follow.
        let valid = (200..300).contains(&status) && !matches!(status, 204 | 205) && body.contains("tx-1") && off == 0;
        let about_the_body = ["transfer-encoding", "content-length", "\0"].iter().any(|name| header.starts_with(name));
        (reply.into_bytes(), valid && !about_the_body)
    });
    let spoilt = (whole, prop::collection::vec((any::<prop::sample::Index>(), any::<Option<u8>>()), 0..4));
    let spoilt = spoilt.prop_map(|((mut reply, valid), changes)| {
        let valid = valid && changes.is_empty();
        for (at, byte) in changes {
            let at = at.index(reply.len());
            match byte {
                Some(byte) => reply[at] = byte,
                None => reply.truncate(at.max(1)),
            }
        }
        (reply, valid)
    });
    let body = r#"{"approved": true, "transactionId": "tx-1"}"#;
    let valid = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes();
    prop_oneof![
        8 => spoilt,
        1 => prop::collection::vec(any::<u8>(), 0..400).prop_map(|bytes| (bytes, false)),
        1 => Just((valid, true)),
    ]
}

#[test]
fn reply_of_random_bytes_approves_nothing() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let timeout = Duration::from_secs(60);
    let config_of = HttpGatewayConfig { url, timeout, token: None };
    let charge = Charge {
        merchant_uid: "r-1".to_owned(),
        merchant_order_id: "shop-7".to_owned(),
        transaction: None,
        order_id: OrderId::new(7).unwrap(),
        user_id: UserId::new(3).unwrap(),
        amount: 12_000,
    };
    let answer = async |reply: &[u8]| {
        let (mut stream, _) = listener.accept().await.unwrap();
        let (mut asked, mut buffer) = (Vec::new(), [0; 4096]);
        while !asked.ends_with(b"}") {
            let length = stream.read(&mut buffer).await.unwrap();
            asked.extend_from_slice(&buffer[..length]);
        }
        // The client may close the connection early.
        let _ = stream.write_all(reply).await;
        drop(stream);
        std::future::pending::<PayOutcome>().await
    };
    TestRunner::new(config(256, 4))
        .run(&replies(), |(reply, valid)| {
            // A new client does not reuse the previous case's connection.
            let gateway = HttpGateway::new(PaymentType::Toss, &config_of).unwrap();
            let outcome = runtime.block_on(async {
                tokio::select! {
                    outcome = gateway.pay("fuzz", &charge, None) => outcome,
                    never = answer(&reply) => never,
                }
            });
            let text = String::from_utf8_lossy(&reply).into_owned();
            match outcome {
                PayOutcome::Approved { transaction_id } => {
                    let id = transaction_id.as_str();
                    let said = text.contains("approved") && text.contains("true") && text.contains(id);
                    prop_assert!(said && text.starts_with("HTTP/1."), "{}", text);
                }
                PayOutcome::Unacceptable { .. } => prop_assert!(!valid && text.contains("true"), "{}", text),
                PayOutcome::Declined { .. } => prop_assert!(!valid && text.contains("false"), "{}", text),
                PayOutcome::Unknown { why } => prop_assert!(!valid && !why.is_empty(), "{}: {}", why, text),
            }
            Ok(())
        })
        .unwrap();
}
