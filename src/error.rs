//! What every error of Perch can say about itself beside its message.

/// A stable, low-cardinality name for a kind of failure.
///
/// It is the only part of an error that may become a metric label, an event reason or a
/// condition reason: messages carry names and paths, categories never do.
pub trait Category {
    /// The category in `CamelCase`, for example `ImagePullFailed`.
    fn category(&self) -> &'static str;
}
