//! The conformance suite: the project's drivers pass it, and a driver that does not work fails.

use ringfence::conform::{self, Options, Outcome};
use ringfence::machine::Machine;
use ringfence_tests::{assert_says, runner, system};
use std::process::Command;

fn outcomes(name: &str, only: Option<&str>, ring: Option<u8>) -> Vec<Outcome> {
    with_device(name, None, only, ring)
}

fn with_device(name: &str, device: Option<&str>, only: Option<&str>, ring: Option<u8>) -> Vec<Outcome> {
    let (name, only, device) = (name.to_string(), only.map(String::from), device.map(String::from));
    let options = Options { name, device, only, ring, machine: Machine::default(), json: false };
    conform::outcomes(system(), &options, |_| ()).unwrap()
}

fn assert_passes(outcomes: &[Outcome]) {
    let failed: Vec<&Outcome> = outcomes.iter().filter(|outcome| outcome.failure.is_some()).collect();
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
#[ignore = "long: `make test-all` runs it"]
fn a_network_driver_passes_all() {
    let outcomes = outcomes("ne2k-pci", None, None);
    assert_eq!(outcomes.len(), 36);
    assert_passes(&outcomes);
}

#[test]
#[ignore = "long: `make test-all` runs it"]
fn drivers_of_disks_pass_all() {
    for (name, tests) in [("virtio-scsi", 22), ("ide", 18)] {
        let outcomes = outcomes(name, None, None);
        assert_eq!(outcomes.len(), tests);
        assert_passes(&outcomes);
    }
}

#[test]
#[ignore = "long: `make test-all` runs it"]
fn a_filesystem_that_is_written_passes_all() {
    let outcomes = outcomes("fat", None, None);
    assert_eq!(outcomes.len(), 28);
    assert_passes(&outcomes);
}

/// Tests that write are left out: `ext` only reads.
#[test]
fn a_filesystem_that_is_only_read_passes() {
    for test in ["read", "list", "errors", "bad-block", "restart-disk"] {
        assert_passes(&outcomes("ext", Some(test), None));
    }
}

/// A driver of another format cannot serve this one.
#[test]
fn a_filesystem_that_its_driver_does_not_know_fails() {
    let [outcome] = &with_device("ext", Some("fat16"), Some("read"), Some(1))[..] else {
        panic!("one test in one ring")
    };
    assert_eq!(outcome.failure.as_deref(), Some("'mount disk0 /mnt -t ext': init: refused: invalid argument"));
}

/// The other drivers pass all tests as well (`cargo run -- conform NAME`). Here they run only the
/// tests that find most errors.
#[test]
#[ignore = "long: `make test-all` runs it"]
fn the_others_filter_and_come_back() {
    for name in ["e1000", "pcnet", "rtl8139", "rtl8139-c", "virtio-net"] {
        for test in ["others", "restart-in", "sums"] {
            assert_passes(&outcomes(name, Some(test), Some(1)));
        }
    }
    for (name, test) in [
        ("virtio-net", "ring-size"),
        ("virtio-blk", "ring-size"),
        ("virtio-blk", "bad-block"),
        ("am53c974", "bad-block"),
    ] {
        assert_passes(&outcomes(name, Some(test), Some(1)));
    }
    for name in ["lsi53c895a", "am53c974", "virtio-blk"] {
        assert_passes(&outcomes(name, Some("restart"), Some(1)));
    }
    for name in ["lsi53c895a", "am53c974"] {
        assert_passes(&outcomes(name, Some("hot-plug"), Some(1)));
    }
}

/// No driver can pass a test in which QEMU itself ends.
#[test]
fn a_test_that_qemu_does_not_survive_is_left_out() {
    let output = Command::new(runner()).args(["conform", "lsi53c895a", "--only", "bad-block"]).output().unwrap();
    assert_eq!(output.status.code(), Some(4));
    let said = String::from_utf8_lossy(&output.stderr);
    assert_says(&said, "bad-block is left out with lsi53c895a: QEMU's model keeps a failed read in its queue");
    assert_says(&said, "there is no such test; there are: identify,");
}

/// The 82574L checks the checksums of received frames; the driver says so of each frame.
#[test]
fn a_card_that_checks_checksums_drops_nothing_that_is_right() {
    for test in ["sums", "restart-in"] {
        assert_passes(&with_device("e1000", Some("e1000e"), Some(test), None));
    }
}

/// With `rogue-nic`, the guest never asks for an address.
#[test]
fn a_driver_that_does_nothing_fails() {
    let [outcome] = &outcomes("rogue-nic", Some("dhcp"), Some(1))[..] else { panic!("one test in one ring") };
    assert_eq!(outcome.failure.as_deref(), Some("eth0 has ''"));
}
