//! The calls of every script, with arguments that have an effect.

use super::*;

impl Bench {
    pub(super) fn begin(&self, script: &'static Script, keys: Keys) -> Raw {
        let args = strings([&START.0, &"", &86_400_000, &"rid"]);
        Raw { script, keys: vec![keys.meta(), keys.outbox(), keys.record("")], args, shared: None }
    }

    pub(super) fn begin_unrecorded(&self, script: &'static Script, keys: Keys) -> Raw {
        Raw { script, keys: vec![keys.meta(), keys.outbox()], args: strings([&START.0, &"rid"]), shared: None }
    }

    /// A call of one request to a script that decides many, with the keys and arguments that all requests share.
    pub(super) fn one_of_many(script: &'static Script, keys: Vec<String>, args: Vec<String>, record: String) -> Raw {
        let mut raw = Raw { script, shared: Some((keys.len(), args.len())), keys, args };
        raw.keys.push(record);
        raw.args.extend(strings([&"", &"rid"]));
        raw
    }

    pub fn users_create(&self, first: i64, count: i64, balance: i64) -> Raw {
        let keys = self.keys(first);
        let mut raw = self.begin(&script::USERS_CREATE, keys);
        raw.args.extend(strings([&balance, &first, &self.partitions, &"1", &"u"]));
        for id in (0..count).map(|n| first + n * self.partitions) {
            raw.keys.push(keys.user(UserId::new(id).unwrap()));
            raw.args.push(format!("u{id}"));
        }
        raw
    }

    pub(super) fn users_put(&self, users: &[(i64, &str, i64)]) -> Raw {
        let keys = self.keys(users[0].0);
        let mut raw = self.begin(&script::USERS_PUT, keys);
        for (id, name, balance) in users {
            raw.keys.push(user_key(keys, *id));
            raw.args.extend(strings([id, name, balance]));
        }
        raw
    }

    pub(super) fn user_forget(&self, user: i64, forfeits: bool) -> Raw {
        let keys = self.keys(user);
        let mut raw = self.begin_unrecorded(&script::USER_FORGET, keys);
        raw.keys.push(user_key(keys, user));
        raw.args.extend(strings([&user, &u8::from(forfeits)]));
        raw
    }

    pub(super) fn ids_skip(&self, sequence: &str, id: i64) -> Raw {
        let keys = Keys(Partition(0));
        let mut raw = self.begin_unrecorded(&script::IDS_SKIP, keys);
        raw.keys.push(keys.ids());
        raw.args.extend(strings([&sequence, &id]));
        raw
    }

    pub fn product_create(&self, id: i64, price: i64, units: i64) -> Raw {
        let keys = self.keys(id);
        let mut raw = self.begin(&script::PRODUCT_CREATE, keys);
        raw.keys.extend([product_key(keys, id), keys.price(), keys.stock(), keys.catalogue(), keys.category("TOP")]);
        raw.keys.push(keys.price_version());
        raw.args.extend(strings([&id, &"셔츠", &price, &units, &"TOP", &""]));
        raw
    }

    pub(super) fn product_update(&self, id: i64, to: &str) -> Raw {
        let keys = self.keys(id);
        let mut raw = self.begin(&script::PRODUCT_UPDATE, keys);
        raw.keys.extend([product_key(keys, id), keys.price(), keys.stock(), keys.category("TOP"), keys.category(to)]);
        raw.keys.push(keys.price_version());
        raw.args.extend(strings([&id, &"", &"", &"TOP", &to, &0, &1_000_000_000, &0, &0, &"", &""]));
        raw
    }

    pub fn campaign_create(&self, id: i64, kind: &str, amount: i64, total: i64) -> Raw {
        let keys = self.keys(id);
        let mut raw = self.begin(&script::CAMPAIGN_CREATE, keys);
        raw.keys.extend([campaign_key(keys, id), keys.campaigns()]);
        let (opens, closes, expires) = (START.0, START.0 + HOUR_MS, START.0 + 2 * HOUR_MS);
        raw.args.extend(strings([&id, &"CODE", &kind, &amount, &total, &opens, &closes, &expires, &""]));
        raw
    }

    /// Moves the window of a campaign from now to half an hour from now.
    pub(super) fn campaign_update(&self, id: i64) -> Raw {
        let keys = self.keys(id);
        let mut raw = self.begin(&script::CAMPAIGN_UPDATE, keys);
        raw.keys.extend([campaign_key(keys, id), keys.campaigns()]);
        raw.args.extend(strings([&id, &START.0, &(START.0 + HOUR_MS / 2), &60_000]));
        raw
    }

