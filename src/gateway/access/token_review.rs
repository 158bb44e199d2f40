//! Tokens that the Kubernetes API server knows, such as those of ServiceAccounts.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use kube::{Api, api::PostParams};
use tokio::sync::Semaphore;

use super::{
    Identity,
    api_key::Hash,
    cache::Cache,
    challenge::Refusal,
    file::TokenReviewEntry,
    jwt::{self, Token},
};

/// Answers that are remembered.
const REMEMBERED: usize = 10_000;
/// Questions at the same time.
const CONCURRENCY: usize = 8;
/// Time for one answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// For how long a refusal is believed, at most.
const REFUSED: Duration = Duration::from_secs(10);

/// Asks the API server whose a token is.
pub struct Reviewer {
    reviews: Api<TokenReview>,
    audiences: Vec<String>,
    cache: Duration,
    known: Cache<Hash, Result<Identity, Refusal>>,
    turns: Semaphore,
}

impl Reviewer {
    /// A reviewer, or what is wrong with its entry.
    pub fn new(entry: &TokenReviewEntry, client: kube::Client) -> Result<Self, String> {
        if entry.audiences.is_empty() || entry.audiences.iter().any(String::is_empty) {
            return Err("tokenReview.audiences is empty: name the audience that tokens for this gateway have".into());
        }
        Ok(Self {
            reviews: Api::all(client),
            audiences: entry.audiences.clone(),
            cache: entry.cache.map_or(Duration::from_secs(30), crate::api::quantity::Duration::to_std),
            known: Cache::new(REMEMBERED),
            turns: Semaphore::new(CONCURRENCY),
        })
    }

    /// Who shows a token.
    pub async fn identify(
        &self,
        token: &str,
        parsed: &Token<'_>,
        hash: Hash,
        now: Timestamp,
    ) -> Result<Identity, Refusal> {
        if let Some(known) = self.known.get(&hash, Instant::now()) {
            return known;
        }
        // What is not even meant for the gateway need not trouble the API server.
        if !parsed.audiences().iter().any(|audience| self.audiences.contains(audience)) {
            return Err(Refusal::Invalid("it is meant for another resource (audience)".into()));
        }
        let answer = {
            let _turn = self.turns.acquire().await;
            tokio::time::timeout(PATIENCE, self.review(token)).await
        };
        let found = match answer {
            Ok(Ok(found)) => found,
            failed => {
                let why = match failed {
                    Ok(Err(error)) => error.to_string(),
                    _ => format!("nothing came within {}s", PATIENCE.as_secs()),
                };
                tracing::warn!(error = why, "the API server does not say whose a token is");
                return Err(Refusal::Unavailable(
                    "the API server cannot be asked whose the token is: try again later".into(),
                ));
            }
        };
        // A token is not believed beyond its own time.
        let left = jwt::expires(parsed.claims()).map_or(self.cache, |until| {
            Duration::from_secs(u64::try_from(until - now.as_second()).unwrap_or_default()).min(self.cache)
        });
        let good_for = if found.is_ok() { left } else { self.cache.min(REFUSED) };
        self.known.put(hash, found.clone(), Instant::now(), good_for);
        found
    }

    async fn review(&self, token: &str) -> kube::Result<Result<Identity, Refusal>> {
        let spec = TokenReviewSpec { token: token.to_owned(), audiences: Some(self.audiences.clone()) };
        let review = TokenReview { spec, ..TokenReview::default() };
        let status = self.reviews.create(&PostParams::default(), &review).await?.status.unwrap_or_default();
        let user = status.user.unwrap_or_default();
        // An API server that knows no audiences leaves them out: then it did not look.
        let audiences = status.audiences.unwrap_or_default();
        let good = status.authenticated == Some(true) && audiences.iter().any(|a| self.audiences.contains(a));
        Ok(match user.username.filter(|name| good && !name.is_empty()) {
            Some(name) => {
                Ok(Identity { user: name.into(), groups: user.groups.unwrap_or_default().into(), operator: false })
            }
            None => Err(Refusal::Invalid("the API server does not know it, or not for this gateway".into())),
        })
    }
}

impl std::fmt::Debug for Reviewer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reviewer").field("audiences", &self.audiences).finish_non_exhaustive()
    }
}
