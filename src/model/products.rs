//! Products, their stock and their ranking.

use super::{
    Campaign, Category, CouponId, Millis, Page, ProductId, SaleStatus, SaleTerms, SaleTermsPatch, UserId, Won,
};

/// The maximum price of one unit: a trillion won. `order_place.lua` bounds an order's total, which therefore stays exact.
pub const MAX_PRICE: Won = 1_000_000_000_000;
/// The maximum number of units of one product, on sale, held and sold together.
pub const MAX_STOCK: i64 = 1_000_000_000;

/// A product as a storefront shows it.
#[derive(Clone, Debug)]
pub struct Product {
    pub product_id: ProductId,
    pub name: String,
    pub price: Won,
    /// Units on sale: not held, sold or withheld.
    pub stock: i64,
    pub category: String,
    pub terms: SaleTerms,
    /// When it was read, by the store's clock.
    pub read_at: Millis,
}

impl Product {
    /// Whether it could be bought when it was read.
    pub fn sale_status(&self) -> SaleStatus {
        self.terms.status(self.stock, self.read_at)
    }
}

/// A product and its units by state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShelvedProduct {
    pub product_id: ProductId,
    pub name: String,
    pub category: String,
    pub price: Won,
    pub on_sale: i64,
    /// Units of PENDING orders.
    pub held: i64,
    /// Units of PAID orders.
    pub sold: i64,
    /// Units that a rebuild keeps off sale.
    pub withheld: i64,
    /// Refunded units that stay off sale.
    pub quarantined: i64,
    pub terms: SaleTerms,
    /// When it was read, by the store's clock.
    pub read_at: Millis,
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
    pub terms: SaleTerms,
}

/// A product as another system has it: to create it, or to change the one that exists. A term that is left out stays as it is.
#[derive(Clone, Debug)]
pub struct ProductUpsert {
    pub name: String,
    pub price: Won,
    /// Of a product that is created.
    pub stock: i64,
    pub category: Category,
    pub terms: SaleTermsPatch,
}

impl ProductUpsert {
    /// The product, if it is created.
    pub fn created(&self) -> NewProduct {
        let ProductUpsert { name, price, stock, category, terms } = self.clone();
        NewProduct { name, price, stock, category, terms: terms.of(SaleTerms::default()) }
    }
}

/// A change of a product. `None` leaves a field unchanged.
#[derive(Clone, Debug, Default)]
pub struct ProductPatch {
    pub name: Option<String>,
    pub price: Option<Won>,
    pub category: Option<Category>,
    /// Units to put on sale; a negative number takes units off sale, to no less than zero.
    pub stock_delta: Option<i64>,
    pub terms: SaleTermsPatch,
}

/// The sales whose window includes a moment of a time range: products with terms of sale, the last to open first, and campaigns, the
/// first to close first.
#[derive(Clone, Debug)]
pub struct SalesPlan {
    pub from: Millis,
    pub until: Millis,
    pub products: Vec<ShelvedProduct>,
    pub campaigns: Vec<Campaign>,
    /// Whether no sale of the range is left out.
    pub complete: bool,
}

/// The users who have units that count against a product's limit, those with the most units first.
#[derive(Clone, Debug)]
pub struct LimitedUsers {
    pub terms: SaleTerms,
    pub users: Page<CountedUser>,
    /// The number of users who may not buy another unit.
    pub at_limit: i64,
    /// Whether no order is left out.
    pub complete: bool,
}

/// A user with units that count against a limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CountedUser {
    pub user_id: UserId,
    pub name: String,
    pub units: i64,
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
    pub rank: i64,
}

/// Units and coupons that a rebuild keeps off sale until an operator releases them: the first of each by id.
#[derive(Clone, Debug)]
pub struct Withheld {
    /// Units by product.
    pub products: Vec<(ProductId, i64)>,
    /// Coupons by campaign.
    pub coupons: Vec<(CouponId, i64)>,
}
