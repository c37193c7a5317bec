//! Switching machines on and off: what drives a node's power, and when it is used.
//!
//! A driver is a group's or a node's word `power`: `wol`, or a command line that the daemon runs. No
//! shell sees that: it is cut at spaces, and what stands for the node is put into words that are there
//! already, so nothing in a node's name adds one.

use std::net::Ipv4Addr;
use std::time::Duration;

use wire::mac::Mac;

use crate::command::{CommandError, CommandReply};
use crate::config::Interface;
use crate::event::EventKind;
use crate::io::Output;
use crate::record::Node;
use crate::{Engine, Turn};

/// Longest `power` of a group or a node, in bytes.
const MAX_BYTES: usize = 512;
/// What stands for the node and for what is to be done.
const PLACES: [&str; 4] = ["{action}", "{name}", "{mac}", "{address}"];
/// Longest time that one command may take.
pub const POWER_TIME: Duration = Duration::from_secs(60);
/// Longest time until its end is told: others may be before it.
const SECONDS: u32 = 900;

/// What is to become of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PowerAction {
    /// Switch it on.
    On,
    /// Cut it off.
    Off,
    /// Cut it off and switch it on.
    Cycle,
}

impl PowerAction {
    /// As commands have it.
    pub fn name(self) -> &'static str {
        match self {
            PowerAction::On => "on",
            PowerAction::Off => "off",
            PowerAction::Cycle => "cycle",
        }
    }
}

/// What the daemon does to a machine's power.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PowerTask {
    /// Send a magic packet for a MAC to these broadcast addresses.
    Wake {
        /// The machine.
        mac: Mac,
        /// One for each network that it may be on.
        broadcasts: Vec<Ipv4Addr>,
    },
    /// Run a program, for [`POWER_TIME`] at most.
    Run {
        /// The program and its arguments; no shell.
        words: Vec<String>,
    },
}

/// What drives a machine's power.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Driver {
    Wake,
    Run(Vec<String>),
}

impl Driver {
    fn parse(text: &str) -> Result<Driver, String> {
        if text == "wol" {
            return Ok(Driver::Wake);
        }
        let words: Vec<String> = text
            .split(' ')
            .filter(|it| !it.is_empty())
            .map(str::to_owned)
            .collect();
        let first = words.first().map_or("", String::as_str);
        let odd = |it: char| it.is_control() || "'\"\\`$;|&<>".contains(it);
        if text.len() > MAX_BYTES || text.contains(odd) {
            return Err("no shell runs it: put quotes, variables and pipes into a script".into());
        }
        if first.is_empty() || first.contains('{') {
            return Err("its first word is to be a program".into());
        }
        if !text.contains("{action}") {
            return Err("it has no {action}, which becomes on, off or cycle".into());
        }
        let rest = PLACES
            .iter()
            .fold(text.to_owned(), |text, place| text.replace(place, ""));
        if rest.contains(['{', '}']) {
            return Err(format!("of braces it may have {} only", PLACES.join(", ")));
        }
        Ok(Driver::Run(words))
    }
}

/// Checks a `power` by itself.
pub(crate) fn check(text: &str) -> Result<(), CommandError> {
    Driver::parse(text)
        .map(|_| ())
        .map_err(|why| CommandError::BadSetting {
            expected: format!(
                "power = \"wol\", or a command such as \"powerman --{{action}} {{name}}\" ({why})"
            ),
            got: crate::commands::cut(text),
        })
}

/// Whether a `power` has the daemon run something.
pub(crate) fn runs(text: &str) -> bool {
    text != "wol"
}

impl Engine {
    /// What a node's power is driven by: its own word, then that of its groups.
    pub(crate) fn power_of<'a>(&'a self, node: &'a Node) -> Option<&'a str> {
        let own = node.power.as_deref();
        own.or_else(|| {
            self.setting(node, |group| group.power.as_ref())
                .map(String::as_str)
        })
    }

