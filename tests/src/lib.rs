//! What the end-to-end tests share: the lab of [`xlb::lab`], under short names. And the benchmarks.

pub mod bench;
pub mod held;

use lb_common::hash::HashKey;
pub use xlb::lab::network as lab;
pub use xlb::lab::{agent, cleanup, config, load, netns, pass, process, serve, server, wait, wire};

/// The key of the hash in tests.
pub const KEY: HashKey = HashKey([
    0x9E37_79B9_7F4A_7C15,
    0xD6E8_FEB8_6659_FD93,
    0xA076_1D64_78BD_642F,
    0xE703_7ED1_A0B4_28DB,
    0x8EBC_6AF0_9C88_C6E3,
    0x5899_65CC_7537_4CC3,
    0x1D8E_4E27_C47D_124F,
    0,
]);

/// Whether to leave out what needs root (`cargo xtask test --unprivileged`); says so where it is the case.
#[must_use]
pub fn unprivileged(test: &str) -> bool {
    let left_out = std::env::var_os("XLB_TEST_UNPRIVILEGED").is_some();
    if left_out {
        println!("left out, needs root: {test}");
    }
    left_out
}

/// Ends a test with success where those that need root are left out.
#[macro_export]
macro_rules! privileged {
    ($name:literal) => {
        if $crate::unprivileged($name) {
            return Ok(());
        }
    };
}
