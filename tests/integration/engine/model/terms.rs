//! Terms of sale and conditions of coupons in the model.

use super::*;

/// Terms of sale, with times from now.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpTerms {
    pub opens_in: Option<i64>,
    pub closes_in: Option<i64>,
    pub limit: Option<i64>,
    pub group: Option<usize>,
}

impl OpTerms {
    pub fn at(self, now: Millis) -> SaleTerms {
        SaleTerms {
            opens_at: self.opens_in.map(|ms| now.plus(ms)),
            closes_at: self.closes_in.map(|ms| now.plus(ms)),
            limit_per_user: self.limit,
            limit_group: self.group.map(|group| format!("G-{group}").parse().unwrap()),
        }
    }
}

/// Conditions of a coupon. The products of even places are of one category, the others of another.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpConditions {
    pub least: Option<i64>,
    pub most: Option<i64>,
    pub product: Option<usize>,
    pub of_even: Option<bool>,
}

impl OpConditions {
    pub fn qualifies(self, product: usize) -> bool {
        let of_all = self.product.is_none() && self.of_even.is_none();
        of_all || self.product == Some(product) || self.of_even == Some(product.is_multiple_of(2))
    }
}

pub fn category(product: usize) -> Category {
    if product.is_multiple_of(2) { "EVEN" } else { "ODD" }.parse().unwrap()
}

pub fn conditions() -> impl Strategy<Value = OpConditions> {
    let won = || prop::option::weighted(0.3, prop_oneof![1..50i64, 1..1_000i64]);
    let places = (prop::option::weighted(0.2, 0..6usize), prop::option::weighted(0.2, any::<bool>()));
    (won(), won(), places).prop_map(|(least, most, (product, of_even))| OpConditions { least, most, product, of_even })
}

pub fn terms() -> impl Strategy<Value = OpTerms> {
    let time = || prop::option::weighted(0.3, prop_oneof![Just(0), -2_000..2_000i64, -2_000_000..90_000_000i64]);
    // Usually the limit that a group has.
    let limit = prop_oneof![
        3 => Just((None, None)),
        2 => (1..5i64).prop_map(|limit| (Some(limit), None)),
        3 => (0..2usize).prop_map(|group| (Some(2 + group as i64), Some(group))),
        1 => (prop::option::of(1..5i64), (0..2usize).prop_map(Some)),
    ];
    (time(), time(), limit).prop_map(|(opens_in, closes_in, (limit, group))| OpTerms {
        opens_in,
        closes_in,
        limit,
        group,
    })
}
