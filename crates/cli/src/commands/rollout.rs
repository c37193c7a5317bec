//! `slate rollout`: a version for nodes, a few at a time. The daemon does it; this begins it, watches
//! and shows.

use std::thread;
use std::time::Duration;

use daemon::control::{Batch, Client, Request, Response, RolloutPlan, RolloutState, RolloutView};
use owo_colors::OwoColorize as _;

use super::image::{open_store, resolve};
use super::lab;
use super::node::{select, unexpected};
use super::order::reboot_script;
use crate::args::{BatchSize, DirArgs, RolloutArgs, RolloutCommand};
use crate::failure::{Failure, Outcome};
use crate::render;

/// How often it is asked how far it is.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// How far nodes are that nobody can reboot, and those that hold the version.
const AWAY: &str = "on next boot";
const PROVED: &str = "proved";

/// Runs `slate rollout`.
pub fn run(dirs: &DirArgs, args: &RolloutArgs) -> Outcome {
    let mut client = Client::connect(&dirs.run_dir)?;
    match &args.command {
        None => begin(dirs, &mut client, args),
        Some(RolloutCommand::Status { output }) => {
            let rollouts = ask(&mut client, &Request::Rollouts)?;
            if output.json {
                return render::json(&rollouts);
            }
            anstream::print!("{}", status_text(&rollouts));
            Ok(())
        }
        Some(RolloutCommand::Stop { id }) => {
            let id = match id {
                Some(id) => *id,
                None => only_running(&ask(&mut client, &Request::Rollouts)?)?,
            };
            ask(&mut client, &Request::StopRollout { id })?;
            anstream::println!("stopped; its nodes go back to what they had");
            Ok(())
        }
    }
}

fn begin(dirs: &DirArgs, client: &mut Client, args: &RolloutArgs) -> Outcome {
    let image = args.image.clone().unwrap_or_default();
    let tried = args
        .try_first
        .then(|| try_first(dirs, client, args, &image))
        .transpose()?;
    let reboot = reboot_script(args.force, args.before.as_deref());
    let plan = RolloutPlan {
        image,
        nodes: args.to.clone().unwrap_or_default(),
        canary: args.canary,
        batch: match args.batch {
            BatchSize::Nodes(count) => Batch::Nodes(count),
            BatchSize::Percent(percent) => Batch::Percent(percent),
        },
        gate: args.gate.clone(),
        reboot: (!args.on_next_boot).then_some(reboot),
        back: reboot_script(true, None),
        seconds: u32::try_from(args.timeout.as_secs()).unwrap_or(u32::MAX),
    };
    let rollout = only(ask(client, &Request::RollOut { plan })?)?;
    if tried.is_some_and(|tried| tried != rollout.version.to_string()) {
        ask(client, &Request::StopRollout { id: rollout.id })?;
        return Err(Failure::new(format!(
            "{} was moved while its version was tried: nothing was rolled out",
            rollout.image
        ))
        .hint("begin anew, to try the version that it names now"));
    }
    anstream::println!(
        "Rollout {} of {}, version {}, to {} nodes. It goes on without this command: watch it by \
         slate rollout status, end it by slate rollout stop.",
        rollout.id,
        rollout.image,
        rollout.version.short(),
        rollout.nodes.len()
    );
    if args.no_wait {
        return Ok(());
    }
    watch(client, rollout)
}

/// Boots the version in a virtual machine. What no rollout could be made of is refused before that.
fn try_first(
    dirs: &DirArgs,
    client: &mut Client,
    args: &RolloutArgs,
    image: &str,
) -> Outcome<String> {
    select(client, args.to.clone().unwrap_or_default())?;
    resolve(&open_store(dirs)?, image)?;
    anstream::println!("{} in a virtual machine first:", image.bold());
    let store = dirs.state_dir.join("store");
    let tried = lab::boot_once(&store, image).map_err(|failure| Failure {
        what: format!("--try: {}", failure.what),
        ..failure
    })?;
    anstream::println!("{image} comes up in a virtual machine.");
    Ok(tried)
}

/// Shows each node's steps until the end.
fn watch(client: &mut Client, mut rollout: RolloutView) -> Outcome {
    let mut shown: Vec<(String, String)> = Vec::new();
    loop {
        for (node, step) in &rollout.nodes {
            let is_new = !shown.iter().any(|it| it.0 == *node && it.1 == *step);
            if is_new && step != "waits" {
                anstream::println!("{} {step}", node.bold());
            }
        }
        shown.clone_from(&rollout.nodes);
        match &rollout.state {
            RolloutState::Running => {
                let away = away(&rollout.nodes);
                if !away.is_empty() {
                    anstream::println!("{}", away_text(&away));
                    return Ok(());
                }
            }
            RolloutState::Done => {
                anstream::println!("{}", "It holds on every node.".green());
                anstream::println!("{}", follow_hint(&rollout.image));
                return Ok(());
            }
            RolloutState::Failed { cause } => {
                return Err(Failure::new(format!("taken back: {cause}"))
                    .hint("see why: slate events, slate node log NODE"));
            }
        }
        thread::sleep(ASK_EVERY);
        let id = rollout.id;
        let now = ask(client, &Request::Rollouts)?
            .into_iter()
            .find(|it| it.id == id);
        rollout =
            now.ok_or_else(|| Failure::new("the daemon does not know this rollout any more"))?;
    }
}

