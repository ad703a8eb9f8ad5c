//! Drivers that are ended come back, and what is above them sees a pause and no error.

use crate::network::{connect, free_port, pattern, read, serving};
use ringfence::machine::{Machine, Protocol};
use ringfence_abi::manifest::{Manifest, RING1_ONLY};
use ringfence_tests::{
    assert_intact, assert_says, at_prompt, bare, boot_badly, boot_well, leave, listed, machine, system,
};
use std::io::Write;
use std::mem::offset_of;
use tempfile::TempDir;

#[test]
fn a_tcp_stream_survives_its_driver() {
    let port = free_port();
    let mut running = serving(&[(Protocol::Tcp, port, 7)]);
    let (mut stream, data) = (connect(port), pattern(256 << 10));
    // First a byte there and back. libslirp 4.7 forgets what it has read from the host when a SYN-ACK comes twice (`sbreserve`
    // empties its buffer), as one does if the driver is ended before the guest has what answers it.
    stream.write_all(b"x").unwrap();
    assert_eq!(read(&mut stream, 1), b"x");
    for restart in 1..=3 {
        stream.write_all(&data).unwrap();
        running.type_line("kill e1000").unwrap();
        let said = running.wait_for("e1000: restarted in ring 1").unwrap();
        assert!(said.ends_with(&format!(", #{restart}")), "{said}");
        assert!(read(&mut stream, data.len()) == data, "the echo differs");
    }
    running.type_line("ip").unwrap();
    running.wait_for("eth0: 10.0.2.15/24 via e1000").unwrap();
    leave(running);
}

/// What a driver had delivered is not lost with it.
#[test]
fn frames_survive_their_driver() {
    let mut machine = machine(
        "limits transmit-ms 600000; insmod rogue-nic; policy rogue-nic restart; fails tell rogue-nic deliver-last; fails ip",
    );
    machine.contents.autoload = false;
    let text = boot_well(&machine);
    assert_says(&text, "rogue-nic: restarted in ring 1");
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
    machine.disks = vec![first.clone(), second.clone()];
    let text = boot_well(&machine);
    assert_eq!(text.matches("virtio-scsi: restarted in ring 1").count(), 4, "{text}");
    let end = text.find(&format!("{BYTES} bytes")).expect("the copy ends");
    assert!(end > text.find("restarted").unwrap(), "the copy was over before the driver was ended:\n{text}");
    assert!(std::fs::read(&first).unwrap() == std::fs::read(&second).unwrap(), "the copy differs");
    // The disks are the ones that were there before.
    assert_says(&text, "disk1    virtio-scsi           1    0      65536    512  QEMU QEMU HARDDISK");
}

/// Nor of the kernel's own memory: once the reports and the lines that are kept are as many as ever.
#[test]
fn restarts_leave_nothing_on_the_heap() {
    let round = "repeat 100 kill e1000, sleep 5, kill virtio-scsi, sleep 5; sleep 1100; mem; ";
    let text = boot_well(&machine(&format!(
        "limits restarts 1000; limits restart-wait-ms 0; limits restart-window-s 1; ip; lsblk; {round}{round}"
    )));
    let heap = |line: &str| line.strip_prefix("heap ")?.split_whitespace().next()?.parse::<u64>().ok();
    let heap: Vec<u64> = text.lines().filter_map(heap).collect();
    // Less than six bytes for each of 200.
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
    let free: Vec<&String> = run.lines.iter().filter(|line| line.starts_with("frames ")).collect();
    assert_eq!(free[0], free[1], "frames were lost");
    assert_says(&run.text(), "e1000: given up after 8 restarts in 60 s");
    assert_says(&run.text(), "error: e1000 was ended already");
    // Kept, though the instances are gone.
    for number in 1..=9 {
        assert!(
            run.lines
                .iter()
                .any(|line| line.starts_with(&format!("{number:>4}  ")) && line.contains("  e1000: killed, after "))
        );
    }
    assert_says(&run.text(), "error: fault 99 is not kept");
}

