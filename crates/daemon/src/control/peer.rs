//! Who may use the control socket: root, the daemon's own user, and members of the group `slate`.

use std::os::unix::net::UnixStream;

/// Name of the group.
const GROUP: &str = "slate";

/// The numeric id of the group, where this machine has it.
pub fn group_id() -> Option<u32> {
    Groups::of_this_machine().group
}

/// Whether the process at the other end may ask for anything. The socket's mode says the same;
/// this holds also where somebody has widened it.
pub fn may(stream: &UnixStream) -> bool {
    let Ok(peer) = rustix::net::sockopt::socket_peercred(stream) else {
        return false;
    };
    let (user, group) = (peer.uid.as_raw(), peer.gid.as_raw());
    user == 0
        || user == rustix::process::geteuid().as_raw()
        || Groups::of_this_machine().has(user, group)
}

/// Whether the process at the other end is root's, or this process's user's.
pub fn is_root(stream: &UnixStream) -> bool {
    rustix::net::sockopt::socket_peercred(stream)
        .is_ok_and(|peer| peer.uid.is_root() || peer.uid == rustix::process::geteuid())
}

/// The group and who is in it besides those whose first group it is.
struct Groups {
    group: Option<u32>,
    members: Vec<u32>,
}

impl Groups {
    fn of_this_machine() -> Groups {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        Groups::parse(&read("/etc/group"), &read("/etc/passwd"))
    }

    /// From lines `name:password:gid:member,member` and `name:password:uid:…`.
    fn parse(groups: &str, users: &str) -> Groups {
        let mut lines = groups.lines().map(|line| line.split(':'));
        let (group, names) = lines
            .find_map(|mut fields| {
                let found = fields.next()? == GROUP;
                let group = fields.nth(1)?.parse().ok()?;
                found.then(|| (Some(group), fields.next().unwrap_or_default()))
            })
            .unwrap_or_default();
        let names: Vec<&str> = names.split(',').collect();
        let members = users.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let member = names.contains(&fields.next()?);
            let user = fields.nth(1)?.parse().ok()?;
            member.then_some(user)
        });
        Groups {
            group,
            members: members.collect(),
        }
    }

    fn has(&self, user: u32, group: u32) -> bool {
        self.group == Some(group) || self.members.contains(&user)
    }
}

#[cfg(test)]
mod tests {
    use super::Groups;

    #[test]
    fn members_of_the_group_and_nobody_else() {
        let groups = "root:x:0:\nslates:x:7:carol\nslate:x:990:alice,bob\n";
        let users = "root:x:0:0::/:/bin/sh\nalice:x:1000:1000::/:/bin/sh\ncarol:x:1002:1002::/:\n";
        let parsed = Groups::parse(groups, users);
        assert_eq!(parsed.group, Some(990));
        assert!(parsed.has(1000, 1000));
        assert!(parsed.has(1005, 990));
        assert!(!parsed.has(1002, 1002));
        let none = Groups::parse("root:x:0:\n", users);
        assert_eq!(none.group, None);
        assert!(!none.has(1000, 1000));
    }
}
