//! The server as a client on a socket sees it: what RFC 8881, RFC 7862 and RFC 1813 ask of it, and what it
//! promises beyond them.

mod bounds;
mod client;
mod codes;
mod files;
mod fuzz;
mod hostile;
mod memory;
mod recorded;
mod records;
mod restart;
mod sessions;
mod states;
mod v3;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;

use client::{Client, LINUX, Peer};
use memory::Memory;

const KEY: [u8; 32] = [7; 32];
const TREE: [u8; 16] = [1; 16];

/// A server of the sample tree at `/image` on a port of its own.
struct Site {
    server: nfs::Server,
    address: SocketAddr,
}

impl Site {
    fn new() -> Site {
        Site::with(|_| ())
    }

    fn with(change: impl FnOnce(&mut nfs::Config)) -> Site {
        let mut config = nfs::Config::new(KEY);
        config.threads = 2;
        change(&mut config);
        let server = nfs::Server::new(config)
            .expect("threads")
            .export("/image", TREE, Arc::new(Memory::sample()))
            .expect("an export");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        // Every 127.* address reaches it, from every 127.* address.
        let address = listener.local_addr().expect("an address");
        server.serve(listener).expect("a listener");
        Site { server, address }
    }

    fn connect(&self) -> Peer {
        Peer::connect(self.address)
    }

    /// A client with a session and a backchannel.
    fn client(&self) -> Client {
        self.connect().mount(b"client", 1, LINUX)
    }
}