    /// Whether a node's power can be switched so.
    pub(crate) fn can_switch(&self, mac: Mac, action: PowerAction) -> bool {
        let node = self.nodes.get(&mac);
        let power = node.and_then(|node| self.power_of(node));
        power.is_some_and(|power| runs(power) || action == PowerAction::On)
    }

    /// Switches the power of nodes; those that have no driver do not keep the others from it.
    pub(crate) fn switch_power(
        &mut self,
        turn: &mut Turn,
        nodes: &str,
        action: PowerAction,
    ) -> Result<CommandReply, CommandError> {
        let macs = self.select(nodes)?;
        let views = macs.into_iter().map(|mac| {
            let given = self.switch_one(turn, mac, action);
            self.given_view(mac, given)
        });
        Ok(CommandReply::Orders(views.collect()))
    }

    /// Has the daemon switch one node's power: an order that it carries out itself.
    pub(crate) fn switch_one(
        &mut self,
        turn: &mut Turn,
        mac: Mac,
        action: PowerAction,
    ) -> Result<u64, String> {
        let task = self.power_task(mac, action)?;
        let order = self.keep_power_order(turn, mac, action, SECONDS)?;
        self.tell(
            turn,
            Some(mac),
            EventKind::Ordered {
                order,
                command: format!("power {}", action.name()),
            },
        );
        turn.out.push(Output::Power { order, task });
        Ok(order)
    }

    fn power_task(&self, mac: Mac, action: PowerAction) -> Result<PowerTask, String> {
        let node = self.nodes.get(&mac).ok_or("it is no node")?;
        let power = self.power_of(node);
        let power =
            power.ok_or("nothing says how: give it or its group power = … in slate.toml")?;
        let address = self.address_of(node);
        match Driver::parse(power)? {
            Driver::Wake if action != PowerAction::On => {
                Err("Wake-on-LAN can only switch machines on".into())
            }
            Driver::Wake => Ok(PowerTask::Wake {
                mac,
                broadcasts: self.broadcasts(address),
            }),
            Driver::Run(words) => {
                let text = |address: Option<Ipv4Addr>| address.map(|it| it.to_string());
                let needs = words.iter().any(|it| it.contains("{address}"));
                let address = match text(address) {
                    None if needs => return Err("it has no address yet".into()),
                    address => address.unwrap_or_default(),
                };
                let fill = |word: &String| {
                    word.replace("{action}", action.name())
                        .replace("{name}", &node.name)
                        .replace("{mac}", &mac.to_string())
                        .replace("{address}", &address)
                };
                Ok(PowerTask::Run {
                    words: words.iter().map(fill).collect(),
                })
            }
        }
    }

    /// The networks that a machine may be on: where its address is, else all of ours.
    fn broadcasts(&self, address: Option<Ipv4Addr>) -> Vec<Ipv4Addr> {
        let interfaces = &self.config.interfaces;
        let has = |it: &&Interface| address.is_some_and(|address| it.contains(address));
        let own: Vec<Ipv4Addr> = interfaces
            .iter()
            .filter(has)
            .map(Interface::broadcast)
            .collect();
        match own.is_empty() {
            true => interfaces.iter().map(Interface::broadcast).collect(),
            false => own,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drivers_are_wol_or_commands_with_their_places() {
        assert_eq!(Driver::parse("wol"), Ok(Driver::Wake));
        let words = |text| match Driver::parse(text) {
            Ok(Driver::Run(words)) => words,
            other => panic!("{text}: {other:?}"),
        };
        assert_eq!(
            words("powerman  --{action} {name}"),
            ["powerman", "--{action}", "{name}"]
        );
        for wrong in [
            "",
            " ",
            "wol2",
            "{name} {action}",
            "powerman -c {name}",
            "power {action} {host}",
            "power {action} {name",
            "power {action} $(reboot)",
            "power {action} 'a b'",
            "power {action}; reboot",
            "power\n{action}",
            &format!("power {{action}} {}", "x".repeat(MAX_BYTES)),
        ] {
            assert!(Driver::parse(wrong).is_err(), "{wrong}");
            assert!(check(wrong).is_err(), "{wrong}");
        }
    }
}
