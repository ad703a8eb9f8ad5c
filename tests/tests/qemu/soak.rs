//! A stream and copies go on while their drivers are ended at random moments in random ways. `cargo
//! run -- soak` does the same for any length of time.

use ringfence::soak::{self, Options};
use ringfence_tests::system;
use std::time::Duration;

#[test]
fn nothing_is_lost_while_drivers_are_ended() {
    let options = Options {
        machine: ringfence::machine::Machine::default(),
        time: Duration::from_secs(20),
        seed: 1997,
        json: false,
    };
    let summary = soak::run(system(), &options).unwrap();
    assert!(summary.is_good(), "{summary:?}");
    assert!(summary.crashes >= 5 && summary.stream_bytes > 1 << 20 && summary.disk_bytes > 8 << 20, "{summary:?}");
}
