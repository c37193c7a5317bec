//! One module per command: each asks the layer below and renders what comes back.

pub mod apply;
pub mod build;
mod commit;
pub mod config;
pub mod console;
mod diff;
pub mod doctor;
mod edit;
pub mod events;
mod export;
pub mod image;
pub mod initrd;
pub mod lab;
mod layer;
pub mod manual;
pub mod node;
mod order;
mod otherserver;
pub mod plan;
mod power;
pub mod report;
pub mod rollout;
pub mod secret;
pub mod service;
pub mod up;
mod upkeep;
