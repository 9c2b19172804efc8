//! Supplies partitions with units of products that other partitions own, so that an order is always decided in its user's partition.
//!
//! **A lot.** A partition that lacks units takes them from the product's owner partition: what the order needs, or a larger lot while there
//! are many. Later orders then need no other partition.
//!
//! **The last units.** Where the owner partition has too few, everything that the others have on sale is taken back first.
//!
//! **Refusals move nothing.** All lines, the coupon and the balance are judged before the first unit moves. An order is refused for its
//! stock only after a count of every partition that is true of one moment.
//!
//! **Sold-out products.** Nearly all requests are for these. Concurrent requests for a product share one such count; it begins after each
//! of them arrived.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use futures_util::future::try_join_all;

use super::*;
use crate::{
    model::{MAX_SAFE_INTEGER, Partition},
    redis::commands::{
        Allotment, CouponTerms, Given, GivenUnits, NumberedPrice, PartitionStock, PlaceOrder, Placement, ReturnedUnits,
    },
    telemetry::metrics,
};

/// Attempts to place an order while the units that it needs move to other partitions.
const PLACE_ATTEMPTS: usize = 100;
/// Counts of the units in all partitions, while units move meanwhile.
const COUNTS: usize = 50;

/// The supplies in progress, by product.
#[derive(Default)]
pub(super) struct Supplies(Mutex<HashMap<ProductId, Arc<Supply>>>);

/// The supply of one product. The lock is held by the request that counts or moves units.
#[derive(Default)]
struct Supply(tokio::sync::Mutex<LastSupply>);

#[derive(Default)]
struct LastSupply {
    /// When a partition last received units.
    received: HashMap<Partition, Instant>,
    /// The last count, and when it began.
    counted: Option<(Instant, Counted)>,
}

/// The units of a product on sale in all partitions together.
#[derive(Clone, Copy)]
enum Counted {
    /// So many at one moment, and the price.
    Exactly(i64, NumberedPrice),
    /// As many as were needed, perhaps; the price if it was read.
    Enough(Option<NumberedPrice>),
    NoProduct,
}

impl Supplies {
    fn of(&self, product: ProductId) -> Arc<Supply> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(product).or_default().clone()
    }

    /// Forgets a product that no request is supplied with any more.
    fn release(&self, product: ProductId, supply: Arc<Supply>) {
        let mut supplies = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // The map's and this one.
        if Arc::strong_count(&supply) <= 2 {
            supplies.remove(&product);
        }
    }
}

impl Engine {
    /// Places an order in its user's partition, which is supplied with what it lacks.
    pub(super) async fn place_supplied(&self, call: &Call, order: PlaceOrder) -> Outcome<PlacedOrder> {
        let arrived = Instant::now();
        for _ in 0..PLACE_ATTEMPTS {
            let lacked = Instant::now();
            if let Placement::Placed(placed) = self.store.order_place(call, order.clone()).await? {
                return Ok(placed);
            }
            self.supply_order(call, &order, (arrived, lacked)).await?;
        }
        Err(Error::unavailable("the units of the order go from partition to partition"))
    }

    /// Supplies the user's partition with what an order needs, unless the order would be refused all the same: then no unit moves.
    /// `since`: when the request arrived, and when the partition was last found to lack units.
    async fn supply_order(&self, call: &Call, order: &PlaceOrder, since: (Instant, Instant)) -> Result<(), Error> {
        let here = self.store.owner(order.user_id.get());
        let ids: Vec<ProductId> = order.lines.iter().map(|(product, _)| *product).collect();
        let on_sale = self.store.on_sale_here(here, &ids).await?;
        let lacks = |((_, needed), known): &(&(ProductId, i64), &Option<(i64, SaleTerms)>)| {
            known.is_none_or(|(units, _)| units < *needed)
        };
        let lines: Vec<(ProductId, i64)> =
            order.lines.iter().zip(&on_sale).filter(lacks).map(|(line, _)| *line).collect();
        let counts = lines.iter().map(|line| self.count_shared(call, here, *line, since));
        let counted = try_join_all(counts).await?;
        // Of the refusals, the script's first: whether all products exist, then the lines in their order.
        let refused = |counted: &Counted, needed| counted.refuses(needed).map_or(Ok(()), Err);
        if counted.iter().any(|counted| matches!(counted, Counted::NoProduct)) {
            return Err(Error::ProductNotFound);
        }
        let counted_terms: HashMap<ProductId, SaleTerms> = counted
            .iter()
            .zip(&lines)
            .filter_map(|(counted, (product, _))| Some((*product, counted.price()?.terms)))
            .collect();
        let terms = ids.iter().zip(&on_sale).map(|(product, known)| match known {
            Some((_, terms)) => *terms,
            None => counted_terms.get(product).copied().unwrap_or_default(),
        });
        self.check_terms(order, &terms.collect::<Vec<_>>()).await?;
        for (counted, (_, needed)) in counted.iter().zip(&lines) {
            refused(counted, *needed)?;
        }
        let prices =
            counted.iter().zip(&lines).filter_map(|(counted, (product, _))| Some((*product, counted.price()?.price)));
        self.check_affordable(order, &prices.collect()).await?;
        try_join_all(lines.iter().map(|line| self.supply(call, here, *line, since.1))).await.map(drop)
    }

