//! Runs of random operations against the engine and the model.

use super::*;

struct Run {
    test: TestApp,
    model: Model,
    ops: Vec<Op>,
}

impl Run {
    /// Runs operation `at` (or, for `Repeat`, an earlier one) in both, and compares.
    async fn step(&mut self, at: usize) {
        let (index, repeat) = match self.ops[at] {
            Op::Repeat { op } if op < at => (op, true),
            Op::Repeat { .. } => return,
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
                | Op::Refund { .. }
                | Op::UpdateWindow { .. }
                | Op::PutUser { .. }
                | Op::PutProduct { .. }
                | Op::PutCampaign { .. }
        );
        if repeat && !keyed {
            return;
        }
        // A repeat for a user that was forgotten meanwhile may get the first reply, or none.
        if let (true, Op::Charge { user, .. } | Op::Issue { user, .. }) = (repeat, &op)
            && self.model.forgotten.contains(user)
        {
            return;
        }
        let before = self.model.orders.len();
        // A repeat has the key and the request of the first run.
        let actual = self.engine(index, &op).await;
        let expected = match self.model.records.get(&index) {
            Some(first) => format!("{first} replayed"),
            None => {
                let expected = self.expected_reply(index, &op);
                if let (true, Ok(first)) = (keyed, &expected) {
                    self.model.records.insert(index, first.clone());
                }
                expected.unwrap_or_else(str::to_owned)
            }
        };
        let (actual, order) = actual;
        assert_eq!(actual, expected, "operation {at} ({op:?}) of {:#?}", self.ops);
        if let (Some(id), true) = (order, self.model.orders.len() > before) {
            self.model.orders[before].id = id;
        }
    }

    fn order_id(&self, order: usize) -> OrderId {
        OrderId::new(self.model.orders.get(order).map_or(UNKNOWN_ID, |order| order.id)).unwrap()
    }

    fn owner(&self, order: usize, user: Option<usize>) -> usize {
        user.unwrap_or_else(|| self.model.orders.get(order).map_or(0, |order| order.user))
    }

