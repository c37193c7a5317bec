//! The boot plan of a node, and its command line.

use std::net::{Ipv4Addr, SocketAddrV4};

use wire::cmdline::{BootArgs, Ip, NfsRoot, Param, SlateArgs};
use wire::digest::Digest;
use wire::identity::BootId;
use wire::mac::Mac;

use crate::boots::is_loading;
use crate::config::{DhcpMode, Interface};
use crate::image::{BootFile, ImageInfo, ImageRef};
use crate::plan::BootPlan;
use crate::record::{Node, Record};
use crate::{Engine, Turn};

/// What the root is mounted with. Images never change, so attributes may be kept for a day and
/// files need no check at each open.
const ROOT_OPTIONS: [&str; 6] = [
    "ro",
    "vers=4.2",
    "nocto",
    "noatime",
    "actimeo=86400",
    "rsize=1048576",
];
/// The port that needs no saying.
const NFS_PORT: u16 = 2049;

impl Engine {
    /// The image version that a node's next boot takes: what its image names, unless that failed. The
    /// default image's where the node is not known yet.
    pub(crate) fn version_of(&self, node: Option<&Node>) -> Result<Digest, String> {
        if let Some(once) = node.and_then(|node| self.version_for_once(node)) {
            return once;
        }
        let wanted = self.wanted_version(node)?;
        let fallback = node.and_then(|node| self.fallback_of(node));
        Ok(fallback.map_or(wanted, |it| it.instead))
    }

    /// The version that a node is pinned to, else that of its image.
    pub(crate) fn wanted_version(&self, node: Option<&Node>) -> Result<Digest, String> {
        match node.and_then(|node| node.pinned) {
            Some(pinned) => Ok(pinned),
            None => self.image_of(node).map(|image| image.digest),
        }
    }

    /// The version that a node was given for its next boot, or for the one that its loaders are at.
    fn version_for_once(&self, node: &Node) -> Option<Result<Digest, String>> {
        let current = || self.boots.current(node.mac).filter(|boot| is_loading(boot));
        let once = node
            .once
            .as_ref()
            .or_else(|| current().and_then(|boot| boot.once.as_ref()));
        match once {
            Some(image) => Some(match self.find_image(image) {
                Some(image) => Ok(image.digest),
                None => Err(format!("the store has no image {image}")),
            }),
            None => self.trial_version(node).map(Ok),
        }
    }

    /// The image that a node follows, or the default one.
    pub(crate) fn image_of(&self, node: Option<&Node>) -> Result<&ImageInfo, String> {
        let Some(wanted) = self.image_named(node) else {
            return Err("no image is set for it, and there is no default image".into());
        };
        self.find_image(wanted)
            .ok_or_else(|| format!("the store has no image {wanted}"))
    }

    /// The image that a node, else its groups, else the settings name.
    pub(crate) fn image_named<'a>(&'a self, node: Option<&'a Node>) -> Option<&'a ImageRef> {
        let own = node.and_then(|node| node.image.as_ref());
        let of_groups = || {
            self.groups_of(node)
                .into_iter()
                .find_map(|it| it.image.as_ref())
        };
        own.or_else(of_groups)
            .or(self.config.default_image.as_ref())
    }

    pub(crate) fn find_image(&self, wanted: &ImageRef) -> Option<&ImageInfo> {
        self.images
            .iter()
            .find(|image| image.name == wanted.name && image.tag == wanted.tag)
    }

    /// An image that a tag has for a version, if any has.
    pub(crate) fn tagged(&self, version: Digest) -> Option<&ImageInfo> {
        self.images.iter().find(|image| image.digest == version)
    }

    /// Whether a version has a boot file, else why not.
    pub(crate) fn has_file(&self, version: Digest, file: BootFile) -> Result<(), String> {
        let Some(image) = self.tagged(version) else {
            // Only a version that has booted is booted without a tag.
            let there = self.versions.contains(&version);
            return there
                .then_some(())
                .ok_or_else(|| format!("the store has no version {version}"));
        };
        match image.files.get(&file) {
            Some(Ok(())) => Ok(()),
            Some(Err(cause)) => Err(cause.clone()),
            None => Err(format!(
                "{} of {}:{} is not ready",
                file.name(),
                image.name,
                image.tag
            )),
        }
    }

