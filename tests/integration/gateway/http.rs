//! The HTTP client of gateways against each fault of the fake gateway.

use std::{sync::Arc, time::Duration};

use firstcome::{
    gateway::{
        CancelOutcome, Charge, Gateways, HttpGateway, HttpGatewayConfig, PayOutcome, PaymentGateway, StatusOutcome,
    },
    model::{OrderId, PaymentType, UserId},
};
use tokio::net::TcpListener;

use crate::support::fake_gateway::{Behaviour, FakeGateway, QueryBehaviour};

/// The id of the request that pays.
const REQUEST_ID: &str = "request-1";

/// Timeout for calls that get a reply: longer than any stall of the machine.
const LONG_TIMEOUT: Duration = Duration::from_secs(20);

/// Timeout for calls that never get a reply.
const SHORT_TIMEOUT: Duration = Duration::from_secs(2);

fn gateway_at(url: &str, timeout: Duration) -> HttpGateway {
    HttpGateway::new(PaymentType::Toss, &HttpGatewayConfig { url: url.to_owned(), timeout, token: None }).unwrap()
}

fn with_long_timeout(fake: &FakeGateway) -> HttpGateway {
    gateway_at(fake.url(), LONG_TIMEOUT)
}

fn with_short_timeout(fake: &FakeGateway) -> HttpGateway {
    gateway_at(fake.url(), SHORT_TIMEOUT)
}

/// Pays with a client that drops the call once the gateway has received it. Unlike a timeout, the request certainly
/// arrived.
async fn pay_and_disconnect(fake: &FakeGateway, uid: &str) {
    let (gateway, charge) = (with_long_timeout(fake), charge_of(uid));
    tokio::select! {
        outcome = gateway.pay(REQUEST_ID, &charge, None) => panic!("answered: {outcome:?}"),
        () = fake.posted(uid, 1) => {}
    }
}

fn charge_of(uid: &str) -> Charge {
    Charge {
        merchant_uid: uid.to_owned(),
        merchant_order_id: "shop-7".to_owned(),
        transaction: None,
        order_id: OrderId::new(7).unwrap(),
        user_id: UserId::new(3).unwrap(),
        amount: 12_000,
    }
}

fn approved(uid: &str) -> PayOutcome {
    PayOutcome::Approved { transaction_id: format!("tx-{uid}") }
}

fn found(uid: &str) -> StatusOutcome {
    StatusOutcome::Approved { transaction_id: format!("tx-{uid}"), cancelled: Some(0) }
}

fn why(outcome: PayOutcome) -> String {
    match outcome {
        PayOutcome::Unknown { why } => why,
        known => panic!("known: {known:?}"),
    }
}

#[tokio::test]
async fn approved_payment_found_and_refunded_once() {
    let fake = FakeGateway::start().await;
    let gateway = with_long_timeout(&fake);
    assert_eq!(gateway.status(REQUEST_ID, &charge_of("r-1")).await, StatusOutcome::NotFound);
    assert_eq!(gateway.cancel(REQUEST_ID, &charge_of("r-1"), 12_000, "EXPIRED").await, CancelOutcome::NotFound);
    assert_eq!(gateway.pay(REQUEST_ID, &charge_of("r-1"), None).await, approved("r-1"));
    assert_eq!(gateway.pay(REQUEST_ID, &charge_of("r-1"), None).await, approved("r-1"));
    assert_eq!(gateway.status(REQUEST_ID, &charge_of("r-1")).await, found("r-1"));
    assert_eq!((fake.taken("r-1"), fake.kept("r-1"), fake.posts("r-1")), (Some(12_000), 12_000, 2));
    assert_eq!(fake.order_of("r-1"), Some(7));
    for _ in 0..2 {
        assert_eq!(gateway.cancel(REQUEST_ID, &charge_of("r-1"), 12_000, "주문 취소").await, CancelOutcome::Cancelled);
    }
    let cancelled = "CANCELLED".to_owned();
    assert_eq!(
        gateway.status(REQUEST_ID, &charge_of("r-1")).await,
        StatusOutcome::Declined { reason: cancelled.clone() }
    );
    assert_eq!(gateway.pay(REQUEST_ID, &charge_of("r-1"), None).await, PayOutcome::Declined { reason: cancelled });
    assert!(fake.cancelled("r-1"));
    assert_eq!((fake.total_taken(), fake.total_given_back(), fake.total_kept()), (12_000, 12_000, 0));
    assert_eq!((fake.cancels("r-1"), fake.status_queries("r-1"), fake.total_posts()), (3, 3, 3));
    assert_eq!(fake.faults(), [""; 0]);
}

