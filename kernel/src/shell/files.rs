//! Commands about filesystems and files.

use super::disks::find_disk;
use super::{Outcome, print_sum, said};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use block::cache::{self, Cache};
use block::client::{Client, filesystem_on, is_written_to};
use embassy_time::{Duration, with_timeout};
use fs::error::Error;
use fs::file::{File, How, PIECE, cost};
use fs::{tree, volume};
use host::domain::Ring;
use host::module;
use hw::memory::buffer;
use hw::println;
use ringfence_abi::fs::FsError;
use ringfence_abi::manifest::{DomainKind, Kind};
use ringfence_core::arguments::Arguments;
use ringfence_core::date::Date;
use ringfence_core::directory::{Entry, FileKind, Stat};
use ringfence_core::module::{Module, file_name};
use ringfence_core::path::{Path, is_name, shown};
use ringfence_core::signature;
use sha2::{Digest, Sha256};

/// The most entries of a directory that a command takes.
const MOST_ENTRIES: usize = 4096;
/// The deepest that a command goes into directories.
const DEEPEST: usize = 32;

/// Returns a function that describes an error with a path.
pub fn about(path: &Path) -> impl Fn(Error) -> String {
    move |error| format!("{path}: {error}")
}

/// Returns the path that a person has typed.
pub fn path_of(text: &str) -> Result<Path, String> {
    Path::new(text).map_err(said)
}

/// Returns the names of the modules that drive filesystems.
fn formats() -> Vec<String> {
    let files = module::files().into_iter();
    let formats =
        files.filter(|file| Module::parse(&file.bytes).is_ok_and(|module| module.manifest.kind() == Ok(Kind::Fs)));
    let mut names: Vec<String> = formats.map(|file| file_name(&file.name, DomainKind::Paged)).collect();
    // A module has a file for each kind of domain.
    names.sort_unstable();
    names.dedup();
    names
}

pub async fn mount(mut arguments: Arguments<'_>) -> Outcome {
    let Some(disk) = arguments.optional() else {
        return list_mounts();
    };
    let at = path_of(arguments.word("the path")?)?;
    let (mut format, mut reads_only) = (None, false);
    while let Some(word) = arguments.optional() {
        match word {
            "-t" => format = Some(arguments.word("the format")?),
            "-o" => match arguments.word("the option")? {
                "ro" => reads_only = true,
                "rw" => reads_only = false,
                other => return arguments.wrong(&format!("'{other}' is not known; there are ro and rw")),
            },
            other => return arguments.wrong(&format!("'{other}' is not known")),
        }
    }
    if at.is_root() {
        return Err("a filesystem is mounted below the root: /mnt, for example".into());
    }
    if tree::is_mounted_at(&at) {
        return Err(format!("there is a filesystem at {at} already"));
    }
    let disk = find_disk(disk).await?;
    if let Some(driver) = filesystem_on(&*disk) {
        return Err(format!("{} has the filesystem of {driver} already", disk.name()));
    }
    if is_written_to(&*disk) {
        return Err(format!("a command writes to {} right now", disk.name()));
    }
    let format = match format {
        Some(format) => format,
        None => {
            // The first bytes tell the format.
            let mut first = buffer(signature::BYTES.next_multiple_of(disk.block_bytes()))?;
            disk.read(0, &mut first).await?;
            let unknown = || {
                format!("{} has no filesystem that is known; -t names one of: {}", disk.name(), formats().join(", "))
            };
            signature::format(&first).ok_or_else(unknown)?
        }
    };
    let file = module::choose(format, None).map_err(said)?;
    let disk_parameter = format!("disk={}", disk.name());
    let parameters = if reads_only { vec![disk_parameter, "ro=true".into()] } else { vec![disk_parameter] };
    let handle = module::load(&file, Ring::Sandboxed, &parameters).await.map_err(said)?;
    let name = handle.lock().name.clone();
    let Some(volume) = volume::of(&handle) else {
        drop(handle);
        module::unload(&name).await.map_err(said)?;
        return Err(format!("{format} offers no filesystem"));
    };
    drop(handle);
    if reads_only && !volume.is_read_only() {
        module::unload(&name).await.map_err(said)?;
        return Err(format!("{format} cannot leave a disk as it is"));
    }
    if !tree::mount(at.clone(), volume) {
        module::unload(&name).await.map_err(said)?;
        return Err(format!("there is a filesystem at {at} already"));
    }
    println!("{} is at {at}, by {name}", disk.name());
    Ok(())
}