    pub fn coupon_issue(&self, coupon: i64, user: i64) -> Raw {
        let keys = self.keys(coupon);
        let holders = format!("{}:holders", campaign_key(keys, coupon));
        let shared = vec![keys.meta(), keys.outbox(), campaign_key(keys, coupon), holders];
        let args = strings([&START.0, &86_400_000, &coupon]);
        let mut raw = Bench::one_of_many(&script::COUPON_ISSUE, shared, args, keys.record(""));
        let owned = user % self.partitions == coupon % self.partitions;
        raw.keys.push(if owned { user_key(keys, user) } else { keys.issued(UserId::new(user).unwrap()) });
        raw.args.extend(strings([&user, &u8::from(owned)]));
        raw
    }

    pub(super) fn coupon_grant(&self, user: i64, coupon: i64, issue_no: i64) -> Raw {
        let keys = self.keys(user);
        let mut raw = self.begin_unrecorded(&script::COUPON_GRANT, keys);
        raw.keys.push(user_key(keys, user));
        raw.args.extend(strings([&user, &coupon, &issue_no, &START.0]));
        raw
    }

    pub fn charge(&self, user: i64, amount: i64) -> Raw {
        let keys = self.keys(user);
        let (shared, args) = (vec![keys.meta(), keys.outbox()], strings([&START.0, &86_400_000, &MAX_SAFE_INTEGER]));
        let mut raw = Bench::one_of_many(&script::BALANCE_CHARGE, shared, args, keys.record(""));
        raw.keys.push(user_key(keys, user));
        raw.args.extend(strings([&user, &amount]));
        raw
    }

    pub fn place(&self, order: i64, user: i64, lines: &[(i64, i64)]) -> Raw {
        let keys = self.keys(user);
        let shared = vec![keys.meta(), keys.outbox(), keys.expiry(), keys.price(), keys.stock(), keys.held()];
        let args = strings([&START.0, &86_400_000, &20, &1, &HOUR_MS]);
        let mut raw = Bench::one_of_many(&script::ORDER_PLACE, shared, args, keys.record(""));
        raw.keys.extend([user_key(keys, user), order_key(keys, order)]);
        raw.args.extend(strings([&order, &user, &"", &"", &"", &"", &"", &lines.len()]));
        for (product, quantity) in lines {
            raw.args.extend(strings([product, quantity]));
        }
        raw
    }

    /// An order that is paid in the same step.
    pub fn checkout(&self, order: i64, user: i64, lines: &[(i64, i64)]) -> Raw {
        let keys = self.keys(user);
        let day = NaiveDate::parse_from_str(DAY, "%Y%m%d").unwrap();
        let mut shared = vec![keys.meta(), keys.outbox(), keys.price(), keys.stock(), keys.sold()];
        shared.extend([keys.rank_units(day), keys.rank_won(day)]);
        let today = CalendarDay::of(START, chrono_tz::Asia::Seoul);
        let mut args = strings([&START.0, &86_400_000, &20, &HOUR_MS, &DAY]);
        args.extend(strings([&today.from.0, &today.until.0, &ranked_until(day).0]));
        let mut raw = Bench::one_of_many(&script::ORDER_CHECKOUT, shared, args, keys.record(""));
        let place = self.place(order, user, lines);
        raw.keys.extend_from_slice(&place.keys[place.keys.len() - 2..]);
        // Those of the order, after its fingerprint and request id.
        let (_, shared) = place.shared.unwrap();
        raw.args.extend_from_slice(&place.args[shared + 2..]);
        raw.args.extend(strings([&"BALANCE", &(order + 7), &format!("receipt-{order}")]));
        raw
    }

    /// The keys of the script that ends an order.
    pub(super) fn closing(&self, script: &'static Script, order: i64, user: i64) -> Raw {
        let keys = self.keys(order);
        let day = NaiveDate::parse_from_str(DAY, "%Y%m%d").unwrap();
        let mut raw = self.begin(script, keys);
        raw.keys.extend([user_key(keys, user), order_key(keys, order), keys.expiry()]);
        raw.keys.extend([keys.stock(), keys.held(), keys.sold(), keys.rank_units(day), keys.rank_won(day)]);
        raw.keys.extend([keys.gateway(), keys.withheld(), keys.freed(), keys.quarantined()]);
        raw.args.extend(strings([&order, &user]));
        raw
    }

