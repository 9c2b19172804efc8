//! `firstcome seed`: the demo catalogue, made through the engine, as an operator would.

use std::process::ExitCode;

use clap::Args;

use super::print;
use crate::{
    app::App,
    config::{EngineConfig, ProjectorConfig},
    engine::Engine,
    model::*,
};

#[derive(Args)]
pub(super) struct SeedArgs {
    #[command(flatten)]
    engine: EngineConfig,
}

/// The demo's users, with their opening balances (won).
const USERS: &[(&str, Won)] = &[("이다은", 10_000), ("김하늘", 1_000_000), ("박준서", 0)];

/// The demo's products: name, price (won), units, category.
const PRODUCTS: &[(&str, Won, i64, &str)] = &[
    ("나이키 에어포스", 139_000, 50, "SHOES"),
    ("아디다스 삼바", 149_000, 30, "SHOES"),
    ("한정판 조던 1", 990_000, 1, "SHOES"),
    ("오버핏 후드 집업", 59_000, 200, "OUTER"),
    ("옥스포드 셔츠", 39_900, 300, "TOP"),
    ("와이드 데님 팬츠", 49_900, 300, "BOTTOM"),
];

/// The demo's campaigns: code, discount, coupons.
const CAMPAIGNS: &[(&str, DiscountType, i64, i64)] =
    &[("HANGHAE8888", DiscountType::Fixed, 1_000, 100), ("SPARTA1000", DiscountType::Percentage, 20, 1000)];

/// Days after which the demo's coupons expire.
const COUPON_DAYS: i64 = 90;

pub(super) async fn run(options: SeedArgs) -> anyhow::Result<ExitCode> {
    let app = App::open(&options.engine, &ProjectorConfig::default(), Clock::system()).await?;
    let seeded = demo(&app.engine).await?;
    print(if seeded { "The demo catalogue is in." } else { "There are products already: nothing was changed." })?;
    Ok(ExitCode::SUCCESS)
}

/// Puts the demo catalogue into a store without products; returns whether it did.
///
/// # Errors
/// Those of the engine.
pub(super) async fn demo(engine: &Engine) -> Result<bool, Error> {
    if engine.products(0, 1, None).await?.total > 0 {
        return Ok(false);
    }
    let call = Call::new("seed", None);
    for (name, balance) in USERS {
        engine.create_user(&call, NewUser { name: (*name).to_owned(), balance: *balance }).await?;
    }
    for (name, price, stock, category) in PRODUCTS {
        let category = category.parse().map_err(|_| Error::InvalidRequest("category"))?;
        let new = NewProduct {
            name: (*name).to_owned(),
            price: *price,
            stock: *stock,
            category,
            terms: SaleTerms::default(),
        };
        engine.create_product(&call, new).await?;
    }
    let expires_at = engine.clock().now().plus(COUPON_DAYS * 24 * 60 * 60 * 1000);
    for (code, kind, amount, total) in CAMPAIGNS {
        let discount = Discount { kind: *kind, amount: *amount };
        let (opens_at, closes_at) = (None, None);
        let (code, total, conditions) = ((*code).to_owned(), *total, CouponConditions::default());
        let new = NewCampaign { code, discount, conditions, total, opens_at, closes_at, expires_at };
        engine.create_campaign(&call, new).await?;
    }
    Ok(true)
}