fn list_mounts() -> Outcome {
    println!("{:<16} {:<8} {:<8} {:<12} {:>5}  {}", "PATH", "DISK", "FORMAT", "DRIVER", "OPEN", "LABEL");
    let mounts = tree::mounts();
    let row = |at: &str, volume: &volume::Volume| {
        let (disk, format, label) = (volume.disk(), volume.format(), volume.label());
        let format = if volume.is_read_only() { format!("{format} ro") } else { format };
        println!("{at:<16} {disk:<8} {format:<8} {:<12} {:>5}  {label}", volume.name(), volume.open_files());
    };
    mounts.iter().for_each(|mount| row(mount.at.as_str(), &mount.volume));
    for volume in volume::all() {
        if !mounts.iter().any(|mount| mount.volume.name() == volume.name()) {
            row("-", &volume);
        }
    }
    Ok(())
}

pub async fn umount(mut arguments: Arguments<'_>) -> Outcome {
    let mut word = arguments.word("the path")?;
    let is_forced = word == "-f";
    if is_forced {
        word = arguments.word("the path")?;
    }
    let at = path_of(word)?;
    arguments.end()?;
    let mount = tree::mounts().into_iter().find(|mount| mount.at == at);
    let mount = mount.ok_or_else(|| format!("no filesystem is mounted at {at}"))?;
    match mount.volume.open_files() {
        0 => {}
        count => return Err(format!("{count} of its files are open")),
    }
    // Report a failed write now: the driver's end is no place for an answer.
    let synced = sync_one(&mount).await;
    match &synced {
        Err(error) if !is_forced => return Err(format!("{error}; umount -f goes on without")),
        _ => {}
    }
    // A command may have opened one meanwhile.
    if mount.volume.open_files() > 0 {
        return Err("some of its files are open".into());
    }
    take_away(mount, synced.is_ok()).await
}

/// How long a filesystem may take to write all: a person waits.
const LIMIT: Duration = Duration::from_secs(60);

/// Has a filesystem's content put on its disk.
async fn sync_one(mount: &tree::Mount) -> Outcome {
    let all = async {
        match mount.volume.sync().await {
            Ok(()) | Err(Error::Gone) => {}
            Err(error) => {
                // It is told of now.
                tell_failure(mount).await.ok();
                return Err(about(&mount.at)(error));
            }
        }
        tell_failure(mount).await
    };
    with_timeout(LIMIT, all).await.unwrap_or_else(|_| Err(format!("{}: {}", mount.at, late())))
}

fn late() -> String {
    format!("not all was written after {} s", LIMIT.as_secs())
}

/// Returns the cache of a filesystem's disk.
fn cache_of(mount: &tree::Mount) -> Option<Arc<Cache>> {
    let handle = mount.volume.handle();
    let driver = handle.lock();
    driver.used::<Client>()?.cache()
}

/// Returns an error if a write to a filesystem's disk has failed that nobody has heard of.
async fn tell_failure(mount: &tree::Mount) -> Outcome {
    match cache_of(mount) {
        Some(cache) => cache.settle().await.map_err(|error| format!("{}: {error}", mount.at)),
        None => Ok(()),
    }
}

/// Unloads a filesystem's driver, which may write something at its end. `tells` whether it is said
/// that this failed: after an error, nothing else is expected.
async fn take_away(mount: tree::Mount, tells: bool) -> Outcome {
    let (name, at) = (mount.volume.name().to_string(), mount.at.clone());
    let kept = cache_of(&mount).filter(|_| tells);
    drop(mount);
    module::unload(&name).await.map_err(said)?;
    let settled = match kept {
        Some(cache) => with_timeout(LIMIT, cache.settle()).await.unwrap_or_else(|_| Err(late())),
        None => Ok(()),
    };
    cache::let_go();
    settled.map_err(|error| format!("{at}: {error}"))
}

