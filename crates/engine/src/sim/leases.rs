//! Machines that are no nodes, more of them than there are addresses, and a daemon that is killed
//! again and again: what was acknowledged stays, what was only offered may go.

use wire::dhcp4::{MAX_BUDGET_BYTES, option};

use super::*;

const POOL: u8 = 4;
const STRANGERS: u32 = 8;
const LEASE: Duration = Duration::from_secs(300);
const ROUNDS: usize = 4000;

/// Who was told that an address is theirs, and until when.
type Acknowledged = BTreeMap<Ipv4Addr, (Mac, Timestamp)>;

fn crowded(seed: u8) -> World {
    let mut config = config();
    let pool = ([10, 77, 0, 100].into(), [10, 77, 0, 99 + POOL].into());
    config.lease = LEASE;
    config.interfaces = vec![Interface {
        pool: Some(pool),
        ..Interface::new(INTERFACE, SERVER, 24)
    }];
    World::new(seed, GOOD, config)
}

/// A message of a machine that is no firmware.
pub(super) fn ask(number: u32, kind: MessageType, address: Option<Ipv4Addr>) -> Vec<u8> {
    let [.., low] = number.to_be_bytes();
    let mut message = Message::request(Mac([2, 0, 0, 0, 0, low]), number);
    message.push(option::MESSAGE_TYPE, [kind.code()]);
    if let Some(address) = address {
        message.push(option::REQUESTED_ADDRESS, address.octets());
    }
    message.encode(MAX_BUDGET_BYTES)
}

impl World {
    /// A number below `end`.
    fn draw(&mut self, end: u32) -> u32 {
        self.rng.next_u32() % end
    }

    /// The replies that are on their way, which arrive.
    fn take_replies(&mut self) -> Vec<Message> {
        let queue = std::mem::take(&mut self.queue).into_values();
        let replies = queue.filter_map(|it| match it {
            Packet::DhcpReply(bytes) => Message::decode(&bytes).ok(),
            _ => None,
        });
        replies.collect()
    }

    fn random_request(&mut self) -> Vec<u8> {
        let number = self.draw(STRANGERS);
        let last = 100 + self.draw(POOL.into()) as u8;
        let wanted = Some([10, 77, 0, last].into());
        match self.draw(4) {
            0 => ask(number, MessageType::Discover, wanted),
            1 => ask(number, MessageType::Discover, None),
            _ => ask(number, MessageType::Request, wanted),
        }
    }
}

fn note(acknowledged: &mut Acknowledged, now: Timestamp, reply: &Message) {
    if reply.message_type() != Some(MessageType::Ack) {
        return;
    }
    let former = acknowledged.insert(reply.yiaddr, (reply.mac, now + LEASE));
    if let Some((owner, until)) = former {
        let free = owner == reply.mac || until <= now;
        assert!(free, "{} is given twice", reply.yiaddr);
    }
    // It has one address only, and gives up another by taking this one.
    acknowledged.retain(|address, (owner, _)| *owner != reply.mac || *address == reply.yiaddr);
}

#[test]
fn a_restart_forgets_offers_but_no_lease() {
    let mut acks = 0;
    for seed in 0..8 {
        let mut world = crowded(seed);
        let mut acknowledged = Acknowledged::new();
        for _ in 0..ROUNDS {
            match world.draw(16) {
                0 => world.restart(),
                1 => {
                    let pause = world.draw(90);
                    world.now = world.now + Duration::from_secs(pause.into());
                }
                _ => {
                    let killed = world.draw(8) == 0;
                    world.killed_before =
                        killed.then(|| world.outputs + u64::from(world.rng.next_u32() % 4));
                    let request = world.random_request();
                    world.input(dhcp(request));
                    world.killed_before = None;
                }
            }
            let now = world.now;
            for reply in world.take_replies() {
                note(&mut acknowledged, now, &reply);
                acks += usize::from(reply.message_type() == Some(MessageType::Ack));
            }
        }
        world.check_leases();
    }
    assert!(acks > 1000, "{acks}");
}
