//! The few places where v1 and v2 mean different things by the same limit.

use crate::limit::Limit;

/// What v1 shows for "no limit": the largest number of pages, in bytes.
fn v1_unlimited() -> u64 {
    let page = page_size();
    i64::MAX.unsigned_abs() / page * page
}

pub(crate) fn page_size() -> u64 {
    u64::try_from(rustix::param::page_size()).unwrap_or(4096)
}

/// The largest number of bytes that the kernel's page counters hold, and less than "no limit".
pub(crate) fn most_bytes() -> u64 {
    v1_unlimited() - page_size()
}

/// A v1 byte limit as read.
pub(crate) fn from_v1_bytes(bytes: u64) -> Limit {
    if bytes >= v1_unlimited() { Limit::Max } else { Limit::Value(bytes) }
}

/// A byte limit as v1 takes it.
pub(crate) fn to_v1_bytes(limit: Limit) -> String {
    match limit {
        Limit::Max => "-1".to_owned(),
        Limit::Value(bytes) => bytes.to_string(),
    }
}

/// v1 limits memory and swap *together*, v2 swap alone.
pub(crate) fn swap_from_v1(memory: Limit, together: Limit) -> Limit {
    match (memory, together) {
        (Limit::Value(memory), Limit::Value(together)) => Limit::Value(together.saturating_sub(memory)),
        _ => Limit::Max,
    }
}

/// The v1 sum for a memory and a swap limit; `None` when v1 cannot say it: swap bounded and memory not.
pub(crate) fn together_for_v1(memory: Limit, swap: Limit) -> Option<Limit> {
    match (memory, swap) {
        (_, Limit::Max) => Some(Limit::Max),
        (Limit::Value(memory), Limit::Value(swap)) => {
            let sum = memory.saturating_add(swap);
            Some(if sum > most_bytes() { Limit::Max } else { Limit::Value(sum) })
        }
        (Limit::Max, Limit::Value(_)) => None,
    }
}

/// v1 `cpu.shares` (2 to 262144, default 1024) as a v2 weight (1 to 10000, default 100).
///
/// The quadratic fit that container runtimes have agreed on since 2025: it keeps both ends *and* maps the default to the
/// default, where the older linear one made 39 of 1024.
pub(crate) fn weight_from_shares(shares: u64) -> u32 {
    if shares <= 2 {
        return 1;
    }
    if shares >= 262_144 {
        return 10_000;
    }
    #[expect(clippy::cast_precision_loss, reason = "at most 18 bits")]
    let l = (shares as f64).log2();
    let exact = 10f64.powf((l * l + 125.0 * l) / 612.0 - 7.0 / 34.0);
    // Ceiling, but not of the rounding error of an exact power.
    whole((exact - 1e-9 * exact).ceil())
}

/// The v1 shares of which [`weight_from_shares`] makes this weight, or the nearest.
pub(crate) fn shares_from_weight(weight: u32) -> u64 {
    let weight = weight.clamp(1, 10_000);
    let l = ((15_625.0 + 2_448.0 * (f64::from(weight).log10() + 7.0 / 34.0)).sqrt() - 125.0) / 2.0;
    let exact = u64::from(whole(l.exp2().round()));
    // The ceiling can push the result of the nearest whole number of shares one weight up.
    let fits = |shares: &u64| weight_from_shares(*shares) == weight;
    [exact, exact.saturating_sub(1), exact + 1].into_iter().find(fits).unwrap_or(exact).clamp(2, 262_144)
}

fn whole(value: f64) -> u32 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 1 and 262144; saturates")]
    let whole = value as u32;
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_and_weight() {
        for (shares, weight) in
            [(0, 1), (2, 1), (1024, 100), (2000, 170), (22_000, 1204), (262_144, 10_000), (u64::MAX, 10_000)]
        {
            assert_eq!(weight_from_shares(shares), weight, "{shares}");
        }
        for (weight, shares) in [(1, 2), (100, 1024), (10_000, 262_144)] {
            assert_eq!(shares_from_weight(weight), shares, "{weight}");
        }
    }

    #[test]
    fn every_weight_keeps_its_order_and_comes_back_within_one_step() {
        let mut before = 0;
        for weight in 1..=10_000u32 {
            let shares = shares_from_weight(weight);
            assert!(shares >= before, "{weight}");
            before = shares;
            let back = weight_from_shares(shares);
            // Low weights are coarser than shares only below 10.
            assert!(back.abs_diff(weight) <= 1, "{weight} → {shares} → {back}");
        }
    }

    #[test]
    fn swap_is_the_difference_on_v1() {
        let (m, s) = (Limit::Value(100), Limit::Value(20));
        assert_eq!(together_for_v1(m, s), Some(Limit::Value(120)));
        assert_eq!(swap_from_v1(m, Limit::Value(120)), s);
        assert_eq!(together_for_v1(m, Limit::Max), Some(Limit::Max));
        assert_eq!(together_for_v1(Limit::Max, s), None);
        assert_eq!(together_for_v1(Limit::Max, Limit::Max), Some(Limit::Max));
        assert_eq!(swap_from_v1(Limit::Max, Limit::Max), Limit::Max);
        assert_eq!(together_for_v1(m, Limit::Value(u64::MAX)), Some(Limit::Max));
    }

    #[test]
    fn v1_unlimited_is_max() {
        assert_eq!(from_v1_bytes(9_223_372_036_854_771_712), Limit::Max);
        assert_eq!(from_v1_bytes(u64::MAX), Limit::Max);
        assert_eq!(from_v1_bytes(4096), Limit::Value(4096));
    }
}
