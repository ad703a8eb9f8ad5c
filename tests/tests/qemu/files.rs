//! Filesystems: a driver that uses a disk, above a driver that has it.

use ringfence::images::{Fat, partitioned, tool_well};
use ringfence::machine::{End, Machine};
use ringfence_tests::filesystem::{assert_as_after_a_power_cut, assert_clean, ext, fat};
use ringfence_tests::{assert_fault, assert_intact, assert_says, boot, boot_badly, boot_well, machine, system};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

/// Returns a machine that runs `script`, with this image as its disk.
fn with_image(script: &str, path: &str) -> Machine {
    let mut machine = machine(script);
    machine.nic = "none".into();
    machine.disks = vec![std::path::PathBuf::from(path).into()];
    machine
}

/// Bytes without a pattern that a filesystem or a copy could get right by chance.
fn noise(len_bytes: usize, seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..len_bytes).map(|_| random.u8(..)).collect()
}

fn sum(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

/// Writes files with the host's tools and reads them here, writes files here and reads them with
/// the host's tools, in both rings.
fn agrees_with_the_hosts_tools(kib: u64, bits: u32) {
    let directory = TempDir::new().unwrap();
    let image = fat(directory.path(), kib, bits);
    let content = noise(200_123, bits.into());
    image.put("big", &content).unwrap();
    image.put("A Long Name.txt", b"short\n").unwrap();
    let script = "mount disk0 /mnt; mount; ls -l /mnt; cat \"/mnt/A Long Name.txt\"; sha256sum /mnt/big; mkdir /mnt/d; cp /mnt/big /mnt/d; \
                  ring fat 0; sha256sum /mnt/d/big; mkdir /mnt/d/e; cp /mnt/d/big /mnt/d/e/Grüße; ring fat 1; \
                  mv /mnt/d/e/Grüße /mnt/moved; rm /mnt/d/big; cp /mnt/moved /mnt/again; rm /mnt/again; \
                  ls /mnt/d; du /mnt; df; umount /mnt; mount";
    let text = boot_well(&with_image(script, image.path().unwrap()));
    assert_says(&text, &format!("disk0    FAT{bits}"));
    assert_says(&text, "A Long Name.txt");
    assert_says(&text, "short");
    let data: Vec<(u64, String)> = text.data();
    assert_eq!(data, vec![(200_123, sum(&content)); 2]);
    assert_says(&text, "400252 bytes in 3 files and 3 directories");
    assert_clean(&image);
    assert!(image.get("moved").unwrap() == content && image.get("big").unwrap() == content);
    assert_eq!(image.get("A Long Name.txt").unwrap(), b"short\n");
}

#[test]
fn a_small_fat_agrees_with_the_hosts_tools() {
    agrees_with_the_hosts_tools(1440, 12);
}

#[test]
fn a_middle_fat_agrees_with_the_hosts_tools() {
    agrees_with_the_hosts_tools(8 << 10, 16);
}

#[test]
fn a_large_fat_agrees_with_the_hosts_tools() {
    agrees_with_the_hosts_tools(40 << 10, 32);
}

/// Reloads are no ends: a copy goes on over them, and the filesystem is clean afterwards.
#[test]
fn reloads_in_the_middle_of_a_copy_leave_a_clean_filesystem() {
    let directory = TempDir::new().unwrap();
    let image = fat(directory.path(), 8 << 10, 16);
    let content = noise(1_000_000, 3);
    image.put("big", &content).unwrap();
    let mut script = String::from("limits reload-s 0; mount disk0 /mnt; cp /mnt/big /mnt/copy &; ");
    for round in 0..10 {
        script += &format!("sleep {}; reload fat; ", round * 5 % 11);
    }
    script += "wait; umount /mnt";
    let text = boot_well(&with_image(&script, image.path().unwrap()));
    assert_eq!(text.restarts("fat"), 0, "{text}");
    assert_clean(&image);
    assert!(image.get("copy").unwrap() == content);
}

/// Ends both drivers again and again while files are copied: a copy is whole, and its filesystem is
/// as after a power cut at worst.
#[test]
fn files_stay_open_while_both_drivers_are_ended() {
    let directory = TempDir::new().unwrap();
    let image = fat(directory.path(), 40 << 10, 32);
    let content = noise(1_500_000, 7);
    image.put("big", &content).unwrap();
    let mut script =
        String::from("limits restarts 1000; limits restart-wait-ms 0; mount disk0 /mnt; cp /mnt/big /mnt/copy &; ");
    for round in 0..30 {
        // A list waits until both drivers are there.
        let driver = if round % 5 == 4 { "virtio-scsi" } else { "fat" };
        script += &format!("mute ls /mnt; sleep {}; kill {driver}; ", round * 7 % 23);
    }
    script += "wait; sha256sum /mnt/copy; umount /mnt";
    let text = boot_well(&with_image(&script, image.path().unwrap()));
    assert_eq!(text.data(), [(1_500_000, sum(&content))]);
    assert_eq!((text.restarts("fat"), text.restarts("virtio-scsi")), (24, 6), "{text}");
    assert_as_after_a_power_cut(&image);
    assert!(image.get("copy").unwrap() == content);
}

/// A rename, a removal and a new directory whose driver is ended are done once, not twice.
#[test]
fn what_changes_names_is_done_once() {
    let directory = TempDir::new().unwrap();
    let image = fat(directory.path(), 8 << 10, 16);
    let content = noise(40_000, 3);
    image.put("a", &content).unwrap();
    let mut script = String::from("limits restarts 1000; limits restart-wait-ms 0; mount disk0 /mnt; ");
    for round in 0..20 {
        let (from, to) = if round % 2 == 0 { ("a", "b") } else { ("b", "a") };
        // The command begins, and its driver is ended before, amid or behind it.
        script += &format!("mv /mnt/{from} /mnt/{to} &; sleep {}; kill fat; wait; mute ls /mnt; ", round % 7);
        for command in ["mkdir", "rm"] {
            script += &format!("{command} /mnt/d{round} &; kill fat; wait; mute ls /mnt; ");
        }
    }
    script += "ls /mnt; sha256sum /mnt/a; umount /mnt";
    let text = boot_well(&with_image(&script, image.path().unwrap()));
    assert_eq!(text.data(), [(40_000, sum(&content))]);
    assert_eq!(text.restarts("fat"), 60, "{text}");
    assert_as_after_a_power_cut(&image);
    assert!(image.get("a").unwrap() == content);
}

#[test]
fn what_is_wrong_about_a_path_is_said() {
    let directory = TempDir::new().unwrap();
    let image = fat(directory.path(), 8 << 10, 16);
    for (name, content) in [("a", "a"), ("b", "ab"), ("c", "ab"), ("e", "ax")] {
        image.put(name, content.as_bytes()).unwrap();
    }
    let wrong = [
        ("cat /mnt/a", "/mnt/a: no filesystem is mounted there; 'mount' lists them"),
        ("mount disk7 /mnt", "there is no disk 'disk7'; 'lsblk' lists them"),
        ("mount disk0 /", "a filesystem is mounted below the root: /mnt, for example"),
        ("umount /mnt", "no filesystem is mounted at /mnt"),
    ];
    let wrong_mounted = [
        ("mount disk0 /other", "disk0 has the filesystem of fat already"),
        ("mount disk0 /mnt", "there is a filesystem at /mnt already"),
        ("cat /mnt/none", "/mnt/none: no such file or directory"),
        ("cat /mnt", "/mnt: is a directory"),
        ("ls /mnt/a/b", "/mnt/a/b: not a directory"),
        ("mkdir /mnt/a", "/mnt/a: there is one of this name already"),
        ("mkdir /mnt/x/y", "/mnt/x/y: no such file or directory"),
        ("mkdir /mnt/a:b", "/mnt/a:b: the filesystem cannot have such a name"),
        ("rm /mnt/none", "/mnt/none: no such file or directory"),
        ("rm /mnt", "/mnt: it is in use"),
        ("mv /mnt/d /mnt/d/e", "/mnt/d/e is /mnt/d itself, or inside"),
        ("rm /mnt/d", "/mnt/d: the directory is not empty"),
        ("cp /mnt/a /mnt/a", "a file cannot be copied onto itself"),
        // FAT does not tell the two apart.
        ("cp /mnt/a /mnt/A", "/mnt/A: it is in use"),
        ("blkwrite disk0 0 1 1", "disk0 is in use by fat"),
        ("cmp /mnt/b /mnt/e", "/mnt/b and /mnt/e differ, first at byte 1"),
        ("cmp /mnt/c /mnt/a", "/mnt/a ends at byte 1, and the other goes on"),
    ];
    let list = |wrong: &[(&str, &str)]| wrong.iter().map(|(command, _)| format!("{command}; ")).collect::<String>();
    let script = format!(
        "{}mount disk0 /mnt; mkdir /mnt/d; mkdir /mnt/d/f; cmp /mnt/b /mnt/c; {}umount /mnt",
        list(&wrong),
        list(&wrong_mounted)
    );
    let text = boot_badly(&with_image(&script, image.path().unwrap()), wrong.len() + wrong_mounted.len());
    let expected: Vec<(&str, &str)> = wrong.iter().chain(&wrong_mounted).copied().collect();
    assert_eq!(text.errors(), expected);
    assert_clean(&image);
    assert_eq!(image.get("a").unwrap(), b"a");
}

/// Of two that mount a disk at once, one has it; and nobody takes the name of an open file away.
#[test]
fn one_has_a_disk_and_its_files() {
    let directory = TempDir::new().unwrap();
    let image = fat(directory.path(), 8 << 10, 16);
    let content = noise(2 << 20, 2);
    image.put("big", &content).unwrap();
    let script = "mount disk0 /x &; mount disk0 /y &; wait; fails blkwrite disk0 0 1 1; mount; umount /x; umount /y; \
                  mount disk0 /m; sha256sum /m/big &; mv /m/big /m/small; rm /m/big; wait; truncate /m/big 100; \
                  truncate /m/big 5000; sha256sum /m/big; mv /m/big /m/small; umount /m";
    let text = boot_badly(&with_image(script, image.path().unwrap()), 4);
    let errors = text.errors();
    let refused = errors.iter().filter(|(line, _)| line.starts_with("mount "));
    assert_eq!(refused.count(), 1, "{text}");
    let open = errors.iter().filter(|(_, reason)| *reason == "/m/big: it is in use");
    assert_eq!(open.count(), 2, "{text}");
    let after = [&content[..100], &[0; 4900]].concat();
    assert_eq!(text.data(), [(2 << 20, sum(&content)), (5000, sum(&after))]);
    assert_clean(&image);
    assert!(image.get("small").unwrap() == after);
}

/// Data that was read is kept, even if the disk's driver ends. If data that was reported as written
/// is not on the disk, the next `sync` says so.
#[test]
fn the_kernel_keeps_blocks_of_a_filesystem() {
    let directory = TempDir::new().unwrap();
    let image = fat(directory.path(), 8 << 10, 16);
    image.put("a", b"content\n").unwrap();
    let script = "mount disk0 /mnt; cat /mnt/a; policy virtio-scsi stop; kill virtio-scsi; cat /mnt/a; \
                  cp /mnt/a /mnt/b; sync; umount -f /mnt";
    let text = boot_badly(&with_image(script, image.path().unwrap()), 2);
    assert_eq!(text.matches("\ncontent").count(), 2, "{text}");
    assert_says(&text, " bytes from block ");
    assert_eq!(text.errors()[1], ("sync", "/mnt: the disk failed"));
    assert_as_after_a_power_cut(&image);
}

/// The kernel frees cached blocks of disks if the memory is needed.
#[test]
fn the_kernel_gives_up_blocks_for_other_things() {
    let directory = TempDir::new().unwrap();
    let image = fat(directory.path(), 8 << 10, 16);
    let content = noise(3 << 20, 8);
    image.put("big", &content).unwrap();
    let mut machine = with_image("", image.path().unwrap());
    let (mut mounts, mut uses) = (String::new(), String::new());
    for number in 0..8 {
        let copy = directory.path().join(format!("{number}.img"));
        std::fs::copy(&image.0, &copy).unwrap();
        machine.disks.push(copy.into());
        mounts += &format!("mount disk{number} /m{number}; sha256sum /m{number}/big; ");
        uses += &format!("ls /m{number}; umount /m{number}; ");
    }
    machine.contents.exec = Some(format!("{mounts} mem; {uses} mem"));
    let text = boot_well(&machine);
    assert_eq!(text.data(), vec![(3 << 20, sum(&content)); 8]);
    assert_eq!(text.matches(" KiB of disk").count(), 8, "{text}");
    assert_says(&text, "cache     0 KiB of disk0: ");
}

/// A disk that a command writes to is not mounted meanwhile.
#[test]
fn a_disk_that_is_written_to_is_not_mounted() {
    let directory = TempDir::new().unwrap();
    let image = fat(directory.path(), 40 << 10, 32);
    let script = "blkwrite disk0 40000 30000 7 &; fails mount disk0 /mnt; wait; mount disk0 /mnt; blkread disk0 0 1; \
                  blkverify disk0 40000 30000 7; fails insmod slice; umount /mnt; insmod slice; fails mount disk0 /mnt; \
                  rmmod slice; mount disk0 /mnt; umount /mnt";
    let text = boot_well(&with_image(script, image.path().unwrap()));
    assert_says(&text, "as expected: a command writes to disk0 right now");
    assert_says(&text, "30000 blocks are as they were written");
    // Nor by two drivers, one of which knows nothing of the other's writes.
    assert_eq!(text.matches("init: refused: busy").count(), 2, "{text}");
    assert_clean(&image);
}

/// The end of the machine writes the data that a `umount` would have written.
#[test]
fn the_end_of_the_machine_writes_all() {
    let directory = TempDir::new().unwrap();
    let image = fat(directory.path(), 8 << 10, 16);
    let content = noise(1_000_000, 4);
    image.put("a", &content).unwrap();
    boot_well(&with_image("mount disk0 /mnt; cp /mnt/a /mnt/b", image.path().unwrap()));
    assert_clean(&image);
    assert!(image.get("b").unwrap() == content);
}

/// A filesystem that is only read stays as it is, to the last byte.
#[test]
fn a_read_only_mount_writes_nothing() {
    let directory = TempDir::new().unwrap();
    let image = fat(directory.path(), 8 << 10, 16);
    image.put("a", b"content\n").unwrap();
    let before = std::fs::read(image.path().unwrap()).unwrap();
    let script =
        "mount disk0 /mnt -o ro; cat /mnt/a; fails mkdir /mnt/d; fails rm /mnt/a; fails cp /mnt/a /mnt/b; umount /mnt";
    let text = boot_well(&with_image(script, image.path().unwrap()));
    assert_says(&text, "content");
    assert_eq!(text.matches("the filesystem cannot be written").count(), 3, "{text}");
    assert!(std::fs::read(image.path().unwrap()).unwrap() == before);
}

/// Unloading the driver under a mounted filesystem closes its files, and says so.
#[test]
fn a_filesystem_can_go_away() {
    let directory = TempDir::new().unwrap();
    let image = fat(directory.path(), 8 << 10, 16);
    image.put("big", &noise(1 << 20, 1)).unwrap();
    let script = "mount disk0 /mnt; policy fat stop; sha256sum /mnt/big &; sleep 1; kill fat; wait; cat /mnt/big; \
                  rmmod fat; mount; cat /mnt/big; mount disk0 /mnt; sha256sum /mnt/big; rmmod virtio-scsi; cat /mnt/big";
    let text = boot_badly(&with_image(script, image.path().unwrap()), 4);
    assert_fault(&text, "fat", "killed");
    let reasons: Vec<&str> = text.errors().into_iter().map(|(_, reason)| reason).collect();
    assert_eq!(reasons[..2], ["/mnt/big: the filesystem is gone"; 2]);
    assert_eq!(reasons[2], "/mnt/big: no filesystem is mounted there; 'mount' lists them");
    assert_eq!(reasons[3], "/mnt/big: the disk failed");
}

/// Reads the files that the host's tools have put into an ext filesystem, in both rings and over a
/// restart, and leaves every byte of the filesystem as it is.
fn ext_agrees_with_the_hosts_tools(kind: &str) {
    let directory = TempDir::new().unwrap();
    let content = directory.path().join("content");
    std::fs::create_dir_all(content.join("sub")).unwrap();
    let big = noise(700_001, 5);
    std::fs::write(content.join("big"), &big).unwrap();
    // A file with a hole. The crate does not read one as large as a whole indirect block of ext2.
    let hole = if kind == "ext4" { 3 << 20 } else { 200 << 10 };
    let holed = [vec![0; hole], b"end".to_vec()].concat();
    let mut file = std::fs::File::create(content.join("holed")).unwrap();
    std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(hole as u64)).unwrap();
    std::io::Write::write_all(&mut file, b"end").unwrap();
    std::os::unix::fs::symlink("sub/7", content.join("link")).unwrap();
    std::os::unix::fs::symlink("loop", content.join("loop")).unwrap();
    for number in 0..300 {
        std::fs::write(content.join(format!("sub/{number}")), format!("number {number}\n")).unwrap();
    }
    let image = ext(directory.path(), 16 << 10, kind, &content);
    let before = std::fs::read(&image).unwrap();
    let script = "mount disk0 /mnt -o ro; mount; sha256sum /mnt/big; sha256sum /mnt/holed; cat /mnt/link; cat /mnt/sub/299; \
                  ls -l /mnt; du /mnt/sub; fails cat /mnt/loop; fails mkdir /mnt/d; kill ext; sha256sum /mnt/big; ring ext 0; \
                  sha256sum /mnt/big; df; umount /mnt";
    let text = boot_well(&with_image(script, image.to_str().unwrap()));
    let expected = [(700_001, sum(&big)), (holed.len() as u64, sum(&holed))];
    let [big, holed] = &expected;
    assert_eq!(text.data(), [big, holed, big, big].map(|data| data.clone()));
    for line in ["number 7", "number 299", "3190 bytes in 300 files and 1 directories"] {
        assert_says(&text, line);
    }
    let link = text.lines().find(|line| line.ends_with(" link")).expect("the link");
    assert!(link.starts_with("l            5 "), "{link}");
    assert_says(&text, "as expected: /mnt/loop: the filesystem cannot do that");
    assert_says(&text, "as expected: /mnt/d: the filesystem cannot be written");
    assert_eq!(text.restarts("ext"), 1);
    assert!(std::fs::read(&image).unwrap() == before);
}

