//! The binary `xlb`: agent and command line in one.

use std::process::ExitCode;

fn main() -> ExitCode {
    xlb::cli::main()
}
