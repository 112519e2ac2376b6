//! Kernels by themselves, beside what they compute in f64; and bugs planted in their sources, which these tests have to find.

mod attend;
mod experts;
mod gemm;
mod pointwise;
mod sample;

use super::standin;

/// In a file below `kernels`, what is there once, and what it becomes.
type Bug = (&'static str, &'static str, &'static str);

/// Every bug makes a test fail, named as `cargo test` names it.
fn check_bugs(test: &str, bugs: &[Bug]) {
    for bug in bugs {
        let Some(library) = standin::build_with(&[*bug]) else { return };
        let output = standin::run_test(test, &library, &[]);
        let (file, from, to) = bug;
        assert!(!output.status.success(), "{test} does not find `{to}` for `{from}` in {file}");
        // Not because there was nothing to run.
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(!text.contains("running 0 tests"), "there is no test {test}");
    }
}
