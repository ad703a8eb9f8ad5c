//! Block devices: disks without SCSI, under the same names and commands.

use ringfence::machine::Disk;
use ringfence_tests::{assert_says, boot_badly, boot_well, machine, serves};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Makes an image of `blocks` blocks of 512 bytes, each of which begins with its number.
fn image(directory: &Path, name: &str, blocks: u32) -> PathBuf {
    let path = directory.join(name);
    let block = |number: u32| [number.to_le_bytes().to_vec(), vec![number as u8; 508]].concat();
    fs::write(&path, (0..blocks).flat_map(block).collect::<Vec<u8>>()).unwrap();
    path
}

/// Block devices: QEMU's name, the driver, and the device's model.
const DEVICES: [(&str, &str, &str); 2] =
    [("virtio-blk-pci", "virtio-blk", "virtio block device"), ("isa-ide", "ide", "QEMU HARDDISK")];

/// Returns a machine that runs `script`, with virtio block devices for these images.
fn with_disks(script: &str, images: &[&Path]) -> ringfence::machine::Machine {
    with_disks_behind("virtio-blk-pci", script, images)
}

/// Returns a machine that runs `script`, with block devices of the kind `hba` for these images.
fn with_disks_behind(hba: &str, script: &str, images: &[&Path]) -> ringfence::machine::Machine {
    let mut machine = machine(script);
    (machine.nic, machine.hba) = ("none".into(), hba.into());
    machine.disks = images.iter().map(|path| path.to_path_buf().into()).collect();
    machine
}

