//! Who gets the CPU when a driver wants all of it.

use ringfence_tests::{assert_says, boot_well, listed, machine};

/// Its device interrupts for ever, and it takes long each time. Instructions are the clock.
#[test]
fn a_driver_that_takes_long_has_half_of_the_cpu() {
    for poll_ms in [20, 200] {
        let mut machine = machine(&format!("insmod rogue-nic; tell rogue-nic hog {poll_ms}; lsmod; sleep 2000; lsmod"));
        machine.contents.autoload = false;
        machine.icount = true;
        let text = boot_well(&machine);
        let [before, after] = &listed(&text, "rogue-nic")[..] else { panic!("{text}") };
        let had_ms = after.cpu_ms - before.cpu_ms;
        assert!((800..=1200).contains(&had_ms), "{had_ms} of 2000 ms with polls of {poll_ms} ms:\n{text}");
    }
}

/// With a limit of 0 every poll is long: what happens in a rest has to wait, interrupts among it. Half of the time somebody
/// else's poll makes it one.
#[test]
fn a_driver_that_rests_is_served_afterwards() {
    let directory = tempfile::tempdir().unwrap();
    let disk = directory.path().join("disk.img");
    std::fs::File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    let commands = "blkwrite disk0 0 2048 7; blkcheck disk0 0 2048 7; trace virtio-scsi blkread disk0 0 2048";
    for more in ["ip; ping 10.0.2.2 -c 20", "rmmod e1000; insmod rogue-nic; tell rogue-nic hog 20"] {
        let mut machine = machine(&format!("limits turn-ms 0; {more}; {commands}"));
        machine.disks = vec![disk.clone()];
        let text = boot_well(&machine);
        match more.contains("ping") {
            true => assert_says(&text, "20 sent, 20 answered"),
            false => assert_says(&text, "rests, as its last poll was long; waits for poll(0x"),
        }
    }
}
