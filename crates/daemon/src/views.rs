//! The engine's views as the control protocol shows them.

use std::net::Ipv4Addr;

use engine::{DhcpMode, Engine, Exchange, Firmware, Interface, PlannedContent, PlannedFile};
use wire::dhcp_text;
use wire::dhcp4::Message;
use wire::hex::hexadecimal;

use crate::control::{
    BootServiceView, BootView, ExchangeView, FailureView, FirmwareView, NfsView, NodeView,
    OptionView, PlanView, PlannedFileView, PreviewView, ReplyView, Response, SeenView, StageAt,
};
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
        failed_digest: view.failed_image.map(|digest| digest.to_string()),
        kernel_args: view.kernel_args,
        loader: view.loader.map(|it| it.name().to_owned()),
        console: view.console,
        pinned_digest: view.pinned.map(|digest| digest.to_string()),
        once: view.once.map(|image| image.to_string()),
        polled_ms: view.polled.map(|at| at.0),
        groups: view.groups,
        reached: boot
            .and_then(|boot| boot.stage)
            .map(|stage| stage.to_string()),
        failure: boot.and_then(failure),
        seen_ms: timeline.iter().map(|it| it.at.0).max(),
        timeline: timeline.iter().map(stage_at).collect(),
        loader_bytes: boot.map_or(0, |boot| boot.loader_bytes),
        initrd_bytes: boot.map_or(0, |boot| boot.initrd_bytes),
        nfs: NfsView {
            rpcs: nfs.rpcs,
            bytes: nfs.bytes,
            by_op: nfs.by_op,
        },
        drivers: view.drivers.into_iter().collect(),
        mounted: view.nfs_alive,
        ssh_host_key: host_key,
        name: view.name,
    }
}

/// The boots of a node that are kept, newest first.
pub fn boots(view: &engine::NodeView) -> Response {
    let boots = view.boot.iter().chain(&view.former_boots);
    Response::Boots {
        node: view.name.clone(),
        boots: boots.map(boot).collect(),
    }
}

fn boot(boot: &engine::BootView) -> BootView {
    BootView {
        id: boot.id.to_string(),
        started_ms: boot.started.0,
        digest: boot.image.map(|digest| digest.to_string()),
        reached: boot.stage.map(|stage| stage.to_string()),
        failure: failure(boot),
        kernel: boot.kernel.clone(),
        timeline: boot.timeline.iter().map(stage_at).collect(),
        loader_bytes: boot.loader_bytes,
        initrd_bytes: boot.initrd_bytes,
    }
}

fn failure(boot: &engine::BootView) -> Option<FailureView> {
    let failure = boot.failure.as_ref()?;
    Some(FailureView {
        stage: failure.stage.to_string(),
        cause: failure.cause.clone(),
    })
}

fn stage_at(reached: &engine::StageAt) -> StageAt {
    StageAt {
        stage: reached.stage.to_string(),
        at_ms: reached.at.0,
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

/// What a machine would get.
pub fn preview(preview: &engine::Preview) -> PreviewView {
    PreviewView {
        mac: preview.mac.to_string(),
        node: preview.node.clone(),
        is_node: preview.is_node,
        firmware: preview.firmware.name().to_owned(),
        dhcp: mode(preview.dhcp).to_owned(),
        exchanges: preview.exchanges.iter().map(exchange).collect(),
        files: preview.files.iter().map(planned_file).collect(),
        notes: preview.notes.clone(),
    }
}

fn mode(mode: DhcpMode) -> &'static str {
    match mode {
        DhcpMode::Authoritative => "authoritative",
        DhcpMode::Proxy => "proxy",
        DhcpMode::Off => "off",
    }
}

fn exchange(exchange: &Exchange) -> ExchangeView {
    ExchangeView {
        request: hexadecimal(&exchange.request),
        reply: exchange.reply.as_deref().and_then(reply),
    }
}

fn reply(bytes: &[u8]) -> Option<ReplyView> {
    let message = Message::decode(bytes).ok()?;
    let given = |address: Ipv4Addr| (!address.is_unspecified()).then_some(address);
    let options = message.options.iter().map(|option| OptionView {
        code: option.code,
        name: dhcp_text::name(option.code).unwrap_or_default().to_owned(),
        value: dhcp_text::value(option.code, &option.value),
    });
    Some(ReplyView {
        bytes: hexadecimal(bytes),
        address: given(message.yiaddr),
        next_server: given(message.siaddr),
        file: String::from_utf8_lossy(&message.file).into_owned(),
        options: options.collect(),
    })
}

fn planned_file(file: &PlannedFile) -> PlannedFileView {
    let (mut digest, mut name, mut text, mut origin) = (None, None, None, None);
    match &file.content {
        Ok(PlannedContent::Text(content)) => text = Some(content.clone()),
        Ok(PlannedContent::File {
            digest: of,
            file,
            origin: from,
        }) => {
            digest = Some(of.to_string());
            origin.clone_from(from);
            name = Some(file.name().to_owned());
        }
        Err(_) => {}
    }
    PlannedFileView {
        path: file.path.clone(),
        digest,
        file: name,
        origin,
        text,
        error: file.content.as_ref().err().cloned(),
    }
}

/// What another DHCP server has to tell machines on the network where this server has an address, or
/// on the first one.
pub fn boot_service(engine: &Engine, server: Option<Ipv4Addr>) -> Option<BootServiceView> {
    let is_meant = |it: &&Interface| server.is_none_or(|server| it.address == server);
    let interface = engine.config().interfaces.iter().find(is_meant)?;
    let view = |firmware: Firmware| {
        Some(FirmwareView {
            name: firmware.name().to_owned(),
            architectures: firmware.architectures().to_vec(),
            user_class: firmware
                .user_class()
                .map(|class| String::from_utf8_lossy(class).into_owned()),
            http: firmware.is_http(),
            file: engine.boot_file_on(interface, firmware)?,
        })
    };
    let mut firmware: Vec<FirmwareView> = Firmware::all().filter_map(view).collect();
    firmware.sort_by_key(|it| it.user_class.is_none());
    Some(BootServiceView {
        server: interface.address,
        network: interface.network(),
        prefix: interface.prefix,
        dhcp: mode(interface.dhcp).to_owned(),
        unknown: engine.unknown_policy(interface.dhcp).name().to_owned(),
        firmware,
    })
}
