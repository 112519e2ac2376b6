//! The `pointsman` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    serve::cli::main(std::env::args_os())
}
