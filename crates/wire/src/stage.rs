//! The stages of a boot, from a node's first DHCP packet to multi-user.
//!
//! One list for everybody: the daemon sees the stages up to [`Stage::Initrd`] on its own sockets,
//! the node reports the later ones by beacon.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// How far a boot has come. Ordered: a later stage is greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Stage {
    /// The firmware sent its first DISCOVER.
    Firmware = 1,
    /// The firmware's address was acknowledged.
    Address = 2,
    /// The first loader (shim, iPXE, PXELINUX) was asked for.
    Loader = 3,
    /// GRUB was asked for.
    Grub = 4,
    /// The loader's configuration was served.
    Config = 5,
    /// The kernel was asked for.
    Kernel = 6,
    /// The initramfs was asked for.
    Initrd = 7,
    /// `/init` runs and can speak.
    Init = 8,
    /// The node's network is configured.
    Network = 9,
    /// The root is mounted.
    Mount = 10,
    /// `/init` hands over to the image's own init.
    SwitchRoot = 11,
    /// The image reached multi-user.
    MultiUser = 12,
}

impl Stage {
    /// Every stage in the order in which a boot passes them.
    pub const ALL: [Stage; 12] = [
        Stage::Firmware,
        Stage::Address,
        Stage::Loader,
        Stage::Grub,
        Stage::Config,
        Stage::Kernel,
        Stage::Initrd,
        Stage::Init,
        Stage::Network,
        Stage::Mount,
        Stage::SwitchRoot,
        Stage::MultiUser,
    ];

    /// The stage's kebab-case name, as shown to users and stored.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Firmware => "firmware",
            Stage::Address => "address",
            Stage::Loader => "loader",
            Stage::Grub => "grub",
            Stage::Config => "config",
            Stage::Kernel => "kernel",
            Stage::Initrd => "initrd",
            Stage::Init => "init",
            Stage::Network => "network",
            Stage::Mount => "mount",
            Stage::SwitchRoot => "switch-root",
            Stage::MultiUser => "multi-user",
        }
    }

    /// The stage's number on the wire.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The stage with this number on the wire, if it is one we know.
    pub fn from_code(code: u8) -> Option<Stage> {
        Stage::ALL.into_iter().find(|stage| stage.code() == code)
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A name that is no stage.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("expected a boot stage such as init or multi-user, got {0:?}")]
pub struct UnknownStage(pub String);

impl FromStr for Stage {
    type Err = UnknownStage;

    fn from_str(name: &str) -> Result<Stage, UnknownStage> {
        Stage::ALL
            .into_iter()
            .find(|stage| stage.name() == name)
            .ok_or_else(|| UnknownStage(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_codes_round_trip() {
        for stage in Stage::ALL {
            assert_eq!(stage.name().parse(), Ok(stage));
            assert_eq!(Stage::from_code(stage.code()), Some(stage));
        }
        assert_eq!(Stage::from_code(0), None);
        assert!("boot".parse::<Stage>().is_err());
    }

    #[test]
    fn the_list_is_in_order() {
        assert!(Stage::ALL.windows(2).all(|pair| pair[0] < pair[1]));
    }
}
