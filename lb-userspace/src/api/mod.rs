//! The agent's HTTP/JSON API on its Unix socket.

pub mod client;
pub mod command;
pub mod connections;
pub mod frozen;
pub mod server;
pub mod types;
