//! `slate image layer|layers|compose`: what a change adds to an image, laid over its later versions.

use image::layer::{Composition, LAYERS_MAX, Layer};
use image::store::{TAG_DEFAULT, TAG_NEXT, split_reference};
use image::{Digest, Error, Publish, Staged, Store};
use owo_colors::OwoColorize as _;
use serde_json::json;

use super::edit::labels::Unlabelled;
use super::edit::sandbox::kernel_of;
use super::edit::{Session, Summary};
use super::image::{publish, resolve, say_imported};
use crate::args::{ComposeArgs, DirArgs, LayerArgs, OutputArgs};
use crate::failure::{Code, Failure, Outcome};
use crate::render;

/// Makes a layer by a script, a command or a shell, or forgets one.
pub(super) fn layer(
    dirs: &DirArgs,
    store: &Store,
    args: &LayerArgs,
    output: OutputArgs,
) -> Outcome {
    if args.remove {
        store.remove_layer(&args.name)?;
        anstream::eprintln!(
            "The layer {} is forgotten; its image's tags stay.",
            args.name
        );
        return Ok(());
    }
    let target = Publish::Import { name: &args.name };
    target.check_names()?;
    let on = full(args.on.as_deref().unwrap_or_default());
    check_name(store, &args.name, &on)?;
    let session = Session::on(dirs, store, &args.name, resolve(store, &on)?, args.network)?;
    change(&session, args)?;
    let (staged, changes) = session.stage(Unlabelled::Leave)?;
    let base = session.checkout().base();
    let summary = Summary::of(&changes);
    if changes.is_empty() {
        return summary.say_unpublished(false, output);
    }
    if !output.json {
        anstream::eprintln!("{}", summary.text());
    }
    let (base, version) = (base.digest(), staged.digest());
    let published = publish(store, staged, target)?;
    store.record_layer(&Layer {
        name: args.name.clone(),
        on: on.clone(),
        base,
        version,
        kernel: kernel_of(session.checkout().path()),
    })?;
    let composition = Composition {
        on,
        layers: vec![args.name.clone()],
        base,
        made: version,
    };
    store.record_composition(&args.name, &composition)?;
    say_imported(store, &published, output)
}

fn change(session: &Session<'_>, args: &LayerArgs) -> Outcome {
    let (what, status) = if let Some(script) = &args.script {
        (
            script.display().to_string(),
            session.execute_script(script)?,
        )
    } else if let Some(command) = &args.run {
        let words = ["/bin/sh", "-c", command].map(str::to_owned);
        (command.clone(), session.execute(&words)?)
    } else {
        return session.open_shell(&format!("becomes the layer {}", args.name));
    };
    if status.success() {
        return Ok(());
    }
    Err(Failure::new(format!("{what} in the image: {status}")).hint("nothing was published"))
}

/// A layer's image has a name of its own.
fn check_name(store: &Store, name: &str, on: &str) -> Outcome {
    let taken = store.tags()?.iter().any(|it| it.name == name);
    if split_reference(on).0 != name && (!taken || store.composition(name)?.is_some()) {
        return Ok(());
    }
    Err(Failure::new(format!(
        "{name} is the name of an image that is not composed"
    ))
    .hint("give the layer another name; base and layer become an image of that name")
    .code(Code::Usage))
}

/// Makes an image of the newest version of its base and its layers.
pub(super) fn compose(store: &Store, args: &ComposeArgs, output: OutputArgs) -> Outcome {
    let name = &args.name;
    let known = store.composition(name)?;
    let (on, names) = match (&args.on, &known) {
        (Some(on), _) => {
            let on = full(on);
            if known.is_none() {
                check_name(store, name, &on)?;
            }
            (on, args.layers.clone())
        }
        (None, Some(known)) => (known.on.clone(), known.layers.clone()),
        (None, None) => {
            return Err(Failure::new(format!("{name} is not composed of layers"))
                .hint("say of what: slate image compose NAME --on BASE --layer LAYER")
                .code(Code::Usage));
        }
    };
    if names.len() > LAYERS_MAX {
        return Err(
            Failure::new(format!("expected at most {LAYERS_MAX} layers")).code(Code::Usage),
        );
    }
    if !args.replace {
        check_next(store, name, known.as_ref())?;
    }
    let made = make(store, name, on, names)?;
    let published = publish(store, made.staged, Publish::Import { name })?;
    store.record_composition(name, &made.composition)?;
    say_imported(store, &published, output)
}

