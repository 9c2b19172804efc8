//! Products, their stock and their ranking.

use super::{Category, CouponId, ProductId, Won};

/// The dearest price of one unit: a trillion won. An order's total stays exact all the same (see `order_place.lua`).
pub const MAX_PRICE: Won = 1_000_000_000_000;
/// The most units of one product that may be on sale, held and sold together.
pub const MAX_STOCK: i64 = 1_000_000_000;

/// A product as a storefront shows it.
#[derive(Clone, Debug)]
pub struct Product {
    pub product_id: ProductId,
    pub name: String,
    pub price: Won,
    /// Units on sale: neither held nor sold.
    pub stock: i64,
    pub category: String,
}

/// A page of the catalogue, by product id.
#[derive(Clone, Debug)]
pub struct ProductPage {
    pub products: Vec<Product>,
    /// From 0.
    pub page: i64,
    pub size: i64,
    /// Products in all (of the category).
    pub total: i64,
}

/// A product and where its units are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShelvedProduct {
    pub product_id: ProductId,
    pub name: String,
    pub category: String,
    pub price: Won,
    /// Units on sale, held by PENDING orders, sold by PAID ones, and kept off sale by a rebuild.
    pub on_sale: i64,
    pub held: i64,
    pub sold: i64,
    pub withheld: i64,
}

/// A product to create.
#[derive(Clone, Debug)]
pub struct NewProduct {
    /// 1–200 characters.
    pub name: String,
    /// 0–[`MAX_PRICE`].
    pub price: Won,
    /// 0–[`MAX_STOCK`].
    pub stock: i64,
    pub category: Category,
}

/// What to change about a product; `None` leaves a field as it is.
#[derive(Clone, Debug, Default)]
pub struct ProductPatch {
    pub name: Option<String>,
    pub price: Option<Won>,
    pub category: Option<Category>,
    /// Units to put on sale, or (negative) to take off; never below zero on sale.
    pub stock_delta: Option<i64>,
}

/// A place in the ranking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RankedProduct {
    pub product_id: ProductId,
    /// Units of paid orders, net of refunds.
    pub units: i64,
    /// Won at list price, net of refunds.
    pub won: Won,
    /// From 1.
    pub position: i64,
}

/// What a rebuild keeps off sale, until an operator releases it: the first of each by id.
#[derive(Clone, Debug)]
pub struct Withheld {
    /// Units by product.
    pub products: Vec<(ProductId, i64)>,
    /// Coupons by campaign.
    pub coupons: Vec<(CouponId, i64)>,
}