    /// Refuses an order that the terms of sale of its lines refuse, as the script would. `terms`: of each line.
    async fn check_terms(&self, order: &PlaceOrder, terms: &[SaleTerms]) -> Result<(), Error> {
        if terms.iter().all(|terms| *terms == SaleTerms::default()) {
            return Ok(());
        }
        // Close to the ends of a window only the script knows.
        let (earliest, latest) = self.store.now_within(self.store.owner(order.user_id.get()));
        if terms.iter().any(|terms| terms.exclude(earliest, latest)) {
            return Err(Error::NotOnSale);
        }
        let mut counted: HashMap<String, (i64, i64)> = HashMap::new();
        for ((product, units), terms) in order.lines.iter().zip(terms) {
            if let Some(limit) = terms.limit_per_user {
                let count = counted.entry(terms.counted().field(*product)).or_insert((0, limit));
                count.0 += units;
            }
        }
        let (fields, counts): (Vec<String>, Vec<(i64, i64)>) = counted.into_iter().unzip();
        if fields.is_empty() {
            return Ok(());
        }
        let had = self.store.user_limits(order.user_id, &fields).await?;
        let exceeds = had.into_iter().zip(counts).any(|(had, (units, limit))| had + units > limit);
        if exceeds { Err(Error::PurchaseLimitExceeded) } else { Ok(()) }
    }

    /// Refuses an order whose coupon or price refuses it, as the script would. `prices`: of products whose prices the user's partition
    /// may not know; others are read from their owner partitions.
    pub(super) async fn check_affordable(
        &self,
        order: &PlaceOrder,
        prices: &HashMap<ProductId, Won>,
    ) -> Result<(), Error> {
        let here = self.store.owner(order.user_id.get());
        let products: Vec<ProductId> = order.lines.iter().map(|(product, _)| *product).collect();
        let coupon = order.coupon.as_ref().map(|(coupon, _)| *coupon);
        let buyer = self.store.buyer(order.user_id, coupon, &products).await?;
        if let Some((coupon, terms)) = &order.coupon {
            let beside = match buyer.coupon {
                Some(record) => Some(record),
                None => self.store.issued_coupon(order.user_id, *coupon).await?,
            };
            let earliest = self.store.now_within(here).0;
            let is_good = |terms: &CouponTerms| earliest < terms.expires_at && terms.conditions.have_line();
            if !beside.is_some_and(|record| record.free) || !terms.as_ref().is_some_and(is_good) {
                return Err(Error::InvalidCoupon);
            }
        }
        let Some(balance) = buyer.balance else { return Ok(()) };
        let price = async |(product, known): (&ProductId, &Option<Won>)| match known.or(prices.get(product).copied()) {
            Some(price) => Ok(price),
            None => self.store.price_of(*product).await.map(|numbered| numbered.price),
        };
        let priced = try_join_all(products.iter().zip(&buyer.prices).map(price)).await?;
        // A line costs at most MAX_PRICE * MAX_LINE_QUANTITY, and there are MAX_ORDER_LINES.
        let lines: Vec<Won> = priced.into_iter().zip(&order.lines).map(|(price, (_, units))| price * units).collect();
        let total: Won = lines.iter().sum();
        if total > MAX_SAFE_INTEGER {
            return Err(Error::InvalidOrder);
        }
        let discount = match &order.coupon {
            Some((_, Some(CouponTerms { discount, conditions, .. }))) => {
                conditions.discount(*discount, &lines).ok_or(Error::InvalidCoupon)?
            }
            _ => 0,
        };
        if order.must_afford && balance < total - discount { Err(Error::InsufficientBalance) } else { Ok(()) }
    }

