//! Scripts of payments through a gateway.

use super::*;

#[tokio::test]
async fn payment_scripts_match_headers() {
    let mut bench = Bench::start(1).await;
    let product = bench.ordered(10, 1, 50_000, 2).await;
    for order in 11..=14 {
        let place = bench.place(order, 1, &[(product, 1)]);
        bench.decides("PLACED", &place).await;
    }
    let begin = bench.payment_begin(10, 1, 2_000);
    bench.needs_open_partition(&begin).await;
    bench.needs_its_own_key(&begin, true).await;
    let (others, unknown) = (bench.payment_begin(10, 2, 2_000), bench.payment_begin(99, 1, 2_000));
    bench.leaves_all("ORDER_NOT_FOUND", &others).await;
    bench.leaves_all("ORDER_NOT_FOUND", &unknown).await;
    bench.leaves_all("WRONG_AMOUNT", &begin.with(7, 1_999)).await;
    let prepare = bench.payment_prepare(10, 1);
    bench.needs_open_partition(&prepare).await;
    bench.leaves_all("ORDER_NOT_FOUND", &bench.payment_prepare(10, 2)).await;
    bench.leaves_all("ORDER_NOT_FOUND", &bench.payment_prepare(99, 1)).await;
    assert_eq!(bench.run(&prepare).await, ["PREPARED"]);
    let begin = begin.keyed("payment", "mine").with(12, "payment").with(13, "tx-10");
    let (_, event) = bench.decides("STARTED", &begin).await;
    let Body::PaymentStarted(started) = &event.body else { panic!("{event:?}") };
    assert_eq!((started.order.get(), started.user.get(), started.payment.get()), (10, 1, 17));
    assert_eq!((started.amount, started.receipt.as_str()), (2_000, "receipt-10"));
    assert_eq!(started.transaction.as_deref(), Some("tx-10"));
    bench.leaves_all("IN_PROGRESS", &prepare).await;
    // The repeat gets "in progress", and so does another request for the order; only the gateway's outcome ends it.
    bench.leaves_all("IN_PROGRESS", &begin).await;
    bench.leaves_all("KEY_REUSED", &begin.keyed("payment", "another")).await;
    bench.leaves_all("IN_PROGRESS", &bench.payment_begin(10, 1, 2_000)).await;
    bench.leaves_all("IN_PROGRESS", &bench.pay(10, 1, 2_000)).await;
    bench.leaves_all("IN_PROGRESS", &bench.close(10, 1, "CANCEL", "")).await;
    bench.leaves_all("NOT_DUE", &bench.close(10, 1, "EXPIRE", "").with(1, START.0 + HOUR_MS)).await;
    // The receipt identifies the gateway's outcome.
    let settle = bench.pay_by_gateway(10, 1, 2_000).keyed("payment", "mine");
    bench.needs_open_partition(&settle).await;
    bench.leaves_all("ALREADY_CLOSED", &settle.with(9, "receipt-of-another")).await;
    let (reply, event) = bench.decides("PAID", &settle).await;
    let Body::OrderPaid(paid) = &event.body else { panic!("{event:?}") };
    assert_eq!((paid.transaction.as_deref(), paid.entry.is_none()), (Some("tx-10"), true));
    // Said twice it is the same answer; the client's repeat finds it under its key.
    assert_eq!(bench.leaves_all("PAID_BEFORE", &settle).await[1..], reply[3..]);
    let replayed = bench.leaves_all("REPLAYED", &begin).await;
    assert_eq!(replayed[1..], reply);
    bench.leaves_all("ALREADY_PAID", &bench.payment_begin(10, 1, 2_000)).await;
    bench.leaves_all("ALREADY_PAID", &prepare).await;
    bench.leaves_all("ALREADY_PAID", &bench.decline(10, 1)).await;
    bench.leaves_all("NOT_OPEN", &bench.payment_finish(10, 1, "REFUNDED")).await;

    // Its refund goes through the gateway, until that has given it back.
    let (_, event) = bench.decides_once("CLOSED", &bench.close(10, 1, "CANCEL", DAY)).await;
    let Body::OrderClosed(closed) = &event.body else { panic!("{event:?}") };
    assert_eq!((closed.by_gateway, closed.entry.is_none()), (true, true));
    bench.leaves_all("ALREADY_CLOSED", &settle).await;
    bench.leaves_all("ALREADY_CLOSED", &prepare).await;
    let end = bench.payment_finish(10, 1, "REFUNDED");
    bench.needs_open_partition(&end).await;
    bench.leaves_all("NOT_OPEN", &end.with(5, "receipt-of-another")).await;
    let (_, event) = bench.decides("FINISHED", &end).await;
    let Body::PaymentEnded { order, receipt, outcome, .. } = &event.body else { panic!("{event:?}") };
    assert_eq!((order.get(), receipt.as_str(), *outcome), (10, "receipt-10", PaymentOutcome::Refunded));
    bench.leaves_all("NOT_OPEN", &end).await;

    // Declined for certain; and not for certain, after which it is watched.
    let begin = bench.payment_begin(11, 1, 1_000).keyed("declined", "mine").with(12, "declined");
    bench.decides("STARTED", &begin).await;
    let decline = bench.decline(11, 1).keyed("declined", "mine");
    bench.needs_open_partition(&decline).await;
    let (reply, event) = bench.decides("DECLINED", &decline).await;
    let Body::OrderClosed(closed) = &event.body else { panic!("{event:?}") };
    assert_eq!((closed.status, closed.receipt.as_deref()), (OrderStatus::Failed, Some("receipt-11")));
    let replayed = bench.leaves_all("REPLAYED", &begin).await;
    assert_eq!(replayed[1..], reply);
    bench.leaves_all("ALREADY_CLOSED", &bench.payment_begin(11, 1, 1_000)).await;
    bench.leaves_all("ALREADY_CLOSED", &bench.pay_by_gateway(11, 1, 1_000)).await;
    bench.leaves_all("ALREADY_CLOSED", &decline).await;
    bench.leaves_all("NOT_OPEN", &bench.payment_finish(11, 1, "DECLINED")).await;
    for (order, outcome) in [(12, "DECLINED"), (13, "REFUNDED")] {
        bench.decides("STARTED", &bench.payment_begin(order, 1, 1_000)).await;
        bench.decides("DECLINED", &bench.decline(order, 1).with(11, 5_000)).await;
        bench.leaves_all("ALREADY_CLOSED", &bench.pay_by_gateway(order, 1, 1_000)).await;
        bench.decides("FINISHED", &bench.payment_finish(order, 1, outcome)).await;
    }
    bench.decides("STARTED", &bench.payment_begin(14, 1, 1_000)).await;
    bench.covers(&[&script::PAYMENT_BEGIN, &script::PAYMENT_FINISH, &script::PAYMENT_PREPARE]);
    bench.finish().await;
}

