//! The servers that are measured beside ours.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use lab::{GATEWAY, Network, Process};

use super::super::on_processor;
use super::text;
use crate::install::Extra;
use crate::workspace::{cargo, must_succeed};

/// The file that all of them serve.
pub const FILE: &str = "kernel";
/// The version of the `tftpd` crate, so that figures can be compared.
const TFTPD_VERSION: &str = "1.0.0";

/// A server.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Server {
    Ours,
    /// Debian's tftpd-hpa.
    Hpa,
    Dnsmasq,
    /// The server of the crate `tftpd`.
    Tftpd,
    Nginx,
}

/// What they are made of.
pub const PROGRAMS: [Extra; 3] = [
    Extra {
        path: "/usr/sbin/in.tftpd",
        package: "tftpd-hpa",
        purpose: "be a TFTP server to compare with",
    },
    Extra {
        path: "/usr/sbin/dnsmasq",
        package: "dnsmasq-base",
        purpose: "be a TFTP server to compare with",
    },
    Extra {
        path: "/usr/sbin/nginx",
        package: "nginx-light",
        purpose: "be an HTTP server to compare with",
    },
];

/// Where the crate's server is.
pub fn tftpd(scratch: &Path) -> PathBuf {
    scratch.join("tftpd/bin/tftpd")
}

/// Builds it, once.
pub fn install_tftpd(program: &Path) -> anyhow::Result<()> {
    if program.exists() {
        return Ok(());
    }
    let root = program.ancestors().nth(2).context("it has a folder")?;
    let mut install = cargo(["install", "tftpd", "--locked", "--version", TFTPD_VERSION]);
    must_succeed(install.arg("--root").arg(root)).context("building the crate tftpd")
}

impl Server {
    pub fn name(self) -> &'static str {
        match self {
            Server::Ours => "Cleanslate",
            Server::Hpa => "tftpd-hpa",
            Server::Dnsmasq => "dnsmasq",
            Server::Tftpd => "tftpd (crate)",
            Server::Nginx => "nginx",
        }
    }

    /// Starts one that is not ours on a processor; it serves `folder`.
    pub fn start(
        self,
        network: &Network,
        processor: &str,
        folder: &Path,
        scratch: &Path,
    ) -> anyhow::Result<Process> {
        let command = self.command(network, folder, scratch)?;
        let mut command = on_processor(processor, &command);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let process = network.spawn(command);
        let process = process.with_context(|| format!("starting {}", self.name()))?;
        // None of them says when it listens; the first request is repeated anyway.
        std::thread::sleep(Duration::from_millis(500));
        Ok(process)
    }

    fn command(self, network: &Network, folder: &Path, scratch: &Path) -> anyhow::Result<Command> {
        let server = GATEWAY.to_string();
        let folder = text(folder);
        let mut command;
        match self {
            Server::Ours => anyhow::bail!("our own server is started elsewhere"),
            Server::Hpa => {
                command = Command::new("/usr/sbin/in.tftpd");
                let address = format!("{server}:69");
                command.args(["--foreground", "--user", "root", "--address", &address]);
                command.args(["--secure", "--blocksize", "1468", &folder]);
            }
            Server::Dnsmasq => {
                command = Command::new("/usr/sbin/dnsmasq");
                command.args(["--keep-in-foreground", "--conf-file=/dev/null", "--port=0"]);
                command.args(["--pid-file=", "--user=root", "--bind-interfaces"]);
                command.args(["--enable-tftp", "--tftp-max=1000"]);
                command.arg(format!("--tftp-root={folder}"));
                command.arg(format!("--interface={}", network.interface()));
            }
            Server::Tftpd => {
                command = Command::new(tftpd(scratch));
                command.args(["-i", &server, "-p", "69", "-r", "-d", &folder]);
            }
            Server::Nginx => {
                let config = scratch.join("nginx.conf");
                std::fs::write(&config, nginx_config(&server, &folder))
                    .with_context(|| format!("writing {}", config.display()))?;
                command = Command::new("/usr/sbin/nginx");
                command.arg("-c").arg(config);
            }
        }
        Ok(command)
    }
}

/// One process, and what its manual recommends for files.
fn nginx_config(server: &str, folder: &str) -> String {
    format!(
        "daemon off; master_process off; pid off; error_log /dev/null crit; user root;\n\
         worker_rlimit_nofile 65536;\n\
         events {{ worker_connections 4096; }}\n\
         http {{ access_log off; sendfile on; tcp_nopush on; keepalive_requests 100000;\n\
         server {{ listen {server}:80 backlog=1024; root {folder}; }} }}\n"
    )
}
