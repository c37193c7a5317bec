//! What a benchmark prints: rows with a ratio, and the conditions that they hold under.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

/// One benchmark's result.
pub struct Report {
    /// The benchmark.
    pub name: &'static str,
    /// What was measured on, as name and value.
    pub conditions: Vec<(&'static str, String)>,
    /// The figures.
    pub rows: Vec<Row>,
}

/// Which of two figures is the better one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// The lower one: times, sizes, costs.
    Lower,
    /// The higher one: rates.
    Higher,
}

/// One figure.
pub struct Row {
    /// Its name, as the documentation uses it.
    pub name: &'static str,
    /// Its unit.
    pub unit: &'static str,
    /// Which way is better.
    pub better: Better,
    /// The median of our runs.
    pub ours: f64,
    /// The peer's name and the median of its runs; `None` where only we are measured.
    pub peer: Option<(&'static str, f64)>,
}

impl Row {
    /// How many times better we are: above 1, Cleanslate is ahead.
    fn ratio(&self) -> Option<f64> {
        self.peer.map(|(_, theirs)| match self.better {
            Better::Lower => theirs / self.ours,
            Better::Higher => self.ours / theirs,
        })
    }

    fn as_json(&self) -> Value {
        json!({
            "name": self.name,
            "unit": self.unit,
            "better": match self.better {
                Better::Lower => "lower",
                Better::Higher => "higher",
            },
            "ours": self.ours,
            "peer": self.peer.map(|(name, _)| name),
            "theirs": self.peer.map(|(_, theirs)| theirs),
            "ratio": self.ratio(),
        })
    }
}

impl Report {
    /// The document that `--json` prints.
    pub fn as_json(&self) -> Value {
        let conditions: Map<String, Value> = self
            .conditions
            .iter()
            .map(|(name, value)| ((*name).to_owned(), json!(value)))
            .collect();
        let rows: Vec<Value> = self.rows.iter().map(Row::as_json).collect();
        json!({ "bench": self.name, "conditions": conditions, "rows": rows })
    }

    /// The same for people.
    pub fn as_table(&self) -> String {
        let mut out = String::new();
        for (name, value) in &self.conditions {
            let _ = writeln!(out, "{name}: {value}");
        }
        let _ = writeln!(
            out,
            "\n{:<20} {:>14} {:>14} {:>7}",
            "", "ours", "theirs", "ratio"
        );
        for row in &self.rows {
            let theirs = row.peer.map(|(_, theirs)| number(theirs));
            let ratio = row.ratio().map(|ratio| format!("{ratio:.2}x"));
            let _ = writeln!(
                out,
                "{:<20} {:>14} {:>14} {:>7}  {}",
                row.name,
                number(row.ours),
                theirs.unwrap_or_default(),
                ratio.unwrap_or_default(),
                row.unit,
            );
        }
        out
    }
}

fn number(value: f64) -> String {
    if value.fract() == 0.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.2}")
    }
}

/// The middle of a list, or the mean of its two middle values.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(Vec::new()).is_nan());
    }

    #[test]
    fn a_ratio_above_one_means_that_we_are_ahead() {
        let row = Row {
            name: "total",
            unit: "s",
            better: Better::Lower,
            ours: 40.0,
            peer: Some(("theirs", 80.0)),
        };
        assert_eq!(row.ratio(), Some(2.0));
        let rate = Row {
            better: Better::Higher,
            ..row
        };
        assert_eq!(rate.ratio(), Some(0.5));
        assert_eq!(rate.as_json()["better"], "higher");
        let alone = Row { peer: None, ..rate };
        assert_eq!(alone.as_json()["ratio"], Value::Null);
    }
}
