//! Measures operations on files, which a filesystem and the driver of its disk carry out together,
//! both in the same ring.
//!
//! The filesystems must be mounted (`mount disk1 /fat`). A filesystem that cannot be written must
//! have the file [`FILE`]. Data that is read is not in the kernel's cache before. Data that is
//! written is on the disk afterwards.

use super::{Cost, Plan, Row, Stopwatch, alone, announce, check_trust, kinds, put_into, sample_begins, sample_ends};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use block::{cache, disk};
use embassy_futures::yield_now;
use fs::error::Error;
use fs::file::How;
use fs::tree::{self, Mount};
use host::domain::{Handle, Ring, sleep};
use hw::memory::buffer;
use ringfence_core::path::Path;

/// The name of the file that is read and written, and its length in bytes.
const FILE: &str = "bench";
const LEN_BYTES: u64 = 4 << 20;
/// How much one request moves, in bytes.
const PIECE: usize = 64 << 10;
/// Files that are made and removed for one sample.
const FILES: usize = 32;
/// Operations on each: make, describe, remove.
const OPERATIONS: usize = 3;
const SAMPLES: usize = 7;

/// The operations on files that a row measures.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Work {
    Read,
    Write,
    Names,
}

/// The rows: the beginning of the format's name, and its rows with their work.
const FORMATS: [(&str, &[(&str, Work)]); 2] = [
    ("FAT", &[("fs/fat/write", Work::Write), ("fs/fat/read", Work::Read), ("fs/fat/names", Work::Names)]),
    ("ext", &[("fs/ext/read", Work::Read)]),
];

/// Measures the rows of a plan.
pub async fn run(plan: Plan<'_>, print: &mut impl FnMut(&Row)) -> Result<(), String> {
    for (format, rows) in FORMATS {
        if !rows.iter().any(|(name, _)| plan.wants(name, 1)) {
            continue;
        }
        let mount = || tree::mounts().into_iter().find(|mount| mount.volume.format().starts_with(format));
        let filesystem = || mount().map(|mount| mount.volume.handle());
        let disk = || {
            let of = mount()?;
            disk::all().into_iter().find(|disk| disk.name() == of.volume.disk()).map(|disk| disk.handle())
        };
        let Some(one) = filesystem() else { continue };
        // Both are of the same kind while they are measured.
        let other = disk().ok_or("the disk is gone")?;
        let kinds = kinds::of_both(&plan, &one, &other)?;
        [&one, &other].into_iter().for_each(|handle| announce(&plan, &kinds, handle));
        kinds::alternate(plan, &kinds, print, async |plan, done| {
            kinds::of_one(plan, filesystem, async |plan, filesystem| {
                kinds::of_one(plan, disk, async |plan, disk| {
                    let mount = mount().ok_or("the filesystem is gone")?;
                    let drivers = [filesystem.clone(), disk];
                    for (name, work) in rows.iter().filter(|(name, _)| plan.wants(name, 1)) {
                        done.add(measure(plan, name, *work, &mount, &drivers).await?);
                        yield_now().await;
                    }
                    Ok(())
                })
                .await
            })
            .await
        })
        .await?;
    }
    if tree::mounts().is_empty() && plan.prefix.starts_with("fs") {
        return Err("no filesystem is mounted".into());
    }
    Ok(())
}

/// Moves both drivers when they do not sleep.
async fn set_rings(drivers: &[Handle], rings: &[Ring]) {
    for (handle, ring) in drivers.iter().zip(rings) {
        sleep::awake(handle).await;
        put_into(handle, *ring);
    }
}