fn sum(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

/// Checks that reads return the image's data, and that writes reach the image, in both rings and
/// across a restart.
fn has_what_its_image_has((hba, driver, model): (&str, &str, &str)) {
    let directory = TempDir::new().unwrap();
    let path = image(directory.path(), "a.img", 4096);
    let before = fs::read(&path).unwrap();
    let script = format!(
        "lsblk; blkread disk0 0 4096; blkwrite disk0 8 100 1; ring {driver} 0; blkwrite disk0 1000 100 2; \
         ring {driver} 1; kill {driver}; blkwrite disk0 3000 1096 3; blkread disk0 8 100; \
         blkread disk0 1000 100; blkread disk0 3000 1096; blkread disk0 200 500"
    );
    let text = boot_well(&with_disks_behind(hba, &script, &[&path]));
    let after = fs::read(&path).unwrap();
    let [disk] = text.disks()[..] else { panic!("{text}") };
    assert_eq!((&*disk.name, &*disk.driver, disk.place, disk.blocks), ("disk0", driver, None, 4096));
    assert_eq!((disk.block_bytes, &*disk.model), (512, model));
    assert_eq!(text.restarts(driver), 1, "{text}");
    assert_eq!(text.data()[0], (2097152, sum(&before)));
    for (first, count) in [(8, 100), (1000, 100), (3000, 1096)] {
        let written = sum(&after[first * 512..(first + count) * 512]);
        // The checksum is printed once for the write and once for the read.
        assert_eq!(text.matches(&written).count(), 2, "blocks from {first}: {text}");
    }
    assert_says(&text, &sum(&before[200 * 512..700 * 512]));
    for untouched in [0..8, 108..1000, 1100..3000] {
        let bytes = untouched.start * 512..untouched.end * 512;
        assert!(before[bytes.clone()] == after[bytes], "blocks {untouched:?}");
    }
}

#[test]
fn a_virtio_disk_has_what_its_image_has() {
    has_what_its_image_has(DEVICES[0]);
}

#[test]
fn an_ide_disk_has_what_its_image_has() {
    has_what_its_image_has(DEVICES[1]);
}

/// Ends a driver again and again while blocks are written and compared, and checks that no block is
/// lost.
fn loses_no_block((hba, driver, _): (&str, &str, &str)) {
    let directory = TempDir::new().unwrap();
    let path = image(directory.path(), "a.img", 32768);
    let kills = format!("kill {driver}; sleep 100; ").repeat(8);
    let script = format!(
        "limits restarts 1000; limits restart-wait-ms 0; repeat 8 blkcheck disk0 0 32768 7 &; sleep 50; {kills} \
         echo enough; wait; blkverify disk0 0 32768 7; lsmod -v"
    );
    let text = boot_well(&with_disks_behind(hba, &script, &[&path]));
    let (before, after) = text.split_once("ringfence> echo enough").unwrap();
    assert_eq!(before.matches(&format!("{driver}: restarted in ring 1")).count(), 8, "{text}");
    assert!(after.matches("blocks were written and read back").count() > 0, "it was over before: {text}");
    assert_says(after, "32768 blocks are as they were written");
}

#[test]
fn no_block_is_lost_when_drivers_end() {
    loses_no_block(DEVICES[0]);
}

#[test]
#[ignore = "long: `make test-all` runs it"]
fn no_block_is_lost_when_drivers_of_ide_end() {
    loses_no_block(DEVICES[1]);
}

/// Each channel has a driver instance of its own, which has only the ports of its channel.
#[test]
fn each_channel_has_a_driver() {
    let directory = TempDir::new().unwrap();
    let images = ["a.img", "b.img"].map(|name| image(directory.path(), name, 2048));
    let script = "lsmod; blkcopy disk0 0 disk1 8 1000; blkread disk0 0 1000; blkread disk1 8 1000; vmmap ide; \
                  vmmap ide.2; kill ide; blkread disk1 8 1000; irqs; rmmod ide; fails blkread disk0 0 1; insmod ide; \
                  lsmod; insmod ide";
    let run = boot_badly(&with_disks_behind("isa-ide", script, &[&images[0], &images[1]]), 1);
    let text = run.to_string();
    let has = |name: &str, device: &str| {
        let row = |line: &&str| line.starts_with(&format!("{name} ")) && line.contains(&format!(" {device} "));
        text.lines().filter(row).count()
    };
    assert_eq!((has("ide", "ide0"), has("ide.2", "ide1")), (2, 2), "{text}");
    for said in [
        "device ide0, it reaches no memory by itself",
        "ports  0x1f0 to 0x1f7",
        "ports  0x3f6 to 0x3f6",
        "device ide1, it reaches no memory by itself",
        "ports  0x170 to 0x177",
        "ports  0x376 to 0x376",
        "ide.2: loaded into ring 1 for ide1",
    ] {
        assert_says(&text, said);
    }
    let copied = sum(&fs::read(&images[0]).unwrap()[..512_000]);
    // The data is copied, read from both disks, and read after a restart.
    assert_eq!(text.matches(&copied).count(), 4, "{text}");
    assert_says(&text, "error: ide: no free device that it drives");
}

/// A driver that uses a disk and offers another one. Data written through it is in the right place,
/// even if either driver is ended, and in both rings. Blocks below its part of the disk are never
/// touched.
#[test]
fn a_driver_uses_a_disk() {
    const FIRST: usize = 2048 * 512;
    let directory = TempDir::new().unwrap();
    let path = image(directory.path(), "a.img", 8192);
    let before = fs::read(&path).unwrap();
    for (hba, driver) in [("virtio-blk-pci", "virtio-blk"), ("isa-ide", "ide"), ("virtio-scsi-pci", "virtio-scsi")] {
        let script = format!(
            "limits restart-wait-ms 0; lsblk; insmod slice; lsblk; blkread disk1 0 6144; blkcheck disk1 0 6000 1; \
             ring slice 0; blkcheck disk1 100 3000 2; ring slice 1; kill slice; blkcheck disk1 0 6144 3; \
             kill {driver}; blkverify disk1 0 6144 3; blkwrite disk1 0 6144 4 &; sleep 5; kill slice; sleep 5; \
             kill {driver}; wait; blkverify disk1 0 6144 4; fails blkread disk1 6144 1; lsmod; rmmod slice; lsblk"
        );
        fs::write(&path, &before).unwrap();
        let run = boot_well(&with_disks_behind(hba, &script, &[&path]));
        let after = fs::read(&path).unwrap();
        assert_eq!(run.data()[0], (6144 * 512, sum(&before[FIRST..])), "{run}");
        assert!(after[..FIRST] == before[..FIRST], "what is below was written");
        assert!(after[FIRST..] != before[FIRST..], "nothing was written");
        let disks: Vec<(&str, u64)> = run.disks().iter().map(|disk| (&*disk.name, disk.blocks)).collect();
        assert_eq!(disks, [("disk0", 8192), ("disk0", 8192), ("disk1", 6144), ("disk0", 8192)]);
        assert_eq!((run.restarts("slice"), run.restarts(driver)), (2, 2), "{run}");
        assert!(serves(run.drivers("slice")[0]), "{run}");
    }
}

/// The disk that a driver uses goes away: the driver's requests fail, and no task waits for ever.
#[test]
fn a_disk_that_is_used_can_go() {
    let directory = TempDir::new().unwrap();
    let path = image(directory.path(), "a.img", 8192);
    let script = "insmod slice; blkread disk1 0 8; rmmod virtio-blk; fails blkread disk1 0 8; lsmod; rmmod slice; \
                  insmod slice; insmod virtio-blk; insmod slice; blkread disk1 0 8; mem";
    let run = boot_badly(&with_disks(script, &[&path]), 1);
    assert!(serves(run.drivers("slice")[0]), "{run}");
    assert_eq!(run.errors()[0].0, "insmod slice", "{run}");
    assert_eq!(run.data().len(), 2, "{run}");
}

/// A device may wait for the rest of a failed command, so it is reset. The next command must find
/// it set up as before.
#[test]
fn an_ide_disk_that_fails_a_command_takes_the_next_one() {
    let directory = TempDir::new().unwrap();
    let path = image(directory.path(), "a.img", 4096);
    let failing = directory.path().join("failing");
    let fail = |event, sector| format!("[inject-error]\nevent = \"{event}\"\nerrno = \"5\"\nsector = \"{sector}\"\n");
    fs::write(&failing, fail("read_aio", 100) + &fail("write_aio", 200)).unwrap();
    let script = "fails blkread disk0 0 200; blkread disk0 101 99; fails blkcopy disk0 0 disk0 190 20; \
                  blkcopy disk0 8 disk0 300 60; blkread disk0 300 60; lsmod";
    let mut machine = machine(script);
    machine.hba = "isa-ide".into();
    (machine.disks, machine.disk_errors) = (vec![path.clone().into()], Some(failing));
    let text = boot_well(&machine);
    assert_eq!(text.matches("ide| warning: block").count(), 2, "{text}");
    assert_eq!(text.matches("as expected: the device failed").count(), 2, "{text}");
    let bytes = fs::read(&path).unwrap();
    assert_says(&text, &sum(&bytes[101 * 512..200 * 512]));
    let copied = &bytes[8 * 512..68 * 512];
    assert!(bytes[300 * 512..360 * 512] == *copied);
    assert_eq!(text.matches(&sum(copied)).count(), 2, "{text}");
    let [ide] = text.drivers("ide")[..] else { panic!("{text}") };
    assert_eq!(ide.restarts, 0, "{text}");
}

/// Users of disks need not know the class of a disk.
#[test]
fn disks_of_both_classes_are_side_by_side() {
    let directory = TempDir::new().unwrap();
    let [scsi, block] = ["scsi.img", "block.img"].map(|name| image(directory.path(), name, 2048));
    let mut machine =
        machine("lsblk; blkcheck disk0 0 1000 1; blkcopy disk0 0 disk1 8 1000; blkcheck disk1 1500 8 2; lsblk");
    machine.nic = "none".into();
    machine.disks = vec![scsi.clone().into()];
    let drive = format!("if=none,id=other,format=raw,file={}", block.display());
    let device = "virtio-blk-pci,drive=other,disable-legacy=on,iommu_platform=on";
    machine.extra = ["-drive", &drive, "-device", device].map(Into::into).to_vec();
    let text = boot_well(&machine);
    let disks = text.disks();
    assert_eq!(disks.len(), 4, "{text}");
    for driver in ["virtio-scsi", "virtio-blk"] {
        assert_eq!(disks.iter().filter(|disk| disk.driver == driver).count(), 2, "{text}");
    }
    assert_ne!(disks[0].name, disks[1].name, "{text}");
    assert_says(&text, "1000 blocks were written and read back");
    // Either disk may be disk0.
    let [scsi, block] = [scsi, block].map(|path| fs::read(path).unwrap());
    let copied = |from: &[u8], to: &[u8]| from[..512_000] == to[8 * 512..8 * 512 + 512_000];
    assert!(copied(&scsi, &block) || copied(&block, &scsi), "the copy is not what it was made of");
}

#[test]
fn what_cannot_be_done_is_said() {
    let directory = TempDir::new().unwrap();
    let path = image(directory.path(), "a.img", 64);
    let script = "blkread disk0 0 64; fails blkwrite disk0 0 8 1; fails blkread disk0 60 8; blkread disk1 0 1";
    let mut machine = with_disks(script, &[]);
    machine.disks = vec![Disk { path, read_only: true }];
    let text = boot_badly(&machine, 1);
    assert_says(&text, "the disk cannot be written");
    assert_says(&text, "disk0 has only 64 blocks");
    assert_says(&text, "there is no disk 'disk1'");
}

/// A driver that is unloaded takes its disk with it, and its successor brings the disk back.
#[test]
fn a_disk_goes_with_its_driver() {
    let directory = TempDir::new().unwrap();
    let path = image(directory.path(), "a.img", 64);
    let script = "rmmod virtio-blk; lsblk; fails blkread disk0 0 1; insmod virtio-blk; blkread disk0 0 64; insmod virtio-blk --ring 0";
    let text = boot_badly(&with_disks(script, &[&path]), 1);
    assert_says(&text, "there is no disk 'disk0'");
    assert_says(&text, &sum(&fs::read(directory.path().join("a.img")).unwrap()));
}