/// Asserts that the driver called `name` runs in `slot` and was entered so often.
#[track_caller]
fn assert_runs(text: &str, name: &str, slot: u64, upcalls: u64) {
    let listed = &listed(text, name)[0];
    assert_eq!((listed.slot, listed.upcalls, listed.state.as_str()), (slot, upcalls, "running"));
}

/// It comes back in its slot, so that one is there even when all others are taken, and its pages go with it.
#[test]
fn a_driver_comes_back_where_it_was() {
    let text = boot_well(&bare(
        "insmod template; repeat 63 insmod null; policy template restart; tell template x; mem; kill template; sleep 100; \
         tell template xx; mem; lsmod",
    ));
    assert_says(&text, "template: restarted in ring 1");
    assert_says(&text, "template: 2 (0x2)");
    assert_runs(&text, "template", 0, 2);
    let free: Vec<&str> = text.lines().filter(|line| line.starts_with("frames ")).collect();
    assert_eq!(free[0], free[1], "frames were lost");
}

/// A ping is not sent again by who sent it: the frame that the driver had, and did not send, is sent by the one after it.
#[test]
fn frames_that_were_not_sent_are_sent_by_the_next_driver() {
    let (_, entry) = crate::modules::entry_of("e1000");
    let text =
        boot_well(&machine(&format!("ip; ping 10.0.2.2 -c 1; poke e1000 {entry:x}:ebfe; ping 10.0.2.2 -c 1 -W 10000")));
    assert_says(&text, "fault: e1000: took longer than 200 ms, in poll");
    assert_eq!(text.matches("1 sent, 1 answered").count(), 2, "{text}");
}

/// Faults count for as long as the window is.
#[test]
fn faults_of_long_ago_are_forgotten() {
    let mut machine = bare(
        "insmod template; policy template restart; limits restart-wait-ms 0; limits restarts 2; limits restart-window-s 1; \
         kill template; tell template x; kill template; tell template x; sleep 1500; \
         kill template; tell template x; kill template; tell template x; lsmod; kill template; sleep 10; lsmod",
    );
    machine.icount = true;
    let text = boot_well(&machine);
    let states: Vec<String> = listed(&text, "template").into_iter().map(|listed| listed.state).collect();
    assert_eq!(states, ["running", "given up"], "{text}");
}

/// What QEMU saw the kernel write, in order, when a driver was ended: first no interrupts and no DMA, then the reset.
#[test]
fn a_device_is_kept_from_memory_before_it_is_reset() {
    const BUS_MASTER: u64 = 1 << 2;
    const INTERRUPT_DISABLE: u64 = 1 << 10;
    const RESET: u64 = 1 << 26;
    let directory = TempDir::new().unwrap();
    let log = directory.path().join("trace");
    let mut machine = machine("ip; policy e1000 stop; kill e1000");
    machine.extra = ["-trace", "pci_cfg_write", "-trace", "memory_region_ops_write", "-D"].map(Into::into).to_vec();
    machine.extra.push(log.clone().into());
    boot_well(&machine);
    let hex = |word: &str| u64::from_str_radix(word.trim_start_matches("0x"), 16).ok();
    // The command register, and CTRL: the first register of BAR 0 (e1000 manual, 13.4.1).
    let event = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let behind = |name: &str| words.iter().position(|word| *word == name).and_then(|at| hex(words.get(at + 1)?));
        if line.contains("pci_cfg_write e1000 ") && line.contains("@0x4 <- ") {
            return Some(("command", behind("<-")?));
        }
        let is_ctrl = line.contains("'e1000-mmio'") && behind("addr")?.is_multiple_of(0x2_0000);
        is_ctrl.then_some(("ctrl", behind("value")?))
    };
    let events: Vec<(&str, u64)> = std::fs::read_to_string(&log).unwrap().lines().filter_map(event).collect();
    let reset = events.iter().rposition(|(what, value)| *what == "ctrl" && value & RESET != 0).expect("a reset");
    let (_, command) = events[..reset].iter().rfind(|(what, _)| *what == "command").expect("a command before it");
    assert_eq!(command & (BUS_MASTER | INTERRUPT_DISABLE), INTERRUPT_DISABLE, "{events:x?}");
}