    /// Counts the units of a product on sale in all partitions. Concurrent requests share a count that began after each of them.
    async fn count_shared(
        &self,
        call: &Call,
        here: Partition,
        (product, needed): (ProductId, i64),
        (arrived, lacked): (Instant, Instant),
    ) -> Result<Counted, Error> {
        let supply = self.supplies.of(product);
        let mut last = supply.0.lock().await;
        let counted = if last.received.get(&here).is_some_and(|at| *at > lacked) {
            // Another request has supplied the partition meanwhile.
            Ok(Counted::Enough(None))
        } else if let Some((began, counted)) = last.counted
            && began >= arrived
            && counted.refuses(needed).is_some()
        {
            Ok(counted)
        } else {
            let began = Instant::now();
            let counted = self.count(call, product, needed).await;
            if let Ok(exact @ (Counted::Exactly(..) | Counted::NoProduct)) = counted {
                last.counted = Some((began, exact));
            }
            counted
        };
        drop(last);
        self.supplies.release(product, supply);
        counted
    }

    /// Refuses to remove more units of a product than all partitions have on sale.
    pub(super) async fn check_units(&self, call: &Call, product: ProductId, units: i64) -> Result<(), Error> {
        match self.count(call, product, units).await?.refuses(units) {
            Some(Error::SoldOut) => Err(Error::InsufficientStock),
            refused => refused.map_or(Ok(()), Err),
        }
    }

    /// Counts the units of a product on sale in all partitions, or finds at least `needed`.
    ///
    /// Two reads of every other partition, around one of the owner partition: if nothing came on sale, was sold or moved in between, all
    /// counts are of the moment of the one in the middle.
    async fn count(&self, call: &Call, product: ProductId, needed: i64) -> Result<Counted, Error> {
        let owner = self.store.owner(product.get());
        let others: Vec<Partition> = self.store.all_but(owner).collect();
        match self.store.given(product, &others).await? {
            None => return Ok(Counted::NoProduct),
            Some(given) if given.on_sale >= needed => return Ok(Counted::Enough(Some(given.price))),
            Some(_) => {}
        }
        for _ in 0..COUNTS {
            let before = self.stock_of_all(&others, product).await?;
            let Some(given) = self.store.given(product, &others).await? else { return Ok(Counted::NoProduct) };
            let after = self.stock_of_all(&others, product).await?;
            let price = given.price;
            let on_sale = given.on_sale + after.iter().map(|stock| stock.on_sale).sum::<i64>();
            let unsettled = unsettled(product, &others, &after, &given)?;
            if before == after && unsettled.is_empty() {
                return Ok(Counted::Exactly(on_sale, price));
            }
            if on_sale >= needed {
                return Ok(Counted::Enough(Some(price)));
            }
            // The requests that began these transfers have not completed them.
            try_join_all(unsettled.iter().map(|transfer| self.complete(call, product, transfer, given.price))).await?;
        }
        Err(Error::unavailable("units of the product go from partition to partition"))
    }

    /// Takes the second step of what is on its way between a product's owner partition and another one.
    async fn complete(
        &self,
        call: &Call,
        product: ProductId,
        (other, stock, given): &(Partition, PartitionStock, Given),
        price: NumberedPrice,
    ) -> Result<(), Error> {
        if given.allotted > stock.received {
            self.store.stock_receive(call, *other, product, given.allotted, price).await?;
        }
        if stock.returned > given.regained {
            self.store.stock_regain(call, product, *other, stock.returned, ReturnedUnits::OnSale).await?;
        }
        Ok(())
    }

    /// Supplies partition `here` with units of a product. `lacked`: when the partition was last found to lack units.
    async fn supply(
        &self,
        call: &Call,
        here: Partition,
        (product, needed): (ProductId, i64),
        lacked: Instant,
    ) -> Result<(), Error> {
        let supply = self.supplies.of(product);
        let mut last = supply.0.lock().await;
        let supplied = if last.received.get(&here).is_some_and(|at| *at > lacked) {
            Ok(true)
        } else {
            self.move_units(call, here, product, needed).await
        };
        if let Ok(true) = supplied {
            last.received.insert(here, Instant::now());
        }
        drop(last);
        self.supplies.release(product, supply);
        supplied.map(drop)
    }