/// Measures one row in each ring.
async fn measure(
    plan: Plan<'_>,
    name: &'static str,
    work: Work,
    mount: &Mount,
    drivers: &[Handle; 2],
) -> Result<Vec<Row>, String> {
    let unit = if work == Work::Names { "operations/s" } else { "MB/s" };
    let factor = if work == Work::Names { 1.0 } else { PIECE as f64 / 1e6 };
    let rings: Vec<Ring> = plan.rings().collect();
    drivers.iter().try_for_each(|handle| check_trust(&rings, handle))?;
    let row = |ring: &Ring| Row::new(name, plan.mode.unit(unit)).batch(1).driver(&drivers[0], *ring);
    let mut rows: Vec<Row> = rings.iter().map(row).collect();
    let before: Vec<Ring> = drivers.iter().map(|handle| handle.lock().ring()).collect();
    if work == Work::Read && !mount.volume.is_read_only() {
        // There may be no such file yet.
        sample(Work::Write, mount).await?;
    }
    let _alone = alone();
    let mut outcome = Ok(());
    // The first sample of each ring fills caches, and is left out.
    'all: for number in 0..=plan.samples(SAMPLES) {
        for (ring, row) in rings.iter().zip(&mut rows) {
            set_rings(drivers, &[*ring; 2]).await;
            match sample(work, mount).await {
                Ok(cost) if number > 0 => row.samples.push(cost.value(plan.mode, factor)),
                Ok(_) => {}
                Err(error) => {
                    outcome = Err(error);
                    break 'all;
                }
            }
        }
    }
    set_rings(drivers, &before).await;
    outcome.map(|()| rows)
}

/// Returns the path of a file on a filesystem.
fn path(mount: &Mount, name: &str) -> Result<Path, String> {
    mount.at.join(name).map_err(|bad| format!("{bad}"))
}

async fn sample(work: Work, mount: &Mount) -> Result<Cost, String> {
    match work {
        Work::Read => read(mount).await,
        Work::Write => write(mount).await,
        Work::Names => names(mount).await,
    }
    .map_err(|error| format!("{}: {error}", mount.at))
}

/// A sample that is being taken.
struct Sample(Stopwatch);

impl Sample {
    fn begin() -> Sample {
        sample_begins();
        Sample(Stopwatch::start())
    }

    fn end(self, count: usize) -> Cost {
        let cost = self.0.stop(count);
        sample_ends();
        cost
    }
}

async fn read(mount: &Mount) -> Result<Cost, Error> {
    let file = tree::open_file(&path(mount, FILE).map_err(Error::Memory)?, How::Existing).await?;
    let mut bytes = buffer(PIECE).map_err(Error::Memory)?;
    cache::forget_all().await;
    let (mut pieces, mut offset) = (0, 0);
    let sample = Sample::begin();
    loop {
        let len_bytes = file.read(offset, &mut bytes).await?;
        if len_bytes == 0 {
            return Ok(sample.end(pieces));
        }
        pieces += 1;
        offset += len_bytes as u64;
    }
}

async fn write(mount: &Mount) -> Result<Cost, Error> {
    let file = tree::open_file(&path(mount, FILE).map_err(Error::Memory)?, How::Empty).await?;
    let mut bytes = buffer(PIECE).map_err(Error::Memory)?;
    bytes.fill(0x52);
    mount.volume.sync().await?;
    let sample = Sample::begin();
    for offset in (0..LEN_BYTES).step_by(PIECE) {
        file.write(offset, &bytes).await?;
    }
    mount.volume.sync().await?;
    Ok(sample.end((LEN_BYTES / PIECE as u64) as usize))
}

async fn names(mount: &Mount) -> Result<Cost, Error> {
    let paths: Result<Vec<Path>, String> = (0..FILES).map(|number| path(mount, &format!("file-{number}"))).collect();
    let paths = paths.map_err(Error::Memory)?;
    mount.volume.sync().await?;
    let sample = Sample::begin();
    for path in &paths {
        drop(tree::open_file(path, How::Create).await?);
    }
    for path in &paths {
        tree::stat(path).await?;
    }
    for path in &paths {
        tree::remove(path).await?;
    }
    mount.volume.sync().await?;
    Ok(sample.end(FILES * OPERATIONS))
}
