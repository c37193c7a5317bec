//! The table of kernel modules in an initramfs: the builder writes it, /init reads it and loads drivers by it.
//!
//! It is the file `/modules/table` ([`TABLE_PATH`]); the modules lie beside it, decompressed, as `/modules/NAME.ko`
//! ([`Module::path`]). Lines of words separated by one space, in any order after the first:
//! ```text
//! slate-modules 1 6.1.0-18-amd64
//! module nfs grace sunrpc lockd netfs fscache
//! module r8169 libphy mdio_devres ?realtek
//! options r8169 eee_enable=0
//! core nfs
//! core overlay
//! alias pci:v00001AF4d00001000sv*sd*bc*sc*i* virtio_pci
//! ```
//! - `module NAME NEED…`: NAME exists; everything that must be loaded before it, whole and in load order, so that
//!   nobody has to recurse: load each NEED, then NAME. A NEED with `?` helps, but its failure or absence from the
//!   initramfs is no error (a soft dependency).
//! - `options NAME TEXT`: the parameters that NAME, on a line before, is loaded with, as init_module(2) takes
//!   them. Without a line it has none.
//! - `core NAME`: load at once, in this order, whatever the hardware is (file systems).
//! - `alias PATTERN NAME`: load NAME for a device whose `modalias` matches PATTERN ([`matches`]).
//!
//! What is built into the kernel appears nowhere in the table. Names are canonical: `_` for `-`.
//!
//! Panic contract: nothing here panics on any input. Sizes are bounded by the constants below.

use std::fmt::Write as _;

use thiserror::Error;

/// Where the table lies in an initramfs.
pub const TABLE_PATH: &str = "/modules/table";
/// Most `module` lines.
pub const MODULES_MAX: usize = 8192;
/// Most `alias` lines.
pub const ALIASES_MAX: usize = 131_072;
/// Most needs of one module.
pub const NEEDS_MAX: usize = 512;
/// Longest line, in bytes.
pub const LINE_BYTES_MAX: usize = 65_536;

const MAGIC: &str = "slate-modules";
const VERSION: &str = "1";

/// What is wrong with a table.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Error {
    /// The bytes are not UTF-8.
    #[error("module table: expected UTF-8, got something else at byte {at}")]
    NotText {
        /// Offset of the first wrong byte.
        at: usize,
    },
    /// The first line is not `slate-modules 1 KERNEL`.
    #[error("module table: expected \"{MAGIC} {VERSION} KERNEL\" in line 1, got {got:?}")]
    Header {
        /// What stands there, shortened.
        got: String,
    },
    /// A line that has no meaning.
    #[error("module table, line {line}: expected {expected}, got {got:?}")]
    Line {
        /// Number of the line, from 1.
        line: usize,
        /// What could stand there.
        expected: &'static str,
        /// What stands there, shortened.
        got: String,
    },
    /// More lines or words of a kind than the table may have.
    #[error("module table, line {line}: expected at most {max} {what}")]
    TooMany {
        /// Number of the line, from 1.
        line: usize,
        /// The kind.
        what: &'static str,
        /// The limit.
        max: usize,
    },
}

/// The modules of one initramfs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    /// The kernel's release, as `uname -r` says it.
    pub kernel: String,
    /// Every module in the initramfs.
    pub modules: Vec<Module>,
    /// Names of the modules to load at once, in order.
    pub core: Vec<String>,
    /// Which device wants which module.
    pub aliases: Vec<Alias>,
}

/// One module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// Canonical name.
    pub name: String,
    /// All that goes before it, in load order.
    pub needs: Vec<Need>,
    /// Its parameters, as init_module(2) takes them.
    pub options: String,
}

/// A module that another one needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Need {
    /// Canonical name.
    pub name: String,
    /// Helps, but is not required.
    pub optional: bool,
}

