//! `slate image diff`: what one version has that another has not.

use std::collections::BTreeSet;

use image::boot::BootFiles;
use image::diff::{self, Aspect, Change, What};
use image::packages::{Packages, packages};
use image::{Digest, Kind, Store, StoredTree};
use owo_colors::OwoColorize as _;
use serde_json::{Value, json};

use super::image::resolve;
use crate::args::OutputArgs;
use crate::failure::Outcome;
use crate::render;

/// Paths shown unless all are asked for.
const SHOWN: usize = 40;

/// What a comparison found.
struct Report {
    versions: [Digest; 2],
    kernels: [Option<String>; 2],
    /// The sizes of all files, in bytes.
    bytes: [u64; 2],
    packages: Vec<(String, Option<String>, Option<String>)>,
    changes: Vec<Change>,
}

/// Compares two versions.
pub(super) fn run(
    store: &Store,
    before: &str,
    after: &str,
    all: bool,
    output: OutputArgs,
) -> Outcome {
    let report = Report::between(store, before, after)?;
    if output.json {
        return render::json(&report.json());
    }
    anstream::print!("{}", report.text(all));
    Ok(())
}

/// What differs, without the files' names.
pub(super) fn summary(store: &Store, before: &str, after: &str) -> Outcome<String> {
    let report = Report::between(store, before, after)?;
    Ok(
        report.kernel_text()
            + &report.size_text()
            + &report.packages_text()
            + &report.totals_text(),
    )
}

impl Report {
    fn between(store: &Store, before: &str, after: &str) -> Outcome<Report> {
        let open =
            |image: &str| -> Outcome<StoredTree> { Ok(store.open_tree(resolve(store, image)?)?) };
        let (before, after) = (&open(before)?, &open(after)?);
        let kernel = |tree: &StoredTree| BootFiles::of(tree).ok().map(|it| it.kernel.version);
        Ok(Report {
            versions: [before.digest(), after.digest()],
            kernels: [kernel(before), kernel(after)],
            bytes: [before.totals()?.bytes, after.totals()?.bytes],
            packages: changed_packages(&packages(before)?, &packages(after)?),
            changes: diff::diff(before, after)?,
        })
    }

    fn json(&self) -> Value {
        let package = |(name, before, after): &(String, Option<String>, Option<String>)| json!({ "name": name, "before": before, "after": after });
        json!({
            "before": self.versions[0].to_string(),
            "after": self.versions[1].to_string(),
            "kernel": { "before": self.kernels[0], "after": self.kernels[1] },
            "bytes": { "before": self.bytes[0], "after": self.bytes[1] },
            "packages": self.packages.iter().map(package).collect::<Vec<_>>(),
            "files": self.changes.iter().map(change_json).collect::<Vec<_>>(),
        })
    }

    fn text(&self, all: bool) -> String {
        let [before, after] = &self.versions;
        let mut text = format!("{} -> {}\n", before.short(), after.short());
        if self.changes.is_empty() {
            return text + "No difference.\n";
        }
        text += &self.kernel_text();
        text += &self.size_text();
        text += &self.packages_text();
        text + &self.files_text(all)
    }

    fn kernel_text(&self) -> String {
        let shown = |kernel: &Option<String>| kernel.clone().unwrap_or_else(|| "none".into());
        match &self.kernels {
            [before, after] if before == after => format!("Kernel    {} in both\n", shown(before)),
            [before, after] => format!("Kernel    {} -> {}\n", shown(before), shown(after)),
        }
    }

    fn size_text(&self) -> String {
        let [before, after] = self.bytes;
        let differ = render::bytes(before.abs_diff(after));
        let sign = if after < before { '-' } else { '+' };
        let [before, after] = [before, after].map(render::bytes);
        format!("Size      {before} -> {after} ({sign}{differ})\n")
    }

