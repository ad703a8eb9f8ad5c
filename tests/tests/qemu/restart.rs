//! Drivers that are ended come back, and the layers above them see a pause and no error.

use crate::changed::*;
use crate::network::{echoing, free_port, pattern, read, serving};
use ringfence::machine::Protocol;
use ringfence_tests::{
    Ran, assert_fault, assert_says, bare, boot_badly, boot_well, interface, leave, machine, serves, wait_for_restart,
};
use std::io::Write;
use tempfile::TempDir;

#[test]
fn a_tcp_stream_survives_its_driver() {
    let port = free_port();
    let mut running = serving(&[(Protocol::Tcp, port, 7)]);
    let (mut stream, data) = (echoing(port), pattern(256 << 10));
    for restart in 1..=3 {
        stream.write_all(&data).unwrap();
        running.type_line("kill e1000").unwrap();
        assert_eq!(wait_for_restart(&mut running, "e1000"), restart);
        assert!(read(&mut stream, data.len()) == data, "the echo differs");
    }
    let eth0 = interface(&mut running, "eth0");
    assert_eq!((&eth0.addresses[..], &*eth0.driver), (&["10.0.2.15/24".into()][..], "e1000"));
    leave(running);
}

/// Frames that a driver had delivered are not lost with the driver.
#[test]
fn frames_survive_their_driver() {
    let mut machine = machine(
        "limits transmit-ms 600000; insmod rogue-nic; policy rogue-nic restart; fails tell rogue-nic deliver-last; fails ip",
    );
    machine.contents.autoload = false;
    let text = boot_well(&machine);
    assert!(text.restarts("rogue-nic") > 0, "{text}");
    assert_says(&text, " frames out, 1 in");
}

#[test]
fn a_copy_survives_its_driver() {
    const BYTES: usize = 32 << 20;
    let directory = TempDir::new().unwrap();
    let (first, second) = (directory.path().join("first.img"), directory.path().join("second.img"));
    std::fs::write(&first, pattern(BYTES)).unwrap();
    std::fs::write(&second, vec![0; BYTES]).unwrap();
    let kills = "kill virtio-scsi; sleep 150; ".repeat(4);
    let mut machine =
        machine(&format!("lsblk; blkcopy disk0 0 disk1 0 65536 &; sleep 100; {kills} lsmod; wait; lsblk"));
    machine.disks = vec![first.clone().into(), second.clone().into()];
    let text = boot_well(&machine);
    assert_eq!(text.restarts("virtio-scsi"), 4, "{text}");
    let end = text.find(&format!("{BYTES} bytes")).expect("the copy ends");
    assert!(end > text.find("restarted").unwrap(), "the copy was over before the driver was ended:\n{text}");
    assert!(std::fs::read(&first).unwrap() == std::fs::read(&second).unwrap(), "the copy differs");
    // The disks are the same as before.
    let disks: Vec<_> = text.disks().iter().map(|disk| (disk.name.clone(), disk.place, disk.blocks)).collect();
    let (first, second) = (("disk0".into(), Some((0, 0)), 65536), ("disk1".into(), Some((1, 0)), 65536));
    assert_eq!(disks, [first.clone(), second.clone(), first, second]);
}

/// Each unit of a host with several queues has one of them; the copy reads through one and writes
/// through another, in both rings.
#[test]
fn units_share_the_queues_of_a_host() {
    const BYTES: usize = 8 << 20;
    let directory = TempDir::new().unwrap();
    let (first, second) = (directory.path().join("first.img"), directory.path().join("second.img"));
    std::fs::write(&first, pattern(BYTES)).unwrap();
    std::fs::write(&second, vec![0; BYTES]).unwrap();
    let mut machine = machine(
        "blkcopy disk0 0 disk1 0 16384 &; sleep 50; kill virtio-scsi; wait; ring virtio-scsi 0; blkcopy disk0 0 disk1 0 1024",
    );
    machine.hba = "virtio-scsi-pci,num_queues=3".into();
    machine.disks = vec![first.clone().into(), second.clone().into()];
    let text = boot_well(&machine);
    assert_says(&text, "32 requests at once in 3 queues");
    assert_eq!(text.restarts("virtio-scsi"), 1, "{text}");
    assert!(std::fs::read(&first).unwrap() == std::fs::read(&second).unwrap(), "the copy differs");
}

/// Restarts do not take memory of the kernel's heap either, once the stores of reports and lines
/// are full.
#[test]
fn restarts_leave_nothing_on_the_heap() {
    // A driver's ends within the window are forgotten at its next end after the window.
    let after = "sleep 1100; kill e1000; kill virtio-scsi; sleep 100; mem; ";
    // `turn-ms` is raised so that no driver is throttled: a stalled host may add to a driver's
    // debt. So each driver is back before the next command.
    let round = format!("repeat 100 kill e1000, kill virtio-scsi; {after}");
    let text = boot_well(&machine(&format!(
        "limits restarts 1000; limits restart-wait-ms 0; limits restart-window-s 1; limits turn-ms 1000; ip; lsblk; {round}{round}"
    )));
    let heap = |line: &str| line.strip_prefix("heap ")?.split_whitespace().next()?.parse::<u64>().ok();
    let heap: Vec<u64> = text.lines().filter_map(heap).collect();
    // This is less than six bytes for each of 200 restarts.
    assert!(heap.len() == 2 && heap[0].abs_diff(heap[1]) < 1024, "{heap:?}");
}

