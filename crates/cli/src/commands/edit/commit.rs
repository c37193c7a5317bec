//! A change that is read into the store becomes `NAME:next`, or a conflict that says so.

use std::collections::BTreeSet;

use image::diff::{self, Change};
use image::store::TAG_NEXT;
use image::{Digest, Error, Publish, Staged, Store, StoredTree};
use serde_json::Value;

use super::super::image::{publish_unless_moved, say_imported};
use super::{PATHS_SHOWN, Summary, confirm, real};
use crate::args::OutputArgs;
use crate::failure::{Failure, Outcome};
use crate::render;

/// What a change is to become the next version of.
pub(in super::super) struct Commit<'a> {
    pub store: &'a Store,
    pub name: &'a str,
    /// What `NAME:next` named when the change began.
    pub next: Option<Digest>,
    /// What was changed.
    pub base: &'a StoredTree,
}

/// What becomes of a change.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Decision {
    Publish,
    /// Whoever is at the terminal says so.
    Ask,
    Discard,
}

impl Commit<'_> {
    /// Says what has changed, and publishes it. `further` is added to the JSON.
    pub fn finish(
        &self,
        staged: Staged,
        changes: &[Change],
        decision: Decision,
        further: impl FnOnce() -> Value,
        output: OutputArgs,
    ) -> Outcome {
        let summary = Summary::of(changes);
        if !output.json {
            anstream::eprintln!("{}", summary.text());
        }
        let discard = decision == Decision::Discard;
        if changes.is_empty() || discard {
            return summary.say_unpublished(discard, output);
        }
        let question = || format!("Publish it as {}:{TAG_NEXT}?", self.name);
        if decision == Decision::Ask && !confirm(&question())? {
            return summary.say_unpublished(true, output);
        }
        let digest = staged.digest();
        let target = Publish::TagIf {
            name: self.name,
            tag: TAG_NEXT,
            was: self.next,
        };
        let published = match publish_unless_moved(self.store, staged, target)? {
            Ok(published) => published,
            Err(Error::TagMoved { now, .. }) => return Err(self.kept(now, digest, changes)?),
            Err(error) => return Err(error.into()),
        };
        if output.json {
            let mut said = summary.json(self.name, digest);
            if let (Some(said), Value::Object(further)) = (said.as_object_mut(), further()) {
                said.extend(further);
            }
            return render::json(&said);
        }
        say_imported(self.store, &published, output)
    }

    /// `NAME:next` was moved meanwhile: the work gets a tag of its own.
    fn kept(&self, now: Option<Digest>, digest: Digest, changes: &[Change]) -> Outcome<Failure> {
        let tag = format!("conflict-{}", digest.short());
        self.store.tag(self.name, &tag, digest)?;
        let name = self.name;
        let mut failure = Failure::new(format!(
            "{name}:{TAG_NEXT} was moved while this was under way; your change is {name}:{tag}"
        ));
        if let Some(both) = now.and_then(|now| self.changed_by_both(now, changes).ok()) {
            failure.causes.push(both);
        }
        Ok(failure.hint(format!(
            "see what the other change is: slate image diff {base} {name}:{TAG_NEXT}\n\
             make yours on top of it: slate image edit {name}:{TAG_NEXT}\n\
             or take yours instead: slate image tag {name}:{tag} {name}:{TAG_NEXT}",
            base = self.base.digest().short(),
        )))
    }

    fn changed_by_both(&self, other: Digest, changes: &[Change]) -> Outcome<String> {
        let other = self.store.open_tree(other)?;
        let theirs = diff::diff(self.base, &other)?;
        let theirs: BTreeSet<&[u8]> = real(&theirs).map(|it| &it.path[..]).collect();
        let both = real(changes).filter(|it| theirs.contains(&it.path[..]));
        let both: Vec<String> = both
            .map(|it| format!("/{}", String::from_utf8_lossy(&it.path)))
            .collect();
        if both.is_empty() {
            return Ok(format!(
                "the other change has {} paths, none of them yours",
                theirs.len()
            ));
        }
        let more = both.len().saturating_sub(PATHS_SHOWN);
        let mut text = format!("both changed {}", both[..both.len() - more].join(", "));
        if more > 0 {
            text += &format!(" and {more} more");
        }
        Ok(text)
    }
}