#[test]
fn ext2_agrees_with_the_hosts_tools() {
    ext_agrees_with_the_hosts_tools("ext2");
}

#[test]
fn ext4_agrees_with_the_hosts_tools() {
    ext_agrees_with_the_hosts_tools("ext4");
}

/// Finds partitions, uses one, and leaves the others and all between them as they are.
fn has_partitions(label: &str, line: &str) {
    const START: usize = 1 << 20;
    const LEN: usize = 8 << 20;
    let directory = TempDir::new().unwrap();
    let script = format!("label: {label}\n\nstart=2048, size=16384{line}\nstart=24576, size=4096\n");
    let path = partitioned(directory.path(), 20 << 10, &script).unwrap();
    let fat = fat(directory.path(), LEN as u64 >> 10, 16);
    fat.put("a", b"in a partition\n").unwrap();
    let mut disk = std::fs::read(&path).unwrap();
    disk[START..START + LEN].copy_from_slice(&std::fs::read(fat.path().unwrap()).unwrap());
    std::fs::write(&path, &disk).unwrap();
    let script = "lsblk; mount disk0p1 /mnt; cat /mnt/a; cp /mnt/a /mnt/b; fails blkwrite disk0 0 1 1; \
                  fails mount disk0 /other; fails insmod fat disk=disk0; fails blkread disk0p1 16384 1; kill fat; umount /mnt; \
                  fails mount disk0p3 /mnt; mount disk0p1 /mnt; cat /mnt/b; umount /mnt; lsblk";
    let text = boot_well(&with_image(script, path.to_str().unwrap()));
    let names: Vec<(&str, u64)> = text.disks().iter().map(|disk| (&*disk.name, disk.blocks)).collect();
    let expected = [("disk0", 40960), ("disk0p1", 16384), ("disk0p2", 4096)];
    assert_eq!(names, [expected, expected].concat());
    assert_eq!(text.matches("\nin a partition").count(), 2, "{text}");
    for reason in [
        "disk0 is in use by fat",
        "disk0 has the filesystem of fat already",
        "fat: init: refused: busy",
        "disk0p1 has only 16384 blocks",
        "there is no disk 'disk0p3'; 'lsblk' lists them",
    ] {
        assert_says(&text, &format!("as expected: {reason}"));
    }
    let after = std::fs::read(&path).unwrap();
    assert!(after[..START] == disk[..START] && after[START + LEN..] == disk[START + LEN..]);
    std::fs::write(fat.path().unwrap(), &after[START..START + LEN]).unwrap();
    assert_as_after_a_power_cut(&fat);
    assert_eq!(fat.get("b").unwrap(), b"in a partition\n");
}

