//! Benchmarks of the host. One entry: `cargo run --release -p bench -- NAME`.
#![allow(clippy::print_stdout, reason = "a benchmark prints its table")]
#![allow(clippy::disallowed_methods, reason = "a benchmark reads the machine's clock")]

mod bare;
mod choices;
mod drafts;
mod executor;
mod grammar;
mod host;
mod http;
mod index;
mod kv;
mod languages;
mod load;
mod peers;
mod policies;
mod prefill;
mod retention;
mod simulate;
mod speculation;
mod swap;
mod table;
mod turns;

use std::process::ExitCode;

fn main() -> ExitCode {
    let name = std::env::args().nth(1).unwrap_or_default();
    let result = match name.as_str() {
        "retention" => retention::run(),
        "policy" => policies::run(),
        "swap" => swap::run(),
        "http" => http::run(),
        "kv" => kv::run(),
        "index" => index::run(),
        "executor" => executor::run(),
        "drafts" => drafts::run(),
        "prefill" => prefill::run(),
        "grammar" => grammar::run(),
        "languages" => languages::run(),
        "speculation" => speculation::run(),
        "simulate" => simulate::run(),
        host::CHILD => host::serve(),
        bare::CHILD => bare::serve(),
        _ => {
            eprintln!(
                "usage: bench policy|swap|http|kv|index|retention|executor|drafts|prefill|grammar|languages|speculation|simulate"
            );
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