/// It drives the device that it drove, even if another one that it could drive is free.
#[test]
fn a_driver_comes_back_with_its_device() {
    let mut machine = machine("policy e1000 stop; kill e1000; kill e1000.2; sleep 100; lsmod");
    machine.extra = ["-netdev", "user,id=net1", "-device", "e1000,netdev=net1"].map(Into::into).to_vec();
    let text = boot_well(&machine);
    assert_says(&text, "e1000.2: restarted in ring 1");
    let row = text.lines().rfind(|line| line.starts_with("e1000.2 ")).expect("lsmod lists it");
    let loaded = text.lines().find(|line| line.contains(" e1000.2: loaded into ring 1 for ")).expect("it is loaded");
    assert!(row.contains(loaded.split_whitespace().last().unwrap()), "{text}");
}

/// Whoever types the next command finds it back.
#[test]
fn a_driver_is_back_before_the_next_command() {
    let text = boot_well(&bare("insmod template; policy template restart; help; kill template; tell template x"));
    assert_says(&text, "template: 1 (0x1)");
}

/// Of the pages that a driver leaves to its successor those are taken that are what the file says, and no others.
#[test]
fn what_is_wrong_with_a_driver_s_code_is_not_inherited() {
    let (_, entry) = crate::modules::entry_of("template");
    let text = boot_badly(
        &bare(&format!(
            "insmod template; policy template restart; poke template {entry:x}:0f0b; tell template x; sleep 100; \
         tell template xx"
        )),
        1,
    )
    .text();
    assert_says(&text, "fault: template: #UD invalid opcode, in command");
    let restarted = text.lines().find(|line| line.contains("template: restarted")).expect("it is restarted");
    assert!(restarted.ends_with("#1"), "not at once: {restarted}");
    assert_says(&text, "template: 2 (0x2)");
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
    let run = boot_badly(&machine, 2);
    let text = run.text();
    assert_says(&text, "error: the driver is gone");
    assert_eq!(listed(&text, "virtio-scsi")[0].state, "ended");
    assert_says(&text, "virtio-scsi: restarted in ring 1");
    assert_eq!(text.lines().filter(|line| line.ends_with("  512 bytes")).count(), 2, "{text}");
    assert_says(&text, "error: 'sometimes' is no policy; usage: policy NAME [restart|stop|ring0-never]");
}

/// Offset of the name in a manifest.
const NAME: usize = offset_of!(Manifest, name);

/// A machine with `name`, a copy of `module` under that name with some words of its manifest changed: each at an offset into the
/// manifest.
fn with_other_manifest(module: &str, name: &str, changes: &[(usize, u32)], commands: &str) -> (Machine, TempDir) {
    let module = system().modules.iter().find(|other| other.name == module).expect("the module is built");
    let mut bytes = std::fs::read(&module.packed).unwrap();
    let manifest = bytes.windows(8).position(|window| window == b"RINGFNCE").expect("a manifest");
    bytes[manifest + NAME..][..32].fill(0);
    bytes[manifest + NAME..][..name.len()].copy_from_slice(name.as_bytes());
    for (offset, value) in changes {
        bytes[manifest + offset..][..4].copy_from_slice(&value.to_le_bytes());
    }
    let directory = TempDir::new().unwrap();
    let path = directory.path().join(format!("{name}.rfm"));
    std::fs::write(&path, bytes).unwrap();
    let mut machine = machine(commands);
    machine.contents.autoload = false;
    machine.contents.modules.push(path);
    (machine, directory)
}

