//! Kernels by themselves, beside what they compute in f64; and bugs planted in their sources, which these tests have to find.

mod attend;
mod experts;
mod gemm;
mod pointwise;
mod sample;

use super::standin;

/// In a file below `kernels`, what is there once, and what it becomes.
type Bug = (&'static str, &'static str, &'static str);

/// Every bug makes the test fail that it stands beside; tests by their names in a module below this one.
fn check_bugs(module: &str, bugs: &[(&str, &[Bug])]) {
    for (test, bug) in bugs.iter().flat_map(|(test, bugs)| bugs.iter().map(move |bug| (test, bug))) {
        let test = format!("cuda::kernel_tests::{module}::{test}");
        let Some(library) = standin::build_with(&[*bug]) else { return };
        let output = standin::run_test(&test, &library, &[]);
        let (file, from, to) = bug;
        assert!(!output.status.success(), "{test} does not find `{to}` for `{from}` in {file}");
        // Not because there was nothing to run.
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(!text.contains("running 0 tests"), "there is no test {test}");
    }
}
