//! The tests that any driver of a filesystem must pass. The host's own tools make the filesystem,
//! and read the files that the driver has written.

use super::Bench;
use super::disk::{ENODATA, rules};
use crate::images::{self, Fat, tool_well};
use anyhow::{Context, Result, bail};
use fastrand::Rng;
use ringfence_abi::fs::{FS_MAX_NAME, FsError};
use ringfence_link::event::Event;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A test of a filesystem's driver.
pub type Test = fn(&mut Bench, &Image) -> Result<()>;

/// The path where the filesystem is mounted.
pub const AT: &str = "/mnt";
/// The driver of the disk that the filesystem is on.
pub const DISK_DRIVER: &str = "virtio-scsi";

/// Lengths of files in bytes, next to those of blocks, pages and requests.
const LENGTHS: [usize; 12] = [0, 1, 511, 512, 513, 4095, 4096, 4097, 65535, 65536, 65537, BIG];
/// Length of the longest file.
const BIG: usize = 200_123;
/// Number of files in the directory `many`.
const MANY: usize = 300;
/// Number of directories inside each other in `deep`.
const DEEP: usize = 12;

/// Names, meanings and functions of the tests. Each test has its own machine and filesystem. A
/// driver that only reads says so, and passes the tests that write.
pub const TESTS: &[(&str, &str, Test)] = &[
    ("read", "files of each length up to 200123 bytes are read byte for byte", read),
    ("list", "a directory of 300 files, and directories 12 deep, are listed whole", list),
    ("errors", "what cannot be done is refused, and changes nothing", errors),
    ("read-only", "where it is only to read, the disk stays as it was, to the byte", read_only),
    ("write", "files of each length are written; or the driver says that it only reads", write),
    ("names", "names of all kinds are made, changed, replaced and removed", names),
    ("truncate", "files become shorter, and longer by zeros", truncate),
    ("full", "a full disk is an error, and what was there stays", full),
    ("restart-read", "a driver that is ended while it reads goes on where it was", restart_read),
    ("restart-copy", "a driver that is ended while it writes loses nothing", restart_copy),
    ("restart-disk", "a disk's driver that is ended under the filesystem loses nothing", restart_disk),
    ("ring-change", "a driver that changes rings while it reads and writes loses nothing", ring_change),
    ("unload", "a filesystem that is taken away and mounted again works, and no memory is gone", unload),
];

/// The test on a disk that cannot read one block of the longest file ([`Image::error_rules`]).
pub const BAD_BLOCK: (&str, &str, Test) =
    ("bad-block", "a block that the disk cannot read fails reads of its file, and no others", bad_block);

/// A disk image with a filesystem that the host's tools have made.
pub struct Image {
    path: PathBuf,
    /// The FAT, if it is one; or else it is one of the ext family.
    fat: Option<Fat>,
    /// The content of each file, by its path below [`AT`].
    content: BTreeMap<String, Vec<u8>>,
}

impl Image {
    /// Makes the filesystem called `format` in `folder`.
    pub fn new(folder: &Path, format: &str) -> Result<Image> {
        let content = content();
        let source = TempDir::new()?;
        for (name, bytes) in &content {
            let path = source.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap_or(source.path()))?;
            std::fs::write(path, bytes)?;
        }
        let fat = match format {
            "fat12" => Some((1440, 12)),
            "fat16" => Some((8 << 10, 16)),
            "fat32" => Some((40 << 10, 32)),
            "ext2" | "ext3" | "ext4" => None,
            _ => bail!("there is no filesystem '{format}'; there are fat12, fat16, fat32, ext2, ext3 and ext4"),
        };
        let Some((kib, bits)) = fat else {
            let path = images::ext(folder, 16 << 10, format, source.path())?;
            return Ok(Image { path, fat: None, content });
        };
        let fat = Fat::new(folder, kib, bits)?;
        for entry in std::fs::read_dir(source.path())? {
            let entry = entry?.path();
            let entry = entry.to_str().context("a path is no UTF-8")?;
            tool_well("mcopy", &["-s", "-i", fat.path()?, entry, "::"])?;
        }
        Ok(Image { path: fat.0.clone(), fat: Some(fat), content })
    }

    /// Returns its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the rule of QEMU's `blkdebug` by which the disk cannot read a block in the middle of
    /// the longest file.
    pub fn error_rules(&self) -> Result<String> {
        let bytes = std::fs::read(&self.path)?;
        let middle = self.big().chunks_exact(512).nth(BIG / 1024).context("the longest file is short")?;
        let block = bytes.chunks_exact(512).position(|block| block == middle);
        let block = block.context("the longest file is not on the image")?;
        Ok(rules("read_aio", &[(block as u64, ENODATA)]))
    }

    /// Checks by the host's tools that the filesystem is in order; or, after the driver was ended
    /// amid changes, at least as in order as after a power cut.
    fn check(&self, was_ended: bool) -> Result<()> {
        let faults = match &self.fat {
            Some(fat) if was_ended => images::sorted(fat.faults()?).1,
            Some(fat) => fat.faults()?,
            None => images::ext_faults(&self.path)?,
        };
        match faults.first() {
            None => Ok(()),
            Some(first) => bail!("the host finds {} faults: {first}", faults.len()),
        }
    }

    /// Checks by the host's tools that a file has this content.
    fn check_file(&self, name: &str, content: &[u8]) -> Result<()> {
        let found = match &self.fat {
            Some(fat) => fat.get(name)?,
            None => {
                let path = self.path.to_str().context("the image's path is no UTF-8")?;
                images::tool("debugfs", &["-R", &format!("cat \"/{name}\""), path])?.stdout
            }
        };
        if found != content {
            bail!("{name}: the host reads {} bytes that are not the {} that were written", found.len(), content.len());
        }
        Ok(())
    }

    fn big(&self) -> &[u8] {
        &self.content[&of_length(BIG)]
    }
}

