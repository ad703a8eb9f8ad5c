//! Searches for the logical units of SCSI hosts, one host after the other, and keeps the disks.

use super::Host;
use super::command::{ScsiError, execute};
use super::disk::{Disk, Unit};
use super::queues::Queues;
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::sync::{Arc, Weak};
use alloc::vec;
use alloc::vec::Vec;
use block::disk::{self, Doing};
use core::fmt;
use core::future::poll_fn;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use core::task::{Poll, Waker};
use embassy_sync::waitqueue::AtomicWaker;
use embassy_time::{Duration, with_timeout};
use host::domain::{Domain, Handle};
use host::poll;
use hw::console::{self, Source};
use hw::task::wait_in;
use log::Level;
use ringfence_core::cdb;
use ringfence_core::limits::SCAN_MS;
use spin::Mutex;

/// The most disks that one host can have.
const MAX_DISKS: usize = 64;
static DISKS: Mutex<Vec<Arc<Disk>>> = Mutex::new(Vec::new());
/// Whether a host is being looked at.
static SCANNING: AtomicBool = AtomicBool::new(false);
/// How many hosts were looked at so far.
static DONE: AtomicU64 = AtomicU64::new(0);
/// Hosts to scan.
static TO_SCAN: Mutex<VecDeque<Arc<Host>>> = Mutex::new(VecDeque::new());
static ON_TO_SCAN: AtomicWaker = AtomicWaker::new();
static ON_SETTLED: Mutex<Vec<Waker>> = Mutex::new(Vec::new());

/// Queues a search for the units of `host`, behind the searches that wait already.
pub fn look_at(host: Arc<Host>) {
    let mut to_scan = TO_SCAN.lock();
    if !to_scan.iter().any(|other| Arc::ptr_eq(other, &host)) {
        to_scan.push_back(host);
        ON_TO_SCAN.wake();
    }
}

/// Forgets the disks of a host.
pub fn forget(host: &Arc<Host>) {
    for disk in host.disks() {
        forget_disk(&disk);
    }
    TO_SCAN.lock().retain(|other| !Arc::ptr_eq(other, host));
}

/// Waits until the searches that are in the queue right now have ended. Later searches do not
/// count, because a device may cause searches again and again.
pub async fn settled() {
    note_said();
    // Single units of a host are looked at in one go.
    let stale = || super::hosts().into_iter().filter(|host| !host.stale.lock().is_empty()).count();
    let waiting = || (TO_SCAN.lock().len() + stale()) as u64 + u64::from(SCANNING.load(Ordering::Acquire));
    let until = DONE.load(Ordering::Acquire) + waiting();
    poll_fn(|context| {
        // A waiting host may be gone before it is looked at, and is not counted then.
        if waiting() == 0 || DONE.load(Ordering::Acquire) >= until {
            return Poll::Ready(());
        }
        wait_in(&mut ON_SETTLED.lock(), context.waker());
        Poll::Pending
    })
    .await;
}

/// Returns all disks.
pub fn disks() -> Vec<Arc<Disk>> {
    DISKS.lock().clone()
}

/// The task that scans hosts, for ever.
pub async fn run() {
    loop {
        let (host, is_whole) = poll_fn(|context| {
            ON_TO_SCAN.register(context.waker());
            note_said();
            // Changes that the driver reports from now on need another search.
            if let Some(host) = TO_SCAN.lock().pop_front() {
                return Poll::Ready((host, true));
            }
            super::hosts()
                .into_iter()
                .find(|host| !host.stale.lock().is_empty())
                .map_or(Poll::Pending, |host| Poll::Ready((host, false)))
        })
        .await;
        SCANNING.store(true, Ordering::Release);
        match is_whole {
            true => scan(&host).await,
            false => refresh(&host).await,
        }
        SCANNING.store(false, Ordering::Release);
        DONE.fetch_add(1, Ordering::Release);
        let waiting = core::mem::take(&mut *ON_SETTLED.lock());
        waiting.into_iter().for_each(Waker::wake);
    }
}

/// Wakes the task that scans: a driver has reported that units of its host came, went or changed.
pub fn note_change() {
    ON_TO_SCAN.wake();
}

/// Has one unit of `host` looked at again.
pub fn look_again(host: &Arc<Host>, target: u32, lun: u32) {
    let mut stale = host.stale.lock();
    if host.scanned.load(Ordering::Acquire) && stale.len() < MAX_DISKS && !stale.contains(&(target, lun)) {
        stale.push((target, lun));
        ON_TO_SCAN.wake();
    }
}

/// Queues a new search for all units of all hosts.
pub fn look_at_all() {
    super::hosts().into_iter().for_each(look_at);
}