/// Logical partitions, in a chain that begins in an extended one, are found and used.
#[test]
fn an_mbr_has_logical_partitions() {
    let directory = TempDir::new().unwrap();
    let script = "label: dos\n\nstart=2048, size=2048, type=83\nstart=4096, size=40000, type=5\n\
                  start=6144, size=16384, type=6\nstart=24576, size=4096, type=83\n";
    let path = partitioned(directory.path(), 24 << 10, script).unwrap();
    let image = fat(directory.path(), 8 << 10, 16);
    image.put("a", b"in a logical partition\n").unwrap();
    let mut disk = std::fs::read(&path).unwrap();
    disk[6144 << 9..(6144 + 16384) << 9].copy_from_slice(&std::fs::read(&image.0).unwrap());
    std::fs::write(&path, &disk).unwrap();
    let script = "lsblk; mount disk0p5 /mnt; cat /mnt/a; umount /mnt";
    let text = boot_well(&with_image(script, path.to_str().unwrap()));
    let names: Vec<(&str, u64)> = text.disks().iter().map(|disk| (&*disk.name, disk.blocks)).collect();
    assert_eq!(names, [("disk0", 49152), ("disk0p1", 2048), ("disk0p5", 16384), ("disk0p6", 4096)]);
    assert_says(&text, "in a logical partition");
}