/// Returns the name of the file with so many bytes.
fn of_length(bytes: usize) -> String {
    format!("bytes {bytes}")
}

/// Returns the files of each image. Their bytes have no pattern that could be right by chance.
fn content() -> BTreeMap<String, Vec<u8>> {
    let mut random = Rng::with_seed(1997);
    let mut bytes = |count: usize| (0..count).map(|_| random.u8(..)).collect::<Vec<u8>>();
    let mut files: BTreeMap<_, _> = LENGTHS.iter().map(|length| (of_length(*length), bytes(*length))).collect();
    files.extend((0..MANY).map(|number| (format!("many/the file number {number}.txt"), bytes(number % 7))));
    let deep: Vec<String> = (0..DEEP).map(|depth| format!("directory {depth}")).collect();
    files.insert(format!("deep/{}/end", deep.join("/")), bytes(100));
    files
}

/// Returns the command's line about a path below [`AT`].
fn at(command: &str, name: &str) -> String {
    format!("{command} \"{AT}/{name}\"")
}

/// Returns the line of a command about two paths below [`AT`].
fn from_to(command: &str, from: &str, to: &str) -> String {
    format!("{command} \"{AT}/{from}\" \"{AT}/{to}\"")
}

/// Waits for the next sum that a command tells, and for an event after which `is_over` holds, in
/// any order. Compares the sum with that of `content`.
fn same(bench: &mut Bench, name: &str, content: &[u8], is_over: impl Fn(&Event) -> bool) -> Result<()> {
    let (mut told, mut over) = (None, false);
    let both = |event| {
        over |= is_over(&event);
        if let Event::Data { bytes, sha256 } = event {
            told = Some((bytes, sha256.0));
        }
        told.filter(|_| over)
    };
    let (bytes, sum) = bench.running.wait_for_event(&format!("the sum of {name}"), both)?;
    if bytes != content.len() as u64 || sum[..] != Sha256::digest(content)[..] {
        bail!("{name}: {bytes} bytes were read that are not the {} of the file", content.len());
    }
    Ok(())
}

/// Reads a file, and compares it with `content`.
fn has(bench: &mut Bench, name: &str, content: &[u8]) -> Result<()> {
    bench.running.type_line(&at("sha256sum", name))?;
    same(bench, name, content, |_| true)
}

/// Reads the longest file while `line` is carried out, until an event for which `is_over` holds.
fn reads_amid(bench: &mut Bench, image: &Image, line: &str, is_over: impl Fn(&Event) -> bool) -> Result<()> {
    bench.running.type_line(&format!("{} &", at("sha256sum", &of_length(BIG))))?;
    bench.running.type_line(line)?;
    same(bench, &of_length(BIG), image.big(), is_over)
}

/// Returns whether the driver called `name` has come back.
fn is_back(name: &str) -> impl Fn(&Event) -> bool {
    move |event| matches!(event, Event::Restarted { name: other, .. } if *other == name)
}

/// Returns whether the driver writes. A driver that does not write returns [`FsError::ReadOnly`].
fn writes(bench: &mut Bench) -> Result<bool> {
    match bench.try_to(&at("mkdir", "probe"))? {
        None => bench.run(&at("rm", "probe")).map(|()| true),
        Some(error) if error.contains(FsError::ReadOnly.words()) => Ok(false),
        Some(error) => bail!("a directory cannot be made: {error}"),
    }
}