/// A pattern of device names and the module for them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alias {
    /// Shell pattern over a modalias.
    pub pattern: String,
    /// Canonical name.
    pub module: String,
}

impl Table {
    /// Reads a table.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let text = std::str::from_utf8(bytes).map_err(|error| Error::NotText {
            at: error.valid_up_to(),
        })?;
        let mut lines = text
            .lines()
            .enumerate()
            .map(|(index, line)| (index + 1, line));
        let header = lines.next().map_or("", |(_, line)| line);
        let mut table = Self {
            kernel: kernel_of(header)?,
            ..Self::default()
        };
        for (number, line) in lines {
            table.line(number, line)?;
        }
        Ok(table)
    }

    /// Writes the table; [`Table::parse`] gives it back if its names have the shape of [`is_name`].
    pub fn encode(&self) -> String {
        let mut out = format!("{MAGIC} {VERSION} {}\n", self.kernel);
        for module in &self.modules {
            let _ = write!(out, "module {}", module.name);
            for need in &module.needs {
                let _ = write!(
                    out,
                    " {}{}",
                    if need.optional { "?" } else { "" },
                    need.name
                );
            }
            out.push('\n');
            if !module.options.is_empty() {
                let _ = writeln!(out, "options {} {}", module.name, module.options);
            }
        }
        for name in &self.core {
            let _ = writeln!(out, "core {name}");
        }
        for alias in &self.aliases {
            let _ = writeln!(out, "alias {} {}", alias.pattern, alias.module);
        }
        out
    }

    /// The module of this name; `-` and `_` are the same.
    pub fn module(&self, name: &str) -> Option<&Module> {
        let name = canonical(name);
        self.modules.iter().find(|module| module.name == name)
    }

    /// Names of the modules for a device, in the table's order, possibly with repetitions.
    pub fn for_modalias<'a>(&'a self, modalias: &'a str) -> impl Iterator<Item = &'a str> {
        self.aliases
            .iter()
            .filter(move |alias| matches(&alias.pattern, modalias))
            .map(|alias| alias.module.as_str())
    }

    fn line(&mut self, number: usize, line: &str) -> Result<(), Error> {
        let wrong = |expected| Error::Line {
            line: number,
            expected,
            got: shortened(line),
        };
        if line.len() > LINE_BYTES_MAX {
            return Err(Error::TooMany {
                line: number,
                what: "bytes in a line",
                max: LINE_BYTES_MAX,
            });
        }
        let (kind, rest) = line.split_once(' ').ok_or(wrong(
            "\"module\", \"options\", \"core\" or \"alias\" and a name",
        ))?;
        match kind {
            "module" => {
                at_most(number, "modules", self.modules.len(), MODULES_MAX)?;
                self.modules.push(
                    module_of(number, rest).map_err(|error| error.unwrap_or(wrong(MODULE_LINE)))?,
                );
            }
            "options" => {
                let expected = "\"options NAME TEXT\" after the module's line";
                let (name, text) = rest.split_once(' ').ok_or(wrong(expected))?;
                let module = self.modules.iter_mut().find(|module| module.name == name);
                let module = module.filter(|_| is_options(text)).ok_or(wrong(expected))?;
                module.options = text.to_owned();
            }
            "core" => {
                at_most(number, "core modules", self.core.len(), MODULES_MAX)?;
                self.core.push(name_of(rest).ok_or(wrong("\"core NAME\""))?);
            }
            "alias" => {
                at_most(number, "aliases", self.aliases.len(), ALIASES_MAX)?;
                self.aliases
                    .push(alias_of(rest).ok_or(wrong("\"alias PATTERN NAME\""))?);
            }
            _ => return Err(wrong("\"module\", \"options\", \"core\" or \"alias\"")),
        }
        Ok(())
    }
}

impl Module {
    /// Where the module lies in the initramfs.
    pub fn path(&self) -> String {
        format!("/modules/{}.ko", self.name)
    }
}

