//! Archived orders: shown, refused, refunded and restored as before.

use super::*;

#[tokio::test]
async fn archived_order_shown_and_refused_as_before() {
    for partitions in [1, 3] {
        let mut shop = Fixture::start(partitions).await;
        let ends = ClosedOrders::of(&mut shop).await;
        let before = replies_of(&shop, &ends).await;
        let all = before.join("\n");
        for code in ["ORDER_ALREADY_PAID", "INVALID_PAYMENT_REQUEST", "ORDER_ALREADY_CLOSED", "ORDER_NOT_FOUND"] {
            assert!(all.contains(code), "{code} is not in\n{all}");
        }
        shop.test.drain().await;
        shop.test.expire_evicted().await;
        let seqs = shop.test.get("/admin/v1/projection").await.text;
        assert_eq!(before, replies_of(&shop, &ends).await);
        assert_eq!(seqs, shop.test.get("/admin/v1/projection").await.text, "a refused request made a decision");
        shop.finish().await;
    }
}

/// A repeat gets the same bytes before and after the eviction of its order, and the key stays bound to its request.
#[tokio::test]
async fn archived_order_repeats_get_first_reply() {
    for partitions in [1, 3] {
        let shop = Fixture::start(partitions).await;
        let (test, user) = (&shop.test, shop.user);
        let (order, other) = (shop.place(Some(shop.coupon)).await, shop.place(None).await);
        let pay = json!({"orderId": order, "userId": user, "paymentType": "CARD", "amount": 2_360});
        let cancel = json!({"userId": user});
        let requests = [
            ("/api/v1/payments".to_owned(), &pay, "pay"),
            (format!("/api/v1/orders/{order}/cancel"), &cancel, "refund"),
            (format!("/api/v1/orders/{other}/cancel"), &cancel, "cancel"),
        ];
        let mut first = Vec::new();
        for (path, body, key) in &requests {
            let reply = test.send(Method::POST, path, Some(body), Some(key)).await;
            assert_eq!(reply.status, 200, "{}", reply.text);
            first.push(reply.text);
        }
        test.drain().await;
        test.expire_evicted().await;
        let balance = shop.balance().await;
        for ((path, body, key), first) in requests.iter().zip(&first) {
            let again = test.send(Method::POST, path, Some(body), Some(key)).await;
            assert!(again.replayed(), "{}", again.text);
            assert_eq!(&again.text, first);
            // Another request of this user, under the same key.
            let charge = format!("/api/v1/balances/{user}");
            let reused = test.send(Method::PUT, &charge, Some(&json!({"amount": 1})), Some(key)).await;
            reused.refused(422, "IDEMPOTENCY_KEY_REUSED");
        }
        assert_eq!(shop.balance().await, balance);
        // A request under a new key gets the reply of the current state.
        let late = test.send(Method::POST, &requests[1].0, Some(&cancel), Some("another")).await;
        late.refused(409, "ORDER_ALREADY_CLOSED");
        shop.finish().await;
    }
}

