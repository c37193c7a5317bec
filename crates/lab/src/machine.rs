//! One virtual node: a child process on a tap, with a serial console. QEMU and User-Mode Linux
//! have the same face.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::{Duration, Instant, SystemTime};

use crate::console::Console;
use crate::network::{Network, NetworkError, Tap};
use crate::process::{self, Confinement, Process};
use crate::qemu::Qemu;
use crate::uml::Uml;

/// What goes wrong with a machine.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The tap could not be made.
    #[error("connecting machine {machine}: {source}")]
    Network {
        /// The machine's name.
        machine: String,
        /// The cause.
        source: NetworkError,
    },
    /// The machine's program could not be prepared or started.
    #[error("starting machine {machine}: {source}")]
    Start {
        /// The machine's name.
        machine: String,
        /// The cause.
        source: io::Error,
    },
    /// A file that the hardware needs is not there.
    #[error("machine {machine} needs {path}: {source}")]
    File {
        /// The machine's name.
        machine: String,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// The `index`th of a series of locally administered addresses: `52:77:00:00:xx:xx`.
    pub fn nth(index: u16) -> Self {
        let [high, low] = index.to_be_bytes();
        Self([0x52, 0x77, 0, 0, high, low])
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// What a machine is made of.
#[derive(Clone, Debug)]
pub enum Hardware {
    /// A virtual machine with UEFI firmware that boots from the network.
    Qemu(Qemu),
    /// A User-Mode Linux kernel with an initramfs.
    Uml(Uml),
}

/// A machine on a network; switched off when dropped.
#[derive(Debug)]
pub struct Machine {
    name: String,
    mac: MacAddress,
    hardware: Hardware,
    network: Network,
    tap: Tap,
    capture: Option<PathBuf>,
    running: Running,
}

#[derive(Debug)]
struct Running {
    process: Process,
    console: Console,
    powered_on: (Instant, SystemTime),
}

impl Machine {
    /// Switches a machine on. What its serial line prints is also appended to the file `capture`.
    pub fn power_on(
        network: &Network,
        name: &str,
        mac: MacAddress,
        hardware: Hardware,
        capture: Option<PathBuf>,
    ) -> Result<Self, MachineError> {
        let network = network.clone();
        let tap = network.add_tap().map_err(|source| MachineError::Network {
            machine: name.to_owned(),
            source,
        })?;
        let running = start(&network, &tap, name, mac, &hardware, capture.as_ref())?;
        Ok(Self {
            name: name.to_owned(),
            mac,
            hardware,
            network,
            tap,
            capture,
            running,
        })
    }

    /// The name given to it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its Ethernet address.
    pub fn mac(&self) -> MacAddress {
        self.mac
    }

    /// Its serial console (since it was last switched on).
    pub fn console(&self) -> &Console {
        &self.running.console
    }

    /// When it was last switched on.
    pub fn powered_on(&self) -> SystemTime {
        self.running.powered_on.1
    }

    /// How long ago it was last switched on.
    pub fn uptime(&self) -> Duration {
        self.running.powered_on.0.elapsed()
    }

    /// The exit status of the machine's program if the machine is off.
    pub fn exited(&mut self) -> io::Result<Option<ExitStatus>> {
        self.running.process.try_wait()
    }

    /// Waits until the machine is off (its guest powered it off); `None` if it still runs after
    /// `timeout`.
    pub fn wait_off(&mut self, timeout: Duration) -> io::Result<Option<ExitStatus>> {
        self.running.process.wait_timeout(timeout)
    }

    /// Cuts the power.
    pub fn power_off(&mut self) -> io::Result<()> {
        self.running.process.kill().map(|_| ())
    }

    /// Cuts the power and switches the machine on again: a new console, the same firmware variables.
    pub fn power_cycle(&mut self) -> Result<(), MachineError> {
        self.power_off().map_err(|source| MachineError::Start {
            machine: self.name.clone(),
            source,
        })?;
        self.running = start(
            &self.network,
            &self.tap,
            &self.name,
            self.mac,
            &self.hardware,
            self.capture.as_ref(),
        )?;
        Ok(())
    }
}

fn start(
    network: &Network,
    tap: &Tap,
    name: &str,
    mac: MacAddress,
    hardware: &Hardware,
    capture: Option<&PathBuf>,
) -> Result<Running, MachineError> {
    let at_start = |source| MachineError::Start {
        machine: name.to_owned(),
        source,
    };
    let base = network.confinement();
    let (command, confinement) = match hardware {
        Hardware::Qemu(qemu) => {
            let confinement = Confinement {
                inherit: qemu.inherit(),
                ..base
            };
            (qemu.command(tap, mac), confinement)
        }
        Hardware::Uml(uml) => {
            let preload = Uml::preload().map_err(at_start)?;
            let command = uml.command(name, tap, mac, preload.as_ref());
            let confinement = Confinement {
                scratch: true,
                inherit: preload.into_iter().collect(),
                ..base
            };
            (command, confinement)
        }
    };
    let powered_on = (Instant::now(), SystemTime::now());
    let mut process = process::spawn(command, confinement).map_err(at_start)?;
    let console = Console::attach(&mut process, powered_on.0, capture.map(PathBuf::as_path))
        .map_err(at_start)?;
    Ok(Running {
        process,
        console,
        powered_on,
    })
}
