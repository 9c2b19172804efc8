//! Scripts that refund parts of orders, and the end of an order after that.

use super::*;

#[tokio::test]
async fn order_refund_matches_header() {
    let mut bench = Bench::start(1).await;
    let product = bench.ordered(10, 1, 50_000, 4).await;
    for raw in [bench.product_create(5, 333, 10), bench.place(11, 1, &[(product, 3), (5, 2)])] {
        bench.run(&raw).await;
    }
    let refund = bench.refund(11, 1, &[(product, 1), (5, 2)]);
    bench.needs_open_partition(&refund).await;
    bench.needs_its_own_key(&refund, true).await;
    let (others, unknown) = (bench.refund(11, 2, &[(5, 1)]), bench.refund(99, 1, &[(5, 1)]));
    bench.leaves_all("ORDER_NOT_FOUND", &others).await;
    bench.leaves_all("ORDER_NOT_FOUND", &unknown).await;
    bench.leaves_all("NOT_PAID", &refund).await;
    bench.decides("PAID", &bench.pay(11, 1, 3_666)).await;
    // The window is over at its first millisecond, and has no end for operators.
    bench.leaves_all("WINDOW_CLOSED", &refund.with(1, START.0 + HOUR_MS * 24)).await;
    bench.leaves_all("WINDOW_CLOSED", &refund.with(9, 0)).await;
    bench.leaves_all("STALE", &refund.with(7, "20260301")).await;
    for lines in [&[(product, 4)][..], &[(product, 1), (5, 3)], &[(6, 1)], &[(product, 1), (6, 1)], &[(5, 1), (5, 2)]] {
        bench.leaves_all("NOT_REFUNDABLE", &bench.refund(11, 1, lines)).await;
    }
    bench.leaves_all("STALE", &bench.refund(11, 1, &[(product, 3), (5, 2)])).await;

    let (reply, event) = bench.decides_once("REFUNDED", &refund.with(1, START.0 + HOUR_MS * 24 - 1)).await;
    assert_eq!(reply[3..5], [format!("{product}:2:1000"), "2000".to_owned()]);
    let Body::OrderRefunded(part) = &event.body else { panic!("{event:?}") };
    assert_eq!((part.order.get(), part.user.get(), part.part, part.amount), (11, 1, 1, 1_666));
    assert_eq!((part.lines.len(), part.left.len(), part.quarantined, part.by_gateway), (2, 1, false, false));
    assert_eq!((part.receipt.as_str(), part.day.as_str(), &part.operator), ("receipt-11", DAY, &None));
    let entry = part.entry.as_ref().unwrap();
    assert_eq!((entry.before, entry.amount, entry.after), (46_334, 1_666, 48_000));
    // An operator, later, off sale.
    let later = START.0 + HOUR_MS * 100;
    let used = bench.refund(11, 1, &[(product, 1)]).with(1, later).with(8, later + 1).with(9, "").with(10, 0);
    let (reply, event) = bench.decides_once("REFUNDED", &used.with(11, "kim").with(12, "worn")).await;
    assert_eq!(reply[3..5], [format!("{product}:1:1000"), "1000".to_owned()]);
    let Body::OrderRefunded(part) = &event.body else { panic!("{event:?}") };
    assert_eq!((part.part, part.amount, part.quarantined), (2, 1_000, true));
    assert_eq!(part.operator, Some(("kim".to_owned(), "worn".to_owned())));

    // The rest: of exactly these lines only, and then there is no order to refund.
    let rest = bench.close(11, 1, "REFUND", DAY).with(14, 0).with(15, "kim").with(16, "worn");
    bench.leaves_all("STALE", &rest.with(13, format!("{product}:2:1000"))).await;
    bench.leaves_all("WINDOW_CLOSED", &rest.with(1, START.0 + HOUR_MS * 24)).await;
    let (_, event) = bench.decides_once("CLOSED", &rest.with(13, format!("{product}:1:1000"))).await;
    let Body::OrderClosed(closed) = &event.body else { panic!("{event:?}") };
    assert_eq!((closed.lines[0].quantity, closed.quarantined), (1, true));
    assert_eq!((closed.entry.as_ref().unwrap().amount, closed.reason), (1_000, CloseReason::Refunded));
    assert_eq!(closed.operator, Some(("kim".to_owned(), "worn".to_owned())));
    bench.leaves_all("ALREADY_CLOSED", &refund).await;
    bench.covers(&[&script::ORDER_REFUND]);
    bench.finish().await;
}

#[tokio::test]
async fn refund_finish_matches_header() {
    let mut bench = Bench::start(1).await;
    let product = bench.ordered(10, 1, 4_000, 4).await;
    bench.decides("STARTED", &bench.payment_begin(10, 1, 4_000)).await;
    bench.decides("PAID", &bench.pay_by_gateway(10, 1, 4_000)).await;
    let (part, first) = (bench.refund(10, 1, &[(product, 1)]), bench.refund_finish(10, 1, 1));
    bench.leaves_all("NOT_OPEN", &first).await;
    for n in 1..=2 {
        let (_, event) = bench.decides("REFUNDED", &part).await;
        let Body::OrderRefunded(part) = &event.body else { panic!("{event:?}") };
        assert_eq!((part.part, part.amount, part.by_gateway, part.entry.is_none()), (n, 1_000, true, true));
    }
    // The gateway owes as many parts as it may.
    bench.leaves_all("IN_PROGRESS", &part).await;
    bench.needs_open_partition(&first).await;
    for other in [bench.refund_finish(10, 1, 2), first.with(5, "receipt-of-another")] {
        bench.leaves_all("NOT_OPEN", &other).await;
    }
    let (_, event) = bench.decides("FINISHED", &first).await;
    let Body::RefundEnded { order, receipt, part: ended, refunds } = &event.body else { panic!("{event:?}") };
    assert_eq!((order.get(), receipt.as_str(), *ended, *refunds), (10, "receipt-10", 1, 2));
    bench.leaves_all("NOT_OPEN", &first).await;
    // The rest is refunded after the parts.
    bench.decides("CLOSED", &bench.close(10, 1, "CANCEL", DAY)).await;
    let end = bench.payment_finish(10, 1, "REFUNDED");
    bench.leaves_all("NOT_OPEN", &end).await;
    bench.decides("FINISHED", &bench.refund_finish(10, 1, 2)).await;
    bench.decides("FINISHED", &end).await;
    bench.covers(&[&script::REFUND_FINISH]);
    bench.finish().await;
}