    async fn engine(&mut self, index: usize, op: &Op) -> (String, Option<i64>) {
        let engine = self.test.engine.clone();
        let now = self.test.clock.now();
        let key = format!("key-{index}");
        // The fingerprint: equal for equal requests.
        let call = call(Some((&key, &key)));
        let done = |text: String, replayed: bool| if replayed { format!("{text} replayed") } else { text };
        let result: Result<(String, Option<i64>), Error> = match op {
            Op::User { balance } => {
                let new = NewUser { name: format!("user {index}"), balance: *balance };
                let user = engine.create_user(&call, new).await.unwrap().value;
                self.model.user_ids.push(user.user_id.get());
                Ok(("created".into(), None))
            }
            Op::PutUser { user, balance } => {
                let id = self.model.put_id(index, *user);
                let new = NewUser { name: format!("put {index}"), balance: *balance };
                let put = engine.put_user(&call, id, new).await;
                put.map(|Reply { value, replayed }| {
                    (done(format!("put {:?} {}", value.outcome, value.value.balance), replayed), None)
                })
            }
            Op::PutProduct { product, price, stock, terms } => {
                let (engine, terms) = ((&*engine, &call), terms.at(now));
                let put = puts::put_product(engine, &mut self.model, index, *product, (*price, *stock), terms).await;
                put.map(|(text, replayed)| (done(text, replayed), None))
            }
            Op::PutCampaign { coupon, opens_in, closes_in } => {
                let (engine, window) = ((&*engine, &call), (*opens_in, *closes_in));
                let put = puts::put_campaign(engine, &mut self.model, index, *coupon, now, window).await;
                put.map(|(text, replayed)| (done(text, replayed), None))
            }
            Op::Forget { user, forfeits } => {
                let forgotten = engine.forget_user(&call, self.model.user_id(*user), *forfeits).await;
                forgotten.map(|()| ("forgotten".into(), None))
            }
            Op::Product { price, stock, terms } => {
                let (category, terms) = (category(self.model.product_ids.len()), terms.at(now));
                let new =
                    NewProduct { name: format!("product {index}"), price: *price, stock: *stock, category, terms };
                // The API refuses the others before.
                let created = if terms.are_valid() {
                    engine.create_product(&call, new).await
                } else {
                    Err(Error::InvalidRequest(""))
                };
                created.map(|reply| {
                    self.model.product_ids.push(reply.value.product_id.get());
                    ("created".into(), None)
                })
            }
            Op::Terms { product, terms } => {
                let id = self.model.product_ids.get(*product).copied().unwrap_or(UNKNOWN_ID);
                let patch = ProductPatch { terms: puts::every_term(terms.at(now)), ..ProductPatch::default() };
                let updated = engine.update_product(&call, ProductId::new(id).unwrap(), patch).await;
                updated.map(|reply| (format!("terms {} {}", reply.value.terms, reply.value.sale_status()), None))
            }
            Op::Restock { product, delta } => {
                let id = self.model.product_ids.get(*product).copied().unwrap_or(UNKNOWN_ID);
                let patch = ProductPatch { stock_delta: Some(*delta), ..ProductPatch::default() };
                let updated = engine.update_product(&call, ProductId::new(id).unwrap(), patch).await;
                updated.map(|reply| (format!("stock {}", reply.value.stock), None))
            }
            Op::Campaign { percent, amount, total, opens_in, lasts, good_for, conditions } => {
                let kind = if *percent { DiscountType::Percentage } else { DiscountType::Fixed };
                let opens = now.plus(*opens_in);
                let new = NewCampaign {
                    code: puts::CODE.to_owned(),
                    discount: Discount { kind, amount: *amount },
                    conditions: self.model.conditions_of(*conditions),
                    total: *total,
                    opens_at: Some(opens),
                    closes_at: Some(opens.plus(*lasts)),
                    expires_at: opens.plus(lasts + good_for),
                };
                let campaign = engine.create_campaign(&call, new).await.unwrap().value;
                self.model.coupon_ids.push(campaign.terms.coupon_id.get());
                Ok(("created".into(), None))
            }
            Op::UpdateWindow { coupon, opens_in, closes_in } => {
                let coupon = CouponId::new(self.model.coupon_ids.get(*coupon).copied().unwrap_or(UNKNOWN_ID)).unwrap();
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
                let coupon = CouponId::new(self.model.coupon_ids.get(*coupon).copied().unwrap_or(UNKNOWN_ID)).unwrap();
                let issued = engine.issue_coupon(&call, self.model.user_id(*user), coupon).await;
                issued.map(|reply| (done(format!("issued {}", reply.value.issue_no), reply.replayed), None))
            }
            Op::Place { user, lines, coupon, pays } => {
                let product = |p: usize| self.model.product_ids.get(p).copied().unwrap_or(UNKNOWN_ID + p as i64);
                let (_, first) = summed(lines);
                let sums = summed(lines).0;
                let order = NewOrder {
                    user_id: self.model.user_id(*user),
                    lines: first.iter().map(|p| (ProductId::new(product(*p)).unwrap(), sums[p])).collect(),
                    coupon_id: coupon
                        .map(|c| CouponId::new(self.model.coupon_ids.get(c).copied().unwrap_or(UNKNOWN_ID)).unwrap()),
                    payment_type: pays.then_some(PaymentType::Balance),
                };
                let placed = engine.place_order(&call, order).await;
                placed.map(|Reply { value, replayed }| {
                    let verb = if value.payment.is_some() { "paid" } else { "placed" };
                    (done(format!("{verb} {}", value.final_price), replayed), Some(value.order_id.get()))
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
                match engine.pay_order(&call, payment, None).await {
                    Ok(reply) => Ok((done(format!("paid {}", reply.value.amount), reply.replayed), None)),
                    Err(Error::PaymentDeclined { replayed }) => Ok((done("PaymentDeclined".into(), replayed), None)),
                    Err(error) => Err(error),
                }
            }
            Op::Cancel { order, user } => {
                let user = self.model.user_id(self.owner(*order, *user));
                let closed = engine.cancel_order(&call, self.order_id(*order), user, None).await;
                closed.map(|reply| {
                    let reason = reply.value.close_reason.unwrap();
                    (done(format!("closed {reason}"), reply.replayed), None)
                })
            }
            Op::Refund { order, user, operator, lines, restock } => {
                let id = self.order_id(*order);
                let product = |place: usize| self.model.product_ids.get(place).copied().unwrap_or(UNKNOWN_ID);
                let lines = lines.as_ref().map(|lines| {
                    let lines = self.model.lines_at(*order, lines);
                    lines.iter().map(|(of, units)| (ProductId::new(product(*of)).unwrap(), *units)).collect()
                });
                let refunded = if *operator {
                    let operator = Some(("kim".to_owned(), "worn".to_owned()));
                    let terms = RefundTerms { within_ms: None, restock: *restock, operator };
                    engine.refund_order(&call, id, &NewRefund { lines, terms }).await
                } else {
                    let user = self.model.user_id(self.owner(*order, *user));
                    engine.cancel_order(&call, id, user, lines).await
                };
                refunded.map(|reply| match reply.value.close_reason {
                    Some(CloseReason::CancelledByUser) => {
                        (done("closed CANCELLED_BY_USER".into(), reply.replayed), None)
                    }
                    _ => {
                        let order = &reply.value;
                        (
                            done(
                                format!("refunded {} {}", order.refunded_price(), order.status.as_str()),
                                reply.replayed,
                            ),
                            None,
                        )
                    }
                })
            }
            Op::Advance { ms } => {
                self.test.clock.advance(*ms);
                Ok((format!("swept {}", engine.sweep().await.unwrap()), None))
            }
            Op::Evict { partition } => {
                let here = Partition(partition % self.test.options.partitions);
                assert_eq!(self.test.app.projector.project(here).await.unwrap(), None);
                self.test.expire_evicted().await;
                Ok(("left".into(), None))
            }
            Op::Repeat { .. } => unreachable!(),
        };
        result.unwrap_or_else(|error| (name(&error), None))
    }

    fn expected_reply(&mut self, index: usize, op: &Op) -> Result<String, &'static str> {
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
            Op::PutUser { balance, .. } => self.model.put(index, *balance),
            Op::PutProduct { price, stock, terms, .. } => {
                self.model.put_product(index, (*price, *stock), terms.at(now))
            }
            Op::PutCampaign { opens_in, closes_in, .. } => self.model.put_campaign(index, now.0, *opens_in, *closes_in),
            Op::Forget { user, forfeits } => self.model.forget(*user, *forfeits),
            Op::Product { price, stock, terms } => {
                if !self.model.accepts(terms.at(now)) {
                    return Err("InvalidRequest");
                }
                self.model.products.push((*price, *stock));
                self.model.terms.push(terms.at(now));
                Ok("created".into())
            }
            Op::Terms { product, terms } => {
                let (terms, had) = (terms.at(now), self.model.terms.get(*product).copied());
                let Some(had) = had else { return Err("ProductNotFound") };
                if terms != had && !self.model.accepts(terms) {
                    return Err("InvalidRequest");
                }
                self.model.terms[*product] = terms;
                Ok(format!("terms {terms} {}", terms.status(self.model.products[*product].1, now)))
            }
            Op::Restock { product, delta } => match self.model.products.get_mut(*product) {
                None => Err("ProductNotFound"),
                Some((_, stock)) if *stock + delta < 0 => Err("InsufficientStock"),
                Some((_, stock)) => {
                    *stock += delta;
                    Ok(format!("stock {stock}"))
                }
            },
            Op::Campaign { percent, amount, total, opens_in, lasts, good_for, conditions } => {
                let kind = if *percent { DiscountType::Percentage } else { DiscountType::Fixed };
                let known = |product: &usize| *product < self.model.products.len();
                // A product that is created later is another one.
                let product = conditions.product.map(|product| if known(&product) { product } else { usize::MAX });
                self.model.conditions.push(OpConditions { product, ..*conditions });
                let opens = now.0 + opens_in;
                let (closes, expires) = (opens + lasts, opens + lasts + good_for);
                self.model.campaigns.push((Discount { kind, amount: *amount }, *total, opens, closes, expires));
                self.model.issued.push(0);
                Ok("created".into())
            }
            Op::UpdateWindow { coupon, opens_in, closes_in } => self.model.moved(now.0, *coupon, *opens_in, *closes_in),
            Op::Charge { user, amount } => {
                if !self.model.exists(*user) {
                    return Err("UserNotFound");
                }
                self.model.entry(*user, TransactionType::Charge, *amount);
                Ok(format!("balance {}", self.model.users[*user].0))
            }
            Op::Issue { user, coupon } => self.model.issue(now.0, *user, *coupon),
            Op::Place { user, lines, coupon, pays } => {
                let (sums, first) = summed(lines);
                let placed = self.model.place(now.0, *user, &sums, &first, *coupon)?;
                let order = self.model.orders.len().saturating_sub(1);
                match pays {
                    true => self.model.pay(now, order, *user, self.model.orders[order].final_price),
                    false => Ok(placed),
                }
            }
            Op::Pay { order, user, more } => {
                let payer = owner(*order, *user);
                let amount = self.model.orders.get(*order).map_or(0, |order| order.final_price) + more;
                self.model.pay(now, *order, payer, amount)
            }
            Op::Cancel { order, user } => {
                let user = owner(*order, *user);
                self.model.cancel(now.0, *order, user)
            }
            Op::Refund { order, user, operator, lines, restock } => {
                let by = (!operator).then(|| owner(*order, *user));
                let is_pending = by.is_some() && self.model.orders.get(*order).is_some_and(|of| of.status == "PENDING");
                match (lines, by) {
                    (None, Some(user)) if is_pending => self.model.cancel(now.0, *order, user),
                    _ => {
                        let lines = lines.as_ref().map(|lines| self.model.lines_at(*order, lines));
                        self.model.refund(now.0, *order, by, lines, *restock)
                    }
                }
            }
            Op::Advance { .. } => Ok(format!("swept {}", self.model.sweep(now.0))),
            Op::Evict { .. } => Ok("left".into()),
            Op::Repeat { .. } => unreachable!(),
        }
    }

