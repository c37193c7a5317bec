//! A boot plan, or why there is none, in the languages of the loaders: GRUB, iPXE and PXELINUX.

use wire::cmdline::{Param, split};

use crate::console::{Serial, serial};
use crate::firmware::IPXE_SCRIPT;
use crate::plan::BootPlan;

/// Who reads a configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Language {
    Grub,
    Ipxe,
    Pxelinux,
}

/// Longest command line that PXELINUX hands on (its `MAX_CMDLINE_LEN` less what it adds itself).
const PXELINUX_LINE_BYTES: usize = 2000;

impl Language {
    /// Who reads it, for people.
    pub(crate) fn reader(self) -> &'static str {
        match self {
            Language::Grub => "GRUB",
            Language::Ipxe => "iPXE",
            Language::Pxelinux => "PXELINUX",
        }
    }

    /// A configuration that starts what is planned; the cause where the language cannot say it.
    pub(crate) fn boot(self, plan: &BootPlan) -> Result<String, String> {
        match self {
            Language::Grub => Ok(grub_boot(plan)),
            Language::Ipxe => ipxe_boot(plan),
            Language::Pxelinux => pxelinux_boot(plan),
        }
    }

    /// A configuration that shows why there is nothing to boot, and tries again.
    pub(crate) fn message(self, cause: &str) -> String {
        let lines = [
            "Cleanslate: this machine cannot boot:",
            cause,
            "Trying again in 60 seconds.",
        ];
        match self {
            Language::Grub => format!("{}sleep 60\nreboot\n", echo(&lines)),
            Language::Ipxe => format!("#!ipxe\n{}sleep 60\nreboot\n", say("echo", &lines)),
            Language::Pxelinux => pxelinux_again(&lines, 60),
        }
    }

    /// A configuration that asks again in a moment, when the initramfs has been made.
    pub(crate) fn wait(self) -> String {
        let lines = ["Cleanslate: the server makes the initramfs of this image; asking again."];
        match self {
            Language::Grub => format!("{}sleep 3\nconfigfile $prefix/grub.cfg\n", echo(&lines)),
            Language::Ipxe => {
                let lines = say("echo", &lines);
                format!("#!ipxe\n{lines}sleep 3\nchain --replace /{IPXE_SCRIPT}\n")
            }
            Language::Pxelinux => pxelinux_again(&lines, 3),
        }
    }

    /// A configuration that fetches that of the machine that runs it, named by its own address:
    /// for where the sender's address tells nothing. The loader fills in the variable.
    pub(crate) fn by_mac(self) -> String {
        match self {
            Language::Grub => {
                let message = self.message(
                    "GRUB does not know its own network card's address (net_default_mac); take GRUB 2.12 or newer",
                );
                format!(
                    "set timeout=0\nif [ -n \"${{net_default_mac}}\" ]; then\n  configfile \"/grub/${{net_default_mac}}.cfg\"\nfi\n{message}"
                )
            }
            // With hyphens: before a colon iPXE sees the scheme of a URI.
            Language::Ipxe => "#!ipxe\nchain --replace /ipxe/${netX/mac:hexhyp}.ipxe\n".to_owned(),
            // It has asked by that name before it asks by any other.
            Language::Pxelinux => {
                self.message("it is no node; to let it boot: slate node approve MAC")
            }
        }
    }
}

fn grub_boot(plan: &BootPlan) -> String {
    // GRUB quotes words with spaces for the kernel by itself, so that each word goes in bare.
    let word = |param: &Param| match &param.value {
        Some(value) => quote(&format!("{}={value}", param.name)),
        None => quote(&param.name),
    };
    let words: Vec<String> = split(&plan.command_line).iter().map(word).collect();
    format!(
        "set timeout=0\n{}{}linux /{} {}\ninitrd /{}\nboot\n",
        grub_terminal(&plan.consoles),
        echo(&[&banner(plan)]),
        plan.kernel,
        words.join(" "),
        plan.initrd,
    )
}