/// A version that was composed, and of what.
struct Made {
    staged: Staged,
    composition: Composition,
}

fn make(store: &Store, name: &str, on: String, names: Vec<String>) -> Outcome<Made> {
    let layers = names.iter().map(|it| store.layer(it));
    let layers: Vec<Layer> = layers.collect::<Result<_, _>>()?;
    let base = store.open_tree(resolve(store, &on)?)?;
    let staged = store.compose(&base, &layers).map_err(|error| {
        let mut failure = Failure::from(error);
        failure.what = format!("composing {name}: {}", failure.what);
        failure
    })?;
    let composition = Composition {
        on,
        layers: names,
        base: base.digest(),
        made: staged.digest(),
    };
    Ok(Made {
        staged,
        composition,
    })
}

/// A next version that was not composed is work that this would take the name of.
fn check_next(store: &Store, name: &str, known: Option<&Composition>) -> Outcome {
    let Some(next) = store.read_tag(name, TAG_NEXT)? else {
        return Ok(());
    };
    let is_known = known.is_some_and(|it| it.made == next)
        || match store.log(name, TAG_DEFAULT) {
            Ok(log) => log.iter().any(|it| it.digest == next),
            Err(Error::NoSuchTag { .. }) => false,
            Err(error) => return Err(error.into()),
        };
    if is_known {
        return Ok(());
    }
    let failure = Failure::new(format!(
        "{name}:{TAG_NEXT} was changed by hand, and this would replace it"
    ));
    Err(failure.hint(format!(
        "to keep the change for later versions, make a layer of it: slate image layer\n\
         to see it: slate image diff {name} {name}:{TAG_NEXT}\n\
         to have it replaced: --replace"
    )))
}

/// Lists the layers and what they are for.
pub(super) fn list(store: &Store, output: OutputArgs) -> Outcome {
    let layers = store.layers()?;
    if output.json {
        let layer = |it: &Layer| {
            json!({
                "name": it.name,
                "on": it.on,
                "base": it.base.to_string(),
                "version": it.version.to_string(),
                "kernel": it.kernel,
            })
        };
        return render::json(&layers.iter().map(layer).collect::<Vec<_>>());
    }
    if layers.is_empty() {
        anstream::println!("No layer yet: slate image layer NAME --on IMAGE --script FILE");
        return Ok(());
    }
    let header = ["LAYER", "MADE ON", "VERSION", "KERNEL"];
    let rows = layers.iter().map(|it| {
        let base = it.base.to_string();
        let kernel = it.kernel.clone().unwrap_or_default();
        vec![
            it.name.clone(),
            it.on.clone(),
            render::short_digest(&base).to_owned(),
            kernel,
        ]
    });
    anstream::println!("{}", render::table(&header, rows));
    Ok(())
}

/// Composes anew what is composed on a tag that has just been moved, as `IMAGE:next`: which version nodes
/// boot is for people to say. What cannot be composed is named, with the reason, and stays as it was.
pub(super) fn recompose_on(store: &Store, name: &str, tag: &str, digest: Digest) -> Outcome {
    let moved = format!("{name}:{tag}");
    for (image, composition) in store.compositions()? {
        if composition.on != moved || composition.base == digest {
            continue;
        }
        match recompose(store, &image, composition) {
            Ok(made) => anstream::eprintln!(
                "{}: {} with its layers, {}. Nodes boot it after: slate image tag {image}:{TAG_NEXT} {image}",
                format!("{image}:{TAG_NEXT}").bold(),
                moved,
                made.short()
            ),
            Err(failure) => anstream::eprint!(
                "{}",
                Failure {
                    what: format!(
                        "{image} stays as it is, without the new {moved}: {}",
                        failure.what
                    ),
                    ..failure
                }
                .render()
            ),
        }
    }
    Ok(())
}

fn recompose(store: &Store, image: &str, known: Composition) -> Outcome<Digest> {
    check_next(store, image, Some(&known))?;
    let was = store.read_tag(image, TAG_NEXT)?;
    let made = make(store, image, known.on, known.layers)?;
    let target = Publish::TagIf {
        name: image,
        tag: TAG_NEXT,
        was,
    };
    publish(store, made.staged, target)?;
    store.record_composition(image, &made.composition)?;
    Ok(made.composition.made)
}

fn full(reference: &str) -> String {
    let (name, tag) = split_reference(reference);
    format!("{name}:{tag}")
}