    /// Compares every read of the engine with the model.
    async fn compare(&self) {
        let (engine, model) = (&self.test.engine, &self.model);
        let mut seen = BTreeSet::new();
        for (user, (balance, entries)) in model.users.iter().enumerate() {
            let id = model.user_id(user);
            if model.forgotten.contains(&user) {
                assert!(matches!(engine.balance(id).await, Err(Error::UserNotFound)));
                continue;
            }
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
        let held = model.coupons.keys().copied().filter(|(_, user)| !model.forgotten.contains(user));
        assert_eq!(seen, held.collect());
        for (coupon, (_, _, opens, closes, _)) in model.campaigns.iter().enumerate() {
            let found = engine.campaign(CouponId::new(model.coupon_ids[coupon]).unwrap()).await.unwrap();
            let window = (found.terms.opens_at.0, found.terms.closes_at.0);
            assert_eq!((window, found.issued), ((*opens, *closes), model.issued[coupon]));
        }
        for (product, (price, stock)) in model.products.iter().enumerate() {
            let found = engine.product(ProductId::new(model.product_ids[product]).unwrap()).await.unwrap();
            assert_eq!((found.price, found.stock, found.terms), (*price, *stock, model.terms[product]));
        }
        for order in &model.orders {
            let found = engine.order(OrderId::new(order.id).unwrap(), None).await.unwrap();
            let status = found.close_reason.map_or(found.status.as_str(), |reason| match reason {
                CloseReason::PaymentDeclined => "FAILED",
                reason => reason.as_str(),
            });
            assert_eq!((status, found.total, found.final_price), (order.status, order.total, order.final_price));
            if order.status == "PAID" {
                let left: BTreeMap<i64, i64> = found.left.iter().map(|of| (of.product_id.get(), of.quantity)).collect();
                let expected = order.lines.iter().filter(|(_, (units, _))| *units > 0);
                let expected = expected.map(|(product, (units, _))| (model.product_ids[*product], *units)).collect();
                assert_eq!((left, found.left_price), (expected, order.left_price));
            }
        }
        for scope in RankingScope::ALL {
            let ranked = engine.popular(*scope, 100).await.unwrap();
            let ranked: Vec<_> = ranked.iter().map(|r| (r.product_id.get(), r.units, r.won)).collect();
            assert_eq!(ranked, model.ranking(self.test.clock.now().day(chrono_tz::Asia::Seoul), *scope));
        }
    }
}

fn compare_with_model(partitions: u16, cases: u32) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let config = crate::engine::model_config(cases);
    // Objects of every kind, so that short sequences reach every operation.
    let start = [
        Op::User { balance: 5_000 },
        Op::User { balance: 300_000 },
        Op::Product { price: 100, stock: 5, terms: OpTerms::default() },
        Op::Product { price: 333, stock: 2, terms: OpTerms::default() },
        Op::Product { price: 0, stock: 3, terms: OpTerms { limit: Some(2), ..OpTerms::default() } },
        Op::Campaign {
            percent: true,
            amount: 33,
            total: 2,
            opens_in: 0,
            lasts: 1 << 40,
            good_for: 0,
            conditions: OpConditions::default(),
        },
        Op::Campaign {
            percent: false,
            amount: 150,
            total: 1,
            opens_in: 0,
            lasts: 700_000,
            good_for: 500_000,
            conditions: OpConditions { least: Some(200), ..OpConditions::default() },
        },
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
                run.test.expire_evicted().await;
                run.compare().await;
                run.test.finish().await;
            });
            Ok(())
        })
        .unwrap();
}

#[test]
fn random_operations_match_model() {
    compare_with_model(1, 24);
}

#[test]
fn random_operations_match_model_across_partitions() {
    compare_with_model(3, 24);
    compare_with_model(16, 8);
}