#[tokio::test]
async fn declined_payment_stays_declined() {
    let fake = FakeGateway::start().await;
    let gateway = with_long_timeout(&fake);
    fake.next(Behaviour::Decline);
    let reason = "LIMIT_EXCEEDED".to_owned();
    for _ in 0..2 {
        assert_eq!(
            gateway.pay(REQUEST_ID, &charge_of("r-1"), None).await,
            PayOutcome::Declined { reason: reason.clone() }
        );
    }
    assert_eq!(gateway.status(REQUEST_ID, &charge_of("r-1")).await, StatusOutcome::Declined { reason });
    assert_eq!(gateway.cancel(REQUEST_ID, &charge_of("r-1"), 12_000, "EXPIRED").await, CancelOutcome::NotFound);
    assert_eq!(fake.taken("r-1"), None);
    assert_eq!(gateway.pay(REQUEST_ID, &charge_of("r-2"), None).await, approved("r-2"));
    let mut uids = fake.uids();
    uids.sort();
    assert_eq!(uids, ["r-1", "r-2"]);
    assert_eq!(fake.faults(), [""; 0]);
}

#[tokio::test]
async fn payment_unknown_until_queried_when_no_reply() {
    let fake = FakeGateway::start().await;
    fake.next(Behaviour::Hang);
    fake.next(Behaviour::ApproveThenHang);
    pay_and_disconnect(&fake, "untaken").await;
    pay_and_disconnect(&fake, "taken").await;
    assert_eq!((fake.taken("untaken"), fake.taken("taken")), (None, Some(12_000)));
    let gateway = with_long_timeout(&fake);
    assert_eq!(gateway.status(REQUEST_ID, &charge_of("untaken")).await, StatusOutcome::NotFound);
    assert_eq!(gateway.status(REQUEST_ID, &charge_of("taken")).await, found("taken"));
    assert_eq!(gateway.pay(REQUEST_ID, &charge_of("untaken"), None).await, approved("untaken"));
    assert_eq!(gateway.pay(REQUEST_ID, &charge_of("taken"), None).await, approved("taken"));
    assert_eq!((fake.total_taken(), fake.total_posts()), (24_000, 4));
}

#[tokio::test]
async fn call_ends_by_its_timeout() {
    let fake = FakeGateway::start().await;
    let gateway = with_short_timeout(&fake);
    fake.always(Behaviour::Hang);
    fake.status_queries_are(QueryBehaviour::Hang);
    fake.cancels_are(QueryBehaviour::Hang);
    let why = "timed out".to_owned();
    assert_eq!(gateway.pay(REQUEST_ID, &charge_of("r-1"), None).await, PayOutcome::Unknown { why: why.clone() });
    assert_eq!(gateway.status(REQUEST_ID, &charge_of("r-1")).await, StatusOutcome::Unknown { why: why.clone() });
    assert_eq!(gateway.cancel(REQUEST_ID, &charge_of("r-1"), 12_000, "EXPIRED").await, CancelOutcome::Unknown { why });
}

#[tokio::test]
async fn late_payment_not_found_before_taken() {
    let fake = FakeGateway::start().await;
    let gateway = with_long_timeout(&fake);
    fake.next(Behaviour::ApproveLate);
    let charge = charge_of("r-1");
    let test = async {
        assert_eq!(fake.any_posted().await, "r-1");
        assert_eq!(gateway.status(REQUEST_ID, &charge_of("r-1")).await, StatusOutcome::NotFound);
        assert_eq!(fake.taken("r-1"), None);
        fake.release_late();
        assert_eq!(fake.taken("r-1"), Some(12_000));
        assert_eq!(gateway.status(REQUEST_ID, &charge_of("r-1")).await, found("r-1"));
    };
    let (outcome, ()) = tokio::join!(gateway.pay(REQUEST_ID, &charge, None), test);
    assert_eq!(outcome, approved("r-1"));
}

#[tokio::test]
async fn late_payment_taken_when_client_gone() {
    let fake = FakeGateway::start().await;
    fake.next(Behaviour::ApproveLate);
    pay_and_disconnect(&fake, "r-1").await;
    let gateway = with_long_timeout(&fake);
    assert_eq!(gateway.cancel(REQUEST_ID, &charge_of("r-1"), 12_000, "EXPIRED").await, CancelOutcome::NotFound);
    fake.release_late();
    assert_eq!(fake.kept("r-1"), 12_000);
    assert_eq!(gateway.cancel(REQUEST_ID, &charge_of("r-1"), 12_000, "EXPIRED").await, CancelOutcome::Cancelled);
    assert_eq!(fake.kept("r-1"), 0);
}

#[tokio::test]
async fn late_payment_retried_is_taken_once() {
    let fake = FakeGateway::start().await;
    fake.next(Behaviour::ApproveLate);
    pay_and_disconnect(&fake, "r-1").await;
    assert_eq!(with_long_timeout(&fake).pay(REQUEST_ID, &charge_of("r-1"), None).await, approved("r-1"));
    fake.release_late();
    assert_eq!((fake.total_taken(), fake.posts("r-1")), (12_000, 2));
}