#[test]
fn a_gpt_has_partitions() {
    has_partitions("gpt", ", name=\"first\"");
}

#[test]
fn an_mbr_has_partitions() {
    has_partitions("dos", ", type=6");
}

/// Damages a copy of an image in some places of its first `within` bytes, where its tables are, and
/// mostly in bytes that are in use.
fn damaged(image: &[u8], within: usize, seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut copy = image.to_vec();
    let used: Vec<usize> = (0..within).filter(|at| image[*at] != 0).collect();
    for _ in 0..random.usize(1..60) {
        let at = if random.u8(..4) > 0 { used[random.usize(..used.len())] } else { random.usize(..within) };
        copy[at] = if random.bool() { random.u8(..) } else { [0, 0xff][random.usize(..2)] };
    }
    // Sometimes a whole run is another's.
    if random.bool() {
        let (from, to, len_bytes) = (random.usize(..within), random.usize(..within), random.usize(1..2048));
        copy.copy_within(from..(from + len_bytes).min(within), to.min(within - 2048));
    }
    copy
}

/// A damaged filesystem gets an error, or ends its driver: never the kernel, and never the files of
/// another disk. `RINGFENCE_SEED` damages other bytes.
#[test]
fn a_damaged_filesystem_harms_nobody() {
    const EACH: u64 = 14;
    let first: u64 = std::env::var("RINGFENCE_SEED").map_or(0, |seed| seed.parse().expect("a number"));
    let directory = TempDir::new().unwrap();
    let good = fat(directory.path(), 8 << 10, 16);
    let content = noise(100_000, 1);
    good.put("big", &content).unwrap();
    let content_folder = directory.path().join("content");
    std::fs::create_dir_all(content_folder.join("d/e")).unwrap();
    std::fs::write(content_folder.join("big"), &content).unwrap();
    std::fs::write(content_folder.join("d/e/a"), "a").unwrap();
    let fat = {
        let image = fat(directory.path(), 1440, 12);
        image.put("big", &content).unwrap();
        tool_well("mmd", &["-i", image.path().unwrap(), "::d", "::d/e"]).unwrap();
        image.put("d/e/a", b"a").unwrap();
        std::fs::read(image.path().unwrap()).unwrap()
    };
    let ext = std::fs::read(ext(directory.path(), 2 << 10, "ext2", &content_folder)).unwrap();
    let mut machine = with_image("", good.path().unwrap());
    let mut script = String::from("limits restarts 2; limits restart-wait-ms 0; limits command-ms 600; ");
    script += "integrity; mount disk0 /good; ";
    for seed in 0..2 * EACH {
        let (format, bytes) = match seed % 2 {
            0 => ("fat", damaged(&fat, 24 << 10, first + seed)),
            _ => ("ext", damaged(&ext, 96 << 10, first + seed)),
        };
        let path = directory.path().join(format!("{seed}.img"));
        std::fs::write(&path, bytes).unwrap();
        machine.disks.push(path.into());
        let disk = seed + 1;
        let name = if format == "fat" { "fat.2" } else { "ext" };
        script += &format!("mount disk{disk} /m -t {format}; ls -l /m; du /m; cat /m/d/e/a; sha256sum /m/big; df; ");
        script += &format!("cp /m/big /m/new; mkdir /m/d/f; rm -r /m/d; umount /m; rmmod {name}; ");
    }
    script += "sha256sum /good/big; integrity; umount /good; mem";
    machine.contents.exec = Some(script);
    let text = boot(&machine);
    assert!([End::Done, End::CommandFailed].contains(&text.end()), "{text}");
    assert_intact(&text);
    assert_eq!(text.data().last(), Some(&(100_000, sum(&content))), "{text}");
    assert_clean(&good);
}

