//! The engine's views as the control protocol shows them.

use crate::control::{FailureView, NfsView, NodeView, PlanView, SeenView, StageAt};
use crate::keys::Keys;

/// A node.
pub fn node(view: engine::NodeView, keys: &Keys) -> NodeView {
    let host_key = keys.host_key(view.mac, &view.name).public;
    let boot = view.boot.as_ref();
    let timeline = boot
        .map(|boot| boot.timeline.as_slice())
        .unwrap_or_default();
    let nfs = view.nfs.unwrap_or_default();
    NodeView {
        mac: view.mac.to_string(),
        address: view.address,
        fixed: view.address_is_fixed,
        firmware: view.firmware,
        image: view.image.map(|image| image.to_string()),
        digest: boot
            .and_then(|boot| boot.image)
            .map(|digest| digest.to_string()),
        next_digest: view.next_image.map(|digest| digest.to_string()),
        kernel_args: view.kernel_args,
        reached: boot
            .and_then(|boot| boot.stage)
            .map(|stage| stage.to_string()),
        failure: boot
            .and_then(|boot| boot.failure.as_ref())
            .map(|failure| FailureView {
                stage: failure.stage.to_string(),
                cause: failure.cause.clone(),
            }),
        seen_ms: timeline.iter().map(|it| it.at.0).max(),
        timeline: timeline
            .iter()
            .map(|it| StageAt {
                stage: it.stage.to_string(),
                at_ms: it.at.0,
            })
            .collect(),
        loader_bytes: boot.map_or(0, |boot| boot.loader_bytes),
        initrd_bytes: boot.map_or(0, |boot| boot.initrd_bytes),
        nfs: NfsView {
            rpcs: nfs.rpcs,
            bytes: nfs.bytes,
            by_op: nfs.by_op,
        },
        mounted: view.nfs_alive,
        ssh_host_key: host_key,
        name: view.name,
    }
}

/// A machine that is no node.
pub fn seen(view: engine::SeenView) -> SeenView {
    SeenView {
        mac: view.mac.to_string(),
        firmware: view.client,
        seen_ms: view.last.0,
    }
}

/// A plan. It holds the boot's token: for those who may use the control socket.
pub fn plan(plan: engine::BootPlan, http_port: u16) -> PlanView {
    let url = |path| format!("http://{}:{http_port}/{path}", plan.server);
    PlanView {
        kernel: url(plan.kernel),
        initrd: url(plan.initrd),
        mac: plan.mac.to_string(),
        node: plan.node,
        digest: plan.digest.to_string(),
        cmdline: plan.command_line,
    }
}
