//! `slate image verify|gc|rm|pin|log|rollback`: keeping the store whole, small and reversible.

use std::collections::BTreeMap;

use daemon::control::{Client, ClientError, NodeView, Request, Response, Status};
use image::store::split_reference;
use image::{Collected, Damage, Digest, Move, Progress, Store, Verified};
use owo_colors::OwoColorize as _;
use serde_json::{Value, json};

use super::image::{Meter, Step, resolve, unix_ms};
use super::layer;
use super::node::{self, unexpected};
use crate::args::{DirArgs, OutputArgs};
use crate::failure::{Failure, Outcome};
use crate::render;

/// Reads one version, or all, and says what is damaged; fails if anything is.
pub(super) fn verify(
    store: &Store,
    image: Option<&str>,
    discard: bool,
    output: OutputArgs,
) -> Outcome {
    let versions = match image {
        Some(image) => vec![resolve(store, image)?],
        None => store.versions()?,
    };
    let mut meter = Meter::new();
    let mut verified = Verified::default();
    let (mut damaged, mut read) = (BTreeMap::new(), Progress::default());
    for digest in &versions {
        let mut done = Progress::default();
        let found = store.verify(*digest, &mut verified, &mut |step| {
            done = step;
            meter.show(&Step::Verifying(Progress {
                files: read.files + step.files,
                bytes: read.bytes + step.bytes,
            }));
        });
        read.files += done.files;
        read.bytes += done.bytes;
        for damage in found.inspect_err(|_| meter.done())? {
            damaged.entry(damage.object).or_insert((*digest, damage));
        }
    }
    meter.done();
    let objects: Vec<Digest> = damaged.keys().copied().collect();
    if discard {
        store.discard(&objects)?;
    }
    if output.json {
        let rows = damaged
            .values()
            .map(|(version, it)| damage_json(*version, it));
        render::json(&json!({
            "versions": versions.len(),
            "objects": read.files,
            "bytes": read.bytes,
            "damaged": rows.collect::<Vec<_>>(),
            "discarded": discard,
        }))?;
    } else if damaged.is_empty() {
        anstream::println!(
            "{}: {} objects, {}",
            counted(versions.len(), "version is whole", "versions are whole"),
            read.files,
            render::bytes(read.bytes)
        );
    }
    if damaged.is_empty() {
        return Ok(());
    }
    Err(damage_failure(damaged.values(), discard))
}

fn damage_json(version: Digest, damage: &Damage) -> Value {
    json!({
        "version": version.to_string(),
        "object": damage.object.to_string(),
        "what": damage.error.to_string(),
        "paths": damage.paths,
    })
}

fn damage_failure<'d>(
    damaged: impl ExactSizeIterator<Item = &'d (Digest, Damage)>,
    discarded: bool,
) -> Failure {
    let count = counted(damaged.len(), "object is damaged", "objects are damaged");
    let mut failure = Failure::new(count);
    failure.causes = damaged
        .map(|(version, damage)| {
            let what = &damage.error;
            let version = version.short();
            if damage.paths.is_empty() {
                format!("the metadata of version {version}: {what}")
            } else {
                format!("{} in version {version}: {what}", damage.paths.join(", "))
            }
        })
        .collect();
    failure.hint(if discarded {
        "they are out of the store now; import the same source again to put them back"
    } else {
        "look at the disk (dmesg, smartctl); then run this again with --discard, and import the \
         same source again"
    })
}

/// Removes what nothing needs.
pub(super) fn gc(dirs: &DirArgs, store: &Store, dry_run: bool, output: OutputArgs) -> Outcome {
    let in_use = in_use(dirs, store)?;
    let collected = store.gc(&in_use, dry_run)?;
    if output.json {
        let digests = |all: &[Digest]| all.iter().map(ToString::to_string).collect::<Vec<_>>();
        return render::json(&json!({
            "versions": digests(&collected.versions),
            "objects": collected.objects,
            "bytes": collected.bytes,
            "unreadable": digests(&collected.unreadable),
            "dry_run": dry_run,
        }));
    }
    anstream::println!("{}", collected_text(&collected, dry_run));
    for digest in &collected.unreadable {
        anstream::eprintln!(
            "{} version {digest} cannot be read, so it is not known what it needs: no content was \
             removed; see slate image verify",
            "warning:".yellow().bold()
        );
    }
    Ok(())
}

fn collected_text(collected: &Collected, dry_run: bool) -> String {
    let verb = if dry_run { "would remove" } else { "removed" };
    let versions = counted(collected.versions.len(), "version", "versions");
    let bytes = render::bytes(collected.bytes);
    let mut text = format!(
        "{verb} {versions} and {} objects: {bytes}",
        collected.objects
    );
    for digest in &collected.versions {
        text += &format!("\n  {}", digest.short());
    }
    text
}

/// The versions that nodes run or may run: by the daemon, or by what the last one left.
fn in_use(dirs: &DirArgs, store: &Store) -> Outcome<Vec<Digest>> {
    let mut client = match Client::connect(&dirs.run_dir) {
        Ok(client) => client,
        Err(ClientError::NotRunning { .. }) => {
            return daemon::versions_in_use(&dirs.state_dir)
                .map_err(|error| Failure::because("finding out which versions nodes run", &error));
        }
        Err(error) => return Err(error.into()),
    };
    let halves = match client.request(&Request::VersionsInUse)? {
        Response::VersionsInUse { versions } => versions,
        other => return Err(unexpected(&other)),
    };
    let versions = store.versions()?.into_iter();
    let is_used = |digest: &Digest| {
        let digest = digest.to_string();
        halves.iter().any(|half| digest.starts_with(half))
    };
    Ok(versions.filter(is_used).collect())
}

