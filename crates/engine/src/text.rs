//! Serialises addresses, digests, stages and ids as the text that people see.
//!
//! For `#[serde(with = "crate::text")]`; [`option`] is the same for optional fields.

use std::fmt::Display;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Writes the value's text.
pub fn serialize<T: Display, S: Serializer>(value: &T, out: S) -> Result<S::Ok, S::Error> {
    out.collect_str(value)
}

/// Parses the value's text.
pub fn deserialize<'de, T, D>(input: D) -> Result<T, D::Error>
where
    T: FromStr<Err: Display>,
    D: Deserializer<'de>,
{
    let text = String::deserialize(input)?;
    text.parse().map_err(de::Error::custom)
}

/// Optional values: null or text.
pub mod option {
    use super::{Deserialize, Deserializer, Display, FromStr, Serializer, de};

    /// Writes the value's text, or null.
    pub fn serialize<T, S>(value: &Option<T>, out: S) -> Result<S::Ok, S::Error>
    where
        T: Display,
        S: Serializer,
    {
        match value {
            Some(value) => out.collect_str(value),
            None => out.serialize_none(),
        }
    }

    /// Parses the value's text, or null.
    pub fn deserialize<'de, T, D>(input: D) -> Result<Option<T>, D::Error>
    where
        T: FromStr<Err: Display>,
        D: Deserializer<'de>,
    {
        let text = Option::<String>::deserialize(input)?;
        text.map(|text| text.parse().map_err(de::Error::custom))
            .transpose()
    }
}

/// Bytes: hexadecimal digits.
pub(crate) mod bytes {
    use super::{Deserialize, Deserializer, Serializer, de};

    pub(crate) fn serialize<S: Serializer>(value: &[u8], out: S) -> Result<S::Ok, S::Error> {
        out.serialize_str(&wire::hex::hexadecimal(value))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(input: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(input)?;
        wire::hex::from_hexadecimal(&text)
            .ok_or_else(|| de::Error::custom("expected hexadecimal digits"))
    }
}

/// An optional key: null or hexadecimal digits.
pub(crate) mod key {
    use super::{Deserialize, Deserializer, Serialize, Serializer, de};

    pub(crate) fn serialize<S: Serializer>(
        value: &Option<[u8; 32]>,
        out: S,
    ) -> Result<S::Ok, S::Error> {
        value.map(|it| wire::hex::hexadecimal(&it)).serialize(out)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        input: D,
    ) -> Result<Option<[u8; 32]>, D::Error> {
        let key = |text: String| {
            let bytes = wire::hex::from_hexadecimal(&text).and_then(|it| it.try_into().ok());
            bytes.ok_or_else(|| de::Error::custom("expected 64 hexadecimal digits"))
        };
        Option::<String>::deserialize(input)?.map(key).transpose()
    }
}