/// Output goes into files, and commands and modules come out of them.
#[test]
fn commands_use_files() {
    let directory = TempDir::new().unwrap();
    let image = fat(directory.path(), 8 << 10, 16);
    let modules = &ringfence_tests::system().modules;
    let watchman = modules.iter().find(|module| module.name == "watchman").unwrap();
    image.put("watchman.rfm", &std::fs::read(&watchman.packed).unwrap()).unwrap();
    image.put("other.rfm", &std::fs::read(&watchman.packed).unwrap()).unwrap();
    image.put("short.rfm", b"no module").unwrap();
    image.put("setup", b"# sets up\necho first > /mnt/made; mkdir /mnt/d\n\necho second >> /mnt/made\n").unwrap();
    image.put("wrong", b"echo begins\nrm /mnt/none\necho never\n").unwrap();
    image.put("loop", b"source /mnt/loop\n").unwrap();
    let script = "mount disk0 /mnt; echo one > /mnt/log; lsmod >> /mnt/log; echo two >> /mnt/log; ls /none > /mnt/empty; \
                  insmod /mnt/watchman.rfm place=disk; tell watchman rounds; kill watchman; insmod /mnt/other.rfm; \
                  insmod /mnt/short.rfm; insmod /mnt/none.rfm; source /mnt/setup; source /mnt/wrong; source /mnt/loop; \
                  echo a > /nowhere/a; umount /mnt";
    let text = boot_badly(&with_image(script, image.path().unwrap()), 7);
    let expected = [
        "/none: no filesystem is mounted there; 'mount' lists them",
        "/mnt/other.rfm: the module is called 'watchman': its file must be watchman.rfm",
        "/mnt/short.rfm: refused: not a well-formed ELF file",
        "/mnt/none.rfm: no such file or directory",
        "/mnt/wrong: rm /mnt/none: /mnt/none: no such file or directory",
        "more than 4 files of commands run one another",
        "/nowhere/a: no filesystem is mounted there; 'mount' lists them",
    ];
    for ((_, reason), expected) in text.errors().into_iter().zip(expected) {
        assert!(reason.ends_with(expected), "{reason}, not {expected}: {text}");
    }
    let log = String::from_utf8(image.get("log").unwrap()).unwrap();
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!((lines[0], lines.last().copied()), ("one", Some("two")));
    assert!(lines.iter().any(|line| line.starts_with("fat ")) && !text.contains("SLOT"), "{log}");
    assert!(image.get("empty").unwrap().is_empty());
    assert_eq!(image.get("made").unwrap(), b"first\nsecond\n");
    assert_says(&text, "all is well at the disk, after 0 rounds");
    assert_clean(&image);
}