    /// Moves units to partition `here`, from the owner partition, or else from all others. False if others were faster.
    async fn move_units(&self, call: &Call, here: Partition, product: ProductId, needed: i64) -> Result<bool, Error> {
        let owner = self.store.owner(product.get());
        if here != owner && self.allot(call, here, product, needed).await? {
            return Ok(true);
        }
        self.take_all_back(call, product, ReturnedUnits::OnSale).await?;
        if here == owner { Ok(true) } else { self.allot(call, here, product, needed).await }
    }

    /// Gives partition `here` units of a product that its owner partition has on sale. False if these are too few.
    async fn allot(&self, call: &Call, here: Partition, product: ProductId, needed: i64) -> Result<bool, Error> {
        let Some(Allotment { total, price }) = self.store.stock_allot(call, product, here, needed).await? else {
            return Ok(false);
        };
        metrics::STOCK_TRANSFERS.with_label_values(&["allotted"]).inc();
        self.store.stock_receive(call, here, product, total, price).await?;
        Ok(true)
    }

    async fn stock_of_all(&self, others: &[Partition], product: ProductId) -> Result<Vec<PartitionStock>, Error> {
        try_join_all(others.iter().map(|other| self.store.partition_stock(*other, product))).await
    }

    /// Takes back everything on that shelf of all other partitions.
    pub(super) async fn take_all_back(
        &self,
        call: &Call,
        product: ProductId,
        shelf: ReturnedUnits,
    ) -> Result<(), Error> {
        let others: Vec<Partition> = self.store.all_but(self.store.owner(product.get())).collect();
        let stock = self.stock_of_all(&others, product).await?;
        let has_any = |stock: &PartitionStock| match shelf {
            ReturnedUnits::OnSale => stock.on_sale > 0,
            ReturnedUnits::Withheld => stock.withheld > 0,
        };
        let givers = others.into_iter().zip(stock).filter(|(_, stock)| has_any(stock));
        try_join_all(givers.map(|(other, _)| self.take_back(call, other, product, shelf))).await.map(drop)
    }

    /// Takes back everything on a shelf of a partition.
    pub(super) async fn take_back(
        &self,
        call: &Call,
        from: Partition,
        product: ProductId,
        shelf: ReturnedUnits,
    ) -> Result<(), Error> {
        let total = self.store.stock_return(call, from, product, shelf).await?;
        metrics::STOCK_TRANSFERS.with_label_values(&["returned"]).inc();
        self.store.stock_regain(call, product, from, total, shelf).await
    }
}

impl Counted {
    /// Why an order of so many units is refused.
    fn refuses(self, needed: i64) -> Option<Error> {
        match self {
            Counted::NoProduct => Some(Error::ProductNotFound),
            Counted::Exactly(0, _) => Some(Error::SoldOut),
            Counted::Exactly(units, _) if units < needed => Some(Error::InsufficientStock),
            Counted::Exactly(..) | Counted::Enough(_) => None,
        }
    }

    fn price(self) -> Option<NumberedPrice> {
        match self {
            Counted::Exactly(_, price) => Some(price),
            Counted::Enough(price) => price,
            Counted::NoProduct => None,
        }
    }
}

/// The partitions to or from which units are on their way.
fn unsettled(
    product: ProductId,
    others: &[Partition],
    stock: &[PartitionStock],
    given: &GivenUnits,
) -> Result<Vec<(Partition, PartitionStock, Given)>, Error> {
    let mut unsettled = Vec::new();
    for ((other, stock), given) in others.iter().zip(stock).zip(&given.to) {
        if given.allotted < stock.received || given.regained > stock.returned {
            tracing::error!(%product, partition = other.0, "a partition has units that their owner partition did not give");
            return Err(Error::unavailable("the partitions contradict each other about units of the product"));
        }
        if given.allotted != stock.received || given.regained != stock.returned {
            unsettled.push((*other, *stock, *given));
        }
    }
    Ok(unsettled)
}
