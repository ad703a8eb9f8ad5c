//! Reads and writes through a SCSI driver.

use super::kinds::Done;
use super::{Cost, Mode, Plan, Row, Stopwatch, kinds, wait_for_interrupt};
use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use embassy_futures::yield_now;
use host::domain::{Handle, trace};
use host::poll::{self, Polled};
use host::requests::queue::{Moves, Ticket};
use hw::println;
use ringfence_abi::scsi::{MAX_DATA, Outcome, SenseKey};
use ringfence_abi::upcall::Events;
use ringfence_core::cdb;
use scsi::command::{ScsiError, check_outcome};
use scsi::disk::Disk;
use scsi::queues::{Asked, Queues};

/// The number of transfers in one sample, and the number of samples.
const EACH: usize = 128;
const SAMPLES: usize = 15;
/// The numbers of requests handed over in one crossing, with up to 32 requests under way.
const BATCHES: [usize; 3] = [1, 8, 32];
const DEPTH: usize = 32;
const SMALL: usize = 4096;
/// The rows of writes, with their depths and batches.
const SEQUENTIAL: &str = "scsi/seq-write";
const WRITES: [(&str, usize, usize); 3] =
    [("scsi/write4k/depth1", 1, 1), ("scsi/write4k/depth32", DEPTH, DEPTH), (SEQUENTIAL, 8, 8)];
/// The number of places that sequential writes go to.
const LARGE_PLACES: usize = 16;

/// The work of a sample.
struct Work<'a> {
    len_bytes: usize,
    /// The number of requests that can be under way, and how many are handed over in one crossing.
    depth: usize,
    batch: usize,
    /// The block where each transfer begins. They are used one after the other, again and again.
    places: &'a [u64],
    /// For writes, the content of these places: `len_bytes` bytes for each.
    content: Option<&'a [u8]>,
}

/// Measures transfers per second, if there is a disk.
pub async fn run(plan: Plan<'_>, print: &mut impl FnMut(&Row)) -> Result<(), String> {
    scsi::scan::settled().await;
    let Some(disk) = scsi::scan::disks().into_iter().next() else { return Ok(()) };
    kinds::each(plan, || Some(disk.handle()), print, async |plan, _, done| of_disk(plan, &disk, done).await).await
}

/// Waits until nobody else has requests for the disk's driver. A disk tells its next reader of a
/// reset, such as that of a reload, and is looked at again then.
async fn calm(disk: &Disk) -> Result<(), String> {
    let mut block = vec![0; disk.block_bytes()];
    disk.read(0, &mut block).await.map_err(|error| error.to_string())?;
    scsi::scan::settled().await;
    Ok(())
}

async fn of_disk(plan: Plan<'_>, disk: &Disk, done: &mut Done) -> Result<(), String> {
    calm(disk).await?;
    // In blocks: the length of a transfer, and how many places for one the disk has.
    let blocks = |len_bytes: usize| (len_bytes / disk.block_bytes()) as u64;
    let capacity = disk.capacity().blocks;
    let places = |len_bytes: usize| capacity / blocks(len_bytes);
    if places(MAX_DATA) == 0 {
        return Err("the disk is too small".to_string());
    }
    // The only requirement is that a transfer does not go to the place of the previous one.
    let mut random = 0x2545_f491_4f6c_dd1du64;
    let mut anywhere = || {
        // xorshift64
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % places(SMALL) * blocks(SMALL)
    };
    let small: Vec<u64> = (0..EACH * SAMPLES).map(|_| anywhere()).collect();
    let large: Vec<u64> = (0..EACH as u64).map(|place| place % places(MAX_DATA) * blocks(MAX_DATA)).collect();
    for (name, depth) in [("scsi/read4k/depth1", 1), ("scsi/read4k/depth32", DEPTH)] {
        for batch in BATCHES.into_iter().filter(|batch| *batch <= depth) {
            let work = Work { len_bytes: SMALL, depth, batch, places: &small, content: None };
            measure(plan, disk, name, &work, done)?;
            // Let other tasks see a Ctrl-C.
            yield_now().await;
        }
    }
    let work = Work { len_bytes: MAX_DATA, depth: 8, batch: 8, places: &large, content: None };
    measure(plan, disk, "scsi/seq", &work, done)?;
    yield_now().await;
    if WRITES.into_iter().any(|(name, _, batch)| plan.wants(name, batch)) {
        writes(plan, disk, &small, &large, done).await?;
    }
    Ok(())
}