/// Settings that `save` writes are in force after the next boot; an error there is named, and stops
/// nothing.
#[test]
fn settings_are_there_after_a_boot() {
    let directory = TempDir::new().unwrap();
    let image = fat(directory.path(), 1440, 12);
    let boot = |script: &str| {
        let mut machine = machine(script);
        machine.etc = Some(image.0.clone().into());
        machine
    };
    let first = "limits restarts 7; policy e1000 stop; policy virtio-scsi ring0-never; ip addr add 10.0.2.77/24 dev eth0 \
                 via 10.0.2.2; ip link set eth0 mtu 1400; save; fails save /nowhere/a";
    boot_well(&boot(first));
    let saved = String::from_utf8(image.get("settings").unwrap()).unwrap();
    let lines: Vec<&str> = saved.lines().skip(1).collect();
    let expected = [
        "limits restarts 7",
        "policy e1000 stop",
        "policy virtio-scsi ring0-never",
        "ip addr add 10.0.2.77/24 dev eth0 via 10.0.2.2",
        "ip link set eth0 mtu 1400",
    ];
    assert_eq!(lines, expected);
    let text = boot_well(&boot("limits restarts; policy e1000; fails ring virtio-scsi 0; ip; save; umount /etc"));
    assert_says(&text, "5 settings from /etc/settings");
    assert_says(&text, "restarts                  7  restarts before");
    assert_says(&text, "e1000: when it is ended it stays so");
    assert_says(&text, "eth0: 10.0.2.77/24 via e1000, router 10.0.2.2");
    assert_says(&text, ", static, MTU 1400");
    assert_eq!(image.get("settings").unwrap(), saved.as_bytes());
    assert_clean(&image);
    // From the ramdisk, then from the disk: the last one counts.
    let settings = directory.path().join("settings");
    std::fs::write(&settings, "limits restarts 9; limits nothing 3\n\nlimits reload-s 77\n").unwrap();
    image.put("settings", b"limits restarts 99999\nlimits restarts 8\n\xff").unwrap();
    let mut third = boot("limits restarts; limits reload-s; umount /etc");
    third.contents.etc_files = vec![("settings".into(), settings)];
    let text = boot_well(&third);
    for line in [
        "the ramdisk: limits nothing 3: there is no limit 'nothing'; 'limits' lists them",
        "2 settings from the ramdisk",
        "/etc/settings is no text",
        "restarts                  9  ",
        "reload-s                 77  ",
    ] {
        assert_says(&text, line);
    }
    image.put("settings", b"limits restarts 99999\nlimits restarts 8\n").unwrap();
    let text = boot_well(&boot("limits restarts"));
    assert_says(&text, "/etc/settings: limits restarts 99999: restarts must be 1 to 1000, not 99999");
    assert_says(&text, "restarts                  8  ");
    // A disk without a filesystem is named, and the boot goes on.
    std::fs::write(&image.0, vec![0; 1 << 20]).unwrap();
    assert_says(&boot_well(&boot("limits restarts")), "/etc: disk0 has no filesystem that is known; -t names one of");
}

/// A driver that lies about its files is ended for an impossible answer, and every command has an
/// end.
#[test]
fn a_hostile_filesystem_harms_nobody() {
    let directory = TempDir::new().unwrap();
    let image = fat(directory.path(), 8 << 10, 16);
    let before = std::fs::read(&image.0).unwrap();
    let faults = [
        ("more", "cat /m/file", "bad entry 0x10001 in the complete queue"),
        ("more", "ls /m", "bad entry 0xffffffffffffffff in the complete queue"),
        ("status", "ls /m", "bad entry 0x63 in the complete queue"),
        ("empty", "ls /m", "bad entry 0x18 in the complete queue"),
        ("long", "ls /m", "bad entry 0x20 in the complete queue"),
    ];
    let mut script = String::from("integrity; limits restarts 1000; limits restart-wait-ms 0; ");
    script += "mount disk0 /m -t rogue-fs; mount; df; ls -l /m; cat /m/file; ";
    for (lie, command, _) in faults {
        // A request whose driver is ended for its status is sent again, to a successor that tells
        // the truth.
        let fails = if lie == "status" { "" } else { "fails " };
        script += &format!("tell rogue-fs {lie}; {fails}{command}; ls /m; ");
    }
    // A driver that says that it only reads, or was told to, cannot write to its disk.
    script += "fails tell rogue-fs write; rmmod rogue-fs; insmod rogue-fs claims=off ro=yes; fails tell rogue-fs write; \
               rmmod rogue-fs; mount disk0 /m -t rogue-fs; fails du /m; tell rogue-fs dots; ls /m; fails du /m; tell rogue-fs huge; mute ls /m; fails du /m; tell rogue-fs names; ls /m; fails rm -r /m; tell rogue-fs none; integrity; umount /m; mem";
    let text = boot_well(&with_image(&script, image.path().unwrap()));
    let found: Vec<&str> = text.faults("rogue-fs").iter().map(|fault| &*fault.headline).collect();
    assert_eq!(found.len(), faults.len(), "{text}");
    for (found, (lie, command, expected)) in found.iter().zip(faults) {
        assert!(found.contains(expected), "{lie}, {command}: {found}");
    }
    assert_eq!(text.matches("gave an answer that cannot be").count(), faults.len() - 1, "{text}");
    assert_says(
        &text,
        "as expected: /m/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d is more than 32 directories deep",
    );
    for line in ["../up", "?[2J", "a?b", "... and more: a list ends after 4096 entries"] {
        assert_says(&text, line);
    }
    assert!(!text.contains('\u{1b}'), "{text}");
    assert_eq!(text.matches("as expected: rogue-fs: refused: the device does not answer").count(), 2, "{text}");
    assert!(std::fs::read(&image.0).unwrap() == before);
    assert_intact(&text);
}