    pub fn pay(&self, order: i64, user: i64, amount: i64) -> Raw {
        let keys = self.keys(order);
        let day = NaiveDate::parse_from_str(DAY, "%Y%m%d").unwrap();
        let mut shared = vec![keys.meta(), keys.outbox(), keys.expiry(), keys.stock(), keys.held(), keys.sold()];
        shared.extend([keys.withheld(), keys.rank_units(day), keys.rank_won(day), keys.gateway(), keys.freed()]);
        let today = CalendarDay::of(START, chrono_tz::Asia::Seoul);
        let args = [&START.0, &86_400_000, &DAY as &dyn ToString, &today.from.0, &today.until.0];
        let mut args: Vec<String> = args.map(|arg| arg.to_string()).into();
        args.extend(strings([&ranked_until(day).0, &1_000]));
        let mut raw = Bench::one_of_many(&script::ORDER_PAY, shared, args, keys.record(""));
        raw.keys.extend([user_key(keys, user), order_key(keys, order)]);
        let receipt = format!("receipt-{order}");
        raw.args.extend(strings([&order, &user, &amount, &"CARD", &(order + 7), &receipt, &"BALANCE", &""]));
        raw
    }

    pub(super) fn pay_by_gateway(&self, order: i64, user: i64, amount: i64) -> Raw {
        self.pay(order, user, amount).with(7, "TOSS").with(10, "GATEWAY").with(11, format!("tx-{order}"))
    }

    /// `why` is CANCEL, REFUND, EXPIRE or DECLINE; `day` is the day of sale of a PAID order.
    pub fn close(&self, order: i64, user: i64, why: &str, day: &str) -> Raw {
        let mut raw = self.closing(&script::ORDER_CLOSE, order, user);
        raw.args.extend(strings([&why, &day, &if day.is_empty() { 0 } else { START.0 + HOUR_MS * 24 }, &"", &""]));
        raw.args.extend(strings([&(HOUR_MS * 24), &"", &1, &"", &""]));
        raw
    }

    /// Refunds these units of an order that was paid on [`DAY`], as its user within a day.
    pub fn refund(&self, order: i64, user: i64, lines: &[(i64, i64)]) -> Raw {
        let keys = self.keys(order);
        let day = NaiveDate::parse_from_str(DAY, "%Y%m%d").unwrap();
        let mut raw = self.begin(&script::ORDER_REFUND, keys);
        raw.keys.extend([user_key(keys, user), order_key(keys, order), keys.stock(), keys.sold(), keys.quarantined()]);
        raw.keys.extend([keys.rank_units(day), keys.rank_won(day), keys.gateway(), keys.freed()]);
        raw.args.extend(strings([&order, &user, &DAY, &(START.0 + HOUR_MS * 24), &(HOUR_MS * 24), &1, &"", &"", &2]));
        for (product, units) in lines {
            raw.args.extend(strings([product, units]));
        }
        raw
    }

    pub(super) fn refund_finish(&self, order: i64, user: i64, part: i64) -> Raw {
        let keys = self.keys(order);
        let mut raw = self.begin_unrecorded(&script::REFUND_FINISH, keys);
        raw.keys.extend([order_key(keys, order), keys.gateway()]);
        raw.args.extend(strings([&order, &user, &format!("receipt-{order}"), &part]));
        raw
    }

    pub(super) fn decline(&self, order: i64, user: i64) -> Raw {
        self.close(order, user, "DECLINE", "").with(10, format!("receipt-{order}"))
    }

    pub(super) fn payment_begin(&self, order: i64, user: i64, amount: i64) -> Raw {
        let keys = self.keys(order);
        let mut raw = self.begin(&script::PAYMENT_BEGIN, keys);
        raw.keys.extend([order_key(keys, order), keys.expiry(), keys.gateway()]);
        let receipt = format!("receipt-{order}");
        raw.args.extend(strings([&order, &user, &amount, &"TOSS", &(order + 7), &receipt, &9_000, &"", &""]));
        raw
    }

    pub(super) fn payment_prepare(&self, order: i64, user: i64) -> Raw {
        let keys = self.keys(order);
        let args = strings([&user, &"{}"]);
        Raw { script: &script::PAYMENT_PREPARE, keys: vec![keys.meta(), order_key(keys, order)], args, shared: None }
    }

