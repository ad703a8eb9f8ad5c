//! Looks for the logical units of SCSI hosts, one host after the other, and keeps the disks.

use super::Host;
use super::command::{ScsiError, execute};
use super::disk::Disk;
use crate::console::{self, Source};
use crate::limits::SCAN_MS;
use crate::poll;
use crate::task::wait_in;
use alloc::collections::VecDeque;
use alloc::format;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use core::future::poll_fn;
use core::sync::atomic::Ordering;
use core::task::{Poll, Waker};
use embassy_sync::waitqueue::AtomicWaker;
use embassy_time::{Duration, with_timeout};
use log::Level;
use ringfence_core::cdb;
use spin::Mutex;

/// Most disks that one host can have.
const MAX_DISKS: usize = 64;
static DISKS: Mutex<Vec<Arc<Disk>>> = Mutex::new(Vec::new());
/// Hosts that have not been scanned yet; the first one is being scanned.
static TO_SCAN: Mutex<VecDeque<Arc<Host>>> = Mutex::new(VecDeque::new());
static ON_TO_SCAN: AtomicWaker = AtomicWaker::new();
static ON_SETTLED: Mutex<Vec<Waker>> = Mutex::new(Vec::new());

/// Has the units of `host` looked for, behind those of others that wait for that.
pub fn look_at(host: Arc<Host>) {
    let mut to_scan = TO_SCAN.lock();
    if !to_scan.iter().any(|other| Arc::ptr_eq(other, &host)) {
        to_scan.push_back(host);
        ON_TO_SCAN.wake();
    }
}

/// Forgets the disks of a host.
pub fn forget(host: &Arc<Host>) {
    DISKS.lock().retain(|disk| !Arc::ptr_eq(disk.host(), host));
    TO_SCAN.lock().retain(|other| !Arc::ptr_eq(other, host));
}

/// Waits until all hosts have been scanned.
pub async fn settled() {
    poll_fn(|context| {
        if TO_SCAN.lock().is_empty() {
            return Poll::Ready(());
        }
        wait_in(&mut ON_SETTLED.lock(), context.waker());
        Poll::Pending
    })
    .await;
}

/// All disks.
pub fn disks() -> Vec<Arc<Disk>> {
    DISKS.lock().clone()
}

/// The task that scans hosts.
pub async fn run() {
    loop {
        let host = poll_fn(|context| {
            ON_TO_SCAN.register(context.waker());
            match TO_SCAN.lock().front() {
                Some(host) => Poll::Ready(host.clone()),
                None => Poll::Pending,
            }
        })
        .await;
        scan(&host).await;
        TO_SCAN.lock().retain(|other| !Arc::ptr_eq(other, &host));
        let waiting = core::mem::take(&mut *ON_SETTLED.lock());
        waiting.into_iter().for_each(Waker::wake);
    }
}

/// Looks for the units of a host, for as long as that may take. One whose driver is ended is looked at again, when it has another.
async fn scan(host: &Arc<Host>) {
    let limit_ms = SCAN_MS.get();
    // A host that has many units, or says so, pays for the search.
    let search = poll::charged(|| host.handle(), scan_targets(host));
    match with_timeout(Duration::from_millis(limit_ms), search).await {
        Ok(Err(ScsiError::NoDriver)) => return,
        Ok(_) => {}
        Err(_) => warn(host, format_args!("not all units were found within {limit_ms} ms")),
    }
    host.scanned.store(true, Ordering::Release);
}

fn source_of(host: &Host) -> Source {
    Source::by_itself(&host.handle().lock().name)
}

fn warn(host: &Host, text: fmt::Arguments) {
    console::say_about(&source_of(host), Level::Warn, text);
}

/// Looks at every target for its logical units, and keeps the disks. A host that has too many errors, each of which is a line of
/// the log, is not looked at any further. Fails if its driver is ended.
async fn scan_targets(host: &Arc<Host>) -> Result<(), ScsiError> {
    const LIST_BYTES: usize = 8 + 256 * 8;
    const MAX_ERRORS: usize = 16;
    let mut errors = 0;
    let mut is_one_too_many = |place: fmt::Arguments, error: ScsiError| {
        warn(host, format_args!("{place}: {error}"));
        errors += 1;
        if errors == MAX_ERRORS {
            warn(host, format_args!("{MAX_ERRORS} errors; the rest of its units is left out"));
        }
        errors == MAX_ERRORS
    };
    let info = host.handle().lock().scsi.as_ref().map(|scsi| scsi.info).ok_or(ScsiError::NoDriver)?;
    let mut list = vec![0; LIST_BYTES];
    for target in 0..info.max_targets {
        let listed = execute(host, target, 0, &cdb::report_luns(LIST_BYTES as u32), &[], &mut list).await;
        let mut luns: Vec<u32> = match listed {
            Ok(len_bytes) => {
                cdb::luns(list.get(..len_bytes).unwrap_or(&[])).filter(|lun| *lun < info.max_luns).collect()
            }
            Err(ScsiError::NoDevice) => continue,
            Err(ScsiError::NoDriver) => return Err(ScsiError::NoDriver),
            Err(error) if is_one_too_many(format_args!("target {target}"), error) => return Ok(()),
            Err(_) => continue,
        };
        luns.sort_unstable();
        luns.dedup();
        for lun in luns {
            match Disk::open(host, target, lun).await {
                Ok(Some(disk)) => {
                    if DISKS.lock().iter().filter(|disk| Arc::ptr_eq(disk.host(), host)).count() >= MAX_DISKS {
                        warn(host, format_args!("more than {MAX_DISKS} disks; the rest is left out"));
                        return Ok(());
                    }
                    keep(disk, host);
                }
                Ok(None) => {}
                Err(ScsiError::NoDriver) => return Err(ScsiError::NoDriver),
                Err(error) if is_one_too_many(format_args!("target {target}, unit {lun}"), error) => return Ok(()),
                Err(_) => {}
            }
        }
    }
    Ok(())
}

fn keep(mut disk: Disk, host: &Host) {
    let mut disks = DISKS.lock();
    let known = |other: &Arc<Disk>| {
        core::ptr::eq(&**other.host(), host) && (other.target, other.lun) == (disk.target, disk.lun)
    };
    if host.gone.load(Ordering::Acquire) || disks.iter().any(known) {
        return;
    }
    let name = (0..).map(|number| format!("disk{number}")).find(|name| disks.iter().all(|disk| disk.name != *name));
    disk.name = name.unwrap_or_default();
    let text = format_args!(
        "{}: {} {}, {} blocks of {} bytes",
        disk.name, disk.identity.vendor, disk.identity.product, disk.capacity.blocks, disk.capacity.block_bytes
    );
    console::say_because_of(&source_of(host), Level::Info, text);
    disks.push(Arc::new(disk));
}
