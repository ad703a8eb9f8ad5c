//! Reads through a SCSI driver.

use super::{Cost, Mode, Plan, Row, Stopwatch, announce, wait_for_interrupt};
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use embassy_futures::yield_now;
use host::domain::Handle;
use host::poll::{self, Polled};
use host::requests::queue::{Moves, Ticket};
use ringfence_abi::scsi::MAX_DATA;
use ringfence_abi::upcall::Events;
use ringfence_core::cdb;
use scsi::command::{ScsiError, check_outcome};
use scsi::disk::Disk;
use scsi::queues::{Asked, Queues};

/// The number of reads in one sample, and the number of samples.
const EACH: usize = 128;
const SAMPLES: usize = 15;
/// The numbers of requests handed over in one crossing, with up to 32 requests under way.
const BATCHES: [usize; 3] = [1, 8, 32];
const DEPTH: usize = 32;
const SMALL: usize = 4096;

/// Measures reads per second, if there is a disk.
pub async fn run(plan: Plan<'_>, print: &mut impl FnMut(&Row)) -> Result<(), String> {
    let mode = plan.mode;
    scsi::scan::settled().await;
    let Some(disk) = scsi::scan::disks().into_iter().next() else { return Ok(()) };
    announce(&disk.handle());
    let mut random = 0x2545_f491_4f6c_dd1du64;
    let places = disk.capacity().blocks / (SMALL / disk.block_bytes()) as u64;
    if places == 0 {
        return Err("the disk is too small".to_string());
    }
    let mut next = move |_| {
        // xorshift64. The only requirement is that a read does not go to the place of the previous
        // one.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % places
    };
    let blocks = SMALL / disk.block_bytes();
    if plan.wants("scsi/read4k/depth1", 1) {
        let sample = || Ok(read(mode, &disk, EACH, SMALL, 1, 1, |n| next(n) * blocks as u64)?.value(mode, 1.0));
        let row = || Row::new("scsi/read4k/depth1", mode.unit("reads/s")).batch(1);
        plan.measure(&disk.handle(), SAMPLES, sample, row)?.iter().for_each(&mut *print);
    }
    for batch in BATCHES.into_iter().filter(|batch| plan.wants("scsi/read4k/depth32", *batch)) {
        let sample = || Ok(read(mode, &disk, EACH, SMALL, DEPTH, batch, |n| next(n) * blocks as u64)?.value(mode, 1.0));
        let row = || Row::new("scsi/read4k/depth32", mode.unit("reads/s")).batch(batch);
        let rows = plan.measure(&disk.handle(), SAMPLES, sample, row)?;
        rows.iter().for_each(&mut *print);
        // Let other tasks see a Ctrl-C.
        yield_now().await;
    }
    let large_blocks = (MAX_DATA / disk.block_bytes()) as u64;
    let large_places = disk.capacity().blocks / large_blocks;
    if large_places > 0 && plan.wants("scsi/seq", 8) {
        let sample = || {
            let cost = read(mode, &disk, EACH, MAX_DATA, 8, 8, |n| n as u64 % large_places * large_blocks)?;
            Ok(cost.value(mode, MAX_DATA as f64 / 1e6))
        };
        let row = || Row::new("scsi/seq", mode.unit("MB/s")).batch(8);
        let rows = plan.measure(&disk.handle(), SAMPLES, sample, row)?;
        rows.iter().for_each(&mut *print);
    }
    Ok(())
}

/// Requests under way, which are abandoned when a measurement ends early.
struct UnderWay<'a> {
    handle: &'a Handle,
    tickets: Vec<Ticket>,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        if let Some(scsi) = self.handle.lock().offered_mut::<Queues>() {
            self.tickets.iter().for_each(|ticket| scsi.abandon(*ticket));
        }
    }
}

/// Reads `len_bytes` bytes `count` times, with up to `depth` requests under way, handed over in
/// batches of `batch`.
fn read(
    mode: Mode,
    disk: &Disk,
    count: usize,
    len_bytes: usize,
    depth: usize,
    batch: usize,
    mut place: impl FnMut(usize) -> u64,
) -> Result<Cost, String> {
    let handle = &disk.handle();
    let mut buffer = vec![0; len_bytes];
    let mut under_way = UnderWay { handle, tickets: Vec::with_capacity(depth) };
    let (mut begun, mut done) = (0, 0);
    let watch = Stopwatch::start();
    let mut since = Stopwatch::start();
    while done < count {
        // A batch is sent only when the whole batch fits into the depth.
        while begun < count && under_way.tickets.len() + batch.min(count - begun) <= depth {
            {
                let mut domain = handle.lock();
                let queues = domain.offered_mut::<Queues>().ok_or("the driver is gone")?;
                for _ in 0..batch.min(count - begun) {
                    let cdb = cdb::read(place(begun), (len_bytes / disk.block_bytes()) as u32);
                    let asked = Asked::command(disk.target, disk.lun, cdb);
                    let ticket = queues.begin(None, &asked, Moves::In(len_bytes));
                    under_way.tickets.push(ticket.map_err(|_| "the driver lies")?.ok_or("the queue is full")?);
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
            under_way.tickets.retain(|ticket| match queues.finish(*ticket, &mut buffer, None) {
                None => true,
                Some(outcome) => {
                    let outcome = outcome.map_err(ScsiError::from);
                    failed = outcome.and_then(|outcome| check_outcome(&outcome, "READ", len_bytes)).err().or(failed);
                    done += 1;
                    false
                }
            });
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
    Ok(watch.stop(count))
}