/// Puts the content of all filesystems on their disks, and unloads their drivers: the machine ends.
pub async fn umount_all() {
    for mount in tree::mounts() {
        let synced = sync_one(&mount).await;
        if let Err(error) = &synced {
            println!("{error}");
        }
        if let Err(error) = take_away(mount, synced.is_ok()).await {
            println!("{error}");
        }
    }
    // A filesystem's driver that was ended for good has left writes to the kernel.
    for cache in cache::dirty() {
        if let Err(error) = with_timeout(LIMIT, cache.settle()).await.unwrap_or_else(|_| Err(late())) {
            println!("{}: {error}", cache.name());
        }
    }
}

pub async fn sync(arguments: Arguments<'_>) -> Outcome {
    arguments.end()?;
    let mut errors = Vec::new();
    for mount in tree::mounts() {
        errors.extend(sync_one(&mount).await.err());
    }
    if errors.is_empty() { Ok(()) } else { Err(errors.join("; ")) }
}

pub async fn df(arguments: Arguments<'_>) -> Outcome {
    arguments.end()?;
    println!("{:<16} {:<8} {:>12} {:>12} {:>12} {:>4}", "PATH", "DISK", "KIB", "USED", "FREE", "USE");
    for mount in tree::mounts() {
        let space = mount.volume.space().await.map_err(about(&mount.at))?;
        let used = space.total.saturating_sub(space.free);
        let percent = (u128::from(used) * 100).div_ceil(u128::from(space.total.max(1)));
        let [total, used, free] = [space.total, used, space.free].map(|bytes| bytes / 1024);
        println!(
            "{:<16} {:<8} {total:>12} {used:>12} {free:>12} {percent:>3}%",
            mount.at.as_str(),
            mount.volume.disk()
        );
    }
    Ok(())
}

fn letter(kind: FileKind) -> char {
    match kind {
        FileKind::Directory => 'd',
        FileKind::File => '-',
        FileKind::Link => 'l',
        FileKind::Other => '?',
    }
}

fn print_entry(name: &str, stat: &Stat, in_full: bool) {
    let name = shown(name);
    if in_full {
        println!("{} {:>12} {} {name}", letter(stat.kind), stat.len_bytes, Date::of_unix(stat.modified));
    } else if stat.kind == FileKind::Directory {
        println!("{name}/");
    } else {
        println!("{name}");
    }
}

/// Returns the entries of a directory by name, and whether there are more.
async fn list(path: &Path) -> Result<(Vec<Entry>, bool), String> {
    let directory = tree::open(path, How::Existing).await.map_err(about(path))?;
    if directory.stat().kind != FileKind::Directory {
        return Err(about(path)(FsError::NotADirectory.into()));
    }
    let (mut entries, more) = directory.list(MOST_ENTRIES).await.map_err(about(path))?;
    entries.sort_by(|one, other| one.name.cmp(&other.name));
    Ok((entries, more))
}

pub async fn ls(mut arguments: Arguments<'_>) -> Outcome {
    let (mut in_full, mut path) = (false, None);
    while let Some(word) = arguments.optional() {
        match word {
            "-l" => in_full = true,
            word if path.is_none() => path = Some(path_of(word)?),
            other => return arguments.wrong(&format!("'{other}' is not known")),
        }
    }
    let path = path.unwrap_or(path_of("/")?);
    if path.is_root() && !tree::is_mounted_at(&path) {
        tree::mounts().iter().for_each(|mount| println!("{}/", mount.at.as_str().trim_start_matches('/')));
        return Ok(());
    }
    let stat = tree::stat(&path).await.map_err(about(&path))?;
    if stat.kind != FileKind::Directory {
        print_entry(path.name(), &stat, in_full);
        return Ok(());
    }
    let (entries, more) = list(&path).await?;
    entries.iter().for_each(|entry| print_entry(&entry.name, &entry.stat, in_full));
    if more {
        println!("... and more: a list ends after {MOST_ENTRIES} entries");
    }
    Ok(())
}

