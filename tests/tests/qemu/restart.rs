//! Drivers that are ended come back, and what is above them sees a pause and no error.

use crate::network::{echo, free_port, pattern, serving};
use ringfence::machine::{End, Protocol};
use ringfence_tests::{assert_says, boot, boot_well, machine};
use tempfile::TempDir;

#[test]
fn a_tcp_stream_survives_its_driver() {
    let port = free_port();
    let mut running = serving(&[(Protocol::Tcp, port, 7)]);
    let data = pattern(1 << 20);
    let expected = data.clone();
    let stream = std::thread::spawn(move || echo(port, &data));
    for restart in 1..=3 {
        running.type_line("kill e1000").unwrap();
        let said = running.wait_for("e1000: restarted in ring 1").unwrap();
        assert!(said.ends_with(&format!("(restart {restart})")), "{said}");
    }
    assert!(stream.join().unwrap() == expected, "the echo differs");
    running.type_line("ip").unwrap();
    running.wait_for("eth0: 10.0.2.15/24 via e1000").unwrap();
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
    machine.disks = vec![first.clone(), second.clone()];
    let text = boot_well(&machine);
    assert_eq!(text.matches("virtio-scsi: restarted in ring 1").count(), 4, "{text}");
    let end = text.find(&format!("{BYTES} bytes")).expect("the copy ends");
    assert!(end > text.find("restarted").unwrap(), "the copy was over before the driver was ended:\n{text}");
    assert!(std::fs::read(&first).unwrap() == std::fs::read(&second).unwrap(), "the copy differs");
    // The disks are the ones that were there before.
    assert_says(&text, "disk1    virtio-scsi           1    0      65536    512  QEMU QEMU HARDDISK");
}

#[test]
fn restarts_lose_no_memory_and_have_an_end() {
    let run = boot(&machine(
        "kill e1000; sleep 100; mem; kill e1000; sleep 200; mem; repeat 10 kill e1000, sleep 3000; lsmod; faults; faults 2; faults 99",
    ));
    assert_eq!(run.end, End::CommandFailed, "{}", run.text());
    let free: Vec<&String> = run.lines.iter().filter(|line| line.starts_with("frames ")).collect();
    assert_eq!(free[0], free[1], "frames were lost");
    assert_says(&run.text(), "e1000: given up after 8 restarts in 60 s");
    assert_says(&run.text(), "error: e1000 was ended already");
    // Kept, though the instances are gone.
    for number in 1..=9 {
        assert!(
            run.lines
                .iter()
                .any(|line| line.starts_with(&format!("{number:>4}  ")) && line.contains("  e1000: killed, in "))
        );
    }
    assert_says(&run.text(), "error: fault 99 is not kept");
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
    machine.disks = vec![disk];
    let run = boot(&machine);
    let text = run.text();
    assert_says(&text, "error: the driver is gone");
    assert_says(&text, "ended by a fault");
    assert_says(&text, "virtio-scsi: restarted in ring 1");
    assert_eq!(text.lines().filter(|line| line.ends_with("  512 bytes")).count(), 2, "{text}");
    assert_says(&text, "error: 'sometimes' is no policy; usage: policy NAME restart|stop");
    assert!(run.lines.last().unwrap().ends_with("2 commands failed"));
}