/// The kernel's own name for a module: `_` for `-`.
pub fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

/// Whether a table can carry this module name.
pub fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 128
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// Whether a table can carry these parameters of a module.
pub fn is_options(text: &str) -> bool {
    !text.is_empty() && text.len() <= 2048 && text.bytes().all(|it| matches!(it, b' '..=b'~'))
}

/// Whether a table can carry this pattern.
pub fn is_pattern(pattern: &str) -> bool {
    !pattern.is_empty()
        && pattern.len() <= 1024
        && pattern.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Shell matching as the kernel's user space does it for aliases: `*`, `?`, `[a-z]`, `[!a]`, and `-` equal to `_`
/// outside brackets.
pub fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut at_pattern, mut at_text) = (0, 0);
    // After a star: where to go on in the pattern, and how much of the text the star has taken so far.
    let mut star: Option<(usize, usize)> = None;
    while let Some(&byte) = text.get(at_text) {
        if pattern.get(at_pattern) == Some(&b'*') {
            at_pattern += 1;
            star = Some((at_pattern, at_text));
        } else if let Some(next) = match_one(pattern, at_pattern, byte) {
            at_pattern = next;
            at_text += 1;
        } else if let Some((resume, taken)) = star {
            star = Some((resume, taken + 1));
            at_pattern = resume;
            at_text = taken + 1;
        } else {
            return false;
        }
    }
    pattern
        .get(at_pattern..)
        .unwrap_or_default()
        .iter()
        .all(|&byte| byte == b'*')
}

/// Matches one byte with the pattern's element at `at`; gives where the next element starts.
fn match_one(pattern: &[u8], at: usize, byte: u8) -> Option<usize> {
    match *pattern.get(at)? {
        b'?' => Some(at + 1),
        b'[' => match_class(pattern, at + 1, byte),
        b'\\' => (*pattern.get(at + 1)? == byte).then_some(at + 2),
        literal => (dashed(literal) == dashed(byte)).then_some(at + 1),
    }
}

fn match_class(pattern: &[u8], start: usize, byte: u8) -> Option<usize> {
    let negated = matches!(pattern.get(start)?, b'!' | b'^');
    let first = start + usize::from(negated);
    let mut at = first;
    let mut found = false;
    while at == first || *pattern.get(at)? != b']' {
        let low = *pattern.get(at)?;
        let high = match (pattern.get(at + 1), pattern.get(at + 2)) {
            (Some(b'-'), Some(&high)) if high != b']' => {
                at += 2;
                high
            }
            _ => low,
        };
        found |= (low..=high).contains(&byte);
        at += 1;
    }
    (found != negated).then_some(at + 1)
}

fn dashed(byte: u8) -> u8 {
    if byte == b'-' { b'_' } else { byte }
}

fn kernel_of(header: &str) -> Result<String, Error> {
    let mut words = header.splitn(3, ' ');
    match (words.next(), words.next(), words.next()) {
        (Some(MAGIC), Some(VERSION), Some(kernel)) if is_pattern(kernel) => Ok(kernel.to_owned()),
        _ => Err(Error::Header {
            got: shortened(header),
        }),
    }
}

const MODULE_LINE: &str = "\"module NAME NEED…\"";

/// `Err(None)`: the line has the wrong shape.
fn module_of(line: usize, rest: &str) -> Result<Module, Option<Error>> {
    let mut words = rest.split(' ');
    let name = words.next().and_then(name_of).ok_or(None)?;
    let mut needs = Vec::new();
    for word in words {
        at_most(line, "needs of one module", needs.len(), NEEDS_MAX)?;
        let (optional, name) = word
            .strip_prefix('?')
            .map_or((false, word), |name| (true, name));
        needs.push(Need {
            name: name_of(name).ok_or(None)?,
            optional,
        });
    }
    Ok(Module {
        name,
        needs,
        options: String::new(),
    })
}

