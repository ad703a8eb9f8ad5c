//! The tests that any disk driver must pass, for any class of disks.

use super::Bench;
use anyhow::{Context, Result, bail};
use ringfence_link::event::Event;

/// A test of a disk driver.
pub type Test = fn(&mut Bench) -> Result<()>;

/// Number of blocks on each of the two disks.
pub const BLOCKS: u64 = 4096;

/// Names, meanings and functions of the tests. Each test has its own machine with two empty disks.
pub const TESTS: &[(&str, &str, Test)] = &[
    ("identify", "disks are there, as long as their images are", identify),
    ("patterns", "all blocks are written and read back", patterns),
    ("sizes", "requests of each length from 1 to 300 blocks, at odd places, come back", sizes),
    ("depth", "many requests at once, in both directions, are all carried out", depth),
    ("end", "the last block is there, and none behind it", end),
    ("restart", "a driver that is ended in the middle of copies loses nothing", restart),
    ("ring-change", "a driver that changes its ring or kind in the middle of copies loses nothing", ring_change),
    ("unload", "a driver that is unloaded and loaded again works, and no memory is gone", unload),
];

/// The test for adapters only: a block device has one disk, for ever.
pub const OF_ADAPTERS: (&str, &str, Test) =
    ("hot-plug", "a disk that is plugged in is found by a rescan, and one that is pulled is gone", hot_plug);

/// The test on disks that report errors ([`error_rules`]).
pub const BAD_BLOCK: (&str, &str, Test) =
    ("bad-block", "a block that the disk cannot read or write fails its own requests, and no others", bad_block);

/// The test with each size of the device's ring, where the machine chooses it.
pub const RING_SIZE: (&str, &str, Test) =
    ("ring-size", "with rings of the smallest size and of the largest, nothing is lost", ring_size);

/// Blocks that cannot be read, and blocks that cannot be written, each with the number of the error
/// of the host (`errno`). QEMU reports ENODATA as MEDIUM ERROR and ENOSPC as DATA PROTECT to a SCSI
/// disk's driver, and EIO as ABORTED COMMAND (`scsi_sense_from_errno` in `scsi/utils.c`).
const UNREADABLE: [(u64, u32); 2] = [(100, ENODATA), (300, EIO)];
const UNWRITABLE: [(u64, u32); 2] = [(500, ENOSPC), (700, EIO)];
const EIO: u32 = 5;
const ENOSPC: u32 = 28;
pub const ENODATA: u32 = 61;

/// Returns the rules of QEMU's `blkdebug` for disks that report errors for some blocks.
pub fn error_rules() -> String {
    rules("read_aio", &UNREADABLE) + &rules("write_aio", &UNWRITABLE)
}

/// Returns rules of QEMU's `blkdebug`: each access of one kind to one of the blocks ends with the
/// error of the host behind it.
pub fn rules(event: &str, blocks: &[(u64, u32)]) -> String {
    let rule = |(sector, errno): &_| {
        format!("[inject-error]\nevent = \"{event}\"\nsector = \"{sector}\"\nerrno = \"{errno}\"\n")
    };
    blocks.iter().map(rule).collect()
}

fn disks(bench: &mut Bench) -> Result<Vec<(String, u64)>> {
    bench.run("blkread disk0 0 1")?;
    bench.running.type_line("lsblk")?;
    let mut disks = Vec::new();
    loop {
        let next = bench.running.wait_for_event("lsblk", |event| match event {
            Event::Disk(disk) => Some(Some((disk.name.to_string(), disk.blocks))),
            Event::Command { line, .. } if line == "lsblk" => Some(None),
            _ => None,
        })?;
        match next {
            Some(disk) => disks.push(disk),
            None => return Ok(disks),
        }
    }
}

fn identify(bench: &mut Bench) -> Result<()> {
    let found = disks(bench)?;
    if found.len() != 2 || found.iter().any(|(_, blocks)| *blocks != BLOCKS) {
        bail!("two disks of {BLOCKS} blocks are there as {found:?}");
    }
    Ok(())
}

fn patterns(bench: &mut Bench) -> Result<()> {
    for (disk, seed) in [("disk0", 1), ("disk1", 2), ("disk0", 3)] {
        bench.run(&format!("blkcheck {disk} 0 {BLOCKS} {seed}"))?;
    }
    Ok(())
}

fn sizes(bench: &mut Bench) -> Result<()> {
    for blocks in [1, 2, 3, 7, 8, 9, 63, 64, 65, 127, 128, 129, 255, 256, 257, 300] {
        bench.run(&format!("blkcheck disk0 {} {blocks} {blocks}", 11 * blocks % 3001))?;
    }
    Ok(())
}

fn depth(bench: &mut Bench) -> Result<()> {
    bench.run(&format!("blkwrite disk0 0 {BLOCKS} 5"))?;
    for _ in 0..3 {
        bench.run(&format!("blkcopy disk0 0 disk1 0 {BLOCKS}"))?;
        bench.run(&format!("blkcopy disk1 0 disk0 0 {BLOCKS}"))?;
    }
    same(bench)
}

/// Checks that both disks have the same contents.
fn same(bench: &mut Bench) -> Result<()> {
    let mut sum = |disk: &str| {
        bench.running.type_line(&format!("blkread {disk} 0 {BLOCKS}"))?;
        let data = |event| if let Event::Data { sha256, .. } = event { Some(sha256) } else { None };
        bench.running.wait_for_event("what was read", data)
    };
    if sum("disk0")? != sum("disk1")? {
        bail!("a copy is not what it was copied from");
    }
    Ok(())
}

