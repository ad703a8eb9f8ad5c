//! The shares of the CPU when a driver wants all of it.

use ringfence_tests::{assert_fault, assert_intact, assert_says, bare, boot_badly, boot_well, machine, times};

/// Devices interrupt for ever, and each poll takes a given time: less or more than a driver may
/// have at once. Time counts instructions.
#[test]
fn a_driver_that_wants_all_of_the_cpu_has_half() {
    for (poll_ms, drivers) in &[(200, 1), (9, 2), (2, 1), (9, 1), (20, 1), (30, 2)][..times(6, 2)] {
        let names = &["rogue-nic", "rogue-nic.2"][..*drivers];
        let start: String = names.iter().map(|name| format!("insmod rogue-nic; tell {name} hog {poll_ms}; ")).collect();
        let mut machine = machine(&format!("integrity; {start}lsmod; sleep 2000; lsmod; integrity"));
        machine.contents.autoload = false;
        machine.icount = true;
        machine.extra.extend(["-device", "e1000"].map(Into::into));
        let text = boot_well(&machine);
        assert_intact(&text);
        let had_ms = |name: &&str| {
            let [before, after] = &text.drivers(name)[..] else { panic!("{text}") };
            after.cpu_ms - before.cpu_ms
        };
        let had_ms: Vec<u64> = names.iter().map(had_ms).collect();
        let all_ms: u64 = had_ms.iter().sum();
        assert!((800..=1200).contains(&all_ms), "{had_ms:?} of 2000 ms with polls of {poll_ms} ms:\n{text}");
    }
}

/// With a limit of 0, every poll leads to a pause, in which interrupts and other work for the
/// driver must wait. In half of the cases another driver's poll causes the pause.
#[test]
fn a_driver_that_rests_is_served_afterwards() {
    let directory = tempfile::tempdir().unwrap();
    let disk = directory.path().join("disk.img");
    std::fs::File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    let commands = "blkwrite disk0 0 2048 7; blkcheck disk0 0 2048 7; trace virtio-scsi blkread disk0 0 2048";
    for more in ["ip; ping 10.0.2.2 -c 20", "rmmod e1000; insmod rogue-nic; tell rogue-nic hog 20"] {
        let mut machine = machine(&format!("limits turn-ms 0; {more}; {commands}"));
        machine.disks = vec![disk.clone().into()];
        let text = boot_well(&machine);
        match more.contains("ping") {
            true => assert_says(&text, "20 sent, 20 answered"),
            false => assert_says(&text, "rests, as it has had too much of the CPU; waits for poll("),
        }
    }
}

/// A fault does not cancel a driver's debt, unless it is the first fault in a while. The driver is
/// restarted when the debt is paid.
#[test]
fn a_driver_that_faulted_pays_first() {
    let mut machine = machine(
        "insmod rogue-nic; policy rogue-nic restart; limits restart-wait-ms 0; kill rogue-nic; sleep 20; tell rogue-nic hog 100; sleep 1; kill rogue-nic; \
         lsmod; sleep 200; lsmod",
    );
    machine.contents.autoload = false;
    machine.icount = true;
    let text = boot_well(&machine);
    let states: Vec<String> = text.drivers("rogue-nic").into_iter().map(|driver| driver.state.to_string()).collect();
    let back_in = states[0].strip_prefix("back in ").and_then(|state| state.strip_suffix(" ms"));
    assert!(back_in.is_some_and(|ms| (80..=101).contains(&ms.parse::<u32>().unwrap_or(0))), "{states:?}");
    assert_eq!(states[1], "running");
}

/// A driver is not to blame for work that it could not do because it was throttled on behalf of
/// others.
#[test]
fn a_driver_that_rests_is_not_stuck() {
    let mut machine = machine(
        "limits transmit-ms 600000; insmod rogue-nic; insmod virtio-scsi; lsblk; limits turn-ms 0; limits command-ms 300; tell rogue-nic hog 500; \
         repeat 3 blkread disk0 0 8; faults",
    );
    machine.contents.autoload = false;
    let disk = ringfence::machine::empty_disk().unwrap();
    machine.disks = vec![disk.path().to_path_buf().into()];
    let text = boot_well(&machine);
    assert_eq!(text.data().len(), 3, "{text}");
    assert!(text.contains("\nnone\n"), "{text}");
}

/// A driver that had its turn, and still left the command undone, is stuck.
#[test]
fn a_driver_that_rests_and_does_nothing_is_stuck() {
    let mut machine = machine(
        "limits transmit-ms 600000; insmod rogue-nic; insmod rogue-scsi; lsblk; limits turn-ms 0; limits command-ms 300; \
         tell rogue-nic hog 500; tell rogue-scsi lose; blkread disk0 0 8",
    );
    machine.contents.autoload = false;
    let text = boot_badly(&machine, 1);
    assert_fault(&text, "rogue-scsi", "left a SCSI command undone for 300 ms");
    assert_eq!(text.errors()[0].1, "the driver is gone");
}

/// A driver delivers as many frames as it can in each poll, and the network stack answers them.
/// That work is charged to the driver, so the work of others takes about three times as long
/// (24 times without the charge). Time counts instructions.
#[test]
fn what_is_done_for_a_driver_counts_as_its_own() {
    let work = "repeat 1 mute repeat 3000 tell template x";
    let mut machine = bare(&format!(
        "insmod template; insmod rogue-peer; ip; {work}; {work}; tell rogue-peer flood; \
         ping 10.9.9.1 -c 1 -W 60000 &; sleep 20; lsmod; {work}; lsmod; kill %1; shutdown"
    ));
    machine.icount = true;
    let text = boot_well(&machine);
    let took = |line: &str| line.strip_prefix("1 times in ")?.strip_suffix(" ms")?.parse::<u64>().ok();
    let took: Vec<u64> = text.lines().filter_map(took).collect();
    let [_, alone, beside] = took[..] else { panic!("{text}") };
    assert!(beside <= alone * 4, "{beside} ms in place of {alone} ms:\n{text}");
    // The driver was active all the time.
    let upcalls: Vec<u64> = text.drivers("rogue-peer").iter().map(|row| row.upcalls).collect();
    assert!(upcalls.len() == 2 && upcalls[1] - upcalls[0] > 100, "{upcalls:?}:\n{text}");
}
