//! SCSI above the drivers: commands, their errors, and the disks that were found.
//!
//! * [`queues`]: requests to and from a driver
//! * [`disk`]: the blocks of one disk

use crate::domain::Handle;
use crate::domain::fault::Cause;
use crate::limits::{COMMAND_MS, PAUSE_MS, SCAN_MS};
use crate::task::wait_in;
use crate::{module, poll, supervise};
use alloc::collections::{BTreeSet, VecDeque};
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use core::future::poll_fn;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use core::task::{Poll, Waker};
use disk::Disk;
use embassy_futures::yield_now;
use embassy_sync::waitqueue::AtomicWaker;
use embassy_time::{Duration, with_timeout};
use queues::{Data, Ticket};
use ringfence_abi::scsi::{HOST_NO_DEVICE, HOST_OK, HOST_RESET, Outcome};
use ringfence_abi::upcall::Events;
use ringfence_core::cdb::{self, Cdb};
use ringfence_core::sense::{self, Sense};
use spin::Mutex;

pub mod disk;
pub mod queues;

/// Most disks that one host can have.
const MAX_DISKS: usize = 64;
/// How often a command is sent when the device only wants to say that something changed.
const TRIES: usize = 4;

/// A SCSI host: a driver, and whatever comes in its place when it was ended.
pub struct Host {
    current: Mutex<Handle>,
    /// Set when it was unloaded.
    gone: AtomicBool,
    /// Set when its units have been looked at, as far as they are.
    scanned: AtomicBool,
    /// Who waits for another driver, or for its turn to send a command again.
    waiting: Mutex<Vec<Waker>>,
    /// Commands so far: each one's number is its place among those that are sent again.
    commands: AtomicU64,
    /// Commands that are to be sent again.
    to_repeat: Mutex<BTreeSet<u64>>,
}

/// A place among the commands that are to be sent again. It is given up when this goes.
struct Turn<'a> {
    host: &'a Host,
    number: u64,
}

impl Turn<'_> {
    /// Waits until all commands with smaller numbers were sent again.
    async fn come(&self) {
        poll_fn(|context| {
            if self.host.to_repeat.lock().first() == Some(&self.number) {
                return Poll::Ready(());
            }
            wait_in(&mut self.host.waiting.lock(), context.waker());
            Poll::Pending
        })
        .await;
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.host.to_repeat.lock().remove(&self.number);
        self.host.wake();
    }
}

/// How often one command is sent again because its driver was ended.
const RESTARTS: usize = 16;

static HOSTS: Mutex<Vec<Arc<Host>>> = Mutex::new(Vec::new());

impl Host {
    /// The driver that it has right now.
    pub fn handle(&self) -> Handle {
        self.current.lock().clone()
    }

    /// A place among the commands that are to be sent again, for the one with this number.
    fn turn(&self, number: u64) -> Turn<'_> {
        self.to_repeat.lock().insert(number);
        Turn { host: self, number }
    }

    fn wake(&self) {
        core::mem::take(&mut *self.waiting.lock()).into_iter().for_each(Waker::wake);
    }

    /// Waits until another driver is in place of `old`; `false` if none will be.
    async fn another_than(&self, old: &Handle) -> bool {
        let another = poll_fn(|context| {
            let current = self.handle();
            if self.gone.load(Ordering::Acquire) {
                Poll::Ready(false)
            } else if !Arc::ptr_eq(&current, old) {
                Poll::Ready(true)
            } else if !supervise::will_be_back(&current) {
                Poll::Ready(false)
            } else {
                wait_in(&mut self.waiting.lock(), context.waker());
                Poll::Pending
            }
        });
        with_timeout(Duration::from_millis(PAUSE_MS.get()), another).await.unwrap_or(false)
    }
}

fn host_of(handle: &Handle) -> Option<Arc<Host>> {
    HOSTS.lock().iter().find(|host| Arc::ptr_eq(&host.handle(), handle)).cloned()
}

/// Has all that wait for a driver look again.
pub fn wake_waiting() {
    HOSTS.lock().iter().for_each(|host| host.wake());
}

