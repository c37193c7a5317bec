//! Carrying out users' commands.

use std::net::Ipv4Addr;

use wire::cmdline::{BootArgs, split};
use wire::mac::Mac;

use crate::command::{Command, CommandError, CommandReply, NodeChange, Setting};
use crate::console;
use crate::event::EventKind;
use crate::group::FileEntry;
use crate::image::{ImageRef, is_part};
use crate::io::Output;
use crate::record::{Node, Record, Secret};
use crate::view::SecretView;
use crate::{Engine, MAX_NODES, Turn};

/// Longest addition to a kernel command line; the whole line has 2,047 bytes.
const MAX_KERNEL_ARGS_BYTES: usize = 1024;
/// Longest secret, in bytes.
const MAX_SECRET_BYTES: usize = 64 << 10;
/// Most secrets.
const MAX_SECRETS: usize = 1024;
/// How much of a refused text is shown.
const SHOWN_CHARS: usize = 80;

impl Engine {
    pub(crate) fn command(&mut self, turn: &mut Turn, command: Command) {
        let reply = match command {
            Command::NodeSet { node, change } => self.node_set(turn, &node, change),
            Command::NodeForget { node } => self.node_forget(turn, &node),
            Command::Plan { node } => self.plan_command(turn, &node),
            Command::SetAuthorizedKeys { keys } => self.set_keys(turn, keys),
            Command::Apply {
                inventory,
                prune,
                dry_run,
                may_run,
            } => self.apply_inventory(turn, inventory, prune, dry_run, may_run),
            Command::Inventory => Ok(CommandReply::Inventory(self.inventory())),
            Command::Select { nodes } => self.select_nodes(&nodes),
            Command::SetSecret { name, content } => self.set_secret(turn, name, content),
            Command::Order {
                nodes,
                script,
                seconds,
                upload_bytes,
            } => self.order(turn, &nodes, &script, seconds, upload_bytes),
            Command::Power { nodes, action } => self.switch_power(turn, &nodes, action),
            Command::RollOut(plan) => self.roll_out(turn, plan),
            Command::StopRollout { id } => self.stop_rollout(turn, id),
            Command::Rollouts => Ok(CommandReply::Rollouts(self.rollout_views(None))),
            Command::Orders { ids } => Ok(self.orders_of(&ids)),
            Command::Secrets => Ok(CommandReply::Secrets(self.secret_views())),
        };
        turn.out.push(Output::Reply(reply));
    }

    /// The MAC of the node that is meant by MAC, name or address.
    pub(crate) fn find(&self, node: &str) -> Result<Mac, CommandError> {
        if let Ok(mac) = node.parse::<Mac>() {
            return Ok(mac);
        }
        let address: Option<Ipv4Addr> = node.parse().ok();
        let found = match address {
            Some(address) => self.node_at(address),
            None => self.nodes.values().find(|it| it.name == node),
        };
        let unknown = || CommandError::UnknownNode { got: cut(node) };
        found.map(|node| node.mac).ok_or_else(unknown)
    }

    fn find_or_make(&mut self, turn: &mut Turn, node: &str) -> Result<Node, CommandError> {
        let mac = self.find(node)?;
        if !mac.is_unicast() || mac == Mac::PROBE {
            return Err(CommandError::BadMac { got: mac });
        }
        let made = self.ensure_node(turn, mac).cloned();
        made.ok_or(CommandError::Full { max: MAX_NODES })
    }

    fn node_set(
        &mut self,
        turn: &mut Turn,
        node: &str,
        change: NodeChange,
    ) -> Result<CommandReply, CommandError> {
        let mac = self.find(node)?;
        // Everything is checked before anything is made or changed.
        if let Some(name) = &change.name {
            self.check_name(name)?;
            self.check_name_is_free(mac, name)?;
        }
        if let Some(Setting::To(address)) = change.address {
            self.check_address(turn, mac, address)?;
            self.check_address_is_free(mac, address)?;
        }
        let parse = |image: Option<Setting<String>>| match image {
            Some(Setting::To(image)) => Ok(Some(Setting::To(self.parse_image(&image)?))),
            Some(Setting::Default) => Ok(Some(Setting::Default)),
            None => Ok(None),
        };
        let image = parse(change.image)?;
        let once = parse(change.once)?;
        if let Some(args) = &change.kernel_args {
            check_kernel_args(args)?;
        }
        if let Some(console) = &change.console {
            console::check(console)?;
        }
        if let Some(groups) = &change.groups {
            Engine::check_groups(groups, |name| self.groups.contains_key(name))?;
        }
        let mut node = self.find_or_make(turn, node)?;
        node.name = change.name.unwrap_or(node.name);
        match change.address {
            Some(Setting::To(address)) => node.address = Some(address),
            Some(Setting::Default) => node.address = None,
            None => {}
        }
        // Whoever says what it boots means that, also where it has failed before.
        if image.is_some() {
            node.fallback = None;
            node.pinned = None;
            node.trial = None;
            node.image_set = Some(turn.now);
        }
        match image {
            Some(Setting::To(image)) => node.image = Some(image),
            Some(Setting::Default) => node.image = None,
            None => {}
        }
        match once {
            Some(Setting::To(image)) => node.once = Some(image),
            Some(Setting::Default) => node.once = None,
            None => {}
        }
        node.kernel_args = change.kernel_args.unwrap_or(node.kernel_args);
        match change.loader {
            Some(Setting::To(loader)) => node.loader = Some(loader),
            Some(Setting::Default) => node.loader = None,
            None => {}
        }
        node.console = change.console.unwrap_or(node.console);
        node.groups = change.groups.unwrap_or(node.groups);
        if self.nodes.get(&mac) != Some(&node) {
            self.put_node(turn, node.clone());
        }
        Ok(CommandReply::Node(Box::new(self.view(&node))))
    }