/// The nodes that are left, where all others hold the version and these boot by themselves, some day.
fn away(nodes: &[(String, String)]) -> Vec<&str> {
    let others = nodes.iter().filter(|it| it.1 != AWAY);
    if !others.clone().all(|it| it.1 == PROVED) || others.count() == 0 {
        return Vec::new();
    }
    let away = nodes.iter().filter(|it| it.1 == AWAY);
    away.map(|it| it.0.as_str()).collect()
}

fn away_text(names: &[&str]) -> String {
    let is = if names.len() == 1 { "is" } else { "are" };
    format!(
        "It holds on every node that is on. {} {is} off and takes it on the next boot; until then the \
         rollout goes on: slate rollout status, slate rollout stop.",
        names.join(", ")
    )
}

/// Nodes stay where a rollout brought them until the tag that they follow names the same version.
fn follow_hint(image: &str) -> String {
    let name = image.split(':').next().unwrap_or(image);
    format!(
        "They stay at this version until their image names it. For all that follow {name}: \
         slate image tag {image} {name}"
    )
}

fn ask(client: &mut Client, request: &Request) -> Outcome<Vec<RolloutView>> {
    match client.request(request)? {
        Response::Rollouts { rollouts } => Ok(rollouts),
        other => Err(unexpected(&other)),
    }
}

fn only(rollouts: Vec<RolloutView>) -> Outcome<RolloutView> {
    let first = rollouts.into_iter().next();
    first.ok_or_else(|| Failure::new("the daemon began no rollout"))
}

fn only_running(rollouts: &[RolloutView]) -> Outcome<u64> {
    let running = rollouts
        .iter()
        .filter(|it| it.state == RolloutState::Running);
    match running.collect::<Vec<_>>().as_slice() {
        [one] => Ok(one.id),
        several => Err(Failure::new(format!(
            "expected one rollout that goes on, got {}",
            several.len()
        ))
        .hint("name it by its number: slate rollout status")),
    }
}

fn status_text(rollouts: &[RolloutView]) -> String {
    if rollouts.is_empty() {
        return "There was no rollout yet: slate rollout NAME:TAG --to NODES\n".to_owned();
    }
    let mut out = String::new();
    for rollout in rollouts {
        let state = match &rollout.state {
            RolloutState::Running => "goes on".to_owned(),
            RolloutState::Done => "done".green().to_string(),
            RolloutState::Failed { cause } => format!("taken back: {cause}").red().to_string(),
        };
        out.push_str(&format!(
            "{} {} {}  {state}\n",
            rollout.id,
            rollout.image.bold(),
            rollout.version.short()
        ));
        if rollout.state == RolloutState::Running {
            for (node, step) in &rollout.nodes {
                out.push_str(&format!("  {node}  {step}\n"));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_goes_on_shows_its_nodes() {
        let rollout = |id, state| RolloutView {
            id,
            image: "rocky9:next".into(),
            version: engine_digest(),
            state,
            nodes: vec![("n1".into(), "boots".into())],
        };
        let failed = RolloutState::Failed {
            cause: "n1: the gate fails".into(),
        };
        let rollouts = [rollout(1, failed), rollout(2, RolloutState::Running)];
        let text = anstream::adapter::strip_str(&status_text(&rollouts)).to_string();
        let short = engine_digest().short();
        assert_eq!(
            text,
            format!(
                "1 rocky9:next {short}  taken back: n1: the gate fails\n\
                 2 rocky9:next {short}  goes on\n  n1  boots\n"
            )
        );
        assert_eq!(only_running(&rollouts).unwrap(), 2);
        assert!(only_running(&rollouts[..1]).is_err());
    }

    #[test]
    fn those_that_are_off_are_left_alone_once_all_others_hold() {
        let nodes = |steps: &[&str]| -> Vec<(String, String)> {
            let names = steps.iter().enumerate();
            names
                .map(|(at, step)| (format!("n{at}"), (*step).to_owned()))
                .collect()
        };
        assert_eq!(away(&nodes(&["proved", AWAY])), ["n1"]);
        for steps in [&["proved", "waits", AWAY][..], &[AWAY, AWAY], &["proved"]] {
            assert!(away(&nodes(steps)).is_empty(), "{steps:?}");
        }
        assert!(away_text(&["n1"]).contains("n1 is off"));
    }

    fn engine_digest() -> wire::digest::Digest {
        wire::digest::Digest([0xab; 32])
    }
}
