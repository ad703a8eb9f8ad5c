//! SCSI commands. Each command is sent to a host's driver, and again to the driver's successor if
//! the driver is ended in the meantime.

use super::queues::{Asked, Queues, RESET, Scsi};
use super::{Host, scan};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::Ordering;
use embassy_futures::yield_now;
use embassy_time::{Duration, with_timeout};
use host::requests::Lost;
use host::requests::attempt::{self, Attempt, Done};
use hw::console;
use hw::console::Source;
use log::Level;
use ringfence_abi::scsi::{CAN_RESET_LOGICAL_UNIT, HOST_ABORTED, HOST_NO_DEVICE, HOST_OK, HOST_RESET, Outcome};
use ringfence_core::cdb::Cdb;
use ringfence_core::limits::COMMAND_MS;
use ringfence_core::sense::{self, Sense};

/// How often a command is repeated if the device only reports that something has changed.
const TRIES: usize = 4;

/// Why a command failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScsiError {
    /// There is no such target or logical unit.
    NoDevice,
    /// The adapter failed, with this code.
    Host(u32),
    /// The device was reset.
    Reset,
    /// The command was aborted: the device did not do it in time.
    Aborted,
    /// The driver cannot do that.
    Unsupported,
    /// The driver has not done it in time.
    Late,
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
    /// The command succeeded, but its residual is larger than the data. QEMU reports such residuals
    /// (-512, say) when it repeats a request that its full disk could not take.
    Residual,
    /// The disk was there, but is gone.
    Gone,
    /// The blocks are not all on the disk.
    OutOfRange,
    /// The disk has blocks of so many bytes, which are not supported.
    BlockBytes(u32),
}

impl ScsiError {
    /// Returns whether the error says that there is no such unit.
    pub fn is_no_unit(&self) -> bool {
        match self {
            ScsiError::NoDevice => true,
            ScsiError::Status { sense: Some(sense), .. } => sense.is_no_unit(),
            _ => false,
        }
    }
}

impl From<Lost> for ScsiError {
    fn from(_: Lost) -> ScsiError {
        ScsiError::NoDriver
    }
}

impl fmt::Display for ScsiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ScsiError::NoDevice => write!(f, "no such device"),
            ScsiError::Host(code) => write!(f, "the adapter failed (code {code})"),
            ScsiError::Reset => write!(f, "the device was reset"),
            ScsiError::Aborted => write!(f, "the device did not do it in time, and the command was aborted"),
            ScsiError::Unsupported => write!(f, "the driver cannot do that"),
            ScsiError::Late => write!(f, "the driver has not done it in time"),
            ScsiError::NoDriver => write!(f, "the driver is gone"),
            ScsiError::Status { command, status, sense: Some(sense) } => {
                write!(f, "{command}: {}: {sense}", sense::status_name(*status))
            }
            ScsiError::Status { command, status, sense: None } => {
                write!(f, "{command}: {}", sense::status_name(*status))
            }
            ScsiError::Residual => write!(f, "the device says that it moved less than nothing"),
            ScsiError::Short => write!(f, "the device moved too little data"),
            ScsiError::BlockBytes(bytes) => write!(f, "blocks of {bytes} bytes are not supported"),
            ScsiError::Gone => write!(f, "the disk is gone"),
            ScsiError::OutOfRange => write!(f, "beyond the end of the disk"),
        }
    }
}

/// Checks the outcome of a command with `len_bytes` bytes of data. Returns how many bytes were
/// moved, or the error.
pub fn check_outcome(outcome: &Outcome, command: &'static str, len_bytes: usize) -> Result<usize, ScsiError> {
    match outcome.host {
        HOST_OK => {}
        HOST_NO_DEVICE => return Err(ScsiError::NoDevice),
        HOST_RESET => return Err(ScsiError::Reset),
        HOST_ABORTED => return Err(ScsiError::Aborted),
        code => return Err(ScsiError::Host(code)),
    }
    // The queue refuses a status that is longer than a byte.
    let status = u8::try_from(outcome.status).unwrap_or(u8::MAX);
    if status != sense::GOOD {
        let sense = outcome.sense.get(..outcome.sense_len as usize).and_then(Sense::parse);
        return Err(ScsiError::Status { command, status, sense });
    }
    len_bytes.checked_sub(outcome.residual as usize).ok_or(ScsiError::Residual)
}

/// Returns whether the device only reported that something has changed: the command can be sent
/// again.
fn is_mention(error: &ScsiError) -> bool {
    match error {
        ScsiError::Reset | ScsiError::Aborted => true,
        ScsiError::Status { sense: Some(sense), .. } => sense.key == Sense::UNIT_ATTENTION,
        _ => false,
    }
}