    pub(crate) fn check_name(&self, name: &str) -> Result<(), CommandError> {
        let inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
        let bytes = name.as_bytes();
        let valid = bytes.len() <= 63
            && bytes.iter().all(|byte| inner(*byte))
            && edge(bytes.first())
            && edge(bytes.last());
        if valid {
            Ok(())
        } else {
            Err(CommandError::BadName { got: cut(name) })
        }
    }

    fn check_name_is_free(&self, mac: Mac, name: &str) -> Result<(), CommandError> {
        match self
            .nodes
            .values()
            .find(|it| it.name.eq_ignore_ascii_case(name) && it.mac != mac)
        {
            Some(owner) => Err(CommandError::NameTaken {
                name: name.into(),
                owner: owner.mac,
            }),
            None => Ok(()),
        }
    }

    /// Whether a node may have the address at all, as far as other nodes do not matter.
    pub(crate) fn check_address(
        &self,
        turn: &Turn,
        mac: Mac,
        address: Ipv4Addr,
    ) -> Result<(), CommandError> {
        let interfaces = &self.config.interfaces;
        if !interfaces
            .iter()
            .any(|interface| interface.is_assignable(address))
        {
            let shown: Vec<_> = interfaces
                .iter()
                .map(|it| format!("{}/{}", it.network(), it.prefix))
                .collect();
            return Err(CommandError::AddressOutside {
                expected: shown.join(" or "),
                got: address,
            });
        }
        if self.is_router(address) {
            let owner = "a router".into();
            return Err(CommandError::AddressTaken { address, owner });
        }
        if self.leases.is_taken(address, mac, turn.now) {
            let owner = self.leases.owner(address);
            let owner = owner.map_or("a machine that is not ours".into(), |mac| mac.to_string());
            return Err(CommandError::AddressTaken { address, owner });
        }
        Ok(())
    }

    fn check_address_is_free(&self, mac: Mac, address: Ipv4Addr) -> Result<(), CommandError> {
        let mut nodes = self.nodes.values();
        match nodes.find(|it| it.address == Some(address) && it.mac != mac) {
            Some(owner) => Err(CommandError::AddressTaken {
                address,
                owner: owner.name.clone(),
            }),
            None => Ok(()),
        }
    }

    pub(crate) fn parse_image(&self, text: &str) -> Result<ImageRef, CommandError> {
        let image: ImageRef = text
            .parse()
            .map_err(|_| CommandError::BadImage { got: cut(text) })?;
        if self.find_image(&image).is_none() {
            let known: Vec<_> = self
                .images
                .iter()
                .map(|it| format!("{}:{}", it.name, it.tag))
                .collect();
            return Err(CommandError::UnknownImage {
                image,
                known: known.join(", "),
            });
        }
        Ok(image)
    }

    fn node_forget(&mut self, turn: &mut Turn, node: &str) -> Result<CommandReply, CommandError> {
        let mac = self.find(node)?;
        if !self.nodes.contains_key(&mac) {
            return Err(CommandError::UnknownNode { got: cut(node) });
        }
        self.forget(turn, mac);
        Ok(CommandReply::Done)
    }

    /// Takes a node out of the inventory, with its address and its boots.
    pub(crate) fn forget(&mut self, turn: &mut Turn, mac: Mac) {
        self.tell(turn, Some(mac), EventKind::NodeForgotten);
        self.nodes.remove(mac);
        self.renames += 1;
        let mut keys = vec![format!("node/{mac}")];
        if let Some(address) = self.leases.address_of(mac) {
            self.leases.remove(address);
            keys.push(format!("lease/{address}"));
        }
        keys.extend(self.boots.forget(mac).iter().map(|id| format!("boot/{id}")));
        keys.into_iter()
            .for_each(|key| turn.persist(Record::Removed { key }));
        self.unlearn(turn, mac);
        self.firmware.remove(&mac);
        self.last_offers.remove(&mac);
        self.soliciting.remove(mac);
        self.orders.forget(mac);
    }

