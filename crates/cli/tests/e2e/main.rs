//! Machines boot from the real command, over a private network, and are asked what they see.
//!
//! These need root and, the first time, the distribution's packages: `cargo xtask test` runs them.
//! A test that cannot run here prints why, as `skipped: reason`, and passes.

mod breaks;
mod chains;
mod commit;
mod doctor;
mod dracut;
mod firmware;
mod groups;
mod harness;
mod identical;
mod images;
mod keeper;
mod layers;
mod libnfs;
mod links;
mod native;
mod node;
mod orders;
mod panics;
mod power;
mod powercut;
mod proxy;
mod relay;
mod renew;
mod restart;
mod seed;
mod selinux;
mod service;
mod stages;
mod trial;
mod walk;