#[tokio::test]
async fn archived_order_refunded_once() {
    for partitions in [1, 3] {
        let shop = Fixture::start(partitions).await;
        let (balance, stock) = (shop.balance().await, shop.stock().await);
        let (order, kept) = (shop.paid().await, shop.paid().await);
        shop.test.drain().await;
        let key = shop.key(order);
        shop.delete([key.clone()]).await;
        let refund = json!({"userId": shop.user});
        let path = format!("/api/v1/orders/{order}/cancel");
        let reply = shop.test.send(Method::POST, &path, Some(&refund), Some("refund")).await;
        assert_eq!(reply.json()["closeReason"], "REFUNDED", "{}", reply.text);
        assert!(shop.test.send(Method::POST, &path, Some(&refund), Some("refund")).await.replayed());
        shop.test.cancel(order, shop.user).await.refused(409, "ORDER_ALREADY_CLOSED");
        // The refund takes effect at once, before the relay.
        assert_eq!(shop.balance().await, balance - 2_460);
        assert_eq!(shop.stock().await, stock.iter().map(|units| units - 2).collect::<Vec<_>>());
        let ranked = shop.test.get("/api/v1/products/popular?sortBy=MONTHLY").await.ok();
        assert!(ranked.as_array().unwrap().iter().all(|place| place["salesCount"] == 2), "{ranked}");
        // PostgreSQL does not have the refund yet: no key of the order may be evicted.
        let ttls = shop.ttls().await;
        assert_eq!(ttls[&key], -1);
        shop.test.drain().await;
        assert_ttl_fresh(shop.ttl(order).await, REFUNDED_KEEP_MS);
        shop.test.expire_evicted().await;
        shop.test.cancel(order, shop.user).await.refused(409, "ORDER_ALREADY_CLOSED");
        assert!(shop.show(kept).await.contains("PAID"));
        shop.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn archived_order_refunded_once_when_refunds_race() {
    for partitions in [1, 3] {
        let shop = Fixture::start(partitions).await;
        let (balance, stock) = (shop.balance().await, shop.stock().await);
        for _ in 0..10 {
            let order = shop.paid().await;
            shop.test.drain().await;
            shop.test.expire_evicted().await;
            let replies = join_all((0..8).map(|_| shop.test.cancel(order, shop.user))).await;
            let (done, refused): (Vec<_>, Vec<_>) = replies.into_iter().partition(|reply| reply.status == 200);
            assert_eq!(done.len(), 1);
            refused.iter().for_each(|reply| reply.refused(409, "ORDER_ALREADY_CLOSED"));
        }
        assert_eq!((shop.balance().await, shop.stock().await), (balance, stock));
        shop.finish().await;
    }
}

/// An order is read from PostgreSQL as PAID, and restored after another request refunded it: before and after PostgreSQL has the
/// refund.
#[tokio::test]
async fn restore_of_stale_row_changes_nothing() {
    for partitions in [1, 3] {
        let shop = Fixture::start(partitions).await;
        let (test, order) = (&shop.test, shop.paid().await);
        let (balance, stock) = (shop.balance().await, shop.stock().await);
        test.drain().await;
        test.expire_evicted().await;
        let id = OrderId::new(order).unwrap();
        let read =
            firstcome::postgres::queries::archived_orders::order(&test.db, id, "Asia/Seoul").await.unwrap().unwrap();
        assert!(read.is_closed() && read.status == "PAID");
        test.cancel(order, shop.user).await.ok();
        let late = async |when: &str| {
            let owner = test.store.owner(order);
            let back = test.store.order_restore(owner, id, &read.fields(), 60_000).await.unwrap();
            assert!(!back, "restored {when}");
            let call = call(None);
            let closing = Closing::Cancel { paid_on: None, within_ms: 604_800_000 };
            let close = CloseOrder { order_id: id, user_id: UserId::new(shop.user).unwrap(), closing };
            let again = test.store.order_close(&call, &close).await;
            assert!(matches!(again, Err(Error::OrderAlreadyClosed)), "{when}: {again:?}");
        };
        late("before PostgreSQL has the refund").await;
        test.drain().await;
        late("after PostgreSQL has the refund").await;
        assert_eq!(shop.balance().await, balance + 2_460);
        assert_eq!(shop.stock().await, stock.iter().map(|units| units + 2).collect::<Vec<_>>());
        shop.finish().await;
    }
}

/// A restored order without a change is evicted again.
#[tokio::test]
async fn restored_order_evicted_again_when_unchanged() {
    let shop = Fixture::start(1).await;
    let order = shop.paid().await;
    shop.test.drain().await;
    let shown = shop.show(order).await;
    shop.test.expire_evicted().await;
    let id = OrderId::new(order).unwrap();
    let read =
        firstcome::postgres::queries::archived_orders::order(&shop.test.db, id, "Asia/Seoul").await.unwrap().unwrap();
    assert!(shop.test.store.order_restore(Partition(0), id, &read.fields(), 60_000).await.unwrap());
    assert!(shop.ttl(order).await.is_some_and(|ttl| (1..=60_000).contains(&ttl)));
    assert_eq!(shop.show(order).await, shown);
    shop.test.expire_evicted().await;
    assert_eq!(shop.show(order).await, shown);
    shop.finish().await;
}
