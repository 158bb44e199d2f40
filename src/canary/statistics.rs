//! Tests that stay valid however often one looks.
//!
//! Each call is bad or not. Against a limit `l`, the likelihood ratio of a rate `p` after `b` bad
//! and `g` good calls is
//!
//! ```text
//! L(p) = (p/l)^b · ((1-p)/(1-l))^g
//! ```
//!
//! While the true rate is at most `l` and `p > l`, `L(p)` is a supermartingale that starts at 1:
//! a bad call multiplies it by `p/l > 1`, and its expected factor grows with the true rate and is
//! 1 at `l`. An average of such ratios is one too (an *e-process*), so by Ville's inequality
//!
//! ```text
//! P(E ever reaches 1/α) ≤ α
//! ```
//!
//! whatever the number of looks. No horizon has to be known, and waiting longer costs nothing.
//! Three averages are taken:
//!
//! * over a grid of rates, as nobody knows how bad a bad candidate is (Robbins' mixture),
//! * over the moments at which the candidate may have become bad: the ratio of moment `k` sees
//!   only what came after it and has the weight `w(k)`, `Σ w(k) ≤ 1`. A change late in a stage then
//!   costs `ln 1/w(k)` more evidence, not hours of good calls to be outweighed,
//! * for the comparison with the stable revision, over ratios of the two rates.
//!
//! All moments share what is to come, so their sum follows a recursion, and one number for each
//! rate is all that has to be kept: `S ← (S + w(k)) · L(window)`, where `w(k)` is added when moment
//! `k` has come. All is computed as natural logarithms.
//!
//! Sources: J. Ville, *Étude critique de la notion de collectif* (1939); H. Robbins, *Statistical
//! methods related to the law of the iterated logarithm*, Ann. Math. Statist. 41 (1970);
//! V. Vovk, R. Wang, *E-values: calibration, combination and applications*, Ann. Statist. 49
//! (2021), for averages; J. Shin, A. Ramdas, A. Rinaldo, *E-detectors* (2023), for starting anew
//! at each moment; A. Ramdas, P. Grünwald, V. Vovk, G. Shafer, *Game-theoretic statistics and
//! safe anytime-valid inference*, Statist. Sci. 38 (2023).

use crate::api::canary_release::{NO_EVIDENCE, RATES as GRID, RATIOS};

/// Moments within the planned duration of a stage, beside its start.
pub const MOMENTS: i64 = 288;
/// How much worse than the stable revision a candidate may be before that counts against it.
pub const MARGIN: f64 = 1.25;
/// Ratios of the two rates that the comparison looks for.
const RATIO_GRID: [f64; RATIOS] = [2.0, 4.0, 10.0, 40.0];

/// Tests a share of bad events against a limit, both ways.
#[derive(Clone, Debug, PartialEq)]
pub struct LimitTest {
    /// The largest share of bad events that is within the limit.
    pub limit: f64,
    /// Log evidence at which the limit counts as broken: `ln 1/α`.
    pub breach_at: f64,
    /// Log evidence at which the limit counts as kept: `ln 1/β`.
    pub pass_at: f64,
    above: Grid,
    below: Grid,
}

impl LimitTest {
    /// A test for `0 < limit < 1` that wrongly finds a breach with a chance of at most `alpha`,
    /// and wrongly finds the limit kept with a chance of at most `beta`.
    #[must_use]
    pub fn new(limit: f64, alpha: f64, beta: f64) -> Self {
        let odds = limit / (1.0 - limit);
        Self {
            limit,
            breach_at: -alpha.ln(),
            pass_at: -beta.ln(),
            above: Grid::new(limit, 1.25 * odds, 60.0 * odds),
            below: Grid::new(limit, 0.8 * odds, 0.01 * odds),
        }
    }

    /// Log evidence that the rate is above the limit.
    #[must_use]
    pub fn breach(&self, bad: i64, total: i64) -> f64 {
        self.above.log_evidence(bad, total - bad)
    }

    /// Multiplies scores by the likelihood ratios of a window.
    pub fn follow(&self, scores: &mut [f64; GRID], bad: i64, total: i64) {
        let (bad, good) = (real(bad), real(total - bad));
        for (i, score) in scores.iter_mut().enumerate() {
            *score = kept(*score + bad * self.above.bad[i] + good * self.above.good[i]);
        }
    }

    /// Log evidence that the rate is below the limit.
    #[must_use]
    pub fn pass(&self, bad: i64, total: i64) -> f64 {
        self.below.log_evidence(bad, total - bad)
    }