/// Queues a new search for all units of each host whose driver has reported changes.
fn note_said() {
    for host in super::hosts() {
        let said =
            |handle: &Handle| handle.lock().offered_mut::<Queues>().is_some_and(|scsi| !scsi.take_news().is_empty());
        if said(&host.handle()) {
            look_at(host);
        }
    }
}

/// Looks at single units of a host again.
async fn refresh(host: &Arc<Host>) {
    let driver = host.driver();
    let stale = core::mem::take(&mut *host.stale.lock());
    for (target, lun) in stale {
        let opened = Disk::open(host, target, lun).await;
        // The driver was replaced: its word that a unit is gone is not believed.
        if host.has_other_than(&driver) {
            look_at(host.clone());
            return;
        }
        match opened {
            Ok(Unit::Disk(disk)) => keep(disk, host),
            Ok(_) => forget_units(host, |disk| (disk.target, disk.lun) == (target, lun)),
            Err(error) if error.is_no_unit() => forget_units(host, |disk| (disk.target, disk.lun) == (target, lun)),
            // The next command will report the error.
            Err(_) => {}
        }
    }
}

/// Searches for the units of a host, for as long as that may take. If the driver is ended in the
/// meantime, the host is looked at again when it has another driver.
async fn scan(host: &Arc<Host>) {
    let limit_ms = SCAN_MS.get();
    // The search is charged to the driver: its host may have many units, or say so.
    let driver = host.driver();
    let search = poll::charged(|| Some(host.handle()), scan_targets(host, &driver));
    match with_timeout(Duration::from_millis(limit_ms), search).await {
        Ok(Err(ScsiError::NoDriver)) => return,
        Ok(_) => {}
        Err(_) => warn(host, format_args!("not all units were found within {limit_ms} ms")),
    }
    if host.has_other_than(&driver) {
        // Some of the units were found through the driver before.
        look_at(host.clone());
        return;
    }
    host.scanned.store(true, Ordering::Release);
    host.in_doubt.store(false, Ordering::Release);
}

fn source_of(host: &Host) -> Source {
    Source::by_itself(&host.handle().lock().name)
}

fn warn(host: &Host, text: fmt::Arguments) {
    console::say_about(&source_of(host), Level::Warn, text);
}

/// Logs once why a unit is not used.
fn leave_out(host: &Host, target: u32, lun: u32, why: fmt::Arguments) {
    const MOST_TOLD: usize = 64;
    {
        let mut told = host.told.lock();
        if told.contains(&(target, lun)) || told.len() >= MOST_TOLD {
            return;
        }
        told.push((target, lun));
    }
    let text = format_args!("target {target}, unit {lun} is not used: {why}");
    console::say_about(&source_of(host), Level::Info, text);
}

/// Errors of a host after which its other units are left out, because each error is a line of the
/// log.
const MAX_ERRORS: usize = 16;

/// A search for the units of a host.
struct Search<'a> {
    host: &'a Arc<Host>,
    /// Units that exist.
    found: Vec<(u32, u32)>,
    errors: usize,
}

/// The reason why a search stops.
enum Stop {
    /// The driver was ended.
    NoDriver,
    /// There are too many errors or too many disks; the log says which.
    Enough,
}

impl Search<'_> {
    /// Notes an error of a target or a unit.
    fn note(&mut self, place: fmt::Arguments, error: ScsiError) -> Result<(), Stop> {
        if error == ScsiError::NoDriver {
            return Err(Stop::NoDriver);
        }
        warn(self.host, format_args!("{place}: {error}"));
        self.errors += 1;
        if self.errors == MAX_ERRORS {
            warn(self.host, format_args!("{MAX_ERRORS} errors; the rest of its units is left out"));
            return Err(Stop::Enough);
        }
        Ok(())
    }

    /// Looks at a unit, and keeps it if it is a disk.
    async fn look(&mut self, target: u32, lun: u32) -> Result<(), Stop> {
        match Disk::open(self.host, target, lun).await {
            Ok(Unit::Disk(disk)) => {
                let is_known = self.host.disks().any(|disk| (disk.target, disk.lun) == (target, lun));
                if !is_known && self.host.disks().count() >= MAX_DISKS {
                    warn(self.host, format_args!("more than {MAX_DISKS} disks; the rest is left out"));
                    return Err(Stop::Enough);
                }
                self.found.push((target, lun));
                keep(disk, self.host);
                Ok(())
            }
            Ok(Unit::Other(kind, identity)) => {
                let cdb::Identity { vendor, product, .. } = identity;
                let what = cdb::device_type_name(kind);
                leave_out(self.host, target, lun, format_args!("it is no disk but {what} ({vendor} {product})"));
                Ok(())
            }
            Ok(Unit::None) => Ok(()),
            Err(error) if error.is_no_unit() => Ok(()),
            Err(error) => {
                // The unit exists, and has a fault.
                self.found.push((target, lun));
                self.note(format_args!("target {target}, unit {lun}"), error)
            }
        }
    }
}

