//! Values that are fetched for servers: tokens of OAuth 2 servers and secrets of Vault.
//!
//! A [`Source`] fetches one value, once. When to fetch again, and what to do while that does not
//! work, is [`schedule`]'s and its caller's business. What is fetched, and what is needed to fetch
//! it, is in no error and no log line: an answer is never quoted but for the codes that its
//! standard defines.
//!
//! May import: `api`, `names`, `error`.

mod http;
pub mod oauth2;
pub mod schedule;
pub mod vault;

use async_trait::async_trait;
use jiff::Timestamp;
use secrecy::SecretSlice;

use crate::error::Category;

/// Where a value comes from.
#[async_trait]
pub trait Source: Send + Sync {
    /// Fetches the value. Returns within some seconds, whatever the other side does.
    ///
    /// # Errors
    /// When there is no value, for one of the reasons of [`ObtainError`].
    async fn obtain(&self, now: Timestamp) -> Result<Obtained, ObtainError>;
}

/// A value that was fetched.
#[derive(Clone, Debug)]
pub struct Obtained {
    /// The value.
    pub value: SecretSlice<u8>,
    /// When it ends, where that is known.
    pub expires: Option<Timestamp>,
}

/// Why a value could not be fetched. Each sentence says who, what, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ObtainError {
    /// What was declared cannot be used.
    #[error("{0}")]
    Invalid(String),
    /// A Secret that is needed, or a key of it, is not there.
    #[error("{0}")]
    MissingReference(String),
    /// Perch may not do what it needs to.
    #[error("{0}")]
    NotPermitted(String),
    /// The control plane does not answer.
    #[error("{0}")]
    ApiUnavailable(String),
    /// Nobody answers.
    #[error("{url} does not answer ({why}): check that it runs and can be reached from Perch")]
    Unreachable {
        /// Who was asked.
        url: String,
        /// What happened instead.
        why: String,
    },
    /// The one who answers cannot prove who it is.
    #[error(
        "the certificate of {url} is not good ({why}): set certificateAuthorityFrom to the certificates that it is signed by, or repair the certificate"
    )]
    Certificate {
        /// Who was asked.
        url: String,
        /// What is wrong with the certificate.
        why: String,
    },
    /// Perch, or who it speaks for, is not let in.
    #[error("{url} refuses ({why}): {remedy}")]
    Refused {
        /// Who was asked.
        url: String,
        /// The code of the refusal.
        why: String,
        /// What to do.
        remedy: &'static str,
    },
    /// There is no such value.
    #[error("{0}")]
    NotFound(String),
    /// What came back is no answer.
    #[error("{url} gives no answer that can be used: {why}")]
    Answer {
        /// Who was asked.
        url: String,
        /// What is wrong with the answer.
        why: String,
    },
}

impl Category for ObtainError {
    fn category(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "InvalidCredential",
            Self::MissingReference(_) => "ReferenceNotFound",
            Self::NotPermitted(_) => "NotPermitted",
            Self::ApiUnavailable(_) => "ApiUnavailable",
            Self::Unreachable { .. } => "Unreachable",
            Self::Certificate { .. } => "CertificateInvalid",
            Self::Refused { .. } => "Refused",
            Self::NotFound(_) => "ValueNotFound",
            Self::Answer { .. } => "InvalidAnswer",
        }
    }
}

#[cfg(test)]
mod tests;
