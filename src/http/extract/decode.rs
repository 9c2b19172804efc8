//! Decodes untrusted input, field by field: whole numbers, texts, objects.
//!
//! The types of fields have their bounds ([`fields`](super::fields)); [`write`](super::write) and [`params`](super::params) turn a
//! refusal into an error.

use std::{fmt, marker::PhantomData, str::FromStr};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{DeserializeOwned, Error, MapAccess, Visitor, value::MapAccessDeserializer},
};

use crate::model::MAX_SAFE_INTEGER;

/// A whole JSON number within ±(2^53−1): `1000`, `1000.0` and `1e3` are the same. A number is the double that it denotes, as it is
/// for every client.
#[derive(Clone, Copy)]
pub struct Whole(pub i64);

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

/// A `T` from its text: a word of an enumeration, a token, or a number in a query string.
pub fn parsed<'de, D: Deserializer<'de>, T: FromStr>(deserializer: D) -> Result<T, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(|_| D::Error::custom("not a text of this type"))
}

/// The same where the field may be absent (not null): for `#[serde(default)]`.
pub fn optional_parsed<'de, D: Deserializer<'de>, T: FromStr>(deserializer: D) -> Result<Option<T>, D::Error> {
    parsed(deserializer).map(Some)
}

/// A field that may be absent, but not null: for `#[serde(default)]`.
pub fn not_null<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// A field that may be absent, or null: for `#[serde(default)]`. Null is `Some(None)`.
pub fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
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

/// Up to 18 decimal digits without leading zeros. Each number has one spelling, so that comparisons of texts (a proxy's rules, an
/// idempotency key's request) see one number as one.
pub fn decimal(digits: &str) -> Option<i64> {
    let plain = (1..=18).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    if plain && (digits == "0" || !digits.starts_with('0')) { digits.parse().ok() } else { None }
}

#[cfg(test)]
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

    #[test]
    fn decimal_refused_unless_digits() {
        assert_eq!(decimal("0"), Some(0));
        assert_eq!(decimal("42"), Some(42));
        for hostile in ["", "-1", "+1", " 1", "01", "00", "1.0", "1e3", "abc", "٣", "1152921504606846976000"] {
            assert_eq!(decimal(hostile), None, "{hostile}");
        }
    }
}
