//! A power cut at a chosen step, for tests: after it every change fails, and what was written
//! but not made durable is lost.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::error::{Error, Result};

/// Shared by all who change one store.
#[derive(Clone, Default)]
pub struct Faults(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    steps: usize,
    cut_at: Option<usize>,
    volatile: Vec<PathBuf>,
}

impl Faults {
    /// Power fails at that step, counted from now, the first being 0.
    pub fn cut_at(&self, step: usize) {
        let mut state = self.0.lock().expect("no panic while locked");
        state.steps = 0;
        state.cut_at = Some(step);
    }

    /// Whether power has failed.
    pub fn is_cut(&self) -> bool {
        let state = self.0.lock().expect("no panic while locked");
        state.cut_at.is_some_and(|cut| state.steps > cut)
    }

    /// Loses what was not durable: files keep their names and lose their content, as ext4 does.
    pub fn lose_volatile(&self) {
        let mut state = self.0.lock().expect("no panic while locked");
        for path in std::mem::take(&mut state.volatile) {
            if let Ok(file) = File::options().write(true).open(path) {
                file.set_len(0).expect("cutting a file");
            }
        }
    }

    pub(super) fn step(&self, path: &Path) -> Result<()> {
        let mut state = self.0.lock().expect("no panic while locked");
        state.steps += 1;
        if state.cut_at.is_some_and(|cut| state.steps > cut) {
            return Err(Error::io("changing", path)(io::Error::other(
                "power failed",
            )));
        }
        Ok(())
    }

    pub(super) fn wrote(&self, path: &Path) {
        self.0
            .lock()
            .expect("no panic while locked")
            .volatile
            .push(path.to_owned());
    }

    pub(super) fn renamed(&self, from: &Path, to: &Path) {
        let mut state = self.0.lock().expect("no panic while locked");
        for path in &mut state.volatile {
            if path == from {
                *path = to.to_owned();
            }
        }
    }

    pub(super) fn synced_file(&self, path: &Path) {
        let mut state = self.0.lock().expect("no panic while locked");
        state.volatile.retain(|it| it != path);
    }

    pub(super) fn synced(&self) {
        self.0
            .lock()
            .expect("no panic while locked")
            .volatile
            .clear();
    }
}
