//! The server: its threads, its listeners, its face to the program that runs it.

use std::io;
use std::net::TcpListener;
use std::sync::Arc;

use crate::activity::Observer;
use crate::exports::{ExportError, Exports};
use crate::stats::Stats;
use crate::tree::Tree;

/// What a server needs to know.
#[derive(Clone)]
pub struct Config {
    /// Seals file handles, session, client and state ids. A server that is started again with the
    /// same key and exports goes on where the old one was.
    pub key: [u8; 32],
    /// Threads that serve connections, at least 1.
    pub threads: usize,
    /// Most connections at once; more are closed at once.
    pub max_connections: usize,
    /// Most connections at once of one address.
    pub max_connections_per_address: usize,
    /// Is told what happens.
    pub observer: Option<Arc<dyn Observer>>,
}

impl Config {
    /// The usual limits, with `key`: a thread for each processor, 16384 connections, 4096 of one
    /// address.
    pub fn new(key: [u8; 32]) -> Config {
        Config {
            key,
            threads: std::thread::available_parallelism().map_or(2, usize::from),
            max_connections: 16384,
            max_connections_per_address: 4096,
            observer: None,
        }
    }
}

/// A running server.
pub struct Server {
    exports: Exports,
}

impl Server {
    /// Starts the threads of a server without exports and listeners.
    pub fn new(_config: Config) -> io::Result<Server> {
        Ok(Server {
            exports: Exports {},
        })
    }

    /// Adds an export: see [`Exports::add`].
    pub fn export(
        self,
        path: &str,
        id: [u8; 16],
        tree: Arc<dyn Tree>,
    ) -> Result<Server, ExportError> {
        self.exports.add(path, id, tree)?;
        Ok(self)
    }

    /// The exports, to change while the server runs.
    pub fn exports(&self) -> &Exports {
        &self.exports
    }

    /// Serves what connects to `listener` from now on; returns at once. Several listeners are fine.
    pub fn serve(&self, _listener: TcpListener) -> io::Result<()> {
        Ok(())
    }

    /// The counters.
    pub fn stats(&self) -> Stats {
        Stats::default()
    }

    /// Ends all threads and connections. Clients wait for a successor.
    pub fn shutdown(self) {}
}
