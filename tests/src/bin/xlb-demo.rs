//! `cargo xtask demo`.

use std::process::ExitCode;

fn main() -> ExitCode {
    lb_tests::demo::main()
}
