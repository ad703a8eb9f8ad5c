//! Real blocks through the virtio-scsi driver, in both rings, compared with the bytes of the image
//! file.

use ringfence::machine::{Disk, End};
use ringfence_link::event::Event;
use ringfence_tests::{assert_says, boot, boot_badly, boot_well, machine, serves, system, unfenced};
use sha2::{Digest, Sha256};
use std::path::PathBuf;
use tempfile::TempDir;

const BLOCK: usize = 512;

/// Makes a disk image of `blocks` blocks, all different.
fn image(directory: &TempDir, name: &str, blocks: usize) -> PathBuf {
    let path = directory.path().join(name);
    let words = (0..(blocks * BLOCK / 8) as u64).map(|word| word.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    std::fs::write(&path, words.flat_map(u64::to_le_bytes).collect::<Vec<u8>>()).unwrap();
    path
}

/// Returns the length in bytes and the SHA-256 of `count` blocks from `lba`, as the kernel reports
/// them.
fn sum(path: &PathBuf, lba: usize, count: usize) -> (u64, String) {
    let bytes = std::fs::read(path).unwrap();
    let part = &bytes[lba * BLOCK..(lba + count) * BLOCK];
    (part.len() as u64, Sha256::digest(part).iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Writes a copy of rogue-scsi with one of its flags set.
fn rogue_scsi(directory: &TempDir, flag: &[u8; 8]) -> PathBuf {
    let module = system().modules.iter().find(|module| module.name == "rogue-scsi").expect("the module is built");
    let mut bytes = std::fs::read(&module.packed).unwrap();
    let at = bytes.windows(8).position(|window| window == flag).expect("it is there");
    bytes[at + 8] = 1;
    let path = directory.path().join("rogue-scsi.rfm");
    std::fs::write(&path, bytes).unwrap();
    path
}

/// The kernel's messages about a driver's units leave room in the log for others.
#[test]
fn a_host_of_many_bad_units_does_not_fill_the_log() {
    let directory = TempDir::new().unwrap();
    let mut machine = machine("insmod rogue-scsi; lsblk; echo the log:; dmesg");
    machine.contents.modules.push(rogue_scsi(&directory, b"is-odd:_"));
    let text = boot_well(&machine);
    let (_, log) = text.split_once("\nthe log:\n").expect("it is printed");
    assert_says(log, "pci: ");
    assert_says(log, "virtio-scsi: loaded into ring 1");
    assert_says(log, "warning: rogue-scsi: target 0, unit 0: blocks of 3 bytes are not supported");
    assert_says(log, "warning: rogue-scsi: 16 errors; the rest of its units is left out");
    let count = log.lines().filter(|line| line.contains("rogue-scsi")).count();
    assert_eq!(count, 17, "{log}");
}

/// The driver prints a line with each command. The console shows one row per second, and twenty
/// more that were saved up; the log has the last 64.
#[test]
fn what_a_driver_says_too_fast_to_be_read_is_not_shown() {
    let mut machine =
        machine("limits console-rows 1; insmod rogue-scsi; repeat 100 blkread disk0 0 1; echo the log:; dmesg");
    (machine.nic, machine.hba) = ("none".into(), "none".into());
    let text = boot_well(&machine);
    let (console, log) = text.split_once("\nthe log:\n").expect("it is printed");
    let count = |text: &str| text.lines().filter(|line| line.ends_with("rogue-scsi| reads block 0")).count();
    assert!((15..60).contains(&count(console)), "{console}");
    assert_says(console, "rogue-scsi: says more than can be read; it is not shown for now");
    assert_eq!(count(log), 64, "{log}");
}

/// An adapter whose driver does not answer about its units delays only itself.
#[test]
fn the_search_for_units_has_an_end() {
    let directory = TempDir::new().unwrap();
    let path = rogue_scsi(&directory, b"is-mute:");
    let mut machine =
        machine("limits scan-ms 300; insmod rogue-scsi; insmod virtio-scsi; lsblk; blkread disk0 0 1; lsmod");
    machine.disks = vec![image(&directory, "disk.img", 8).into()];
    machine.contents.autoload = false;
    // The module replaces the project's.
    machine.contents.modules.push(path);
    let text = boot_well(&machine);
    assert_says(&text, "rogue-scsi: not all units were found within 300 ms");
    assert_says(&text, "disk0    virtio-scsi           0    0          8    512  QEMU QEMU HARDDISK");
    assert!(serves(text.drivers("rogue-scsi")[0]), "{text}");
}

#[test]
fn reads_are_the_images_bytes_in_both_rings() {
    let directory = TempDir::new().unwrap();
    let path = image(&directory, "disk.img", 8192);
    let mut machine = machine(
        "lsblk; blkread disk0 0 1; blkread disk0 100 3000; ring virtio-scsi 0; blkread disk0 8191 1; \
         blkread disk0 0 8192",
    );
    machine.disks = vec![path.clone().into()];
    let text = boot_well(&machine);
    let [disk] = text.disks()[..] else { panic!("{text}") };
    assert_eq!((&*disk.name, &*disk.driver, disk.place), ("disk0", "virtio-scsi", Some((0, 0))));
    assert_eq!((disk.blocks, disk.block_bytes, &*disk.model), (8192, 512, "QEMU QEMU HARDDISK 2.5+"));
    let sums = [(0, 1), (100, 3000), (8191, 1), (0, 8192)].map(|(lba, count)| sum(&path, lba, count));
    assert_eq!(text.data(), sums);
}

#[test]
fn writes_and_copies_reach_the_images() {
    let directory = TempDir::new().unwrap();
    let (first, second) = (image(&directory, "first.img", 4096), image(&directory, "second.img", 4096));
    let before = std::fs::read(&first).unwrap();
    let mut machine = machine(
        "blkwrite disk0 1000 700 42; ring virtio-scsi 0; blkwrite disk0 2000 300 43; ring virtio-scsi 1; \
         blkcopy disk0 900 disk1 5 1500",
    );
    machine.disks = vec![first.clone().into(), second.clone().into()];
    let text = boot_well(&machine);
    assert_eq!(text.data(), [sum(&first, 1000, 700), sum(&first, 2000, 300), sum(&second, 5, 1500)]);
    assert_eq!(sum(&first, 900, 1500), sum(&second, 5, 1500));
    // The blocks around the written ones are unchanged, and the written ones have changed.
    let after = std::fs::read(&first).unwrap();
    assert!(after[..1000 * BLOCK] == before[..1000 * BLOCK] && after[2300 * BLOCK..] == before[2300 * BLOCK..]);
    assert!(after[1000 * BLOCK..1700 * BLOCK] != before[1000 * BLOCK..1700 * BLOCK]);
}

#[test]
fn a_driver_changes_rings_in_the_middle_of_a_copy() {
    let directory = TempDir::new().unwrap();
    let (first, second) = (image(&directory, "first.img", 65536), directory.path().join("second.img"));
    std::fs::write(&second, vec![0; 65536 * BLOCK]).unwrap();
    let mut machine = machine(
        "lsblk; blkcopy disk0 0 disk1 0 65536 &; repeat 100 ring virtio-scsi 0, sleep 1, ring virtio-scsi 1, sleep 1; \
         wait",
    );
    machine.disks = vec![first.clone().into(), second.clone().into()];
    let text = boot_well(&machine);
    assert_eq!(text.data(), [sum(&first, 0, 65536)]);
    assert!(std::fs::read(&first).unwrap() == std::fs::read(&second).unwrap(), "the copy differs");
    // The copy was still under way when the ring had changed many times.
    let before_end = text.events().iter().take_while(|event| !matches!(event, Event::Data { .. }));
    let changes = before_end.filter(|event| matches!(event, Event::RingChanged { .. })).count();
    assert!(changes > 20, "{text}");
}

#[test]
fn mistakes_in_commands_about_disks_are_said() {
    let directory = TempDir::new().unwrap();
    let mut machine = machine("blkread disk0 4095 2; blkread disk7 0 1; blkread disk0 x 1");
    machine.disks = vec![image(&directory, "disk.img", 4096).into()];
    let run = boot_badly(&machine, 3);
    assert_says(&run.to_string(), "error: disk0 has only 4096 blocks");
    assert_says(&run.to_string(), "error: there is no disk 'disk7'");
    assert_says(&run.to_string(), "error: the first block must be a number, not 'x'; usage: blkread DISK LBA COUNT");
}

/// Returns an empty qcow2 image (QEMU, docs/interop/qcow2.txt, version 2) of 1 MiB. It has four
/// clusters of 64 KiB: the header, the table of reference counts, a block of reference counts, and
/// the table of clusters.
fn empty_qcow2() -> Vec<u8> {
    const CLUSTER: usize = 1 << 16;
    let mut image = vec![0; 4 * CLUSTER];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"QFI\xfb");
    put(4, &2u32.to_be_bytes());
    put(20, &16u32.to_be_bytes());
    put(24, &(1u64 << 20).to_be_bytes());
    put(36, &1u32.to_be_bytes());
    put(40, &(3 * CLUSTER as u64).to_be_bytes());
    put(48, &(CLUSTER as u64).to_be_bytes());
    put(56, &1u32.to_be_bytes());
    put(CLUSTER, &(2 * CLUSTER as u64).to_be_bytes());
    for cluster in 0..4 {
        put(2 * CLUSTER + 2 * cluster, &1u16.to_be_bytes());
    }
    image
}

/// As raw bytes, the image would have 512 blocks, and the first write would destroy it.
#[test]
fn an_image_is_opened_as_what_it_is() {
    let folder = TempDir::new().unwrap();
    // A name as users choose them.
    let path = folder.path().join("a disk, with: all.img");
    std::fs::write(&path, empty_qcow2()).unwrap();
    let script = "sleep 300; lsblk; blkwrite disk0 0 8 1; blkverify disk0 0 8 1";
    let mut machine = machine(script);
    machine.disks = vec![path.clone().into()];
    let text = boot_well(&machine);
    assert_eq!(text.disks()[0].blocks, 2048, "{text}");
    assert_eq!(std::fs::read(&path).unwrap()[..4], *b"QFI\xfb");
}

#[test]
fn a_disk_that_is_only_for_reading_is_not_written() {
    let folder = TempDir::new().unwrap();
    let path = image(&folder, "disk.img", 64);
    let before = sum(&path, 0, 64);
    let mut machine = machine("blkread disk0 0 8; blkwrite disk0 0 8 1");
    machine.disks = vec![Disk { path: path.clone(), read_only: true }];
    let run = boot_badly(&machine, 1);
    assert_eq!(sum(&path, 0, 64), before, "{run}");
}

/// More commands at once than there is memory for their buffers. They wait, or are refused with the
/// reason.
#[test]
fn commands_without_room_are_refused() {
    let many = "blkread disk0 0 4096 &; ".repeat(60);
    let mut machine = machine(&format!("blkread disk0 0 1; {many}wait; blkread disk0 0 1; echo over"));
    machine.scratch = true;
    let run = boot(&machine);
    assert!([End::Done, End::CommandFailed].contains(&run.end()), "{run}");
    let errors = run.errors();
    assert!(errors.iter().all(|(_, error)| error.starts_with("out of memory: ")), "{run}");
    // Commands that were not refused succeeded, and so did the command after them.
    let read = |len: u64| run.data().iter().filter(|(bytes, _)| *bytes == len).count();
    assert_eq!(read(2097152) + errors.len(), 60, "{run}");
    assert_eq!(read(512), 2, "{run}");
    assert!(run.console().iter().any(|line| line == "over"));
}

/// The driver uses a queue at the size that the device gives it.
#[test]
fn a_small_queue_will_do() {
    let mut machine = machine("blkcheck disk0 0 64 1");
    machine.scratch = true;
    machine.hba = "virtio-scsi-pci,virtqueue_size=64".into();
    boot_well(&machine);
}

/// Commands that resets cut short are sent again, also if one command meets many: nothing is lost,
/// and no driver is ended. The adapters of a parallel bus reset all of it.
#[test]
fn a_disk_that_is_reset_again_and_again_loses_nothing() {
    const RESETS: usize = 15;
    for hba in ["virtio-scsi-pci", "lsi53c895a", "am53c974"] {
        let driver = hba.trim_end_matches("-pci");
        let directory = TempDir::new().unwrap();
        let path = image(&directory, "disk.img", 8192);
        let mut machine = machine(&format!(
            "lsblk; blkcheck disk0 0 8192 1 &; repeat {RESETS} blkreset disk0; repeat {RESETS} blkreset disk0, sleep 2; \
             wait; blkread disk0 0 8192; lsmod"
        ));
        (machine.hba, machine.disks) = (hba.into(), vec![path.clone().into()]);
        let text = boot_well(&machine);
        assert_eq!(text.data(), [sum(&path, 0, 8192)], "{hba}");
        let resets = text.matches("disk0 was reset; what it had not done is sent again").count();
        assert_eq!(resets, 2 * RESETS, "{hba}: {text}");
        // At least one reset came while the disk was written.
        let (before, _) = text.split_once("8192 blocks were written and read back").expect("it was checked");
        assert!(before.contains("disk0 was reset"), "{hba}: {text}");
        assert!(text.faults(driver).is_empty(), "{hba}: {text}");
    }
}

/// The driver of a disk that takes longer than a command may is asked to abort the command or to
/// reset the disk. The driver goes on, and so does the disk beside.
#[test]
fn a_disk_that_is_too_slow_ends_no_driver() {
    for hba in ["virtio-scsi-pci", "lsi53c895a"] {
        let driver = hba.trim_end_matches("-pci");
        let directory = TempDir::new().unwrap();
        let (path, slow) = (image(&directory, "disk.img", 64), image(&directory, "slow.img", 64));
        let mut machine =
            machine("limits command-ms 200; lsblk; blkread disk1 0 1; blkread disk1 1 1; blkread disk0 0 8; lsmod");
        (machine.hba, machine.disks) = (hba.into(), vec![path.clone().into()]);
        // QEMU carries out one command a second, once it has carried out some.
        let drive = format!("if=none,id=slow,format=raw,throttling.iops-total=1,file={}", slow.display());
        machine.extra = ["-drive", &drive, "-device", "scsi-hd,drive=slow,bus=hba0.0,scsi-id=3"].map(Into::into).into();
        let text = boot(&machine);
        // A reset has QEMU complete the command at once, so that it may succeed in the end.
        let end = if text.errors().is_empty() { End::Done } else { End::CommandFailed };
        assert!(text.end() == end && text.errors().len() <= 2, "{text}");
        // The driver of the parallel bus can abort a command. That of virtio can only reset the
        // unit.
        let asked = if hba == "lsi53c895a" { "abort it" } else { "reset the unit" };
        assert_says(&text, &format!("a SCSI command is not done after 200 ms; it is asked to {asked}"));
        assert_eq!(text.data().last(), Some(&sum(&path, 0, 8)), "{hba}");
        assert!(text.faults(driver).is_empty(), "{hba}: {text}");
        let [state] = text.drivers(driver)[..] else { panic!("{text}") };
        assert!(serves(state), "{hba}: {text}");
    }
}

/// A disk whose driver cannot reset it says so.
#[test]
fn a_disk_that_cannot_be_reset_says_so() {
    let directory = TempDir::new().unwrap();
    let mut machine = machine("lsblk; blkreset disk0; blkreset disk7");
    (machine.hba, machine.disks) = ("virtio-blk-pci".into(), vec![image(&directory, "disk.img", 8).into()]);
    let text = boot_badly(&machine, 2);
    assert_says(&text, "error: its driver cannot reset it");
    assert_says(&text, "error: there is no disk 'disk7'; 'lsblk' lists them");
}

/// Each unit that is found and not used has a line with the reason.
#[test]
fn what_is_no_disk_is_said_once() {
    let directory = TempDir::new().unwrap();
    let drive = |id: &str| {
        let path = image(&directory, id, 64);
        ["-drive".into(), format!("if=none,id={id},format=raw,readonly=on,file={}", path.display()).into()]
    };
    let device = |text: &str| ["-device".into(), text.into()];
    let mut machine = machine("lsblk; rescan; lsblk");
    machine.extra = [
        drive("cd"),
        device("scsi-cd,drive=cd,bus=hba0.0,scsi-id=3"),
        drive("far"),
        device("scsi-hd,drive=far,bus=hba0.0,scsi-id=4,lun=300"),
    ]
    .concat();
    let text = boot_well(&machine);
    for why in [
        "target 3, unit 0 is not used: it is no disk but a CD or DVD drive (QEMU QEMU CD-ROM)",
        "target 4, unit 300 is not used: the adapter has units 0 to 255",
    ] {
        assert_eq!(text.matches(why).count(), 1, "{text}");
    }
}

#[test]
fn an_adapter_of_before_virtio_1_is_said() {
    let mut machine = unfenced(machine("lsmod"));
    machine.hba = "virtio-scsi-pci,disable-modern=on".into();
    let text = boot_well(&machine);
    assert_says(
        &text,
        "virtio-scsi| error: the device is of before virtio 1.0 (legacy), which this driver does not speak",
    );
}

/// A disk's name is not wider than its column, and has only printable characters.
#[test]
fn a_disks_words_stay_in_their_column() {
    let directory = TempDir::new().unwrap();
    let mut machine = machine("lsblk");
    let path = image(&directory, "disk.img", 64);
    let device = "scsi-hd,drive=words,bus=hba0.0,scsi-id=7,vendor=\x1b[31mVEN,product=PRODUCT\rOF16\nXYZ,ver=\x1b[2J";
    machine.extra = vec![
        "-drive".into(),
        format!("if=none,id=words,format=raw,file={}", path.display()).into(),
        "-device".into(),
        device.into(),
    ];
    let text = boot_well(&machine);
    assert_says(&text, "disk0    virtio-scsi           7    0         64    512  ?[31mVEN PRODUCT?OF16");
    assert!(!text.contains('\x1b') && !text.contains('\r'), "{text:?}");
    assert!(text.lines().filter(|line| line.starts_with("disk0 ")).all(|line| line.len() < 80), "{text}");
}