    fn packages_text(&self) -> String {
        if self.packages.is_empty() {
            return String::new();
        }
        let count = |wanted: fn(&Option<String>, &Option<String>) -> bool| {
            let those = self.packages.iter().filter(|it| wanted(&it.1, &it.2));
            those.count()
        };
        let mut text = format!(
            "Packages  {} changed, {} added, {} removed\n",
            count(|before, after| before.is_some() && after.is_some()),
            count(|before, _| before.is_none()),
            count(|_, after| after.is_none()),
        );
        for (name, before, after) in &self.packages {
            text += &match (before, after) {
                (Some(before), Some(after)) => format!("  {name}  {before} -> {after}\n"),
                (None, Some(after)) => format!("  {} {name}  {after}\n", "+".green()),
                (Some(before), _) => format!("  {} {name}  {before}\n", "-".red()),
                (None, None) => String::new(),
            };
        }
        text
    }

    fn totals_text(&self) -> String {
        let of = |wanted: fn(&What) -> bool| {
            let those = self.changes.iter().filter(move |it| wanted(&it.what));
            those.fold((0, 0), |(count, bytes), it| {
                (count + 1, bytes + it.bytes.max(it.bytes_before))
            })
        };
        let (added, added_bytes) = of(|it| *it == What::Added);
        let (removed, removed_bytes) = of(|it| *it == What::Removed);
        let times = self.changes.iter().filter(|it| it.is_time_only()).count();
        let changed = self.changes.len() - times - added - removed;
        format!(
            "Files     {added} added ({}), {removed} removed ({}), {changed} changed, {} with another \
             time only\n",
            render::bytes(added_bytes),
            render::bytes(removed_bytes),
            times
        )
    }

    fn files_text(&self, all: bool) -> String {
        let mut text = self.totals_text();
        let others: Vec<&Change> = self
            .changes
            .iter()
            .filter(|it| !it.is_time_only())
            .collect();
        let shown: Vec<&Change> = if all {
            self.changes.iter().collect()
        } else {
            others.iter().copied().take(SHOWN).collect()
        };
        for change in &shown {
            text += &change_text(change);
        }
        if !all && others.len() > shown.len() {
            text += &format!("  and {} more: --all\n", others.len() - shown.len());
        }
        text
    }
}

/// Those with another version in one of the two, or in one of the two only, by name.
fn changed_packages(
    before: &Packages,
    after: &Packages,
) -> Vec<(String, Option<String>, Option<String>)> {
    let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let rows = names.into_iter().map(|name| {
        let (before, after) = (before.get(name).cloned(), after.get(name).cloned());
        (name.clone(), before, after)
    });
    rows.filter(|(_, before, after)| before != after).collect()
}

fn change_text(change: &Change) -> String {
    let slash = if change.kind == Kind::Directory && !change.path.is_empty() {
        "/"
    } else {
        ""
    };
    let path = format!("/{}{slash}", String::from_utf8_lossy(&change.path));
    let size = if change.kind == Kind::File {
        render::bytes(change.bytes.max(change.bytes_before))
    } else {
        String::new()
    };
    let line = match &change.what {
        What::Added => format!("  {} {path}  {size}", "+".green()),
        What::Removed => format!("  {} {path}  {size}", "-".red()),
        What::Changed(aspects) => {
            format!("  {} {path}  {}", "~".yellow(), names(aspects).join(", "))
        }
    };
    line.trim_end().to_owned() + "\n"
}

fn names(aspects: &[Aspect]) -> Vec<&'static str> {
    aspects.iter().map(|it| it.name()).collect()
}

fn change_json(change: &Change) -> Value {
    let (what, aspects) = match &change.what {
        What::Added => ("added", Vec::new()),
        What::Removed => ("removed", Vec::new()),
        What::Changed(aspects) => ("changed", names(aspects)),
    };
    json!({
        "path": format!("/{}", String::from_utf8_lossy(&change.path)),
        "what": what,
        "aspects": aspects,
        "bytes_before": change.bytes_before,
        "bytes": change.bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_that_differ_are_told_with_both_versions() {
        let packages = |list: &[(&str, &str)]| -> Packages {
            let pairs = list.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned()));
            pairs.collect()
        };
        let before = packages(&[("a", "1"), ("b", "1"), ("c", "1")]);
        let after = packages(&[("b", "2"), ("c", "1"), ("d", "1")]);
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(
            changed_packages(&before, &after),
            [
                ("a".to_owned(), some("1"), None),
                ("b".to_owned(), some("1"), some("2")),
                ("d".to_owned(), None, some("1")),
            ]
        );
    }
}
