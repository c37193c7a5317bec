//! Virtual nodes on a private network: what `slate try` and the end-to-end tests stand on.
//!
//! A [`Network`] is a network namespace of its own with one bridge and no uplink. A [`Machine`]
//! is a child process on one of its taps: a [`Qemu`] virtual machine with UEFI firmware, or a
//! [`Uml`] (User-Mode Linux) kernel, which starts without firmware at near native speed.
//! [`Console`] reads and types on a machine's serial line.
//!
//! Nothing outlives the process that made it, not even after `kill -9`: the namespace has no
//! name and is held by open descriptors only, every child is killed by the kernel when its parent
//! dies, and scratch files live in memory or in private mounts. One exception: a child that changes its
//! own credentials (a daemon that drops privileges) loses the kernel's parent-death signal, so after
//! a kill of this process it has to be ended by other means; `Drop` ends it as usual.

mod console;
mod machine;
mod network;
mod process;
mod qemu;
mod tools;
mod uml;

pub use console::{CommandOutput, Console, ConsoleError, Line};
pub use machine::{Hardware, MacAddress, Machine, MachineError};
pub use network::{GATEWAY, Host, Network, NetworkError, PREFIX_LENGTH, Tap};
pub use process::Process;
pub use qemu::{Firmware, Qemu, UefiNetwork, kvm_usable};
pub use tools::{Distribution, MissingTools, Tool, find_tools};
pub use uml::Uml;
