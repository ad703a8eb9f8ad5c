//! Broken drivers, made from good ones by changing one instruction at a time. In ring 1, none of
//! them changes the kernel, and the service comes back each time. `cargo run -- campaign` tries
//! more changes.

use ringfence::campaign::report::{self, KERNEL_DEATH};
use ringfence::campaign::{self, Options, Outcome};
use ringfence::machine::Machine;
use ringfence_abi::manifest::DomainKind;
use ringfence_tests::{system, times};

fn options(mutants: usize, ring: u8) -> Options {
    let modules = ["e1000", "virtio-scsi"].map(String::from).to_vec();
    Options {
        machine: Machine::default(),
        modules,
        mutants,
        seed: 1997,
        only: None,
        ring,
        kind: DomainKind::Paged,
        out: None,
        json: true,
    }
}

fn outcomes(mutants: usize, ring: u8) -> Vec<Outcome> {
    campaign::outcomes(system(), &options(mutants, ring)).unwrap()
}

#[test]
fn broken_drivers_hurt_nobody() {
    let outcomes = outcomes(times(300, 40), 1);
    let bad: Vec<&Outcome> = outcomes.iter().filter(|outcome| !outcome.is_good()).collect();
    assert!(bad.is_empty(), "{bad:#?}");
    // Most kinds of outcome occur, which shows that the drivers were put to work.
    let kinds = ["masked", "page fault", "driver panic", "wrong result", "gate refusal"];
    for outcome in &kinds[..times(5, 3)] {
        assert!(outcomes.iter().any(|other| other.outcome == *outcome), "there is no '{outcome}'");
    }
}

/// Filesystems' drivers, with files that are written and compared, and the host's own tools.
#[test]
#[ignore = "long: `make test-all` runs it"]
fn broken_filesystems_hurt_nobody() {
    let modules = ["fat", "ext"].map(String::from).to_vec();
    let machine = Machine { nic: "none".into(), ..Machine::default() };
    let outcomes = campaign::outcomes(system(), &Options { machine, modules, ..options(80, 1) }).unwrap();
    let bad: Vec<&Outcome> = outcomes.iter().filter(|outcome| !outcome.is_good()).collect();
    assert!(bad.is_empty(), "{bad:#?}");
    for outcome in ["masked", "wrong result", "page fault", "driver panic"] {
        assert!(outcomes.iter().any(|other| other.outcome == outcome), "there is no '{outcome}'");
    }
    // A file that was cut off at the wrong place is damage that the work itself may miss.
    assert!(outcomes.iter().all(|outcome| outcome.module == "fat" || outcome.damage.is_empty()));
}

/// The control group: the same changes in ring 0. The kernel blames the driver for its traps there
/// as well.
#[test]
#[ignore = "long: `make test-all` runs it"]
fn in_ring_0_the_driver_is_blamed() {
    let trusted = outcomes(40, 0);
    assert!(trusted.iter().any(|outcome| outcome.outcome == "page fault" && outcome.is_good()), "{trusted:#?}");
    // There is one page for both rings, so the results of an earlier run in the other ring are
    // kept.
    let directory = tempfile::tempdir().unwrap();
    let options = |ring| Options { ring, out: Some(directory.path().to_path_buf()), ..options(0, ring) };
    let sandboxed: Vec<Outcome> = trusted
        .iter()
        .map(|outcome| Outcome { ring: 1, outcome: "masked".into(), kernel_intact: true, ..outcome.clone() })
        .collect();
    let keep = |outcomes: &[Outcome], options: &Options| {
        let mut results = report::Results::open(options).unwrap();
        outcomes.iter().for_each(|outcome| results.add(outcome).unwrap());
        results.write_page(options).unwrap();
        results.all().len()
    };
    assert_eq!((keep(&sandboxed, &options(1)), keep(&trusted, &options(0))), (40, 80));
    let page = std::fs::read_to_string(directory.path().join("campaign.html")).unwrap();
    for part in [
        "<svg",
        "e1000/1",
        "virtio-scsi/1",
        "e1000/0",
        "virtio-scsi/0",
        KERNEL_DEATH,
        "By kind of change",
        "--seed 1997",
    ] {
        assert!(page.contains(part), "no '{part}'");
    }
}