/// A filesystem may have blocks put into the data of its requests, and from there onto the disk;
/// any other address is refused, in its own slot as well.
#[test]
fn blocks_go_into_the_requests_of_their_filesystem_and_nowhere_else() {
    let directory = TempDir::new().unwrap();
    let image = fat(directory.path(), 8 << 10, 16);
    let mut before = noise(1 << 20, 5);
    let kinds: &[&str] = if crate::segments::are_built() { &["paged", "segmented"] } else { &["paged"] };
    for kind in kinds {
        std::fs::write(&image.0, &before).unwrap();
        let script = format!(
            "integrity; lsblk; insmod rogue-fs claims=off --kind {kind}; tell rogue-fs reach; rmmod rogue-fs; integrity"
        );
        let text = boot_well(&with_image(&script, image.path().unwrap()));
        // The first two places are in the data.
        assert_says(&text, "rogue-fs: 196611 (0x30003)");
        assert!(text.faults("rogue-fs").is_empty(), "{text}");
        assert_intact(&text);
        before[16 * 512..][..4096].fill(0xa0);
        before[24 * 512..][..4096].fill(0xa1);
        assert!(std::fs::read(&image.0).unwrap() == before, "{kind}");
    }
}

/// A filesystem that asks for a block and returns from its upcall is polled when the block is
/// there, also if the kernel had it.
#[test]
fn a_filesystem_that_does_not_wait_is_told_of_its_blocks() {
    let directory = TempDir::new().unwrap();
    let image = fat(directory.path(), 8 << 10, 16);
    let mut machine = with_image("", image.path().unwrap());
    machine.contents.exec = None;
    let mut running = machine.start(system()).unwrap();
    for line in ["lsblk", "insmod rogue-fs", "tell rogue-fs later"] {
        assert_eq!(running.command(line).unwrap(), None, "{line}");
    }
    // Each command takes a few of the kernel's turns.
    let is_told = (0..100).any(|_| running.command("tell rogue-fs polled").unwrap().is_none());
    assert!(is_told);
}

/// Nobody waits for a file to be closed: its driver does that in the upcall for the next request.
#[test]
fn a_file_is_closed_with_the_next_request() {
    let directory = TempDir::new().unwrap();
    let image = fat(directory.path(), 8 << 10, 16);
    image.put("a", b"hello").unwrap();
    let text = boot_well(&with_image("mount disk0 /mnt; cat /mnt/a; trace fat ls /mnt", image.path().unwrap()));
    let traced: Vec<&str> = text.lines().skip_while(|line| !line.contains("close file 1")).take(4).collect();
    let [close, stat, poll, done] = traced[..] else { panic!("{text}") };
    let expected = [(close, "gets file request"), (stat, ": stat"), (poll, "> poll(queue)"), (done, "has done")];
    assert!(expected.iter().all(|(line, part)| line.contains(part)), "{traced:?}");
}

/// Names are put into the blocks of a directory one by one, and the disk gets each block a few
/// times only.
#[test]
fn writes_to_the_same_block_become_one() {
    let directory = TempDir::new().unwrap();
    let image = fat(directory.path(), 8 << 10, 16);
    let script = "mount disk0 /mnt; bench fs/fat/names --instructions --ring 1 --samples 2; mem; umount /mnt";
    let mut machine = with_image(script, image.path().unwrap());
    machine.icount = true;
    let text = boot_well(&machine);
    // Three samples, in each of which 32 files are made and removed.
    let [[writes, done, _]] = writes_behind(&text)[..] else { panic!("{text}") };
    assert!(writes >= 192 && done * 4 < writes, "{writes} {done}");
    assert_clean(&image);
}

/// Returns the counts of a cache from each `mem`: writes that it has taken, writes that the disk
/// has done, and the KiB that the disk does not have yet.
fn writes_behind(text: &str) -> Vec<[u64; 3]> {
    let counts = |line: &str| {
        let (before, rest) = line.split_once(" writes behind in ")?;
        let (done, rest) = rest.split_once(", ")?;
        let number = |word: &str| word.parse::<u64>().ok();
        Some([number(before.rsplit_once(' ')?.1)?, number(done)?, number(rest.strip_suffix(" KiB wait")?)?])
    };
    text.lines().filter_map(counts).collect()
}

