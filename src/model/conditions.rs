//! What an order must have for a coupon to count, and what the discount is of.

use std::{fmt, str::FromStr};

use super::{Category, Discount, DiscountType, MAX_SAFE_INTEGER, ProductId, UnknownName, Won};

/// The most products that the conditions of a coupon name.
pub const MAX_CONDITION_PRODUCTS: usize = 100;
/// The most categories that the conditions of a coupon name.
pub const MAX_CONDITION_CATEGORIES: usize = 20;

/// The conditions of a campaign's coupons, which never change. Their text is `least|most|products|categories`, with lists by commas and
/// an empty part for no condition, and nothing if there are none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CouponConditions {
    /// The least total of an order, before the discount.
    pub min_order_price: Option<Won>,
    /// The most that a percentage takes off.
    pub max_discount_price: Option<Won>,
    /// The discount is of the lines with these products, or of these categories; of all lines if both are empty.
    pub product_ids: Vec<ProductId>,
    pub categories: Vec<Category>,
}

impl CouponConditions {
    /// Whether a campaign with this discount may have the conditions.
    pub fn are_valid(&self, discount: Discount) -> bool {
        (self.max_discount_price.is_none() || discount.kind == DiscountType::Percentage)
            && self.product_ids.len() <= MAX_CONDITION_PRODUCTS
            && self.categories.len() <= MAX_CONDITION_CATEGORIES
    }

    /// The conditions of an order with these products. `categories`: of each product, if it exists; not read unless the conditions
    /// name any.
    pub fn of_order(&self, products: &[ProductId], categories: &[Option<String>]) -> OrderConditions {
        let qualifies = |(place, product): (usize, &ProductId)| {
            let category = categories.get(place).and_then(Option::as_deref);
            self.product_ids.contains(product) || self.categories.iter().any(|named| category == Some(named.as_str()))
        };
        let of_all = self.product_ids.is_empty() && self.categories.is_empty();
        OrderConditions {
            min_order_price: self.min_order_price,
            max_discount_price: self.max_discount_price,
            qualifying: (!of_all).then(|| products.iter().enumerate().map(qualifies).collect()),
        }
    }
}

impl fmt::Display for CouponConditions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == CouponConditions::default() {
            return Ok(());
        }
        let products: Vec<String> = self.product_ids.iter().map(ProductId::to_string).collect();
        let categories: Vec<&str> = self.categories.iter().map(Category::as_str).collect();
        let (least, most) = (text(self.min_order_price), text(self.max_discount_price));
        write!(f, "{least}|{most}|{}|{}", products.join(","), categories.join(","))
    }
}

impl FromStr for CouponConditions {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, UnknownName> {
        fn list<T>(text: &str, read: impl Fn(&str) -> Option<T>) -> Result<Vec<T>, UnknownName> {
            if text.is_empty() {
                Ok(Vec::new())
            } else {
                text.split(',').map(read).collect::<Option<_>>().ok_or(UnknownName)
            }
        }
        if text.is_empty() {
            return Ok(CouponConditions::default());
        }
        let parts: Vec<&str> = text.split('|').collect();
        let [least, most, products, categories] = parts.as_slice() else { return Err(UnknownName) };
        let won = |text: &str| match text {
            "" => Ok(None),
            text => text.parse().ok().filter(|won| (1..=MAX_SAFE_INTEGER).contains(won)).map(Some).ok_or(UnknownName),
        };
        Ok(CouponConditions {
            min_order_price: won(least)?,
            max_discount_price: won(most)?,
            product_ids: list(products, |text| ProductId::new(text.parse().ok()?))?,
            categories: list(categories, |text| text.parse().ok())?,
        })
    }
}

/// The conditions of a coupon for one order. Their text is `least|most|lines`, with `1` for a line that qualifies and `0` for another;
/// nothing if there are none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OrderConditions {
    pub min_order_price: Option<Won>,
    pub max_discount_price: Option<Won>,
    /// Whether the discount is of each line; `None`: it is of all.
    pub qualifying: Option<Vec<bool>>,
}

impl OrderConditions {
    /// Whether a line qualifies.
    pub fn have_line(&self) -> bool {
        self.qualifying.as_ref().is_none_or(|lines| lines.contains(&true))
    }

    /// The discount of an order whose lines cost this in won; `None` if it does not meet the conditions.
    ///
    /// `order_place.lua` decides by the same arithmetic; a property test compares the two.
    pub fn discount(&self, discount: Discount, lines: &[Won]) -> Option<Won> {
        let total: Won = lines.iter().sum();
        if !self.have_line() || self.min_order_price.is_some_and(|least| total < least) {
            return None;
        }
        let of = match &self.qualifying {
            None => total,
            Some(qualifying) => {
                lines.iter().zip(qualifying).filter(|(_, qualifies)| **qualifies).map(|(won, _)| won).sum()
            }
        };
        let discount = discount.of(of);
        Some(self.max_discount_price.map_or(discount, |most| discount.min(most)))
    }
}