fn umount(bench: &mut Bench) -> Result<()> {
    bench.run(&format!("umount {AT}"))
}

fn mount(bench: &mut Bench, options: &str) -> Result<()> {
    let name = bench.name.clone();
    bench.run(&format!("mount disk0 {AT} -t {name}{options}"))
}

fn bad_block(bench: &mut Bench, image: &Image) -> Result<()> {
    let others = || image.content.iter().filter(|(name, _)| !name.starts_with("many/") && **name != of_length(BIG));
    let writes = writes(bench)?;
    for _ in 0..2 {
        bench.fail(&at("sha256sum", &of_length(BIG)))?;
        if writes {
            bench.fail(&from_to("cp", &of_length(BIG), "copy of the bad file"))?;
            bench.run(&from_to("cp", &of_length(65537), "copy of a good file"))?;
            has(bench, "copy of a good file", &image.content[&of_length(65537)])?;
        }
        for (name, content) in others() {
            has(bench, name, content)?;
        }
        bench.end_driver()?;
    }
    umount(bench)?;
    if writes {
        image.check_file("copy of a good file", &image.content[&of_length(65537)])?;
    }
    image.check_file(&of_length(BIG), image.big())
}

fn read(bench: &mut Bench, image: &Image) -> Result<()> {
    let few = image.content.iter().filter(|(name, _)| !name.starts_with("many/"));
    let some = image.content.iter().filter(|(name, _)| name.starts_with("many/")).step_by(29);
    for (name, content) in few.chain(some) {
        has(bench, name, content)?;
    }
    umount(bench)
}

fn list(bench: &mut Bench, image: &Image) -> Result<()> {
    for (folder, directories) in [("many", 1), ("deep", DEEP + 1)] {
        let inside = image.content.iter().filter(|(name, _)| name.starts_with(folder));
        let (files, bytes) = inside.fold((0, 0), |(files, bytes), (_, content)| (files + 1, bytes + content.len()));
        bench.running.type_line(&at("du", folder))?;
        bench.running.wait_for(&format!("{bytes} bytes in {files} files and {directories} directories"))?;
    }
    umount(bench)
}

fn errors(bench: &mut Bench, image: &Image) -> Result<()> {
    let file = of_length(513);
    let lines = [
        at("sha256sum", "none"),
        at("sha256sum", "many"),
        at("sha256sum", "none/none"),
        at("sha256sum", &format!("{file}/none")),
        at("ls", "none"),
        at("mkdir", "many"),
        at("mkdir", "none/none"),
        at("mkdir", &file),
        at("rm", "none"),
        at("rm", "many"),
        from_to("mv", "none", "other"),
        from_to("mv", &file, "none/other"),
        from_to("mv", "deep", &file),
        from_to("cp", &file, &"n".repeat(FS_MAX_NAME)),
        format!("{} 1", at("truncate", "none/none")),
        format!("{} 1", at("truncate", "many")),
    ];
    for line in &lines {
        bench.fail(line)?;
    }
    for name in [&file, "many/the file number 6.txt"] {
        has(bench, name, &image.content[name])?;
    }
    umount(bench)?;
    image.check(false)
}

fn read_only(bench: &mut Bench, image: &Image) -> Result<()> {
    umount(bench)?;
    let before = Sha256::digest(std::fs::read(&image.path)?);
    mount(bench, " -o ro")?;
    has(bench, &of_length(BIG), image.big())?;
    for line in [
        at("mkdir", "new"),
        from_to("cp", &of_length(1), "new"),
        at("rm", &of_length(0)),
        from_to("mv", &of_length(0), "new"),
        format!("{} 7", at("truncate", &of_length(513))),
    ] {
        bench.fail(&line)?;
    }
    bench.end_driver()?;
    has(bench, &of_length(513), &image.content[&of_length(513)])?;
    umount(bench)?;
    if Sha256::digest(std::fs::read(&image.path)?) != before {
        bail!("the disk was changed");
    }
    Ok(())
}

fn write(bench: &mut Bench, image: &Image) -> Result<()> {
    if !writes(bench)? {
        return Ok(());
    }
    for length in LENGTHS {
        bench.run(&from_to("cp", &of_length(length), &format!("copy {length}")))?;
    }
    umount(bench)?;
    image.check(false)?;
    LENGTHS
        .iter()
        .try_for_each(|length| image.check_file(&format!("copy {length}"), &image.content[&of_length(*length)]))
}

