//! Linearizability of single objects: campaigns, balances, products, orders.
//!
//! stateright's checker gets each object's history and a sequential model of the object. An operation took effect between its
//! request and its reply, at the recorded time of the stores or later. An expiry has no request: its interval begins when it is
//! due.

use std::{cell::Cell, collections::BTreeMap};

use stateright::semantics::{ConsistencyTester, LinearizabilityTester, SequentialSpec};

/// An operation on one object, which took effect between these two moments.
#[derive(Clone)]
pub struct Interval<S: SequentialSpec> {
    pub began: u64,
    pub ended: u64,
    pub op: S::Op,
    pub ret: S::Ret,
}

/// The result of a check.
pub enum CheckResult {
    Linearizable,
    Not(String),
    /// The check ran out of steps.
    Undecided,
}

/// Steps that one object's check may take.
const STEPS: u64 = 300_000;

thread_local! {
    static STEPS_LEFT: Cell<u64> = const { Cell::new(0) };
}

/// A model that counts its steps. Without steps left, every step is invalid, which ends the search.
#[derive(Clone)]
struct Counted<S>(S);

impl<S: SequentialSpec> SequentialSpec for Counted<S>
where
    S::Ret: PartialEq,
{
    type Op = S::Op;
    type Ret = S::Ret;

    fn invoke(&mut self, op: &S::Op) -> S::Ret {
        self.0.invoke(op)
    }

    fn is_valid_step(&mut self, op: &S::Op, ret: &S::Ret) -> bool {
        STEPS_LEFT.with(|left| left.replace(left.get().saturating_sub(1)) > 0) && self.0.is_valid_step(op, ret)
    }
}

/// Checks one object's history.
pub fn check<S>(object: &str, start: S, mut intervals: Vec<Interval<S>>) -> CheckResult
where
    S: SequentialSpec + Clone,
    S::Op: Clone + std::fmt::Debug,
    S::Ret: Clone + std::fmt::Debug + PartialEq,
{
    // Each operation is a thread, numbered in the order of beginning: the search tries the likely order first.
    intervals.sort_by_key(|interval| interval.began);
    let mut moments: Vec<(u64, bool, usize)> = Vec::new();
    for (thread, interval) in intervals.iter().enumerate() {
        assert!(interval.began <= interval.ended, "{object}: {:?} ends before it begins", interval.op);
        moments.push((interval.began, false, thread));
        moments.push((interval.ended, true, thread));
    }
    moments.sort();
    STEPS_LEFT.with(|left| left.set(STEPS));
    let mut tester = LinearizabilityTester::new(Counted(start));
    for (_, ends, thread) in moments {
        let interval = &intervals[thread];
        match ends {
            false => tester.on_invoke(thread, interval.op.clone()).map(drop).unwrap(),
            true => tester.on_return(thread, interval.ret.clone()).map(drop).unwrap(),
        }
    }
    if tester.is_consistent() {
        return CheckResult::Linearizable;
    }
    if STEPS_LEFT.with(Cell::get) == 0 {
        return CheckResult::Undecided;
    }
    let first = intervals.first().map_or(0, |interval| interval.began);
    let line = |interval: &Interval<S>| {
        let ms = |at: u64| (at - first) as f64 / 1e6;
        format!("  {:9.1}–{:9.1} ms  {:?} → {:?}\n", ms(interval.began), ms(interval.ended), interval.op, interval.ret)
    };
    CheckResult::Not(format!("{object}: no order explains\n{}", intervals.iter().map(line).collect::<String>()))
}

/// A campaign: places in the order of arrival, one per user, up to the total.
#[derive(Clone)]
pub struct Campaign {
    pub total: i64,
    pub issued: BTreeMap<i64, i64>,
}

#[derive(Clone, Debug)]
pub enum CampaignOp {
    Issue(i64),
    /// Reads this user's place.
    Read(i64),
}

#[derive(Clone, Debug, PartialEq)]
pub enum CampaignRet {
    Issued(i64),
    HoldsOne,
    SoldOut,
    Has(Option<i64>),
}

impl SequentialSpec for Campaign {
    type Op = CampaignOp;
    type Ret = CampaignRet;

    fn invoke(&mut self, op: &CampaignOp) -> CampaignRet {
        match op {
            CampaignOp::Read(user) => CampaignRet::Has(self.issued.get(user).copied()),
            CampaignOp::Issue(user) if self.issued.contains_key(user) => CampaignRet::HoldsOne,
            CampaignOp::Issue(_) if self.issued.len() as i64 >= self.total => CampaignRet::SoldOut,
            CampaignOp::Issue(user) => {
                let place = self.issued.len() as i64 + 1;
                self.issued.insert(*user, place);
                CampaignRet::Issued(place)
            }
        }
    }
}

