//! Consoles as the kernel names them, and what GRUB needs to know to use the same.

use crate::command::CommandError;
use crate::commands::cut;

/// Most consoles of one node.
const MAX: usize = 8;
/// Longest name of one, with its options.
const MAX_BYTES: usize = 64;
/// What the kernel takes where nothing is said (serial-console.rst: "9600n8"); GRUB alike.
const DEFAULT_SPEED: u32 = 9600;

/// A serial port of a PC, as GRUB names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Serial {
    /// `ttyS0` is 0.
    pub(crate) unit: u8,
    /// In bits per second.
    pub(crate) speed: u32,
}

/// Whether each can be the value of `console=`: `tty0`, `ttyS0,115200n8`, `hvc0`.
pub(crate) fn check(consoles: &[String]) -> Result<(), CommandError> {
    let refused = |got: &str| CommandError::BadSetting {
        expected: format!("at most {MAX} consoles such as \"tty0\" or \"ttyS0,115200\""),
        got: cut(got),
    };
    if consoles.len() > MAX {
        return Err(refused("more"));
    }
    let plain = |it: u8| it.is_ascii_alphanumeric() || b",:._/-".contains(&it);
    let good = |it: &&String| {
        it.len() <= MAX_BYTES
            && it.bytes().next().is_some_and(|it| it.is_ascii_alphabetic())
            && it.bytes().all(plain)
    };
    match consoles.iter().find(|it| !good(it)) {
        Some(bad) => Err(refused(bad)),
        None => Ok(()),
    }
}

/// The first console that is a serial port of a PC (8250): `ttyS1,115200n8`.
pub(crate) fn serial(consoles: &[String]) -> Option<Serial> {
    consoles.iter().find_map(|console| {
        let (name, options) = console.split_once(',').unwrap_or((console, ""));
        let unit = name.strip_prefix("ttyS")?.parse().ok()?;
        let end = options.find(|it: char| !it.is_ascii_digit());
        let digits = &options[..end.unwrap_or(options.len())];
        let speed = match digits {
            "" => DEFAULT_SPEED,
            digits => digits.parse().ok()?,
        };
        // GRUB knows four, and no speed of 0.
        (unit < 4 && speed > 0).then_some(Serial { unit, speed })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(consoles: &[&str]) -> Vec<String> {
        consoles.iter().map(|it| (*it).to_owned()).collect()
    }

    #[test]
    fn names_are_the_kernel_s() {
        let good = [
            "tty0",
            "ttyS0,115200n8",
            "hvc0",
            "uart8250,mmio,0xff5e0000,115200",
        ];
        assert_eq!(check(&list(&good)), Ok(()));
        for bad in ["", "0tty", "tty0 quiet", "tty0\"", "tty0;x", "ttyS0=1"] {
            assert!(check(&list(&[bad])).is_err(), "{bad}");
        }
        assert!(check(&list(&["tty0"; 9])).is_err());
        assert!(check(&[format!("tty{}", "0".repeat(62))]).is_err());
    }

    #[test]
    fn the_first_serial_port_is_grub_s() {
        let found = |consoles: &[&str]| serial(&list(consoles)).map(|it| (it.unit, it.speed));
        assert_eq!(
            found(&["tty0", "ttyS1,115200n8", "ttyS0"]),
            Some((1, 115_200))
        );
        assert_eq!(found(&["ttyS0"]), Some((0, 9600)));
        assert_eq!(found(&["ttyS0,n8"]), Some((0, 9600)));
        for none in [
            "tty0",
            "hvc0",
            "ttyS9",
            "ttyS300",
            "ttyAMA0,115200",
            "ttyS0,0",
            "ttyS0,99999999999",
        ] {
            assert_eq!(found(&[none]), None, "{none}");
        }
    }
}
