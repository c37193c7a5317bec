//! Rules on who may depend on whom, checked on cargo's own resolution.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use cargo_metadata::{CargoOpt, DependencyKind, Metadata, MetadataCommand, Package, PackageId};

use crate::workspace::root;

/// Which of our crates each of our crates may import.
const IMPORTS: [(&str, &[&str]); 10] = [
    ("wire", &[]),
    ("engine", &["wire"]),
    ("nfs", &[]),
    ("image", &["wire"]),
    ("init", &["wire"]),
    ("inventory", &["wire"]),
    ("lab", &[]),
    ("daemon", &["wire", "engine", "nfs", "image"]),
    ("cli", &["daemon", "image", "inventory", "lab", "wire"]),
    ("xtask", &["lab"]),
];
/// Crates that stay free of an async runtime.
const WITHOUT_TOKIO: [&str; 4] = ["wire", "engine", "nfs", "init"];
/// C libraries that are compiled from their own sources and linked statically; the rest with a
/// `links` key are names for build scripts without a library.
const LINKED: [&str; 6] = [
    "mimalloc",
    "sqlite3",
    "zstd",
    "rayon-core",
    "prettyplease02",
    "ring_core_0_17_14_",
];

/// Checks the rules on dependencies.
pub fn check() -> anyhow::Result<Vec<(&'static str, Vec<String>)>> {
    let metadata = MetadataCommand::new()
        .current_dir(root())
        .features(CargoOpt::AllFeatures)
        .other_options([
            "--filter-platform".to_owned(),
            "x86_64-unknown-linux-musl".to_owned(),
        ])
        .exec()
        .context("reading cargo metadata")?;
    let graph = Graph::of(&metadata)?;
    Ok(vec![
        (
            "our crates import only those they may",
            wrong_imports(&metadata),
        ),
        (
            "no tokio in wire, engine, nfs and init",
            graph.users_of("tokio", &WITHOUT_TOKIO),
        ),
        ("no system library is linked", graph.linked_libraries()),
    ])
}

fn wrong_imports(metadata: &Metadata) -> Vec<String> {
    let ours: BTreeSet<&str> = metadata
        .workspace_packages()
        .iter()
        .map(|package| package.name.as_str())
        .collect();
    let mut wrong = Vec::new();
    for package in metadata.workspace_packages() {
        let Some((_, allowed)) = IMPORTS
            .iter()
            .find(|(name, _)| *name == package.name.as_str())
        else {
            wrong.push(format!("{} has no rule: add it to IMPORTS", package.name));
            continue;
        };
        for dependency in &package.dependencies {
            let name = dependency.name.as_str();
            if dependency.kind != DependencyKind::Development
                && ours.contains(name)
                && !allowed.contains(&name)
            {
                wrong.push(format!(
                    "{} imports {name}; it may import {allowed:?}",
                    package.name
                ));
            }
        }
    }
    wrong
}

/// Who needs whom in the programs that are built (no tests, no build scripts).
struct Graph<'a> {
    packages: BTreeMap<&'a PackageId, &'a Package>,
    needs: BTreeMap<&'a PackageId, Vec<&'a PackageId>>,
}

impl<'a> Graph<'a> {
    fn of(metadata: &'a Metadata) -> anyhow::Result<Self> {
        let resolve = metadata
            .resolve
            .as_ref()
            .context("cargo metadata has no resolution")?;
        let normal = |kinds: &[cargo_metadata::DepKindInfo]| {
            kinds.iter().any(|kind| kind.kind == DependencyKind::Normal)
        };
        let needs = resolve.nodes.iter().map(|node| {
            let needed = node
                .deps
                .iter()
                .filter(|dependency| normal(&dependency.dep_kinds));
            (&node.id, needed.map(|dependency| &dependency.pkg).collect())
        });
        Ok(Self {
            packages: metadata
                .packages
                .iter()
                .map(|package| (&package.id, package))
                .collect(),
            needs: needs.collect(),
        })
    }

    /// The packages that end up in the program or library `name`.
    fn closure(&self, name: &str) -> BTreeSet<&'a PackageId> {
        let is_it = |package: &&Package| package.name.as_str() == name && package.source.is_none();
        let mut found: BTreeSet<&PackageId> = BTreeSet::new();
        let mut open: Vec<&PackageId> = self
            .packages
            .values()
            .filter(|package| is_it(package))
            .map(|package| &package.id)
            .collect();
        while let Some(id) = open.pop() {
            if found.insert(id) {
                open.extend(self.needs.get(id).into_iter().flatten());
            }
        }
        found
    }

    fn users_of(&self, unwanted: &str, crates: &[&str]) -> Vec<String> {
        let uses = |name: &&&str| {
            self.closure(name)
                .iter()
                .any(|id| self.packages[id].name.as_str() == unwanted)
        };
        crates
            .iter()
            .filter(uses)
            .map(|name| format!("{name} depends on {unwanted}"))
            .collect()
    }

    fn linked_libraries(&self) -> Vec<String> {
        let programs = ["cli", "init"];
        let packages: BTreeSet<&PackageId> = programs
            .iter()
            .flat_map(|name| self.closure(name))
            .collect();
        let linked = packages.into_iter().filter_map(|id| {
            let package = self.packages[id];
            let library = package
                .links
                .as_deref()
                .filter(|library| !LINKED.contains(library))?;
            Some(format!("{} links {library}", package.name))
        });
        linked.collect()
    }
}
