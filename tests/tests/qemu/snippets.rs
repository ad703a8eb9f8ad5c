//! Generated machine code in ring 1 ends as QEMU logged it. `cargo run -- snippets` runs more of
//! it.

use ringfence::snippets::{self, Options};
use ringfence_tests::system;

#[test]
fn twenty_thousand_snippets_end_as_qemu_logged_them() {
    let mut report = Vec::new();
    let options = Options { count: 20_000, seed: 1997 };
    let summary = snippets::summary(system(), &options, &mut |finding| report.push(finding.clone())).unwrap();
    assert!(summary.findings.is_empty(), "{report:#?}");
    assert_eq!(summary.run, options.count);
    // Nearly all snippets raise an exception, which can be compared.
    assert!(summary.compared > options.count * 9 / 10, "{summary:?}");
}
