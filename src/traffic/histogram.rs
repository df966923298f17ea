//! Counts durations by their size, as Prometheus' histograms have it.

/// Upper bounds of the buckets in seconds; a last one without a bound follows. From one token on a fast machine to a long
/// answer on a slow one, each about two and a half times the one before, which is as exact as anybody's question.
const BOUNDS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 120.0];

/// How many durations were how long.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram {
    /// Durations by the bounds, each counted in the first bucket that has room for it.
    buckets: [u64; BOUNDS.len()],
    /// All durations.
    count: u64,
    /// Their sum in seconds.
    sum: f64,
}

impl Histogram {
    /// Counts one, in seconds.
    pub fn observe(&mut self, seconds: f64) {
        let bucket = BOUNDS.iter().position(|bound| seconds <= *bound);
        if let Some(count) = bucket.and_then(|at| self.buckets.get_mut(at)) {
            *count += 1;
        }
        self.count += 1;
        self.sum += seconds;
    }

    /// The bounds, each with the number of durations that are no longer.
    pub fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> {
        BOUNDS.into_iter().zip(self.buckets).scan(0, |below, (bound, count)| {
            *below += count;
            Some((bound, *below))
        })
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Their sum in seconds.
    pub fn sum(&self) -> f64 {
        self.sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_in_every_bucket_that_is_large_enough() {
        let mut histogram = Histogram::default();
        for seconds in [0.0, 0.001, 0.3, 500.0] {
            histogram.observe(seconds);
        }
        let at = |bound: f64| histogram.cumulative().find(|(b, _)| *b >= bound).unwrap().1;
        assert_eq!((at(0.001), at(0.25), at(0.5), at(120.0)), (2, 2, 3, 3));
        assert_eq!(histogram.count(), 4);
        assert!((histogram.sum() - 500.301).abs() < 1e-9);
        assert!(BOUNDS.windows(2).all(|pair| pair[0] < pair[1]));
    }
}
