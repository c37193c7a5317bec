//! What depmod knows about a kernel's modules, from its text files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use wire::modtable::{self, Alias, Need, canonical};

/// Every module of one kernel.
#[derive(Debug, Default)]
pub(super) struct Index {
    modules: BTreeMap<String, Entry>,
    builtin: BTreeSet<String>,
    aliases: Vec<Alias>,
    soft: BTreeMap<String, Vec<String>>,
}

#[derive(Debug)]
struct Entry {
    /// Relative to the directory of modules.dep.
    path: PathBuf,
    /// Needed modules, in load order.
    needs: Vec<String>,
}

/// The content of depmod's files; those that a kernel does without are empty.
#[derive(Debug, Default)]
pub(super) struct Texts {
    pub(super) dep: String,
    pub(super) alias: String,
    pub(super) softdep: String,
    pub(super) builtin: String,
}

impl Index {
    /// Reads depmod's files. Lines that have no meaning, and names that no module table can carry, are left out.
    pub(super) fn parse(texts: &Texts) -> Self {
        let mut index = Self::default();
        texts.dep.lines().for_each(|line| index.dep_line(line));
        texts.alias.lines().for_each(|line| index.alias_line(line));
        texts
            .softdep
            .lines()
            .for_each(|line| index.softdep_line(line));
        index
            .builtin
            .extend(texts.builtin.lines().filter_map(name_of_path));
        index
    }

    /// Where a module's file lies, relative to modules.dep.
    pub(super) fn path(&self, name: &str) -> Option<&PathBuf> {
        self.modules.get(name).map(|entry| &entry.path)
    }

    /// Whether the module exists as a file.
    pub(super) fn is_module(&self, name: &str) -> bool {
        self.modules.contains_key(name)
    }

    /// Whether the kernel has it without a file.
    pub(super) fn is_builtin(&self, name: &str) -> bool {
        self.builtin.contains(name)
    }

    /// Names and paths of all modules.
    pub(super) fn paths(&self) -> impl Iterator<Item = (&str, &PathBuf)> {
        self.modules
            .iter()
            .map(|(name, entry)| (name.as_str(), &entry.path))
    }

    /// The aliases of a module.
    pub(super) fn aliases_of<'a>(&'a self, module: &'a str) -> impl Iterator<Item = &'a Alias> {
        self.aliases
            .iter()
            .filter(move |alias| alias.module == module)
    }

    /// Modules for a device or for a name used in place of a module's.
    pub(super) fn for_alias(&self, alias: &str) -> impl Iterator<Item = &str> {
        self.aliases
            .iter()
            .filter(move |known| modtable::matches(&known.pattern, alias))
            .map(|known| known.module.as_str())
    }

    /// All that must and should be loaded before a module, in load order. `extra_soft` names further modules that help
    /// a module.
    pub(super) fn needs(&self, name: &str, extra_soft: &[(&str, &str)]) -> Vec<Need> {
        let mut required = BTreeSet::new();
        self.require(name, &mut required);
        let mut order = Vec::new();
        self.visit(name, extra_soft, &mut BTreeSet::new(), &mut order);
        order.pop();
        order
            .into_iter()
            .map(|name| Need {
                optional: !required.contains(&name),
                name,
            })
            .collect()
    }

    fn require(&self, name: &str, required: &mut BTreeSet<String>) {
        let Some(entry) = self.modules.get(name) else {
            return;
        };
        for need in &entry.needs {
            if required.insert(need.clone()) {
                self.require(need, required);
            }
        }
    }

    fn visit(
        &self,
        name: &str,
        extra_soft: &[(&str, &str)],
        seen: &mut BTreeSet<String>,
        order: &mut Vec<String>,
    ) {
        let Some(entry) = self.modules.get(name) else {
            return;
        };
        if !seen.insert(name.to_owned()) {
            return;
        }
        let extra = extra_soft
            .iter()
            .filter(|(module, _)| *module == name)
            .map(|(_, helper)| *helper);
        let soft = self
            .soft
            .get(name)
            .into_iter()
            .flatten()
            .map(String::as_str);
        for helper in soft.chain(extra).flat_map(|helper| self.providers(helper)) {
            self.visit(&helper, extra_soft, seen, order);
        }
        for need in &entry.needs {
            self.visit(need, extra_soft, seen, order);
        }
        order.push(name.to_owned());
    }

    /// A soft dependency names a module or an alias of one.
    fn providers(&self, name: &str) -> Vec<String> {
        let module = canonical(name);
        if self.is_builtin(&module) {
            return Vec::new();
        }
        if self.is_module(&module) {
            return vec![module];
        }
        self.for_alias(name).map(str::to_owned).collect()
    }

