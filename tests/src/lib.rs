//! What the end-to-end tests share: the lab of [`xlb::lab`], under short names. And the benchmarks.

pub mod bench;

pub use xlb::lab::network as lab;
pub use xlb::lab::{agent, cleanup, config, load, netns, pass, process, serve, server, wait};

/// Whether to leave out what needs root (`cargo xtask test --unprivileged`); says so where it is the case.
#[must_use]
pub fn unprivileged(test: &str) -> bool {
    let left_out = std::env::var_os("XLB_TEST_UNPRIVILEGED").is_some();
    if left_out {
        println!("left out, needs root: {test}");
    }
    left_out
}