fn end(bench: &mut Bench) -> Result<()> {
    bench.run(&format!("blkcheck disk0 {} 1 9", BLOCKS - 1))?;
    bench.run(&format!("blkcheck disk0 {} 200 9", BLOCKS - 200))?;
    bench.fail(&format!("blkread disk0 {BLOCKS} 1"))?;
    bench.fail(&format!("blkread disk0 {} 2", BLOCKS - 1))?;
    bench.run("blkcheck disk0 0 8 9")
}

fn bad_block(bench: &mut Bench) -> Result<()> {
    for round in 0..2 {
        for (block, _) in UNREADABLE {
            bench.fail(&format!("blkread disk0 {block} 1"))?;
            bench.fail(&format!("blkread disk0 {} 100", block - 50))?;
            bench.run(&format!("blkread disk0 {} 1", block - 1))?;
            bench.run(&format!("blkcheck disk0 {} 99 {round}", block + 1))?;
        }
        for (block, _) in UNWRITABLE {
            bench.fail(&format!("blkwrite disk0 {block} 1 8"))?;
            bench.fail(&format!("blkwrite disk0 {} 100 8", block - 50))?;
            bench.run(&format!("blkread disk0 {} 100", block - 50))?;
            bench.run(&format!("blkcheck disk0 {} 99 {round}", block + 1))?;
        }
        // The errors come between requests of both directions that are carried out.
        let commands =
            ["blkcheck disk0 1000 2000 7", "blkcopy disk0 0 disk1 1000 1000", "blkcopy disk0 3000 disk1 0 1000"];
        match bench.at_once(commands)? {
            [None, Some(_), Some(_)] => {}
            ends => bail!("a check and two copies from or to bad blocks ended so: {ends:?}"),
        }
        bench.run("blkverify disk0 1000 2000 7")?;
        // A successor knows no more of the bad blocks than its predecessor.
        bench.end_driver()?;
    }
    Ok(())
}

fn ring_size(bench: &mut Bench) -> Result<()> {
    identify(bench)?;
    bench.run("blkcheck disk0 7 300 3")?;
    depth(bench)?;
    bench.end_driver()?;
    same(bench)
}

fn restart(bench: &mut Bench) -> Result<()> {
    bench.run(&format!("blkwrite disk0 0 {BLOCKS} 6"))?;
    for _ in 0..5 {
        bench.running.type_line(&format!("blkcopy disk0 0 disk1 0 {BLOCKS} &"))?;
        bench.end_driver()?;
        bench.end_driver()?;
        bench.run(&format!("blkcopy disk0 0 disk1 0 {BLOCKS}"))?;
    }
    same(bench)
}

fn ring_change(bench: &mut Bench) -> Result<()> {
    bench.run(&format!("blkwrite disk0 0 {BLOCKS} 7"))?;
    let moves = bench.moves();
    for line in moves.iter().chain(&moves) {
        bench.running.type_line(&format!("blkcopy disk0 0 disk1 0 {BLOCKS} &"))?;
        bench.run(line)?;
        bench.run(&format!("blkcopy disk0 0 disk1 0 {BLOCKS}"))?;
    }
    same(bench)
}

fn hot_plug(bench: &mut Bench) -> Result<()> {
    const MORE: u64 = 2048;
    let image = tempfile::NamedTempFile::new()?;
    image.as_file().set_len(MORE * 512)?;
    let mut tell = |command: &str, arguments: serde_json::Value| {
        bench.monitor.execute(&serde_json::json!({ "execute": command, "arguments": arguments }).to_string())
    };
    let drive = serde_json::json!({ "driver": "file", "node-name": "more", "filename": image.path() });
    tell("blockdev-add", drive)?;
    let device =
        serde_json::json!({ "driver": "scsi-hd", "drive": "more", "id": "hot", "bus": "hba0.0", "scsi-id": 5 });
    tell("device_add", device)?;
    bench.run("rescan")?;
    let found = disks(bench)?;
    let blocks: Vec<u64> = found.iter().map(|(_, blocks)| *blocks).collect();
    if blocks != [BLOCKS, BLOCKS, MORE] {
        bail!("two disks of {BLOCKS} blocks and one of {MORE} are there as {found:?}");
    }
    bench.run(&format!("blkcheck disk2 0 {MORE} 4"))?;
    bench.end_driver()?;
    bench.run(&format!("blkverify disk2 0 {MORE} 4")).context("after a restart")?;
    bench.monitor.execute(r#"{"execute": "device_del", "arguments": {"id": "hot"}}"#)?;
    bench.run("rescan")?;
    bench.fail("blkread disk2 0 1")?;
    bench.run("blkcheck disk1 0 64 5")
}

fn unload(bench: &mut Bench) -> Result<()> {
    let name = bench.name.clone();
    let mut free = Vec::new();
    for seed in 0..3 {
        bench.run("blkread disk0 0 1")?;
        bench.run(&format!("rmmod {name}"))?;
        free.push(bench.free_frames()?);
        bench.load(1)?;
        bench.run(&format!("blkcheck disk0 0 100 {seed}")).context("loaded again")?;
    }
    // The first round allocates tables that are kept, so only the later rounds are compared.
    if free[1] != free[2] {
        bail!("{} frames of memory are gone", free[1].abs_diff(free[2]));
    }
    Ok(())
}