    pub(super) fn payment_finish(&self, order: i64, user: i64, outcome: &str) -> Raw {
        let keys = self.keys(order);
        let mut raw = self.begin_unrecorded(&script::PAYMENT_FINISH, keys);
        raw.keys.extend([order_key(keys, order), keys.gateway()]);
        raw.args.extend(strings([&order, &user, &format!("receipt-{order}"), &outcome, &""]));
        raw
    }

    pub(super) fn payment_postpone(&self, order: i64, score: i64) -> Raw {
        let keys = self.keys(order);
        let args = strings([&order, &format!("receipt-{order}"), &score, &"HTTP 500 decides nothing"]);
        let keys = vec![keys.meta(), order_key(keys, order), keys.gateway()];
        Raw { script: &script::PAYMENT_POSTPONE, keys, args, shared: None }
    }

    pub(super) fn payment_resolve(&self, order: i64, user: i64, outcome: &str) -> Raw {
        let keys = self.keys(order);
        let day = NaiveDate::parse_from_str(DAY, "%Y%m%d").unwrap();
        let mut raw = self.begin(&script::PAYMENT_RESOLVE, keys);
        raw.keys.extend([keys.record(""), user_key(keys, user), order_key(keys, order), keys.gateway()]);
        raw.keys.extend([
            keys.stock(),
            keys.held(),
            keys.sold(),
            keys.rank_units(day),
            keys.rank_won(day),
            keys.freed(),
        ]);
        let (receipt, today) = (format!("receipt-{order}"), CalendarDay::of(START, chrono_tz::Asia::Seoul));
        raw.args.extend(strings([&order, &receipt, &"", &outcome, &"", &"kim", &"seen", &DAY]));
        raw.args.extend(strings([&today.from.0, &today.until.0, &ranked_until(day).0, &2_000]));
        raw
    }

    /// Gives `needed` units, or a lot of a fourth of those on sale, to partition `other`.
    pub fn stock_allot(&self, product: i64, other: u16, needed: i64) -> Raw {
        let keys = self.keys(product);
        let mut raw = self.begin_unrecorded(&script::STOCK_ALLOT, keys);
        raw.keys.extend([keys.price(), keys.price_version(), keys.stock(), keys.allotted()]);
        raw.args.extend(strings([&product, &other, &needed, &4, &1_000]));
        raw
    }

    pub fn stock_receive(&self, here: u16, product: i64, total: i64, price: i64, version: i64) -> Raw {
        let keys = Keys(Partition(here));
        let mut raw = self.begin_unrecorded(&script::STOCK_RECEIVE, keys);
        raw.keys.extend([keys.price(), keys.price_version(), keys.stock(), keys.received(), keys.freed()]);
        raw.args.extend(strings([&product, &total, &price, &version]));
        raw
    }

    pub fn stock_return(&self, here: u16, product: i64, withheld: u8) -> Raw {
        let keys = Keys(Partition(here));
        let mut raw = self.begin_unrecorded(&script::STOCK_RETURN, keys);
        raw.keys.extend(match withheld {
            0 => [keys.stock(), keys.returned()],
            _ => [keys.withheld(), keys.surrendered()],
        });
        raw.args.extend(strings([&product, &withheld]));
        raw
    }

    pub fn stock_regain(&self, product: i64, other: u16, total: i64, withheld: u8) -> Raw {
        let keys = self.keys(product);
        let mut raw = self.begin_unrecorded(&script::STOCK_REGAIN, keys);
        raw.keys.extend(match withheld {
            0 => [keys.stock(), keys.regained()],
            _ => [keys.withheld(), keys.recovered()],
        });
        raw.args.extend(strings([&product, &other, &total, &withheld]));
        raw
    }

    pub fn price_set(&self, here: u16, product: i64, price: i64, version: i64) -> Raw {
        let keys = Keys(Partition(here));
        let (keys, args) = (
            vec![keys.meta(), keys.price(), keys.price_version(), keys.stock()],
            strings([&product, &price, &version]),
        );
        Raw { script: &script::PRICE_SET, keys, args, shared: None }
    }

    pub(super) fn limit_group_set(&self, group: &str, limit: i64) -> Raw {
        let keys = Keys(Partition(0));
        let args = strings([&group, &limit]);
        Raw { script: &script::LIMIT_GROUP_SET, keys: vec![keys.meta(), keys.limit_groups()], args, shared: None }
    }

