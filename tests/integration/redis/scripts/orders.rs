//! Scripts that place, pay and close orders.

use super::*;

#[tokio::test]
async fn order_place_matches_header() {
    let mut bench = Bench::start(1).await;
    for raw in [
        bench.users_create(1, 2, 10_000),
        bench.product_create(1, 1_000, 5),
        bench.product_create(2, 300, 1),
        bench.product_create(3, 100, 0),
        bench.product_create(4, 1_000_000_000_000, 10_000),
        bench.campaign_create(1, "PERCENTAGE", 33, 5),
        bench.campaign_create(2, "FIXED", 99_999, 5),
        bench.coupon_issue(1, 1),
        bench.coupon_issue(2, 1),
    ] {
        bench.run(&raw).await;
    }
    let place = bench.place(10, 1, &[(1, 2), (2, 1)]);
    bench.needs_open_partition(&place).await;
    bench.needs_its_own_key(&place, true).await;
    let unknown_user = bench.place(10, 9, &[(1, 2)]);
    bench.leaves_all("USER_NOT_FOUND", &unknown_user).await;
    bench.leaves_all("TOO_MANY_OPEN", &place.with_shared(3, 0)).await;
    for (lines, word, product) in [
        (&[(1, 1), (77, 1)][..], "PRODUCT_NOT_FOUND", "77"),
        // An unknown product is reported before a short one, and the first short one before the others.
        (&[(3, 1), (77, 1)], "PRODUCT_NOT_FOUND", "77"),
        (&[(1, 1), (3, 1)], "SOLD_OUT", "3"),
        (&[(1, 6), (3, 1)], "INSUFFICIENT_STOCK", "1"),
        (&[(1, 5), (2, 2)], "INSUFFICIENT_STOCK", "2"),
    ] {
        let raw = bench.place(10, 1, lines);
        let reply = bench.leaves_all(word, &raw).await;
        assert_eq!(reply[1], product);
        bench.leaves_all(word, &raw.keyed("k", "mine")).await;
    }
    // The terms of sale come before the stock, and the window before the limit.
    let (opens, closes) = (START.0 + 1, START.0 + 2);
    for (id, terms) in
        [(6, format!("{opens}|{closes}||")), (7, "||2|".into()), (8, "||2|G-1".into()), (9, "||2|G-1".into())]
    {
        bench.run(&bench.product_create(id, 10, i64::from(id != 9)).with(10, terms)).await;
    }
    bench.run(&bench.limit_group_set("G-1", 2)).await;
    for (lines, word) in [
        (&[(6, 9)][..], "NOT_ON_SALE"),
        (&[(7, 3), (6, 1)], "NOT_ON_SALE"),
        (&[(6, 1), (77, 1)], "PRODUCT_NOT_FOUND"),
        (&[(3, 1), (7, 3)], "PURCHASE_LIMIT_EXCEEDED"),
        (&[(8, 1), (9, 2)], "PURCHASE_LIMIT_EXCEEDED"),
        (&[(8, 1), (9, 1)], "SOLD_OUT"),
        (&[(7, 2)], "INSUFFICIENT_STOCK"),
    ] {
        bench.leaves_all(word, &bench.place(10, 1, lines)).await;
    }
    bench.leaves_all("NOT_ON_SALE", &bench.place(10, 1, &[(6, 1)]).with(1, closes)).await;
    bench.leaves_all("INSUFFICIENT_STOCK", &bench.place(10, 1, &[(6, 2)]).with(1, opens)).await;
    let dear = bench.place(10, 1, &[(4, 10_000)]).with_shared(4, 0);
    bench.leaves_all("OVERFLOW", &dear).await;
    bench.leaves_all("INSUFFICIENT_BALANCE", &bench.place(10, 1, &[(4, 1)])).await;
    // Coupons of another user, of no campaign, and after their end.
    let with_coupon = |raw: &Raw, id: i64, kind: &str, amount: i64| {
        raw.with(6, id).with(7, kind).with(8, amount).with(9, START.0 + 2 * HOUR_MS)
    };
    let discounted = with_coupon(&place, 1, "PERCENTAGE", 33);
    bench.leaves_all("INVALID_COUPON", &with_coupon(&place, 3, "FIXED", 1)).await;
    bench.leaves_all("INVALID_COUPON", &place.with(6, 3)).await;
    let others = bench.place(10, 2, &[(1, 1)]);
    bench.leaves_all("INVALID_COUPON", &with_coupon(&others, 1, "PERCENTAGE", 33)).await;
    bench.leaves_all("INVALID_COUPON", &discounted.with(1, START.0 + 2 * HOUR_MS)).await;
    // The order is of 2,300, and none of its lines qualifies.
    for unmet in ["2301||", "||00", "1|5|00"] {
        bench.leaves_all("INVALID_COUPON", &discounted.with(10, unmet)).await;
    }

    let (reply, event) = bench.decides_once("PLACED", &discounted).await;
    // 33 % of 2,300 is 759.
    assert_eq!(reply[3..], ["10".to_owned(), "1541".to_owned(), START.0.to_string()]);
    let Body::OrderPlaced(placed) = &event.body else { panic!("{event:?}") };
    assert_eq!((placed.order.get(), placed.user.get()), (10, 1));
    assert_eq!((placed.total, placed.discount, placed.final_price), (2_300, 759, 1_541));
    assert_eq!((placed.coupon.unwrap().get(), placed.expires_at), (1, START.plus(HOUR_MS)));
    let lines: Vec<_> = placed.lines.iter().map(|l| (l.product_id.get(), l.quantity, l.price)).collect();
    assert_eq!(lines, [(1, 2, 1_000), (2, 1, 300)]);
    let again = bench.place(11, 1, &[(1, 1)]);
    bench.leaves_all("INVALID_COUPON", &with_coupon(&again, 1, "PERCENTAGE", 33)).await;
    bench.leaves_all("SOLD_OUT", &bench.place(11, 1, &[(2, 1)])).await;
    // A discount above the total makes a final price of 0. All conditions are met.
    let (reply, _) = bench.decides("PLACED", &with_coupon(&again, 2, "FIXED", 99_999).with(10, "1000||1")).await;
    assert_eq!(reply[4], "0");
    bench.leaves_all("TOO_MANY_OPEN", &bench.place(12, 1, &[(1, 1)]).with_shared(3, 2)).await;

    // After a loss, an id may have been used before.
    bench.leaves_all("ALREADY_EXISTS", &bench.place(10, 1, &[(1, 1)])).await;
    bench.covers(&[&script::ORDER_PLACE]);
    bench.finish().await;
}