    /// The boot that a rendered configuration belongs to: the one that firmware began, or a new
    /// one where that has already run.
    pub(crate) fn boot_to_render(&mut self, turn: &mut Turn, mac: Mac) -> BootId {
        match self.boots.current(mac) {
            Some(boot) if is_loading(boot) => boot.id,
            _ => self.mint_boot(turn, mac),
        }
    }

    /// What a node boots now, as the boot `id`.
    pub(crate) fn plan(
        &mut self,
        turn: &mut Turn,
        mac: Mac,
        id: BootId,
    ) -> Result<BootPlan, String> {
        let node = self.nodes.get(&mac).ok_or("no such node")?;
        let digest = self.version_of(Some(node))?;
        self.has_file(digest, BootFile::Kernel)?;
        self.has_file(digest, BootFile::Initrd)?;
        let interface = self.network_of(node)?;
        let command_line = self.command_line(node, interface, digest, id)?;
        let kernel = format!("boot/{digest}/{}", BootFile::Kernel.name());
        let initrd = format!("boot/{digest}/{}", BootFile::Initrd.name());
        let plan = BootPlan {
            mac,
            node: node.name.clone(),
            server: interface.address,
            digest,
            boot: id,
            kernel,
            initrd,
            command_line,
            consoles: self.consoles_of(node).to_vec(),
        };
        if let Some(boot) = self.boots.get_mut(id)
            && boot.image != Some(digest)
        {
            boot.image = Some(digest);
            turn.out
                .push(crate::Output::Persist(Record::Boot(boot.clone())));
        }
        Ok(plan)
    }

    /// The network that a node boots from: that of its address, else the first. Another server may
    /// give addresses of networks that we know nothing of.
    pub(crate) fn network_of(&self, node: &Node) -> Result<&Interface, String> {
        let address = self.address_of(node);
        let holds = |it: &&Interface| address.is_none_or(|address| it.contains(address));
        let is_foreign = |it: &&Interface| it.dhcp != DhcpMode::Authoritative;
        let interfaces = || self.config.interfaces.iter();
        interfaces()
            .find(holds)
            .or_else(|| interfaces().find(is_foreign))
            .ok_or_else(|| "its address is in no served network".into())
    }

    fn command_line(
        &self,
        node: &Node,
        interface: &Interface,
        digest: Digest,
        id: BootId,
    ) -> Result<String, String> {
        let boot = self.boots.get(id).ok_or("no such boot")?;
        let wanted = self.kernel_args(node);
        // Users' words may be parameters that we write ourselves; those that were understood count.
        let (users, _) = BootArgs::parse(&wanted);
        let selinux = self.selinux_off(&users, digest).map(|_| Param {
            name: "selinux".into(),
            value: Some("0".into()),
        });
        let dhcp = || {
            vec![Ip::Dhcp {
                interface: None,
                mtu: None,
            }]
        };
        let args = BootArgs {
            root: Some(
                users
                    .root
                    .unwrap_or_else(|| self.root(interface.address, digest)),
            ),
            ip: if users.ip.is_empty() {
                dhcp()
            } else {
                users.ip
            },
            bootif: Some(node.mac),
            slate: Some(SlateArgs {
                server: SocketAddrV4::new(interface.address, self.config.http_port),
                boot: id,
                token: boot.token,
            }),
            nfs_unique_id: users
                .nfs_unique_id
                .or_else(|| Some(format!("slate-{}", node.mac.plain()))),
            extra: users.extra.into_iter().chain(selinux).collect(),
            ..users
        };
        args.render()
            .map_err(|error| format!("its kernel command line cannot be written: {error}"))
    }

    /// Why SELinux is switched off for a node, by what users say of it and by the version that it
    /// boots. A kernel that has it on would refuse most of what a system without labels does.
    pub(crate) fn selinux_off(&self, users: &BootArgs, version: Digest) -> Option<&str> {
        let is_ours = users.root.is_none() && users.param("selinux").is_none();
        let cause = self.no_selinux.get(&version).filter(|_| is_ours)?;
        Some(cause)
    }

    fn root(&self, server: Ipv4Addr, digest: Digest) -> NfsRoot {
        let mut options: Vec<String> = ROOT_OPTIONS.map(str::to_owned).into();
        if self.config.nfs_port != NFS_PORT {
            options.push(format!("port={}", self.config.nfs_port));
        }
        NfsRoot {
            only_v4: false,
            server: Some(server),
            path: format!("/images/{digest}"),
            options,
        }
    }
}
