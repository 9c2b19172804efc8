//! Random operations against the engine and against a model in memory: every reply and the final state must be equal,
//! with one partition and with several.
//!
//! The model implements the contract without scripts, remote holds and an outbox.

mod puts;
mod refunds;
mod runs;
mod terms;
mod users;

use std::collections::{BTreeMap, BTreeSet};

use firstcome::model::{Partition, *};
use proptest::{prelude::*, test_runner::TestRunner};

use self::terms::{OpConditions, OpTerms, category, conditions, terms};
use crate::support::harness::{Options, TestApp, call};

/// One operation. Users, products, campaigns and orders are named by index; an index past the last one names an unknown id.
#[derive(Clone, Debug)]
enum Op {
    User {
        balance: i64,
    },
    /// Brings a user in under an id from elsewhere, or renames one.
    PutUser {
        user: usize,
        balance: i64,
    },
    Forget {
        user: usize,
        forfeits: bool,
    },
    Product {
        price: i64,
        stock: i64,
        terms: OpTerms,
    },
    /// Brings a product in, or changes one: its name and terms.
    PutProduct {
        product: usize,
        price: i64,
        stock: i64,
        terms: OpTerms,
    },
    /// New terms of sale.
    Terms {
        product: usize,
        terms: OpTerms,
    },
    Restock {
        product: usize,
        delta: i64,
    },
    Campaign {
        percent: bool,
        amount: i64,
        total: i64,
        opens_in: i64,
        lasts: i64,
        good_for: i64,
        conditions: OpConditions,
    },
    /// The bounds of a campaign's window, from now; `None` leaves a bound unchanged.
    UpdateWindow {
        coupon: usize,
        opens_in: Option<i64>,
        closes_in: Option<i64>,
    },
    /// Brings a campaign in, or moves the window of one.
    PutCampaign {
        coupon: usize,
        opens_in: Option<i64>,
        closes_in: Option<i64>,
    },
    Charge {
        user: usize,
        amount: i64,
    },
    Issue {
        user: usize,
        coupon: usize,
    },
    Place {
        user: usize,
        lines: Vec<(usize, i64)>,
        coupon: Option<usize>,
        /// Whether it is paid in the same step.
        pays: bool,
    },
    Pay {
        order: usize,
        user: Option<usize>,
        more: i64,
    },
    Cancel {
        order: usize,
        user: Option<usize>,
    },
    /// Refunds lines of an order, by their places, or what is left; as an operator or a user.
    Refund {
        order: usize,
        user: Option<usize>,
        operator: bool,
        lines: Option<Vec<(usize, i64)>>,
        restock: bool,
    },
    Advance {
        ms: i64,
    },
    /// Projects a partition's outbox, and expires the evicted keys.
    Evict {
        partition: u16,
    },
    /// Repeats an earlier operation under its idempotency key.
    Repeat {
        op: usize,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let pick = || 0..6usize;
    let money = || prop_oneof![Just(0), 1..2_000i64, 1..100_000i64];
    prop_oneof![
        2 => money().prop_map(|balance| Op::User { balance }),
        2 => (pick(), money()).prop_map(|(user, balance)| Op::PutUser { user, balance }),
        1 => (2..6usize, any::<bool>()).prop_map(|(user, forfeits)| Op::Forget { user, forfeits }),
        2 => (prop_oneof![Just(0), 1..500i64, Just(MAX_PRICE)], 0..6i64, terms())
            .prop_map(|(price, stock, terms)| Op::Product { price, stock, terms }),
        2 => (pick(), 0..500i64, 0..6i64, terms())
            .prop_map(|(product, price, stock, terms)| Op::PutProduct { product, price, stock, terms }),
        2 => (pick(), terms()).prop_map(|(product, terms)| Op::Terms { product, terms }),
        1 => (pick(), -3..6i64).prop_map(|(product, delta)| Op::Restock { product, delta }),
        2 => (any::<bool>(), 1..=100i64, 1..4i64, prop_oneof![Just(0), 0..2_000i64], 1..9_000_000i64, 0..90_000_000i64,
              conditions())
            .prop_map(|(percent, amount, total, opens_in, lasts, good_for, conditions)| Op::Campaign {
                percent, amount, total, opens_in, lasts, good_for, conditions
            }),
        2 => (pick(), prop::option::of(-2_000_000..2_000_000i64), prop::option::of(prop_oneof![
                2 => -61_000..0i64, 1 => Just(0), 1 => Just(-60_000), 1 => Just(-60_001), 4 => 0..2_000_000i64
            ])).prop_map(|(coupon, opens_in, closes_in)| Op::UpdateWindow { coupon, opens_in, closes_in }),
        2 => (pick(), prop::option::of(-2_000..2_000_000i64), prop::option::of(prop_oneof![
                1 => Just(0), 1 => Just(-60_001), 4 => 0..2_000_000i64
            ])).prop_map(|(coupon, opens_in, closes_in)| Op::PutCampaign { coupon, opens_in, closes_in }),
        3 => (pick(), 1..=MAX_CHARGE).prop_map(|(user, amount)| Op::Charge { user, amount }),
        6 => (pick(), pick()).prop_map(|(user, coupon)| Op::Issue { user, coupon }),
        10 => (pick(), prop::collection::vec((pick(), prop_oneof![5 => 1..4i64, 1 => Just(MAX_LINE_QUANTITY)]), 1..4),
              prop::option::of(pick()), prop::bool::weighted(0.3))
            .prop_map(|(user, lines, coupon, pays)| Op::Place { user, lines, coupon, pays }),
        8 => (0..12usize, prop::option::weighted(0.1, pick()), prop_oneof![9 => Just(0), 1 => Just(1i64)])
            .prop_map(|(order, user, more)| Op::Pay { order, user, more }),
        5 => (0..12usize, prop::option::weighted(0.1, pick())).prop_map(|(order, user)| Op::Cancel { order, user }),
        8 => refunds::op(),
        3 => prop_oneof![9 => 1..1_000i64, 9 => Just(600_000), 9 => 1..90_000_000i64, 1 => Just(refunds::WINDOW_MS)]
            .prop_map(|ms| Op::Advance { ms }),
        3 => (0..16u16).prop_map(|partition| Op::Evict { partition }),
        3 => (0..60usize).prop_map(|op| Op::Repeat { op }),
    ]
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Coupon {
    Free,
    Held(usize),
    Used(usize),
}

/// A limit per user: of a product, or of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Limit {
    Product(usize),
    Group(LimitGroup),
}

#[derive(Debug)]
struct ModelOrder {
    id: i64,
    user: usize,
    /// The products in the order of their lines.
    ordered: Vec<usize>,
    /// What is left: units and price by product.
    lines: BTreeMap<usize, (i64, i64)>,
    /// The limits that products count against.
    limits: BTreeMap<usize, Limit>,
    total: i64,
    final_price: i64,
    /// The price of what is left.
    left_price: i64,
    paid_at: i64,
    coupon: Option<usize>,
    expires: i64,
    status: &'static str,
    day: Option<chrono::NaiveDate>,
}

#[derive(Default)]
struct Model {
    users: Vec<(i64, Vec<(TransactionType, i64, i64, i64)>)>,
    products: Vec<(i64, i64)>,
    /// Of each product.
    terms: Vec<SaleTerms>,
    /// The limits of groups.
    groups: BTreeMap<LimitGroup, i64>,
    campaigns: Vec<(Discount, i64, i64, i64, i64)>,
    /// Of each campaign.
    conditions: Vec<OpConditions>,
    issued: Vec<i64>,
    coupons: BTreeMap<(usize, usize), Coupon>,
    orders: Vec<ModelOrder>,
    /// The reply under each operation's key, if it had an effect.
    records: BTreeMap<usize, String>,
    user_ids: Vec<i64>,
    /// Of what was put, by operation.
    put_ids: BTreeMap<usize, i64>,
    put_campaigns: BTreeMap<usize, NewCampaign>,
    forgotten: BTreeSet<usize>,
    product_ids: Vec<i64>,
    coupon_ids: Vec<i64>,
}

/// An id that no object has.
const UNKNOWN_ID: i64 = 999_999;

impl Model {
    fn user_id(&self, user: usize) -> UserId {
        UserId::new(self.user_ids.get(user).copied().unwrap_or(UNKNOWN_ID)).unwrap()
    }