#[tokio::test]
async fn order_checkout_matches_header() {
    let mut bench = Bench::start(1).await;
    for raw in [
        bench.users_create(1, 2, 10_000),
        bench.product_create(1, 1_000, 5),
        bench.product_create(2, 300, 1),
        bench.product_create(3, 100, 0),
        bench.product_create(4, 1_000_000_000_000, 10_000),
        bench.product_create(5, 0, 9).with(10, "||2|G-1"),
        bench.product_create(6, 10, 9).with(10, format!("{}|||", START.0 + 1)),
        bench.limit_group_set("G-1", 2),
        bench.campaign_create(1, "FIXED", 500, 5),
        bench.coupon_issue(1, 1),
    ] {
        bench.run(&raw).await;
    }
    let checkout = bench.checkout(10, 1, &[(1, 2), (2, 1)]);
    bench.needs_open_partition(&checkout).await;
    bench.needs_its_own_key(&checkout, true).await;
    let unknown_user = bench.checkout(10, 9, &[(1, 2)]);
    bench.leaves_all("USER_NOT_FOUND", &unknown_user).await;
    bench.leaves_all("TOO_MANY_OPEN", &checkout.with_shared(3, 0)).await;
    for (lines, word) in [
        (&[(1, 1), (77, 1)][..], "PRODUCT_NOT_FOUND"),
        (&[(6, 9)], "NOT_ON_SALE"),
        (&[(3, 1), (5, 3)], "PURCHASE_LIMIT_EXCEEDED"),
        (&[(1, 1), (3, 1)], "SOLD_OUT"),
        (&[(1, 6)], "INSUFFICIENT_STOCK"),
        (&[(4, 1)], "INSUFFICIENT_BALANCE"),
        (&[(4, 10_000)], "OVERFLOW"),
    ] {
        bench.leaves_all(word, &bench.checkout(10, 1, lines)).await;
        bench.leaves_all(word, &bench.checkout(10, 1, lines).keyed("k", "mine")).await;
    }
    let with_coupon = |raw: &Raw| raw.with(6, 1).with(7, "FIXED").with(8, 500).with(9, START.0 + 2 * HOUR_MS);
    let discounted = with_coupon(&checkout);
    bench.leaves_all("INVALID_COUPON", &with_coupon(&bench.checkout(10, 2, &[(1, 1)]))).await;
    bench.leaves_all("INVALID_COUPON", &discounted.with(10, "2301||")).await;
    // The day in the call must be the day of Redis's clock.
    let today = CalendarDay::of(START, chrono_tz::Asia::Seoul);
    for now in [today.from.0 - 1, today.until.0] {
        assert_eq!(bench.leaves_all("OTHER_DAY", &checkout.with(1, now)).await[1], now.to_string());
    }

    let (reply, event) = bench.decides_once("CHECKED_OUT", &discounted).await;
    let expected = ["10".to_owned(), "1800".to_owned(), START.0.to_string(), "17".to_owned(), "receipt-10".to_owned()];
    assert_eq!(reply[3..], expected);
    let Body::OrderPaid(paid) = &event.body else { panic!("{event:?}") };
    assert_eq!((paid.order.get(), paid.user.get(), paid.payment.get(), paid.amount), (10, 1, 17, 1_800));
    assert_eq!((paid.receipt.as_str(), paid.transaction.as_deref(), paid.day.as_str()), ("receipt-10", None, DAY));
    let entry = paid.entry.as_ref().unwrap();
    assert_eq!((entry.entry_no, entry.before, entry.amount, entry.after), (2, 10_000, 1_800, 8_200));
    // Nothing of it is open, and its coupon is used.
    bench.leaves_all("INVALID_COUPON", &with_coupon(&bench.checkout(11, 1, &[(1, 1)]))).await;
    bench.leaves_all("ALREADY_PAID", &bench.pay(10, 1, 1_800)).await;
    bench.leaves_all("ALREADY_EXISTS", &bench.checkout(10, 1, &[(1, 1)])).await;
    // A price of 0 writes no entry. Paid units count against the limit, and come back with a refund.
    let (_, event) = bench.decides("CHECKED_OUT", &bench.checkout(12, 1, &[(5, 2)])).await;
    assert!(matches!(&event.body, Body::OrderPaid(paid) if paid.entry.is_none()), "{event:?}");
    bench.leaves_all("PURCHASE_LIMIT_EXCEEDED", &bench.checkout(13, 1, &[(5, 1)])).await;
    bench.decides("CLOSED", &bench.close(12, 1, "CANCEL", DAY)).await;
    bench.decides("CHECKED_OUT", &bench.checkout(13, 1, &[(5, 1)])).await;
    bench.covers(&[&script::ORDER_CHECKOUT]);
    bench.finish().await;
}