    /// The fewest further good calls after which the limit counts as kept.
    #[must_use]
    pub fn good_calls_to_pass(&self, bad: i64, total: i64) -> i64 {
        // Evidence grows with each good call, so the number can be found by halving.
        let enough = |more: i64| self.pass(bad, total + more) >= self.pass_at;
        let mut high = 1;
        while !enough(high) && high < 1 << 50 {
            high *= 2;
        }
        let mut low = 0;
        while low < high {
            let middle = low + (high - low) / 2;
            if enough(middle) {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        low
    }

    /// About how many calls show a true rate, one way or the other; none when it is so near to the
    /// limit that a billion would not.
    #[must_use]
    pub fn calls_to_decide(&self, rate: f64) -> Option<i64> {
        #[expect(clippy::cast_possible_truncation, reason = "at most a billion")]
        let bad = |calls: i64| (real(calls) * rate).round() as i64;
        let enough = |calls: i64| {
            self.pass(bad(calls), calls) >= self.pass_at
                || (bad(calls) >= 3 && self.breach(bad(calls), calls) + log_weight(0, 0) >= self.breach_at)
        };
        let (mut low, mut high) = (1, 1);
        while !enough(high) {
            low = high;
            high *= 2;
            if high > 1 << 30 {
                return None;
            }
        }
        while high - low > low / 100 + 1 {
            let middle = low + (high - low) / 2;
            if enough(middle) { high = middle } else { low = middle }
        }
        Some(high)
    }
}

/// Log likelihood ratios of a grid of rates, equally spaced in the logarithm of their odds.
#[derive(Clone, Debug, PartialEq)]
struct Grid {
    bad: [f64; GRID],
    good: [f64; GRID],
}

impl Grid {
    fn new(limit: f64, from_odds: f64, to_odds: f64) -> Self {
        let mut grid = Self { bad: [0.0; GRID], good: [0.0; GRID] };
        let step = (to_odds / from_odds).ln() / size(GRID - 1);
        for i in 0..GRID {
            let odds = (from_odds.ln() + step * size(i)).exp();
            let rate = odds / (1.0 + odds);
            grid.bad[i] = (rate / limit).ln();
            grid.good[i] = ((1.0 - rate) / (1.0 - limit)).ln();
        }
        grid
    }

    fn log_evidence(&self, bad: i64, good: i64) -> f64 {
        let (bad, good) = (real(bad.max(0)), real(good.max(0)));
        let mut terms = [0.0; GRID];
        for (i, term) in terms.iter_mut().enumerate() {
            *term = bad * self.bad[i] + good * self.good[i];
        }
        log_sum_exp(&terms) - size(GRID).ln()
    }
}

/// Log of the weight of the moments from one number up to another, both included. The start of
/// the stage, moment 0, has a quarter: most bad candidates are bad from the start. Those of the
/// planned duration share half, and all that may follow share the last quarter.
#[must_use]
pub fn log_weight(from: i64, to: i64) -> f64 {
    (weight_up_to(to) - weight_up_to(from - 1)).ln()
}

fn weight_up_to(moment: i64) -> f64 {
    if moment < 0 {
        return 0.0;
    }
    let later = real((moment - MOMENTS).max(0));
    0.25 + 0.5 * real(moment.min(MOMENTS)) / real(MOMENTS) + 0.25 * later / (later + 1.0)
}

/// What one window adds to the scores of the comparison.
///
/// Given all bad events of a window, each is the candidate's with a chance `q(r) = r·n / (r·n + m)`
/// where the candidate had `n` calls, the stable revision `m`, and `r` is the ratio of their rates.
/// Conditioning on the sum cancels whatever hits both at once. The scores are log likelihood ratios
/// of larger ratios against [`MARGIN`].
#[must_use]
pub fn compare(bad: i64, total: i64, stable_bad: i64, stable_total: i64) -> [f64; RATIOS] {
    let mut scores = [0.0; RATIOS];
    if total <= 0 || stable_total <= 0 || bad + stable_bad <= 0 {
        return scores;
    }
    let (n, m) = (real(total), real(stable_total));
    let share = |ratio: f64| ratio * n / (ratio * n + m);
    let null = share(MARGIN);
    for (score, ratio) in scores.iter_mut().zip(RATIO_GRID) {
        let other = share(ratio);
        *score = real(bad) * (other / null).ln() + real(stable_bad) * ((1.0 - other) / (1.0 - null)).ln();
    }
    scores
}

/// Log of the average of what logarithms stand for.
#[must_use]
pub fn log_mean_exp(scores: &[f64]) -> f64 {
    log_sum_exp(scores) - size(scores.len()).ln()
}

/// Adds the weight of moments that have come to scores.
pub fn begin(scores: &mut [f64], log_weight: f64) {
    for score in scores {
        *score = kept(log_sum_exp(&[*score, log_weight]));
    }
}

/// A score as it is kept: so few digits survive JSON exactly, in every parser.
#[must_use]
pub fn kept(score: f64) -> f64 {
    (score.clamp(NO_EVIDENCE, -NO_EVIDENCE) * 1e9).round() / 1e9
}

/// `ln Σ exp(x)`, without overflow. Terms that could change nothing are left out.
#[must_use]
pub fn log_sum_exp(terms: &[f64]) -> f64 {
    let most = terms.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if most == f64::NEG_INFINITY {
        return most;
    }
    most + terms.iter().filter(|t| **t > most - 40.0).map(|t| (t - most).exp()).sum::<f64>().ln()
}

/// A small number of things as a real number.
pub(super) fn size(number: usize) -> f64 {
    real(i64::try_from(number).unwrap_or(i64::MAX))
}

/// A count as a real number. Exact below 2^53, which is more calls than anybody makes.
#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
pub(super) fn real(count: i64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evidence_of_nothing_is_nothing() {
        let test = LimitTest::new(0.001, 0.01, 0.05);
        assert!(test.breach(0, 0).abs() < 1e-12);
        assert!(test.pass(0, 0).abs() < 1e-12);
        assert!(log_mean_exp(&compare(0, 0, 0, 0)).abs() < 1e-12);
    }

    /// The expected factor of one call is at most 1 for every rate within the null hypothesis, for
    /// each rate of the grid: this is what makes the test valid.
    #[test]
    fn each_ratio_is_a_supermartingale() {
        for limit in [1e-4, 0.001, 0.01, 0.05, 0.5, 0.9] {
            let test = LimitTest::new(limit, 0.01, 0.05);
            for i in 0..GRID {
                for part in [0.0, 0.25, 0.5, 0.9, 1.0] {
                    let expected =
                        |grid: &Grid, rate: f64| rate * grid.bad[i].exp() + (1.0 - rate) * grid.good[i].exp();
                    assert!(expected(&test.above, limit * part) <= 1.0 + 1e-12, "above {limit} {part}");
                    let rate = 1.0 - (1.0 - limit) * part;
                    assert!(expected(&test.below, rate) <= 1.0 + 1e-12, "below {limit} {part}");
                }
            }
        }
    }

    #[test]
    fn the_weights_of_all_moments_are_at_most_one() {
        let each: f64 = (0..100_000).map(|k| log_weight(k, k).exp()).sum();
        let all = log_weight(0, 99_999).exp();
        assert!(each <= 1.0 && each > 0.999, "{each}");
        assert!((each - all).abs() < 1e-9, "{each} {all}");
        assert!((log_weight(0, 0).exp() - 0.25).abs() < 1e-12);
    }

    /// The recursion is the sum over all moments.
    #[test]
    fn the_recursion_adds_up_what_each_moment_saw() {
        let test = LimitTest::new(0.01, 0.01, 0.05);
        let windows = [(0, 50), (1, 40), (3, 60), (0, 10), (5, 30)];
        let mut scores = [NO_EVIDENCE; GRID];
        for (k, (bad, total)) in windows.iter().enumerate() {
            let k = i64::try_from(k).unwrap();
            begin(&mut scores, log_weight(k, k));
            test.follow(&mut scores, *bad, *total);
        }
        let each: Vec<f64> = (0..windows.len())
            .map(|k| {
                let bad = windows[k..].iter().map(|w| w.0).sum();
                let total = windows[k..].iter().map(|w| w.1).sum();
                let k = i64::try_from(k).unwrap();
                log_weight(k, k) + test.breach(bad, total)
            })
            .collect();
        assert!((log_mean_exp(&scores) - log_sum_exp(&each)).abs() < 1e-6);
    }

    #[test]
    fn error_free_calls_that_pass() {
        let needed = |limit| LimitTest::new(limit, 0.01, 0.05).good_calls_to_pass(0, 0);
        assert!((3000..4000).contains(&needed(0.001)), "{}", needed(0.001));
        assert!((300..400).contains(&needed(0.01)), "{}", needed(0.01));
        assert!((55..80).contains(&needed(0.05)), "{}", needed(0.05));
    }

    #[test]
    fn an_exact_number_is_found() {
        let test = LimitTest::new(0.01, 0.01, 0.05);
        for bad in [0, 1, 5] {
            let more = test.good_calls_to_pass(bad, 50 + bad);
            assert!(test.pass(bad, 50 + bad + more) >= test.pass_at);
            assert!(test.pass(bad, 50 + bad + more - 1) < test.pass_at);
        }
    }

    #[test]
    fn a_rate_at_the_limit_is_never_decided() {
        let test = LimitTest::new(0.001, 0.01, 0.05);
        assert_eq!(test.calls_to_decide(0.001), None);
        let worse = test.calls_to_decide(0.005).unwrap();
        assert!((500..2500).contains(&worse), "{worse}");
        assert!(test.calls_to_decide(0.05).unwrap() < 100);
    }

    #[test]
    fn the_comparison_sees_a_worse_candidate_and_no_other() {
        // 10% of the calls, 60% of the errors.
        assert!(log_mean_exp(&compare(60, 1000, 40, 9000)) > 30.0);
        // Its share, or less.
        assert!(log_mean_exp(&compare(10, 1000, 90, 9000)) < 0.0);
        assert!(log_mean_exp(&compare(0, 1000, 90, 9000)) < 0.0);
        // Everything fails on both sides.
        assert!(log_mean_exp(&compare(1000, 1000, 9000, 9000)) < 0.0);
        // Nobody to compare with.
        assert!(log_mean_exp(&compare(50, 1000, 0, 0)).abs() < 1e-12);
    }

    #[test]
    fn huge_counts_stay_finite() {
        let test = LimitTest::new(0.001, 1e-6, 0.05);
        let million_million = 1_000_000_000_000;
        assert!(test.breach(million_million, million_million).is_finite());
        assert!(test.pass(million_million, million_million).is_finite());
        assert!(test.breach(0, million_million) < -1e6);
    }
}