/// A machine with `late`, a `rogue` whose `init` fails a second after the start, and where in its file the time is.
fn with_late(commands: &str) -> (Machine, TempDir, usize) {
    const LATEST_NS: u64 = 1_000_000_000;
    let module = system().modules.iter().find(|module| module.name == "rogue").expect("the module is built");
    let mut bytes = std::fs::read(&module.packed).unwrap();
    let find =
        |bytes: &[u8], part: &[u8]| bytes.windows(part.len()).position(|window| window == part).expect("it is there");
    let latest = find(&bytes, b"init-by:") + 8;
    bytes[latest..][..8].copy_from_slice(&LATEST_NS.to_le_bytes());
    let name = find(&bytes, b"rogue\0\0\0\0\0\0\0\0\0\0\0");
    bytes[name..][..5].copy_from_slice(b"late\0");
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("late.rfm");
    std::fs::write(&path, bytes).unwrap();
    let mut machine = bare(commands);
    machine.contents.modules.push(path);
    (machine, directory, latest)
}

/// A driver whose restart failed has its slot and its memory still, and touches nobody else's.
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
    assert_says(&text, "null: loaded into ring 1, slot 2");
    assert_says(&text, "template: 1 (0x1)");
    assert_says(&text, "template: 2 (0x2)");
    assert_runs(&text, "null", 2, 3);
}

/// If the good driver does not come back after a trial, it is tried again, and never the changed one.
#[test]
fn a_trial_that_cannot_be_undone_leaves_no_changed_driver() {
    let (mut machine, _directory, latest) = with_late("");
    machine.contents.exec = Some(format!(
        "insmod late; policy late restart; trial late {latest:x}:ffffffffffffffff 0 1 sleep 1500 | help | help; sleep 100; \
         policy late restart; sleep 100; lsmod"
    ));
    let run = boot_badly(&machine, 1);
    let text = run.text();
    assert_says(&text, "\"kind\":\"fine\"");
    assert_says(&text, "error: late is not restored: init: refused: busy");
    assert_says(&text, "error: late: restart 1: init: refused: busy");
    assert!(!text.contains("late: restarted"), "{text}");
    let state = &listed(&text, "late")[0].state;
    assert!(state.starts_with("back in ") || state == "ended, to be back", "{state}");
}

// Where the manifest has what is changed here.
const FLAGS: usize = offset_of!(Manifest, flags);
const PCI_ID: usize = offset_of!(Manifest, pci_ids);
const METHOD: usize = offset_of!(Manifest, reset.method);
const OFFSET: usize = offset_of!(Manifest, reset.offset);
const WAIT_MASK: usize = offset_of!(Manifest, reset.wait_mask);
const WAIT_VALUE: usize = offset_of!(Manifest, reset.wait_value);
const LIMIT_US: usize = offset_of!(Manifest, reset.limit_us);
const HEAP_BYTES: usize = offset_of!(Manifest, heap_bytes);
const DMA_BYTES: usize = offset_of!(Manifest, dma_bytes);

/// What a device may still write to is never anybody else's memory.
#[test]
fn a_device_that_does_not_stop_is_set_aside_with_its_memory() {
    let never = [(WAIT_MASK, 1 << 31), (WAIT_VALUE, 1 << 31)];
    let script = "integrity; insmod template; rmmod template; mem; insmod stubborn; rmmod stubborn; mem; lspci; insmod e1000; integrity";
    let (machine, _directory) = with_other_manifest("e1000", "stubborn", &never, script);
    let text = boot_badly(&machine, 1).text();
    assert_intact(&text);
    assert_says(
        &text,
        "stubborn: 0000:00:02.0 is set aside for good, and the driver's memory with it: its reset was not done within 10000 us",
    );
    assert_says(&text, "[set aside]");
    assert_says(&text, "error: e1000: no free device that it drives");
    let free: Vec<u64> = text
        .lines()
        .filter(|line| line.starts_with("frames "))
        .map(|line| line.split_whitespace().nth(1).unwrap().parse().unwrap())
        .collect();
    // The image, the stack, the frames in both directions and the rings.
    assert!(free[0] - free[1] > 100, "only {} frames were set aside", free[0] - free[1]);
}

