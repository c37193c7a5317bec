//! Power that fails everywhere at once, at any instant of a rollout.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lab::{MacAddress, Machine};

use crate::harness::{PATIENCE, Site, impossible, text};
use crate::native::{self, initrd, power_on};
use crate::orders::revive;

const NODES: u16 = 2;
/// Power cuts in one run, if `SLATE_ROUNDS` does not say otherwise.
const ROUNDS: u64 = 6;
/// A rollout to two nodes takes about so long.
const ROLLOUT: Duration = Duration::from_secs(60);

#[test]
#[ignore = "boots machines: cargo xtask test --full"]
fn full_a_power_cut_at_any_instant_of_a_rollout_boots_nobody_into_anything_else() {
    if impossible(&native::TOOLS) {
        return;
    }
    let seed = number("SLATE_SEED").unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        now.expect("a time after 1970").subsec_nanos().into()
    });
    let rounds = number("SLATE_ROUNDS").unwrap_or(ROUNDS);
    println!("to repeat these instants, about: SLATE_SEED={seed}");
    let mut rig = Rig::new(seed);
    let states: BTreeSet<String> = (0..rounds).map(|round| rig.round(round)).collect();
    println!("after the cuts rollouts were {states:?}");
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{variable}: expected a number")),
    )
}

struct Rig {
    site: Site,
    initrd: PathBuf,
    machines: Vec<Machine>,
    /// What rollouts bring to the nodes, in turn.
    versions: [String; 2],
    random: u64,
}

impl Rig {
    fn new(seed: u64) -> Rig {
        let mut site = Site::new("debian12", &[]);
        site.give_own_store();
        let old = site.digest.clone();
        site.change("debian12", "echo new > /etc/new");
        let new = site.slate_json(&["image", "show", "debian12:next", "--json"]);
        let new = text(&new, "digest");
        for (digest, tag) in [(&old, "debian12:one"), (&new, "debian12:two")] {
            site.slate(&["image", "tag", &digest[..12], tag]);
        }
        let initrd = initrd(&site);
        let machines = (1..=NODES).map(|it| power_on(&site, &initrd, it)).collect();
        let rig = Rig {
            site,
            initrd,
            machines,
            versions: [new, old],
            random: seed | 1,
        };
        for machine in &rig.machines {
            rig.site.wait_up(machine.mac(), 1);
        }
        rig
    }

    /// A number below `limit`.
    fn below(&mut self, limit: u64) -> u64 {
        // xorshift64: instants need no better randomness.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % limit
    }

    /// One rollout, one power cut; how the rollout was after it, and all that must hold.
    fn round(&mut self, round: u64) -> String {
        let (to, tag) = match round % 2 {
            0 => (self.versions[0].clone(), "debian12:two"),
            _ => (self.versions[1].clone(), "debian12:one"),
        };
        let before: Vec<String> = self
            .nodes()
            .iter()
            .map(|it| text(it, "next_digest"))
            .collect();
        self.site.slate(&[
            "rollout",
            tag,
            "--to",
            "@all",
            "--force",
            "--gate",
            "true",
            "--timeout",
            "3m",
            "--no-wait",
        ]);
        let instant = self.below(ROLLOUT.as_millis() as u64);
        println!("round {round}: {tag}, cut {instant} ms after its start");
        let end = Instant::now() + Duration::from_millis(instant);
        while Instant::now() < end {
            revive(&self.site, &self.initrd, &mut self.machines);
            std::thread::sleep(Duration::from_millis(50));
        }
        self.site.kill_daemon();
        for machine in &mut self.machines {
            machine.power_off().expect("it can be cut off");
        }
        // Nothing is lost, and nothing is gone that a node may boot.
        self.site.slate(&["image", "gc"]);
        let verified = self.site.slate_json(&["image", "verify", "--json"]);
        assert_eq!(verified["versions"], 2, "{verified}");

        self.site.start_daemon();
        let named = self.nodes();
        let steps = self.steps();
        for ((node, before), step) in named.iter().zip(&before).zip(&steps) {
            let next = text(node, "next_digest");
            let expected = match step.as_str() {
                "proved" => vec![&to],
                "waits" | "taken back" => vec![before],
                // Its loaders may have begun with the version.
                _ => vec![before, &to],
            };
            assert!(
                expected.contains(&&next),
                "{step}: {next} is not of {expected:?}"
            );
        }
        let count = |it: &Rig, index: u16| it.site.events(MacAddress::nth(index), "up").len();
        let counts: Vec<usize> = (1..=NODES).map(|it| count(self, it)).collect();
        self.machines = (1..=NODES)
            .map(|it| power_on(&self.site, &self.initrd, it))
            .collect();
        for ((machine, count), node) in self.machines.iter().zip(counts).zip(&named) {
            let up = self.site.wait_up(machine.mac(), count + 1);
            assert_eq!(up["detail"]["image"], node["next_digest"], "{up}");
        }
        self.end(&to, &before)
    }

    /// Waits until the rollout is over and every node runs what that says.
    fn end(&mut self, to: &str, before: &[String]) -> String {
        let end = Instant::now() + 3 * PATIENCE;
        loop {
            let state = self.state();
            let expected: Vec<&str> = match state.as_str() {
                "done" => vec![to; before.len()],
                _ => before.iter().map(String::as_str).collect(),
            };
            let nodes = self.nodes();
            let field = |name: &'static str| nodes.iter().map(move |it| it[name].as_str());
            let are = |name| field(name).eq(expected.iter().map(|it| Some(*it)));
            if state != "running" && are("digest") && are("next_digest") {
                return state;
            }
            assert!(
                Instant::now() < end,
                "{state}: {nodes:?}, expected {expected:?}"
            );
            revive(&self.site, &self.initrd, &mut self.machines);
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    fn nodes(&self) -> Vec<serde_json::Value> {
        let node = |index| {
            let mac = MacAddress::nth(index).to_string();
            self.site.slate_json(&["node", "show", &mac, "--json"])
        };
        (1..=NODES).map(node).collect()
    }

    fn rollout(&self) -> serde_json::Value {
        let rollouts = self.site.slate_json(&["rollout", "status", "--json"]);
        let last = rollouts.as_array().and_then(|it| it.last()).cloned();
        last.expect("a rollout")
    }

    fn state(&self) -> String {
        text(&self.rollout(), "state")
    }

    /// How far each node is, in order of their MACs.
    fn steps(&self) -> Vec<String> {
        let rollout = self.rollout();
        let steps = rollout["nodes"].as_array().expect("nodes").clone();
        let step = |name: &str| {
            let of = steps.iter().find(|it| it[0] == name);
            of.and_then(|it| it[1].as_str())
                .expect("its step")
                .to_owned()
        };
        let names = self.nodes().into_iter().map(|it| text(&it, "name"));
        names.map(|name| step(&name)).collect()
    }
}
