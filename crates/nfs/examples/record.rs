//! Records what clients send, as input for the fuzz target `nfs_rpc`: `record ADDRESS:PORT FILE
//! [SERVER:PORT]`. It listens at the address and passes everything on to the server, or serves the
//! sample tree of the tests at `/image` itself. Of all connections together, a few calls of each
//! length and procedure are written to the file.

use std::collections::HashMap;
use std::error::Error;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

#[allow(dead_code)]
#[path = "../tests/protocol/memory.rs"]
mod memory;

/// Calls of one length and procedure that are written.
const ALIKE: usize = 20;
/// Longest file.
const MAX_LEN: usize = 64 << 10;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (address, path, server) = match &args[..] {
        [address, path] => (address, path, serve_sample()?),
        [address, path, server] => (address, path, server.clone()),
        _ => return Err("expected ADDRESS:PORT FILE [SERVER:PORT]".into()),
    };
    let recorder = Recorder::new(File::create(path)?)?;
    let recorder = Arc::new(Mutex::new(recorder));
    for client in TcpListener::bind(address)?.incoming() {
        let (client, server) = (client?, TcpStream::connect(&server)?);
        let (mut replies, mut back) = (server.try_clone()?, client.try_clone()?);
        thread::spawn(move || io::copy(&mut replies, &mut back));
        let recorder = Arc::clone(&recorder);
        thread::spawn(move || pass_on(client, server, &recorder));
    }
    Ok(())
}

/// Serves the tree that the fuzz target serves, under the same key; returns where.
fn serve_sample() -> Result<String, Box<dyn Error>> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?.to_string();
    let tree = Arc::new(memory::Memory::sample());
    let server = nfs::Server::new(nfs::Config::new([7; 32]))?.export("/image", [1; 16], tree)?;
    server.serve(listener)?;
    // It runs as long as the process does.
    std::mem::forget(server);
    Ok(address)
}

/// Passes the records of a client on, one after the other.
fn pass_on(mut client: TcpStream, mut server: TcpStream, recorder: &Mutex<Recorder>) {
    let mut next = || -> io::Result<()> {
        let mut record = vec![0; 4];
        client.read_exact(&mut record)?;
        let mark = u32::from_be_bytes([record[0], record[1], record[2], record[3]]);
        record.resize(4 + (mark & 0x7fff_ffff) as usize, 0);
        client.read_exact(&mut record[4..])?;
        server.write_all(&record)?;
        let mut recorder = recorder.lock().unwrap_or_else(PoisonError::into_inner);
        recorder.take(&record)
    };
    while next().is_ok() {}
    let _ = server.shutdown(std::net::Shutdown::Both);
}

struct Recorder {
    file: File,
    len: usize,
    /// How many calls there were of a program, version, procedure and length.
    seen: HashMap<(Vec<u8>, usize), usize>,
}

impl Recorder {
    fn new(mut file: File) -> io::Result<Recorder> {
        // The mode of the fuzz target that takes records.
        file.write_all(&[0; 3])?;
        Ok(Recorder {
            file,
            len: 3,
            seen: HashMap::new(),
        })
    }

    fn take(&mut self, record: &[u8]) -> io::Result<()> {
        // Mark, xid, direction, version of RPC; then program, version, procedure.
        let target = record.get(16..28).unwrap_or_default().to_vec();
        let count = self.seen.entry((target, record.len())).or_default();
        *count += 1;
        if *count > ALIKE || self.len + record.len() > MAX_LEN {
            return Ok(());
        }
        self.len += record.len();
        self.file.write_all(record)
    }
}