    fn entry(&mut self, user: usize, kind: TransactionType, amount: i64) {
        let (balance, entries) = &mut self.users[user];
        let before = *balance;
        *balance += if kind == TransactionType::Payment { -amount } else { amount };
        entries.push((kind, amount, before, *balance));
    }

    /// The units of a limit that a user has, held and paid.
    fn has(&self, user: usize, limit: Limit) -> i64 {
        let counts = |order: &&ModelOrder| order.user == user && matches!(order.status, "PENDING" | "PAID");
        let of_order = |order: &ModelOrder| -> i64 {
            order
                .limits
                .iter()
                .filter(|(_, of)| **of == limit)
                .filter_map(|(id, _)| order.lines.get(id))
                .map(|of| of.0)
                .sum()
        };
        self.orders.iter().filter(counts).map(of_order).sum()
    }

    /// Whether a product may have these terms. A group keeps the limit of its first product.
    fn accepts(&mut self, terms: SaleTerms) -> bool {
        let is_empty = terms.opens_at.zip(terms.closes_at).is_some_and(|(opens, closes)| opens >= closes);
        match (terms.limit_group, terms.limit_per_user) {
            _ if is_empty => false,
            (Some(group), Some(limit)) => *self.groups.entry(group).or_insert(limit) == limit,
            (Some(_), None) => false,
            (None, _) => true,
        }
    }