#[test]
fn restarts_lose_no_memory_and_have_an_end() {
    let run = boot_badly(
        &machine(
            "limits restart-wait-ms 0; kill e1000; sleep 100; mem; kill e1000; sleep 100; mem; \
             repeat 10 kill e1000, sleep 100; lsmod; faults; faults 2; faults 99",
        ),
        2,
    );
    let free = run.free_frames();
    assert_eq!(free[0], free[1], "frames were lost");
    assert_says(&run.to_string(), "e1000: given up after 8 restarts in 60 s");
    assert_says(&run.to_string(), "error: e1000 was ended already");
    // The reports are kept although the instances are gone.
    for number in 1..=9 {
        assert!(
            run.console()
                .iter()
                .any(|line| line.starts_with(&format!("{number:>4}  ")) && line.contains("  e1000: killed, after "))
        );
    }
    assert_says(&run.to_string(), "error: fault 99 is not kept");
}

/// Asserts that the driver called `name` runs in `slot` and was entered `upcalls` times.
#[track_caller]
fn assert_runs(text: &Ran, name: &str, slot: u64, upcalls: u64) {
    let listed = &text.drivers(name)[0];
    assert_eq!((listed.slot, listed.upcalls, serves(listed)), (slot, upcalls, true));
}

/// A driver comes back in its slot, which works even if all other slots are taken. It keeps its
/// pages.
#[test]
fn a_driver_comes_back_where_it_was() {
    let text = boot_well(&bare(
        "insmod template; repeat 63 insmod null; policy template restart; tell template x; mem; kill template; sleep 100; \
         tell template xx; mem; lsmod",
    ));
    assert!(text.restarts("template") > 0, "{text}");
    assert_eq!(text.answers("template"), [1, 2]);
    assert_runs(&text, "template", 0, 2);
    let free = text.free_frames();
    assert_eq!(free[0], free[1], "frames were lost");
}

/// Ping does not resend its requests. A frame that the ended driver had not sent is sent by its
/// successor.
#[test]
fn frames_that_were_not_sent_are_sent_by_the_next_driver() {
    let (_, entry) = crate::modules::entry_of("e1000");
    let text =
        boot_well(&machine(&format!("ip; ping 10.0.2.2 -c 1; poke e1000 {entry:x}:ebfe; ping 10.0.2.2 -c 1 -W 10000")));
    assert_fault(&text, "e1000", "took longer than 200 ms, in poll");
    assert_eq!(text.matches("1 sent, 1 answered").count(), 2, "{text}");
}

/// A driver gets its own device back, even if another device that it could drive is free.
#[test]
fn a_driver_comes_back_with_its_device() {
    let mut machine = machine("policy e1000 stop; kill e1000; kill e1000.2; sleep 100; lsmod");
    machine.extra = ["-netdev", "user,id=net1", "-device", "e1000,netdev=net1"].map(Into::into).to_vec();
    let text = boot_well(&machine);
    assert!(text.restarts("e1000.2") > 0, "{text}");
    let row = text.lines().rfind(|line| line.starts_with("e1000.2 ")).expect("lsmod lists it");
    let loaded = text.lines().find(|line| line.contains(" e1000.2: loaded into ring 1 for ")).expect("it is loaded");
    assert!(row.contains(loaded.split_whitespace().last().unwrap()), "{text}");
}

/// The next command finds the driver restarted.
#[test]
fn a_driver_is_back_before_the_next_command() {
    let text = boot_well(&bare("insmod template; policy template restart; help; kill template; tell template x"));
    assert_says(&text, "template: 1 (0x1)");
}

/// A successor takes over only pages that are equal to the module's file.
#[test]
fn what_is_wrong_with_a_driver_s_code_is_not_inherited() {
    let (_, entry) = crate::modules::entry_of("template");
    let text = boot_badly(
        &bare(&format!(
            "insmod template; policy template restart; poke template {entry:x}:0f0b; tell template x; sleep 100; \
         tell template xx"
        )),
        1,
    );
    assert_fault(&text, "template", "#UD invalid opcode, in command");
    let restarted = text.lines().find(|line| line.contains("template: restarted")).expect("it is restarted");
    assert!(restarted.ends_with("#1"), "not at once: {restarted}");
    assert_says(&text, "template: 2 (0x2)");
}

/// A driver whose restart failed still has its slot and its memory, and touches no memory of other
/// drivers.
#[test]
fn a_restart_that_fails_leaves_all_as_it_was() {
    let (machine, _directory, _) = with_late(
        "limits restarts 1; insmod late; insmod template; policy late restart; sleep 1200; kill late; sleep 100; \
         insmod null; policy late ring0-never; ring template 0; tell template x; ring null 0; tell null calls 1; rmmod late; \
         tell template xx; tell null calls 1; lsmod",
    );
    let text = boot_well(&machine);
    assert_says(&text, "error: late: restart 1: init: refused: busy");
    assert_says(&text, "error: late: given up after 1 restarts in 60 s");
    assert!(!text.loaded("null").is_empty(), "{text}");
    assert_says(&text, "template: 1 (0x1)");
    assert_says(&text, "template: 2 (0x2)");
    assert_runs(&text, "null", 2, 3);
}
