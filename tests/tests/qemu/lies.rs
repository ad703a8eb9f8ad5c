//! Drivers that lie about their queues or ask for memory and registers of others. They are refused
//! or ended, with the exact reason.

use ringfence_tests::attacks::{assert_all, lies};
use ringfence_tests::{
    HEALTH, assert_fault, assert_intact, assert_says, assert_unharmed, bare, boot_badly, boot_well, machine, unfenced,
    usual_kind,
};

#[test]
fn what_is_not_its_own_is_refused() {
    assert_all(&lies::refused());
}

#[test]
fn nothing_but_what_it_was_given() {
    assert_all(&[lies::reaches(usual_kind()), lies::ports(), lies::watched()].concat());
}

#[test]
fn each_lie_about_frames_ends_its_driver() {
    assert_all(&lies::nic_faults());
}

#[test]
fn a_sleep_has_an_end() {
    assert_all(&lies::sleeps());
}

#[test]
fn each_lie_about_commands_is_an_error_or_a_fault() {
    assert_all(&lies::scsi_answers());
    assert_all(&lies::scsi_faults());
}

#[test]
fn a_device_at_fixed_ports_has_those_and_nothing_else() {
    assert_all(&lies::block());
}

/// Well-formed frames with bad intent: more of a TCP stream than the kernel's window allows, sent
/// before the kernel can answer; and a new question for each answer, for ever.
#[test]
fn a_hostile_host_at_the_other_end_hurts_nobody() {
    for (verb, frames) in [("burst", 60), ("ask-for-ever", 100)] {
        let attack = format!(
            "insmod rogue-peer; ip; tell rogue-peer {verb}; ping 10.9.9.1 -c 1 -W 300; \
             tell rogue-peer quiet; sleep 10; ip; rmmod rogue-peer"
        );
        let script = format!("insmod template; tell template x; {attack}; {HEALTH}; {attack}; {HEALTH}");
        let text = boot_badly(&bare(&script), 2);
        assert_unharmed(&text, 2);
        let received = |line: &str| line.split_once(" frames out, ")?.1.strip_suffix(" in")?.parse::<u64>().ok();
        let received: Vec<u64> = text.lines().filter_map(received).collect();
        assert!(received.len() == 4 && received[1] >= frames && received[3] >= frames, "{received:?}:\n{text}");
    }
}

/// A network driver that sends nothing is ended because a frame waits too long.
#[test]
fn a_frame_that_is_not_sent_ends_its_driver() {
    let mut machine = machine(
        "integrity; limits transmit-ms 100; insmod rogue-nic; sleep 300; tell rogue-nic nothing; faults; integrity",
    );
    machine.contents.autoload = false;
    let text = boot_badly(&machine, 1);
    assert_intact(&text);
    assert_fault(&text, "rogue-nic", "left a frame undone for 100 ms, after poll");
    assert_says(&text, "error: rogue-nic was ended before; 'faults' says why");
}

/// Without a fence, the kernel detects a device's writes to free memory.
#[test]
fn what_a_device_writes_to_free_memory_is_counted() {
    // 40 MiB is in the middle of free memory.
    let mut machine = unfenced(machine(
        "integrity; insmod rogue-nic; integrity; tell rogue-nic device-writes 0x2800000; integrity; integrity",
    ));
    machine.contents.autoload = false;
    let text = boot_well(&machine);
    let counts: Vec<&str> =
        text.lines().filter_map(|line| line.split_once("  frames written to")).map(|(n, _)| n).collect();
    assert_intact(&text);
    assert_eq!(counts.iter().map(|count| count.trim()).collect::<Vec<_>>(), ["0", "0", "1", "0"], "{text}");
}