/// Reads a file from its beginning to its end, and hands each piece to `each`.
async fn read_all(path: &Path, mut each: impl FnMut(&[u8])) -> Result<u64, String> {
    let file = tree::open_file(path, How::Existing).await.map_err(about(path))?;
    let mut buffer = buffer(PIECE)?;
    let mut offset = 0;
    loop {
        let len_bytes = file.read(offset, &mut buffer).await.map_err(about(path))?;
        let piece = buffer.get(..len_bytes).unwrap_or(&buffer);
        if piece.is_empty() {
            return Ok(offset);
        }
        each(piece);
        offset += len_bytes as u64;
    }
}

pub async fn cat(mut arguments: Arguments<'_>) -> Outcome {
    let path = path_of(arguments.word("the file")?)?;
    arguments.end()?;
    // The rest of a line, or of a character, may be in the next piece.
    let mut line = Vec::new();
    let print = |line: &[u8]| println!("{}", shown(String::from_utf8_lossy(line).trim_end_matches('\r')));
    read_all(&path, |piece| {
        for byte in piece {
            match byte {
                b'\n' => {
                    print(&line);
                    line.clear();
                }
                byte => line.push(*byte),
            }
            if line.len() >= PIECE {
                print(&line);
                line.clear();
            }
        }
    })
    .await?;
    if !line.is_empty() {
        print(&line);
    }
    Ok(())
}

pub async fn hexdump(mut arguments: Arguments<'_>) -> Outcome {
    let path = path_of(arguments.word("the file")?)?;
    let mut left: u64 = match arguments.optional() {
        Some(word) => arguments.as_number("the count of bytes", word)?,
        None => u64::MAX,
    };
    arguments.end()?;
    let file = tree::open_file(&path, How::Existing).await.map_err(about(&path))?;
    let mut buffer = buffer(PIECE)?;
    let mut offset = 0;
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
        let wanted = buffer.get_mut(..most).unwrap_or(&mut []);
        let len_bytes = file.read(offset, wanted).await.map_err(about(&path))?;
        if len_bytes == 0 {
            break;
        }
        for (row, at) in wanted.get(..len_bytes).unwrap_or(&[]).chunks(16).zip((offset..).step_by(16)) {
            let hex: Vec<String> = row.iter().map(|byte| format!("{byte:02x}")).collect();
            let text: String =
                row.iter().map(|byte| if byte.is_ascii_graphic() { char::from(*byte) } else { '.' }).collect();
            println!("{at:08x}  {:<47}  {text}", hex.join(" "));
        }
        offset += len_bytes as u64;
        left -= len_bytes as u64;
    }
    Ok(())
}

pub async fn sha256sum(mut arguments: Arguments<'_>) -> Outcome {
    let path = path_of(arguments.word("the file")?)?;
    arguments.end()?;
    let mut sum = Sha256::new();
    let bytes = read_all(&path, |piece| sum.update(piece)).await?;
    print_sum(&sum.finalize().into(), bytes);
    Ok(())
}

pub async fn cmp(mut arguments: Arguments<'_>) -> Outcome {
    let paths = [path_of(arguments.word("the file")?)?, path_of(arguments.word("the other file")?)?];
    arguments.end()?;
    let [one, other] = &paths;
    let files = (
        tree::open_file(one, How::Existing).await.map_err(about(one))?,
        tree::open_file(other, How::Existing).await.map_err(about(other))?,
    );
    let (mut first, mut second) = (buffer(PIECE)?, buffer(PIECE)?);
    let mut offset = 0;
    loop {
        let len_bytes = files.0.read(offset, &mut first).await.map_err(about(one))?;
        let other_len_bytes = files.1.read(offset, &mut second).await.map_err(about(other))?;
        let pieces = (first.get(..len_bytes).unwrap_or(&[]), second.get(..other_len_bytes).unwrap_or(&[]));
        if let Some(at) = pieces.0.iter().zip(pieces.1).position(|(one, other)| one != other) {
            return Err(format!("{one} and {other} differ, first at byte {}", offset + at as u64));
        }
        if len_bytes != other_len_bytes {
            let (shorter, end) = if len_bytes < other_len_bytes { (one, len_bytes) } else { (other, other_len_bytes) };
            return Err(format!("{shorter} ends at byte {}, and the other goes on", offset + end as u64));
        }
        if len_bytes == 0 {
            println!("{offset} bytes are the same");
            return Ok(());
        }
        offset += len_bytes as u64;
    }
}