/// Looks again at the units that a device reports as changed: all units of the host if their list
/// has changed, else this unit.
fn note_mention(host: &Arc<Host>, target: u32, lun: u32, error: &ScsiError) {
    let ScsiError::Status { sense: Some(sense), .. } = error else { return };
    if sense.units_changed() {
        scan::look_at(host.clone());
    } else if sense.unit_changed() {
        scan::look_again(host, target, lun);
    }
}

/// Returns whether `data_out`, which a WRITE was to write when its driver was ended, is on the
/// disk: reads the blocks and compares them. Returns `false` if that cannot be found out; writing
/// the data again does no harm.
async fn is_written(host: &Host, asked: Asked, data_out: &[u8]) -> bool {
    let Some(asked) = asked.read_back() else { return false };
    let mut found = Vec::new();
    if found.try_reserve_exact(data_out.len()).is_err() {
        return false;
    }
    found.resize(data_out.len(), 0);
    for _ in 0..TRIES {
        let outcome = attempt::send::<Scsi>(&host.handle(), None, &asked, &[], &mut found, None).await;
        let outcome = outcome.map_err(ScsiError::from);
        match outcome.and_then(|outcome| check_outcome(&outcome, asked.name(), data_out.len())) {
            Ok(len_bytes) => return len_bytes == data_out.len() && found == data_out,
            Err(error) if is_mention(&error) => {}
            Err(_) => return false,
        }
    }
    false
}

/// Sends a command and waits for it. Returns how many bytes were moved. If the device only reports
/// that something has changed (UNIT ATTENTION), the command is sent again.
///
/// If the driver is ended in the meantime and comes back, the commands that were under way are sent
/// again in their order ([`Attempt`]). A write may have been done all the same, so [`is_written`]
/// checks that first. `data_out` is the caller's and has not changed.
pub async fn execute(
    host: &Arc<Host>,
    target: u32,
    lun: u32,
    cdb: &Cdb,
    data_out: &[u8],
    data_in: &mut [u8],
) -> Result<usize, ScsiError> {
    // A driver may answer every command at once: other tasks have their turn in between.
    yield_now().await;
    let len_bytes = data_out.len().max(data_in.len());
    let asked = Asked::command(target, lun, *cdb);
    let mut attempt = Attempt::<Scsi>::new(host);
    let (mut tries, mut before) = (0, (0, host.resets.load(Ordering::Relaxed)));
    loop {
        let is_done = async || is_written(host, asked, data_out).await;
        let outcome = match attempt.outcome(&asked, data_out, data_in, is_done).await? {
            Done::Now(outcome) => outcome,
            Done::Before => {
                let source = Source::by_itself(&host.handle().lock().name);
                let text = format_args!("a {} was done before its driver was ended", cdb.name());
                console::say_about(&source, Level::Info, text);
                return Ok(data_out.len());
            }
        };
        // The device reports that a new driver, or a person, has reset it: the tries begin anew.
        let now = (attempt.drivers_lost(), host.resets.load(Ordering::Relaxed));
        if core::mem::replace(&mut before, now) != now {
            tries = 0;
        }
        match check_outcome(&outcome, cdb.name(), len_bytes) {
            Err(error) if is_mention(&error) && tries < TRIES => {
                note_mention(host, target, lun, &error);
                tries += 1;
            }
            // A write with an impossible residual was done, because the status says so. After a
            // read, the amount of data is unknown.
            Err(ScsiError::Residual) if data_in.is_empty() => return Ok(len_bytes),
            Err(ScsiError::Residual) => return Err(ScsiError::Short),
            result => return result,
        }
    }
}

/// Has a logical unit reset, as a person has ordered: commands that it has not done are sent again.
pub async fn reset(host: &Host, target: u32, lun: u32) -> Result<(), ScsiError> {
    let handle = host.handle();
    let info = handle.lock().offered::<Queues>().map(|queues| queues.info).ok_or(ScsiError::NoDriver)?;
    if info.functions & CAN_RESET_LOGICAL_UNIT == 0 {
        return Err(ScsiError::Unsupported);
    }
    host.resets.fetch_add(1, Ordering::Relaxed);
    let asked = Asked::reset(target, lun);
    let limit = Duration::from_millis(COMMAND_MS.get());
    let outcome = with_timeout(limit, attempt::send_urgent::<Scsi>(&handle, RESET, &asked)).await;
    check_outcome(&outcome.map_err(|_| ScsiError::Late)??, "LOGICAL UNIT RESET", 0).map(|_| ())
}
