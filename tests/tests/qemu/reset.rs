//! Devices whose drivers were ended. Each device is stopped before its memory gets another owner,
//! or is set aside.

use crate::changed::*;
use ringfence::machine::BOARD;
use ringfence_tests::{assert_intact, assert_says, boot_badly, boot_well, machine, unfenced};
use tempfile::TempDir;

/// The kernel's writes when a driver is ended, as traced by QEMU: first it turns off interrupts and
/// DMA, then it resets the device.
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

/// Memory to which a device may still write is never given to anybody else.
#[test]
fn a_device_that_does_not_stop_is_set_aside_with_its_memory() {
    let never = [(WAIT_MASK, 1 << 31), (WAIT_VALUE, 1 << 31)];
    let script = "integrity; insmod template; rmmod template; mem; insmod stubborn; rmmod stubborn; mem; lspci; insmod e1000; integrity";
    let (machine, _directory) = with_other_manifest("e1000", "stubborn", &never, script);
    let text = boot_badly(&unfenced(machine), 1);
    assert_intact(&text);
    assert_says(
        &text,
        ".0 is set aside for good, and the driver's memory with it: its reset was not done within 10000 us",
    );
    assert_says(&text, "[set aside]");
    // Boards differ in the number of the slot.
    assert_says(&text, "error: e1000: no free device that it drives: 0000:00:");
    assert_says(&text, ".0 is set aside, as it could not be stopped before");
    let free = text.free_frames();
    // The image, the stack, the frames in both directions and the rings.
    assert!(free[0] - free[1] > 100, "only {} frames were set aside", free[0] - free[1]);
}

/// An IOMMU keeps the device from all memory, so its driver's memory is free again.
#[test]
fn a_device_that_does_not_stop_costs_no_memory_behind_a_fence() {
    let never = [(WAIT_MASK, 1 << 31), (WAIT_VALUE, 1 << 31)];
    let script = "integrity; insmod template; rmmod template; mem; insmod stubborn; rmmod stubborn; mem; integrity";
    let (mut machine, _directory) = with_other_manifest("e1000", "stubborn", &never, script);
    machine.use_board(BOARD);
    let text = boot_well(&machine);
    assert_intact(&text);
    assert_says(&text, ".0 is set aside for good: its reset was not done within 10000 us");
    let free = text.free_frames();
    // The difference is tables that stay for the device of the next driver.
    assert!(free.len() == 2 && free[0] - free[1] < 8, "{free:?}");
}

#[test]
fn a_device_that_nobody_can_reset_is_set_aside_too() {
    let (machine, _directory) = with_other_manifest(
        "e1000",
        "untold",
        &[(METHOD, 0)],
        "integrity; insmod untold; policy untold restart; kill untold; lspci; integrity; faults 1; lsmod",
    );
    let text = boot_well(&unfenced(machine));
    assert_intact(&text);
    assert_says(&text, "warning: untold: the device may use DMA, and the manifest does not say how to reset it");
    assert_says(&text, "it used DMA, and its manifest does not say how to reset it");
    assert_says(&text, "[set aside]");
    // There is no device that a successor could have.
    assert_says(&text, "    then: it was given up: its device did not stop, and is set aside with its memory");
    assert_eq!(text.drivers("untold")[0].state, "given up");
}

/// The kernel promises no more memory than there is. One manifest may ask only for memory that
/// could be there twice, and memory that is set aside is gone.
#[test]
fn no_more_memory_is_promised_than_there_is() {
    const MIB: u32 = 1 << 20;
    let script = "insmod greedy";
    let (machine, _directory) = with_other_manifest("template", "greedy", &[(HEAP_BYTES, 16 * MIB)], script);
    let text = boot_badly(&machine, 1);
    assert_says(&text, "error: greedy: refused: its budgets come to 16");
    let script = "insmod stubborn; kill stubborn; repeat 10 insmod greedy";
    let greedy = [(HEAP_BYTES, 8 * MIB)];
    let (mut machine, _other_directory) = with_other_manifest("template", "greedy", &greedy, script);
    let stubborn = [(METHOD, 0), (DMA_BYTES, 7 * MIB)];
    let (other, _directory) = with_other_manifest("e1000", "stubborn", &stubborn, "");
    machine.contents.modules.extend(other.contents.modules);
    machine.memory = 72;
    let text = boot_badly(&unfenced(machine), 1);
    assert_says(&text, ".0 is set aside for good");
    // Five of them would fit if nothing was set aside.
    assert!(!text.loaded("greedy.3").is_empty() && text.loaded("greedy.5").is_empty(), "{text}");
    assert_says(&text, "error: greedy: out of memory");
}

/// A device that became a bus master without the kernel's permission is reset as well, or set
/// aside.
#[test]
fn a_device_that_turns_dma_on_by_itself_is_stopped_too() {
    const VIRTIO_SCSI: (usize, u32) = (PCI_ID, 0x1004_1af4);
    let virtio = [VIRTIO_SCSI, (METHOD, 2), (LIMIT_US, 10_000)];
    let script = |name| {
        format!("integrity; insmod {name}; tell {name} legacy-bus-master; vmmap {name}; rmmod {name}; lspci; integrity")
    };
    let (machine, _directory) =
        with_other_manifest("rogue-nic", "known", &virtio, &(script("known") + "; insmod virtio-scsi"));
    let text = boot_well(&unfenced(machine));
    assert_intact(&text);
    assert!(!text.contains("set aside"), "{text}");
    // The driver reached the device through these ports.
    assert_says(&text, "ports  0xc");
    assert!(!text.loaded("virtio-scsi").is_empty(), "{text}");
    for script in [script("unknown"), script("unknown").replace("bus-master", "bus-master-hidden")] {
        let (machine, _directory) = with_other_manifest("rogue-nic", "unknown", &[VIRTIO_SCSI, (METHOD, 0)], &script);
        let text = boot_well(&unfenced(machine));
        assert_says(&text, "it used DMA, and its manifest does not say how to reset it");
        assert_says(&text, "[set aside]");
    }
}

#[test]
fn no_dma_before_it_is_known_how_to_stop_it() {
    let (machine, _directory) =
        with_other_manifest("e1000", "beyond", &[(OFFSET, 1 << 20)], "insmod beyond; lspci; insmod e1000; ip");
    let text = boot_badly(&machine, 1);
    assert_says(&text, "error: beyond: init: refused: invalid argument");
    assert!(!text.loaded("e1000").is_empty(), "{text}");
    assert_says(&text, "eth0: 10.0.2.15/24");
}
