//! The types of fields in bodies and query strings. Each has its bounds once: they decode the field and describe it.
//!
//! The document shows these types in the places of their fields, without names
//! ([`openapi::fields`](crate::http::openapi::fields)).

use std::str::FromStr;

use chrono::{LocalResult, NaiveDateTime, TimeZone};
use chrono_tz::Tz;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use utoipa::openapi::{KnownFormat, ObjectBuilder, SchemaFormat, schema::Type};

use super::decode::{Whole, decimal};
use crate::{
    http::error::Code,
    model::{Category, CouponId, LimitGroup, MAX_SAFE_INTEGER, Millis, OrderId, ProductId, UserId, WebhookId},
};

/// Describes a field's type. Its name in Rust keeps two types apart until the document has them in place.
macro_rules! field_schema {
    ($type:ty, $schema:expr $(, [$($generics:tt)*])?) => {
        impl$(<$($generics)*>)? utoipa::PartialSchema for $type {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
                $schema.into()
            }
        }

        impl$(<$($generics)*>)? utoipa::ToSchema for $type {
            fn name() -> std::borrow::Cow<'static, str> {
                std::any::type_name::<Self>().into()
            }
        }
    };
}

/// Decodes a field by its type's `FromStr`, and describes it by the pattern of the text.
macro_rules! text_field {
    ($type:ty, $pattern:expr) => {
        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                $crate::http::extract::decode::parsed(deserializer)
            }
        }

        $crate::http::extract::fields::field_schema! {
            $type, $crate::http::extract::fields::string().pattern(Some($pattern))
        }
    };
}

pub(in crate::http) use {field_schema, text_field};

/// The schema of a text.
pub fn string() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String)
}

/// The schema of a whole number.
fn integer(min: i64, max: i64) -> ObjectBuilder {
    let int64 = SchemaFormat::KnownFormat(KnownFormat::Int64);
    ObjectBuilder::new().schema_type(Type::Integer).format(Some(int64)).minimum(Some(min)).maximum(Some(max))
}

/// An id in a request, 1 to 2^53−1.
pub trait Id: Copy + FromStr {
    /// The error of a path whose id cannot exist.
    const UNKNOWN: Code;

    /// The user for whom a request with this id in its path acts.
    fn user(self) -> Option<UserId>;
}

macro_rules! ids {
    ($($id:ident $unknown:ident $user:expr;)*) => {$(
        impl Id for $id {
            const UNKNOWN: Code = Code::$unknown;

            fn user(self) -> Option<UserId> {
                $user(self)
            }
        }

        impl<'de> Deserialize<'de> for $id {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let Whole(number) = Whole::deserialize(deserializer)?;
                $id::new(number).ok_or_else(|| D::Error::custom("not an id"))
            }
        }

        impl FromStr for $id {
            type Err = ();

            fn from_str(digits: &str) -> Result<Self, ()> {
                decimal(digits).and_then($id::new).ok_or(())
            }
        }

        field_schema! { $id, integer(1, MAX_SAFE_INTEGER) }
    )*};
}

ids! {
    UserId UserNotFound Some;
    ProductId ProductNotFound |_| None;
    OrderId OrderNotFound |_| None;
    CouponId CouponNotFound |_| None;
    WebhookId WebhookNotFound |_| None;
}

/// A whole number from `MIN` to `MAX`. In a query string it is decimal, and decoded by [`parsed`](super::decode::parsed).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Bounded<const MIN: i64, const MAX: i64>(i64);

impl<const MIN: i64, const MAX: i64> Bounded<MIN, MAX> {
    /// `None` unless `number` is within the bounds.
    pub const fn new(number: i64) -> Option<Self> {
        if MIN <= number && number <= MAX { Some(Self(number)) } else { None }
    }

    /// A number that is known to be within the bounds, for constants: others do not compile.
    pub const fn constant(number: i64) -> Self {
        assert!(MIN <= number && number <= MAX, "number out of bounds");
        Self(number)
    }

    /// The number.
    pub const fn get(self) -> i64 {
        self.0
    }
}

impl<const MAX: i64> Default for Bounded<0, MAX> {
    fn default() -> Self {
        Self(0)
    }
}

impl<'de, const MIN: i64, const MAX: i64> Deserialize<'de> for Bounded<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Whole(number) = Whole::deserialize(deserializer)?;
        Self::new(number).ok_or_else(|| D::Error::custom("number out of bounds"))
    }
}

impl<const MIN: i64, const MAX: i64> FromStr for Bounded<MIN, MAX> {
    type Err = ();

    fn from_str(digits: &str) -> Result<Self, ()> {
        decimal(digits).and_then(Self::new).ok_or(())
    }
}

field_schema! { Bounded<MIN, MAX>, integer(MIN, MAX), [const MIN: i64, const MAX: i64] }

/// The pattern of a [`Text`]. It avoids classes that dialects of patterns define differently.
const TEXT_PATTERN: &str =
    concat!(r"^[^\u0000-\u001F\u007F-\u009F]*[^\s\u0000-\u001F\u007F-\u009F]", r"[^\u0000-\u001F\u007F-\u009F]*$");
/// The pattern of a [`Prefix`].
const PREFIX_PATTERN: &str = r"^[^\u0000-\u001F\u007F-\u009F]*$";
/// The pattern of a [`LocalTime`]. It also matches days and hours that no calendar or zone has.
const TIME_PATTERN: &str = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?$";

