//! The fence around devices: an IOMMU lets each device reach only the memory that its driver was
//! given for it.

use crate::changed::*;
use ringfence::machine::{BOARD, Machine, Running};
use ringfence::machine::{Bus, Monitor};
use ringfence_abi::manifest::NEEDS_FENCE;
use ringfence_link::event::Event;
use ringfence_tests::attacks::{assert_all, fence as attacks};
use ringfence_tests::{
    Ran, assert_fault, assert_intact, assert_says, at_prompt, boot, boot_badly, boot_well, machine, run_well, serves,
    unfenced,
};

fn fenced(commands: &str) -> Machine {
    let mut machine = machine(commands);
    machine.use_board(BOARD);
    machine.scratch = true;
    machine
}

/// Addresses for the device begin with the driver's slot, so they are the same after every restart,
/// and in every slot.
#[test]
fn drivers_work_behind_the_fence_in_both_rings() {
    let machine = fenced(
        "ip; ping 10.0.2.2 -c 2; blkcheck disk0 0 2000 1; ring e1000 0; ring virtio-scsi 0; ping 10.0.2.2 -c 2; \
         blkcheck disk0 0 2000 2; kill e1000; kill virtio-scsi; ping 10.0.2.2 -c 2; blkcheck disk0 0 2000 3; lsmod -v; vmmap e1000",
    );
    let text = boot_well(&machine);
    assert_says(&text, "iommu: VT-d at 0xfed90000 keeps devices to what they are given");
    assert_eq!(text.matches("2 sent, 2 answered, 0 lost").count(), 3, "{text}");
    assert_eq!(text.matches("2000 blocks were written and read back").count(), 3, "{text}");
    assert_eq!(text.matches("fenced: it reaches what its driver was given for it").count(), 3, "{text}");
    let phys: Vec<&str> = text.lines().filter(|line| line.contains("rf_dma_address(0x80100")).collect();
    assert!(!phys.is_empty() && phys.iter().all(|line| line.contains(") = 0x100")), "{phys:?}");
}

/// With an IOMMU, the access ends the driver and nothing is written. Without one, it would be
/// counted as a stray write.
#[test]
fn a_device_that_is_told_wrong_ends_its_driver() {
    let text = boot_well(&fenced(
        "integrity; rmmod e1000; insmod rogue-nic; tell rogue-nic device-writes 0x2800000; sleep 100; lsmod; lsblk; \
         blkread disk0 0 8; integrity",
    ));
    assert_says(
        &text,
        "fault: rogue-nic: DMA fault: its device reading 0x2800000 (own slot, unmapped): it may not read there, after command",
    );
    assert_says(&text, "    its addresses begin with the slot; physical address 0x2800000 is memory that nobody has");
    assert_eq!(text.drivers("rogue-nic")[0].state, "ended");
    let counts = text.lines().filter_map(|line| line.split_once("  frames written to")).map(|(count, _)| count.trim());
    assert!(counts.eq(["0", "0"]), "{text}");
    assert_intact(&text);
}

/// The queues, the entry text and the IOMMU's own tables are not mapped for a device, wherever they
/// are.
#[test]
fn no_address_leads_beyond_the_fence() {
    for (address, expected) in [
        ("0x1000", "reading 0x1000 (own slot, unmapped): it may not read there"),
        ("0x2060000", "reading 0x2060000 (own queues): it may not read there"),
        ("0x430000", "reading 0x430000 (own "),
        ("0x8000000000", "reading 0x8000000000 (no address of its own): "),
        ("0xfed90000", "reading 0xfed90000 (own slot, unmapped): it may not read there"),
    ] {
        let text = boot_well(&fenced(&format!(
            "integrity; rmmod e1000; insmod rogue-nic; tell rogue-nic device-writes {address}; sleep 100; lsmod; integrity"
        )));
        assert_fault(&text, "rogue-nic", &format!("DMA fault: its device {expected}"));
        assert_intact(&text);
    }
}

/// All places that do not belong to the device, in all ways that two devices have. This runs in the
/// boot of all attacks: after each one the kernel is unchanged, a second driver answers, and no
/// memory is lost.
#[test]
fn every_place_and_every_way() {
    if machine("").iommu {
        assert_all(&attacks::all());
    }
}

