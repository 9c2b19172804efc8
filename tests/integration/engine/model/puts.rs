//! Products and campaigns that are brought in, in the engine and in the model.

use firstcome::engine::Engine;

use super::*;

/// How long the window of a campaign is that is brought in, and how long its coupons are good afterwards.
const LASTS: i64 = 40_000_000;
const GOOD_FOR: i64 = 9_000_000;
const COUPONS: i64 = 2;

/// The code of every campaign.
pub const CODE: &str = "C";

fn discount() -> Discount {
    Discount { kind: DiscountType::Fixed, amount: 70 }
}

/// The change that sets each of these terms.
pub fn every_term(SaleTerms { opens_at, closes_at, limit_per_user, limit_group }: SaleTerms) -> SaleTermsPatch {
    SaleTermsPatch {
        opens_at: Some(opens_at),
        closes_at: Some(closes_at),
        limit_per_user: Some(limit_per_user),
        limit_group: Some(limit_group),
    }
}

impl Model {
    /// The id that operation `at` puts: the one with this place or, past the last one, a new one.
    fn put_id_of(&mut self, at: usize, ids: fn(&Model) -> &Vec<i64>, place: usize) -> i64 {
        let new = ids(self).last().copied().unwrap_or(0) + 3;
        let id = ids(self).get(place).copied().unwrap_or(new);
        *self.put_ids.entry(at).or_insert(id)
    }

    /// The place of what operation `at` puts, and whether it is there.
    fn place_of(&self, at: usize, ids: fn(&Model) -> &Vec<i64>) -> (usize, bool) {
        let found = self.put_ids.get(&at).and_then(|id| ids(self).iter().position(|known| known == id));
        (found.unwrap_or(ids(self).len()), found.is_some())
    }

    /// The new units count of a new product alone, and the price of one that exists stays.
    pub fn put_product(
        &mut self,
        at: usize,
        (price, stock): (i64, i64),
        terms: SaleTerms,
    ) -> Result<String, &'static str> {
        let (place, exists) = self.place_of(at, |model| &model.product_ids);
        if !terms.are_valid() || (self.terms.get(place) != Some(&terms) && !self.accepts(terms)) {
            return Err("InvalidRequest");
        }
        if exists {
            self.terms[place] = terms;
        } else {
            self.product_ids.push(self.put_ids[&at]);
            self.products.push((price, stock));
            self.terms.push(terms);
        }
        let (price, stock) = self.products[place];
        let outcome = if exists { PutOutcome::Changed } else { PutOutcome::Created };
        Ok(format!("put {outcome:?} {price} {stock}"))
    }

    pub fn put_campaign(
        &mut self,
        at: usize,
        now: i64,
        opens_in: Option<i64>,
        closes_in: Option<i64>,
    ) -> Result<String, &'static str> {
        let (place, exists) = self.place_of(at, |model| &model.coupon_ids);
        if !exists {
            self.coupon_ids.push(self.put_ids[&at]);
            self.campaigns.push((discount(), COUPONS, now, now + LASTS, now + LASTS + GOOD_FOR));
            self.conditions.push(OpConditions::default());
            self.issued.push(0);
            return Ok(format!("put Created {:?}", (now, now + LASTS)));
        }
        let (_, _, opens, closes, _) = self.campaigns[place];
        let opens_in = opens_in.filter(|ms| now + ms != opens);
        let closes_in = closes_in.filter(|ms| now + ms != closes);
        if opens_in.is_none() && closes_in.is_none() {
            // It has no effect, so that a repeat is judged anew.
            return Err("put Unchanged");
        }
        let moved = self.moved(now, place, opens_in, closes_in)?;
        Ok(format!("put Changed {}", moved.strip_prefix("moved ").unwrap()))
    }

    pub fn conditions_of(&self, OpConditions { least, most, product, of_even }: OpConditions) -> CouponConditions {
        let product = product.map(|place| self.product_ids.get(place).copied().unwrap_or(UNKNOWN_ID));
        CouponConditions {
            min_order_price: least,
            max_discount_price: most,
            product_ids: product.and_then(ProductId::new).into_iter().collect(),
            categories: of_even.map(|even| category(usize::from(!even))).into_iter().collect(),
        }
    }
}

pub async fn put_product(
    (engine, call): (&Engine, &Call),
    model: &mut Model,
    at: usize,
    product: usize,
    (price, stock): (i64, i64),
    terms: SaleTerms,
) -> Result<(String, bool), Error> {
    let id = model.put_id_of(at, |model| &model.product_ids, product);
    let (place, _) = model.place_of(at, |model| &model.product_ids);
    // The API refuses the others before.
    if !terms.are_valid() {
        return Err(Error::InvalidRequest(""));
    }
    let price = model.products.get(place).map_or(price, |(price, _)| *price);
    let (name, terms) = (format!("put {at}"), every_term(terms));
    let new = ProductUpsert { name, price, stock, category: category(place), terms };
    let put = engine.put_product(call, ProductId::new(id).unwrap(), new).await?;
    let Put { value, outcome } = put.value;
    Ok((format!("put {outcome:?} {} {}", value.price, value.stock), put.replayed))
}

pub async fn put_campaign(
    (engine, call): (&Engine, &Call),
    model: &mut Model,
    at: usize,
    coupon: usize,
    now: Millis,
    (opens_in, closes_in): (Option<i64>, Option<i64>),
) -> Result<(String, bool), Error> {
    let id = model.put_id_of(at, |model| &model.coupon_ids, coupon);
    let (place, exists) = model.place_of(at, |model| &model.coupon_ids);
    // A repeat of what took effect is of the same request.
    let earlier = model.put_campaigns.get(&at).filter(|_| model.records.contains_key(&at)).cloned();
    let new = earlier.unwrap_or_else(|| match exists {
        true => {
            let (discount, total, _, _, expires) = model.campaigns[place];
            let bound = |bound: Option<i64>| bound.map(|ms| now.plus(ms));
            NewCampaign {
                code: CODE.to_owned(),
                discount,
                conditions: model.conditions_of(model.conditions[place]),
                total,
                opens_at: bound(opens_in),
                closes_at: bound(closes_in),
                expires_at: Millis(expires),
            }
        }
        false => NewCampaign {
            code: CODE.to_owned(),
            discount: discount(),
            conditions: CouponConditions::default(),
            total: COUPONS,
            opens_at: Some(now),
            closes_at: Some(now.plus(LASTS)),
            expires_at: now.plus(LASTS + GOOD_FOR),
        },
    });
    model.put_campaigns.insert(at, new.clone());
    let put = engine.put_campaign(call, CouponId::new(id).unwrap(), new).await?;
    let Put { value: Campaign { terms, .. }, outcome } = put.value;
    Ok(match outcome {
        PutOutcome::Unchanged => ("put Unchanged".to_owned(), put.replayed),
        _ => (format!("put {outcome:?} {:?}", (terms.opens_at.0, terms.closes_at.0)), put.replayed),
    })
}