/// A text of 1 to `MAX` characters, not blank and free of control characters.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct Text<const MAX: usize>(String);

impl<'de, const MAX: usize> Deserialize<'de> for Text<MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Prefix::<MAX>(text) = Prefix::deserialize(deserializer)?;
        if text.trim().is_empty() { Err(D::Error::custom("blank text")) } else { Ok(Text(text)) }
    }
}

impl<const MAX: usize> From<Text<MAX>> for String {
    fn from(Text(text): Text<MAX>) -> String {
        text
    }
}

field_schema! {
    Text<MAX>, string().min_length(Some(1)).max_length(Some(MAX)).pattern(Some(TEXT_PATTERN)), [const MAX: usize]
}

/// A text of 0 to `MAX` characters, free of control characters.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct Prefix<const MAX: usize>(String);

impl<'de, const MAX: usize> Deserialize<'de> for Prefix<MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.chars().any(char::is_control) || text.chars().nth(MAX).is_some() {
            return Err(D::Error::custom("text too long or with control characters"));
        }
        Ok(Prefix(text))
    }
}

impl<const MAX: usize> From<Prefix<MAX>> for String {
    fn from(Prefix(text): Prefix<MAX>) -> String {
        text
    }
}

field_schema! { Prefix<MAX>, string().max_length(Some(MAX)).pattern(Some(PREFIX_PATTERN)), [const MAX: usize] }

text_field! { Category, "^[A-Z][A-Z0-9_]{0,31}$" }

text_field! { LimitGroup, "^[A-Z0-9_-]{1,32}$" }

impl Serialize for LimitGroup {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// The wall-clock time of a request: `2024-04-04T14:45:00`, with or without a fraction of a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalTime(NaiveDateTime);

impl LocalTime {
    /// The instant of this time in `zone`: the earlier of two; `None` if the zone skips it, or outside of 1970–9999.
    pub fn instant(self, zone: Tz) -> Option<Millis> {
        let instant = match zone.from_local_datetime(&self.0) {
            LocalResult::Single(time) => time,
            LocalResult::Ambiguous(earlier, later) => earlier.min(later),
            LocalResult::None => return None,
        };
        let instant = Millis::from(instant.to_utc());
        (0..=Millis::MAX.0).contains(&instant.0).then_some(instant)
    }
}

impl FromStr for LocalTime {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        // chrono alone would also accept `+2024-4-4T 1:2:60`.
        const SHAPE: &[u8] = b"0000-00-00T00:00:00";
        let (seconds, fraction) = text.split_once('.').map_or((text, None), |(s, f)| (s, Some(f)));
        let shaped = seconds.len() == SHAPE.len()
            && seconds
                .bytes()
                .zip(SHAPE)
                .all(|(byte, &shape)| if shape == b'0' { byte.is_ascii_digit() } else { byte == shape });
        let fractional =
            fraction.is_none_or(|f| (1..=9).contains(&f.len()) && f.bytes().all(|byte| byte.is_ascii_digit()));
        if !shaped || !fractional || seconds.ends_with(":60") {
            return Err(());
        }
        NaiveDateTime::parse_from_str(text, "%Y-%m-%dT%H:%M:%S%.f").map(LocalTime).map_err(|_| ())
    }
}

impl Serialize for LocalTime {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

text_field! { LocalTime, TIME_PATTERN }

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        /// What the document's patterns describe is let in. (That nothing else is, `make fuzz` looks for.)
        #[test]
        fn text_matching_documented_pattern_accepted(
            name in TEXT_PATTERN.trim_matches(['^', '$']),
            prefix in PREFIX_PATTERN.trim_matches(['^', '$']),
        ) {
            let json = |text: &str| serde_json::Value::from(text);
            proptest::prop_assert_eq!(Text::<1_000>::deserialize(json(&name)).ok().map(String::from), Some(name));
            proptest::prop_assert_eq!(Prefix::<1_000>::deserialize(json(&prefix)).ok().map(String::from), Some(prefix));
        }
    }

    #[test]
    fn local_time_refused_when_malformed() {
        let seoul = chrono_tz::Asia::Seoul;
        let instant = |text: &str| text.parse::<LocalTime>().ok().and_then(|time| time.instant(seoul));
        assert_eq!(instant("1970-01-01T09:00:01"), Some(Millis(1_000)));
        assert_eq!(instant("1970-01-01T09:00:01.25"), Some(Millis(1_250)));
        for hostile in [
            "",
            "2024-04-04",
            "2024-04-04 14:45:00",
            "2024-04-04T14:45",
            "2024-04-04T14:45:00Z",
            "2024-04-04T14:45:60",
            "2024-04-04T14:45:00+09:00",
            "2024-02-30T00:00:00",
            "2024-04-04T24:00:00",
            "2024-04-04T14:45:00.",
            "+024-04-04T14:45:00",
            "1969-01-01T00:00:00",
            "2024-04-04T14:45:00.1234567890",
        ] {
            assert_eq!(instant(hostile), None, "{hostile}");
        }
    }

    #[test]
    fn local_time_resolved_when_clock_changes() {
        let new_york = chrono_tz::America::New_York;
        let instant = |text: &str| text.parse::<LocalTime>().unwrap().instant(new_york);
        assert_eq!(instant("2024-03-10T02:30:00"), None, "skipped");
        // 01:30 came twice; the earlier is still daylight time, four hours behind UTC.
        assert_eq!(instant("2024-11-03T01:30:00"), Some(Millis(1_730_611_800_000)));
    }
}