#[tokio::test]
async fn order_pay_matches_header() {
    let mut bench = Bench::start(1).await;
    bench.ordered(10, 1, 5_000, 4).await;
    for raw in [bench.campaign_create(1, "FIXED", 100, 5), bench.coupon_issue(1, 1)] {
        bench.run(&raw).await;
    }
    let second = bench.place(11, 1, &[(900, 2)]).with(6, 1).with(7, "FIXED").with(8, 100);
    let second = second.with(9, START.0 + 2 * HOUR_MS);
    bench.decides("PLACED", &second).await;
    let pay = bench.pay(10, 1, 4_000);
    bench.needs_open_partition(&pay).await;
    bench.needs_its_own_key(&pay, true).await;
    let (others, unknown) = (bench.pay(10, 2, 4_000), bench.pay(12, 1, 4_000));
    bench.leaves_all("ORDER_NOT_FOUND", &others).await;
    bench.leaves_all("ORDER_NOT_FOUND", &unknown).await;
    bench.leaves_all("WRONG_AMOUNT", &pay.with(6, 3_999)).await;
    bench.leaves_all("WRONG_AMOUNT", &pay.with(6, 4_001).keyed("k", "mine")).await;
    // The day in the call must be the day of Redis's clock: its last instant is accepted, the next one is not.
    let today = CalendarDay::of(START, chrono_tz::Asia::Seoul);
    for now in [today.from.0 - 1, today.until.0] {
        assert_eq!(bench.leaves_all("OTHER_DAY", &pay.with(1, now)).await[1], now.to_string());
    }
    let (reply, event) = bench.decides_once("PAID", &pay).await;
    assert_eq!(reply[3..], ["17".to_owned(), "receipt-10".to_owned(), START.0.to_string()]);
    let Body::OrderPaid(paid) = &event.body else { panic!("{event:?}") };
    assert_eq!((paid.order.get(), paid.user.get(), paid.payment.get(), paid.amount), (10, 1, 17, 4_000));
    assert_eq!((paid.receipt.as_str(), paid.transaction.as_deref(), paid.day.as_str()), ("receipt-10", None, DAY));
    assert_eq!(paid.lines.len(), 1);
    let entry = paid.entry.as_ref().unwrap();
    assert_eq!((entry.entry_no, entry.before, entry.amount, entry.after), (2, 5_000, 4_000, 1_000));
    assert_eq!(entry.order_id.unwrap().get(), 10);
    bench.leaves_all("ALREADY_PAID", &pay).await;
    // A payment above the balance is an effect: the order fails.
    let broke = bench.pay(11, 1, 1_900);
    let (_, event) = bench.decides_once("DECLINED", &broke).await;
    let Body::OrderClosed(closed) = &event.body else { panic!("{event:?}") };
    assert_eq!((closed.from, closed.status), (OrderStatus::Pending, OrderStatus::Failed));
    assert_eq!((closed.reason, closed.entry.is_none()), (CloseReason::PaymentDeclined, true));
    assert_eq!((closed.coupon.unwrap().get(), closed.lines[0].quantity), (1, 2));
    bench.leaves_all("ALREADY_CLOSED", &broke).await;
    // A payment of 0 writes no entry.
    for raw in [bench.product_create(5, 0, 10), bench.place(13, 1, &[(5, 1)])] {
        bench.run(&raw).await;
    }
    let (_, event) = bench.decides_once("PAID", &bench.pay(13, 1, 0)).await;
    assert!(matches!(&event.body, Body::OrderPaid(paid) if paid.entry.is_none()), "{event:?}");
    // A repeated outcome of the gateway.
    for raw in [bench.place(14, 1, &[(5, 1)]), bench.payment_begin(14, 1, 0), bench.pay_by_gateway(14, 1, 0)] {
        bench.run(&raw).await;
    }
    bench.leaves_all("PAID_BEFORE", &bench.pay_by_gateway(14, 1, 0)).await;
    bench.covers(&[&script::ORDER_PAY]);
    bench.finish().await;
}