    pub fn outbox_mark(&self, epoch: i64, seq: i64, entry: &str, known: i64) -> Raw {
        let keys = vec![Keys(Partition(0)).meta()];
        Raw { script: &script::OUTBOX_MARK, keys, args: strings([&epoch, &seq, &entry, &known]), shared: None }
    }

    /// Orders of one partition, each with its state in PostgreSQL and a TTL of a minute.
    pub fn evict(&self, orders: &[(String, &str)]) -> Raw {
        let (keys, was): (Vec<String>, Vec<&str>) = orders.iter().cloned().unzip();
        let args = was.iter().flat_map(|was| [(*was).to_owned(), "60000".to_owned()]).collect();
        Raw { script: &script::ORDER_EVICT, keys, args, shared: None }
    }

    pub fn restore(&self, here: Keys, key: &str, fields: &[(&str, &str)]) -> Raw {
        let mut args = strings([&60_000]);
        args.extend(fields.iter().flat_map(|(field, value)| [*field, *value]).map(str::to_owned));
        Raw { script: &script::ORDER_RESTORE, keys: vec![here.meta(), key.to_owned()], args, shared: None }
    }

    pub fn order_key(&self, order: i64) -> String {
        order_key(self.keys(order), order)
    }

    pub(super) async fn life(&mut self, key: &str) -> i64 {
        redis::cmd("PTTL").arg(key).query_async(&mut self.redis).await.unwrap()
    }

    /// Under the token `mine`.
    pub(super) fn coupon_release_prepare(&self, coupon: i64, count: i64) -> Raw {
        let keys = self.keys(coupon);
        let (keys, args) =
            (vec![keys.meta(), keys.record(""), campaign_key(keys, coupon)], strings([&"", &"mine", &count]));
        Raw { script: &script::COUPON_RELEASE_PREPARE, keys, args, shared: None }
    }

    pub(super) fn ids_reserve(&self, sequence: &str, count: i64) -> Raw {
        let keys = Keys(Partition(0));
        let mut raw = self.begin(&script::IDS_RESERVE, keys);
        raw.keys.push(keys.ids());
        raw.args.extend(strings([&sequence, &count, &1]));
        raw
    }

    pub(super) fn ids_split(&self, known: i64) -> Raw {
        let keys = Keys(Partition(0));
        let args = strings([&"own_order", &"order", &1000, &known]);
        Raw { script: &script::IDS_SPLIT, keys: vec![keys.meta(), keys.ids()], args, shared: None }
    }

    pub(super) fn ids_raise(&self, last: i64) -> Raw {
        let keys = Keys(Partition(0));
        let args = strings([&"own_order", &last]);
        Raw { script: &script::IDS_RAISE, keys: vec![keys.meta(), keys.ids()], args, shared: None }
    }

    pub(super) fn idempotency_claim(&self, digest: &str, fingerprint: &str) -> Raw {
        let keys = Keys(Partition(0));
        let args = strings([&fingerprint, &60_000]);
        Raw { script: &script::IDEMPOTENCY_CLAIM, keys: vec![keys.meta(), keys.record(digest)], args, shared: None }
    }

    pub(super) fn idempotency_settle(&self, digest: &str, fingerprint: &str, keeps: u8) -> Raw {
        let keys = Keys(Partition(0));
        let args = strings([&fingerprint, &keeps, &86_400_000, &60_000]);
        Raw { script: &script::IDEMPOTENCY_SETTLE, keys: vec![keys.meta(), keys.record(digest)], args, shared: None }
    }

    pub(super) fn history_read(&self, user: i64, most: i64) -> Raw {
        let keys = self.keys(user);
        let (keys, args) = (vec![user_key(keys, user), keys.outbox()], strings([&most, &user]));
        Raw { script: &script::HISTORY_READ, keys, args, shared: None }
    }

    /// Creates a user with this balance and a product with 100 units in the first partition, and an order of `quantity` units.
    pub(super) async fn ordered(&mut self, order: i64, user: i64, balance: i64, quantity: i64) -> i64 {
        let product = 900 * self.partitions;
        let (create, user_create) = (self.product_create(product, 1_000, 100), self.users_create(user, 1, balance));
        self.run(&create).await;
        self.run(&user_create).await;
        let place = self.place(order, user, &[(product, quantity)]);
        self.decides("PLACED", &place).await;
        product
    }
}