#[tokio::test]
async fn payment_postpone_and_resolve_match_headers() {
    let mut bench = Bench::start(1).await;
    let product = bench.ordered(10, 1, 50_000, 2).await;
    bench.decides("PLACED", &bench.place(11, 1, &[(product, 1)])).await;
    let (postpone, approve) = (bench.payment_postpone(10, START.0 + 4_000), bench.payment_resolve(10, 1, "APPROVED"));
    bench.leaves_all("NOT_OPEN", &postpone).await;
    bench.leaves_all("NOT_OPEN", &approve).await;
    bench.leaves_all("ORDER_NOT_FOUND", &bench.payment_resolve(99, 1, "APPROVED")).await;
    bench.decides("STARTED", &bench.payment_begin(10, 1, 2_000)).await;
    let begin = bench.payment_begin(11, 1, 1_000).keyed("payment", "mine").with(12, "payment");
    bench.decides("STARTED", &begin).await;

    bench.needs_open_partition(&postpone).await;
    bench.leaves_all("NOT_OPEN", &postpone.with(2, "receipt-of-another")).await;
    let here = bench.keys(10);
    for asks in 1..=2 {
        assert_eq!(bench.run(&postpone).await, ["POSTPONED"]);
        let mut read = redis::cmd("HMGET");
        read.arg(order_key(here, 10)).arg(&["gateway_asks", "gateway_said"]);
        let kept: (i64, String) = read.query_async(&mut bench.redis).await.unwrap();
        assert_eq!(kept, (asks, "HTTP 500 decides nothing".to_owned()));
    }
    let due = redis::cmd("ZSCORE").arg(here.gateway()).arg(10).query_async::<i64>(&mut bench.redis).await.unwrap();
    assert_eq!(due, START.0 + 4_000);

    bench.needs_open_partition(&approve).await;
    bench.needs_its_own_key(&approve, true).await;
    bench.leaves_all("STALE", &approve.with(6, "receipt-of-another")).await;
    bench.leaves_all("STALE", &approve.with(7, "key-of-another")).await;
    bench.leaves_all("OTHER_DAY", &approve.with(1, START.0 + 24 * HOUR_MS)).await;
    // Each is two decisions: the order's, and the operator's, with a record each.
    let decline = bench.payment_resolve(11, 1, "DECLINED").with(7, "payment");
    let mut decline_keyed = decline.keyed("act-11", "operator");
    decline_keyed.keys[3] = here.record("payment");
    for (raw, status, kind) in
        [(approve.keyed("act-10", "operator"), "PAID", "paid"), (decline_keyed, "FAILED", "closed")]
    {
        let (length, seq) = bench.position(raw.partition()).await;
        let reply = bench.run(&raw).await;
        assert_eq!(reply, ["RESOLVED", "1", &(seq + 2).to_string(), status, raw.now()]);
        assert_eq!(bench.position(raw.partition()).await, (length + 2, seq + 2));
        let mut last = redis::cmd("XREVRANGE");
        last.arg(here.outbox()).arg("+").arg("-").arg("COUNT").arg(2);
        let last: Vec<(String, Vec<(String, String)>)> = last.query_async(&mut bench.redis).await.unwrap();
        let mut events = last.iter().map(|(_, fields)| event::decode(fields).pop().unwrap().event.unwrap());
        let (resolved, decided) = (events.next().unwrap(), events.next().unwrap());
        assert_eq!((decided.seq, resolved.seq), (seq + 1, seq + 2));
        let Body::PaymentResolved(resolution) = &resolved.body else { panic!("{resolved:?}") };
        assert_eq!((resolution.operator.as_str(), resolution.reason.as_str()), ("kim", "seen"));
        assert_eq!(resolution.approved, status == "PAID");
        assert_eq!(unpack_reply(&resolved.record.as_ref().unwrap().reply).unwrap(), reply);
        match (&decided.body, kind) {
            (Body::OrderPaid(paid), "paid") => {
                assert_eq!((paid.by_gateway, &paid.transaction, paid.entry.is_none()), (true, &None, true));
            }
            (Body::OrderClosed(closed), "closed") => {
                assert_eq!((closed.status, closed.watched, closed.withheld), (OrderStatus::Failed, true, false));
                assert_eq!(decided.record.as_ref().unwrap().digest, "payment");
            }
            _ => panic!("{decided:?}"),
        }
        assert_eq!(bench.leaves_all("REPLAYED", &raw).await[1..], reply);
        bench.leaves_all("KEY_REUSED", &raw.keyed(if kind == "paid" { "act-10" } else { "act-11" }, "another")).await;
    }
    // Its client finds the outcome under its own key.
    assert_eq!(bench.leaves_all("REPLAYED", &begin).await[1], "DECLINED");
    bench.leaves_all("NOT_OPEN", &approve).await;
    // What the gateway says afterwards ends an approved payment in its own way, and no other.
    bench.leaves_all("NOT_OPEN", &bench.payment_finish(10, 1, "REFUNDED")).await;
    bench.leaves_all("NOT_OPEN", &bench.payment_finish(11, 1, "SETTLED")).await;
    let (_, event) = bench.decides("FINISHED", &bench.payment_finish(10, 1, "SETTLED").with(7, "tx-10")).await;
    let Body::PaymentEnded { outcome, transaction, .. } = &event.body else { panic!("{event:?}") };
    assert_eq!((*outcome, transaction.as_deref()), (PaymentOutcome::Settled, Some("tx-10")));
    bench.decides("FINISHED", &bench.payment_finish(11, 1, "DECLINED")).await;
    bench.leaves_all("NOT_OPEN", &postpone).await;
    bench.covers(&[&script::PAYMENT_POSTPONE, &script::PAYMENT_RESOLVE]);
    bench.finish().await;
}
