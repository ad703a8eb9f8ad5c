//! Commands about disks.

use super::{Outcome, print_sum, said};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use hw::memory::buffer;
use hw::println;
use ringfence_core::arguments::Arguments;
use scsi::disk::Disk;
use sha2::{Digest, Sha256};

/// Columns that a row takes at most: one less than the narrowest usual terminal has.
const ROW: usize = 79;

pub async fn lsblk(arguments: Arguments<'_>) -> Outcome {
    arguments.end()?;
    scsi::scan::settled().await;
    let row = |cells: [&str; 7]| {
        let [name, driver, target, unit, blocks, bytes, model] = cells;
        let row = format!("{name:<8} {driver:<16} {target:>6} {unit:>4} {blocks:>10} {bytes:>6}  {model}");
        // Wider, a terminal would begin its next row with words of the device's.
        println!("{}", row.chars().take(ROW).collect::<String>().trim_end());
    };
    row(["DISK", "DRIVER", "TARGET", "UNIT", "BLOCKS", "BYTES", "MODEL"]);
    for disk in scsi::scan::disks() {
        row([
            &disk.name,
            &disk.handle().lock().name,
            &disk.target.to_string(),
            &disk.lun.to_string(),
            &disk.capacity().blocks.to_string(),
            &disk.capacity().block_bytes.to_string(),
            &format!("{} {} {}", disk.identity.vendor, disk.identity.product, disk.identity.revision),
        ]);
    }
    Ok(())
}

pub async fn rescan(arguments: Arguments<'_>) -> Outcome {
    arguments.end()?;
    scsi::scan::look_at_all();
    scsi::scan::settled().await;
    println!("{} disks", scsi::scan::disks().len());
    Ok(())
}

async fn find_disk(name: &str) -> Result<Arc<Disk>, String> {
    let find = || scsi::scan::disks().into_iter().find(|disk| disk.name == name);
    // One that is known already need not wait for others.
    let found = match find() {
        Some(disk) if !disk.host().is_in_doubt() => Some(disk),
        _ => {
            scsi::scan::settled().await;
            find()
        }
    };
    found.ok_or_else(|| format!("there is no disk '{name}'; 'lsblk' lists them"))
}

/// Bytes that are moved at once.
const PIECE: usize = 256 << 10;

/// Calls for each piece of `blocks` blocks from `lba`: its first block, and its length in bytes.
fn pieces(disk: &Disk, lba: u64, blocks: u64) -> impl Iterator<Item = (u64, usize)> {
    let block_bytes = disk.block_bytes();
    let each = (PIECE / block_bytes) as u64;
    (0..blocks.div_ceil(each)).map(move |piece| {
        let first = piece * each;
        (lba + first, (blocks - first).min(each) as usize * block_bytes)
    })
}

fn check_range(disk: &Disk, lba: u64, blocks: u64) -> Outcome {
    match lba.checked_add(blocks) {
        Some(end) if end <= disk.capacity().blocks => Ok(()),
        _ => Err(format!("{} has only {} blocks", disk.name, disk.capacity().blocks)),
    }
}

/// Fills `data` with a pattern that differs with the seed and the block's address (xorshift64*).
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
    check_range(&disk, lba, blocks)?;
    let mut sum = Sha256::new();
    let mut buffer = buffer(PIECE)?;
    for (lba, len_bytes) in pieces(&disk, lba, blocks) {
        let data = buffer.get_mut(..len_bytes).unwrap_or(&mut []);
        disk.read(lba, data).await.map_err(said)?;
        sum.update(data);
    }
    print_sum(&sum.finalize().into(), blocks * disk.block_bytes() as u64);
    Ok(())
}

/// Disk, first block, count and seed, as the commands about patterns take them.
async fn pattern_arguments(mut arguments: Arguments<'_>) -> Result<(Arc<Disk>, u64, u64, u64), String> {
    let disk = find_disk(arguments.word("the disk")?).await?;
    let (lba, blocks) = (arguments.number("the first block")?, arguments.number("the count")?);
    let seed = arguments.number("the seed")?;
    arguments.end()?;
    check_range(&disk, lba, blocks)?;
    Ok((disk, lba, blocks, seed))
}

