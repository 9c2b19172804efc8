//! Random sequences of operations, run against the engine and against a model of a few lines in memory: every reply and the
//! final state must be the same, with one partition and with several.
//!
//! The model says what the contract says, with none of the machinery: no scripts, no holds in other partitions, no outbox.

use std::collections::{BTreeMap, BTreeSet};

use firstcome::model::{Partition, *};
use proptest::{prelude::*, test_runner::TestRunner};

use crate::support::harness::{Options, TestApp, call};

/// One operation. Users, products, campaigns and orders are named by index, one past the last being one that is not there.
#[derive(Clone, Debug)]
enum Op {
    User {
        balance: i64,
    },
    Product {
        price: i64,
        stock: i64,
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
    },
    /// The ends of a campaign's window, from now; what is left out stays.
    Move {
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
    Advance {
        ms: i64,
    },
    /// A partition's outbox is projected, and everything leaves Redis that is about to.
    Leave {
        partition: u16,
    },
    /// An earlier operation again, under its idempotency key.
    Again {
        op: usize,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let pick = || 0..6usize;
    let money = || prop_oneof![Just(0), 1..2_000i64, 1..100_000i64];
    prop_oneof![
        2 => money().prop_map(|balance| Op::User { balance }),
        2 => (prop_oneof![Just(0), 1..500i64, Just(MAX_PRICE)], 0..6i64).prop_map(|(price, stock)| Op::Product { price, stock }),
        1 => (pick(), -3..6i64).prop_map(|(product, delta)| Op::Restock { product, delta }),
        2 => (any::<bool>(), 1..=100i64, 1..4i64, prop_oneof![Just(0), 0..2_000i64], 1..9_000_000i64, 0..90_000_000i64)
            .prop_map(|(percent, amount, total, opens_in, lasts, good_for)| Op::Campaign {
                percent, amount, total, opens_in, lasts, good_for
            }),
        2 => (pick(), prop::option::of(-2_000_000..2_000_000i64), prop::option::of(prop_oneof![
                2 => -61_000..0i64, 1 => Just(0), 1 => Just(-60_000), 1 => Just(-60_001), 4 => 0..2_000_000i64
            ])).prop_map(|(coupon, opens_in, closes_in)| Op::Move { coupon, opens_in, closes_in }),
        3 => (pick(), 1..=MAX_CHARGE).prop_map(|(user, amount)| Op::Charge { user, amount }),
        6 => (pick(), pick()).prop_map(|(user, coupon)| Op::Issue { user, coupon }),
        10 => (pick(), prop::collection::vec((pick(), prop_oneof![5 => 1..4i64, 1 => Just(MAX_LINE_QUANTITY)]), 1..4),
              prop::option::of(pick())).prop_map(|(user, lines, coupon)| Op::Place { user, lines, coupon }),
        8 => (0..12usize, prop::option::weighted(0.1, pick()), prop_oneof![9 => Just(0), 1 => Just(1i64)])
            .prop_map(|(order, user, more)| Op::Pay { order, user, more }),
        5 => (0..12usize, prop::option::weighted(0.1, pick())).prop_map(|(order, user)| Op::Cancel { order, user }),
        3 => prop_oneof![1..1_000i64, Just(600_000), 1..90_000_000i64].prop_map(|ms| Op::Advance { ms }),
        3 => (0..3u16).prop_map(|partition| Op::Leave { partition }),
        3 => (0..60usize).prop_map(|op| Op::Again { op }),
    ]
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Coupon {
    Free,
    Held(usize),
    Used(usize),
}

#[derive(Debug)]
struct ModelOrder {
    id: i64,
    user: usize,
    lines: BTreeMap<usize, (i64, i64)>,
    total: i64,
    final_price: i64,
    coupon: Option<usize>,
    expires: i64,
    status: &'static str,
    day: Option<chrono::NaiveDate>,
}

#[derive(Default)]
struct Model {
    users: Vec<(i64, Vec<(TransactionType, i64, i64, i64)>)>,
    products: Vec<(i64, i64)>,
    campaigns: Vec<(Discount, i64, i64, i64, i64)>,
    issued: Vec<i64>,
    coupons: BTreeMap<(usize, usize), Coupon>,
    orders: Vec<ModelOrder>,
    /// What was answered under each operation's key, if it had an effect.
    records: BTreeMap<usize, String>,
    user_ids: Vec<i64>,
    product_ids: Vec<i64>,
    coupon_ids: Vec<i64>,
}

/// An id that nothing has.
const NOBODY: i64 = 999_999;

impl Model {
    fn user_id(&self, user: usize) -> UserId {
        UserId::new(self.user_ids.get(user).copied().unwrap_or(NOBODY)).unwrap()
    }

    fn entry(&mut self, user: usize, kind: TransactionType, amount: i64) {
        let (balance, entries) = &mut self.users[user];
        let before = *balance;
        *balance += if kind == TransactionType::Payment { -amount } else { amount };
        entries.push((kind, amount, before, *balance));
    }

    fn release(&mut self, order: usize, status: &'static str) {
        let (lines, coupon, user) =
            (self.orders[order].lines.clone(), self.orders[order].coupon, self.orders[order].user);
        for (product, (quantity, _)) in lines {
            self.products[product].1 += quantity;
        }
        if let Some(coupon) = coupon {
            self.coupons.insert((coupon, user), Coupon::Free);
        }
        self.orders[order].status = status;
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
        if user >= self.users.len() {
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
        if user >= self.users.len() {
            return Err("UserNotFound");
        }
        let open = self.orders.iter().filter(|order| order.user == user && order.status == "PENDING").count();
        if open >= 3 {
            return Err("TooManyOpenOrders");
        }
        if lines.keys().any(|product| *product >= self.products.len()) {
            return Err("ProductNotFound");
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
            if !free || now >= self.campaigns[coupon].4 {
                return Err("InvalidCoupon");
            }
        }
        let total: i128 = lines.iter().map(|(p, q)| i128::from(self.products[*p].0) * i128::from(*q)).sum();
        let Some(total) = i64::try_from(total).ok().filter(|total| *total <= MAX_SAFE_INTEGER) else {
            return Err("InvalidOrder");
        };
        let discount = coupon.map_or(0, |coupon| self.campaigns[coupon].0.of(total));
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
            lines: frozen,
            total,
            final_price,
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
        self.orders[order].day = Some(now.day(chrono_tz::Asia::Seoul));
        Ok(format!("paid {final_price}"))
    }

    fn cancel(&mut self, order: usize, user: usize) -> Result<String, &'static str> {
        let Some(found) = self.orders.get(order).filter(|found| found.user == user) else {
            return Err("OrderNotFound");
        };
        let final_price = found.final_price;
        match found.status {
            "PENDING" => {
                self.release(order, "CANCELLED_BY_USER");
                Ok("closed CANCELLED_BY_USER".into())
            }
            "PAID" => {
                if final_price > 0 {
                    self.entry(user, TransactionType::Refund, final_price);
                }
                self.release(order, "REFUNDED");
                Ok("closed REFUNDED".into())
            }
            _ => Err("OrderAlreadyClosed"),
        }
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
            for (product, (quantity, price)) in &order.lines {
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

/// The variant's name, which is what the model speaks of.
fn name(error: &Error) -> String {
    let debug = format!("{error:?}");
    debug.split([' ', '(', '{']).next().unwrap().to_owned()
}

struct Run {
    test: TestApp,
    model: Model,
    ops: Vec<Op>,
}

impl Run {
    /// Runs operation `at` (or, for `Again`, an earlier one) in both, and compares.
    async fn step(&mut self, at: usize) {
        let (index, again) = match self.ops[at] {
            Op::Again { op } if op < at => (op, true),
            Op::Again { .. } => return,
            _ => (at, false),
        };
        let op = self.ops[index].clone();
        let keyed = matches!(
            op,
            Op::Charge { .. }
                | Op::Issue { .. }
                | Op::Place { .. }
                | Op::Pay { .. }
                | Op::Cancel { .. }
                | Op::Move { .. }
        );
        if again && !keyed {
            return;
        }
        let before = self.model.orders.len();
        // What the operation asks for was fixed when it was first run: the same key means the same request.
        let theirs = self.engine(index, &op).await;
        let ours = match self.model.records.get(&index) {
            Some(first) => format!("{first} replayed"),
            None => {
                let ours = self.modelled(&op);
                if let (true, Ok(first)) = (keyed, &ours) {
                    self.model.records.insert(index, first.clone());
                }
                ours.unwrap_or_else(str::to_owned)
            }
        };
        let (theirs, order) = theirs;
        assert_eq!(theirs, ours, "operation {at} ({op:?}) of {:#?}", self.ops);
        if let (Some(id), true) = (order, self.model.orders.len() > before) {
            self.model.orders[before].id = id;
        }
    }

    fn order_id(&self, order: usize) -> OrderId {
        OrderId::new(self.model.orders.get(order).map_or(NOBODY, |order| order.id)).unwrap()
    }

    fn owner(&self, order: usize, user: Option<usize>) -> usize {
        user.unwrap_or_else(|| self.model.orders.get(order).map_or(0, |order| order.user))
    }

    async fn engine(&mut self, index: usize, op: &Op) -> (String, Option<i64>) {
        let engine = self.test.engine.clone();
        let now = self.test.clock.now();
        let key = format!("key-{index}");
        // The fingerprint only has to be the same for the same request.
        let call = call(Some((&key, &key)));
        let done = |text: String, replayed: bool| if replayed { format!("{text} replayed") } else { text };
        let result: Result<(String, Option<i64>), Error> = match op {
            Op::User { balance } => {
                let new = NewUser { name: format!("user {index}"), balance: *balance };
                let user = engine.create_user(&call, new).await.unwrap().value;
                self.model.user_ids.push(user.user_id.get());
                Ok(("created".into(), None))
            }
            Op::Product { price, stock } => {
                let category = "TOP".parse().unwrap();
                let new = NewProduct { name: format!("product {index}"), price: *price, stock: *stock, category };
                let product = engine.create_product(&call, new).await.unwrap().value;
                self.model.product_ids.push(product.product_id.get());
                Ok(("created".into(), None))
            }
            Op::Restock { product, delta } => {
                let id = self.model.product_ids.get(*product).copied().unwrap_or(NOBODY);
                let patch = ProductPatch { stock_delta: Some(*delta), ..ProductPatch::default() };
                let updated = engine.update_product(&call, ProductId::new(id).unwrap(), patch).await;
                updated.map(|reply| (format!("stock {}", reply.value.stock), None))
            }
            Op::Campaign { percent, amount, total, opens_in, lasts, good_for } => {
                let kind = if *percent { DiscountType::Percentage } else { DiscountType::Fixed };
                let opens = now.plus(*opens_in);
                let new = NewCampaign {
                    code: format!("C{index}"),
                    discount: Discount { kind, amount: *amount },
                    total: *total,
                    opens_at: Some(opens),
                    closes_at: Some(opens.plus(*lasts)),
                    expires_at: opens.plus(lasts + good_for),
                };
                let campaign = engine.create_campaign(&call, new).await.unwrap().value;
                self.model.coupon_ids.push(campaign.terms.coupon_id.get());
                Ok(("created".into(), None))
            }
            Op::Move { coupon, opens_in, closes_in } => {
                let coupon = CouponId::new(self.model.coupon_ids.get(*coupon).copied().unwrap_or(NOBODY)).unwrap();
                let at = |ms: &i64| now.plus(*ms);
                let patch =
                    CampaignPatch { opens_at: opens_in.as_ref().map(at), closes_at: closes_in.as_ref().map(at) };
                let moved = engine.update_campaign(&call, coupon, patch).await;
                moved.map(|reply| {
                    let window = (reply.value.terms.opens_at.0, reply.value.terms.closes_at.0);
                    (done(format!("moved {window:?}"), reply.replayed), None)
                })
            }
            Op::Charge { user, amount } => {
                let charged = engine.charge(&call, self.model.user_id(*user), *amount).await;
                charged.map(|reply| (done(format!("balance {}", reply.value.balance), reply.replayed), None))
            }
            Op::Issue { user, coupon } => {
                let coupon = CouponId::new(self.model.coupon_ids.get(*coupon).copied().unwrap_or(NOBODY)).unwrap();
                let issued = engine.issue_coupon(&call, self.model.user_id(*user), coupon).await;
                issued.map(|reply| (done(format!("issued {}", reply.value.issue_no), reply.replayed), None))
            }
            Op::Place { user, lines, coupon } => {
                let product = |p: usize| self.model.product_ids.get(p).copied().unwrap_or(NOBODY + p as i64);
                let (_, first) = summed(lines);
                let sums = summed(lines).0;
                let order = NewOrder {
                    user_id: self.model.user_id(*user),
                    lines: first.iter().map(|p| (ProductId::new(product(*p)).unwrap(), sums[p])).collect(),
                    coupon_id: coupon
                        .map(|c| CouponId::new(self.model.coupon_ids.get(c).copied().unwrap_or(NOBODY)).unwrap()),
                };
                let placed = engine.place_order(&call, order).await;
                placed.map(|reply| {
                    let id = reply.value.order_id.get();
                    (done(format!("placed {}", reply.value.final_price), reply.replayed), Some(id))
                })
            }
            Op::Pay { order, user, more } => {
                let payer = self.owner(*order, *user);
                let amount = self.model.orders.get(*order).map_or(0, |order| order.final_price) + more;
                let payment = NewPayment {
                    order_id: self.order_id(*order),
                    user_id: self.model.user_id(payer),
                    payment_type: PaymentType::Card,
                    amount,
                };
                match engine.pay_order(&call, payment).await {
                    Ok(reply) => Ok((done(format!("paid {}", reply.value.amount), reply.replayed), None)),
                    Err(Error::PaymentDeclined { replayed }) => Ok((done("PaymentDeclined".into(), replayed), None)),
                    Err(error) => Err(error),
                }
            }
            Op::Cancel { order, user } => {
                let user = self.model.user_id(self.owner(*order, *user));
                let closed = engine.cancel_order(&call, self.order_id(*order), user).await;
                closed.map(|reply| {
                    let reason = reply.value.close_reason.unwrap();
                    (done(format!("closed {reason}"), reply.replayed), None)
                })
            }
            Op::Advance { ms } => {
                self.test.clock.advance(*ms);
                Ok((format!("swept {}", engine.sweep().await.unwrap()), None))
            }
            Op::Leave { partition } => {
                let here = Partition(partition % self.test.options.partitions);
                assert_eq!(self.test.app.projector.project(here).await.unwrap(), None);
                self.test.leave().await;
                Ok(("left".into(), None))
            }
            Op::Again { .. } => unreachable!(),
        };
        result.unwrap_or_else(|error| (name(&error), None))
    }

    fn modelled(&mut self, op: &Op) -> Result<String, &'static str> {
        let now = self.test.clock.now();
        let owner = |order: usize, user: Option<usize>| self.owner(order, user);
        match op {
            Op::User { balance } => {
                self.model.users.push((0, Vec::new()));
                if *balance > 0 {
                    self.model.entry(self.model.users.len() - 1, TransactionType::Charge, *balance);
                }
                Ok("created".into())
            }
            Op::Product { price, stock } => {
                self.model.products.push((*price, *stock));
                Ok("created".into())
            }
            Op::Restock { product, delta } => match self.model.products.get_mut(*product) {
                None => Err("ProductNotFound"),
                Some((_, stock)) if *stock + delta < 0 => Err("InsufficientStock"),
                Some((_, stock)) => {
                    *stock += delta;
                    Ok(format!("stock {stock}"))
                }
            },
            Op::Campaign { percent, amount, total, opens_in, lasts, good_for } => {
                let kind = if *percent { DiscountType::Percentage } else { DiscountType::Fixed };
                let opens = now.0 + opens_in;
                let (closes, expires) = (opens + lasts, opens + lasts + good_for);
                self.model.campaigns.push((Discount { kind, amount: *amount }, *total, opens, closes, expires));
                self.model.issued.push(0);
                Ok("created".into())
            }
            Op::Move { coupon, opens_in, closes_in } => self.model.moved(now.0, *coupon, *opens_in, *closes_in),
            Op::Charge { user, amount } => {
                if *user >= self.model.users.len() {
                    return Err("UserNotFound");
                }
                self.model.entry(*user, TransactionType::Charge, *amount);
                Ok(format!("balance {}", self.model.users[*user].0))
            }
            Op::Issue { user, coupon } => self.model.issue(now.0, *user, *coupon),
            Op::Place { user, lines, coupon } => {
                let (sums, first) = summed(lines);
                self.model.place(now.0, *user, &sums, &first, *coupon)
            }
            Op::Pay { order, user, more } => {
                let payer = owner(*order, *user);
                let amount = self.model.orders.get(*order).map_or(0, |order| order.final_price) + more;
                self.model.pay(now, *order, payer, amount)
            }
            Op::Cancel { order, user } => {
                let user = owner(*order, *user);
                self.model.cancel(*order, user)
            }
            Op::Advance { .. } => Ok(format!("swept {}", self.model.sweep(now.0))),
            Op::Leave { .. } => Ok("left".into()),
            Op::Again { .. } => unreachable!(),
        }
    }

    /// Compares everything that can be read.
    async fn compare(&self) {
        let (engine, model) = (&self.test.engine, &self.model);
        let mut seen = BTreeSet::new();
        for (user, (balance, entries)) in model.users.iter().enumerate() {
            let id = model.user_id(user);
            assert_eq!(engine.balance(id).await.unwrap().balance, *balance);
            let history = engine.history(id, 1000, None).await.unwrap();
            let history: Vec<_> = history.iter().map(|e| (e.kind, e.amount, e.before, e.after)).collect();
            assert_eq!(&history, entries);
            let now = self.test.clock.now().0;
            for coupon in engine.user_coupons(id).await.unwrap() {
                let campaign = model.coupon_ids.iter().position(|id| *id == coupon.terms.coupon_id.get()).unwrap();
                let state = model.coupons[&(campaign, user)];
                let (status, held) = match state {
                    Coupon::Free if now >= model.campaigns[campaign].4 => (CouponStatus::Expired, None),
                    Coupon::Free => (CouponStatus::Available, None),
                    Coupon::Held(order) => (CouponStatus::Used, Some(model.orders[order].id)),
                    Coupon::Used(_) => (CouponStatus::Used, None),
                };
                assert_eq!((coupon.status, coupon.held_by.map(OrderId::get)), (status, held));
                assert_eq!(coupon.used_at.is_some(), matches!(state, Coupon::Used(_)));
                seen.insert((campaign, user));
            }
        }
        assert_eq!(seen, model.coupons.keys().copied().collect());
        for (coupon, (_, _, opens, closes, _)) in model.campaigns.iter().enumerate() {
            let found = engine.campaign(CouponId::new(model.coupon_ids[coupon]).unwrap()).await.unwrap();
            let window = (found.terms.opens_at.0, found.terms.closes_at.0);
            assert_eq!((window, found.issued), ((*opens, *closes), model.issued[coupon]));
        }
        for (product, (price, stock)) in model.products.iter().enumerate() {
            let found = engine.product(ProductId::new(model.product_ids[product]).unwrap()).await.unwrap();
            assert_eq!((found.price, found.stock), (*price, *stock));
        }
        for order in &model.orders {
            let found = engine.order(OrderId::new(order.id).unwrap(), None).await.unwrap();
            let status = found.close_reason.map_or(found.status.as_str(), |reason| match reason {
                CloseReason::PaymentDeclined => "FAILED",
                reason => reason.as_str(),
            });
            assert_eq!((status, found.total, found.final_price), (order.status, order.total, order.final_price));
        }
        for scope in RankingScope::ALL {
            let ranked = engine.popular(*scope, 100).await.unwrap();
            let ranked: Vec<_> = ranked.iter().map(|r| (r.product_id.get(), r.units, r.won)).collect();
            assert_eq!(ranked, model.ranking(self.test.clock.now().day(chrono_tz::Asia::Seoul), *scope));
        }
    }
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

fn agree(partitions: u16, cases: u32) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut config = proptest::test_runner::Config { max_shrink_iters: 60, ..Default::default() };
    if std::env::var("PROPTEST_CASES").is_err() {
        config.cases = cases;
    }
    config.failure_persistence = None;
    // A few of each from the start, so that short sequences get somewhere.
    let start = [
        Op::User { balance: 5_000 },
        Op::User { balance: 300_000 },
        Op::Product { price: 100, stock: 5 },
        Op::Product { price: 333, stock: 2 },
        Op::Product { price: 0, stock: 3 },
        Op::Campaign { percent: true, amount: 33, total: 2, opens_in: 0, lasts: 1 << 40, good_for: 0 },
        Op::Campaign { percent: false, amount: 150, total: 1, opens_in: 0, lasts: 700_000, good_for: 500_000 },
    ];
    let sequences = prop::collection::vec(op(), 20..80);
    TestRunner::new(config)
        .run(&sequences, |ops| {
            let ops: Vec<Op> = start.iter().cloned().chain(ops).collect();
            runtime.block_on(async {
                let options = Options { partitions, max_open_orders: 3, ..Options::default() };
                let mut run = Run { test: TestApp::with(options).await, model: Model::default(), ops };
                for at in 0..run.ops.len() {
                    run.step(at).await;
                }
                run.compare().await;
                run.test.drain().await;
                run.compare().await;
                run.test.leave().await;
                run.compare().await;
                run.test.finish().await;
            });
            Ok(())
        })
        .unwrap();
}

#[test]
fn random_operations_match_model() {
    agree(1, 24);
}

#[test]
fn random_operations_match_model_across_partitions() {
    agree(3, 24);
}
