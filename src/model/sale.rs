//! When a product is on sale, and how many units of it a user may have.

use std::{fmt, str::FromStr};

use super::{Millis, ProductId, SaleStatus, UnknownName, Won};

/// The largest limit of a product per user, in units.
pub const MAX_LIMIT_PER_USER: i64 = 10_000;
/// The longest name of a group of products, in bytes.
const MAX_GROUP_LEN: usize = 32;

/// Products that share one limit per user, by a name `[A-Z0-9_-]{1,32}`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LimitGroup {
    /// In the array, so that lines of orders stay `Copy`. The rest is zeros.
    name: [u8; MAX_GROUP_LEN],
    len: u8,
}

impl LimitGroup {
    /// The name.
    pub fn as_str(&self) -> &str {
        self.name.get(..usize::from(self.len)).and_then(|name| str::from_utf8(name).ok()).unwrap_or_default()
    }
}

impl FromStr for LimitGroup {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, UnknownName> {
        let is_of_name = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_' || byte == b'-';
        let mut name = [0; MAX_GROUP_LEN];
        match name.get_mut(..text.len()) {
            Some(start) if !text.is_empty() && text.bytes().all(is_of_name) => start.copy_from_slice(text.as_bytes()),
            _ => return Err(UnknownName),
        }
        Ok(LimitGroup { name, len: text.len() as u8 })
    }
}

impl fmt::Display for LimitGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for LimitGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

/// The limit that the units of an order's line count against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CountedLimit {
    /// The product's own.
    Product,
    Group(LimitGroup),
}

impl CountedLimit {
    /// The field of a user that counts the units of this product, as the scripts name it.
    pub fn field(self, product: ProductId) -> String {
        match self {
            CountedLimit::Product => format!("limit:{product}"),
            CountedLimit::Group(group) => format!("group:{group}"),
        }
    }

    /// The text in lines of orders: the group, or nothing.
    pub fn as_str(&self) -> &str {
        match self {
            CountedLimit::Product => "",
            CountedLimit::Group(group) => group.as_str(),
        }
    }
}

impl FromStr for CountedLimit {
    type Err = UnknownName;

    fn from_str(group: &str) -> Result<Self, UnknownName> {
        if group.is_empty() { Ok(CountedLimit::Product) } else { group.parse().map(CountedLimit::Group) }
    }
}

/// The terms of sale of a product. Its text is `opens|closes|limit|group`, with times in ms and an empty part for no term, and
/// nothing if there are none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SaleTerms {
    /// The first instant at which it is on sale; `None`: always was.
    pub opens_at: Option<Millis>,
    /// The first instant at which it no longer is; `None`: always will be.
    pub closes_at: Option<Millis>,
    /// The most units of a user, held and paid: 1–[`MAX_LIMIT_PER_USER`].
    pub limit_per_user: Option<i64>,
    /// The products that share the limit.
    pub limit_group: Option<LimitGroup>,
}

impl SaleTerms {
    /// Whether the window has a moment, and a group a limit.
    pub fn are_valid(&self) -> bool {
        let is_empty = self.opens_at.zip(self.closes_at).is_some_and(|(opens_at, closes_at)| opens_at >= closes_at);
        !is_empty && (self.limit_group.is_none() || self.limit_per_user.is_some())
    }

    /// Whether the window includes no instant from `earliest` to `latest`.
    pub fn exclude(&self, earliest: Millis, latest: Millis) -> bool {
        self.opens_at.is_some_and(|opens_at| latest < opens_at)
            || self.closes_at.is_some_and(|closes_at| closes_at <= earliest)
    }

    /// The limit that units count against, if there is one.
    pub fn counted(&self) -> CountedLimit {
        self.limit_group.map_or(CountedLimit::Product, CountedLimit::Group)
    }

    /// The status at `now` of a product with these units on sale.
    pub fn status(&self, on_sale: i64, now: Millis) -> SaleStatus {
        if self.closes_at.is_some_and(|closes_at| closes_at <= now) {
            SaleStatus::Ended
        } else if self.opens_at.is_some_and(|opens_at| now < opens_at) {
            SaleStatus::Scheduled
        } else if on_sale == 0 {
            SaleStatus::SoldOut
        } else {
            SaleStatus::OnSale
        }
    }
}

impl fmt::Display for SaleTerms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == SaleTerms::default() {
            return Ok(());
        }
        let text = |number: Option<i64>| number.map(|number| number.to_string()).unwrap_or_default();
        let (opens_at, closes_at) = (text(self.opens_at.map(|at| at.0)), text(self.closes_at.map(|at| at.0)));
        let group = self.limit_group.as_ref().map_or("", LimitGroup::as_str);
        write!(f, "{opens_at}|{closes_at}|{}|{group}", text(self.limit_per_user))
    }
}