#[test]
fn a_device_that_nobody_can_reset_is_set_aside_too() {
    let (machine, _directory) = with_other_manifest(
        "e1000",
        "untold",
        &[(METHOD, 0)],
        "integrity; insmod untold; policy untold restart; kill untold; lspci; integrity; faults 1; lsmod",
    );
    let text = boot_well(&machine);
    assert_intact(&text);
    assert_says(&text, "it used DMA, and its manifest does not say how to reset it");
    assert_says(&text, "[set aside]");
    // There is nothing that another one could have.
    assert_says(&text, "    then: it was given up: its device did not stop, and is set aside with its memory");
    assert_eq!(listed(&text, "untold")[0].state, "given up");
}

/// Manifests are promised no more than there is: one alone no more than can be there twice, and memory that is set aside is gone.
#[test]
fn no_more_memory_is_promised_than_there_is() {
    const MIB: u32 = 1 << 20;
    let script = "insmod greedy";
    let (machine, _directory) = with_other_manifest("template", "greedy", &[(HEAP_BYTES, 16 * MIB)], script);
    let text = boot_badly(&machine, 1).text();
    assert_says(&text, "error: greedy: refused: its budgets come to 16");
    let script = "insmod stubborn; kill stubborn; insmod greedy; insmod greedy; insmod greedy; insmod greedy";
    let greedy = [(HEAP_BYTES, 8 * MIB)];
    let (mut machine, _other_directory) = with_other_manifest("template", "greedy", &greedy, script);
    let stubborn = [(METHOD, 0), (DMA_BYTES, 8 * MIB)];
    let (other, _directory) = with_other_manifest("e1000", "stubborn", &stubborn, "");
    machine.contents.modules.extend(other.contents.modules);
    let text = boot_badly(&machine, 1).text();
    assert_says(&text, "stubborn: 0000:00:02.0 is set aside for good");
    assert_says(&text, "greedy.3: loaded into ring 1");
    assert_says(&text, "error: greedy: out of memory");
}

/// A device that became a bus master without the kernel's leave is reset as well, or set aside.
#[test]
fn a_device_that_turns_dma_on_by_itself_is_stopped_too() {
    const VIRTIO_SCSI: (usize, u32) = (PCI_ID, 0x1004_1af4);
    let virtio = [VIRTIO_SCSI, (METHOD, 2), (LIMIT_US, 10_000)];
    let script = |name| {
        format!("integrity; insmod {name}; tell {name} legacy-bus-master; vmmap {name}; rmmod {name}; lspci; integrity")
    };
    let (machine, _directory) =
        with_other_manifest("rogue-nic", "known", &virtio, &(script("known") + "; insmod virtio-scsi"));
    let text = boot_well(&machine);
    assert_intact(&text);
    assert!(!text.contains("set aside"), "{text}");
    // It reached the device through these.
    assert_says(&text, "ports  0xc");
    assert_says(&text, "virtio-scsi: loaded into ring 1");
    for script in [script("unknown"), script("unknown").replace("bus-master", "bus-master-hidden")] {
        let (machine, _directory) = with_other_manifest("rogue-nic", "unknown", &[VIRTIO_SCSI, (METHOD, 0)], &script);
        let text = boot_well(&machine);
        assert_says(&text, "it used DMA, and its manifest does not say how to reset it");
        assert_says(&text, "[set aside]");
    }
}

#[test]
fn no_dma_before_it_is_known_how_to_stop_it() {
    let (machine, _directory) =
        with_other_manifest("e1000", "beyond", &[(OFFSET, 1 << 20)], "insmod beyond; lspci; insmod e1000; ip");
    let text = boot_badly(&machine, 1).text();
    assert_says(&text, "error: beyond: init: refused: invalid argument");
    assert_says(&text, "e1000: loaded into ring 1");
    assert_says(&text, "eth0: 10.0.2.15/24");
}

