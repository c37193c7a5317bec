//! `slate image commit`: what a running node has written over its version becomes a version.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use daemon::UPLOADS;
use daemon::control::{Client, NodeView, OrderView};
use image::check;
use image::diff::{self, Change, What};
use image::store::{TAG_DEFAULT, TAG_NEXT};
use image::written::{Scope, TAR_COMMAND, UPPER, list_command};
use image::{Digest, Error, Kind, Publish, Store, StoredTree};
use serde_json::json;

use super::edit::{Commit, Decision, check_next};
use super::image::{Meter, Step, path_failure, refused, resolve};
use super::node::select;
use super::order::{all_done, follow, give, is_done};
use crate::args::{CommitArgs, DirArgs, OutputArgs};
use crate::failure::{Code, Failure, Outcome};

/// Most bytes that a node may send: more than the memory of any node holds.
const UPLOAD_MAX: u64 = 256 << 30;
/// What distributions bring is not searched for private keys: there are examples among it.
const DISTRIBUTIONS: &[u8] = b"usr/";

/// Runs `slate image commit`.
pub(super) fn run(dirs: &DirArgs, store: &Store, args: &CommitArgs, output: OutputArgs) -> Outcome {
    Failure::unless_root("committing what a node has written takes root")?;
    let name = &args.name;
    let next_of = |was| Publish::TagIf {
        name,
        tag: TAG_NEXT,
        was,
    };
    next_of(None).check_names()?;
    let paths: Vec<&[u8]> = args
        .paths
        .iter()
        .map(|it| it.as_os_str().as_bytes())
        .collect();
    let scope = Scope::new(&paths)?;
    let mut client = Client::connect(&dirs.run_dir)?;
    let node = one(&mut client, &args.from)?;
    let running = node.digest.as_deref();
    let running = running.ok_or_else(|| Failure::new("the version that it runs is not known"))?;
    let base = resolve(store, running)?;
    let next = store.read_tag(name, TAG_NEXT)?;
    if !args.replace && store.read_tag(name, TAG_DEFAULT)?.is_some() {
        check_next(store, name, TAG_DEFAULT, base, next)?;
    }
    say_if_old(store, name, &node.name, base)?;
    let base = store.open_tree(base)?;
    let seconds = u32::try_from(args.timeout.as_secs()).unwrap_or(u32::MAX);
    let upload = Upload::fetch(dirs, &mut client, &node.name, script(&scope), seconds)?;
    let mut meter = Meter::new();
    let mut progress = |it| meter.show(&Step::Importing(it));
    let staged = store.stage_written(&base, upload.open()?, &scope, &mut progress);
    meter.done();
    let staged = staged?;
    let changes = diff::diff(&base, staged.tree())?;
    refuse_keys(staged.tree(), &changes)?;
    let commit = Commit {
        store,
        name,
        next,
        base: &base,
    };
    let decision = match args.discard {
        true => Decision::Discard,
        false => Decision::Publish,
    };
    let further = || json!({ "base": base.digest().to_string() });
    commit.finish(staged, &changes, decision, further, output)
}

fn one(client: &mut Client, node: &str) -> Outcome<NodeView> {
    let nodes = select(client, node.to_owned())?;
    let [node] = <[NodeView; 1]>::try_from(nodes).map_err(|nodes| {
        Failure::new(format!("expected one node, got {}", nodes.len())).code(Code::Usage)
    })?;
    Ok(node)
}

/// A node that was not rebooted for long runs what the image was then.
fn say_if_old(store: &Store, name: &str, node: &str, base: Digest) -> Outcome {
    let Some(latest) = store.read_tag(name, TAG_DEFAULT)?.filter(|it| *it != base) else {
        return Ok(());
    };
    anstream::eprintln!(
        "{node} runs {}, not {name}:{TAG_DEFAULT} ({}): the new version has what {node} runs and \
         changed, and nothing else of {name}:{TAG_DEFAULT}.",
        base.short(),
        latest.short()
    );
    Ok(())
}

fn script(scope: &Scope) -> String {
    format!(
        "cd {UPPER} || exit 1\n\
         tar --version 2>/dev/null | grep -q 'GNU tar' || {{ echo 'its image has no GNU tar'; exit 1; }}\n\
         export list=/run/slate/written.$SLATE_ORDER\n\
         trap 'rm -f \"$list\"' EXIT\n\
         {}\n\
         /run/slate/agent send '{}; [ $? -le 1 ]'",
        list_command(scope),
        TAR_COMMAND.replace('\'', "'\\''"),
    )
}

/// What a node sent; it is removed in the end.
struct Upload {
    path: PathBuf,
}

impl Upload {
    fn fetch(
        dirs: &DirArgs,
        client: &mut Client,
        node: &str,
        script: String,
        seconds: u32,
    ) -> Outcome<Upload> {
        let orders = give(client, node, script, seconds, UPLOAD_MAX)?;
        let id = orders.iter().find_map(|order| order.id).unwrap_or_default();
        let path = dirs.state_dir.join(UPLOADS).join(id.to_string());
        let upload = Upload { path };
        let orders = follow(client, orders, |_| ())?;
        for line in orders.iter().flat_map(said) {
            anstream::eprintln!("{node}: {line}");
        }
        all_done(&orders)?;
        if !upload.path.exists() {
            return Err(Failure::new(format!("{node} has sent nothing"))
                .hint("its agent may be of an earlier version: reboot it first"));
        }
        Ok(upload)
    }

    fn open(&self) -> Outcome<File> {
        File::open(&self.path).map_err(|error| path_failure("opening", &self.path, &error))
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
        let _ = fs::remove_file(self.path.with_extension("part"));
    }
}

/// The first lines of what an order printed.
fn said(order: &OrderView) -> Vec<String> {
    const LINES_SHOWN: usize = 10;
    let text = String::from_utf8_lossy(&order.output);
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let more = lines.len().saturating_sub(LINES_SHOWN);
    if is_done(order) && more > 0 {
        lines.truncate(LINES_SHOWN);
        lines.push(format!("and {more} lines more"));
    }
    lines
}

/// What was changed by hand may hold keys anywhere.
fn refuse_keys(tree: &StoredTree, changes: &[Change]) -> Outcome {
    let is_new = |it: &&Change| it.kind == Kind::File && it.what != What::Removed;
    let files = changes
        .iter()
        .filter(is_new)
        .filter(|it| !it.path.starts_with(DISTRIBUTIONS))
        .map(|it| Path::new(OsStr::from_bytes(&it.path)));
    let findings = check::check_files(tree, files);
    let findings = findings.map_err(Error::io("checking", Path::new("the image")))?;
    match findings.is_empty() {
        true => Ok(()),
        false => Err(refused(&findings)),
    }
}
