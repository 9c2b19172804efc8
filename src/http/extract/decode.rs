//! Decodes untrusted input, field by field: the `deserialize_with` functions of request bodies and query strings.
//!
//! [`write`](super::write) and [`params`](super::params) turn a refusal into an error.

use std::{fmt, marker::PhantomData, ops::RangeInclusive, str::FromStr};

use chrono::{LocalResult, NaiveDateTime, TimeZone};
use chrono_tz::Tz;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{DeserializeOwned, Error, MapAccess, Visitor, value::MapAccessDeserializer},
};

use crate::{
    http::error::Code,
    model::{CouponId, MAX_SAFE_INTEGER, Millis, OrderId, ProductId, UserId},
};

/// An id in a request.
pub trait Id: Copy {
    /// The error of a path whose id cannot exist.
    const UNKNOWN: Code;

    /// `None` unless it is 1 to 2^53−1.
    fn new(id: i64) -> Option<Self>;

    /// The user for whom a request with this id in its path acts.
    fn user(self) -> Option<UserId>;
}

macro_rules! ids {
    ($($id:ident $unknown:ident $user:expr;)*) => {$(
        impl Id for $id {
            const UNKNOWN: Code = Code::$unknown;

            fn new(id: i64) -> Option<Self> {
                $id::new(id)
            }

            fn user(self) -> Option<UserId> {
                $user(self)
            }
        }
    )*};
}

ids! {
    UserId UserNotFound Some;
    ProductId ProductNotFound |_| None;
    OrderId OrderNotFound |_| None;
    CouponId CouponNotFound |_| None;
}

/// A whole JSON number within ±(2^53−1): `1000`, `1000.0` and `1e3` are the same. A number is the double that it denotes, as it is
/// for every client.
#[derive(Clone, Copy)]
struct Whole(i64);

impl<'de> Deserialize<'de> for Whole {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct WholeVisitor;

        impl Visitor<'_> for WholeVisitor {
            type Value = Whole;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number within ±(2^53−1)")
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<Whole, E> {
                let safe = (-MAX_SAFE_INTEGER..=MAX_SAFE_INTEGER).contains(&number);
                if safe { Ok(Whole(number)) } else { Err(E::custom("number out of bounds")) }
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<Whole, E> {
                self.visit_i64(i64::try_from(number).unwrap_or(i64::MAX))
            }

            fn visit_f64<E: Error>(self, number: f64) -> Result<Whole, E> {
                // Exact: the bounds are doubles, and within them every whole double is an i64.
                if number.fract() == 0.0 && number.abs() <= MAX_SAFE_INTEGER as f64 {
                    Ok(Whole(number as i64))
                } else {
                    Err(E::custom("not a whole number in bounds"))
                }
            }
        }

        deserializer.deserialize_any(WholeVisitor)
    }
}

fn within<E: Error>(number: i64, bounds: RangeInclusive<i64>) -> Result<i64, E> {
    if bounds.contains(&number) { Ok(number) } else { Err(E::custom("number out of bounds")) }
}

/// A whole number from `MIN` to `MAX`.
pub fn int<'de, D: Deserializer<'de>, const MIN: i64, const MAX: i64>(deserializer: D) -> Result<i64, D::Error> {
    within(Whole::deserialize(deserializer)?.0, MIN..=MAX)
}

/// The same where the field may be absent (not null): for `#[serde(default)]`.
pub fn optional_int<'de, D: Deserializer<'de>, const MIN: i64, const MAX: i64>(
    deserializer: D,
) -> Result<Option<i64>, D::Error> {
    int::<D, MIN, MAX>(deserializer).map(Some)
}

/// The same where the field may be absent, or null.
pub fn nullable_int<'de, D: Deserializer<'de>, const MIN: i64, const MAX: i64>(
    deserializer: D,
) -> Result<Option<i64>, D::Error> {
    let Some(Whole(number)) = Option::deserialize(deserializer)? else { return Ok(None) };
    within(number, MIN..=MAX).map(Some)
}

/// An id, 1 to 2^53−1.
pub fn id<'de, D: Deserializer<'de>, T: Id>(deserializer: D) -> Result<T, D::Error> {
    let number = Whole::deserialize(deserializer)?.0;
    T::new(number).ok_or_else(|| D::Error::custom("not an id"))
}

/// An id, or null for none: clients in languages with nullable fields send null for an absent value.
pub fn nullable_id<'de, D: Deserializer<'de>, T: Id>(deserializer: D) -> Result<Option<T>, D::Error> {
    let Some(Whole(number)) = Option::deserialize(deserializer)? else { return Ok(None) };
    T::new(number).map(Some).ok_or_else(|| D::Error::custom("not an id"))
}

/// A word of an enumeration, or a token, in its exact spelling.
pub fn word<'de, D: Deserializer<'de>, T: FromStr>(deserializer: D) -> Result<T, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(|_| D::Error::custom("unknown word"))
}

/// The same where the field may be absent (not null).
pub fn optional_word<'de, D: Deserializer<'de>, T: FromStr>(deserializer: D) -> Result<Option<T>, D::Error> {
    word(deserializer).map(Some)
}

/// The pattern of [`text`] in the document. It avoids classes that dialects of patterns define differently.
pub const TEXT_PATTERN: &str =
    concat!(r"^[^\u0000-\u001F\u007F-\u009F]*[^\s\u0000-\u001F\u007F-\u009F]", r"[^\u0000-\u001F\u007F-\u009F]*$");