/// Besides what firmware shows. A GRUB without that module, or a machine without that port, goes on
/// as it is.
fn grub_terminal(consoles: &[String]) -> String {
    let Some(Serial { unit, speed }) = serial(consoles) else {
        return String::new();
    };
    format!(
        "if serial --unit={unit} --speed={speed}; then\n  terminal_input --append serial\n  terminal_output --append serial\nfi\n"
    )
}

/// Paths are relative to the script's own URI, over TFTP and over HTTP.
fn ipxe_boot(plan: &BootPlan) -> Result<String, String> {
    let line = &plan.command_line;
    // iPXE has no quotes: it expands ${…} everywhere, and these words end a command.
    let stops = |word: &str| matches!(word, "||" | "&&" | ";") || word.starts_with('#');
    if line.contains("${") || line.split_ascii_whitespace().any(stops) {
        return Err(
            "iPXE cannot hand on a kernel argument with \"${\", or \"||\", \"&&\", \";\" or \"#…\" as a word: take it out, or boot the machine by GRUB".into(),
        );
    }
    Ok(format!(
        "#!ipxe\n{}kernel /{} initrd=initrd {}\ninitrd --name initrd /{}\nboot\n",
        say("echo", &[&banner(plan)]),
        plan.kernel,
        plain(line, Language::Ipxe.reader())?,
        plan.initrd,
    ))
}

fn pxelinux_boot(plan: &BootPlan) -> Result<String, String> {
    let line = plain(&plan.command_line, Language::Pxelinux.reader())?;
    if line.len() > PXELINUX_LINE_BYTES {
        return Err(format!(
            "PXELINUX hands on a kernel command line of up to {PXELINUX_LINE_BYTES} bytes, and this one has {}: shorten its kernel arguments",
            line.len()
        ));
    }
    Ok(format!(
        "{}{}DEFAULT slate\nPROMPT 0\nLABEL slate\n  KERNEL {}\n  INITRD {}\n  APPEND {line}\n",
        // It must be the first of all.
        serial(&plan.consoles).map_or_else(String::new, |it| format!(
            "SERIAL {} {}\n",
            it.unit, it.speed
        )),
        say("SAY", &[&banner(plan)]),
        plan.kernel,
        plan.initrd,
    ))
}

/// Shows lines, and reads the configuration again after so many seconds.
fn pxelinux_again(lines: &[&str], seconds: u32) -> String {
    format!(
        "{}DEFAULT again\nPROMPT 1\nTIMEOUT {}\nLABEL again\n  CONFIG pxelinux.cfg/default\n",
        say("SAY", lines),
        seconds * 10
    )
}

fn banner(plan: &BootPlan) -> String {
    format!("Cleanslate: booting {}", plan.node)
}

/// A command line as the rest of a line, where nothing can be quoted.
fn plain<'a>(command_line: &'a str, reader: &str) -> Result<&'a str, String> {
    let is_plain = |it: char| (' '..='~').contains(&it);
    match command_line.chars().find(|it| !is_plain(*it)) {
        None => Ok(command_line),
        Some(other) => Err(format!(
            "{reader} hands on a kernel command line of printable ASCII only, and this one has {other:?}"
        )),
    }
}

fn echo(lines: &[&str]) -> String {
    let line = |line: &&str| format!("echo {}\n", quote(line));
    lines.iter().map(line).collect()
}

/// Lines for people, in a language without quotes. What could mean something becomes a question
/// mark.
fn say(command: &str, lines: &[&str]) -> String {
    let shown = |it: char| match it {
        '$' | '|' | '&' | ';' | '#' | '\\' | '{' | '}' => '?',
        ' '..='~' => it,
        _ => '?',
    };
    let line = |line: &&str| {
        format!(
            "{command} {}\n",
            line.chars().map(shown).collect::<String>()
        )
    };
    lines.iter().map(line).collect()
}

