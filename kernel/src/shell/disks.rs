//! Commands about disks.

use super::{Outcome, print_sum};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use block::client::Writing;
use block::disk::{self, Disk};
use block::{cache, partition};
use hw::memory::buffer;
use hw::{link, println};
use ringfence_core::arguments::Arguments;
use ringfence_link::event::{self, Event};
use sha2::{Digest, Sha256};

/// The maximum number of columns in a row: one less than the narrowest usual terminal has.
const ROW: usize = 79;

pub async fn lsblk(arguments: Arguments<'_>) -> Outcome {
    arguments.end()?;
    disk::settled().await;
    partition::look().await;
    let row = |cells: [&str; 7]| {
        let [name, driver, target, unit, blocks, bytes, model] = cells;
        let row = format!("{name:<8} {driver:<16} {target:>6} {unit:>4} {blocks:>10} {bytes:>6}  {model}");
        // A longer row would wrap, and the next terminal row would begin with text that the device
        // chose.
        println!("{}", row.chars().take(ROW).collect::<String>().trim_end());
    };
    row(["DISK", "DRIVER", "TARGET", "UNIT", "BLOCKS", "BYTES", "MODEL"]);
    for disk in disk::all() {
        let [target, unit] = match disk.place() {
            Some((target, unit)) => [target.to_string(), unit.to_string()],
            None => ["-", "-"].map(String::from),
        };
        let (driver, model) = (disk.handle().lock().name.clone(), disk.model());
        let [blocks, bytes] = [disk.blocks().to_string(), disk.block_bytes().to_string()];
        row([disk.name(), &driver, &target, &unit, &blocks, &bytes, &model]);
        link::tell(&Event::Disk(event::Disk {
            name: disk.name().into(),
            driver: driver.into(),
            place: disk.place(),
            blocks: disk.blocks(),
            block_bytes: disk.block_bytes() as u64,
            model: model.into(),
        }));
    }
    Ok(())
}

pub async fn rescan(arguments: Arguments<'_>) -> Outcome {
    arguments.end()?;
    disk::look_again();
    disk::settled().await;
    println!("{} disks", disk::all().len());
    Ok(())
}

/// Returns the disk called `name`, when all data that filesystems have written so far is on it.
pub async fn find_disk(name: &str) -> Result<Arc<dyn Disk>, String> {
    let found = look_up(name).await?;
    cache::written(&*found).await;
    Ok(found)
}

/// Returns the disk called `name`; the searches for disks that are due end first.
async fn look_up(name: &str) -> Result<Arc<dyn Disk>, String> {
    let find = || disk::all().into_iter().find(|disk| disk.name() == name);
    // A disk that is known already need not wait for the others.
    let found = match find() {
        Some(disk) if !disk.is_in_doubt() => Some(disk),
        _ => {
            disk::settled().await;
            if find().is_none() {
                partition::look().await;
            }
            find()
        }
    };
    found.ok_or_else(|| format!("there is no disk '{name}'; 'lsblk' lists them"))
}

/// Begins to write to a disk, unless it has a filesystem.
fn to_write(disk: &Arc<dyn Disk>) -> Result<Writing, String> {
    Writing::begin(disk).map_err(|driver| format!("{} is in use by {driver}", disk.name()))
}

/// The number of bytes that are moved at once.
const PIECE: usize = 256 << 10;

/// Splits `blocks` blocks from `lba` into pieces. Returns the first block and the length in bytes
/// of each piece.
fn pieces(disk: &dyn Disk, lba: u64, blocks: u64) -> impl Iterator<Item = (u64, usize)> {
    let block_bytes = disk.block_bytes();
    let each = (PIECE / block_bytes) as u64;
    (0..blocks.div_ceil(each)).map(move |piece| {
        let first = piece * each;
        (lba + first, (blocks - first).min(each) as usize * block_bytes)
    })
}

fn check_range(disk: &dyn Disk, lba: u64, blocks: u64) -> Outcome {
    match lba.checked_add(blocks) {
        Some(end) if end <= disk.blocks() => Ok(()),
        _ => Err(format!("{} has only {} blocks", disk.name(), disk.blocks())),
    }
}

/// Fills `data` with a pattern that depends on the seed and the block's address (xorshift64*).
fn fill(data: &mut [u8], lba: u64, seed: u64) {
    let mut state = (seed << 1 ^ lba.wrapping_mul(0x9e37_79b9_7f4a_7c15)) | 1;
    for word in data.chunks_mut(8) {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        let bytes = state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes();
        word.copy_from_slice(bytes.get(..word.len()).unwrap_or(&bytes));
    }
}

pub async fn blkread(mut arguments: Arguments<'_>) -> Outcome {
    let disk = find_disk(arguments.word("the disk")?).await?;
    let (lba, blocks) = (arguments.number("the first block")?, arguments.number("the count")?);
    arguments.end()?;
    check_range(&*disk, lba, blocks)?;
    let mut sum = Sha256::new();
    let mut buffer = buffer(PIECE)?;
    for (lba, len_bytes) in pieces(&*disk, lba, blocks) {
        let data = buffer.get_mut(..len_bytes).unwrap_or(&mut []);
        disk.read(lba, data).await?;
        sum.update(data);
    }
    print_sum(&sum.finalize().into(), blocks * disk.block_bytes() as u64);
    Ok(())
}

