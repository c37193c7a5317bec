//! Numbers of users and groups, by the image's own files: a static program has no name service.

use std::fs;
use std::io;

/// The numbers for `USER[:GROUP]`; without a group, the user's own.
pub fn find(owner: &str) -> io::Result<(u32, u32)> {
    let passwd = fs::read_to_string("/etc/passwd")?;
    let groups = fs::read_to_string("/etc/group")?;
    look_up(owner, &passwd, &groups)
        .ok_or_else(|| io::Error::other(format!("the image knows no {owner}")))
}

/// Looks into a passwd(5) and a group(5).
fn look_up(owner: &str, passwd: &str, groups: &str) -> Option<(u32, u32)> {
    let (user, group) = owner.split_once(':').unwrap_or((owner, ""));
    let id = field(passwd, user, 2);
    let number = |text: &str| text.parse().ok();
    let user_id = id.or_else(|| number(user))?;
    let group_id = match group {
        "" => field(passwd, user, 3)?,
        name => field(groups, name, 2).or_else(|| number(name))?,
    };
    Some((user_id, group_id))
}

/// The number in a field of the line that begins with a name.
fn field(text: &str, name: &str, field: usize) -> Option<u32> {
    let mut lines = text.lines().map(|line| line.split(':'));
    let line = lines.find_map(|mut line| (line.next() == Some(name)).then_some(line));
    line?.nth(field - 1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_found_by_name_and_number() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nmunge:x:105:110::/nonexistent:/bin/false\n";
        let groups = "root:x:0:\nmunge:x:110:\nmail:x:8:\n";
        let look_up = |owner| look_up(owner, passwd, groups);
        assert_eq!(look_up("munge"), Some((105, 110)));
        assert_eq!(look_up("munge:mail"), Some((105, 8)));
        assert_eq!(look_up("1000:1001"), Some((1000, 1001)));
        // A number alone says nothing of a group.
        assert_eq!(look_up("1000"), None);
        assert_eq!(look_up("nobody"), None);
        assert_eq!(look_up("munge:none"), None);
        assert_eq!(look_up("mun"), None);
    }
}