/// Returns the content of a file of at most `most` bytes.
pub async fn read_whole(path: &str, most: usize) -> Result<Vec<u8>, String> {
    let path = path_of(path)?;
    let len_bytes = tree::stat(&path).await.map_err(about(&path))?.len_bytes;
    let Some(len_bytes) = usize::try_from(len_bytes).ok().filter(|len| *len <= most) else {
        return Err(format!("{path} has {len_bytes} bytes, and {most} are the most"));
    };
    let mut content = buffer(len_bytes)?;
    let file = tree::open_file(&path, How::Existing).await.map_err(about(&path))?;
    let mut done = 0;
    // Bytes that are appended to the file meanwhile are left out.
    while let Some(rest) = content.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match file.read(done as u64, rest).await.map_err(about(&path))? {
            0 => break,
            len_bytes => done += len_bytes,
        }
    }
    content.truncate(done);
    Ok(content)
}

/// Writes a file. An existing file is replaced when the new file is whole and on the medium.
pub async fn replace_whole(path: &Path, bytes: &[u8]) -> Outcome {
    let new = path_of(&format!("{path}.new"))?;
    let file = tree::open_file(&new, How::Empty).await.map_err(about(&new))?;
    file.write(0, bytes).await.map_err(about(&new))?;
    drop(file);
    // The content is on the medium before the name is.
    sync_volume_of(&new).await?;
    tree::rename(&new, path).await.map_err(about(path))?;
    sync_volume_of(path).await
}

/// Waits until everything written to the filesystem that a path is on is on the medium.
async fn sync_volume_of(path: &Path) -> Outcome {
    let (volume, _) = tree::find(path).map_err(said)?;
    volume.sync().await.map_err(about(path))
}

/// Returns where a file goes that is copied or moved to `to`: into it, if it is a directory.
async fn target(from: &Path, to: Path) -> Result<Path, String> {
    match tree::stat(&to).await {
        Ok(Stat { kind: FileKind::Directory, .. }) => to.join(from.name()).map_err(said),
        Ok(_) | Err(Error::Said(FsError::NotFound)) => Ok(to),
        Err(error) => Err(about(&to)(error)),
    }
}

async fn copy_file(from: &Path, to: &Path) -> Outcome {
    let source = tree::open_file(from, How::Existing).await.map_err(about(from))?;
    let target: File = tree::open_file(to, How::Empty).await.map_err(about(to))?;
    let mut buffer = buffer(PIECE)?;
    let mut offset = 0;
    loop {
        let len_bytes = source.read(offset, &mut buffer).await.map_err(about(from))?;
        if len_bytes == 0 {
            return Ok(());
        }
        target.write(offset, buffer.get(..len_bytes).unwrap_or(&[])).await.map_err(about(to))?;
        offset += len_bytes as u64;
    }
}

pub async fn cp(mut arguments: Arguments<'_>) -> Outcome {
    let from = path_of(arguments.word("the file")?)?;
    let to = path_of(arguments.word("the copy")?)?;
    arguments.end()?;
    let to = target(&from, to).await?;
    if from == to {
        return Err("a file cannot be copied onto itself".into());
    }
    copy_file(&from, &to).await
}

pub async fn mv(mut arguments: Arguments<'_>) -> Outcome {
    let from = path_of(arguments.word("the file")?)?;
    let to = path_of(arguments.word("its new path")?)?;
    arguments.end()?;
    let to = target(&from, to).await?;
    if to.is_below(&from) {
        return Err(format!("{to} is {from} itself, or inside"));
    }
    match tree::rename(&from, &to).await {
        Err(Error::Across) => {
            copy_file(&from, &to).await?;
            // The copy is on its medium before the file is gone from its own.
            sync_volume_of(&to).await?;
            tree::remove(&from).await.map_err(about(&from))
        }
        done => done.map_err(about(&from)),
    }
}

