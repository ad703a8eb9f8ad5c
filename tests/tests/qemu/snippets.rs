//! Made-up machine code in ring 1: its ends are those that QEMU logged. `cargo run -- snippets`
//! does more of the same.

use ringfence::snippets::{self, Options};
use ringfence_tests::system;

#[test]
fn twenty_thousand_snippets_end_as_qemu_logged_them() {
    let mut report = Vec::new();
    let options = Options { count: 20_000, seed: 1997 };
    let summary = snippets::summary(system(), &options, &mut |finding| report.push(finding.clone())).unwrap();
    assert!(summary.findings.is_empty(), "{report:#?}");
    assert_eq!(summary.run, options.count);
    // Nearly all raise an exception, which is what can be compared.
    assert!(summary.compared > options.count * 9 / 10, "{summary:?}");
}