impl fmt::Display for OrderConditions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == OrderConditions::default() {
            return Ok(());
        }
        let lines = self.qualifying.iter().flatten().map(|qualifies| if *qualifies { '1' } else { '0' });
        let (least, most) = (text(self.min_order_price), text(self.max_discount_price));
        write!(f, "{least}|{most}|{}", lines.collect::<String>())
    }
}

fn text(won: Option<Won>) -> String {
    won.map(|won| won.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn conditions() -> impl Strategy<Value = CouponConditions> {
        let won = || proptest::option::of(1..=MAX_SAFE_INTEGER);
        let product = (1..=MAX_SAFE_INTEGER).prop_map(|id| ProductId::new(id).unwrap());
        let category = "[A-Z][A-Z0-9_]{0,31}".prop_map(|name| name.parse().unwrap());
        (won(), won(), prop::collection::vec(product, 0..4), prop::collection::vec(category, 0..4)).prop_map(
            |(min_order_price, max_discount_price, product_ids, categories)| CouponConditions {
                min_order_price,
                max_discount_price,
                product_ids,
                categories,
            },
        )
    }

    proptest! {
        #[test]
        fn coupon_conditions_unpacked_as_packed(conditions in conditions()) {
            prop_assert_eq!(conditions.to_string().parse(), Ok(conditions));
        }

        #[test]
        fn coupon_conditions_of_any_text_refused_or_packed_again(text in any::<String>()) {
            if let Ok(conditions) = text.parse::<CouponConditions>() {
                prop_assert_eq!(conditions.to_string().parse(), Ok(conditions));
            }
        }
    }

    fn product(id: i64) -> ProductId {
        ProductId::new(id).unwrap()
    }

    #[test]
    fn discount_of_qualifying_lines_up_to_cap_and_from_least_total() {
        let half = Discount { kind: DiscountType::Percentage, amount: 50 };
        let won = |amount| Discount { kind: DiscountType::Fixed, amount };
        let lines = [100, 30, 7];
        let conditions = |least, most, lines: Option<[bool; 3]>| OrderConditions {
            min_order_price: least,
            max_discount_price: most,
            qualifying: lines.map(Into::into),
        };
        for (conditions, discount, expected) in [
            (conditions(None, None, None), half, Some(68)),
            (conditions(None, Some(60), None), half, Some(60)),
            (conditions(None, Some(69), None), half, Some(68)),
            (conditions(Some(137), None, None), won(10), Some(10)),
            (conditions(Some(138), None, None), won(10), None),
            (conditions(None, None, Some([false, true, true])), half, Some(18)),
            (conditions(None, None, Some([false, true, true])), won(50), Some(37)),
            (conditions(Some(137), None, Some([false, false, true])), won(50), Some(7)),
            (conditions(None, None, Some([false; 3])), won(50), None),
        ] {
            assert_eq!(conditions.discount(discount, &lines), expected, "{conditions:?}");
        }
    }

    #[test]
    fn lines_qualify_by_product_or_category() {
        let categories = [Some("TOP".to_owned()), Some("SHOES".to_owned()), None];
        let products = [product(1), product(2), product(3)];
        let of = |text: &str| text.parse::<CouponConditions>().unwrap().of_order(&products, &categories);
        assert_eq!(of(""), OrderConditions::default());
        for (conditions, expected) in [
            ("5||1|", "5||100"),
            ("|6|1|SHOES", "|6|110"),
            ("||9|", "||000"),
            ("||3|TOP,HATS", "||101"),
            ("5|6||", "5|6|"),
        ] {
            assert_eq!(of(conditions).to_string(), expected, "{conditions}");
        }
        assert_eq!(of("||1|"), "||1|".parse::<CouponConditions>().unwrap().of_order(&products, &[]));
    }

    #[test]
    fn coupon_conditions_invalid_when_fixed_discount_capped() {
        let capped: CouponConditions = "|5||".parse().unwrap();
        assert!(capped.are_valid(Discount { kind: DiscountType::Percentage, amount: 1 }));
        assert!(!capped.are_valid(Discount { kind: DiscountType::Fixed, amount: 1 }));
        for text in ["|", "|||,", "||0|", "||1,|", "|||a", "0|||", "-1|||", "||||"] {
            assert!(text.parse::<CouponConditions>().is_err(), "{text}");
        }
    }
}
