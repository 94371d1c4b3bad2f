//! What `cargo xtask bench` runs: `xlb-bench PART --json FILE`.

use std::process::ExitCode;

fn main() -> ExitCode {
    lb_tests::bench::main()
}
