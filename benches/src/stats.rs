//! Medians and other quantiles of noisy times.

/// The value below which the share `q` (0 to 1) of `values` lies; `None` without values.
#[must_use]
pub fn quantile(values: &[f64], q: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().checked_sub(1)?;
    let (below, above) = (position(q * last as f64, last), position((q * last as f64).ceil(), last));
    let (low, high) = (sorted.get(below)?, sorted.get(above)?);
    let part = q * last as f64 - below as f64;
    Some(low + (high - low) * part)
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a position in a list, clamped to it")]
fn position(at: f64, last: usize) -> usize {
    (at.max(0.0) as usize).min(last)
}

/// The middle value.
#[must_use]
pub fn median(values: &[f64]) -> Option<f64> {
    quantile(values, 0.5)
}

/// The median of the ratios of what was measured in the same round.
///
/// The speed of a shared machine drifts; within a round all rows see nearly the same machine, so this is far steadier than
/// the ratio of two medians.
#[must_use]
pub fn median_ratio(values: &[Option<f64>], base: &[Option<f64>]) -> Option<f64> {
    let ratios: Vec<f64> = values
        .iter()
        .zip(base)
        .filter_map(|(value, base)| Some((*value)? / (*base)?))
        .filter(|ratio| ratio.is_finite())
        .collect();
    median(&ratios)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_the_values() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[4.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(quantile(&[0.0, 10.0], 0.9), Some(9.0));
        assert_eq!(quantile(&[1.0, 2.0], 1.0), Some(2.0));
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        // The second round ran on a machine ten times as slow.
        let (fast, slow) = ([Some(2.0), Some(20.0), None], [Some(1.0), Some(10.0), Some(1.0)]);
        assert_eq!(median_ratio(&fast, &slow), Some(2.0));
        assert_eq!(median_ratio(&[None], &[Some(1.0)]), None);
    }
}
