//! NFS-Ganesha, the peer's NFS server.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use lab::{GATEWAY, Network, Process};

use super::on_processor;
use crate::install::Extra;

/// The program.
pub const PROGRAM: Extra = Extra {
    path: "/usr/bin/ganesha.nfsd",
    package: "nfs-ganesha-vfs",
    purpose: "be the peer's NFS server",
};

/// What it exports, and how.
pub struct Ganesha<'a> {
    /// The tree on the disk.
    pub root: &'a Path,
    /// The path that clients mount.
    pub export: &'a str,
    /// Give owners as numbers, which is not its default but spares clients most of their calls.
    pub numeric_owners: bool,
    /// The processor that it is kept on, if it is.
    pub processor: Option<&'a str>,
}

impl Ganesha<'_> {
    /// Starts it on `network`; its configuration and log go to the folder `scratch`.
    pub fn start(&self, network: &Network, scratch: &Path) -> anyhow::Result<Process> {
        let config = scratch.join("ganesha.conf");
        std::fs::write(&config, self.config())
            .with_context(|| format!("writing {}", config.display()))?;
        let mut command = Command::new(PROGRAM.path);
        command.arg("-F").arg("-f").arg(config);
        command.arg("-L").arg(scratch.join("ganesha.log"));
        command.arg("-p").arg(scratch.join("ganesha.pid"));
        if let Some(processor) = self.processor {
            command = on_processor(processor, &command);
        }
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let ganesha = network.spawn(command).context("starting ganesha")?;
        wait_for_port(network)?;
        Ok(ganesha)
    }

    fn config(&self) -> String {
        format!(
            "NFS_CORE_PARAM {{ Protocols=4; NFS_Port=2049; Bind_addr={GATEWAY}; Enable_NLM=false; Enable_RQUOTA=false; mount_path_pseudo=true; }}\n\
             NFSv4 {{ Graceless=true; Minor_Versions=1,2; RecoveryBackend=fs; Delegations=false; Only_Numeric_Owners={}; }}\n\
             EXPORT {{ Export_Id=1; Path={}; Pseudo={}; Access_Type=RO; Squash=No_Root_Squash; SecType=sys; \
             Protocols=4; Transports=TCP; FSAL {{ Name=VFS; }} }}\n",
            self.numeric_owners,
            self.root.display(),
            self.export,
        )
    }
}

fn wait_for_port(network: &Network) -> anyhow::Result<()> {
    let mut probe = Command::new("bash");
    probe.args(["-c", &format!("for i in $(seq 100); do (: < /dev/tcp/{GATEWAY}/2049) 2>/dev/null && exit; sleep 0.2; done; exit 1")]);
    probe.stdin(Stdio::null());
    let answer = network.run(probe)?;
    ensure!(
        answer.status.success(),
        "ganesha does not listen after 20 s: see its log"
    );
    Ok(())
}