static DISKS: Mutex<Vec<Arc<Disk>>> = Mutex::new(Vec::new());
/// Hosts that have not been scanned yet; the first one is being scanned.
static TO_SCAN: Mutex<VecDeque<Arc<Host>>> = Mutex::new(VecDeque::new());
static ON_TO_SCAN: AtomicWaker = AtomicWaker::new();
static ON_SETTLED: Mutex<Vec<Waker>> = Mutex::new(Vec::new());

/// Why a command failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScsiError {
    /// There is no such target or logical unit.
    NoDevice,
    /// The adapter failed, with this code.
    Host(u32),
    /// The device was reset, or aborted the command.
    Reset,
    /// The driver was ended, or is not there.
    NoDriver,
    /// The device reported an error.
    Status {
        /// The command.
        command: &'static str,
        /// Status byte.
        status: u8,
        /// Sense data, if it came with some.
        sense: Option<Sense>,
    },
    /// The device moved less data than it was asked for.
    Short,
    /// The blocks are not all on the disk.
    OutOfRange,
}

impl fmt::Display for ScsiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ScsiError::NoDevice => write!(f, "no such device"),
            ScsiError::Host(code) => write!(f, "the adapter failed (code {code})"),
            ScsiError::Reset => write!(f, "the device was reset"),
            ScsiError::NoDriver => write!(f, "the driver is gone"),
            ScsiError::Status { command, status, sense: Some(sense) } => {
                write!(f, "{command}: {}: {sense}", sense::status_name(*status))
            }
            ScsiError::Status { command, status, sense: None } => {
                write!(f, "{command}: {}", sense::status_name(*status))
            }
            ScsiError::Short => write!(f, "the device moved too little data"),
            ScsiError::OutOfRange => write!(f, "beyond the end of the disk"),
        }
    }
}

/// Gives up a request when who waits for it goes away.
struct Waiting<'a> {
    handle: &'a Handle,
    ticket: Option<Ticket>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let (Some(ticket), Some(scsi)) = (self.ticket, self.handle.lock().scsi.as_mut()) {
            scsi.abandon(ticket);
        }
    }
}

/// Sends one command and waits for its outcome; data that comes in goes to `data_in`. `turn` is given up when it is sent, or
/// if it writes, when it is done: who has the next turn may read what it writes.
async fn execute_once(
    handle: &Handle,
    target: u32,
    lun: u32,
    cdb: &Cdb,
    data_out: &[u8],
    data_in: &mut [u8],
    mut turn: Option<Turn<'_>>,
) -> Result<Outcome, ScsiError> {
    let begun = poll_fn(|context| {
        let mut domain = handle.lock();
        if !domain.is_alive() {
            return Poll::Ready(Err(ScsiError::NoDriver));
        }
        let Some(scsi) = domain.scsi.as_mut() else { return Poll::Ready(Err(ScsiError::NoDriver)) };
        let data = match (data_out.is_empty(), data_in.is_empty()) {
            (false, _) => Data::Out(data_out),
            (true, false) => Data::In(data_in.len()),
            (true, true) => Data::None,
        };
        match scsi.begin(target, lun, cdb, data) {
            Ok(Some(ticket)) => Poll::Ready(Ok(ticket)),
            Ok(None) => {
                scsi.wake_when_free(context.waker());
                Poll::Pending
            }
            Err(cause) => {
                domain.condemn(cause);
                module::quiesce(&mut domain);
                Poll::Ready(Err(ScsiError::NoDriver))
            }
        }
    });
    let limit_ms = COMMAND_MS.get();
    let limit = Duration::from_millis(limit_ms);
    let stuck = Cause::Stuck { what: "SCSI command", limit_ms };
    let Ok(ticket) = with_timeout(limit, begun).await else {
        // Nothing became free all the time: what fills the queue is stuck, and maybe nobody waits for it any more.
        module::condemn(handle, stuck);
        return Err(ScsiError::NoDriver);
    };
    let ticket = ticket?;
    if data_out.is_empty() {
        // The next one may be sent.
        drop(turn.take());
    }
    let mut waiting = Waiting { handle, ticket: Some(ticket) };
    poll::poll(handle, Events::QUEUE);
    let outcome = poll_fn(|context| {
        let mut domain = handle.lock();
        let Some(scsi) = domain.scsi.as_mut() else { return Poll::Ready(Err(ScsiError::NoDriver)) };
        match scsi.finish(ticket, data_in, Some(context.waker())) {
            Some(outcome) => Poll::Ready(Ok(outcome)),
            None if !domain.is_alive() => Poll::Ready(Err(ScsiError::NoDriver)),
            None => Poll::Pending,
        }
    });
    let Ok(outcome) = with_timeout(limit, outcome).await else {
        // The driver, or its device, is stuck. Both are begun anew, if the policy is to restart.
        module::condemn(handle, stuck);
        return Err(ScsiError::NoDriver);
    };
    waiting.ticket = None;
    outcome
}

