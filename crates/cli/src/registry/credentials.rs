//! Names and passwords for registries, where `docker login` and `podman login` leave them.
//!
//! Formats: Docker's `config.json`, and containers-auth.json(5), which is the same but for keys that
//! may be as long as a repository. Credential helpers, which are other programs, are not asked.

use std::collections::BTreeMap;
use std::env;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;

use crate::failure::{Failure, Outcome};

/// The largest file of credentials, in bytes.
const FILE_MAX: u64 = 1 << 20;

#[derive(Deserialize)]
struct AuthFile {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

#[derive(Default, Deserialize)]
struct Entry {
    /// `USER:PASSWORD` in base 64.
    #[serde(default)]
    auth: String,
}

/// The user and the password for a repository, of the first file that has any; `None` where none has.
pub fn find(registry: &str, repository: &str) -> Outcome<Option<(String, String)>> {
    for path in files(&|name| env::var_os(name).map(PathBuf::from)) {
        let failed = |error: &(dyn std::error::Error + 'static)| {
            Failure::because(
                format!("reading credentials from {}", path.display()),
                error,
            )
            .hint("repair the file, or log in again: docker login, podman login")
        };
        let text = match read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(failed(&error)),
        };
        let file: AuthFile = serde_json::from_slice(&text).map_err(|error| failed(&error))?;
        if let Some(entry) = entry_for(&file, registry, repository) {
            return user_and_password(&entry.auth)
                .map(Some)
                .map_err(|error| failed(&error));
        }
    }
    Ok(None)
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    let mut file = std::fs::File::open(path)?.take(FILE_MAX + 1);
    if file.read_to_end(&mut text)? as u64 > FILE_MAX {
        let why = format!("more than {FILE_MAX} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    }
    Ok(text)
}

/// Where credentials may be, by what the environment has.
fn files(variable: &dyn Fn(&str) -> Option<PathBuf>) -> Vec<PathBuf> {
    let variable = |name| variable(name).filter(|path| path.as_os_str() != "");
    if let Some(only) = variable("REGISTRY_AUTH_FILE") {
        return vec![only];
    }
    let home = variable("HOME");
    let at_home = |path: &str| home.as_ref().map(|home| home.join(path));
    let run = variable("XDG_RUNTIME_DIR").map(|it| it.join("containers/auth.json"));
    let config = variable("XDG_CONFIG_HOME").or_else(|| at_home(".config"));
    let docker = variable("DOCKER_CONFIG").or_else(|| at_home(".docker"));
    let config = config.map(|it| it.join("containers/auth.json"));
    let docker = docker.map(|it| it.join("config.json"));
    [run, config, docker].into_iter().flatten().collect()
}

/// The entry for the longest beginning of `REGISTRY/REPOSITORY`.
fn entry_for<'a>(file: &'a AuthFile, registry: &str, repository: &str) -> Option<&'a Entry> {
    let whole = format!("{}/{repository}", plain_key(registry));
    let mut wanted = &whole[..];
    loop {
        let mut entries = file.auths.iter();
        if let Some((_, entry)) =
            entries.find(|(key, entry)| plain_key(key) == wanted && !entry.auth.is_empty())
        {
            return Some(entry);
        }
        wanted = wanted.rsplit_once('/')?.0;
    }
}

/// A key without what only some programs write: the scheme, Docker Hub's other name, the version of
/// the protocol.
fn plain_key(key: &str) -> &str {
    let host = key
        .strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"))
        .unwrap_or(key)
        .trim_end_matches('/');
    let host = host.strip_suffix("/v1").unwrap_or(host);
    let host = host.strip_suffix("/v2").unwrap_or(host);
    if host == "index.docker.io" {
        "docker.io"
    } else {
        host
    }
}

fn user_and_password(auth: &str) -> Result<(String, String), io::Error> {
    let wrong = || {
        let why = "an entry that is not USER:PASSWORD in base 64";
        io::Error::new(io::ErrorKind::InvalidData, why)
    };
    let text = BASE64_STANDARD.decode(auth.trim()).map_err(|_| wrong())?;
    let text = String::from_utf8(text).map_err(|_| wrong())?;
    let (user, password) = text.split_once(':').ok_or_else(wrong)?;
    Ok((user.to_owned(), password.trim_end_matches('\0').to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_key_wins_and_every_spelling_is_known() {
        let file: AuthFile = serde_json::from_str(
            r#"{"auths":{
                "https://index.docker.io/v1/": {"auth": "aHViOjE="},
                "quay.io": {"auth": "cXVheToy"},
                "quay.io/team/private": {"auth": "dGVhbTozOjQ="},
                "quay.io/helped": {},
                "localhost:5000": {"auth": "aGVyZTo1"}
            },"credsStore":"desktop"}"#,
        )
        .unwrap();
        for (registry, repository, expected) in [
            ("docker.io", "library/debian", Some(("hub", "1"))),
            ("quay.io", "team/other", Some(("quay", "2"))),
            ("quay.io", "team/private", Some(("team", "3:4"))),
            ("quay.io", "team/private/deep", Some(("team", "3:4"))),
            ("quay.io", "team/privately", Some(("quay", "2"))),
            ("quay.io", "helped", Some(("quay", "2"))),
            ("localhost:5000", "a", Some(("here", "5"))),
            ("localhost", "a", None),
            ("ghcr.io", "a", None),
        ] {
            let found = entry_for(&file, registry, repository)
                .map(|entry| user_and_password(&entry.auth).unwrap());
            let expected = expected.map(|(user, password)| (user.to_owned(), password.to_owned()));
            assert_eq!(found, expected, "{registry}/{repository}");
        }
        for wrong in ["%", "aGVyZQ==", "/w=="] {
            assert!(user_and_password(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn files_are_looked_for_where_other_tools_have_them() {
        let with = |set: &[(&str, &str)]| {
            let set: BTreeMap<String, PathBuf> = set
                .iter()
                .map(|(name, value)| ((*name).to_owned(), value.into()))
                .collect();
            files(&|name| set.get(name).cloned())
        };
        assert_eq!(
            with(&[("HOME", "/root"), ("XDG_RUNTIME_DIR", "/run/user/0")]),
            [
                Path::new("/run/user/0/containers/auth.json"),
                Path::new("/root/.config/containers/auth.json"),
                Path::new("/root/.docker/config.json"),
            ]
        );
        let docker = with(&[("HOME", "/root"), ("DOCKER_CONFIG", "/etc/docker-login")]);
        assert_eq!(
            docker.last().unwrap(),
            Path::new("/etc/docker-login/config.json")
        );
        let only = with(&[("HOME", "/root"), ("REGISTRY_AUTH_FILE", "/a.json")]);
        assert_eq!(only, [Path::new("/a.json")]);
        assert!(with(&[("HOME", "")]).is_empty());
    }
}
