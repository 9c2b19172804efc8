//! Scripts that create users, products and campaigns, and release withheld units.

use super::*;

#[tokio::test]
async fn creation_scripts_match_headers() {
    let mut bench = Bench::start(1).await;
    let users = bench.users_create(5, 3, 250);
    bench.needs_open_partition(&users).await;
    bench.needs_its_own_key(&users, true).await;
    let (_, event) = bench.decides_once("CREATED", &users).await;
    let Body::UsersCreated { first, step, count, balance, name, prefixed } = &event.body else { panic!("{event:?}") };
    assert_eq!((first.get(), *step, *count, *balance, name.as_str(), *prefixed), (5, 1, 3, 250, "u", true));
    bench.leaves_all("ALREADY_EXISTS", &users).await;
    // None if one exists, whichever it is.
    bench.leaves_all("ALREADY_EXISTS", &bench.users_create(3, 3, 0)).await;
    // A balance of 0 has no entry.
    let poor = bench.users_create(8, 1, 0);
    bench.decides("CREATED", &poor).await;

    let product = bench.product_create(1, 1_000_000_000_000, 1_000_000_000);
    bench.needs_open_partition(&product).await;
    bench.needs_its_own_key(&product, true).await;
    let (_, event) = bench.decides_once("CREATED", &product).await;
    let Body::ProductCreated { product: id, name, price, units, category, terms } = &event.body else {
        panic!("{event:?}")
    };
    assert_eq!((id.get(), name.as_str(), *price, *units), (1, "셔츠", 1_000_000_000_000, 1_000_000_000));
    assert_eq!((category.as_str(), *terms), ("TOP", SaleTerms::default()));
    bench.leaves_all("ALREADY_EXISTS", &product.with(7, 5)).await;

    let update = bench.product_update(1, "OUTER").with(6, "자켓").with(7, 7).with(10, -5);
    bench.needs_open_partition(&update).await;
    bench.needs_its_own_key(&update, true).await;
    bench.leaves_all("LIMIT_EXCEEDED", &update.with(10, 1)).await;
    bench.leaves_all("INSUFFICIENT_STOCK", &update.with(10, -1_000_000_001)).await;
    bench.leaves_all("STALE", &update.with(8, "SHOES").keyed("k", "mine")).await;
    let unknown = bench.product_update(2, "TOP");
    bench.leaves_all("PRODUCT_NOT_FOUND", &unknown).await;
    let (reply, event) = bench.decides_once("UPDATED", &update).await;
    assert_eq!(reply[3..], ["자켓", "7", "999999995", "OUTER", "1", ""]);
    let Body::ProductUpdated { product, name, price, category, delta, .. } = &event.body else { panic!("{event:?}") };
    assert_eq!((product.get(), name.as_str(), *price, category.as_str(), *delta), (1, "자켓", 7, "OUTER", -5));
    // Omitted fields keep their values, and the event has every field.
    let mut same = bench.product_update(1, "OUTER").with(8, "OUTER").with(10, 5);
    same.keys[6] = same.keys[7].clone();
    let (reply, event) = bench.decides("UPDATED", &same).await;
    assert_eq!(reply[3..], ["자켓", "7", "1000000000", "OUTER", "1", ""]);
    let Body::ProductUpdated { name, price, delta, .. } = &event.body else { panic!("{event:?}") };
    assert_eq!((name.as_str(), *price, *delta), ("자켓", 7, 5));
    // Terms replace those that the caller has read, and count as a change of the price.
    let limited = same.with(10, 0).with(13, 1).with(15, "|9|3|G-1");
    bench.leaves_all("STALE", &limited.with(14, "|||")).await;
    let (reply, event) = bench.decides("UPDATED", &limited).await;
    assert_eq!(reply[3..], ["자켓", "7", "1000000000", "OUTER", "2", "|9|3|G-1"]);
    let Body::ProductUpdated { price: 7, version: 2, terms, .. } = &event.body else { panic!("{event:?}") };
    assert_eq!(terms.to_string(), "|9|3|G-1");
    bench.leaves_all("STALE", &limited).await;
    let (reply, _) = bench.decides("UPDATED", &same.with(7, 8).with(10, 0)).await;
    assert_eq!(reply[4..], ["8", "1000000000", "OUTER", "3", "|9|3|G-1"]);
    bench.decides("UPDATED", &limited.with(14, "|9|3|G-1").with(15, "")).await;

    let campaign = bench.campaign_create(1, "PERCENTAGE", 20, 3);
    bench.needs_open_partition(&campaign).await;
    bench.needs_its_own_key(&campaign, true).await;
    let (_, event) = bench.decides_once("CREATED", &campaign).await;
    let Body::CampaignCreated(terms) = &event.body else { panic!("{event:?}") };
    assert_eq!((terms.coupon_id.get(), terms.code.as_str(), terms.total), (1, "CODE", 3));
    assert_eq!((terms.discount.kind, terms.discount.amount), (DiscountType::Percentage, 20));
    assert_eq!((terms.opens_at, terms.closes_at), (START, START.plus(HOUR_MS)));
    assert_eq!(terms.expires_at, START.plus(2 * HOUR_MS));
    bench.leaves_all("ALREADY_EXISTS", &campaign.with(9, 9)).await;
    // Without a beginning the campaign opens at the script's time; an empty window is refused.
    let at_once = bench.campaign_create(3, "FIXED", 10, 3).with(10, "");
    bench.leaves_all("INVALID_WINDOW", &at_once.with(11, START.0)).await;
    bench.leaves_all("INVALID_WINDOW", &at_once.with(11, START.0 + 2 * HOUR_MS + 1)).await;
    let (reply, event) = bench.decides("CREATED", &at_once).await;
    assert_eq!(reply[3], START.0.to_string());
    assert!(matches!(&event.body, Body::CampaignCreated(terms) if terms.opens_at == START), "{event:?}");

    let moved = bench.campaign_update(1);
    bench.needs_open_partition(&moved).await;
    bench.needs_its_own_key(&moved, true).await;
    let mut unknown = moved.clone();
    unknown.keys[3] = campaign_key(bench.keys(2), 2);
    bench.leaves_all("CAMPAIGN_NOT_FOUND", &unknown).await;
    bench.leaves_all("CLOSES_IN_PAST", &moved.with(7, START.0 - 60_001)).await;
    bench.leaves_all("INVALID_WINDOW", &moved.with(6, START.0 + HOUR_MS / 2)).await;
    bench.leaves_all("INVALID_WINDOW", &moved.with(6, START.0 + HOUR_MS).with(7, "")).await;
    bench.leaves_all("INVALID_WINDOW", &moved.with(7, START.0 + 2 * HOUR_MS + 1)).await;
    // The campaign opens at START, so that a closing at START leaves an empty window.
    bench.leaves_all("INVALID_WINDOW", &moved.with(6, "").with(7, START.0 - 5)).await;
    let (reply, event) = bench.decides_once("MOVED", &moved).await;
    assert_eq!(reply[3..], [START.0.to_string(), (START.0 + HOUR_MS / 2).to_string(), "0".into(), "0".into()]);
    let Body::CampaignUpdated { coupon, opens_at, closes_at } = &event.body else { panic!("{event:?}") };
    assert_eq!((coupon.get(), *opens_at, *closes_at), (1, START, START.plus(HOUR_MS / 2)));
    // An end in the near past counts as now; a beginning may be in the past; omitted fields keep their values.
    let (reply, _) = bench.decides("MOVED", &moved.with(6, START.0 - 9).with(7, START.0 - 60_000)).await;
    assert_eq!(reply[3..5], [(START.0 - 9).to_string(), START.0.to_string()]);
    let (reply, _) = bench.decides("MOVED", &moved.with(6, "").with(7, START.0 + 2 * HOUR_MS)).await;
    assert_eq!(reply[3..5], [(START.0 - 9).to_string(), (START.0 + 2 * HOUR_MS).to_string()]);
    let (reply, _) = bench.decides("MOVED", &moved.with(6, START.0 + 1).with(7, "")).await;
    assert_eq!(reply[3..5], [(START.0 + 1).to_string(), (START.0 + 2 * HOUR_MS).to_string()]);
    let score = redis::cmd("ZSCORE").arg(bench.keys(1).campaigns()).arg(1).query_async(&mut bench.redis).await;
    let closes: i64 = score.unwrap();
    assert_eq!(closes, START.0 + 2 * HOUR_MS);

    bench.covers(&[
        &script::USERS_CREATE,
        &script::PRODUCT_CREATE,
        &script::PRODUCT_UPDATE,
        &script::CAMPAIGN_CREATE,
        &script::CAMPAIGN_UPDATE,
    ]);
    bench.finish().await;
}