/// A file that grows by 64 KiB at a time changes both tables and its length each time, and costs
/// little more than the writes of its data.
#[test]
fn a_file_that_grows_has_its_length_written_a_few_times() {
    const PIECES: u64 = 64;
    let directory = TempDir::new().unwrap();
    let image = Fat::with_clusters(directory.path(), 300 << 10, 32, 8).unwrap();
    let content = noise((PIECES << 16) as usize, 1);
    image.put("big", &content).unwrap();
    let copy = "cp /mnt/big /mnt/copy; sync";
    let script = format!("mount disk0 /mnt; {copy}; rm /mnt/copy; sync; mem; {copy}; mem; umount /mnt");
    let text = boot_well(&with_image(&script, image.path().unwrap()));
    let [before, after] = writes_behind(&text)[..] else { panic!("{text}") };
    let [taken, done] = [after[0] - before[0], after[1] - before[1]];
    assert!(taken >= 4 * PIECES && (PIECES..PIECES * 5 / 2).contains(&done), "{taken} {done}");
    assert_clean(&image);
    assert!(image.get("copy").unwrap() == content);
}

/// What is late comes a moment later, also if nobody asks for it: then the power may be cut.
#[test]
fn a_file_that_has_grown_is_whole_a_moment_later() {
    let directory = TempDir::new().unwrap();
    let image = Fat::with_clusters(directory.path(), 300 << 10, 32, 8).unwrap();
    let content = noise(1 << 20, 2);
    image.put("big", &content).unwrap();
    let mut machine = with_image("", image.path().unwrap());
    machine.contents.exec = None;
    let mut running = machine.start(system()).unwrap();
    for command in ["mount disk0 /mnt", "cp /mnt/big /mnt/copy"] {
        assert_eq!(running.command(command).unwrap(), None);
    }
    let mut waits = vec![];
    // Each takes a millisecond or more.
    for _ in 0..10_000 {
        running.type_line("mem").unwrap();
        let line = running.wait_for(" writes behind in ").unwrap();
        waits.extend(writes_behind(&line).iter().map(|[.., waits]| *waits));
        if waits.last() == Some(&0) {
            break;
        }
    }
    // The power is cut.
    drop(running);
    assert_as_after_a_power_cut(&image);
    assert!(image.get("copy").unwrap() == content, "{waits:?}");
}

/// After a write that the disk does not do, a filesystem is as the disk is, and goes on.
#[test]
fn a_filesystem_goes_on_after_a_write_that_fails() {
    let directory = TempDir::new().unwrap();
    let image = fat(directory.path(), 16 << 10, 16);
    let content = noise(4_000_000, 11);
    image.put("big", &content).unwrap();
    let rules = directory.path().join("failing");
    // A block of the first copy, behind the tables and the 7,813 blocks of the file.
    let rule = "[inject-error]\nevent = \"write_aio\"\nerrno = \"5\"\nsector = \"8500\"\nonce = \"on\"\n";
    std::fs::write(&rules, rule).unwrap();
    let script = "mount disk0 /mnt; fails cp /mnt/big /mnt/copy; fails sync; ls /mnt; cp /mnt/big /mnt/other; sync; \
                  sha256sum /mnt/other; umount /mnt";
    let mut machine = with_image(script, image.path().unwrap());
    machine.disk_errors = Some(rules);
    let text = boot_well(&machine);
    assert_says(&text, "are not written: ");
    assert_eq!(text.data(), [(4_000_000, sum(&content))]);
    assert!(text.faults("fat").is_empty(), "{text}");
    // What the copy had is lost, and nothing else; and the filesystem is not marked as clean.
    assert!(image.faults().unwrap().iter().any(|fault| fault.starts_with("Dirty bit is set.")));
    assert_as_after_a_power_cut(&image);
    assert!(image.get("other").unwrap() == content && image.get("big").unwrap() == content);
}

/// A small write that there is room for does not overtake a large one of the same driver.
#[test]
fn writes_of_a_filesystem_keep_their_order() {
    let directory = TempDir::new().unwrap();
    let image = fat(directory.path(), 8 << 10, 16);
    let script = "lsblk; insmod rogue-fs claims=off; tell rogue-fs pairs; rmmod rogue-fs";
    let mut machine = with_image(script, image.path().unwrap());
    // So many pages that the limit is that of bytes, which a small write may keep to.
    machine.memory = 256;
    let text = boot_well(&machine);
    assert_says(&text, "rogue-fs: 40 (0x28)");
    let bytes = std::fs::read(&image.0).unwrap();
    for (number, piece) in bytes.chunks(64 << 10).take(40).enumerate() {
        let (first, rest) = piece.split_at(512);
        assert!(first.iter().all(|byte| *byte == 2) && rest.iter().all(|byte| *byte == 1), "pair {number}");
    }
}

/// Another build takes the driver's place, and the driver moves between the rings, while a file is
/// copied.
#[test]
fn files_stay_open_while_their_driver_is_replaced() {
    let directory = TempDir::new().unwrap();
    let image = fat(directory.path(), 40 << 10, 32);
    let content = noise(3_000_000, 9);
    image.put("big", &content).unwrap();
    let script = "mount disk0 /mnt; cp /mnt/big /mnt/copy &; sleep 8; reload fat; sleep 8; ring fat 0; sleep 8; \
                  ring fat 1; reload fat; sleep 8; reload virtio-scsi; wait; sha256sum /mnt/copy; umount /mnt";
    let text = boot_well(&with_image(script, image.path().unwrap()));
    assert_eq!(text.data(), [(3_000_000, sum(&content))]);
    assert!(text.faults("fat").is_empty() && text.restarts("fat") == 0, "{text}");
    assert_as_after_a_power_cut(&image);
    assert!(image.get("copy").unwrap() == content);
}
