//! Which machines an initramfs is for.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

use wire::modtable::canonical;

use super::index::Index;

/// Which machines an initramfs is for: it has network drivers for no others.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Profile {
    /// Virtual machines: virtio, e1000 and the like.
    Virtual,
    /// Virtual machines and the network cards usual in servers.
    Server,
    /// Every Ethernet driver of the kernel.
    AllNic,
    /// These modules, as nodes reported what drives their devices.
    Inventory(Vec<String>),
}

/// A word that names no profile.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected profile virtual, server, all-nic or inventory, got {got:?}")]
pub struct UnknownProfile {
    /// The word.
    pub got: String,
}

/// File systems of every node's root.
pub(super) const CORE: [&str; 3] = ["nfs", "nfsv4", "overlay"];

/// Of every node too, where the kernel has them: /init loads them with parameters of the boot.
pub(super) const BY_INIT: [&str; 1] = ["netconsole"];

/// Modules that help another one without depmod knowing: their users ask for them from inside the kernel through
/// /sbin/modprobe, which an initramfs has not.
pub(super) const HELPERS: [(&str, &str); 2] = [("tg3", "broadcom"), ("dwmac_intel", "marvell")];

/// Drivers in two halves: who has the first one's device wants the second too, and it has no alias of its own.
pub(super) const SECOND_HALVES: [(&str, &str); 1] = [("mlx4_core", "mlx4_en")];

const VIRTUAL: [&str; 9] = [
    "virtio_pci",
    "virtio_mmio",
    "virtio_net",
    "virtio_rng",
    "e1000",
    "e1000e",
    "vmxnet3",
    "hv_netvsc",
    "xen_netfront",
];

/// Of the cards usual in servers of the last ten years, as docs/initramfs.md lists them.
const SERVER: [&str; 20] = [
    "igb",
    "igbvf",
    "igc",
    "ixgbe",
    "ixgbevf",
    "i40e",
    "iavf",
    "ice",
    "tg3",
    "bnx2x",
    "bnxt_en",
    "mlx4_core",
    "mlx5_core",
    "r8169",
    "be2net",
    "ena",
    "enic",
    "qede",
    "cxgb4",
    "atlantic",
];

/// What a boot over a VLAN or a bond takes.
const LINKS: [&str; 2] = ["8021q", "bonding"];

impl Profile {
    /// Names of the drivers wanted, as far as the kernel has them as modules.
    pub(super) fn drivers(&self, index: &Index) -> BTreeSet<String> {
        let mut drivers: BTreeSet<String> = match self {
            Self::Virtual => owned(&[&VIRTUAL]),
            Self::Server => owned(&[&VIRTUAL, &SERVER, &LINKS]),
            Self::AllNic => &owned(&[&VIRTUAL, &LINKS]) | &ethernet(index),
            Self::Inventory(names) => {
                &owned(&[&LINKS]) | &names.iter().map(|name| canonical(name)).collect()
            }
        };
        for (first, second) in SECOND_HALVES {
            if drivers.contains(first) {
                drivers.insert(second.to_owned());
            }
        }
        drivers.retain(|name| index.is_module(name));
        drivers
    }

    /// The profile's part of a cache key: equal for equal choices.
    pub(super) fn key(&self) -> String {
        match self {
            Self::Inventory(names) => {
                let sorted: BTreeSet<&str> = names.iter().map(String::as_str).collect();
                sorted
                    .into_iter()
                    .fold(self.to_string(), |key, name| key + "\n" + name)
            }
            _ => self.to_string(),
        }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Virtual => "virtual",
            Self::Server => "server",
            Self::AllNic => "all-nic",
            Self::Inventory(_) => "inventory",
        })
    }
}

impl FromStr for Profile {
    type Err = UnknownProfile;

    fn from_str(word: &str) -> Result<Self, UnknownProfile> {
        match word {
            "virtual" => Ok(Self::Virtual),
            "server" => Ok(Self::Server),
            "all-nic" => Ok(Self::AllNic),
            // Whoever knows the nodes fills it in.
            "inventory" => Ok(Self::Inventory(Vec::new())),
            _ => Err(UnknownProfile {
                got: word.to_owned(),
            }),
        }
    }
}

fn owned(lists: &[&[&str]]) -> BTreeSet<String> {
    lists
        .iter()
        .flat_map(|names| names.iter())
        .map(|name| (*name).to_owned())
        .collect()
}

fn ethernet(index: &Index) -> BTreeSet<String> {
    let is_ethernet = |path: &Path| path.to_string_lossy().contains("drivers/net/ethernet/");
    index
        .paths()
        .filter(|(_, path)| is_ethernet(path))
        .map(|(name, _)| name.to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::index::Texts;
    use super::*;

    fn index() -> Index {
        Index::parse(&Texts {
            dep: "kernel/drivers/net/virtio_net.ko:\n\
                  kernel/drivers/net/ethernet/mellanox/mlx4/mlx4_core.ko:\n\
                  kernel/drivers/net/ethernet/mellanox/mlx4/mlx4_en.ko: kernel/drivers/net/ethernet/mellanox/mlx4/mlx4_core.ko\n\
                  extra/drivers/net/ethernet/acme/acme.ko:\n\
                  kernel/sound/hda.ko:\n"
                .into(),
            alias: "alias pci:v0000AC3Ed* acme\nalias pci:v00008086d* hda\nalias pci:v000015B3d* mlx4_core\n".into(),
            ..Texts::default()
        })
    }

    fn drivers(profile: &Profile) -> Vec<String> {
        profile.drivers(&index()).into_iter().collect()
    }

    #[test]
    fn each_profile_takes_what_exists_of_its_drivers() {
        assert_eq!(drivers(&Profile::Virtual), ["virtio_net"]);
        assert_eq!(
            drivers(&Profile::Server),
            ["mlx4_core", "mlx4_en", "virtio_net"]
        );
        assert_eq!(
            drivers(&Profile::AllNic),
            ["acme", "mlx4_core", "mlx4_en", "virtio_net"]
        );
    }

    #[test]
    fn inventory_takes_what_was_reported_and_exists() {
        let reported = ["mlx4_core", "virtio-net", "gone"].map(str::to_owned);
        assert_eq!(
            drivers(&Profile::Inventory(reported.to_vec())),
            ["mlx4_core", "mlx4_en", "virtio_net"]
        );
    }

    #[test]
    fn names_are_read_back() {
        for profile in [
            Profile::Virtual,
            Profile::Server,
            Profile::AllNic,
            Profile::Inventory(Vec::new()),
        ] {
            assert_eq!(profile.to_string().parse(), Ok(profile));
        }
        assert!("dracut".parse::<Profile>().is_err());
    }
}