/// Searches every target for its logical units, and keeps the disks. Forgets disks that are gone.
/// Fails if the driver is ended.
async fn scan_targets(host: &Arc<Host>, driver: &Weak<Mutex<Domain>>) -> Result<(), ScsiError> {
    const LIST_BYTES: usize = 8 + 256 * 8;
    let info = host.handle().lock().offered::<Queues>().map(|scsi| scsi.info).ok_or(ScsiError::NoDriver)?;
    let mut search = Search { host, found: Vec::new(), errors: 0 };
    let mut list = vec![0; LIST_BYTES];
    for target in 0..info.max_targets {
        let listed = execute(host, target, 0, &cdb::report_luns(LIST_BYTES as u32), &[], &mut list).await;
        let mut luns: Vec<u32> = match listed {
            Ok(len_bytes) => cdb::luns(list.get(..len_bytes).unwrap_or(&[])).collect(),
            Err(ScsiError::NoDevice) => continue,
            Err(error) => match search.note(format_args!("target {target}"), error) {
                Ok(()) => continue,
                Err(Stop::NoDriver) => return Err(ScsiError::NoDriver),
                Err(Stop::Enough) => return Ok(()),
            },
        };
        luns.sort_unstable();
        luns.dedup();
        for lun in luns {
            if lun >= info.max_luns {
                leave_out(host, target, lun, format_args!("the adapter has units 0 to {}", info.max_luns - 1));
                continue;
            }
            match search.look(target, lun).await {
                Ok(()) => {}
                Err(Stop::NoDriver) => return Err(ScsiError::NoDriver),
                Err(Stop::Enough) => return Ok(()),
            }
        }
    }
    let Search { found, .. } = search;
    if host.has_other_than(driver) {
        return Ok(());
    }
    forget_units(host, |disk| !found.contains(&(disk.target, disk.lun)));
    Ok(())
}

impl Host {
    /// Returns the host's disks.
    fn disks(self: &Arc<Host>) -> impl Iterator<Item = Arc<Disk>> {
        disks().into_iter().filter(move |disk| Arc::ptr_eq(disk.host(), self))
    }
}

/// Forgets the disks of a host for which `is_gone` returns `true`.
fn forget_units(host: &Arc<Host>, is_gone: impl Fn(&Disk) -> bool) {
    for disk in host.disks().filter(|disk| is_gone(disk)) {
        disk.set_gone();
        host.lost_some.store(true, Ordering::Release);
        console::say_because_of(&source_of(host), Level::Warn, format_args!("{}: it is gone", disk.name));
        forget_disk(&disk);
    }
}

fn forget_disk(disk: &Arc<Disk>) {
    DISKS.lock().retain(|other| !Arc::ptr_eq(other, disk));
    disk::forget(|other| other.name() == disk.name);
}

/// Keeps a disk that was found, under a name that no other disk has. If the disk was there before,
/// takes over its new number of blocks.
fn keep(disk: Disk, host: &Arc<Host>) {
    if host.is_gone() {
        return;
    }
    let capacity = disk.capacity();
    if let Some(known) = host.disks().find(|other| (other.target, other.lun) == (disk.target, disk.lun)) {
        let before = known.capacity();
        if known.identity == disk.identity && before.block_bytes == capacity.block_bytes {
            // Nothing tells one medium from another.
            block::cache::changed(&*known);
            if before.blocks != capacity.blocks {
                known.set_blocks(capacity.blocks);
                let text = format_args!("{}: {} blocks now, {} before", known.name, capacity.blocks, before.blocks);
                console::say_because_of(&source_of(host), Level::Info, text);
            }
            return;
        }
        // Another disk is in the same place.
        forget_units(host, |other| core::ptr::eq(other, &*known));
    }
    let disk = disk::add(|name| disk.named(name));
    let text = format_args!(
        "{}: {} {}, {} blocks of {} bytes",
        disk.name, disk.identity.vendor, disk.identity.product, capacity.blocks, capacity.block_bytes
    );
    console::say_because_of(&source_of(host), Level::Info, text);
    DISKS.lock().push(disk);
}

/// The search for units, as a [`disk::Search`].
pub struct Units;

/// The only value of its type.
pub static SEARCH: Units = Units;

impl disk::Search for Units {
    fn settled(&self) -> Doing<'static, ()> {
        Box::pin(settled())
    }

    fn look_again(&self) {
        look_at_all();
    }
}
