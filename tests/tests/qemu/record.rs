//! `record`: the recording of a real run.

use ringfence::record::{Options, record};
use ringfence_tests::{machine, system};

fn recorded(name: &str) -> Result<(String, String), String> {
    let options = Options {
        name: name.to_string(),
        file: None,
        exec: Some("ping 10.0.2.2 -c 1".into()),
        device: None,
        machine: machine(""),
    };
    record(system(), &options).map_err(|error| format!("{error:#}"))
}

/// The test on the host (`drivers/rtl8139/src/tests.rs`) repeats a recording of the same run.
#[test]
#[ignore = "long: `make test-all` runs it"]
fn a_recording_has_what_a_driver_does() {
    let kept = include_str!("../../../drivers/rtl8139/src/ping.recording");
    let (text, name) = recorded("rtl8139").unwrap();
    assert_eq!(name, "rtl8139");
    let until_polled = |text: &str| text.split("\npoll ").next().unwrap().to_string();
    assert_eq!(until_polled(&text), until_polled(kept));
    // The frames of the ping, as the driver took them from the kernel.
    let echo_requests = text.lines().filter(|line| line.starts_with("transmit ") && line.contains("0a0002020800"));
    assert_eq!(echo_requests.count(), 1, "{text}");
}

#[test]
#[ignore = "long: `make test-all` runs it"]
fn what_cannot_be_recorded_is_said() {
    let refused = |name: &str| recorded(name).unwrap_err();
    assert!(refused("watchman").contains("watchman drives neither a network card nor a disk"));
    assert!(refused("rtl8139-c").contains("rtl8139-c is neither a driver of this project in Rust nor a folder"));
    assert!(refused("nothing").contains("nothing is neither a driver"));
}