#[test]
fn a_module_that_faulted_in_ring_1_is_not_trusted() {
    let script = "insmod rogue; tell rogue read 0; rmmod rogue; insmod rogue --ring 0; lsmod; ring rogue 0; \
                  policy rogue stop; ring rogue 0; policy rogue ring0-never; ring rogue 0; lsmod; rmmod rogue; \
                  insmod rogue --ring 0; lsmod";
    let run = boot_badly(&bare(script), 3);
    let text = run.text();
    assert_says(
        &text,
        "rogue: loaded into ring 1: it faulted once in ring 1; 'policy rogue restart' or 'stop' forgives that",
    );
    assert_says(
        &text,
        "error: rogue stays in ring 1: it faulted once in ring 1; 'policy rogue restart' or 'stop' forgives that",
    );
    assert_says(&text, "rogue: now in ring 0");
    assert_says(&text, "error: rogue stays in ring 1: it is for ring 1 only");
    // Another instance is in ring 1 as well.
    assert_says(&text, "rogue: loaded into ring 1: it is for ring 1 only");
    assert_eq!(text.matches("\nrogue            1").count(), 3, "{text}");
}

#[test]
fn other_instances_lose_ring_0_as_well() {
    let text = boot_badly(&bare("insmod rogue --ring 0; insmod rogue; tell rogue.2 read 0; lsmod"), 1).text();
    assert_says(
        &text,
        "rogue: moved to ring 1: it faulted once in ring 1; 'policy rogue restart' or 'stop' forgives that",
    );
    assert_eq!(listed(&text, "rogue")[0].ring, 1, "{text}");
}

#[test]
fn a_module_can_be_for_ring_1_only() {
    let (machine, _directory) = with_other_manifest(
        "template",
        "modest",
        &[(FLAGS, RING1_ONLY)],
        "insmod modest --ring 0; ring modest 0; policy modest stop; ring modest 0; tell modest x",
    );
    let text = boot_badly(&machine, 2).text();
    assert_says(&text, "modest: loaded into ring 1: it is for ring 1 only");
    assert_eq!(text.matches("error: modest stays in ring 1: it is for ring 1 only").count(), 2, "{text}");
    assert_says(&text, "modest: 1 (0x1)");
}

/// The first restart comes at once, each further one waits twice as long. Instructions are the clock.
#[test]
fn each_restart_waits_twice_as_long() {
    let mut machine = bare(
        "insmod template; policy template restart; limits restart-wait-ms 100; kill template; tell template x; \
         kill template; lsmod; sleep 150; kill template; lsmod; sleep 250; kill template; lsmod",
    );
    machine.icount = true;
    let text = boot_well(&machine);
    let waits = listed(&text, "template").into_iter().map(|listed| listed.state);
    let waits: Vec<String> = waits.collect();
    assert_eq!(waits, ["back in 100 ms", "back in 200 ms", "back in 400 ms"], "{text}");
}

/// A command waits for a driver that will be back, but not for ever.
#[test]
fn a_command_waits_for_its_driver_so_long() {
    let script = "blkread disk0 0 1; limits restart-wait-ms 1000; kill virtio-scsi; blkread disk0 0 1; \
                  limits pause-ms 50; kill virtio-scsi; blkread disk0 0 1; limits pause-ms 10000; blkread disk0 0 1";
    let disk = ringfence::machine::empty_disk().unwrap();
    let mut machine = machine(script);
    machine.disks = vec![disk.path().to_path_buf()];
    let text = boot_badly(&machine, 1).text();
    let said: Vec<&str> = text
        .lines()
        .filter_map(|line| if line.ends_with("  512 bytes") { Some("read") } else { line.strip_prefix("error: ") })
        .collect();
    assert_eq!(said, ["read", "read", "the driver is gone", "read"], "{text}");
}

