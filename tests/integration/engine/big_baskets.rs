//! Load of orders with as many lines as the API accepts, from many connections at once.

use futures_util::{StreamExt, stream};
use serde_json::{Value, json};

use crate::support::harness::{Options, Reply, TestApp};

const CLIENTS: usize = 256;
const LINES: usize = 100;
const PRICE: i64 = 10;
const BALANCE: i64 = 1_000_000;

/// Runs up to [`CLIENTS`] of these at a time. Returns their results in order.
async fn all<T, F: Future<Output = T>>(work: impl Iterator<Item = F>) -> Vec<T> {
    stream::iter(work).buffered(CLIENTS).collect().await
}

/// Every user orders [`LINES`] distinct products twice, then pays one order and cancels the other concurrently.
async fn order_pay_and_cancel(products: usize) {
    let test = TestApp::with(Options { clock: None, ..Options::default() }).await;
    let created = all((0..products).map(|_| test.product(PRICE, 1_000_000))).await;
    let users = test.post("/admin/v1/users/bulk", json!({"count": CLIENTS, "balance": BALANCE})).await.created();
    let first = users["firstUserId"].as_i64().unwrap();
    let basket = |client: usize, round: usize| -> Value {
        let at = (client * 2 + round) * LINES;
        let lines = (0..LINES).map(|line| json!({"productId": created[(at + line) % products], "quantity": 1}));
        json!({"userId": first + client as i64, "orderProducts": lines.collect::<Vec<_>>()})
    };
    let mut orders = Vec::new();
    for round in 0..2 {
        let placed: Vec<Reply> =
            all((0..CLIENTS).map(|client| test.post("/api/v1/orders", basket(client, round)))).await;
        orders.push(placed.into_iter().map(|reply| reply.ok()["orderId"].as_i64().unwrap()).collect::<Vec<_>>());
    }
    let paid = all(
        (0..CLIENTS).map(|client| test.pay(orders[0][client], first + client as i64, "CARD", LINES as i64 * PRICE))
    );
    let cancelled = all((0..CLIENTS).map(|client| test.cancel(orders[1][client], first + client as i64)));
    let (paid, cancelled) = tokio::join!(paid, cancelled);
    for reply in paid.into_iter().chain(cancelled) {
        reply.ok();
    }
    test.finish().await;
}

#[tokio::test]
async fn orders_of_many_lines_decided_whole_over_4500_products() {
    order_pay_and_cancel(4_500).await;
}

#[tokio::test]
async fn orders_of_many_lines_decided_whole_over_8200_products() {
    order_pay_and_cancel(8_200).await;
}
