//! What differs on purpose.

/// A difference between the real server and the embedded one that is meant to be.
pub struct Difference {
    /// Name of the case.
    pub case: &'static str,
    /// Number of the step and JSON pointer into its outcome; all below it may differ.
    pub at: &'static str,
    /// Why.
    pub reason: &'static str,
}

/// All of them. One that does not occur fails its case.
pub const DIFFERENCES: &[Difference] = &[];