    fn moved(
        &mut self,
        now: i64,
        coupon: usize,
        opens_in: Option<i64>,
        closes_in: Option<i64>,
    ) -> Result<String, &'static str> {
        let Some((_, _, opens, closes, expires)) = self.campaigns.get_mut(coupon) else {
            return Err("CampaignNotFound");
        };
        if closes_in.is_some_and(|ms| ms < -60_000) {
            return Err("InvalidRequest");
        }
        let window = (opens_in.map_or(*opens, |ms| now + ms), closes_in.map_or(*closes, |ms| now + ms.max(0)));
        if window.0 >= window.1 || window.1 > *expires {
            return Err("InvalidRequest");
        }
        (*opens, *closes) = window;
        Ok(format!("moved {window:?}"))
    }

    fn issue(&mut self, now: i64, user: usize, coupon: usize) -> Result<String, &'static str> {
        if !self.exists(user) {
            return Err("UserNotFound");
        }
        let Some((_, total, opens, closes, _)) = self.campaigns.get(coupon).copied() else {
            return Err("InvalidCoupon");
        };
        if now < opens || now >= closes || self.coupons.contains_key(&(coupon, user)) {
            return Err("InvalidCoupon");
        }
        if self.issued[coupon] >= total {
            return Err("CouponOutOfStock");
        }
        self.issued[coupon] += 1;
        self.coupons.insert((coupon, user), Coupon::Free);
        Ok(format!("issued {}", self.issued[coupon]))
    }

    fn place(
        &mut self,
        now: i64,
        user: usize,
        lines: &BTreeMap<usize, i64>,
        order_of_lines: &[usize],
        coupon: Option<usize>,
    ) -> Result<String, &'static str> {
        if !self.exists(user) {
            return Err("UserNotFound");
        }
        let open = self.orders.iter().filter(|order| order.user == user && order.status == "PENDING").count();
        if open >= 3 {
            return Err("TooManyOpenOrders");
        }
        if lines.keys().any(|product| *product >= self.products.len()) {
            return Err("ProductNotFound");
        }
        let is_on_sale = |terms: &SaleTerms| {
            terms.opens_at.is_none_or(|at| at.0 <= now) && terms.closes_at.is_none_or(|at| now < at.0)
        };
        if order_of_lines.iter().any(|product| !is_on_sale(&self.terms[*product])) {
            return Err("NotOnSale");
        }
        let (mut counted, mut limits): (BTreeMap<Limit, i64>, BTreeMap<usize, Limit>) = Default::default();
        for product in order_of_lines {
            let terms = self.terms[*product];
            let Some(units) = terms.limit_per_user else { continue };
            let limit = terms.limit_group.map_or(Limit::Product(*product), Limit::Group);
            limits.insert(*product, limit);
            let count = counted.entry(limit).or_default();
            *count += lines[product];
            if self.has(user, limit) + *count > units {
                return Err("PurchaseLimitExceeded");
            }
        }
        for product in order_of_lines {
            let stock = self.products[*product].1;
            if stock == 0 {
                return Err("SoldOut");
            }
            if stock < lines[product] {
                return Err("InsufficientStock");
            }
        }
        if let Some(coupon) = coupon {
            let free = self.coupons.get(&(coupon, user)) == Some(&Coupon::Free);
            let has_line = |conditions: &OpConditions| lines.keys().any(|product| conditions.qualifies(*product));
            if !free || now >= self.campaigns[coupon].4 || !has_line(&self.conditions[coupon]) {
                return Err("InvalidCoupon");
            }
        }
        let total: i128 = lines.iter().map(|(p, q)| i128::from(self.products[*p].0) * i128::from(*q)).sum();
        let Some(total) = i64::try_from(total).ok().filter(|total| *total <= MAX_SAFE_INTEGER) else {
            return Err("InvalidOrder");
        };
        let discount = match coupon {
            None => 0,
            Some(coupon) => {
                let OpConditions { least, most, .. } = self.conditions[coupon];
                let of = lines.iter().filter(|(product, _)| self.conditions[coupon].qualifies(**product));
                let of: i64 = of.map(|(product, units)| self.products[*product].0 * units).sum();
                if least.is_some_and(|least| total < least) {
                    return Err("InvalidCoupon");
                }
                let discount = self.campaigns[coupon].0.of(of);
                most.map_or(discount, |most| discount.min(most))
            }
        };
        let final_price = total - discount;
        if self.users[user].0 < final_price {
            return Err("InsufficientBalance");
        }
        let order = self.orders.len();
        let mut frozen = BTreeMap::new();
        for (product, quantity) in lines {
            self.products[*product].1 -= quantity;
            frozen.insert(*product, (*quantity, self.products[*product].0));
        }
        if let Some(coupon) = coupon {
            self.coupons.insert((coupon, user), Coupon::Held(order));
        }
        self.orders.push(ModelOrder {
            id: 0,
            user,
            ordered: order_of_lines.to_vec(),
            lines: frozen,
            limits,
            total,
            final_price,
            left_price: final_price,
            paid_at: 0,
            coupon,
            expires: now + 600_000,
            status: "PENDING",
            day: None,
        });
        Ok(format!("placed {final_price}"))
    }

    fn pay(&mut self, now: Millis, order: usize, user: usize, amount: i64) -> Result<String, &'static str> {
        let Some(found) = self.orders.get(order).filter(|found| found.user == user) else {
            return Err("OrderNotFound");
        };
        match found.status {
            "PAID" => return Err("OrderAlreadyPaid"),
            "PENDING" => {}
            _ => return Err("InvalidPayment"),
        }
        if amount != found.final_price {
            return Err("InvalidPayment");
        }
        let (final_price, coupon) = (found.final_price, found.coupon);
        if self.users[user].0 < final_price {
            self.release(order, "FAILED");
            return Ok("PaymentDeclined".into());
        }
        if final_price > 0 {
            self.entry(user, TransactionType::Payment, final_price);
        }
        if let Some(coupon) = coupon {
            self.coupons.insert((coupon, user), Coupon::Used(order));
        }
        self.orders[order].status = "PAID";
        (self.orders[order].day, self.orders[order].paid_at) = (Some(now.day(chrono_tz::Asia::Seoul)), now.0);
        Ok(format!("paid {final_price}"))
    }

    fn sweep(&mut self, now: i64) -> usize {
        let due: Vec<usize> = (0..self.orders.len())
            .filter(|order| self.orders[*order].status == "PENDING" && self.orders[*order].expires <= now)
            .collect();
        due.iter().for_each(|order| self.release(*order, "EXPIRED"));
        due.len()
    }

    fn ranking(&self, today: chrono::NaiveDate, scope: RankingScope) -> Vec<(i64, i64, i64)> {
        let from = today - chrono::Days::new(u64::from(scope.days()) - 1);
        let mut sums: BTreeMap<i64, (i64, i64)> = BTreeMap::new();
        for order in self.orders.iter().filter(|o| o.status == "PAID" && o.day.is_some_and(|day| day >= from)) {
            for (product, (quantity, price)) in order.lines.iter().filter(|(_, (quantity, _))| *quantity > 0) {
                let sum = sums.entry(self.product_ids[*product]).or_default();
                sum.0 += quantity;
                sum.1 += quantity * price;
            }
        }
        let mut ranked: Vec<_> = sums.into_iter().map(|(id, (units, won))| (id, units, won)).collect();
        ranked.sort_by_key(|(id, units, won)| (-units, -won, *id));
        ranked
    }
}

/// The name of the variant, without its fields, as the model has it.
fn name(error: &Error) -> String {
    let debug = format!("{error:?}");
    debug.split([' ', '(', '{']).next().unwrap().to_owned()
}

/// Units by product, and the products in the order of their first line.
fn summed(lines: &[(usize, i64)]) -> (BTreeMap<usize, i64>, Vec<usize>) {
    let (mut sums, mut first) = (BTreeMap::new(), Vec::new());
    for (product, quantity) in lines {
        if !sums.contains_key(product) {
            first.push(*product);
        }
        *sums.entry(*product).or_default() += quantity;
    }
    (sums, first)
}