#[test]
fn limits_are_changed_and_bad_values_refused() {
    let run = boot_badly(&bare("limits restarts 1; limits; limits restarts 0; limits nonsense 1"), 2);
    assert_says(&run.text(), "restarts                  1  restarts before a driver is given up");
    assert_says(&run.text(), "error: restarts must be 1 to 1000, not 0");
    assert_says(&run.text(), "error: there is no limit 'nonsense'; 'limits' lists them");
}

/// Where the commands began that `rogue-scsi` read blocks for.
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
    assert_says(&text, "  262144 bytes");
}

/// Whoever sent them: the first job's command is the second one.
#[test]
fn commands_of_several_jobs_are_sent_again_in_order() {
    let text = boot_well(&bare(
        "insmod rogue-scsi; policy rogue-scsi restart; tell rogue-scsi lose-all; repeat 1 sleep 30, blkread disk0 512 8 &; \
         blkread disk0 0 8 &; sleep 80; kill rogue-scsi; wait",
    ));
    assert_eq!(blocks_read(&text), ["0", "512", "0", "512"], "{text}");
}

/// Of a driver that answers and ends in the same upcall nobody knows what its answers are worth.
#[test]
fn what_a_driver_says_as_it_ends_is_not_believed() {
    let text = boot_well(&bare(
        "insmod rogue-scsi; policy rogue-scsi restart; tell rogue-scsi die; blkread disk0 0 8; tell rogue-scsi die; \
         blkwrite disk0 8 1 7",
    ));
    // The write is looked up, found missing, and done.
    assert_eq!(blocks_read(&text), ["0", "0", "8"], "{text}");
    assert_eq!(text.matches("rogue-scsi| writes block 8").count(), 2, "{text}");
}

/// A write whose driver is ended may be on the disk or not: what is there is not written again, what is not is.
#[test]
fn a_write_that_may_be_done_is_looked_up() {
    // The disk of `rogue-scsi` has zeros, whatever is written.
    let text = boot_well(&bare(
        "limits command-ms 300; insmod rogue-scsi; policy rogue-scsi restart; \
         tell rogue-scsi lose-write; blkwrite disk0 8 1 7; tell rogue-scsi lose-write; blkcopy disk0 100 disk0 200 1",
    ));
    // Of the driver's own words, and of the kernel's about it.
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

/// A driver that was changed for a trial does not stay when Ctrl-C ends the trial early: the good one does, with its policy.
#[test]
fn a_trial_given_up_leaves_the_good_driver() {
    let module = system().modules.iter().find(|module| module.name == "e1000").unwrap();
    let file = std::fs::read(&module.packed).unwrap();
    // The name in the manifest has 32 bytes; the version follows.
    let name = file.windows(32).position(|bytes| bytes.starts_with(b"e1000\0") && bytes.ends_with(&[0; 26])).unwrap();
    let version = &file[name + 32..];
    assert!(version.starts_with(env!("CARGO_PKG_VERSION").as_bytes()), "{version:?}");
    let mut running = at_prompt(machine(""));
    running.type_line("ip").unwrap();
    running.wait_for("eth0: ").unwrap();
    // Nobody answers: it would take until the end of the limit. Whoever reads the line does not take Ctrl-C with it.
    let patch = format!("trial e1000 {:x}:58 0 1 ping 10.0.2.99 -c 1000 | help | help\r\x03", name + 32);
    running.type_line(&patch).unwrap();
    running.wait_for("error: interrupted").unwrap();
    // It is restarted, as its policy was, and the report says which version it was.
    running.type_line("kill e1000").unwrap();
    running.wait_for("e1000: restarted in ring 1").unwrap();
    running.wait_for(&format!("version {}, ring 1", env!("CARGO_PKG_VERSION"))).unwrap();
    running.type_line("ping 10.0.2.2 -c 1 -W 5000").unwrap();
    running.wait_for("1 sent, 1 answered").unwrap();
    leave(running);
}