    /// `PATH: PATH…`; what is needed is listed whole, first to be loaded last.
    fn dep_line(&mut self, line: &str) {
        let Some((path, needs)) = line.split_once(':') else {
            return;
        };
        let Some(name) = name_of_path(path) else {
            return;
        };
        let needs = needs
            .split_whitespace()
            .rev()
            .filter_map(name_of_path)
            .collect();
        self.modules.insert(
            name,
            Entry {
                path: path.into(),
                needs,
            },
        );
    }

    /// `alias PATTERN MODULE`
    fn alias_line(&mut self, line: &str) {
        let mut words = line.split_whitespace();
        let (Some("alias"), Some(pattern), Some(module)) =
            (words.next(), words.next(), words.next())
        else {
            return;
        };
        let module = canonical(module);
        if modtable::is_pattern(pattern) && modtable::is_name(&module) {
            self.aliases.push(Alias {
                pattern: pattern.to_owned(),
                module,
            });
        }
    }

    /// `softdep MODULE [pre:] NAME… [post: NAME…]`
    fn softdep_line(&mut self, line: &str) {
        let mut words = line.split_whitespace();
        let (Some("softdep"), Some(module)) = (words.next(), words.next()) else {
            return;
        };
        let before = words
            .take_while(|word| *word != "post:")
            .filter(|word| *word != "pre:");
        self.soft
            .entry(canonical(module))
            .or_default()
            .extend(before.map(str::to_owned));
    }
}

/// `kernel/fs/nfs/nfs.ko.xz` -> `nfs`
fn name_of_path(path: &str) -> Option<String> {
    let file = path.trim().rsplit('/').next()?;
    let (stem, rest) = file.split_once(".ko")?;
    let name = canonical(stem);
    (matches!(rest, "" | ".xz" | ".zst" | ".gz") && modtable::is_name(&name)).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index() -> Index {
        Index::parse(&Texts {
            dep: "kernel/fs/nfs/nfs.ko.xz: kernel/fs/lockd/lockd.ko.xz kernel/net/sunrpc/sunrpc.ko.xz\n\
                  kernel/fs/lockd/lockd.ko.xz: kernel/net/sunrpc/sunrpc.ko.xz\n\
                  kernel/net/sunrpc/sunrpc.ko.xz:\n\
                  kernel/lib/libphy.ko.xz:\n\
                  kernel/drivers/net/phy/realtek.ko.xz: kernel/lib/libphy.ko.xz\n\
                  kernel/drivers/net/phy/broad-com.ko.xz:\n\
                  kernel/crypto/crc32c_generic.ko.xz:\n\
                  kernel/drivers/net/r8169.ko.xz: kernel/lib/libphy.ko.xz\n\
                  nonsense\n"
                .into(),
            alias: "# Aliases\n\
                    alias pci:v000010ECd00008168sv*sd*bc*sc*i* r8169\n\
                    alias crypto-crc32c crc32c_generic\n\
                    alias crypto-crc32c ../evil\n"
                .into(),
            softdep: "softdep r8169 pre: realtek crypto-crc32c missing post: nfs\n".into(),
            builtin: "kernel/drivers/net/virtio-net.ko\n".into(),
        })
    }

    fn needs(name: &str, extra: &[(&str, &str)]) -> Vec<String> {
        let shown = |need: Need| format!("{}{}", if need.optional { "?" } else { "" }, need.name);
        index().needs(name, extra).into_iter().map(shown).collect()
    }

    #[test]
    fn needs_come_in_load_order() {
        assert_eq!(needs("nfs", &[]), ["sunrpc", "lockd"]);
        assert_eq!(needs("sunrpc", &[]), [""; 0]);
    }

    #[test]
    fn soft_dependencies_are_optional_and_go_through_aliases() {
        assert_eq!(
            needs("r8169", &[]),
            ["libphy", "?realtek", "?crc32c_generic"]
        );
        assert_eq!(
            needs("nfs", &[("nfs", "broad-com")]),
            ["?broad_com", "sunrpc", "lockd"]
        );
    }

    #[test]
    fn names_are_canonical() {
        let index = index();
        assert!(index.is_builtin("virtio_net") && index.is_module("broad_com"));
        assert_eq!(
            index
                .for_alias("pci:v000010ECd00008168sv0sd0bc0sc0i0")
                .collect::<Vec<_>>(),
            ["r8169"]
        );
        assert_eq!(index.aliases_of("crc32c_generic").count(), 1);
    }
}
