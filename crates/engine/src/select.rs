//! Lists of nodes: `node1`, `n[001-600]`, `@group`, MACs and addresses, joined by commas.

use std::collections::BTreeSet;

use wire::mac::Mac;

use crate::command::{CommandError, CommandReply};
use crate::commands::cut;
use crate::group::ALL;
use crate::record::Node;
use crate::{Engine, MAX_NODES};

impl Engine {
    pub(crate) fn select_nodes(&self, list: &str) -> Result<CommandReply, CommandError> {
        let macs = self.select(list)?;
        let nodes = self.nodes_by_name().into_iter();
        let selected = nodes.filter(|node| macs.contains(&node.mac));
        Ok(CommandReply::Selected(
            selected.map(|node| self.view(node)).collect(),
        ))
    }

    /// The nodes that a list means; each part must mean one at least.
    pub(crate) fn select(&self, list: &str) -> Result<BTreeSet<Mac>, CommandError> {
        let names = expand(list).map_err(|cause| CommandError::BadNodes {
            got: cut(list),
            cause,
        })?;
        let mut macs = BTreeSet::new();
        for name in names {
            match name.strip_prefix('@') {
                Some(group) => macs.extend(self.members(group)?),
                None => {
                    let known = self
                        .find(&name)
                        .ok()
                        .filter(|mac| self.nodes.contains_key(mac));
                    let unknown = || CommandError::UnknownNode { got: cut(&name) };
                    macs.insert(known.ok_or_else(unknown)?);
                }
            }
        }
        Ok(macs)
    }

    fn members(&self, group: &str) -> Result<Vec<Mac>, CommandError> {
        if group != ALL && !self.groups.contains_key(group) {
            return Err(CommandError::UnknownGroup { got: cut(group) });
        }
        let is_member = |node: &&Node| group == ALL || node.groups.iter().any(|it| it == group);
        let members = self.nodes.values().filter(is_member);
        Ok(members.map(|node| node.mac).collect())
    }
}

/// The names in a list: `a,n[01-03,7]` is `a`, `n01`, `n02`, `n03` and `n7`.
fn expand(list: &str) -> Result<Vec<String>, String> {
    let mut names = Vec::new();
    for part in parts(list)? {
        let mut made = vec![String::new()];
        let mut rest = part;
        while let Some((text, after)) = rest.split_once('[') {
            let (ranges, after) = after.split_once(']').ok_or("a [ without its ]")?;
            let numbers = numbers(ranges)?;
            if made.len() * numbers.len() + names.len() > MAX_NODES {
                return Err(format!("more than {MAX_NODES} names"));
            }
            made = made
                .iter()
                .flat_map(|head| numbers.iter().map(move |it| format!("{head}{text}{it}")))
                .collect();
            rest = after;
        }
        names.extend(made.into_iter().map(|head| head + rest));
    }
    Ok(names)
}

/// Splits at commas outside of brackets.
fn parts(list: &str) -> Result<Vec<&str>, String> {
    let mut inside = false;
    let parts = list.split(|it: char| {
        inside = (inside || it == '[') && it != ']';
        it == ',' && !inside
    });
    let parts: Vec<&str> = parts.map(str::trim).collect();
    match parts.iter().any(|part| part.is_empty()) {
        true => Err("nothing stands before or after a comma".into()),
        false => Ok(parts),
    }
}

/// `01-03,7` as the numbers' texts; leading zeros say how many digits all have.
fn numbers(ranges: &str) -> Result<Vec<String>, String> {
    let mut numbers = Vec::new();
    for range in ranges.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let number = |text: &str| {
            let digits = text.bytes().all(|it| it.is_ascii_digit()) && text.len() <= 9;
            let parsed = digits.then(|| text.parse::<u32>().ok()).flatten();
            parsed.ok_or_else(|| format!("{range:?} is no range of numbers such as 1-5"))
        };
        let (begin, end) = (number(first)?, number(last)?);
        if begin > end {
            return Err(format!("{range:?} ends before it begins"));
        }
        if (end - begin) as usize >= MAX_NODES {
            return Err(format!("more than {MAX_NODES} names"));
        }
        let width = first.len();
        numbers.extend((begin..=end).map(|it| format!("{it:0width$}")));
    }
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_expanded() {
        let expand = |list: &str| expand(list).map(|it| it.join(" "));
        for (list, names) in [
            ("node1", "node1"),
            ("a, b", "a b"),
            ("n[001-003]", "n001 n002 n003"),
            ("n[8-11,20]", "n8 n9 n10 n11 n20"),
            (
                "r[1-2]n[1-2]-eth,@gpu",
                "r1n1-eth r1n2-eth r2n1-eth r2n2-eth @gpu",
            ),
            ("52:54:00:00:00:01", "52:54:00:00:00:01"),
        ] {
            assert_eq!(expand(list).as_deref(), Ok(names), "{list}");
        }
        for list in [
            "",
            "a,",
            "n[1-3",
            "n[3-1]",
            "n[a-b]",
            "n[1-]",
            "n[]",
            "n[-1]",
            "n[0-99999999]",
            "n[1-999]n[1-999]",
            "n[4294967296]",
        ] {
            assert!(expand(list).is_err(), "{list}");
        }
    }
}