fn names(bench: &mut Bench, image: &Image) -> Result<()> {
    if !writes(bench)? {
        return Ok(());
    }
    let (one, other) = (of_length(4097), of_length(513));
    let long = "a name of many letters ".repeat(8);
    let names = ["short", "With Capitals.And.Dots", "Grüße an dich", long.trim_end()];
    bench.run(&at("mkdir", "new"))?;
    for name in names {
        bench.run(&from_to("cp", &one, &format!("new/{name}")))?;
        bench.run(&from_to("mv", &format!("new/{name}"), &format!("many/{name}")))?;
        has(bench, &format!("many/{name}"), &image.content[&one])?;
        // What has the name already is replaced.
        bench.run(&from_to("cp", &other, &format!("new/{name}")))?;
        bench.run(&from_to("mv", &format!("new/{name}"), &format!("many/{name}")))?;
        has(bench, &format!("many/{name}"), &image.content[&other])?;
    }
    bench.run(&from_to("mv", "deep", "new/deep"))?;
    bench.fail(&at("rm", "new"))?;
    for name in names {
        bench.run(&at("rm", &format!("many/{name}")))?;
        bench.fail(&at("sha256sum", &format!("many/{name}")))?;
    }
    bench.run(&at("rm -r", "new"))?;
    bench.fail(&at("ls", "new"))?;
    umount(bench)?;
    image.check(false)
}

fn truncate(bench: &mut Bench, image: &Image) -> Result<()> {
    if !writes(bench)? {
        return Ok(());
    }
    bench.run(&from_to("cp", &of_length(BIG), "changed"))?;
    let mut content = image.big().to_vec();
    for length in [65537, 65536, 513, 512, 70_000, 0, 1, BIG] {
        bench.run(&format!("{} {length}", at("truncate", "changed")))?;
        content.resize(length, 0);
        has(bench, "changed", &content)?;
    }
    umount(bench)?;
    image.check(false)?;
    image.check_file("changed", &content)
}

fn full(bench: &mut Bench, image: &Image) -> Result<()> {
    /// More copies than fit onto any of the images.
    const MOST: usize = 1000;
    if !writes(bench)? {
        return Ok(());
    }
    let mut copies = 0;
    while bench.try_to(&from_to("cp", &of_length(BIG), &format!("copy {copies}")))?.is_none() {
        copies += 1;
        if copies == MOST {
            bail!("{MOST} copies fit onto a disk that is smaller");
        }
    }
    // An incomplete copy does not count, whether or not its beginning is there.
    bench.try_to(&at("rm", &format!("copy {copies}")))?;
    for name in [of_length(BIG), of_length(65537)] {
        has(bench, &name, &image.content[&name])?;
    }
    for number in [0, copies.saturating_sub(1)] {
        has(bench, &format!("copy {number}"), image.big())?;
    }
    bench.run(&at("rm", "copy 0"))?;
    bench.run(&from_to("cp", &of_length(65537), "in its place"))?;
    umount(bench)?;
    image.check(false)?;
    image.check_file("in its place", &image.content[&of_length(65537)])
}

fn restart_read(bench: &mut Bench, image: &Image) -> Result<()> {
    let name = bench.name.clone();
    for _ in 0..5 {
        bench.kills += 1;
        reads_amid(bench, image, &format!("kill {name}"), is_back(&name))?;
    }
    umount(bench)?;
    image.check(false)
}

/// Copies a file again and again while `amid` happens, and compares each copy.
fn copies_amid(bench: &mut Bench, image: &Image, mut amid: impl FnMut(&mut Bench, usize) -> Result<()>) -> Result<()> {
    for round in 0..4 {
        let line = from_to("cp", &of_length(BIG), &format!("copy {round}"));
        bench.running.type_line(&format!("{line} &"))?;
        amid(bench, round)?;
        bench.run("wait")?;
        has(bench, &format!("copy {round}"), image.big())?;
    }
    Ok(())
}

fn restart_copy(bench: &mut Bench, image: &Image) -> Result<()> {
    if !writes(bench)? {
        return Ok(());
    }
    copies_amid(bench, image, |bench, _| {
        bench.end_driver()?;
        bench.end_driver()
    })?;
    for round in 0..4 {
        bench
            .running
            .type_line(&format!("{} &", from_to("mv", &format!("copy {round}"), &format!("moved {round}"))))?;
        bench.end_driver()?;
        bench.run("wait")?;
        bench.fail(&at("sha256sum", &format!("copy {round}")))?;
    }
    umount(bench)?;
    image.check(true)?;
    (0..4).try_for_each(|round| image.check_file(&format!("moved {round}"), image.big()))
}