/// Measures reads with and without a trace of the driver ([`trace`]), alternating.
pub async fn traced(plan: Plan<'_>, print: &mut impl FnMut(&Row)) -> Result<(), String> {
    const ROWS: [&str; 2] = ["trace/off", "trace/on"];
    const BATCH: usize = 8;
    scsi::scan::settled().await;
    let Some(disk) = scsi::scan::disks().into_iter().next() else { return Ok(()) };
    calm(&disk).await?;
    let blocks = (SMALL / disk.block_bytes()) as u64;
    let places: Vec<u64> = (0..disk.capacity().blocks / blocks).take(EACH).map(|place| place * blocks).collect();
    if places.is_empty() {
        return Err("the disk is too small".to_string());
    }
    let work = Work { len_bytes: SMALL, depth: DEPTH, batch: BATCH, places: &places, content: None };
    let mut next = work.places.iter().copied().enumerate().cycle();
    let handle = disk.handle();
    let (driver, ring) = {
        let domain = handle.lock();
        (domain.name.clone(), domain.ring())
    };
    if trace::of(&driver).is_some() {
        return Err(format!("{driver} was traced, and what that has kept would be lost"));
    }
    let mut rows = ROWS.map(|name| Row::new(name, plan.mode.unit("reads/s")).batch(BATCH).driver(&handle, ring));
    let _alone = super::alone();
    // Discard the first samples: they fill caches.
    for number in 0..=SAMPLES {
        for (name, row) in ROWS.into_iter().zip(&mut rows) {
            let tracing = match name == ROWS[1] {
                true => Some(trace::begin(&driver, &trace::Wish::default()).map_err(|error| error.to_string())?),
                false => None,
            };
            let cost = transfer(plan.mode, &disk, &work, &mut next);
            tracing.iter().for_each(trace::forget);
            if number > 0 {
                row.samples.push(cost?.value(plan.mode, 1.0));
            }
        }
    }
    rows.iter().filter(|row| plan.wants(row.name, BATCH)).for_each(print);
    Ok(())
}

/// Measures writes. **Every place is overwritten with its own content**, so that nobody loses data.
async fn writes(plan: Plan<'_>, disk: &Disk, small: &[u64], large: &[u64], done: &mut Done) -> Result<(), String> {
    let small = small.get(..EACH).unwrap_or(small);
    let large = large.get(..LARGE_PLACES).unwrap_or(large);
    let content = read_all(disk, small, SMALL).await?;
    // A write-protected disk is no failure. Any other error is a failure.
    if let (Some(first), Some(bytes)) = (small.first(), content.get(..SMALL))
        && let Err(error) = disk.write(*first, bytes).await
    {
        let is_protected =
            matches!(error, ScsiError::Status { sense: Some(sense), .. } if sense.key == SenseKey::DataProtect as u8);
        println!("writes are not measured: {error}");
        return if is_protected { Ok(()) } else { Err(error.to_string()) };
    }
    let large_content = read_all(disk, large, MAX_DATA).await?;
    for (name, depth, batch) in WRITES {
        let work = match name {
            SEQUENTIAL => Work { len_bytes: MAX_DATA, depth, batch, places: large, content: Some(&large_content) },
            _ => Work { len_bytes: SMALL, depth, batch, places: small, content: Some(&content) },
        };
        measure(plan, disk, name, &work, done)?;
        yield_now().await;
    }
    Ok(())
}

/// Returns the content of these places.
async fn read_all(disk: &Disk, places: &[u64], len_bytes: usize) -> Result<Vec<u8>, String> {
    let mut content = hw::memory::buffer(places.len() * len_bytes)?;
    for (place, bytes) in places.iter().zip(content.chunks_mut(len_bytes)) {
        disk.read(*place, bytes).await.map_err(|error| error.to_string())?;
    }
    Ok(content)
}

