//! Loads kernel modules by the table that the initramfs carries.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs;
use std::path::Path;
use std::sync::Mutex;

use rustix::io::Errno;
use rustix::system::init_module;
use wire::cmdline::BootArgs;
use wire::fold::unfold;
use wire::modtable::{Module, TABLE_PATH, Table};

use crate::report::Reporter;

/// Every module of the initramfs, and which of them are in the kernel.
pub struct Modules<'a> {
    table: Table,
    args: &'a BootArgs,
    report: &'a Reporter,
    loaded: Mutex<BTreeSet<String>>,
}

impl<'a> Modules<'a> {
    /// Reads the table; an initramfs without one serves a kernel that has everything built in.
    pub fn open(args: &'a BootArgs, report: &'a Reporter) -> Modules<'a> {
        let table = fs::read(TABLE_PATH).map_or(Ok(Table::default()), |it| Table::parse(&it));
        let table = table.unwrap_or_else(|error| {
            report.log(&error.to_string());
            Table::default()
        });
        Modules {
            table,
            args,
            report,
            loaded: Mutex::default(),
        }
    }

    /// The release of the kernel that the modules are for; empty without a table.
    pub fn kernel(&self) -> &str {
        &self.table.kernel
    }

    /// Loads what is needed whatever the hardware is: the file systems.
    pub fn load_core(&self) {
        for name in &self.table.core {
            self.load(name);
        }
    }

    /// Loads the drivers of every device that the kernel has found so far.
    pub fn coldplug(&self) {
        let mut modaliases = BTreeSet::new();
        collect_modaliases(Path::new("/sys/devices"), &mut modaliases);
        let names: BTreeSet<&str> = modaliases
            .iter()
            .flat_map(|modalias| self.table.for_modalias(modalias))
            .collect();
        // Drivers probe their hardware while they load: side by side, a slow one delays nobody.
        let queue = Mutex::new(names.into_iter());
        let next = || queue.lock().ok()?.next();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while let Some(name) = next() {
                        self.load(name);
                    }
                });
            }
        });
    }

    /// The modules in the kernel that were loaded for a device, sorted.
    pub fn drivers(&self) -> Vec<&str> {
        let names: BTreeSet<&str> = self.table.aliases.iter().map(|it| &*it.module).collect();
        // One whose hardware was missing after all was asked for and is not there.
        let is_there =
            |name: &&str| self.is_loaded(name) && Path::new("/sys/module").join(name).is_dir();
        names.into_iter().filter(is_there).collect()
    }

    /// Loads the drivers of one device.
    pub fn load_for(&self, modalias: &str) {
        for name in self.table.for_modalias(modalias) {
            self.load(name);
        }
    }

    /// Loads a module after all that it needs; a failure is logged, since only what is missing
    /// in the end matters.
    pub fn load(&self, name: &str) {
        let Some(module) = self.table.module(name) else {
            return;
        };
        if self.is_loaded(&module.name) || self.args.is_blacklisted(&module.name) {
            return;
        }
        for need in &module.needs {
            match self.table.module(&need.name) {
                Some(needed) if need.optional => drop(self.insert(needed)),
                Some(needed) => self.insert_or_log(needed),
                None => {}
            }
        }
        self.insert_or_log(module);
    }

    /// Loads a module with parameters of this boot's, which those of the command line go before.
    /// `None` where the initramfs has it not, or it is not wanted.
    pub fn load_with(&self, name: &str, params: &str) -> Option<std::io::Result<()>> {
        let module = self.table.module(name)?;
        if self.args.is_blacklisted(name) {
            return None;
        }
        let needs = module.needs.iter().filter(|need| !need.optional);
        needs.for_each(|need| self.load(&need.name));
        let options = format!("{} {params}", module.options);
        let module = Module {
            options: options.trim().to_owned(),
            ..module.clone()
        };
        Some(self.insert(&module))
    }

    fn insert_or_log(&self, module: &Module) {
        if let Err(error) = self.insert(module) {
            self.report.log(&format!("module {}: {error}", module.name));
        }
    }

    fn insert(&self, module: &Module) -> std::io::Result<()> {
        if self.is_loaded(&module.name) || self.args.is_blacklisted(&module.name) {
            return Ok(());
        }
        // Of a parameter that is given twice the last one counts: that of the command line.
        let of_line = self.args.module_params(&module.name);
        let params = CString::new(format!("{} {of_line}", module.options).trim())?;
        let mut bytes = fs::read(module.path())?;
        unfold(&mut bytes).map_err(std::io::Error::other)?;
        // Of two threads that load the same module the kernel lets the second wait.
        match init_module(&bytes, &params) {
            Ok(()) | Err(Errno::EXIST) => {}
            // Its hardware is missing or driven by another one: not worth a line.
            Err(Errno::NODEV) => {}
            Err(error) => return Err(error.into()),
        }
        if let Ok(mut loaded) = self.loaded.lock() {
            loaded.insert(module.name.clone());
        }
        Ok(())
    }

    fn is_loaded(&self, name: &str) -> bool {
        self.loaded.lock().is_ok_and(|loaded| loaded.contains(name))
    }
}

fn collect_modaliases(directory: &Path, out: &mut BTreeSet<String>) {
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    for entry in entries.flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => collect_modaliases(&entry.path(), out),
            Ok(kind) if kind.is_file() && entry.file_name() == "modalias" => {
                let modalias = fs::read_to_string(entry.path()).unwrap_or_default();
                out.insert(modalias.trim().to_owned());
            }
            _ => {}
        }
    }
}