/// Writes the pattern of `seed` and waits until the disk has it for good; returns its checksum.
async fn write_pattern(disk: &Disk, lba: u64, blocks: u64, seed: u64) -> Result<Sha256, String> {
    let mut sum = Sha256::new();
    let mut buffer = buffer(PIECE)?;
    for (lba, len_bytes) in pieces(disk, lba, blocks) {
        let data = buffer.get_mut(..len_bytes).unwrap_or(&mut []);
        fill(data, lba, seed);
        disk.write(lba, data).await.map_err(said)?;
        sum.update(data);
    }
    disk.flush().await.map_err(said)?;
    Ok(sum)
}

pub async fn blkwrite(arguments: Arguments<'_>) -> Outcome {
    let (disk, lba, blocks, seed) = pattern_arguments(arguments).await?;
    let sum = write_pattern(&disk, lba, blocks, seed).await?;
    print_sum(&sum.finalize().into(), blocks * disk.block_bytes() as u64);
    Ok(())
}

pub async fn blkcopy(mut arguments: Arguments<'_>) -> Outcome {
    let from = find_disk(arguments.word("the disk to read")?).await?;
    let from_lba = arguments.number("the first block to read")?;
    let to = find_disk(arguments.word("the disk to write")?).await?;
    let to_lba = arguments.number("the first block to write")?;
    let blocks = arguments.number("the count")?;
    arguments.end()?;
    if from.block_bytes() != to.block_bytes() {
        return Err("the disks have blocks of different lengths".to_string());
    }
    check_range(&from, from_lba, blocks)?;
    check_range(&to, to_lba, blocks)?;
    let mut sum = Sha256::new();
    let mut buffer = buffer(PIECE)?;
    for ((read, len_bytes), (write, _)) in pieces(&from, from_lba, blocks).zip(pieces(&to, to_lba, blocks)) {
        let data = buffer.get_mut(..len_bytes).unwrap_or(&mut []);
        from.read(read, data).await.map_err(said)?;
        to.write(write, data).await.map_err(said)?;
        sum.update(data);
    }
    to.flush().await.map_err(said)?;
    print_sum(&sum.finalize().into(), blocks * from.block_bytes() as u64);
    Ok(())
}

/// Reads `blocks` blocks from `lba` and compares them with the pattern of `seed`.
async fn verify(disk: &Disk, lba: u64, blocks: u64, seed: u64) -> Outcome {
    let (mut buffer, mut expected) = (buffer(PIECE)?, buffer(PIECE)?);
    for (lba, len_bytes) in pieces(disk, lba, blocks) {
        let data = buffer.get_mut(..len_bytes).unwrap_or(&mut []);
        let expected = expected.get_mut(..len_bytes).unwrap_or(&mut []);
        fill(expected, lba, seed);
        disk.read(lba, data).await.map_err(said)?;
        if let Some(at) = data.iter().zip(&*expected).position(|(is, should)| is != should) {
            return Err(format!("block {} is not what was written", lba + (at / disk.block_bytes()) as u64));
        }
    }
    Ok(())
}

pub async fn blkverify(arguments: Arguments<'_>) -> Outcome {
    let (disk, lba, blocks, seed) = pattern_arguments(arguments).await?;
    verify(&disk, lba, blocks, seed).await?;
    println!("{blocks} blocks are as they were written");
    Ok(())
}

pub async fn blkcheck(arguments: Arguments<'_>) -> Outcome {
    let (disk, lba, blocks, seed) = pattern_arguments(arguments).await?;
    write_pattern(&disk, lba, blocks, seed).await?;
    verify(&disk, lba, blocks, seed).await?;
    println!("{blocks} blocks were written and read back");
    Ok(())
}