/// Measures one row, if it is wanted.
fn measure(plan: Plan<'_>, disk: &Disk, name: &'static str, work: &Work, done: &mut Done) -> Result<(), String> {
    if !plan.wants(name, work.batch) {
        return Ok(());
    }
    // Long transfers are counted in bytes.
    let (unit, factor) = match work.len_bytes {
        SMALL if work.content.is_some() => ("writes/s", 1.0),
        SMALL => ("reads/s", 1.0),
        len_bytes => ("MB/s", len_bytes as f64 / 1e6),
    };
    let mut places = work.places.iter().copied().enumerate().cycle();
    let sample = || Ok(transfer(plan.mode, disk, work, &mut places)?.value(plan.mode, factor));
    let row = || Row::new(name, plan.mode.unit(unit)).batch(work.batch);
    done.add(plan.measure(&disk.handle(), SAMPLES, sample, row)?);
    Ok(())
}

/// Requests under way, which are abandoned when a measurement ends early.
struct UnderWay<'a> {
    handle: &'a Handle,
    tickets: VecDeque<Ticket>,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        if let Some(scsi) = self.handle.lock().offered_mut::<Queues>() {
            self.tickets.iter().for_each(|ticket| scsi.abandon(*ticket));
        }
    }
}

/// Makes [`EACH`] transfers.
fn transfer(
    mode: Mode,
    disk: &Disk,
    work: &Work,
    places: &mut impl Iterator<Item = (usize, u64)>,
) -> Result<Cost, String> {
    let handle = &disk.handle();
    let len_bytes = work.len_bytes;
    let blocks = (len_bytes / disk.block_bytes()) as u32;
    // The data of a write is not copied back.
    let mut buffer = vec![0; if work.content.is_some() { 0 } else { len_bytes }];
    let mut under_way = UnderWay { handle, tickets: VecDeque::with_capacity(work.depth) };
    let (mut begun, mut done) = (0, 0);
    let watch = Stopwatch::start();
    let mut since = Stopwatch::start();
    while done < EACH {
        // A batch is sent only when the whole batch fits into the depth.
        while begun < EACH && under_way.tickets.len() + work.batch.min(EACH - begun) <= work.depth {
            {
                let mut domain = handle.lock();
                let queues = domain.offered_mut::<Queues>().ok_or("the driver is gone")?;
                for (number, place) in places.take(work.batch.min(EACH - begun)) {
                    let (cdb, moves) = match work.content {
                        None => (cdb::read(place, blocks), Moves::In(len_bytes)),
                        Some(content) => {
                            let bytes = content.get(number * len_bytes..).and_then(|rest| rest.get(..len_bytes));
                            (cdb::write(place, blocks), Moves::Out(bytes.unwrap_or_default()))
                        }
                    };
                    let ticket = queues.begin(None, &Asked::command(disk.target, disk.lun, cdb), moves);
                    under_way.tickets.push_back(ticket.map_err(|_| "the driver lies")?.ok_or("the queue is full")?);
                    begun += 1;
                }
            }
            if poll::poll(handle, Events::QUEUE) == Polled::Ended {
                return Err("the driver was ended".to_string());
            }
        }
        let before = done;
        {
            let mut domain = handle.lock();
            let queues = domain.offered_mut::<Queues>().ok_or("the driver is gone")?;
            let mut failed = None;
            let name = if work.content.is_some() { "WRITE" } else { "READ" };
            // Disks complete most requests in order. One that overtakes others is looked at after
            // them.
            while let Some(ticket) = under_way.tickets.front() {
                let check = |outcome: &Outcome| check_outcome(outcome, name, len_bytes);
                let Some(checked) = queues.finish(*ticket, &mut buffer, None, check) else { break };
                if let Err(error) = checked.map_err(ScsiError::from).flatten() {
                    failed = Some(error);
                }
                done += 1;
                under_way.tickets.pop_front();
            }
            if let Some(error) = failed {
                return Err(error.to_string());
            }
        }
        if done != before {
            since = Stopwatch::start();
        } else if !wait_for_interrupt(mode, &since) {
            return Err("the disk does not answer".to_string());
        }
    }
    Ok(watch.stop(EACH))
}
