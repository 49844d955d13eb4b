//! Reading what Prometheus would read: the text exposition format 0.0.4.

use std::collections::BTreeMap;

/// Why a text is not an exposition.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct ExpositionError {
    /// From 1.
    pub line: usize,
    /// What is wrong with it.
    pub problem: String,
}

/// One number.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Name; that of the family, or with `_bucket`, `_sum`, `_count` after it.
    pub name: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// The number.
    pub value: f64,
}

/// What was registered under one name.
#[derive(Debug, Clone, PartialEq)]
pub struct Family {
    /// Name.
    pub name: String,
    /// After `# HELP`.
    pub help: String,
    /// After `# TYPE`: counter, gauge or histogram.
    pub kind: String,
    /// In the order of the text.
    pub samples: Vec<Sample>,
}

/// A whole exposition.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Exposition {
    /// In the order of the text.
    pub families: Vec<Family>,
}

impl Exposition {
    /// Reads a text strictly: each family once, HELP, then TYPE, then samples of that family only.
    pub fn parse(text: &str) -> Result<Self, ExpositionError> {
        let mut families: Vec<Family> = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            let wrong =
                |problem: &str| ExpositionError { line: number, problem: format!("{problem}: {line}") };
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').ok_or_else(|| wrong("no help"))?;
                if families.iter().any(|family| family.name == name) {
                    return Err(wrong("family appears twice"));
                }
                let (name, help) = (name.to_owned(), help.to_owned());
                families.push(Family { name, help, kind: String::new(), samples: Vec::new() });
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').ok_or_else(|| wrong("no type"))?;
                let family = families.last_mut().filter(|f| f.name == name && f.kind.is_empty());
                if !matches!(kind, "counter" | "gauge" | "histogram") {
                    return Err(wrong("unknown type"));
                }
                kind.clone_into(&mut family.ok_or_else(|| wrong("TYPE without HELP"))?.kind);
            } else if !line.is_empty() {
                let sample = sample(line).ok_or_else(|| wrong("not a sample"))?;
                let family = families.last_mut().filter(|f| f.owns(&sample.name));
                family.ok_or_else(|| wrong("sample of no family"))?.samples.push(sample);
            }
        }
        Ok(Self { families })
    }

    /// Sum of the samples of this name that carry all these labels.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.matching(name, labels).map(|sample| sample.value).sum()
    }

    /// Samples of this name that carry all these labels.
    pub fn matching<'a>(
        &'a self,
        name: &'a str,
        labels: &'a [(&'a str, &'a str)],
    ) -> impl Iterator<Item = &'a Sample> {
        self.families.iter().flat_map(|family| &family.samples).filter(move |sample| {
            let has = |(label, value): &(&str, &str)| sample.labels.get(*label).is_some_and(|v| v == value);
            sample.name == name && labels.iter().all(has)
        })
    }
}

impl Family {
    fn owns(&self, sample: &str) -> bool {
        match sample.strip_prefix(self.name.as_str()) {
            Some("_bucket" | "_sum" | "_count") => self.kind == "histogram",
            Some("") => self.kind == "counter" || self.kind == "gauge",
            _ => false,
        }
    }
}

fn sample(line: &str) -> Option<Sample> {
    let end = line.find(['{', ' '])?;
    let (name, rest) = line.split_at(end);
    let legal = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    if name.is_empty() || !name.chars().all(legal) {
        return None;
    }
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (BTreeMap::new(), rest),
    };
    let value = match rest.strip_prefix(' ')? {
        "+Inf" => f64::INFINITY,
        "-Inf" => f64::NEG_INFINITY,
        number => number.parse().ok()?,
    };
    Some(Sample { name: name.to_owned(), labels, value })
}

/// What is between the braces, and what comes after them.
fn labels(mut rest: &str) -> Option<(BTreeMap<String, String>, &str)> {
    let mut labels = BTreeMap::new();
    loop {
        if let Some(after) = rest.strip_prefix('}') {
            return Some((labels, after));
        }
        let (name, after) = rest.split_once("=\"")?;
        let mut value = String::new();
        let mut letters = after.char_indices();
        let end = loop {
            match letters.next()? {
                (at, '"') => break at,
                (_, '\\') => value.push(match letters.next()?.1 {
                    'n' => '\n',
                    other => other,
                }),
                (_, letter) => value.push(letter),
            }
        };
        if labels.insert(name.to_owned(), value).is_some() {
            return None;
        }
        rest = after.get(end + 1..)?;
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# HELP calls_total Calls.\n# TYPE calls_total counter\ncalls_total{code=\"OK\",m=\"a \\\"b\\\"\"} 3\n\
        calls_total{code=\"NO\",m=\"c\"} 4\n# HELP t_seconds Time.\n# TYPE t_seconds histogram\n\
        t_seconds_bucket{le=\"+Inf\"} 2\nt_seconds_sum 0.5\nt_seconds_count 2\n";

    #[test]
    fn reads_families_labels_and_numbers() {
        let read = Exposition::parse(TEXT).unwrap();
        assert_eq!(read.families.len(), 2);
        assert_eq!(read.sum("calls_total", &[]), 7.0);
        assert_eq!(read.sum("calls_total", &[("code", "OK")]), 3.0);
        assert_eq!(read.families[0].samples[0].labels["m"], "a \"b\"");
        assert_eq!(read.sum("t_seconds_sum", &[]), 0.5);
    }

    #[test]
    fn what_prometheus_would_not_take_is_refused() {
        for (from, to, problem) in [
            ("# HELP calls_total Calls.\n", "", "TYPE without HELP"),
            ("# TYPE calls_total counter\n", "", "sample of no family"),
            ("counter", "thing", "unknown type"),
            ("t_seconds_sum", "u_seconds_sum", "sample of no family"),
            ("} 3", "} three", "not a sample"),
            ("HELP t_seconds", "HELP calls_total", "family appears twice"),
        ] {
            let error = Exposition::parse(&TEXT.replacen(from, to, 1)).unwrap_err();
            assert!(error.problem.starts_with(problem), "{problem}: {error}");
        }
    }
}
