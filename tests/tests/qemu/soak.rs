//! A stream, copies and files go on while their drivers are ended at random moments in random ways.
//! `cargo run -- soak` does the same for any length of time.

use ringfence::soak::{self, Options};
use ringfence_abi::manifest::DomainKind;
use ringfence_tests::{system, times};
use std::time::Duration;

fn options() -> Options {
    let (machine, kind) = (ringfence::machine::Machine::default(), DomainKind::Paged);
    Options { machine, kind, time: Duration::from_secs(times(20, 8)), seed: 1997, json: false }
}

#[test]
fn nothing_is_lost_while_drivers_are_ended() {
    let summary = soak::copies::run(system(), &options()).unwrap();
    assert!(summary.is_good(), "{summary:?}");
    assert!(
        summary.ends.crashes >= times(5, 2) && summary.stream_bytes > 1 << 20 && summary.disk_bytes > 8 << 20,
        "{summary:?}"
    );
}

/// After crashes, the host's own tools find only errors that they find after power cuts as well,
/// and data that was reported as written is there.
#[test]
#[ignore = "long: `make test-all` runs it"]
fn no_file_is_lost_while_drivers_are_ended() {
    let summary = soak::files::run(system(), &options(), 2).unwrap();
    assert!(summary.is_good(), "{summary:?}");
    assert!(summary.ends.crashes >= 5 && summary.commands > 50 && summary.looks > 0, "{summary:?}");
    assert_eq!(summary.power_cuts, 2);
}