#[tokio::test]
async fn payment_unknown_when_reply_invalid() {
    let answers = [
        (Behaviour::Garbage, false),
        (Behaviour::GarbageAfterApproval, true),
        (Behaviour::ServerError, false),
        (Behaviour::ServerErrorAfterApproval, true),
        (Behaviour::CutAfterApproval, true),
        (Behaviour::Answer(200, String::new()), false),
        (Behaviour::Answer(200, r#"{"errorCode": "E_LIMIT"}"#.to_owned()), false),
        (Behaviour::Answer(401, r#"{"error": "who are you"}"#.to_owned()), false),
        (Behaviour::Answer(410, r#"{"error": "gone"}"#.to_owned()), false),
        (Behaviour::Answer(429, r#"{"approved": false, "reason": "slow down"}"#.to_owned()), false),
        (Behaviour::Answer(404, r#"{"approved": false, "reason": "no such path"}"#.to_owned()), false),
        (Behaviour::Answer(302, String::new()), false),
    ];
    let fake = FakeGateway::start().await;
    let gateway = with_long_timeout(&fake);
    for (n, (behaviour, is_taken)) in answers.into_iter().enumerate() {
        let uid = format!("r-{n}");
        fake.next(behaviour.clone());
        let why = why(gateway.pay(REQUEST_ID, &charge_of(&uid), None).await);
        assert!(!why.is_empty() && !why.contains("127.0.0.1"), "{behaviour:?}: {why}");
        assert_eq!(fake.taken(&uid).is_some(), is_taken, "{behaviour:?}");
        assert_eq!(fake.posts(&uid), 1, "the client retried: {behaviour:?}");
        let status = if is_taken { found(&uid) } else { StatusOutcome::NotFound };
        assert_eq!(gateway.status(REQUEST_ID, &charge_of(&uid)).await, status, "{behaviour:?}");
    }
    assert_eq!(fake.faults(), [""; 0]);
}

#[tokio::test]
async fn reply_read_up_to_limit() {
    let fake = FakeGateway::start().await;
    let gateway = with_long_timeout(&fake);
    let padded = |bytes: usize| {
        let reply = r#"{"approved": true, "transactionId": "tx"}"#;
        Behaviour::Answer(200, format!("{reply}{}", " ".repeat(bytes - reply.len())))
    };
    fake.next(padded(64 * 1024));
    assert_eq!(
        gateway.pay(REQUEST_ID, &charge_of("r-1"), None).await,
        PayOutcome::Approved { transaction_id: "tx".to_owned() }
    );
    fake.next(padded(64 * 1024 + 1));
    assert!(why(gateway.pay(REQUEST_ID, &charge_of("r-2"), None).await).contains("more than 65536 bytes"));
}

#[tokio::test]
async fn query_and_cancel_unknown_when_reply_unclear() {
    let fake = FakeGateway::start().await;
    let gateway = with_long_timeout(&fake);
    assert_eq!(gateway.pay(REQUEST_ID, &charge_of("r-1"), None).await, approved("r-1"));
    for behaviour in [
        QueryBehaviour::ServerError,
        QueryBehaviour::Garbage,
        QueryBehaviour::Hang,
        QueryBehaviour::ThenServerError,
        QueryBehaviour::ThenHang,
    ] {
        let hangs = matches!(behaviour, QueryBehaviour::Hang | QueryBehaviour::ThenHang);
        let gateway = if hangs { with_short_timeout(&fake) } else { with_long_timeout(&fake) };
        fake.status_queries_are(behaviour.clone());
        fake.cancels_are(behaviour.clone());
        let status = gateway.status(REQUEST_ID, &charge_of("r-1")).await;
        assert!(matches!(status, StatusOutcome::Unknown { .. }), "{behaviour:?}: {status:?}");
        let cancel = gateway.cancel(REQUEST_ID, &charge_of("r-1"), 12_000, "EXPIRED").await;
        assert!(matches!(cancel, CancelOutcome::Unknown { .. }), "{behaviour:?}: {cancel:?}");
        assert_eq!(
            fake.cancelled("r-1"),
            behaviour == QueryBehaviour::ThenServerError || behaviour == QueryBehaviour::ThenHang
        );
    }
    fake.queried("r-1", 3).await;
    fake.cancels_are(QueryBehaviour::Truthful);
    assert_eq!(gateway.cancel(REQUEST_ID, &charge_of("r-1"), 12_000, "EXPIRED").await, CancelOutcome::Cancelled);
    assert_eq!(fake.total_kept(), 0);
}

#[tokio::test]
async fn payment_unknown_when_gateway_unreachable() {
    let fake = FakeGateway::start().await;
    let gateway = with_long_timeout(&fake);
    fake.always(Behaviour::Hang);
    let charge = charge_of("r-1");
    let dies = async {
        fake.posted("r-1", 1).await;
        drop(fake);
    };
    let (outcome, ()) = tokio::join!(gateway.pay(REQUEST_ID, &charge, None), dies);
    assert!(!why(outcome).is_empty());
    assert!(!why(gateway.pay(REQUEST_ID, &charge_of("r-2"), None).await).contains("127.0.0.1"));
    assert!(matches!(gateway.status(REQUEST_ID, &charge_of("r-1")).await, StatusOutcome::Unknown { .. }));
    assert!(matches!(
        gateway.cancel(REQUEST_ID, &charge_of("r-1"), 12_000, "EXPIRED").await,
        CancelOutcome::Unknown { .. }
    ));
}

#[tokio::test]
async fn payment_unknown_in_time_when_gateway_silent() {
    // The kernel accepts connections; no task reads from them.
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let gateway = gateway_at(&format!("http://{}", listener.local_addr().unwrap()), SHORT_TIMEOUT);
    assert_eq!(why(gateway.pay(REQUEST_ID, &charge_of("r-1"), None).await), "timed out");
}

#[tokio::test]
async fn payment_uid_escaped_in_path() {
    let fake = FakeGateway::start().await;
    let gateway = with_long_timeout(&fake);
    for uid in ["a/cancel", "../payments", "a?b#c", "100%", "영수증"] {
        assert_eq!(gateway.status(REQUEST_ID, &charge_of(uid)).await, StatusOutcome::NotFound, "{uid}");
        assert_eq!(fake.status_queries(uid), 1, "{uid}");
    }
    for uid in ["", ".", ".."] {
        assert!(why(gateway.pay(REQUEST_ID, &charge_of(uid), None).await).contains("not sent"));
        assert!(matches!(gateway.status(REQUEST_ID, &charge_of(uid)).await, StatusOutcome::Unknown { .. }));
        assert!(matches!(
            gateway.cancel(REQUEST_ID, &charge_of(uid), 1, "EXPIRED").await,
            CancelOutcome::Unknown { .. }
        ));
    }
    assert_eq!(fake.total_posts(), 0);
}

#[tokio::test]
async fn token_sent_with_every_call() {
    let fake = FakeGateway::start().await;
    let config = |token: Option<&str>| HttpGatewayConfig {
        url: format!("{}/", fake.url()),
        timeout: LONG_TIMEOUT,
        token: token.map(str::to_owned),
    };
    let gateways = Gateways::connect([(PaymentType::KakaoPay, config(Some("s3cret")))]).unwrap();
    let gateway = gateways.get(PaymentType::KakaoPay).unwrap();
    let expected = Some("Bearer s3cret".to_owned());
    gateway.status(REQUEST_ID, &charge_of("r-1")).await;
    assert_eq!(fake.authorization(), expected);
    assert_eq!(fake.header("x-request-id").as_deref(), Some(REQUEST_ID));
    assert_eq!(fake.header("traceparent"), None, "a call outside of a trace has no trace context");
    with_long_timeout(&fake).status(REQUEST_ID, &charge_of("r-1")).await;
    assert_eq!(fake.authorization(), None);
    gateway.pay(REQUEST_ID, &charge_of("r-1"), None).await;
    assert_eq!(fake.authorization(), expected);
    with_long_timeout(&fake).status(REQUEST_ID, &charge_of("r-1")).await;
    gateway.cancel(REQUEST_ID, &charge_of("r-1"), 12_000, "EXPIRED").await;
    assert_eq!(fake.authorization(), expected);
}

#[tokio::test]
async fn concurrent_payments_each_taken_once() {
    let fake = FakeGateway::start().await;
    let gateway: Arc<dyn PaymentGateway> = Arc::new(with_long_timeout(&fake));
    let payments: Vec<_> = (0..600)
        .map(|n| {
            let gateway = Arc::clone(&gateway);
            tokio::spawn(async move {
                let charge = charge_of(&format!("r-{n}"));
                // On an overloaded machine even the connection may time out; then the outcome is unknown and the call
                // is repeated.
                loop {
                    match gateway.pay(REQUEST_ID, &charge, None).await {
                        PayOutcome::Unknown { .. } => {}
                        known => return known,
                    }
                }
            })
        })
        .collect();
    for (n, payment) in payments.into_iter().enumerate() {
        assert_eq!(payment.await.unwrap(), approved(&format!("r-{n}")));
    }
    assert_eq!(fake.total_taken(), 600 * 12_000);
    assert!(fake.total_posts() >= 600);
    assert_eq!(fake.faults(), [""; 0]);
}