/// Tables, domain numbers and context entries are allocated and freed with their drivers.
#[test]
fn restarts_behind_the_fence_lose_nothing() {
    // No driver is throttled, so each one is back before the next command.
    let round = "repeat 20 kill e1000, kill virtio-scsi; ping 10.0.2.2 -c 1; blkread disk0 0 8; mem; ";
    let text = boot_well(&fenced(&format!(
        "limits restarts 1000; limits restart-wait-ms 0; limits turn-ms 1000; ip; lsblk; {round}{round}"
    )));
    let free = text.free_frames();
    assert!(free.len() == 2 && free[0] == free[1], "{free:?}");
}

/// A bridge makes requests on behalf of the devices behind it. Only one of these devices can have a
/// driver, which works.
#[test]
fn devices_that_a_bridge_asks_for_have_one_driver() {
    let mut machine = fenced("ip; ping 10.0.2.2 -c 1; lsmod -v; rmmod e1000; insmod e1000; ip");
    machine.nic = "none".into();
    let devices = "-device pcie-pci-bridge,id=b1 -netdev user,id=one -device e1000,netdev=one,bus=b1,addr=3 \
                   -netdev user,id=two -device e1000,netdev=two,bus=b1,addr=4";
    machine.extra = devices.split_whitespace().map(Into::into).collect();
    let text = boot_well(&machine);
    assert_says(&text, "e1000: loaded into ring 1 for 0000:01:03.0");
    let why = "a bridge asks in its place, and in that of a device that another driver has";
    assert_says(&text, &format!("0000:01:04.0: no driver can have it: {why}"));
    assert_says(&text, "1 sent, 1 answered, 0 lost");
    assert_eq!(text.matches("eth0: 10.0.2.15/24 via e1000").count(), 2, "{text}");
}

/// Behind a port of PCI Express, each device makes requests of its own.
#[test]
fn devices_behind_a_port_have_fences_of_their_own() {
    let mut machine = fenced("ip; ping 10.0.2.2 -c 1; lsmod -v");
    machine.nic = "none".into();
    let devices = "-device pcie-root-port,id=p1,chassis=1 -netdev user,id=one -device e1000,netdev=one,bus=p1";
    machine.extra = devices.split_whitespace().map(Into::into).collect();
    let text = boot_well(&machine);
    assert_says(&text, "1 sent, 1 answered, 0 lost");
    assert_eq!(text.matches("fenced: it reaches what its driver was given for it").count(), 2, "{text}");
}

