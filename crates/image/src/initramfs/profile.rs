//! Which machines an initramfs is for.

/// Which machines an initramfs is for: it has network drivers for no others.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Profile {
    /// Virtual machines: virtio, e1000 and the like.
    Virtual,
    /// Virtual machines and the network cards usual in servers.
    Server,
    /// Every Ethernet driver of the kernel.
    AllNic,
    /// The devices with these modaliases, as nodes reported them.
    Inventory(Vec<String>),
}