pub async fn truncate(mut arguments: Arguments<'_>) -> Outcome {
    let path = path_of(arguments.word("the file")?)?;
    let len_bytes = arguments.number("the length in bytes")?;
    arguments.end()?;
    let file = tree::open_file(&path, How::Create).await.map_err(about(&path))?;
    file.truncate(len_bytes).await.map_err(about(&path))
}

pub async fn mkdir(mut arguments: Arguments<'_>) -> Outcome {
    let path = path_of(arguments.word("the directory")?)?;
    arguments.end()?;
    tree::make_directory(&path).await.map_err(about(&path))
}

/// The most bytes of memory that the entries take which a command still has to walk through.
const MOST_HELD: usize = 1 << 20;

/// A directory that a command walks through: its path, and its entries that are left.
type Level = (Path, Vec<Entry>);

/// Walks through the tree from `path` on. Calls `each` for each entry that is no directory, and for
/// each directory after all its entries.
async fn walk(path: &Path, mut each: impl AsyncFnMut(&Path, &Stat) -> Outcome) -> Outcome {
    let stat = tree::stat(path).await.map_err(about(path))?;
    let mut levels: Vec<Level> = Vec::new();
    if stat.kind == FileKind::Directory {
        levels.push((path.clone(), whole(path).await?));
    }
    while let Some((directory, entries)) = levels.last_mut() {
        let Some(entry) = entries.pop() else {
            let (directory, _) = levels.pop().unwrap_or((path.clone(), Vec::new()));
            each(&directory, &Stat { kind: FileKind::Directory, len_bytes: 0, modified: 0 }).await?;
            continue;
        };
        if !is_name(&entry.name) {
            return Err(format!("{directory} has a file whose name cannot be typed: '{}'", shown(&entry.name)));
        }
        let inner = directory.join(&entry.name).map_err(said)?;
        match entry.stat.kind {
            FileKind::Directory if levels.len() >= DEEPEST => {
                return Err(format!("{inner} is more than {DEEPEST} directories deep"));
            }
            FileKind::Directory => {
                levels.push((inner.clone(), whole(&inner).await?));
                let held: usize = levels.iter().flat_map(|(_, entries)| entries).map(cost).sum();
                if held > MOST_HELD {
                    return Err(format!("{inner} and the directories above it have too many entries"));
                }
            }
            _ => each(&inner, &entry.stat).await?,
        }
    }
    if stat.kind == FileKind::Directory { Ok(()) } else { each(path, &stat).await }
}

/// Returns all entries of a directory.
async fn whole(path: &Path) -> Result<Vec<Entry>, String> {
    match list(path).await? {
        (entries, false) => Ok(entries),
        (_, true) => Err(format!("{path} has more than {MOST_ENTRIES} entries")),
    }
}

pub async fn rm(mut arguments: Arguments<'_>) -> Outcome {
    let (mut deep, mut path) = (false, None);
    while let Some(word) = arguments.optional() {
        match word {
            "-r" => deep = true,
            word if path.is_none() => path = Some(path_of(word)?),
            other => return arguments.wrong(&format!("'{other}' is not known")),
        }
    }
    let Some(path) = path else { return arguments.wrong("the file is missing") };
    if deep {
        return walk(&path, async |path, _| tree::remove(path).await.map_err(about(path))).await;
    }
    tree::remove(&path).await.map_err(about(&path))
}

pub async fn du(mut arguments: Arguments<'_>) -> Outcome {
    let path = path_of(arguments.word("the path")?)?;
    arguments.end()?;
    let (mut files, mut directories, mut bytes) = (0u64, 0u64, 0u64);
    walk(&path, async |_, stat| {
        match stat.kind {
            FileKind::Directory => directories += 1,
            _ => files += 1,
        }
        bytes = bytes.saturating_add(stat.len_bytes);
        Ok(())
    })
    .await?;
    println!("{bytes} bytes in {files} files and {directories} directories");
    Ok(())
}