/// One word for GRUB's shell: in single quotes nothing means anything, and a single quote itself
/// stands outside of them, escaped. What is not printable ASCII becomes a question mark.
fn quote(text: &str) -> String {
    let mut out = String::from("'");
    for character in text.chars() {
        match character {
            '\'' => out.push_str("'\\''"),
            ' '..='~' => out.push(character),
            _ => out.push('?'),
        }
    }
    out.push('\'');
    out
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use wire::digest::Digest;
    use wire::identity::BootId;
    use wire::mac::Mac;

    use super::*;

    fn plan(command_line: &str) -> BootPlan {
        BootPlan {
            mac: Mac([2, 0, 0, 0, 0, 1]),
            node: "n'1".into(),
            server: Ipv4Addr::new(10, 0, 0, 1),
            digest: Digest([1; 32]),
            boot: BootId([1; 8]),
            kernel: "boot/k".into(),
            initrd: "boot/i".into(),
            command_line: command_line.into(),
            consoles: Vec::new(),
        }
    }

    #[test]
    fn nothing_escapes_grub_s_quotes() {
        assert_eq!(quote("a'b; reboot\n$x"), "'a'\\''b; reboot?$x'");
        let config = grub_boot(&plan("quiet a=\"b c\" d=$(x)"));
        assert!(
            config.contains("linux /boot/k 'quiet' 'a=b c' 'd=$(x)'\n"),
            "{config}"
        );
        assert_eq!(config.lines().count(), 5);
    }

    #[test]
    fn loaders_use_the_node_s_serial_console() {
        let mut plan = plan("quiet");
        plan.consoles = vec!["tty0".into(), "ttyS1,115200n8".into()];
        let config = grub_boot(&plan);
        let terminal =
            "if serial --unit=1 --speed=115200; then\n  terminal_input --append serial\n";
        assert!(config.contains(terminal), "{config}");
        assert!(config.find(terminal) < config.find("echo "), "{config}");
        let config = Language::Pxelinux.boot(&plan).unwrap();
        assert!(config.starts_with("SERIAL 1 115200\n"), "{config}");
        let config = Language::Ipxe.boot(&plan).unwrap();
        assert!(!config.to_lowercase().contains("serial"), "{config}");
    }

    #[test]
    fn ipxe_gets_a_command_line_or_the_cause_why_not() {
        let config = Language::Ipxe
            .boot(&plan("quiet a=\"b c\" d=$x;y"))
            .unwrap();
        assert!(
            config.contains("\nkernel /boot/k initrd=initrd quiet a=\"b c\" d=$x;y\n"),
            "{config}"
        );
        for line in ["a=${x}", "quiet || shell", "a && b", "a ; shell", "a #b"] {
            let cause = Language::Ipxe.boot(&plan(line)).unwrap_err();
            assert!(cause.contains("GRUB"), "{line}: {cause}");
        }
    }

    #[test]
    fn pxelinux_gets_a_command_line_that_it_can_hand_on() {
        let config = Language::Pxelinux.boot(&plan("quiet a=\"b c\"")).unwrap();
        assert!(config.ends_with("\n  APPEND quiet a=\"b c\"\n"), "{config}");
        let cause = Language::Pxelinux
            .boot(&plan(&"x".repeat(2001)))
            .unwrap_err();
        assert!(cause.contains("2001"), "{cause}");
    }

    #[test]
    fn no_text_adds_a_line_or_a_command() {
        let hostile = "x\nreboot\r\n${y} || shell ; # \\\u{2028}";
        for language in [Language::Grub, Language::Ipxe, Language::Pxelinux] {
            let usual = language.message("x").lines().count();
            let config = language.message(hostile);
            assert_eq!(config.lines().count(), usual, "{config}");
            assert!(!config.contains("\r"), "{config}");
            if language != Language::Grub {
                assert!(!config.contains("${") && !config.contains("||"), "{config}");
                assert!(language.boot(&plan(hostile)).is_err());
            }
        }
    }
}