impl FromStr for SaleTerms {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, UnknownName> {
        fn part<T>(text: &str, read: impl Fn(&str) -> Option<T>) -> Result<Option<T>, UnknownName> {
            if text.is_empty() { Ok(None) } else { read(text).map(Some).ok_or(UnknownName) }
        }
        if text.is_empty() {
            return Ok(SaleTerms::default());
        }
        let parts: Vec<&str> = text.split('|').collect();
        let [opens_at, closes_at, limit, group] = parts.as_slice() else { return Err(UnknownName) };
        let time = |text: &str| Some(Millis(text.parse().ok()?)).filter(|at| (0..=Millis::MAX.0).contains(&at.0));
        let units = |text: &str| text.parse().ok().filter(|units| (1..=MAX_LIMIT_PER_USER).contains(units));
        Ok(SaleTerms {
            opens_at: part(opens_at, time)?,
            closes_at: part(closes_at, time)?,
            limit_per_user: part(limit, units)?,
            limit_group: part(group, |text| text.parse().ok())?,
        })
    }
}

/// A change of terms. `None` leaves a term unchanged; `Some(None)` removes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SaleTermsPatch {
    pub opens_at: Option<Option<Millis>>,
    pub closes_at: Option<Option<Millis>>,
    pub limit_per_user: Option<Option<i64>>,
    pub limit_group: Option<Option<LimitGroup>>,
}

impl SaleTermsPatch {
    /// The terms after the change.
    pub fn of(&self, terms: SaleTerms) -> SaleTerms {
        SaleTerms {
            opens_at: self.opens_at.unwrap_or(terms.opens_at),
            closes_at: self.closes_at.unwrap_or(terms.closes_at),
            limit_per_user: self.limit_per_user.unwrap_or(terms.limit_per_user),
            limit_group: self.limit_group.unwrap_or(terms.limit_group),
        }
    }
}

/// A price with the terms of sale, as Redis keeps both in one value: `won`, or `won|terms`.
pub fn pack_price(price: Won, terms: &SaleTerms) -> String {
    if *terms == SaleTerms::default() { price.to_string() } else { format!("{price}|{terms}") }
}

/// Unpacks a price with the terms of sale; `None` if the text has another form.
pub fn unpack_price(packed: &str) -> Option<(Won, SaleTerms)> {
    let (price, terms) = packed.split_once('|').unwrap_or((packed, ""));
    Some((price.parse().ok()?, terms.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn terms() -> impl Strategy<Value = SaleTerms> {
        let time = || proptest::option::of((0..=Millis::MAX.0).prop_map(Millis));
        let limit = proptest::option::of(1..=MAX_LIMIT_PER_USER);
        let group = proptest::option::of("[A-Z0-9_-]{1,32}".prop_map(|name| name.parse().unwrap()));
        (time(), time(), limit, group).prop_map(|(opens_at, closes_at, limit_per_user, limit_group)| SaleTerms {
            opens_at,
            closes_at,
            limit_per_user,
            limit_group,
        })
    }

    proptest! {
        #[test]
        fn sale_terms_unpacked_as_packed(terms in terms(), price in 0..=1_000_000_000_000i64) {
            prop_assert_eq!(terms.to_string().parse(), Ok(terms));
            prop_assert_eq!(unpack_price(&pack_price(price, &terms)), Some((price, terms)));
        }

        #[test]
        fn sale_terms_of_any_text_refused_or_packed_again(text in any::<String>()) {
            if let Ok(terms) = text.parse::<SaleTerms>() {
                prop_assert_eq!(terms.to_string().parse(), Ok(terms));
            }
        }
    }

    #[test]
    fn sale_status_follows_window_before_stock() {
        let window = SaleTerms { opens_at: Some(Millis(10)), closes_at: Some(Millis(20)), ..SaleTerms::default() };
        for (now, on_sale, status) in [
            (9, 0, SaleStatus::Scheduled),
            (10, 1, SaleStatus::OnSale),
            (19, 0, SaleStatus::SoldOut),
            (20, 1, SaleStatus::Ended),
        ] {
            assert_eq!(window.status(on_sale, Millis(now)), status, "{now}");
        }
        assert_eq!(SaleTerms::default().status(1, Millis(0)), SaleStatus::OnSale);
    }

    #[test]
    fn sale_terms_invalid_when_window_empty_or_group_without_limit() {
        let at = |opens_at, closes_at| SaleTerms {
            opens_at: Some(Millis(opens_at)),
            closes_at: Some(Millis(closes_at)),
            ..SaleTerms::default()
        };
        assert!(at(1, 2).are_valid() && !at(2, 2).are_valid() && !at(3, 2).are_valid());
        let limit_group = Some("SHOE-1".parse().unwrap());
        assert!(!SaleTerms { limit_group, ..SaleTerms::default() }.are_valid());
        assert!(SaleTerms { limit_group, limit_per_user: Some(1), ..SaleTerms::default() }.are_valid());
        for name in ["", "a", "A B", "A|B", "A:B", "A,B", &"A".repeat(33)] {
            assert!(name.parse::<LimitGroup>().is_err(), "{name}");
        }
    }
}
