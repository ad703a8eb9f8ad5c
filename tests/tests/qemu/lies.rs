//! Drivers that lie about their queues or ask for what is not their own: they are refused or ended, with the exact reason.

use ringfence_tests::attacks::{in_one_boot, lies};
use ringfence_tests::{assert_says, boot_badly, boot_well, machine};

#[test]
fn what_is_not_its_own_is_refused() {
    in_one_boot().assert(&lies::refused());
}

#[test]
fn each_lie_about_frames_ends_its_driver() {
    in_one_boot().assert(&lies::nic_faults());
}

#[test]
fn each_lie_about_commands_is_an_error_or_a_fault() {
    in_one_boot().assert(&lies::scsi_answers());
    in_one_boot().assert(&lies::scsi_faults());
}

/// A network driver that sends nothing is ended for what waits.
#[test]
fn a_frame_that_is_not_sent_ends_its_driver() {
    let mut machine = machine("limits transmit-ms 100; insmod rogue-nic; sleep 300; tell rogue-nic nothing; faults");
    machine.contents.autoload = false;
    let text = boot_badly(&machine, 1).text();
    assert_says(&text, "fault: rogue-nic: left a frame undone for 100 ms, after poll");
    assert_says(&text, "error: rogue-nic was ended before; 'faults' says why");
}

/// Nothing fences a device yet, but what it writes to memory that nobody has is seen.
#[test]
fn what_a_device_writes_to_free_memory_is_counted() {
    // 40 MiB is in the middle of free memory.
    let mut machine =
        machine("integrity; insmod rogue-nic; integrity; tell rogue-nic device-writes 0x2800000; integrity; integrity");
    machine.contents.autoload = false;
    let text = boot_well(&machine);
    let counts: Vec<&str> =
        text.lines().filter_map(|line| line.split_once("  frames written to")).map(|(n, _)| n).collect();
    assert_eq!(counts.iter().map(|count| count.trim()).collect::<Vec<_>>(), ["0", "0", "1", "0"], "{text}");
}
