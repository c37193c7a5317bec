//! Where modules, firmware and the kernel's configuration are read.

use std::path::PathBuf;

use crate::files::Files;

/// The modules of one kernel, in an image or in a directory.
#[derive(Clone)]
pub struct ModuleSource<'a> {
    files: &'a dyn Files,
    kernel: String,
    modules: PathBuf,
    firmware: Option<PathBuf>,
    configs: Vec<PathBuf>,
}

impl<'a> ModuleSource<'a> {
    /// A kernel of an image: /lib/modules, /lib/firmware and /boot as a node sees them.
    pub fn in_image(files: &'a dyn Files, kernel: &str) -> Self {
        let modules = PathBuf::from("lib/modules").join(kernel);
        Self {
            files,
            kernel: kernel.to_owned(),
            configs: vec![
                PathBuf::from(format!("boot/config-{kernel}")),
                modules.join("config"),
            ],
            modules,
            firmware: Some("lib/firmware".into()),
        }
    }

    /// A directory that holds modules.dep and the modules of one kernel, without firmware.
    pub fn in_directory(files: &'a dyn Files, kernel: &str) -> Self {
        Self {
            files,
            kernel: kernel.to_owned(),
            modules: PathBuf::new(),
            firmware: None,
            configs: vec!["config".into()],
        }
    }
}
