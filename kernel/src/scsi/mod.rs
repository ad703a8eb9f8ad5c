//! SCSI above the drivers: commands, their errors, and the disks that were found.
//!
//! * [`queues`]: requests to and from a driver
//! * [`disk`]: the blocks of one disk

use crate::domain::Handle;
use crate::module;
use alloc::collections::VecDeque;
use alloc::format;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use core::future::poll_fn;
use core::task::{Poll, Waker};
use disk::Disk;
use embassy_sync::waitqueue::AtomicWaker;
use embassy_time::{Duration, with_timeout};
use queues::{Data, Ticket};
use ringfence_abi::scsi::{HOST_NO_DEVICE, HOST_OK, Outcome};
use ringfence_abi::upcall::Events;
use ringfence_core::cdb::{self, Cdb};
use ringfence_core::sense::{self, Sense};
use spin::Mutex;

pub mod disk;
pub mod queues;

/// Longest time that a command may take.
const TIME_LIMIT: Duration = Duration::from_secs(30);
/// Most disks that one host can have.
const MAX_DISKS: usize = 64;
/// How often a command is sent when the device only wants to say that something changed.
const TRIES: usize = 4;

static DISKS: Mutex<Vec<Arc<Disk>>> = Mutex::new(Vec::new());
/// Hosts that have not been scanned yet; the first one is being scanned.
static TO_SCAN: Mutex<VecDeque<Handle>> = Mutex::new(VecDeque::new());
static ON_TO_SCAN: AtomicWaker = AtomicWaker::new();
static ON_SETTLED: Mutex<Vec<Waker>> = Mutex::new(Vec::new());

/// Why a command failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScsiError {
    /// There is no such target or logical unit.
    NoDevice,
    /// The adapter failed, with this code.
    Host(u32),
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
    /// It did not answer in time.
    TimedOut,
    /// The blocks are not all on the disk.
    OutOfRange,
}

impl fmt::Display for ScsiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ScsiError::NoDevice => write!(f, "no such device"),
            ScsiError::Host(code) => write!(f, "the adapter failed (code {code})"),
            ScsiError::NoDriver => write!(f, "the driver is gone"),
            ScsiError::Status { command, status, sense: Some(sense) } => {
                write!(f, "{command}: {}: {sense}", sense::status_name(*status))
            }
            ScsiError::Status { command, status, sense: None } => {
                write!(f, "{command}: {}", sense::status_name(*status))
            }
            ScsiError::Short => write!(f, "the device moved too little data"),
            ScsiError::TimedOut => write!(f, "no answer within {} s", TIME_LIMIT.as_secs()),
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

/// Sends one command and waits for its outcome; data that comes in goes to `data_in`.
async fn execute_once(
    handle: &Handle,
    target: u32,
    lun: u32,
    cdb: &Cdb,
    data_out: &[u8],
    data_in: &mut [u8],
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
    let ticket = with_timeout(TIME_LIMIT, begun).await.unwrap_or(Err(ScsiError::TimedOut))?;
    let mut waiting = Waiting { handle, ticket: Some(ticket) };
    module::poll(handle, Events::QUEUE);
    let outcome = poll_fn(|context| {
        let mut domain = handle.lock();
        let Some(scsi) = domain.scsi.as_mut() else { return Poll::Ready(Err(ScsiError::NoDriver)) };
        match scsi.finish(ticket, data_in, Some(context.waker())) {
            Some(outcome) => Poll::Ready(Ok(outcome)),
            None if !domain.is_alive() => Poll::Ready(Err(ScsiError::NoDriver)),
            None => Poll::Pending,
        }
    });
    let outcome = with_timeout(TIME_LIMIT, outcome).await.unwrap_or(Err(ScsiError::TimedOut))?;
    waiting.ticket = None;
    Ok(outcome)
}