/// What an outcome of `len_bytes` bytes of data means: how many were moved, or what went wrong.
pub fn check_outcome(outcome: &Outcome, command: &'static str, len_bytes: usize) -> Result<usize, ScsiError> {
    match outcome.host {
        HOST_OK => {}
        HOST_NO_DEVICE => return Err(ScsiError::NoDevice),
        queues::NO_DRIVER => return Err(ScsiError::NoDriver),
        HOST_RESET => return Err(ScsiError::Reset),
        code => return Err(ScsiError::Host(code)),
    }
    let status = outcome.status as u8;
    if status != sense::GOOD {
        let sense = outcome.sense.get(..outcome.sense_len as usize).and_then(Sense::parse);
        return Err(ScsiError::Status { command, status, sense });
    }
    Ok(len_bytes.saturating_sub(outcome.residual as usize))
}

/// Whether the device only wanted to mention something, and the command can be sent again.
fn is_mention(error: &ScsiError) -> bool {
    match error {
        ScsiError::Reset => true,
        ScsiError::Status { sense: Some(sense), .. } => sense.key == Sense::UNIT_ATTENTION,
        _ => false,
    }
}

/// Whether `data_out`, which a WRITE that was under way when its driver was ended is to write, is on the disk: its blocks
/// are read and compared. `false` if that cannot be found out; then it is written again, which does no harm.
async fn is_written(host: &Host, target: u32, lun: u32, cdb: &Cdb, data_out: &[u8]) -> bool {
    let Some(read) = cdb.read_back() else { return false };
    let mut found = Vec::new();
    if found.try_reserve_exact(data_out.len()).is_err() {
        return false;
    }
    found.resize(data_out.len(), 0);
    for _ in 0..TRIES {
        let outcome = execute_once(&host.handle(), target, lun, &read, &[], &mut found, None).await;
        match outcome.and_then(|outcome| check_outcome(&outcome, read.name(), data_out.len())) {
            Ok(len_bytes) => return len_bytes == data_out.len() && found == data_out,
            Err(error) if is_mention(&error) => {}
            Err(_) => return false,
        }
    }
    false
}

/// Sends a command and waits for it; returns how many bytes were moved. What the device only wanted to mention
/// (UNIT ATTENTION) is passed over.
///
/// If the driver is ended meanwhile and comes back, the commands that were under way are sent again in their order: nobody
/// was told that they were done. Those that write may have been, all the same: that is looked up first ([`is_written`]).
/// `data_out` is the caller's and has not changed.
pub async fn execute(
    host: &Host,
    target: u32,
    lun: u32,
    cdb: &Cdb,
    data_out: &[u8],
    data_in: &mut [u8],
) -> Result<usize, ScsiError> {
    // A driver may answer at once, whatever it is asked: others have their turn in between.
    yield_now().await;
    let len_bytes = data_out.len().max(data_in.len());
    let number = host.commands.fetch_add(1, Ordering::Relaxed);
    let (mut tries, mut restarts) = (0, 0);
    let mut turn: Option<Turn> = None;
    loop {
        if let Some(turn) = &turn {
            turn.come().await;
            if is_written(host, target, lun, cdb, data_out).await {
                log::info!("{}: a {} was done before its driver was ended", host.handle().lock().name, cdb.name());
                return Ok(data_out.len());
            }
        }
        let handle = host.handle();
        let outcome = execute_once(&handle, target, lun, cdb, data_out, data_in, turn.take()).await;
        match outcome.and_then(|outcome| check_outcome(&outcome, cdb.name(), len_bytes)) {
            Err(ScsiError::NoDriver) if restarts < RESTARTS => {
                // Those that were under way go again in the order in which they were first sent.
                turn = Some(host.turn(number));
                if !host.another_than(&handle).await {
                    return Err(ScsiError::NoDriver);
                }
                restarts += 1;
                // A fresh driver has reset the device, which mentions that.
                tries = 0;
            }
            Err(error) if is_mention(&error) && tries < TRIES => tries += 1,
            result => return result,
        }
    }
}