/// Parses the arguments of the commands about patterns: disk, first block, count and seed.
async fn pattern_arguments(mut arguments: Arguments<'_>) -> Result<(Arc<dyn Disk>, u64, u64, u64), String> {
    let disk = find_disk(arguments.word("the disk")?).await?;
    let (lba, blocks) = (arguments.number("the first block")?, arguments.number("the count")?);
    let seed = arguments.number("the seed")?;
    arguments.end()?;
    check_range(&*disk, lba, blocks)?;
    Ok((disk, lba, blocks, seed))
}

/// Writes the pattern of `seed` and flushes the disk. Calls `with` for each piece of the pattern.
async fn write_pattern(disk: &dyn Disk, lba: u64, blocks: u64, seed: u64, mut with: impl FnMut(&[u8])) -> Outcome {
    let mut buffer = buffer(PIECE)?;
    for (lba, len_bytes) in pieces(disk, lba, blocks) {
        let data = buffer.get_mut(..len_bytes).unwrap_or(&mut []);
        fill(data, lba, seed);
        disk.write(lba, data).await?;
        with(data);
    }
    disk.flush().await?;
    Ok(())
}

pub async fn blkwrite(arguments: Arguments<'_>) -> Outcome {
    let (disk, lba, blocks, seed) = pattern_arguments(arguments).await?;
    let _writing = to_write(&disk)?;
    let mut sum = Sha256::new();
    write_pattern(&*disk, lba, blocks, seed, |data| sum.update(data)).await?;
    print_sum(&sum.finalize().into(), blocks * disk.block_bytes() as u64);
    Ok(())
}

pub async fn blkreset(mut arguments: Arguments<'_>) -> Outcome {
    let disk = look_up(arguments.word("the disk")?).await?;
    arguments.end()?;
    disk.reset().await?;
    println!("{} was reset; what it had not done is sent again", disk.name());
    Ok(())
}

pub async fn blkcopy(mut arguments: Arguments<'_>) -> Outcome {
    let from = find_disk(arguments.word("the disk to read")?).await?;
    let from_lba = arguments.number("the first block to read")?;
    let to = find_disk(arguments.word("the disk to write")?).await?;
    let _writing = to_write(&to)?;
    let to_lba = arguments.number("the first block to write")?;
    let blocks = arguments.number("the count")?;
    arguments.end()?;
    if from.block_bytes() != to.block_bytes() {
        return Err("the disks have blocks of different lengths".to_string());
    }
    check_range(&*from, from_lba, blocks)?;
    check_range(&*to, to_lba, blocks)?;
    let mut sum = Sha256::new();
    let mut buffer = buffer(PIECE)?;
    for ((read, len_bytes), (write, _)) in pieces(&*from, from_lba, blocks).zip(pieces(&*to, to_lba, blocks)) {
        let data = buffer.get_mut(..len_bytes).unwrap_or(&mut []);
        from.read(read, data).await?;
        to.write(write, data).await?;
        sum.update(data);
    }
    to.flush().await?;
    print_sum(&sum.finalize().into(), blocks * from.block_bytes() as u64);
    Ok(())
}

/// Reads `blocks` blocks from `lba` and compares them with the pattern of `seed`.
async fn verify(disk: &dyn Disk, lba: u64, blocks: u64, seed: u64) -> Outcome {
    let (mut buffer, mut expected) = (buffer(PIECE)?, buffer(PIECE)?);
    for (lba, len_bytes) in pieces(disk, lba, blocks) {
        let data = buffer.get_mut(..len_bytes).unwrap_or(&mut []);
        let expected = expected.get_mut(..len_bytes).unwrap_or(&mut []);
        fill(expected, lba, seed);
        disk.read(lba, data).await?;
        if let Some(at) = data.iter().zip(&*expected).position(|(is, should)| is != should) {
            return Err(format!("block {} is not what was written", lba + (at / disk.block_bytes()) as u64));
        }
    }
    Ok(())
}

pub async fn blkverify(arguments: Arguments<'_>) -> Outcome {
    let (disk, lba, blocks, seed) = pattern_arguments(arguments).await?;
    verify(&*disk, lba, blocks, seed).await?;
    println!("{blocks} blocks are as they were written");
    Ok(())
}

pub async fn blkcheck(arguments: Arguments<'_>) -> Outcome {
    let (disk, lba, blocks, seed) = pattern_arguments(arguments).await?;
    let _writing = to_write(&disk)?;
    write_pattern(&*disk, lba, blocks, seed, |_| ()).await?;
    verify(&*disk, lba, blocks, seed).await?;
    println!("{blocks} blocks were written and read back");
    Ok(())
}
