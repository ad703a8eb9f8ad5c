//! The restart of a driver that faulted, by its policy and by the limits; and the loss of ring 0.

use crate::changed::*;
use crate::network::pattern;
use ringfence_abi::manifest::RING1_ONLY;
use ringfence_tests::{assert_says, bare, boot_badly, boot_well, machine};
use tempfile::TempDir;

/// Faults count only within the window.
#[test]
fn faults_of_long_ago_are_forgotten() {
    let mut machine = bare(
        "insmod template; policy template restart; limits restart-wait-ms 0; limits restarts 2; limits restart-window-s 1; \
         kill template; tell template x; kill template; tell template x; sleep 1500; \
         kill template; tell template x; kill template; tell template x; lsmod; kill template; sleep 10; lsmod",
    );
    machine.icount = true;
    let text = boot_well(&machine);
    let states: Vec<String> = text.drivers("template").into_iter().map(|driver| driver.state.to_string()).collect();
    assert_eq!(states, ["running", "given up"], "{text}");
}

#[test]
fn a_policy_of_stop_leaves_it_ended_and_restart_brings_it_back() {
    let directory = TempDir::new().unwrap();
    let disk = directory.path().join("disk.img");
    std::fs::write(&disk, pattern(1 << 20)).unwrap();
    let mut machine = machine(
        "blkread disk0 0 1; policy virtio-scsi stop; kill virtio-scsi; blkread disk0 0 1; lsmod; \
         policy virtio-scsi restart; sleep 200; blkread disk0 0 1; policy virtio-scsi sometimes",
    );
    machine.disks = vec![disk.into()];
    let run = boot_badly(&machine, 2);
    assert!(run.errors().contains(&("blkread disk0 0 1", "the driver is gone")), "{run}");
    assert_eq!(run.drivers("virtio-scsi")[0].state, "ended");
    assert_eq!(run.restarts("virtio-scsi"), 1);
    assert_eq!(run.data().len(), 2, "{run}");
    assert_says(&run, "error: 'sometimes' is no policy; usage: policy [NAME [restart|stop|ring0-never]]");
}

#[test]
fn a_module_that_faulted_in_ring_1_is_not_trusted() {
    let script = "insmod rogue; tell rogue read 0; rmmod rogue; insmod rogue --ring 0; lsmod; ring rogue 0; \
                  policy rogue stop; ring rogue 0; policy rogue ring0-never; ring rogue 0; lsmod; rmmod rogue; \
                  insmod rogue --ring 0; lsmod";
    let run = boot_badly(&bare(script), 3);
    let text = run.to_string();
    assert_says(
        &text,
        "rogue: loaded into ring 1: it faulted once, in ring 1; 'policy rogue restart' or 'stop' forgives that",
    );
    assert_says(
        &text,
        "error: rogue stays in ring 1: it faulted once, in ring 1; 'policy rogue restart' or 'stop' forgives that",
    );
    assert_says(&text, "rogue: now in ring 0");
    assert_says(&text, "error: rogue stays in ring 1: it is for ring 1 only");
    // Another instance is in ring 1 as well.
    assert_says(&text, "rogue: loaded into ring 1: it is for ring 1 only");
    assert_eq!(text.matches("\nrogue            1").count(), 3, "{text}");
}

#[test]
fn other_instances_lose_ring_0_as_well() {
    let text = boot_badly(&bare("insmod rogue --ring 0; insmod rogue; tell rogue.2 read 0; lsmod"), 1);
    assert_says(
        &text,
        "rogue: moved to ring 1: it faulted once, in ring 1; 'policy rogue restart' or 'stop' forgives that",
    );
    assert_eq!(text.drivers("rogue")[0].ring, 1, "{text}");
}

#[test]
fn a_module_can_be_for_ring_1_only() {
    let (machine, _directory) = with_other_manifest(
        "template",
        "modest",
        &[(FLAGS, RING1_ONLY)],
        "insmod modest --ring 0; ring modest 0; policy modest stop; ring modest 0; tell modest x",
    );
    let text = boot_badly(&machine, 2);
    assert_says(&text, "modest: loaded into ring 1: it is for ring 1 only");
    assert_eq!(text.matches("error: modest stays in ring 1: it is for ring 1 only").count(), 2, "{text}");
    assert_says(&text, "modest: 1 (0x1)");
}

/// A measurement moves a driver between the rings, and is no way into ring 0.
#[test]
fn a_module_for_ring_1_only_is_not_measured_in_ring_0() {
    let script = "insmod modest; fails bench icmp/rtt; fails bench nic/rtt; lsmod";
    let (machine, _directory) = with_other_manifest("e1000", "modest", &[(FLAGS, RING1_ONLY)], script);
    let text = boot_well(&machine);
    let refused = "as expected: the driver cannot be measured in ring 0: it is for ring 1 only";
    assert_eq!(text.matches(refused).count(), 2, "{text}");
    assert_eq!(text.drivers("modest")[0].ring, 1, "{text}");
}

/// The first restart comes at once; each further one waits twice as long. Time counts instructions.
#[test]
fn each_restart_waits_twice_as_long() {
    let mut machine = bare(
        "insmod template; policy template restart; limits restart-wait-ms 100; kill template; tell template x; \
         kill template; lsmod; sleep 150; kill template; lsmod; sleep 250; kill template; lsmod",
    );
    machine.icount = true;
    let text = boot_well(&machine);
    let waits = text.drivers("template").into_iter().map(|driver| driver.state.to_string());
    let waits: Vec<String> = waits.collect();
    assert_eq!(waits, ["back in 100 ms", "back in 200 ms", "back in 400 ms"], "{text}");
}

#[test]
fn limits_are_changed_and_bad_values_refused() {
    let run = boot_badly(&bare("limits restarts 1; limits; limits restarts 0; limits nonsense 1"), 2);
    assert_says(&run.to_string(), "restarts                  1  restarts before a driver is given up");
    assert_says(&run.to_string(), "error: restarts must be 1 to 1000, not 0");
    assert_says(&run.to_string(), "error: there is no limit 'nonsense'; 'limits' lists them");
}