/// Has the units of a driver that offers a SCSI host looked for.
pub fn attach(handle: &Handle) {
    if handle.lock().scsi.is_some() {
        let host = Arc::new(Host {
            current: Mutex::new(handle.clone()),
            gone: AtomicBool::new(false),
            scanned: AtomicBool::new(false),
            waiting: Mutex::new(Vec::new()),
            commands: AtomicU64::new(0),
            to_repeat: Mutex::new(BTreeSet::new()),
        });
        HOSTS.lock().push(host.clone());
        TO_SCAN.lock().push_back(host);
        ON_TO_SCAN.wake();
    }
}

/// Puts another driver in place of one that was ended; what waits for it goes on.
pub fn replace(dead: &Handle, fresh: &Handle) {
    if fresh.lock().scsi.is_none() {
        return detach(dead);
    }
    if let Some(host) = host_of(dead) {
        *host.current.lock() = fresh.clone();
        host.wake();
        // A scan that its end cut short begins again.
        let mut to_scan = TO_SCAN.lock();
        if !host.scanned.load(Ordering::Acquire) && !to_scan.iter().any(|other| Arc::ptr_eq(other, &host)) {
            to_scan.push_back(host);
            ON_TO_SCAN.wake();
        }
    }
}

/// Takes the disks away that a driver had.
pub fn detach(handle: &Handle) {
    let Some(host) = host_of(handle) else { return };
    host.gone.store(true, Ordering::Release);
    host.wake();
    HOSTS.lock().retain(|other| !Arc::ptr_eq(other, &host));
    DISKS.lock().retain(|disk| !Arc::ptr_eq(disk.host(), &host));
    TO_SCAN.lock().retain(|other| !Arc::ptr_eq(other, &host));
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
    match with_timeout(Duration::from_millis(limit_ms), scan_targets(host)).await {
        Ok(Err(ScsiError::NoDriver)) => return,
        Ok(_) => {}
        Err(_) => log::warn!("{}: not all units were found within {limit_ms} ms", name_of(host)),
    }
    host.scanned.store(true, Ordering::Release);
}

fn name_of(host: &Host) -> String {
    host.handle().lock().name.clone()
}

/// Looks at every target for its logical units, and keeps the disks. A host that has too many errors, each of which is a line of
/// the log, is not looked at any further. Fails if its driver is ended.
async fn scan_targets(host: &Arc<Host>) -> Result<(), ScsiError> {
    const LIST_BYTES: usize = 8 + 256 * 8;
    const MAX_ERRORS: usize = 16;
    let mut errors = 0;
    let mut is_one_too_many = |place: fmt::Arguments, error: ScsiError| {
        log::warn!("{}: {place}: {error}", name_of(host));
        errors += 1;
        if errors == MAX_ERRORS {
            log::warn!("{}: {MAX_ERRORS} errors; the rest of its units is left out", name_of(host));
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
                        log::warn!("{}: more than {MAX_DISKS} disks; the rest is left out", name_of(host));
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
    log::info!(
        "{}: {} {}, {} blocks of {} bytes",
        disk.name,
        disk.identity.vendor,
        disk.identity.product,
        disk.capacity.blocks,
        disk.capacity.block_bytes
    );
    disks.push(Arc::new(disk));
}
