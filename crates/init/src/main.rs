//! `/init` of a node: a straight list of steps from the kernel's first process to the image's own
//! init, and, under other names after the boot, the node's agent, the last stage of its shutdown, and
//! the commands that ask for one.

mod adopt;
mod agent;
mod backoff;
mod boot;
mod command;
mod containers;
mod dhcp;
mod exchange;
mod failure;
mod fill;
mod guard;
mod handover;
mod http;
mod last;
mod modules;
mod mount;
mod netconsole;
mod network;
mod orders;
mod owners;
mod renew;
mod report;
mod rtnl;
mod selinux;
mod send;
mod stacks;
mod stops;
mod switch;
mod sys;
mod uevent;
mod units;
#[cfg(panic = "abort")]
mod unwind;
mod warm;

fn main() {
    if last::is_called() {
        last::main();
    }
    if let Some(name) = command::called() {
        command::main(name);
    }
    if std::process::id() == 1 {
        boot::main();
    }
    match std::env::args().nth(1).as_deref() {
        Some("report") => agent::main(),
        Some("warm") => warm::main(),
        Some("send") => send::main(),
        Some("opaque") => send::list_opaque(),
        Some(mount::JOIN) => mount::join_as_init(),
        _ => eprintln!("slate init: expected to be process 1 or to be called with \"report\""),
    }
}
