//! Kubernetes quantities (`250m`, `256Mi`) and durations (`10s`) as they appear in a spec.

use std::{borrow::Cow, fmt, sync::LazyLock};

use k8s_openapi::apimachinery::pkg::api::resource::Quantity as RawQuantity;
use kube_quantity::ParsedQuantity;
use regex::Regex;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize};

/// The pattern that the Kubernetes API server itself publishes for quantities.
const QUANTITY_PATTERN: &str = r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$";

/// A Kubernetes resource quantity, kept as the user wrote it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct Quantity(pub String);

/// A quantity that cannot be used where it stands.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// The text is not a quantity at all.
    #[error("{0:?} is not a quantity: write a number with an optional suffix, such as 250m, 0.5, 256Mi or 1Gi")]
    Malformed(String),
    /// The value is zero, negative or larger than the machine can express.
    #[error("{0:?} is out of range: it must be greater than zero")]
    OutOfRange(String),
}

impl Quantity {
    /// The value in bytes.
    ///
    /// # Errors
    /// When the text is no quantity, or is not greater than zero.
    pub fn bytes(&self) -> Result<u64, QuantityError> {
        let value = self.parsed()?.to_bytes_f64().ok_or_else(|| QuantityError::OutOfRange(self.0.clone()))?;
        self.positive(value)
    }

    /// The value in thousandths of a CPU.
    ///
    /// # Errors
    /// When the text is no quantity, or is not greater than zero.
    pub fn millis(&self) -> Result<u64, QuantityError> {
        let value = self.parsed()?.to_bytes_f64().ok_or_else(|| QuantityError::OutOfRange(self.0.clone()))?;
        self.positive((value * 1000.0).ceil())
    }

    fn parsed(&self) -> Result<ParsedQuantity, QuantityError> {
        ParsedQuantity::try_from(RawQuantity(self.0.clone())).map_err(|_| QuantityError::Malformed(self.0.clone()))
    }

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range is checked first")]
    fn positive(&self, value: f64) -> Result<u64, QuantityError> {
        if value >= 1.0 && value < 2f64.powi(63) {
            Ok(value as u64)
        } else {
            Err(QuantityError::OutOfRange(self.0.clone()))
        }
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum IntOrString {
            Int(i64),
            String(String),
        }
        Ok(match IntOrString::deserialize(deserializer)? {
            IntOrString::Int(n) => Self(n.to_string()),
            IntOrString::String(s) => Self(s),
        })
    }
}

impl JsonSchema for Quantity {
    fn schema_name() -> Cow<'static, str> {
        "Quantity".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "x-kubernetes-int-or-string": true,
            "pattern": QUANTITY_PATTERN,
        })
    }
}

/// Durations in a spec: at most three decimals of any unit from milliseconds to hours.
const DURATION_PATTERN: &str = r"^([0-9]{1,6}(\.[0-9]{1,3})?(ms|s|m|h))+$";
/// Longest text of a duration. Together with the pattern it bounds the value to some centuries, so
/// that no sum overflows.
const DURATION_LENGTH: usize = 32;

/// A span of time as in Kubernetes and Go: `500ms`, `10s`, `1h30m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Duration(kube::core::Duration);

impl std::hash::Hash for Duration {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.to_std().hash(state);
    }
}

impl<'de> Deserialize<'de> for Duration {
    /// Takes what the schema takes. The parser below panics on numbers that are too large for it,
    /// and must never see them: an object that was stored once is read at every start.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        static PATTERN: LazyLock<Regex> =
            LazyLock::new(|| Regex::new(DURATION_PATTERN).expect("the pattern is a constant that compiles"));
        let text = String::deserialize(deserializer)?;
        if text.len() > DURATION_LENGTH || !PATTERN.is_match(&text) {
            let message = format!("{text:?} is not a duration: write it like 500ms, 10s or 1h30m");
            return Err(serde::de::Error::custom(message));
        }
        text.parse().map(Self).map_err(serde::de::Error::custom)
    }
}

impl Duration {
    /// A duration of whole seconds.
    #[must_use]
    pub fn from_secs(seconds: u64) -> Self {
        Self(std::time::Duration::from_secs(seconds).into())
    }

