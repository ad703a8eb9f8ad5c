//! Each network card and adapter that has a driver: in both rings, and after its driver was ended
//! and restarted, with frames on the wire and blocks on disks.

use ringfence_tests::{Ran, assert_says, boot_well, machine, unfenced};
use std::fs::File;
use tempfile::TempDir;

#[test]
fn every_card_works_in_both_rings_and_after_a_restart() {
    for (card, driver) in [
        ("e1000", "e1000"),
        ("e1000-82545em", "e1000"),
        ("e1000e", "e1000"),
        ("pcnet", "pcnet"),
        ("rtl8139", "rtl8139"),
        ("ne2k_pci", "ne2k-pci"),
        ("virtio-net-pci", "virtio-net"),
    ] {
        let mut machine = machine(&work(driver));
        (machine.nic, machine.hba) = (card.into(), "none".into());
        assert_works(&boot_well(&machine), card, driver);
    }
}

/// The same test for a card with its driver in C.
#[test]
fn a_network_driver_in_c_works_in_both_rings_and_after_a_restart() {
    let driver = "rtl8139-c";
    let mut machine = machine(&format!("insmod {driver} promiscuous=on; {}", work(driver)));
    (machine.nic, machine.hba, machine.contents.autoload) = ("rtl8139".into(), "none".into(), false);
    assert_works(&boot_well(&machine), "rtl8139", driver);
}

/// Returns commands that send short frames and fragments, in each ring and after a restart.
fn work(driver: &str) -> String {
    let ping = "ping 10.0.2.2 -c 2 -i 0.1; ping 10.0.2.2 -c 1 -s 4000";
    format!("ip; {ping}; ring {driver} 0; {ping}; ring {driver} 1; {ping}; kill {driver}; sleep 100; {ping}; lsmod")
}

fn assert_works(text: &Ran, card: &str, driver: &str) {
    assert_says(text, &format!("eth0: 10.0.2.15/24 via {driver}"));
    assert_eq!(text.matches("2 sent, 2 answered, 0 lost").count(), 4, "{card}: {text}");
    assert_eq!(text.matches("1 sent, 1 answered, 0 lost").count(), 4, "{card}: {text}");
    assert!(text.restarts(driver) > 0, "{text}");
}

/// QEMU's e1000e ends QEMU if MSI-X is turned off while it still has a message to send.
#[test]
fn a_card_that_puts_messages_off_loses_them_in_order() {
    let mut machine = machine(
        "ip; limits restarts 1000; limits restart-wait-ms 0; mute repeat 40 ping 10.0.2.2 -c 1, kill e1000; sleep 50; \
         ping 10.0.2.2 -c 1",
    );
    // With this clock, little time passes from an answer's interrupt to the end of the driver.
    machine.icount = true;
    (machine.nic, machine.hba) = ("e1000e".into(), "none".into());
    assert_says(&boot_well(&machine), "1 sent, 1 answered, 0 lost");
}

/// Blocks are written, compared, and copied from one disk to another.
#[test]
fn every_adapter_works_in_both_rings_and_after_a_restart() {
    let directory = TempDir::new().unwrap();
    for (adapter, driver) in [
        ("virtio-scsi-pci", "virtio-scsi"),
        ("lsi53c895a", "lsi53c895a"),
        ("am53c974", "am53c974"),
        ("dc390", "am53c974"),
    ] {
        let work = |seed: u32| format!("blkcheck disk0 0 1500 {seed}; blkcopy disk0 0 disk1 8 1000");
        let mut machine = machine(&format!(
            "lsblk; {}; ring {driver} 0; {}; ring {driver} 1; {}; kill {driver}; {}; lsblk",
            work(1),
            work(2),
            work(3),
            work(4)
        ));
        (machine.nic, machine.hba) = ("none".into(), adapter.into());
        for (name, blocks) in [("a.img", 2048), ("b.img", 2048)] {
            let path = directory.path().join(format!("{driver}-{name}"));
            File::create(&path).unwrap().set_len(blocks * 512).unwrap();
            machine.disks.push(path.into());
        }
        let text = boot_well(&machine);
        assert_eq!(text.matches("1500 blocks were written and read back").count(), 4, "{adapter}: {text}");
        let disks = text.disks();
        assert!(disks.iter().all(|disk| disk.driver == driver && disk.model.contains("QEMU HARDDISK")), "{text}");
        assert_eq!(disks.len(), 4, "{adapter}: {text}");
        assert!(text.restarts(driver) > 0, "{text}");
    }
}

/// If an adapter does not deliver sense data by itself, its driver fetches the data.
#[test]
fn a_disk_says_what_was_wrong() {
    for adapter in ["virtio-scsi-pci", "lsi53c895a", "am53c974"] {
        let mut machine = machine("lsblk; fails blkwrite disk0 0 8 1; blkread disk0 0 8");
        (machine.nic, machine.hba) = ("none".into(), adapter.into());
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("a.img");
        File::create(&path).unwrap().set_len(1 << 20).unwrap();
        machine.disks = vec![ringfence::machine::Disk { path, read_only: true }];
        let text = boot_well(&machine);
        assert_says(&text, "write protected");
    }
}

/// Where there is no IOMMU, a device of 32 bits reaches memory below 4 GiB only: DMA memory comes
/// from there, also when most of the memory is elsewhere.
#[test]
fn devices_of_32_bits_work_beside_more_than_4_gib_of_memory() {
    for (nic, hba) in [("rtl8139", "lsi53c895a"), ("pcnet", "am53c974")] {
        let mut machine = unfenced(machine(&format!(
            "ip; ping 10.0.2.2 -c 1; blkcheck disk0 0 256 1; kill {nic}; kill {hba}; blkcheck disk0 0 256 2; \
             ping 10.0.2.2 -c 1"
        )));
        (machine.nic, machine.hba, machine.memory, machine.scratch) = (nic.into(), hba.into(), 5000, true);
        let text = boot_well(&machine);
        assert_eq!(text.matches("1 sent, 1 answered").count(), 2, "{text}");
        assert_eq!(text.matches("256 blocks were written and read back").count(), 2, "{text}");
    }
}
