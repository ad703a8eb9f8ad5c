//! SCSI commands that are under way when their driver is ended.

use ringfence_link::event::Event;
use ringfence_tests::{bare, boot_badly, boot_well, machine};

/// A command waits for a driver that will be restarted, but not for ever.
#[test]
fn a_command_waits_for_its_driver_so_long() {
    let script = "blkread disk0 0 1; limits restart-wait-ms 1000; kill virtio-scsi; blkread disk0 0 1; \
                  limits pause-ms 50; kill virtio-scsi; blkread disk0 0 1; limits pause-ms 10000; blkread disk0 0 1";
    let disk = ringfence::machine::empty_disk().unwrap();
    let mut machine = machine(script);
    machine.disks = vec![disk.path().to_path_buf().into()];
    let text = boot_badly(&machine, 1);
    let outcome = |event: &Event| match event {
        Event::Data { bytes: 512, .. } => Some("read".to_string()),
        Event::Command { error: Some(error), .. } => Some(error.to_string()),
        _ => None,
    };
    let outcomes: Vec<String> = text.events().iter().filter_map(outcome).collect();
    assert_eq!(outcomes, ["read", "read", "the driver is gone", "read"], "{text}");
}

/// Returns the first blocks of the commands with which `rogue-scsi` read.
fn blocks_read(text: &str) -> Vec<&str> {
    text.lines().filter_map(|line| line.split_once("rogue-scsi| reads block ")).map(|(_, block)| block).collect()
}

#[test]
fn commands_are_sent_again_in_order() {
    let text = boot_well(&bare(
        "insmod rogue-scsi; policy rogue-scsi restart; tell rogue-scsi lose-all; blkread disk0 0 512 &; sleep 50; \
         kill rogue-scsi; wait; lsmod",
    ));
    // Four commands of 64 KiB at once; the first driver answers none of them, the second one all.
    assert_eq!(blocks_read(&text), ["0", "128", "256", "384", "0", "128", "256", "384"], "{text}");
    assert_eq!(text.data()[0].0, 262144, "{text}");
}

/// The order holds across jobs: the first job's command is sent second.
#[test]
fn commands_of_several_jobs_are_sent_again_in_order() {
    let text = boot_well(&bare(
        "insmod rogue-scsi; policy rogue-scsi restart; tell rogue-scsi lose-all; repeat 1 sleep 30, blkread disk0 512 8 &; \
         blkread disk0 0 8 &; sleep 80; kill rogue-scsi; wait",
    ));
    assert_eq!(blocks_read(&text), ["0", "512", "0", "512"], "{text}");
}

/// If a driver answers and ends in the same upcall, its answers cannot be trusted.
#[test]
fn what_a_driver_says_as_it_ends_is_not_believed() {
    let text = boot_well(&bare(
        "insmod rogue-scsi; policy rogue-scsi restart; tell rogue-scsi die; blkread disk0 0 8; tell rogue-scsi die; \
         blkwrite disk0 8 1 7",
    ));
    // The kernel reads the block, finds that the write was not done, and repeats it.
    assert_eq!(blocks_read(&text), ["0", "0", "8"], "{text}");
    assert_eq!(text.matches("rogue-scsi| writes block 8").count(), 2, "{text}");
}

/// A write whose driver is ended may be on the disk or not. The kernel reads the blocks back, and
/// writes only the blocks that were not written.
#[test]
fn a_write_that_may_be_done_is_looked_up() {
    // The disk of `rogue-scsi` always has zeros, even after a write.
    let text = boot_well(&bare(
        "limits command-ms 300; insmod rogue-scsi; policy rogue-scsi restart; \
         tell rogue-scsi lose-write; blkwrite disk0 8 1 7; tell rogue-scsi lose-write; blkcopy disk0 100 disk0 200 1",
    ));
    // The lines of the driver itself, and of the kernel about the driver.
    let said =
        |line| ["] rogue-scsi| ", "] rogue-scsi: "].iter().find_map(|whose| Some(str::split_once(line, whose)?.1));
    let said: Vec<&str> = text.lines().filter_map(said).collect();
    let blocks = |said: &&&str| said.ends_with(" block 8") || said.ends_with("was ended") || said.ends_with("00");
    let order = [
        "writes block 8",
        "reads block 8",
        "writes block 8",
        "reads block 100",
        "writes block 200",
        "reads block 200",
        "a WRITE(10) was done before its driver was ended",
    ];
    assert_eq!(said.iter().filter(blocks).copied().collect::<Vec<_>>(), order, "{text}");
}