/// A card that is plugged in while the machine runs belongs to no driver. It reaches nothing, no
/// matter which orders it gets, and the kernel logs the attempt once.
#[test]
fn a_card_that_is_plugged_in_reaches_nothing() {
    const CONFIG: u64 = 0xb000_0000;
    const COMMAND: u64 = 0x04;
    const WINDOW: u64 = 0x20;
    const BUSES: u64 = 0x18;
    const BAR_1: u64 = 0x14;
    /// The start of a program of the LSI (DSP).
    const PROGRAM: u64 = 0x2c;
    let folder = tempfile::tempdir().unwrap();
    let [monitor, bus] = ["qmp", "qtest"].map(|name| folder.path().join(name));
    let mut machine = fenced("");
    machine.extra =
        "-device pcie-root-port,id=p1,chassis=1,addr=8 -qtest-log none".split(' ').map(Into::into).collect();
    for (option, socket) in [("-qmp", &monitor), ("-qtest", &bus)] {
        machine.extra.extend([option.into(), format!("unix:{},server=on,wait=off", socket.display()).into()]);
    }
    let mut running = at_prompt(machine);
    let checksum = |running: &mut Running| {
        running.type_line("integrity").unwrap();
        let told = |event| match event {
            Event::Integrity { checksum, .. } => Some(checksum),
            _ => None,
        };
        running.wait_for_event("its integrity", told).unwrap()
    };
    let before = checksum(&mut running);
    Monitor::new(&monitor)
        .unwrap()
        .execute(r#"{"execute": "device_add", "arguments": {"driver": "lsi53c895a", "id": "hot", "bus": "p1"}}"#)
        .unwrap();
    let mut bus = Bus::new(&bus).unwrap();
    let port = CONFIG + (8 << 15);
    let card = CONFIG + u64::from(bus.read(port + BUSES).unwrap() >> 8 & 0xff) * (1 << 20);
    assert_eq!(bus.read(card).unwrap(), 0x0012_1000, "the card is there");
    let window = bus.read(port + WINDOW).unwrap() << 16 & 0xfff0_0000;
    bus.write(card + BAR_1, window).unwrap();
    bus.write(card + COMMAND, 6).unwrap();
    // There are two accesses, because one line for each would be a flood.
    for program in [0x20_0000, 0x30_0000] {
        bus.write(u64::from(window) + PROGRAM, program).unwrap();
    }
    running.wait_for("01:00.0: it tried to read 0x200000, and no driver has it: it has been given nothing").unwrap();
    assert_eq!(checksum(&mut running), before);
    run_well(&mut running, "ping 10.0.2.2 -c 1");
    running.type_line("shutdown").unwrap();
    let text = running.finish(|_| ()).unwrap().text();
    assert_eq!(text.matches("it tried to ").count(), 1, "{text}");
}

/// The machine without an IOMMU is given as the reason.
#[test]
fn without_an_iommu_nothing_is_fenced() {
    let text = boot_badly(&unfenced(machine("lsmod -v; nonsense")), 1);
    assert_eq!(text.matches("not fenced: the machine has no IOMMU").count(), 2, "{text}");
}

/// A user may prefer no driver to one whose device reaches everything.
#[test]
fn what_is_not_fenced_can_be_refused() {
    let mut without = unfenced(machine("limits unfenced 0; fails insmod e1000; limits unfenced 1; insmod e1000"));
    without.contents.autoload = false;
    let text = boot_well(&without);
    assert_says(
        &text,
        "0000:00:02.0: no driver has it, as it is not fenced ('limits unfenced'): the machine has no IOMMU",
    );
    assert_says(&text, "as expected: e1000: no free device that it drives");
    let mut fenced = fenced("limits unfenced 0; insmod e1000");
    fenced.contents.autoload = false;
    assert!(!boot_well(&fenced).loaded("e1000").is_empty());
}

/// Runs commands with a card that sends to itself, so it can copy from anywhere to anywhere.
/// Without an IOMMU, its driver can reach all of memory.
fn through_the_card(machine: Machine, commands: &str) -> Ran {
    let mut machine = machine;
    machine.contents.autoload = false;
    // The card receives nothing for a second after its receiver is set up.
    let script = format!("insmod rogue-nic; tell rogue-nic loop-back; sleep 1200; {commands}");
    machine.contents.exec = Some(script);
    boot_well(&machine)
}

#[test]
fn without_a_fence_a_card_reads_and_writes_anything() {
    let commands = "tell rogue-nic dma-write 0x2800000 0x1234; tell rogue-nic dma-read 0x2800000";
    assert_says(&through_the_card(unfenced(machine("")), commands), "rogue-nic: 4660 (0x1234)");
}

#[test]
fn behind_the_fence_each_move_beyond_it_ends_its_driver() {
    for (command, expected) in [
        ("dma-write 0x2800000 0x1234", "writing 0x2800000 (own slot, unmapped): it may not write there"),
        ("dma-read 0x2800000", "reading 0x2800000 (own slot, unmapped): it may not read there"),
        // Memory that the device may only read: frames to be sent.
        ("dma-write-read-only", "writing 0x100c1000 (own DMA memory): it may not write there"),
        ("dma-write 0xfed90000 1", "writing 0xfed90000 (own slot, unmapped): it may not write there"),
        ("dma-write 0xffffffffff000 1", "writing 0xffffffffff000 (no address of its own): no address is as long"),
    ] {
        let text =
            through_the_card(fenced(""), &format!("integrity; tell rogue-nic {command}; sleep 100; lsmod; integrity"));
        assert_fault(&text, "rogue-nic", &format!("DMA fault: its device {expected}"));
        assert_intact(&text);
    }
}

/// Nobody listens at the local APIC's address if the local APIC is not needed. If it ticks,
/// interrupts that a device raises there change nothing.
#[test]
fn a_device_that_writes_an_interrupt_message_raises_none() {
    for board in ["pc", "pc,pit=off"] {
        let mut machine = unfenced(machine(""));
        machine.use_board(board);
        let text = through_the_card(machine, "tell rogue-nic dma-write 0xfee00000 0x25; sleep 100; irqs; lsmod");
        assert!(!text.lines().any(|line| line.starts_with("line  5")), "{text}");
        assert!(serves(text.drivers("rogue-nic")[0]), "{text}");
    }
}

/// QEMU's virtio devices bypass the IOMMU by default. If they were given addresses for it, they
/// would write anywhere.
#[test]
fn a_device_that_goes_past_the_fence_has_no_driver() {
    for device in ["virtio-scsi-pci,disable-legacy=on", "virtio-scsi-pci,disable-modern=on"] {
        let mut machine = fenced("lsmod; lspci");
        (machine.nic, machine.hba) = ("none".into(), "none".into());
        machine.extra = vec!["-device".into(), device.into()];
        let text = boot_well(&machine);
        assert_says(&text, "no driver can have it: it goes past the IOMMU (virtio without ACCESS_PLATFORM)");
        assert!(!text.contains("[driven]"), "{text}");
    }
}

/// Half of an address is wrong, as in a driver with one changed instruction. The report names the
/// queue.
#[test]
fn a_queue_that_lies_elsewhere_ends_its_driver() {
    const VIRTIO_SCSI: (usize, u32) = (PCI_ID, 0x1048_1af4);
    for (part, address, name) in [
        (0, "0x3100c4000", "descriptor table"),
        (1, "0x10010000100c2000", "available ring"),
        (2, "0x4000", "used ring"),
    ] {
        let script = format!(
            "integrity; insmod elsewhere; tell elsewhere virtio-queue {part} {address}; sleep 100; lsmod; integrity; \
             rmmod elsewhere; insmod virtio-scsi; blkread disk0 0 8"
        );
        let changes = [VIRTIO_SCSI, (METHOD, 2), (LIMIT_US, 10_000)];
        let (mut machine, _directory) = with_other_manifest("rogue-nic", "elsewhere", &changes, &script);
        machine.use_board(BOARD);
        machine.scratch = true;
        let text = boot_well(&machine);
        assert_fault(&text, "elsewhere", "DMA fault: its device ");
        assert_says(&text, &format!("    it is told that the {name} of queue 2 is there"));
        assert_intact(&text);
        assert_eq!(text.data().len(), 1, "{text}");
    }
}

fn with_lsi(commands: &str, devices: &str) -> Machine {
    let mut machine = fenced(commands);
    machine.contents.autoload = false;
    (machine.nic, machine.hba) = ("none".into(), "none".into());
    machine.extra = devices.split_whitespace().map(Into::into).collect();
    machine
}

/// The fence belongs to the device, in whichever ring its driver is, and during a change of rings.
#[test]
fn a_change_of_rings_takes_no_fence_down() {
    for rings in ["ring rogue-lsi 0", "ring rogue-lsi 0; ring rogue-lsi 1", "ring rogue-lsi 0; tell rogue-lsi own"] {
        let script = format!(
            "integrity; insmod rogue-lsi --kind paged; tell rogue-lsi own; {rings}; tell rogue-lsi own; tell rogue-lsi write %kernel-text 1; \
             lsmod; integrity"
        );
        let text = boot_well(&with_lsi(&script, "-device lsi53c895a"));
        assert_fault(&text, "rogue-lsi", "DMA fault: its device writing 0x");
        assert_eq!(text.drivers("rogue-lsi")[0].state, "ended");
        assert_intact(&text);
    }
}

/// A device whose driver has gone reaches nothing, no matter which orders it had before. The next
/// driver finds it reset.
#[test]
fn a_device_whose_driver_was_unloaded_reaches_nothing() {
    // Between two commands QEMU 10's device goes on with its unfinished work.
    let script = "integrity; insmod rogue-lsi; tell rogue-lsi own; rmmod rogue-lsi; insmod rogue-lsi; \
                  tell rogue-lsi read-before-dma %kernel-text; sleep 3; tell rogue-lsi own; integrity";
    let text = boot_well(&with_lsi(script, "-device lsi53c895a"));
    assert_eq!(text.matches("rogue-lsi: 4660 (0x1234)").count(), 2, "{text}");
    assert_says(&text, "rogue-lsi: 6148914691236517205 (0x5555555555555555)");
    assert!(!text.contains("fault: "), "{text}");
    assert_intact(&text);
}

/// The IOMMU may have recorded a fault of a device whose driver then ended by itself. The next
/// driver is not to blame for it.
#[test]
fn a_fault_of_a_driver_that_is_gone_ends_nobody() {
    let script = "insmod rogue-lsi; tell rogue-lsi read-at-exit %kernel-text; rmmod rogue-lsi; insmod rogue-lsi; \
                  tell rogue-lsi own; sleep 150; tell rogue-lsi own; faults; lsmod";
    let text = boot_well(&with_lsi(script, "-device lsi53c895a"));
    assert_eq!(text.matches("rogue-lsi: 4660 (0x1234)").count(), 2, "{text}");
    assert!(serves(text.drivers("rogue-lsi")[0]), "{text}");
    assert!(!text.contains("DMA fault"), "{text}");
}

/// A bridge makes requests on behalf of the devices behind it; a device behind a port makes its
/// own. Both are kept to the memory that they were given.
#[test]
fn a_bridge_hides_nobody() {
    for devices in [
        "-device pcie-pci-bridge,id=b1 -device lsi53c895a,bus=b1,addr=3",
        "-device i82801b11-bridge,id=b1 -device pci-bridge,id=b2,bus=b1,chassis_nr=2 -device lsi53c895a,bus=b2,addr=3",
        "-device pcie-root-port,id=p1,chassis=1 -device lsi53c895a,bus=p1",
        "-device pxb-pcie,id=root,bus_nr=128 -device pcie-root-port,id=p1,bus=root,chassis=1 -device lsi53c895a,bus=p1",
    ] {
        let script = "integrity; insmod rogue-lsi; tell rogue-lsi own; tell rogue-lsi write %kernel-text 1; sleep 100; lsmod; \
                      integrity";
        let text = boot_well(&with_lsi(script, devices));
        assert_says(&text, "rogue-lsi: 4660 (0x1234)");
        assert_fault(&text, "rogue-lsi", "DMA fault: its device writing 0x");
        assert_eq!(text.drivers("rogue-lsi")[0].state, "ended", "{devices}: {text}");
        assert_intact(&text);
    }
}

/// An LSI 53C8xx can access ports by itself, and no IOMMU prevents that. The kernel says so, and a
/// user who wants no such device can refuse it.
#[test]
fn a_device_that_reaches_ports_is_said_to() {
    let mut machine = fenced("lsmod -v; limits unfenced 0; rmmod lsi53c895a; fails insmod lsi53c895a");
    (machine.nic, machine.hba) = ("none".into(), "lsi53c895a".into());
    let text = boot_well(&machine);
    assert_says(&text, "fenced, but for ports, which it can access by itself");
    assert_says(&text, "no driver has it, as it is not fenced ('limits unfenced'): it can access ports by itself");
}

/// A module's manifest can demand a fence.
#[test]
fn a_module_gets_no_device_without_the_fence_that_it_demands() {
    let (mut machine, _directory) =
        with_other_manifest("e1000", "careful", &[(FLAGS, NEEDS_FENCE)], "insmod careful; lsmod");
    machine.use_board(BOARD);
    assert!(!boot_well(&machine).loaded("careful").is_empty());
    machine.contents.exec = Some("fails insmod careful".into());
    let text = boot_well(&unfenced(machine));
    assert_says(&text, "the driver wants it fenced, which it is not: the machine has no IOMMU");
}

/// A device has interrupts of its own, by which the IOMMU knows it. They are allocated and freed
/// with its driver, in both rings.
#[test]
fn a_device_sends_interrupts_of_its_own() {
    // No driver is throttled, so each one is back before the next command.
    let script = "blkcheck disk0 0 500 1; irqs; limits restarts 1000; limits restart-wait-ms 0; limits turn-ms 1000; \
                  repeat 60 kill virtio-scsi; blkcheck disk0 0 8 1; ring virtio-scsi 0; blkcheck disk0 0 500 2; lsmod -v; irqs";
    let mut machine = fenced(script);
    machine.nic = "none".into();
    let text = boot_well(&machine);
    assert_says(&text, "iommu: interrupts are remapped: devices send what they are given");
    let lines = text.lines().filter(|line| line.contains("virtio-scsi  (MSI-X)"));
    // All freed interrupts can be used again: there are only 48.
    assert!(lines.clone().count() >= 2 && lines.clone().all(|line| line.starts_with("line 16 ")), "{text}");
    assert!(!text.contains("messages that nobody was told to send"), "{text}");
    assert_eq!(text.matches("500 blocks were written and read back").count(), 2, "{text}");
}

/// Without interrupt remapping nothing checks the sender of a message, so devices use their lines.
#[test]
fn without_remapping_a_device_has_a_line() {
    let mut off = fenced("blkcheck disk0 0 500 1; irqs");
    off.board = "q35".into();
    off.iommu = false;
    let mut without_remapping = fenced("blkcheck disk0 0 500 1; irqs");
    without_remapping.iommu = false;
    without_remapping.hba = "virtio-scsi-pci,disable-legacy=on,iommu_platform=on".into();
    without_remapping.extra = ["-device", "intel-iommu,intremap=off"].map(Into::into).to_vec();
    for machine in [off, without_remapping] {
        let text = boot_well(&machine);
        assert_says(&text, "500 blocks were written and read back");
        assert!(!text.contains("MSI-X"), "{text}");
    }
}

/// Pages with the table of message addresses are not mapped for a driver, whether they are a whole
/// BAR or in the middle of one.
#[test]
fn no_driver_has_the_table_of_its_messages() {
    const VIRTIO_SCSI: (usize, u32) = (PCI_ID, 0x1048_1af4);
    const NVME: (usize, u32) = (PCI_ID, 0x0010_1b36);
    const DENIED: &str = "curious: 5 (0x5)";
    let script = "insmod curious; tell curious map-bar 1; tell curious map-bar 4; vmmap curious";
    let (machine, _directory) = with_other_manifest("rogue-nic", "curious", &[VIRTIO_SCSI], script);
    let text = boot_well(&machine);
    assert_says(&text, DENIED);
    assert_says(&text, "curious: 0 (0x0)");
    for (offset, fault) in [("0x1ffc", false), ("0x2000", true), ("0x300c", true)] {
        let script = format!("insmod curious; tell curious read-register {offset}; lsmod");
        let (mut machine, _directory) = with_other_manifest("rogue-nic", "curious", &[NVME], &script);
        machine.extra = "-drive if=none,id=n,file.driver=null-co,format=raw -device nvme,drive=n,serial=1"
            .split_whitespace()
            .map(Into::into)
            .collect();
        let text = boot(&machine);
        let faults = text.contains("fault: curious: #PF reading 0x") && text.contains("(own slot, unmapped)");
        assert_eq!(faults, fault, "{offset}: {text}");
        let curious = text.drivers("curious")[0];
        assert!(if fault { curious.state == "ended" } else { serves(curious) }, "{text}");
    }
}

/// The reset recipe's registers must not be in the table of messages, because the kernel writes to
/// them on the driver's behalf.
#[test]
fn no_recipe_for_a_reset_leads_to_the_table_of_messages() {
    const NVME: (usize, u32) = (PCI_ID, 0x0010_1b36);
    for changes in
        [vec![NVME, (OFFSET, 0x2000)], vec![NVME, (ZERO, 0x3000)], vec![NVME, (ZERO, 0x1000), (ZERO + 4, 0x1008)]]
    {
        let script = "integrity; insmod reckless; tell reckless device-writes 0x1000; rmmod reckless; integrity";
        let (mut machine, _directory) = with_other_manifest("rogue-nic", "reckless", &changes, script);
        machine.use_board(BOARD);
        machine.extra = "-drive if=none,id=n,file.driver=null-co,format=raw -device nvme,drive=n,serial=1"
            .split_whitespace()
            .map(Into::into)
            .collect();
        let text = boot(&machine);
        assert_intact(&text);
        assert_eq!(text.contains("error: reckless: refused: invalid argument"), changes.len() == 2, "{text}");
        assert_says(&text, "reckless: unloaded");
    }
}

/// A device forges the timer's message. A message that comes too early does not count as a tick,
/// because other drivers would pay for the time.
#[test]
fn a_device_has_no_time_pass() {
    let script = "insmod rogue-lsi; mute repeat 200 tell rogue-lsi write 0xfee00000 0x60; irqs";
    let mut machine = with_lsi(script, "-device lsi53c895a");
    machine.icount = true;
    let text = boot_well(&machine);
    let ticks = text.lines().find_map(|line| line.strip_prefix("line  0")?.strip_suffix("timer")?.trim().parse().ok());
    assert!(ticks.is_some_and(|ticks: u32| ticks < 150), "{text}");
}