    /// The standard library's form. The schema admits no negative durations.
    #[must_use]
    pub fn to_std(self) -> std::time::Duration {
        self.0.into()
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = self.to_std();
        // Rust prints a zero as "0ns"; Go, and so every Kubernetes tool, as "0s".
        if whole.is_zero() {
            return f.write_str("0s");
        }
        // More digits than a number may have.
        if whole.as_secs() > 999_999 {
            let hours = whole.as_secs() / 3600;
            let rest = whole.saturating_sub(std::time::Duration::from_secs(hours * 3600));
            write!(f, "{hours}h")?;
            return if rest.is_zero() { Ok(()) } else { write!(f, "{rest:?}") };
        }
        write!(f, "{whole:?}")
    }
}

impl Serialize for Duration {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl JsonSchema for Duration {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": DURATION_PATTERN,
            "maxLength": DURATION_LENGTH,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_become_bytes_and_millis() {
        assert_eq!(Quantity("256Mi".into()).bytes(), Ok(256 * 1024 * 1024));
        assert_eq!(Quantity("1G".into()).bytes(), Ok(1_000_000_000));
        assert_eq!(Quantity("500m".into()).millis(), Ok(500));
        assert_eq!(Quantity("1.5".into()).millis(), Ok(1500));
        assert_eq!(Quantity("2".into()).millis(), Ok(2000));
    }

    #[test]
    fn a_bad_quantity_says_what_to_write() {
        assert_eq!(Quantity("lots".into()).bytes(), Err(QuantityError::Malformed("lots".into())));
        assert_eq!(Quantity("-1Mi".into()).bytes(), Err(QuantityError::OutOfRange("-1Mi".into())));
        assert_eq!(Quantity("0".into()).millis(), Err(QuantityError::OutOfRange("0".into())));
    }

    #[test]
    fn a_quantity_beyond_all_bounds_is_an_error_and_no_panic() {
        let many_nines = "9".repeat(80);
        for text in ["1e400", "1e99999999999", "1e-99999999999", "1e1.5", &many_nines, &format!("{many_nines}Ei")] {
            assert!(Quantity(text.to_owned()).bytes().is_err(), "{text}");
            assert!(Quantity(text.to_owned()).millis().is_err(), "{text}");
        }
        for text in [".5Mi", "+1Mi", "1.Mi", "1e3"] {
            assert!(Quantity(text.to_owned()).bytes().is_ok(), "{text}");
        }
    }

    #[test]
    fn a_number_is_a_quantity_too() {
        assert_eq!(serde_json::from_str::<Quantity>("2").unwrap(), Quantity("2".into()));
    }

    #[test]
    fn durations_read_as_in_go() {
        let d: Duration = serde_json::from_str("\"1h30m\"").unwrap();
        assert_eq!(d.to_std(), std::time::Duration::from_secs(5400));
        assert_eq!(Duration::from_secs(10).to_string(), "10s");
        assert_eq!(serde_json::to_string(&Duration::from_secs(0)).unwrap(), "\"0s\"");
        assert_eq!(serde_json::to_string(&d).unwrap(), "\"5400s\"");
        for (text, written) in [("720h", "720h"), ("16666m40.5s", "277h2800.5s"), ("999999s", "999999s")] {
            let read: Duration = serde_json::from_value(text.into()).unwrap();
            assert_eq!(read.to_string(), written);
            assert_eq!(serde_json::from_value::<Duration>(written.into()).unwrap(), read, "what is written is read");
        }
    }

    #[test]
    fn a_duration_beyond_all_bounds_is_an_error_and_no_panic() {
        for text in ["99999999999999999999h", "1e400s", "9999999h", "-1s", "", "10", "1us"] {
            let json = serde_json::to_string(text).unwrap();
            let error = serde_json::from_str::<Duration>(&json).unwrap_err().to_string();
            assert!(error.contains("500ms, 10s or 1h30m"), "{text}: {error}");
        }
        let longest = "999999h".repeat(DURATION_LENGTH / 7);
        let json = serde_json::to_string(&longest).unwrap();
        assert!(serde_json::from_str::<Duration>(&json).unwrap().to_std() > std::time::Duration::from_secs(1));
    }
}
