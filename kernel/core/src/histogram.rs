//! A histogram of times whose steps grow with the times: each power of two has [`STEPS`] steps of
//! equal width, so that a value is known to an eighth of itself, whether it is small or large.

use alloc::vec::Vec;
use core::ops::RangeInclusive;

/// Steps of a power of two.
const STEPS: u64 = 8;
/// Values from 2 to the power of this one on are counted together.
const MOST_BITS: u32 = 40;
/// Steps in all. The first two powers share theirs: a step is at least 1 wide.
const COUNT: usize = (STEPS as usize) * (MOST_BITS as usize - 2);

/// A histogram.
#[derive(Debug, Clone)]
pub struct Histogram {
    counts: Vec<u32>,
    /// Their sum.
    pub total: u64,
    /// The largest one.
    pub longest: u64,
}

/// Returns the step that a value belongs to.
#[inline]
fn step(value: u64) -> usize {
    let shift = (u64::BITS - value.leading_zeros()).saturating_sub(STEPS.trailing_zeros() + 1);
    // The first part is at most 61 times 8, the second at most 15.
    u64::from(shift).wrapping_mul(STEPS).wrapping_add(value >> shift).min(COUNT as u64 - 1) as usize
}

/// Returns the values that belong to a step. The last step has all larger values as well.
fn values(step: usize) -> RangeInclusive<u64> {
    let step = step as u64;
    let shift = (step / STEPS).saturating_sub(1);
    let first = (step - shift * STEPS) << shift;
    first..=first + (1 << shift) - 1
}

impl Histogram {
    /// Returns a histogram without values; `None` if there is no memory for it.
    pub fn new() -> Option<Histogram> {
        let mut counts = Vec::new();
        counts.try_reserve_exact(COUNT).ok()?;
        counts.resize(COUNT, 0);
        Some(Histogram { counts, total: 0, longest: 0 })
    }

    /// Returns how many values there are.
    pub fn count(&self) -> u64 {
        self.counts.iter().map(|count| u64::from(*count)).sum()
    }

    /// Adds a value.
    #[inline]
    pub fn add(&mut self, value: u64) {
        if let Some(count) = self.counts.get_mut(step(value)) {
            *count = count.wrapping_add(1);
        }
        self.total = self.total.wrapping_add(value);
        self.longest = self.longest.max(value);
    }

    /// Returns the steps that have values, in order: the values that belong to each, and how many
    /// there are.
    pub fn steps(&self) -> impl Iterator<Item = (RangeInclusive<u64>, u32)> {
        let used = self.counts.iter().enumerate().filter(|(_, count)| **count > 0);
        used.map(|(step, count)| (values(step), *count))
    }

    /// Returns the whole of the histogram in at most `most` rows of neighbouring steps, from the
    /// first step that has values to the last.
    pub fn rows(&self, most: usize) -> Vec<(RangeInclusive<u64>, u64)> {
        let has = |count: &u32| *count > 0;
        let Some(first) = self.counts.iter().position(has) else { return Vec::new() };
        let end = self.counts.iter().rposition(has).map_or(first, |last| last + 1);
        let used = self.counts.get(first..end).unwrap_or_default();
        let width = used.len().div_ceil(most.max(1));
        let rows = used.chunks(width).zip((first..end).step_by(width));
        rows.map(|(counts, from)| {
            let range = *values(from).start()..=*values(from + counts.len() - 1).end();
            (range, counts.iter().map(|count| u64::from(*count)).sum())
        })
        .collect()
    }

    /// Returns the value that `percent` percent of all values do not exceed, to the width of a
    /// step; 0 if there are no values.
    pub fn percentile(&self, percent: u64) -> u64 {
        let rank = (self.count() * percent).div_ceil(100).max(1);
        let mut below = 0;
        for (values, count) in self.steps() {
            below += u64::from(count);
            if below >= rank {
                return (*values.end()).min(self.longest);
            }
        }
        self.longest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn each_value_is_in_its_step_and_the_steps_join() {
        for number in 0..COUNT {
            let range = values(number);
            assert_eq!([step(*range.start()), step(*range.end())], [number; 2], "{range:?}");
            assert!(number == 0 || *values(number - 1).end() + 1 == *range.start());
            // A step is at most an eighth of its values wide.
            assert!(range.end() - range.start() <= range.start() / STEPS);
        }
        assert_eq!(step(u64::MAX), COUNT - 1);
        assert_eq!(*values(COUNT - 1).end(), (1 << MOST_BITS) - 1);
    }

    #[test]
    fn a_histogram_without_values_has_no_steps() {
        let none = Histogram::new().unwrap();
        assert_eq!((none.percentile(50), none.steps().count(), none.rows(3).len()), (0, 0, 0));
    }

    proptest! {
        #[test]
        fn percentiles_are_close(mut list in prop::collection::vec(0_u64..1 << 41, 1..200), percent in 1_u64..=100) {
            let mut histogram = Histogram::new().unwrap();
            list.iter().for_each(|value| histogram.add(*value));
            list.sort_unstable();
            let exact = list[(list.len() * percent as usize).div_ceil(100).max(1) - 1];
            let found = histogram.percentile(percent);
            prop_assert!(found >= exact.min(1 << MOST_BITS) - 1 || exact >= 1 << MOST_BITS);
            prop_assert!(exact >= 1 << MOST_BITS || found - exact <= exact / STEPS, "{found} {exact}");
            prop_assert_eq!((histogram.count(), histogram.longest), (list.len() as u64, *list.last().unwrap()));
            let rows = histogram.rows(5);
            prop_assert!(rows.len() <= 5 && rows.windows(2).all(|two| *two[0].0.end() + 1 == *two[1].0.start()));
            prop_assert_eq!(rows.iter().map(|(_, count)| count).sum::<u64>(), histogram.count());
            prop_assert_eq!(histogram.steps().map(|(_, count)| u64::from(count)).sum::<u64>(), histogram.count());
        }
    }
}
