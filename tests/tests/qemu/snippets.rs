//! Generated machine code in ring 1 ends as QEMU logged it. `cargo run -- snippets` runs more of
//! it.

use crate::segments::are_built;
use ringfence::snippets::{self, Options};
use ringfence_abi::manifest::DomainKind;
use ringfence_tests::{system, times};

fn end_as_logged(count: usize, kind: DomainKind) {
    let mut report = Vec::new();
    let options = Options { count, seed: 1997, kind };
    let summary = snippets::summary(system(), &options, &mut |finding| report.push(finding.clone())).unwrap();
    assert!(summary.findings.is_empty(), "{report:#?}");
    assert_eq!(summary.run, options.count);
    // Nearly all snippets raise an exception, which can be compared.
    assert!(summary.compared > options.count * 9 / 10, "{summary:?}");
}

#[test]
fn snippets_end_as_qemu_logged_them() {
    end_as_logged(times(20_000, 2_000), DomainKind::Paged);
}

#[test]
fn snippets_of_32_bit_code_end_as_qemu_logged_them() {
    if are_built() {
        end_as_logged(times(10_000, 1_000), DomainKind::Segmented);
    }
}
