//! `vlan=` and `bond=`: interfaces that are made over others.
//!
//! A VLAN is made when the interface below it appears, a bond at once; its members join it as they
//! appear. What others stand on gets no address of its own, unless `ip=` names it.

use std::collections::BTreeSet;
use std::fs;
use std::io;

use wire::cmdline::{Bond, BootArgs, Ip};
use wire::stage::Stage;

use crate::network::request;
use crate::report::Reporter;
use crate::rtnl::{self, Link};

const BONDS: &str = "/sys/class/net/bonding_masters";

/// What is to be made and what is there.
pub struct Stacks<'a> {
    args: &'a BootArgs,
    report: &'a Reporter,
    done: BTreeSet<String>,
}

impl<'a> Stacks<'a> {
    /// Makes the bonds that the command line asks for.
    pub fn new(args: &'a BootArgs, report: &'a Reporter) -> Stacks<'a> {
        let stacks = Stacks {
            args,
            report,
            done: BTreeSet::new(),
        };
        for bond in &args.bonds {
            stacks.tell(&format!("bond={bond}"), make(bond));
        }
        stacks
    }

    /// An interface is there: it joins its bond, and gets the VLANs over it.
    pub fn seen(&mut self, link: &Link) {
        if self.done.contains(&link.name) || !self.is_part(&link.name) {
            return;
        }
        self.done.insert(link.name.clone());
        for bond in &self.args.bonds {
            if bond.members.contains(&link.name) {
                self.tell(&format!("bond={bond}: {}", link.name), join(bond, link));
            }
        }
        for vlan in self.args.vlans.iter().filter(|it| it.parent == link.name) {
            let made = request(&rtnl::add_vlan(&vlan.name, vlan.id, link.index));
            self.tell(&format!("vlan={vlan}"), made);
        }
    }

    /// Whether it is a VLAN or a bond of the command line.
    pub fn is_made(&self, name: &str) -> bool {
        let mut vlans = self.args.vlans.iter();
        vlans.any(|it| it.name == name) || self.args.bonds.iter().any(|it| it.name == name)
    }

    /// Whether another one stands on it.
    pub fn is_part(&self, name: &str) -> bool {
        self.is_member(name) || self.args.vlans.iter().any(|it| it.parent == name)
    }

    /// Whether it belongs to a bond, which sets it up and down.
    pub fn is_member(&self, name: &str) -> bool {
        let mut members = self.args.bonds.iter().flat_map(|it| &it.members);
        members.any(|it| it == name)
    }

    /// Whether it gets no address: it is below another one, or beside those that were asked for.
    pub fn leaves_alone(&self, name: &str) -> bool {
        let named = self.args.ip.iter().any(|ip| {
            let interface = match ip {
                Ip::Dhcp { interface, .. } | Ip::Off { interface } => interface,
                Ip::Static(fixed) => &fixed.interface,
            };
            interface.as_deref() == Some(name)
        });
        let asked_for = !self.args.vlans.is_empty() || !self.args.bonds.is_empty();
        !named && asked_for && (self.is_part(name) || !self.is_made(name))
    }

    fn tell(&self, what: &str, result: io::Result<()>) {
        if let Err(error) = result {
            self.report
                .failure(Stage::Network, &format!("{what}: {error}"));
        }
    }
}

fn make(bond: &Bond) -> io::Result<()> {
    match fs::write(BONDS, format!("+{}", bond.name)) {
        // The module makes bond0 by itself.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let text = "expected the module bonding in the initramfs (--profile server, all-nic, or --module bonding)";
            return Err(io::Error::other(text));
        }
        result => result?,
    }
    // The mode decides which others there are.
    let is_mode = |option: &&(String, String)| option.0 == "mode";
    let others = bond.options.iter().filter(|it| !is_mode(it));
    for (name, value) in bond.options.iter().filter(is_mode).chain(others) {
        let path = format!("/sys/class/net/{}/bonding/{name}", bond.name);
        fs::write(path, value)
            .map_err(|error| io::Error::other(format!("{name}={value}: {error}")))?;
    }
    if let Some(mtu) = bond.mtu {
        fs::write(format!("/sys/class/net/{}/mtu", bond.name), mtu.to_string())?;
    }
    Ok(())
}

/// The kernel takes members only while they are down.
fn join(bond: &Bond, link: &Link) -> io::Result<()> {
    if link.up {
        request(&rtnl::set_link(link.index, false, None))?;
    }
    let path = format!("/sys/class/net/{}/bonding/slaves", bond.name);
    fs::write(path, format!("+{}", link.name))
}
