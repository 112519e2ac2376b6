//! `pointsman bench`: load on a server, ours or another, and what it does under it.

use load::BenchArgs;

/// Runs the load and prints its report. Errors: it cannot begin, or nothing was answered.
pub(super) fn bench(args: &BenchArgs) -> anyhow::Result<()> {
    let report = load::run(args)?;
    print!("{}", report.table());
    anyhow::ensure!(!report.all_failed(), report.failure());
    Ok(())
}