/// A user's balance.
#[derive(Clone)]
pub struct Balance(pub i64);

#[derive(Clone, Debug)]
pub enum BalanceOp {
    Charge(i64),
    Pay(i64),
    Refund(i64),
    Read,
}

#[derive(Clone, Debug, PartialEq)]
pub enum BalanceRet {
    Is(i64),
    Moved,
    Declined,
}

impl SequentialSpec for Balance {
    type Op = BalanceOp;
    type Ret = BalanceRet;

    fn invoke(&mut self, op: &BalanceOp) -> BalanceRet {
        match op {
            BalanceOp::Charge(amount) => {
                self.0 += amount;
                BalanceRet::Is(self.0)
            }
            BalanceOp::Pay(amount) if self.0 < *amount => BalanceRet::Declined,
            BalanceOp::Pay(amount) => {
                self.0 -= amount;
                BalanceRet::Moved
            }
            BalanceOp::Refund(amount) => {
                self.0 += amount;
                BalanceRet::Moved
            }
            BalanceOp::Read => BalanceRet::Is(self.0),
        }
    }
}

/// A product's units on sale.
#[derive(Clone)]
pub struct Stock(pub i64);

#[derive(Clone, Debug)]
pub enum StockOp {
    Hold(i64),
    Release(i64),
    Read,
}

#[derive(Clone, Debug, PartialEq)]
pub enum StockRet {
    Moved,
    SoldOut,
    TooFew,
    Are(i64),
}

impl SequentialSpec for Stock {
    type Op = StockOp;
    type Ret = StockRet;

    fn invoke(&mut self, op: &StockOp) -> StockRet {
        match op {
            StockOp::Hold(_) if self.0 == 0 => StockRet::SoldOut,
            StockOp::Hold(units) if self.0 < *units => StockRet::TooFew,
            StockOp::Hold(units) => {
                self.0 -= units;
                StockRet::Moved
            }
            StockOp::Release(units) => {
                self.0 += units;
                StockRet::Moved
            }
            StockOp::Read => StockRet::Are(self.0),
        }
    }
}

/// The state of a placed order.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Order {
    Pending,
    Paid,
    Failed,
    Cancelled,
    Refunded,
    Expired,
}

#[derive(Clone, Debug)]
pub enum OrderOp {
    /// `right`: the amount is the order's price. `affordable`: the balance suffices, which the balance's history checks.
    Pay {
        right: bool,
        affordable: bool,
    },
    Cancel,
    /// Refunds a part, and something is left.
    Refund,
    Expire,
    Read,
}

#[derive(Clone, Debug, PartialEq)]
pub enum OrderRet {
    Is(Order),
    AlreadyPaid,
    Invalid,
    AlreadyClosed,
}

impl SequentialSpec for Order {
    type Op = OrderOp;
    type Ret = OrderRet;

    fn invoke(&mut self, op: &OrderOp) -> OrderRet {
        let to = match (*self, op) {
            (now, OrderOp::Read) => now,
            (Order::Paid, OrderOp::Pay { .. }) => return OrderRet::AlreadyPaid,
            (Order::Pending, OrderOp::Pay { right: true, affordable: true }) => Order::Paid,
            (Order::Pending, OrderOp::Pay { right: true, affordable: false }) => Order::Failed,
            (_, OrderOp::Pay { .. }) => return OrderRet::Invalid,
            (Order::Pending, OrderOp::Cancel) => Order::Cancelled,
            (Order::Paid, OrderOp::Cancel) => Order::Refunded,
            (Order::Paid, OrderOp::Refund) => Order::Paid,
            (Order::Pending, OrderOp::Refund) => return OrderRet::Invalid,
            (Order::Pending, OrderOp::Expire) => Order::Expired,
            (_, OrderOp::Cancel | OrderOp::Refund | OrderOp::Expire) => return OrderRet::AlreadyClosed,
        };
        *self = to;
        OrderRet::Is(to)
    }
}

/// What operators bring in from elsewhere, or create: its version.
#[derive(Clone, Debug, PartialEq)]
pub enum Brought {
    Unknown,
    Is(String),
    Forgotten,
}

#[derive(Clone, Debug)]
pub enum BroughtOp {
    /// Creates it under an id of the service's own.
    Create(String),
    Bring(String),
    Forget,
    Read,
}

#[derive(Clone, Debug, PartialEq)]
pub enum BroughtRet {
    Done,
    NotFound,
    Is(String),
    /// The id is another record's.
    Taken,
}