#[tokio::test]
async fn withheld_release_scripts_match_headers() {
    let mut bench = Bench::start(1).await;
    let (product, campaign) = (bench.product_create(1, 10, 100), bench.campaign_create(1, "FIXED", 10, 5));
    for raw in [&product, &campaign, &bench.users_create(1, 3, 0)] {
        bench.run(raw).await;
    }
    bench.test.drain().await;
    // Withholds units in both stores, as a rebuild does.
    let keys = bench.keys(1);
    for (key, field, value) in
        [(keys.stock(), "1", 93), (keys.withheld(), "1", 7), (campaign_key(keys, 1), "withheld", 4)]
    {
        let set = redis::cmd("HSET").arg(key).arg(field).arg(value).query_async(&mut bench.redis).await;
        let _: i64 = set.unwrap();
    }
    for sql in ["UPDATE products SET on_sale = 93, withheld = 7", "UPDATE campaigns SET withheld = 4"] {
        sqlx::query(sql).execute(bench.test.db.get_postgres_connection_pool()).await.unwrap();
    }
    // Withheld coupons are not issued.
    bench.decides("ISSUED", &bench.coupon_issue(1, 1)).await;
    bench.leaves_all("OUT_OF_STOCK", &bench.coupon_issue(1, 2)).await;

    let mut units = bench.begin(&script::STOCK_RELEASE, keys);
    units.keys.extend([keys.stock(), keys.withheld()]);
    units.args.extend(strings([&1, &5]));
    bench.needs_open_partition(&units).await;
    bench.needs_its_own_key(&units, true).await;
    bench.leaves_all("PRODUCT_NOT_FOUND", &units.with(5, 2)).await;
    bench.leaves_all("INSUFFICIENT_STOCK", &units.with(6, 8)).await;
    let (reply, event) = bench.decides_once("UNITS_RELEASED", &units).await;
    assert_eq!(reply[3], "2");
    assert!(matches!(&event.body, Body::StockReleased { units: 5, .. }), "{event:?}");
    let mut coupons = bench.begin(&script::COUPON_RELEASE, keys);
    coupons.keys.push(campaign_key(keys, 1));
    coupons.args.extend(strings([&1, &1, &"mine"]));
    bench.needs_open_partition(&coupons).await;
    // A release without a preparation is refused.
    bench.leaves_all("RELEASE_NOT_PREPARED", &coupons).await;
    let announce = bench.coupon_release_prepare(1, 1);
    bench.needs_open_partition(&announce).await;
    bench.needs_its_own_key(&announce, true).await;
    bench.leaves_all("INSUFFICIENT_STOCK", &announce.with(3, 5)).await;
    let mut nowhere = announce.clone();
    nowhere.keys[2] = campaign_key(keys, 2);
    bench.leaves_all("CAMPAIGN_NOT_FOUND", &nowhere).await;
    assert_eq!(bench.run(&announce).await, ["RELEASE_PREPARED", "mine"]);
    assert_eq!(
        bench.run(&announce.with(2, "another")).await,
        ["RELEASE_PREPARED", "mine"],
        "the first preparation stays"
    );
    bench.leaves_all("RELEASE_NOT_PREPARED", &coupons.with(7, "another")).await;
    bench.needs_its_own_key(&coupons, true).await;
    let mut unknown = coupons.clone();
    unknown.keys[3] = campaign_key(keys, 2);
    bench.leaves_all("CAMPAIGN_NOT_FOUND", &unknown).await;
    bench.leaves_all("INSUFFICIENT_STOCK", &coupons.with(6, 5)).await;
    let (reply, event) = bench.decides_once("COUPONS_RELEASED", &coupons).await;
    assert_eq!(reply[3], "3");
    assert!(matches!(&event.body, Body::CouponsReleased { count: 1, .. }), "{event:?}");
    let record = event.record.as_ref().unwrap();
    bench.leaves_all("REPLAYED", &announce.keyed(&record.digest, "mine")).await;
    bench.leaves_all("RELEASE_NOT_PREPARED", &coupons).await;
    bench.decides("ISSUED", &bench.coupon_issue(1, 2)).await;
    bench.leaves_all("OUT_OF_STOCK", &bench.coupon_issue(1, 3)).await;
    bench.covers(&[&script::STOCK_RELEASE, &script::COUPON_RELEASE, &script::COUPON_RELEASE_PREPARE]);
    bench.finish().await;
}
