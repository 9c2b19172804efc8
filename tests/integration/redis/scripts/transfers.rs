//! Scripts that move units between the owner partition of a product and another one.

use super::*;

/// The product is in partition 1 of two; partition 0 sells it.
#[tokio::test]
async fn transfer_scripts_match_headers() {
    let mut bench = Bench::start(2).await;
    let create =
        [bench.users_create(2, 1, 100_000), bench.product_create(1, 1_000, 20), bench.product_create(3, 10, 2)];
    for raw in create {
        bench.run(&raw).await;
    }
    // A lot is a fourth of what is on sale, or what is needed.
    let allot = bench.stock_allot(1, 0, 2);
    bench.needs_open_partition(&allot).await;
    bench.leaves_all("PRODUCT_NOT_FOUND", &bench.stock_allot(77, 0, 1)).await;
    let short = bench.leaves_all("INSUFFICIENT_STOCK", &bench.stock_allot(3, 0, 3)).await;
    assert_eq!(short[1..], ["2", "10", "0", ""]);
    let (reply, event) = bench.decides("ALLOTTED", &allot).await;
    assert_eq!(reply[3..], ["5", "1000", "0", ""]);
    let Body::StockAllotted { product, partition, units, total, price, version, .. } = &event.body else {
        panic!("{event:?}")
    };
    assert_eq!((product.get(), partition.0, *units, *total, *price, *version), (1, 0, 5, 5, 1_000, 0));
    let (reply, _) = bench.decides("ALLOTTED", &bench.stock_allot(1, 0, 10)).await;
    assert_eq!(reply[3], "15");

    let receive = bench.stock_receive(0, 1, 15, 1_000, 0);
    bench.needs_open_partition(&receive).await;
    // The first allotment arrives after the second one.
    let (_, event) = bench.decides("RECEIVED", &receive).await;
    assert!(matches!(event.body, Body::StockReceived { units: 15, .. }), "{event:?}");
    bench.leaves_all("ALREADY_RECEIVED", &receive).await;
    bench.leaves_all("ALREADY_RECEIVED", &bench.stock_receive(0, 1, 5, 1_000, 0)).await;

    // An order is decided where its user is.
    bench.decides("PLACED", &bench.place(10, 2, &[(1, 4)])).await;
    let refused = bench.leaves_all("INSUFFICIENT_STOCK", &bench.place(12, 2, &[(1, 12)])).await;
    assert_eq!(refused[1], "1");

    let back = bench.stock_return(0, 1, 0);
    bench.needs_open_partition(&back).await;
    let (reply, event) = bench.decides("RETURNED", &back).await;
    assert_eq!(reply[3], "11");
    assert!(matches!(event.body, Body::StockReturned { units: 11, total: 11, withheld: false, .. }), "{event:?}");
    assert_eq!(bench.leaves_all("ALREADY_RETURNED", &back).await[1], "11");
    let regain = bench.stock_regain(1, 0, 11, 0);
    bench.needs_open_partition(&regain).await;
    bench.leaves_all("PRODUCT_NOT_FOUND", &bench.stock_regain(77, 0, 1, 0)).await;
    let (_, event) = bench.decides("REGAINED", &regain).await;
    assert!(matches!(event.body, Body::StockRegained { units: 11, withheld: false, .. }), "{event:?}");
    bench.leaves_all("ALREADY_REGAINED", &regain).await;
    // What an order gives back follows.
    bench.decides("CLOSED", &bench.close(10, 2, "CANCEL", "")).await;
    let (reply, _) = bench.decides("RETURNED", &back).await;
    assert_eq!(reply[3], "15");
    bench.decides("REGAINED", &bench.stock_regain(1, 0, 15, 0)).await;
    bench.covers(&[&script::STOCK_ALLOT, &script::STOCK_RECEIVE, &script::STOCK_RETURN, &script::STOCK_REGAIN]);
    bench.finish().await;
}

/// Prices overtake each other; the newest one stays.
#[tokio::test]
async fn price_set_matches_header() {
    let mut bench = Bench::start(2).await;
    bench.run(&bench.users_create(2, 1, 100_000)).await;
    bench.run(&bench.product_create(1, 1_000, 20)).await;
    let priced = bench.product_update(1, "TOP").with(7, 900);
    let (reply, event) = bench.decides("UPDATED", &priced).await;
    assert_eq!(reply[7], "1");
    assert!(matches!(event.body, Body::ProductUpdated { price: 900, version: 1, .. }), "{event:?}");
    let set = bench.price_set(0, 1, 900, 1);
    bench.needs_open_partition(&set).await;
    let decided = bench.position(Partition(0)).await;
    assert_eq!(bench.run(&set).await, ["PRICE_SET"]);
    assert_eq!(bench.position(Partition(0)).await, decided, "it is no decision");
    bench.leaves_all("UNCHANGED", &set).await;
    bench.leaves_all("UNCHANGED", &bench.price_set(0, 1, 1_000, 0)).await;
    // Units with the earlier price come late.
    bench.run(&bench.stock_allot(1, 0, 5)).await;
    bench.decides("RECEIVED", &bench.stock_receive(0, 1, 5, 1_000, 0)).await;
    let (placed, _) = bench.decides("PLACED", &bench.place(10, 2, &[(1, 2)])).await;
    assert_eq!(placed[4], "1800");
    bench.covers(&[&script::PRICE_SET]);
    bench.finish().await;
}