impl SequentialSpec for Brought {
    type Op = BroughtOp;
    type Ret = BroughtRet;

    fn invoke(&mut self, op: &BroughtOp) -> BroughtRet {
        match (&*self, op) {
            (Brought::Is(version), BroughtOp::Read) => return BroughtRet::Is(version.clone()),
            (_, BroughtOp::Read) | (Brought::Forgotten, BroughtOp::Bring(_)) => return BroughtRet::NotFound,
            (Brought::Unknown, BroughtOp::Create(version)) | (_, BroughtOp::Bring(version)) => {
                *self = Brought::Is(version.clone());
            }
            (_, BroughtOp::Create(_)) => return BroughtRet::Taken,
            (Brought::Is(_), BroughtOp::Forget) => *self = Brought::Forgotten,
            (_, BroughtOp::Forget) => {}
        }
        BroughtRet::Done
    }
}

// --- tests of the checker --------------------------------------------------------------------------------------------

fn at<S: SequentialSpec>(began: u64, ended: u64, op: S::Op, ret: S::Ret) -> Interval<S> {
    Interval { began, ended, op, ret }
}

#[test]
fn concurrent_operations_reorder_and_sequential_ones_do_not() {
    let charged = || at(5, 30, BalanceOp::Charge(7), BalanceRet::Is(17));
    let read = |began, ended, is| at(began, ended, BalanceOp::Read, BalanceRet::Is(is));
    let result = |last| check("a balance", Balance(10), vec![charged(), read(10, 20, 17), last]);
    assert!(matches!(result(read(15, 18, 10)), CheckResult::Linearizable));
    assert!(matches!(result(read(21, 25, 10)), CheckResult::Not(_)));
    assert!(matches!(result(read(31, 35, 17)), CheckResult::Linearizable));
}

#[test]
fn history_rejected_when_two_operations_share_a_place() {
    let issue = |user, place| at(user as u64, 100, CampaignOp::Issue(user), CampaignRet::Issued(place));
    let campaign = || Campaign { total: 2, issued: BTreeMap::new() };
    assert!(matches!(check("a", campaign(), vec![issue(1, 2), issue(2, 1)]), CheckResult::Linearizable));
    assert!(matches!(check("a", campaign(), vec![issue(1, 1), issue(2, 1)]), CheckResult::Not(_)));
    let late = at(150, 160, CampaignOp::Issue(3), CampaignRet::Issued(3));
    assert!(matches!(check("a", campaign(), vec![issue(1, 2), issue(2, 1), late]), CheckResult::Not(_)));
}

#[test]
fn history_rejected_when_units_released_twice() {
    let read = |at_ms, units| at(at_ms, at_ms + 1, StockOp::Read, StockRet::Are(units));
    let held = at(1, 2, StockOp::Hold(2), StockRet::Moved);
    let back = at(3, 9, StockOp::Release(2), StockRet::Moved);
    let stock = |after| check("a", Stock(5), vec![held.clone(), read(5, 3), back.clone(), read(10, after)]);
    assert!(matches!(stock(5), CheckResult::Linearizable));
    assert!(matches!(stock(7), CheckResult::Not(_)));
}

#[test]
fn history_rejected_when_creation_and_put_share_an_id() {
    let name = |text: &str| text.to_owned();
    let created = at(1, 9, BroughtOp::Create(name("own")), BroughtRet::Done);
    let put = at(2, 8, BroughtOp::Bring(name("put")), BroughtRet::Done);
    let read = |is: &str| at(20, 21, BroughtOp::Read, BroughtRet::Is(name(is)));
    let verdict = |intervals| check("a", Brought::Unknown, intervals);
    // The later one of two changes the record, and a creation is never later.
    assert!(matches!(verdict(vec![created.clone(), put.clone(), read("put")]), CheckResult::Linearizable));
    assert!(matches!(verdict(vec![created, put.clone(), read("own")]), CheckResult::Not(_)));
    // A user that was forgotten stays so.
    let gone = at(10, 11, BroughtOp::Forget, BroughtRet::Done);
    assert!(matches!(verdict(vec![put.clone(), gone.clone(), read("put")]), CheckResult::Not(_)));
    let again = |ret| at(12, 13, BroughtOp::Bring(name("again")), ret);
    assert!(matches!(verdict(vec![put.clone(), gone.clone(), again(BroughtRet::NotFound)]), CheckResult::Linearizable));
    assert!(matches!(verdict(vec![put, gone, again(BroughtRet::Done)]), CheckResult::Not(_)));
}