/// The pattern of [`optional_prefix`].
pub const PREFIX_PATTERN: &str = r"^[^\u0000-\u001F\u007F-\u009F]*$";
/// The pattern of a [`LocalTime`]. It also matches days and hours that no calendar or zone has.
pub const TIME_PATTERN: &str = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?$";

/// A text of 1 to `MAX` characters, not blank and free of control characters.
pub fn text<'de, D: Deserializer<'de>, const MAX: usize>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.trim().is_empty() {
        return Err(D::Error::custom("blank text"));
    }
    printable::<D::Error>(text, MAX)
}

/// The same where the field may be absent (not null).
pub fn optional_text<'de, D: Deserializer<'de>, const MAX: usize>(deserializer: D) -> Result<Option<String>, D::Error> {
    text::<D, MAX>(deserializer).map(Some)
}

/// A text of 0 to `MAX` characters, free of control characters; may be absent (not null).
pub fn optional_prefix<'de, D: Deserializer<'de>, const MAX: usize>(
    deserializer: D,
) -> Result<Option<String>, D::Error> {
    printable::<D::Error>(String::deserialize(deserializer)?, MAX).map(Some)
}

fn printable<E: Error>(text: String, max: usize) -> Result<String, E> {
    if text.chars().any(char::is_control) || text.chars().nth(max).is_some() {
        return Err(E::custom("text too long or with control characters"));
    }
    Ok(text)
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

/// A `T` from a JSON object: serde would also decode a struct from an array.
#[derive(Clone, Copy, Debug)]
pub struct Object<T>(pub T);

impl<T: Serialize> Serialize for Object<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ObjectVisitor<T>(PhantomData<T>);

        impl<'de, T: DeserializeOwned> Visitor<'de> for ObjectVisitor<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }

        deserializer.deserialize_map(ObjectVisitor(PhantomData))
    }
}

/// A decimal whole number in a query string.
pub fn query_int<'de, D: Deserializer<'de>, const MIN: i64, const MAX: i64>(deserializer: D) -> Result<i64, D::Error> {
    let digits = String::deserialize(deserializer)?;
    within(decimal(&digits).ok_or_else(|| D::Error::custom("not a number"))?, MIN..=MAX)
}

/// The same where the parameter may be absent.
pub fn optional_query_int<'de, D: Deserializer<'de>, const MIN: i64, const MAX: i64>(
    deserializer: D,
) -> Result<Option<i64>, D::Error> {
    query_int::<D, MIN, MAX>(deserializer).map(Some)
}

/// An id in a query string that may be absent.
pub fn optional_query_id<'de, D: Deserializer<'de>, T: Id>(deserializer: D) -> Result<Option<T>, D::Error> {
    let digits = String::deserialize(deserializer)?;
    decimal(&digits).and_then(T::new).map(Some).ok_or_else(|| D::Error::custom("not an id"))
}

/// Up to 18 decimal digits without leading zeros. Each number has one spelling, so that comparisons of texts (a proxy's rules, an
/// idempotency key's request) see one number as one.
pub fn decimal(digits: &str) -> Option<i64> {
    let plain = (1..=18).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    if plain && (digits == "0" || !digits.starts_with('0')) { digits.parse().ok() } else { None }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    fn whole(json: &str) -> Option<i64> {
        serde_json::from_str::<Whole>(json).ok().map(|whole| whole.0)
    }

    #[test]
    fn integer_accepted_in_every_spelling() {
        for spelled in ["1000", "1000.0", "1e3", "1E+3", "10000e-1"] {
            assert_eq!(whole(spelled), Some(1000), "{spelled}");
        }
        assert_eq!(whole("-0"), Some(0));
        assert_eq!(whole("-0.0"), Some(0));
        assert_eq!(whole("9007199254740991"), Some(MAX_SAFE_INTEGER));
        // Without serde_json's `float_roundtrip` this is one off.
        assert_eq!(whole("-9007199254740991.0"), Some(-MAX_SAFE_INTEGER));
    }

    #[test]
    fn integer_refused_when_not_whole() {
        for hostile in [
            "0.5",
            "\"1000\"",
            "null",
            "true",
            "[1]",
            "{}",
            "9007199254740992",
            "-9007199254740992",
            "9007199254740992.0",
            "1e16",
            "1e308",
            "1e400",
            "18446744073709551615",
            "99999999999999999999",
            "NaN",
            "0x10",
            "01",
            "+1",
            "",
        ] {
            assert_eq!(whole(hostile), None, "{hostile}");
        }
    }

    proptest::proptest! {
        /// What the document's patterns describe is let in. (That nothing else is, `make fuzz` looks for.)
        #[test]
        fn text_matching_documented_pattern_accepted(
            name in TEXT_PATTERN.trim_matches(['^', '$']),
            prefix in PREFIX_PATTERN.trim_matches(['^', '$']),
        ) {
            let json = |text: &str| serde_json::Value::from(text);
            proptest::prop_assert_eq!(text::<_, 1_000>(json(&name)).ok(), Some(name));
            proptest::prop_assert_eq!(optional_prefix::<_, 1_000>(json(&prefix)).ok(), Some(Some(prefix)));
        }
    }

    #[test]
    fn decimal_refused_unless_digits() {
        assert_eq!(decimal("0"), Some(0));
        assert_eq!(decimal("42"), Some(42));
        for hostile in ["", "-1", "+1", " 1", "01", "00", "1.0", "1e3", "abc", "٣", "1152921504606846976000"] {
            assert_eq!(decimal(hostile), None, "{hostile}");
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
