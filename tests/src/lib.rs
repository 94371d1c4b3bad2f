//! What the end-to-end tests and the demo share: a small network of namespaces with real servers and clients
//! in it, and the real `xlb` in the middle.
//!
//! ```text
//!   client ─┐                 ┌─ b1 (service addresses on lo)
//!           ├── switch (br0) ─┼─ b2
//!   lb ─────┘                 └─ b3
//! ```
//!
//! Everything made here is a guard that takes away what it made: when it is dropped, when a test panics, and on
//! SIGINT and SIGTERM ([`cleanup`]). What a killed process could not remove, the next one sweeps up.

pub mod agent;
pub mod cleanup;
pub mod config;
pub mod demo;
pub mod lab;
pub mod load;
pub mod netns;
pub mod pass;
pub mod process;
pub mod serve;
pub mod server;
pub mod wait;

/// Whether to leave out what needs root (`cargo xtask test --unprivileged`); says so where it is the case.
#[must_use]
pub fn unprivileged(test: &str) -> bool {
    let left_out = std::env::var_os("XLB_TEST_UNPRIVILEGED").is_some();
    if left_out {
        println!("left out, needs root: {test}");
    }
    left_out
}