fn restart_disk(bench: &mut Bench, image: &Image) -> Result<()> {
    for _ in 0..3 {
        reads_amid(bench, image, &format!("kill {DISK_DRIVER}"), is_back(DISK_DRIVER))?;
    }
    if writes(bench)? {
        copies_amid(bench, image, |bench, _| {
            bench.run(&format!("kill {DISK_DRIVER}"))?;
            let is_back = |event| is_back(DISK_DRIVER)(&event).then_some(());
            bench.running.wait_for_event("a restart of the disk's driver", is_back)
        })?;
    }
    umount(bench)?;
    image.check(false)
}

fn ring_change(bench: &mut Bench, image: &Image) -> Result<()> {
    let moves = bench.moves();
    for line in moves.iter().chain(&moves) {
        let is_done = |event: &Event| matches!(event, Event::Command { line: ended, error: None } if ended == line);
        reads_amid(bench, image, line, is_done)?;
    }
    if writes(bench)? {
        let mut lines = moves.iter().cycle();
        copies_amid(bench, image, |bench, _| lines.next().map_or(Ok(()), |line| bench.run(line)))?;
    }
    umount(bench)?;
    image.check(false)
}

fn unload(bench: &mut Bench, image: &Image) -> Result<()> {
    let mut free = Vec::new();
    for _ in 0..3 {
        has(bench, &of_length(BIG), image.big())?;
        umount(bench)?;
        free.push(bench.free_frames()?);
        mount(bench, "")?;
    }
    // The first round allocates tables that are kept, so only the later rounds are compared.
    if free[1] != free[2] {
        bail!("{} frames of memory are gone", free[1].abs_diff(free[2]));
    }
    umount(bench)
}

/// A change of the files in the filesystem's root.
enum Change {
    Copy(String, String),
    Move(String, String),
    Remove(String),
    Resize(String, usize),
}

impl Change {
    fn any(sources: &[String], random: &mut Rng) -> Change {
        let file = |random: &mut Rng| format!("file {}", random.u8(..6));
        let one = match random.bool() {
            true => sources[random.usize(..sources.len())].clone(),
            false => file(random),
        };
        match random.u8(..5) {
            0 | 1 => Change::Copy(one, file(random)),
            2 => Change::Move(file(random), file(random)),
            3 => Change::Remove(file(random)),
            _ => Change::Resize(file(random), random.usize(..70_000)),
        }
    }

    /// Returns the command's line.
    fn line(&self) -> String {
        match self {
            Change::Copy(from, to) => from_to("cp", from, to),
            Change::Move(from, to) => from_to("mv", from, to),
            Change::Remove(name) => at("rm", name),
            Change::Resize(name, length) => format!("{} {length}", at("truncate", name)),
        }
    }

    /// Makes the change; returns whether it can be made.
    fn make(&self, files: &mut BTreeMap<String, Vec<u8>>) -> bool {
        match self {
            Change::Copy(from, to) | Change::Move(from, to) if from == to => false,
            Change::Copy(from, to) => files.get(from).cloned().map(|bytes| files.insert(to.clone(), bytes)).is_some(),
            Change::Move(from, to) => files.remove(from).map(|bytes| files.insert(to.clone(), bytes)).is_some(),
            Change::Remove(name) => files.remove(name).is_some(),
            Change::Resize(name, length) => {
                files.entry(name.clone()).or_default().resize(*length, 0);
                true
            }
        }
    }
}

/// Makes `count` random changes of files, also some that cannot be made, and reads files. The
/// results are compared with the same changes of files in the runner's memory.
pub fn random(bench: &mut Bench, image: &Image, count: usize, random: &mut Rng) -> Result<()> {
    let writes = writes(bench)?;
    let mut files = image.content.clone();
    files.retain(|name, _| !name.contains('/'));
    let sources: Vec<String> = files.keys().cloned().collect();
    for _ in 0..count {
        let change = Change::any(&sources, random);
        let line = change.line();
        let can_be_made = writes && change.make(&mut files);
        let error = bench.try_to(&line)?;
        if error.is_none() != can_be_made {
            bail!("'{line}': {}", error.unwrap_or_else(|| "it should fail".into()));
        }
        if let Some((name, content)) = files.iter().nth(random.usize(..files.len())) {
            has(bench, name, content)?;
        }
    }
    files.iter().try_for_each(|(name, content)| has(bench, name, content))?;
    bench.run("sync")?;
    // It is still mounted, and says so on the disk.
    image.check(true)
}