/// Has a running daemon look at the store before this command ends: a node that starts after a tag
/// was moved boots what it names now.
pub(super) fn tell_daemon(dirs: &DirArgs) {
    // Without one, or without leave, it is seen within a second of its own accord.
    if let Ok(mut client) = Client::connect(&dirs.run_dir) {
        let _ = client.request(&Request::Refresh);
    }
}

/// Removes a tag, unless nodes follow it.
pub(super) fn remove(
    dirs: &DirArgs,
    store: &Store,
    image: &str,
    force: bool,
    output: OutputArgs,
) -> Outcome {
    let (name, tag) = split_reference(image);
    let digest = resolve(store, image)?;
    if store.read_tag(name, tag)?.is_none() {
        return Err(by_digest(store, digest)?);
    }
    if !force {
        check_unfollowed(dirs, &format!("{name}:{tag}"))?;
    }
    store.remove_tag(name, tag)?;
    if output.json {
        return render::json(&json!({ "name": name, "tag": tag, "digest": digest.to_string() }));
    }
    anstream::println!(
        "{} is removed; slate image gc frees what nothing else needs",
        format!("{name}:{tag}").bold()
    );
    Ok(())
}

fn by_digest(store: &Store, digest: Digest) -> Outcome<Failure> {
    let tags = store.tags()?.into_iter().filter(|it| it.digest == digest);
    let tags: Vec<String> = tags.map(|it| format!("{}:{}", it.name, it.tag)).collect();
    let failure = Failure::new("expected a tag, NAME:TAG, got a digest");
    Ok(if tags.is_empty() {
        failure.hint("a version without a tag goes by itself: slate image gc")
    } else {
        failure.hint(format!(
            "remove what names it: slate image rm {}",
            tags.join(" ")
        ))
    })
}

/// Nodes that follow a removed tag would not boot any more.
fn check_unfollowed(dirs: &DirArgs, image: &str) -> Outcome {
    let mut client = match Client::connect(&dirs.run_dir) {
        Ok(client) => client,
        Err(ClientError::NotRunning { .. }) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let (status, nodes) = (status(&mut client)?, node::list(&mut client)?);
    let followed = if status.image.as_deref() == Some(image) {
        Some("it is the daemon's default image".to_owned())
    } else {
        let follow = |node: &&NodeView| node.image.as_deref() == Some(image);
        let names: Vec<&str> = nodes
            .iter()
            .filter(follow)
            .map(|it| it.name.as_str())
            .collect();
        (!names.is_empty()).then(|| format!("these nodes follow it: {}", names.join(", ")))
    };
    match followed {
        None => Ok(()),
        Some(why) => {
            let mut failure = Failure::new(format!("{image} is not removed"));
            failure.causes.push(why);
            Err(failure.hint("point them elsewhere (slate node set NODE --image …), or --force"))
        }
    }
}

fn status(client: &mut Client) -> Outcome<Status> {
    match client.request(&Request::Status)? {
        Response::Status(status) => Ok(status),
        other => Err(unexpected(&other)),
    }
}

/// Keeps a version whatever happens to its tags, or takes that back.
pub(super) fn pin(store: &Store, image: &str, remove: bool, output: OutputArgs) -> Outcome {
    let digest = resolve(store, image)?;
    if remove {
        if !store.unpin(digest)? {
            return Err(Failure::new(format!("{image} is not pinned")));
        }
    } else {
        store.pin(digest)?;
    }
    if output.json {
        return render::json(&json!({ "digest": digest.to_string(), "pinned": !remove }));
    }
    let what = if remove {
        "is not pinned any more"
    } else {
        "is pinned: gc keeps it"
    };
    anstream::println!("{digest} {what}");
    Ok(())
}

/// What a tag names and named.
pub(super) fn log(store: &Store, image: &str, output: OutputArgs) -> Outcome {
    let (name, tag) = split_reference(image);
    resolve(store, &format!("{name}:{tag}"))?;
    let log = store.log(name, tag)?;
    if output.json {
        return render::json(&log.iter().map(move_json).collect::<Vec<_>>());
    }
    let rows = log.iter().enumerate().map(|(index, it)| {
        let note = match (index, it.present) {
            (0, _) => "now",
            (_, true) => "",
            (_, false) => "removed",
        };
        vec![
            it.digest.short(),
            render::ago(unix_ms(it.at)),
            note.to_owned(),
        ]
    });
    anstream::println!("{}", render::table(&["VERSION", "MOVED THERE", ""], rows));
    Ok(())
}

fn move_json(it: &Move) -> Value {
    json!({
        "digest": it.digest.to_string(),
        "at_ms": unix_ms(it.at),
        "present": it.present,
    })
}

/// Moves a tag back to the version before.
pub(super) fn rollback(store: &Store, image: &str, output: OutputArgs) -> Outcome {
    let (name, tag) = split_reference(image);
    resolve(store, &format!("{name}:{tag}"))?;
    let (now, left) = store.rollback(name, tag)?;
    if output.json {
        render::json(&json!({
            "name": name,
            "tag": tag,
            "digest": now.to_string(),
            "before": left.to_string(),
        }))?;
        return layer::recompose_on(store, name, tag, now);
    }
    anstream::println!(
        "{} is {} again, and no longer {}",
        format!("{name}:{tag}").bold(),
        now.short(),
        left.short()
    );
    anstream::println!("Nodes that follow it boot that at their next start.");
    layer::recompose_on(store, name, tag, now)
}

fn counted(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}