    fn plan_command(&mut self, turn: &mut Turn, node: &str) -> Result<CommandReply, CommandError> {
        let node = self.find_or_make(turn, node)?;
        let boot = self.boot_to_render(turn, node.mac);
        match self.plan(turn, node.mac, boot) {
            Ok(plan) => Ok(CommandReply::Plan(Box::new(plan))),
            Err(cause) => Err(CommandError::NoPlan {
                node: node.name,
                cause,
            }),
        }
    }

    /// Keeps a secret for files that name it, or removes it.
    fn set_secret(
        &mut self,
        turn: &mut Turn,
        name: String,
        content: Option<Secret>,
    ) -> Result<CommandReply, CommandError> {
        check_secret_name(&name)?;
        let Some(content) = content else {
            return self.remove_secret(turn, name);
        };
        if content.0.len() > MAX_SECRET_BYTES {
            return Err(CommandError::BadSetting {
                expected: format!("a secret of at most {MAX_SECRET_BYTES} bytes"),
                got: format!("{} bytes", content.0.len()),
            });
        }
        if self.secrets.len() >= MAX_SECRETS && !self.secrets.contains_key(&name) {
            return Err(CommandError::BadSetting {
                expected: format!("at most {MAX_SECRETS} secrets"),
                got: "one more".into(),
            });
        }
        turn.persist(Record::Secret {
            name: name.clone(),
            content: content.clone(),
        });
        self.secrets.insert(name.clone(), content);
        self.tell(turn, None, EventKind::SecretSet { name });
        Ok(CommandReply::Done)
    }

    fn remove_secret(
        &mut self,
        turn: &mut Turn,
        name: String,
    ) -> Result<CommandReply, CommandError> {
        if !self.secrets.contains_key(&name) {
            return Err(CommandError::UnknownSecret { got: name });
        }
        let groups = self.groups_with_secret(&name);
        if !groups.is_empty() {
            let groups = groups.join(", ");
            return Err(CommandError::SecretInUse { name, groups });
        }
        self.secrets.remove(&name);
        turn.persist(Record::Removed {
            key: format!("secret/{name}"),
        });
        self.tell(turn, None, EventKind::SecretRemoved { name });
        Ok(CommandReply::Done)
    }

    fn groups_with_secret(&self, secret: &str) -> Vec<String> {
        let names = |file: &FileEntry| file.secret.as_deref() == Some(secret);
        let groups = self.groups.iter();
        groups
            .filter(|(_, group)| group.files.values().any(names))
            .map(|(name, _)| name.clone())
            .collect()
    }

    fn secret_views(&self) -> Vec<SecretView> {
        let view = |(name, content): (&String, &Secret)| SecretView {
            name: name.clone(),
            bytes: content.0.len(),
            groups: self.groups_with_secret(name),
        };
        self.secrets.iter().map(view).collect()
    }

    fn set_keys(
        &mut self,
        turn: &mut Turn,
        keys: Vec<String>,
    ) -> Result<CommandReply, CommandError> {
        if let Some(bad) = keys.iter().find(|key| !is_public_key(key)) {
            return Err(CommandError::BadKey { got: cut(bad) });
        }
        self.settings.authorized_keys = keys;
        turn.persist(Record::Settings(self.settings.clone()));
        Ok(CommandReply::Done)
    }
}

pub(crate) fn check_secret_name(name: &str) -> Result<(), CommandError> {
    if is_part(name) {
        return Ok(());
    }
    Err(CommandError::BadSetting {
        expected: "a secret's name of letters, digits, '.', '_' and '-'".into(),
        got: cut(name),
    })
}

pub(crate) fn check_kernel_args(args: &str) -> Result<(), CommandError> {
    let bad = || CommandError::BadKernelArgs {
        max: MAX_KERNEL_ARGS_BYTES,
        got: cut(args),
    };
    let (parsed, errors) = BootArgs::parse(args);
    let printable = args.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    // GRUB puts a backslash before each of these (grub_create_loader_cmdline).
    let kept = |text: &str| !text.contains(['\\', '\'', '"']);
    let plain = split(args)
        .iter()
        .all(|word| kept(&word.name) && word.value.as_deref().is_none_or(kept));
    let fits = printable && plain && args.len() <= MAX_KERNEL_ARGS_BYTES;
    if !fits || !errors.is_empty() || parsed.render().is_err() {
        return Err(bad());
    }
    Ok(())
}

fn is_public_key(line: &str) -> bool {
    let mut words = line.split_whitespace();
    let kind = words.next().unwrap_or_default();
    let known = ["ssh-", "ecdsa-", "sk-"]
        .iter()
        .any(|prefix| kind.starts_with(prefix));
    let base64 = |it: char| it.is_ascii_alphanumeric() || matches!(it, '+' | '/' | '=');
    let printable = line.chars().all(|it| !it.is_control());
    known
        && printable
        && words
            .next()
            .is_some_and(|key| key.len() > 20 && key.chars().all(base64))
}

pub(crate) fn cut(text: &str) -> String {
    text.chars().take(SHOWN_CHARS).collect()
}
