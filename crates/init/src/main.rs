//! `/init` of a node: a straight list of steps from the kernel's first process to the image's own
//! init, and, under another name after the boot, the node's agent.

mod adopt;
mod agent;
mod backoff;
mod boot;
mod dhcp;
mod exchange;
mod failure;
mod handover;
mod modules;
mod mount;
mod network;
mod report;
mod rtnl;
mod switch;
mod sys;
mod uevent;
mod warm;

fn main() {
    if std::process::id() == 1 {
        boot::main();
    }
    match std::env::args().nth(1).as_deref() {
        Some("report") => agent::main(),
        Some("warm") => warm::main(),
        _ => eprintln!("slate init: expected to be process 1 or to be called with \"report\""),
    }
}