#[tokio::test]
async fn order_close_matches_header() {
    let mut bench = Bench::start(1).await;
    let product = bench.ordered(10, 1, 50_000, 4).await;
    for order in 11..=13 {
        let place = bench.place(order, 1, &[(product, 1)]);
        bench.decides("PLACED", &place).await;
    }
    let cancel = bench.close(10, 1, "CANCEL", "");
    bench.needs_open_partition(&cancel).await;
    bench.needs_its_own_key(&cancel, true).await;
    let (others, unknown) = (bench.close(10, 2, "CANCEL", ""), bench.close(99, 1, "CANCEL", ""));
    bench.leaves_all("ORDER_NOT_FOUND", &others).await;
    bench.leaves_all("ORDER_NOT_FOUND", &unknown).await;
    let (reply, event) = bench.decides_once("CLOSED", &cancel).await;
    assert_eq!(reply[3..], ["CANCELLED".to_owned(), "CANCELLED_BY_USER".to_owned(), START.0.to_string()]);
    let Body::OrderClosed(closed) = &event.body else { panic!("{event:?}") };
    assert_eq!((closed.order.get(), closed.user.get(), closed.from), (10, 1, OrderStatus::Pending));
    assert_eq!((closed.lines[0].quantity, closed.entry.is_none(), closed.receipt.is_none()), (4, true, true));
    for why in ["CANCEL", "EXPIRE", "DECLINE"] {
        let again = bench.close(10, 1, why, "");
        bench.leaves_all("ALREADY_CLOSED", &again.with(1, START.0 + HOUR_MS)).await;
    }

    // An expiry is refused one millisecond before it is due.
    let expire = bench.close(11, 1, "EXPIRE", "");
    bench.leaves_all("NOT_DUE", &expire.with(1, START.0 + HOUR_MS - 1)).await;
    let expire = expire.with(1, START.0 + HOUR_MS);
    let (reply, event) = bench.decides("CLOSED", &expire).await;
    assert_eq!(reply[4], "EXPIRED");
    assert!(matches!(&event.body, Body::OrderClosed(closed) if closed.reason == CloseReason::Expired), "{event:?}");

    bench.leaves_all("NOT_PAID", &bench.close(12, 1, "REFUND", "")).await;
    // Only the user closes a paid order: with a refund, in the rankings of its day of sale.
    let pay = bench.pay(12, 1, 1_000);
    bench.decides("PAID", &pay).await;
    for why in ["EXPIRE", "DECLINE"] {
        let raw = bench.close(12, 1, why, "");
        bench.leaves_all("ALREADY_PAID", &raw.with(1, START.0 + HOUR_MS)).await;
    }
    let refund = bench.close(12, 1, "CANCEL", DAY);
    bench.leaves_all("WINDOW_CLOSED", &refund.with(1, START.0 + HOUR_MS * 24)).await;
    bench.leaves_all("STALE", &refund.with(8, "20260301")).await;
    bench.leaves_all("STALE", &refund.with(8, "")).await;
    let (reply, event) = bench.decides_once("CLOSED", &refund).await;
    assert_eq!(reply[4], "REFUNDED");
    let Body::OrderClosed(closed) = &event.body else { panic!("{event:?}") };
    let entry = closed.entry.as_ref().unwrap();
    assert_eq!((entry.entry_no, entry.before, entry.amount, entry.after), (3, 49_000, 1_000, 50_000));
    assert_eq!((closed.from, closed.receipt.as_deref()), (OrderStatus::Paid, Some("receipt-12")));
    assert_eq!((closed.day.as_str(), closed.by_gateway), (DAY, false));

    // A decline names a payment: without one, or with another receipt, it is refused.
    let decline = bench.decline(13, 1);
    bench.leaves_all("NOT_DUE", &decline).await;
    let begin = bench.payment_begin(13, 1, 1_000);
    bench.decides("STARTED", &begin).await;
    bench.leaves_all("NOT_DUE", &decline.with(10, "receipt-of-another")).await;
    bench.decides("DECLINED", &decline).await;
    bench.covers(&[&script::ORDER_CLOSE]);
    bench.finish().await;
}
