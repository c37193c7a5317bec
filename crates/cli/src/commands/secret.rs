//! `slate secret`: what only nodes may know, for files of groups that name it.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use daemon::control::{Client, Request, Response, Secret, SecretView};

use super::node::unexpected;
use crate::args::{DirArgs, SecretCommand};
use crate::failure::{Failure, Outcome};
use crate::render;

/// More than any secret may have: the daemon says how long one may be.
const READ_MAX_BYTES: u64 = 1 << 20;

/// Runs one `slate secret` command.
pub fn run(dirs: &DirArgs, command: SecretCommand) -> Outcome {
    match command {
        SecretCommand::Set { name, file } => {
            let content = Some(Secret(read(&file)?));
            done(dirs, &Request::SetSecret { name, content })
        }
        SecretCommand::Rm { name } => {
            let content = None;
            done(dirs, &Request::SetSecret { name, content })
        }
        SecretCommand::List { output } => {
            let mut client = Client::connect(&dirs.run_dir)?;
            let secrets = match client.request(&Request::Secrets)? {
                Response::Secrets { secrets } => secrets,
                other => return Err(unexpected(&other)),
            };
            if output.json {
                return render::json(&secrets);
            }
            anstream::println!("{}", text(&secrets));
            Ok(())
        }
    }
}

fn done(dirs: &DirArgs, request: &Request) -> Outcome {
    let mut client = Client::connect(&dirs.run_dir)?;
    match client.request(request)? {
        Response::Done => Ok(()),
        other => Err(unexpected(&other)),
    }
}

fn read(path: &Path) -> Outcome<Vec<u8>> {
    let mut content = Vec::new();
    let read = if path == Path::new("-") {
        io::stdin().take(READ_MAX_BYTES).read_to_end(&mut content)
    } else {
        File::open(path).and_then(|file| file.take(READ_MAX_BYTES).read_to_end(&mut content))
    };
    match read {
        Ok(_) => Ok(content),
        Err(error) => Err(Failure::because(
            format!("reading {}", path.display()),
            &error,
        )),
    }
}

fn text(secrets: &[SecretView]) -> String {
    if secrets.is_empty() {
        return "There are no secrets; keep one with: slate secret set NAME FILE".to_owned();
    }
    let rows = secrets.iter().map(|secret| {
        vec![
            secret.name.clone(),
            render::bytes(secret.bytes as u64),
            secret.groups.join(", "),
        ]
    });
    render::table(&["SECRET", "SIZE", "GROUPS"], rows)
}
