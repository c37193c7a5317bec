//! Images from a real registry: the program `docker-registry` (Debian's package of that name), started
//! on this machine and filled by a client of its own.
//!
//! Where it is not installed, the tests say `skipped: reason`; `cargo xtask test` installs it.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference, RegistryOperation};
use serde_json::{Value, json};
use tempfile::TempDir;

const SLATE: &str = env!("CARGO_BIN_EXE_slate");
const PATIENCE: Duration = Duration::from_secs(120);
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Who may use the registry, and the same as bcrypt hash and in base 64, as `docker login` writes it.
const USER: (&str, &str) = ("node", "opensesame");
const HASHED: &str = "node:$2b$05$abcdefghijklmnopqrstuuQbLfdQZSxZ9gjhA5V9o8Tyc6aQRO0Qi";
const ENCODED: &str = "bm9kZTpvcGVuc2VzYW1l";

/// A registry that runs until it is dropped, and a machine's directories.
struct Registry {
    directory: TempDir,
    process: Child,
    address: String,
    client: Client,
    runtime: tokio::runtime::Runtime,
}

impl Registry {
    /// `None`, said as `skipped`, where there is no such program.
    fn start() -> Option<Self> {
        let found = Command::new("docker-registry")
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if found.is_err() {
            println!("skipped: no docker-registry here (Debian's package of that name)");
            return None;
        }
        let directory = tempfile::tempdir().expect("a temporary directory");
        let top = directory.path();
        // An address of its own: on another one nobody takes the port before the registry does, and
        // who looks for it there does not meet himself.
        static REGISTRIES: AtomicU8 = AtomicU8::new(2);
        let host = format!("127.0.0.{}", REGISTRIES.fetch_add(1, Ordering::Relaxed));
        let port = TcpListener::bind((&*host, 0)).and_then(|it| it.local_addr());
        let address = format!("{host}:{}", port.expect("a free port").port());
        fs::write(top.join("htpasswd"), HASHED).expect("a file");
        let config = json!({
            "version": 0.1,
            "log": { "level": "warn" },
            "storage": { "filesystem": { "rootdirectory": top.join("blobs") } },
            "http": { "addr": address },
            "auth": { "htpasswd": { "realm": "test", "path": top.join("htpasswd") } },
        });
        // JSON is YAML.
        fs::write(top.join("registry.yml"), config.to_string()).expect("a file");
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(top.join("registry.yml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the registry starts");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let _ = rustls::crypto::ring::default_provider().install_default();
        let registry = Self {
            directory,
            process,
            client: Client::try_from(ClientConfig {
                protocol: ClientProtocol::HttpsExcept(vec![address.clone()]),
                ..ClientConfig::default()
            })
            .expect("a client"),
            address,
            runtime,
        };
        registry.wait();
        Some(registry)
    }

    fn wait(&self) {
        let end = Instant::now() + PATIENCE;
        while TcpStream::connect(&self.address).is_err() {
            assert!(Instant::now() < end, "the registry does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn reference(&self, name: &str) -> Reference {
        format!("{}/{name}", self.address)
            .parse()
            .expect("a reference")
    }

    /// Pushes the blobs of a layout, and its manifest as `name`; what an index says of it.
    fn push(&self, layout: &Path, name: &str) -> Value {
        let image = self.reference(name);
        let index = fs::read_to_string(layout.join("index.json")).expect("an index");
        let index: Value = serde_json::from_str(&index).expect("JSON");
        let descriptor = index["manifests"][0].clone();
        let read = |descriptor: &Value| {
            let digest = descriptor["digest"].as_str().expect("a digest").to_owned();
            let path = layout.join("blobs").join(digest.replace(':', "/"));
            (digest, fs::read(path).expect("a blob"))
        };
        let (_, manifest) = read(&descriptor);
        let parsed: Value = serde_json::from_slice(&manifest).expect("JSON");
        let blobs = [parsed["config"].clone(), parsed["layers"][0].clone()].map(|it| read(&it));
        self.runtime.block_on(async {
            let auth = RegistryAuth::Basic(USER.0.into(), USER.1.into());
            let push = RegistryOperation::Push;
            self.client
                .auth(&image, &auth, push)
                .await
                .expect("a login");
            for (digest, blob) in blobs {
                let pushed = self.client.push_blob(&image, blob, &digest).await;
                pushed.expect("a blob is pushed");
            }
        });
        self.push_manifest(name, manifest, MANIFEST);
        descriptor
    }

    fn push_manifest(&self, name: &str, manifest: Vec<u8>, media_type: &str) {
        let media_type = media_type.parse().expect("a header");
        let image = self.reference(name);
        let pushed = self.client.push_manifest_raw(&image, manifest, media_type);
        self.runtime.block_on(pushed).expect("a manifest is pushed");
    }

    fn slate(&self, words: &[&str]) -> (bool, String) {
        let output = Command::new(SLATE)
            .args(words)
            .env("SLATE_STATE_DIR", self.path("state"))
            .env("SLATE_RUN_DIR", self.path("run"))
            .env("REGISTRY_AUTH_FILE", self.path("auth.json"))
            .current_dir(self.directory.path())
            .stdin(Stdio::null())
            .output()
            .expect("slate starts");
        said(&output)
    }

    fn log_in(&self, encoded: &str) {
        let auths = json!({ "auths": { &self.address: { "auth": encoded } } });
        fs::write(self.path("auth.json"), auths.to_string()).expect("a file");
    }

    /// An image of one file, as an OCI image layout.
    fn layout(&self, name: &str, architecture: &str) -> PathBuf {
        let root = self.path(&format!("{name}-root"));
        fs::create_dir(&root).expect("a folder");
        // Too large to lie in an image's metadata.
        let content: Vec<u8> = (0..200_000u64)
            .map(|it| (it.wrapping_mul(it) >> 7) as u8 ^ name.len() as u8)
            .collect();
        fs::write(root.join(name), content).expect("a file");
        let root = root.to_str().expect("text").to_owned();
        self.succeeds(&["image", "import", name, &root]);
        let layout = format!("{name}-layout");
        self.succeeds(&["image", "export", name, &layout, "--format", "oci"]);
        let index = self.path(&layout).join("index.json");
        let text = fs::read_to_string(&index).expect("an index");
        fs::write(index, text.replace("amd64", architecture)).expect("an index");
        self.path(&layout)
    }

    #[track_caller]
    fn succeeds(&self, words: &[&str]) -> String {
        let (good, text) = self.slate(words);
        assert!(good, "{text}");
        text
    }

    /// Asserts that an import fails and says all of this, of it what to do next.
    #[track_caller]
    fn fails(&self, reference: &str, parts: &[&str]) {
        let source = format!("docker://{reference}");
        let (good, text) = self.slate(&["image", "import", "x", &source]);
        assert!(!good, "{text}");
        for part in parts.iter().chain(&["hint: "]) {
            assert!(text.contains(part), "{part:?} not in: {text}");
        }
    }

    fn digest(&self, tag: &str) -> Value {
        let show: Value =
            serde_json::from_str(&self.succeeds(&["image", "show", tag, "--json"])).expect("JSON");
        show["digest"].clone()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn said(output: &Output) -> (bool, String) {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let text = text + &String::from_utf8_lossy(&output.stderr);
    println!("--- {}\n{text}", output.status);
    (output.status.success(), text)
}

#[test]
fn an_image_comes_out_of_a_registry_as_it_went_in() {
    let Some(registry) = Registry::start() else {
        return;
    };
    let layout = registry.layout("one", "amd64");
    let descriptor = registry.push(&layout, "team/one:1");
    let address = &registry.address;
    let tagged = format!("docker://{address}/team/one:1");
    let by_digest = format!(
        "docker://{address}/team/one@{}",
        descriptor["digest"].as_str().unwrap()
    );

    registry.fails(
        &tagged["docker://".len()..],
        &["Not authorized", "docker login"],
    );
    registry.log_in("bm9kZTp3cm9uZw==");
    registry.fails(
        &tagged["docker://".len()..],
        &["Not authorized", "docker login"],
    );
    registry.log_in(ENCODED);
    for (name, source) in [("tagged", tagged), ("exact", by_digest)] {
        registry.succeeds(&["image", "import", name, &source]);
        assert_eq!(registry.digest(name), registry.digest("one"));
    }
    let list = format!("skopeo list-tags docker://{address}/team/one");
    registry.fails(
        &format!("{address}/team/one:2"),
        &["team/one:2", "manifest unknown", &list],
    );
    registry.fails(
        "Not/a:reference:",
        &["names no image", "docker://REGISTRY/REPOSITORY:TAG"],
    );
    registry.fails("127.0.0.1:1/x", &["127.0.0.1:1", "can be reached"]);
    fs::write(registry.path("auth.json"), "{").unwrap();
    registry.fails(
        &format!("{address}/team/one:1"),
        &["auth.json", "log in again"],
    );
}

#[test]
fn of_several_platforms_only_the_nodes_is_fetched() {
    let Some(registry) = Registry::start() else {
        return;
    };
    registry.log_in(ENCODED);
    let amd = registry.push(&registry.layout("amd", "amd64"), "team/both:amd");
    let other = registry.layout("arm", "arm64");
    let arm = registry.push(&other, "team/both:arm");
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [arm, amd] });
    registry.push_manifest("team/both:1", index.to_string().into_bytes(), INDEX);
    // What the other platform needs is gone: nothing asks for it.
    let blobs = registry.path("blobs/docker/registry/v2/blobs/sha256");
    for blob in fs::read_dir(other.join("blobs/sha256")).unwrap() {
        let name = blob.unwrap().file_name().into_string().unwrap();
        fs::remove_dir_all(blobs.join(&name[..2]).join(&name)).unwrap();
    }
    let source = format!("docker://{}/team/both:1", registry.address);
    registry.succeeds(&["image", "import", "both", &source]);
    assert_eq!(registry.digest("both"), registry.digest("amd"));
}

#[test]
fn a_registry_that_sends_something_else_is_found_out() {
    let Some(registry) = Registry::start() else {
        return;
    };
    registry.log_in(ENCODED);
    let layout = registry.layout("one", "amd64");
    registry.push(&layout, "one:1");
    let blobs = fs::read_dir(layout.join("blobs/sha256")).unwrap();
    let largest = blobs
        .flatten()
        .max_by_key(|blob| blob.metadata().unwrap().len())
        .unwrap();
    let name = largest.file_name().into_string().unwrap();
    let stored = registry.path("blobs/docker/registry/v2/blobs/sha256");
    let stored = stored.join(&name[..2]).join(&name).join("data");
    let mut content = fs::read(&stored).unwrap();
    content[5000] ^= 1;
    fs::write(&stored, content).unwrap();
    let reference = format!("{}/one:1", registry.address);
    registry.fails(
        &reference,
        &[&name, "is damaged or was changed", "expected sha256:"],
    );
    let tmp = registry.path("state/store/tmp");
    assert_eq!(fs::read_dir(tmp).unwrap().count(), 0, "rests of the import");
}

/// Answers every request in the same way, the body again and again until the other side has enough.
fn endless(head: &'static str) -> String {
    use std::io::{Read as _, Write as _};
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address").to_string();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut request = [0; 4096];
            let read = stream.read(&mut request).unwrap_or(0);
            let request = String::from_utf8_lossy(&request[..read]).into_owned();
            let is_manifest = request.contains("/manifests/");
            if !is_manifest {
                // Said, for it is closed: else the next request may come before that is seen.
                let head = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
                let _ = stream.write_all(head);
                continue;
            }
            let chunk = vec![b' '; 1 << 16];
            let mut sent = stream.write_all(head.as_bytes());
            while sent.is_ok() {
                sent = write!(stream, "{:x}\r\n", chunk.len())
                    .and_then(|()| stream.write_all(&chunk))
                    .and_then(|()| stream.write_all(b"\r\n"));
            }
        }
    });
    address
}

#[test]
fn a_manifest_without_end_is_not_waited_for() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    for head in [
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n",
    ] {
        let source = format!("docker://{}/x:1", endless(head));
        let output = Command::new(SLATE)
            .args(["image", "import", "x", &source])
            .env("SLATE_STATE_DIR", directory.path().join("state"))
            .env("SLATE_RUN_DIR", directory.path().join("run"))
            .stdin(Stdio::null())
            .output()
            .expect("slate starts");
        let (good, text) = said(&output);
        assert!(!good, "{text}");
        assert!(text.contains("at most 4194304 bytes"), "{text}");
    }
}