fn alias_of(rest: &str) -> Option<Alias> {
    let (pattern, module) = rest.split_once(' ')?;
    Some(Alias {
        pattern: is_pattern(pattern).then(|| pattern.to_owned())?,
        module: name_of(module)?,
    })
}

fn name_of(word: &str) -> Option<String> {
    is_name(word).then(|| word.to_owned())
}

fn at_most(line: usize, what: &'static str, have: usize, max: usize) -> Result<(), Error> {
    if have < max {
        Ok(())
    } else {
        Err(Error::TooMany { line, what, max })
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = "slate-modules 1 6.1.0-18-amd64\n\
        module sunrpc\n\
        module nfs sunrpc\n\
        module r8169 libphy ?realtek\n\
        options r8169 eee_enable=0 name=\"a b\"\n\
        core nfs\n\
        alias pci:v000010ECd00008168sv*sd*bc*sc*i* r8169\n";

    #[test]
    fn what_is_encoded_is_parsed() {
        let table = Table::parse(SAMPLE.as_bytes()).unwrap();
        assert_eq!(table.kernel, "6.1.0-18-amd64");
        assert_eq!(
            table.module("r8169").unwrap().needs[1],
            Need {
                name: "realtek".into(),
                optional: true
            }
        );
        assert_eq!(table.module("r8169").unwrap().path(), "/modules/r8169.ko");
        assert_eq!(
            table.module("r8169").unwrap().options,
            "eee_enable=0 name=\"a b\""
        );
        assert_eq!(table.core, ["nfs"]);
        assert_eq!(table.encode(), SAMPLE);
    }

    #[test]
    fn modalias_finds_its_module() {
        let table = Table::parse(SAMPLE.as_bytes()).unwrap();
        let modalias = "pci:v000010ECd00008168sv00001043sd00008554bc02sc00i00";
        assert_eq!(table.for_modalias(modalias).collect::<Vec<_>>(), ["r8169"]);
        assert_eq!(table.for_modalias("pci:v000010ECd00008169").count(), 0);
    }

    #[test]
    fn malformed_tables_are_refused() {
        let with = |line: &str| Table::parse(format!("slate-modules 1 6.1\n{line}\n").as_bytes());
        assert!(matches!(Table::parse(b""), Err(Error::Header { .. })));
        assert!(matches!(
            Table::parse(b"slate-modules 2 6.1\n"),
            Err(Error::Header { .. })
        ));
        assert!(matches!(
            Table::parse(b"slate-modules 1 6.1\n\xff"),
            Err(Error::NotText { at: 20 })
        ));
        for line in [
            "",
            "module",
            "module ",
            "module ../x",
            "module a  b",
            "module a ?",
            "core a b",
            "options a b=1",
            "alias x",
            "x y",
        ] {
            assert!(
                matches!(with(line), Err(Error::Line { line: 2, .. })),
                "{line:?}"
            );
        }
        let needs = "module a".to_owned() + &" b".repeat(NEEDS_MAX + 1);
        assert!(matches!(
            with(&needs),
            Err(Error::TooMany { max: NEEDS_MAX, .. })
        ));
    }

    #[test]
    fn patterns_match_as_in_a_shell() {
        for (pattern, text, expected) in [
            ("", "", true),
            ("*", "", true),
            ("a*c", "abbc", true),
            ("a*c", "abbcd", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("*b*b", "abab", true),
            ("[0-9a-f]x", "ex", true),
            ("[0-9a-f]x", "gx", false),
            ("[!0-9]", "a", true),
            ("[!0-9]", "1", false),
            ("[]]", "]", true),
            ("[", "[", false),
            ("[a", "a", false),
            ("\\*", "*", true),
            ("\\*", "a", false),
            ("platform:a_b", "platform:a-b", true),
            ("virtio:d00000001v*", "virtio:d00000001v00001AF4", true),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern:?} {text:?}");
        }
    }
}
