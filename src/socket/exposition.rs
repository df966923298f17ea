//! A page of metrics in Prometheus' text format
//! (<https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>). Knows no metric.

use std::fmt::Write as _;

use crate::traffic::Histogram;

/// The page so far: one family after the other.
#[derive(Debug, Default)]
pub(super) struct Page(String);

impl Page {
    /// The finished page.
    pub(super) fn into_text(self) -> String {
        self.0
    }

    /// Begins a family of samples.
    pub(super) fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing into a String cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// A sample of the family that was begun.
    pub(super) fn sample(
        &mut self,
        name: &str,
        labels: &[(&str, &str)],
        value: impl std::fmt::Display,
    ) {
        let escaped =
            |text: &str| text.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
        let labels: Vec<String> =
            labels.iter().map(|(label, text)| format!("{label}=\"{}\"", escaped(text))).collect();
        let labels =
            if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(self.0, "{name}{labels} {value}");
    }

    /// A family with one sample.
    pub(super) fn one(
        &mut self,
        name: &str,
        kind: &str,
        help: &str,
        value: impl std::fmt::Display,
    ) {
        self.family(name, kind, help);
        self.sample(name, &[], value);
    }

    /// A family with one sample, where there is a value.
    pub(super) fn maybe(
        &mut self,
        name: &str,
        kind: &str,
        help: &str,
        value: Option<impl std::fmt::Display>,
    ) {
        if let Some(value) = value {
            self.one(name, kind, help, value);
        }
    }

    /// A histogram.
    pub(super) fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.family(name, "histogram", help);
        let bucket = format!("{name}_bucket");
        for (bound, count) in histogram.cumulative() {
            self.sample(&bucket, &[("le", &bound.to_string())], count);
        }
        self.sample(&bucket, &[("le", "+Inf")], histogram.count());
        self.sample(&format!("{name}_sum"), &[], histogram.sum());
        self.sample(&format!("{name}_count"), &[], histogram.count());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped() {
        let mut page = Page::default();
        page.sample("m", &[("a", "x\"\\\n")], 1);
        assert_eq!(page.into_text(), "m{a=\"x\\\"\\\\\\n\"} 1\n");
    }

    #[test]
    fn a_histogram() {
        let mut histogram = Histogram::default();
        for seconds in [0.002, 700.0] {
            histogram.observe(seconds);
        }
        let mut page = Page::default();
        page.histogram("h", "Help.", &histogram);
        let text = page.into_text();
        for line in [
            "# TYPE h histogram",
            "h_bucket{le=\"0.001\"} 0",
            "h_bucket{le=\"0.0025\"} 1",
            "h_bucket{le=\"120\"} 1",
            "h_bucket{le=\"+Inf\"} 2",
            "h_sum 700.002",
            "h_count 2",
        ] {
            assert!(text.lines().any(|there| there == line), "{line}\n{text}");
        }
    }
}