/// What an outcome of `len_bytes` bytes of data means: how many were moved, or what went wrong.
pub fn check_outcome(outcome: &Outcome, command: &'static str, len_bytes: usize) -> Result<usize, ScsiError> {
    match outcome.host {
        HOST_OK => {}
        HOST_NO_DEVICE => return Err(ScsiError::NoDevice),
        ringfence_abi::scsi::HOST_RESET => return Err(ScsiError::NoDriver),
        code => return Err(ScsiError::Host(code)),
    }
    let status = outcome.status as u8;
    if status != sense::GOOD {
        let sense = outcome.sense.get(..outcome.sense_len as usize).and_then(Sense::parse);
        return Err(ScsiError::Status { command, status, sense });
    }
    Ok(len_bytes.saturating_sub(outcome.residual as usize))
}

/// Sends a command and waits for it; returns how many bytes were moved. What the device only wanted to mention
/// (UNIT ATTENTION) is passed over.
pub async fn execute(
    handle: &Handle,
    target: u32,
    lun: u32,
    cdb: &Cdb,
    data_out: &[u8],
    data_in: &mut [u8],
) -> Result<usize, ScsiError> {
    let len_bytes = data_out.len().max(data_in.len());
    let mut result = Err(ScsiError::TimedOut);
    for _ in 0..TRIES {
        let outcome = execute_once(handle, target, lun, cdb, data_out, data_in).await?;
        result = check_outcome(&outcome, cdb.name(), len_bytes);
        match result {
            Err(ScsiError::Status { sense: Some(sense), .. }) if sense.key == Sense::UNIT_ATTENTION => {}
            _ => break,
        }
    }
    result
}

/// Has the units of a driver that offers a SCSI host looked for.
pub fn attach(handle: &Handle) {
    if handle.lock().scsi.is_some() {
        TO_SCAN.lock().push_back(handle.clone());
        ON_TO_SCAN.wake();
    }
}

/// Takes the disks away that a driver had.
pub fn detach(handle: &Handle) {
    DISKS.lock().retain(|disk| !Arc::ptr_eq(disk.handle(), handle));
    TO_SCAN.lock().retain(|other| !Arc::ptr_eq(other, handle));
}

/// Waits until all hosts have been scanned.
pub async fn settled() {
    poll_fn(|context| {
        if TO_SCAN.lock().is_empty() {
            return Poll::Ready(());
        }
        ON_SETTLED.lock().push(context.waker().clone());
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
        let handle = poll_fn(|context| {
            ON_TO_SCAN.register(context.waker());
            match TO_SCAN.lock().front() {
                Some(handle) => Poll::Ready(handle.clone()),
                None => Poll::Pending,
            }
        })
        .await;
        scan(&handle).await;
        TO_SCAN.lock().retain(|other| !Arc::ptr_eq(other, &handle));
        let waiting = core::mem::take(&mut *ON_SETTLED.lock());
        waiting.into_iter().for_each(Waker::wake);
    }
}

/// Looks at every target for its logical units, and keeps the disks.
async fn scan(handle: &Handle) {
    const LIST_BYTES: usize = 8 + 256 * 8;
    let Some(info) = handle.lock().scsi.as_ref().map(|scsi| scsi.info) else { return };
    let mut list = vec![0; LIST_BYTES];
    for target in 0..info.max_targets {
        let listed = execute(handle, target, 0, &cdb::report_luns(LIST_BYTES as u32), &[], &mut list).await;
        let mut luns: Vec<u32> = match listed {
            Ok(len_bytes) => {
                cdb::luns(list.get(..len_bytes).unwrap_or(&[])).filter(|lun| *lun < info.max_luns).collect()
            }
            Err(ScsiError::NoDevice) => continue,
            Err(ScsiError::NoDriver) => return,
            Err(error) => {
                log::warn!("{}: target {target}: {error}", handle.lock().name);
                continue;
            }
        };
        luns.sort_unstable();
        luns.dedup();
        for lun in luns {
            if DISKS.lock().iter().filter(|disk| Arc::ptr_eq(disk.handle(), handle)).count() >= MAX_DISKS {
                log::warn!("{}: more than {MAX_DISKS} disks; the rest is left out", handle.lock().name);
                return;
            }
            match Disk::open(handle, target, lun).await {
                Ok(Some(disk)) => keep(disk),
                Ok(None) => {}
                Err(error) => log::warn!("{}: target {target}, unit {lun}: {error}", handle.lock().name),
            }
        }
    }
}

fn keep(mut disk: Disk) {
    let mut disks = DISKS.lock();
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
