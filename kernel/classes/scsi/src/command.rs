//! SCSI commands: each is sent to a host's driver, and again to the next one if that is ended meanwhile.

use super::queues::Queues;
use super::queues::{Data, Lost, Ticket};
use super::repeat::Place;
use super::{Host, scan};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::future::{Future, poll_fn};
use core::pin::pin;
use core::sync::atomic::Ordering;
use core::task::Poll;
use embassy_futures::yield_now;
use embassy_time::{Duration, Instant, with_timeout};
use host::domain::cause::Cause;
use host::domain::{Handle, end};
use host::poll;
use hw::console;
use hw::console::Source;
use log::Level;
use ringfence_abi::scsi::{HOST_NO_DEVICE, HOST_OK, HOST_RESET, Outcome};
use ringfence_abi::upcall::Events;
use ringfence_core::cdb::Cdb;
use ringfence_core::limits::{COMMAND_MS, PAUSE_MS, RESTARTS};
use ringfence_core::sense::{self, Sense};

/// How often a command is sent when the device only wants to say that something changed.
const TRIES: usize = 4;

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
    /// Nothing went wrong, but the device says that it did not move more data than there is: QEMU does (-512, say) when it repeats what
    /// its full disk could not take.
    Residual,
    /// The disk was there, and is no more.
    Gone,
    /// The blocks are not all on the disk.
    OutOfRange,
    /// It has blocks of so many bytes, which are not supported.
    BlockBytes(u32),
}

impl ScsiError {
    /// Whether it says that there is no such unit.
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

/// Gives up a request when who waits for it goes away.
struct Waiting<'a> {
    handle: &'a Handle,
    ticket: Option<Ticket>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let (Some(ticket), Some(scsi)) = (self.ticket, self.handle.lock().offered_mut::<Queues>()) {
            scsi.abandon(ticket);
        }
    }
}

/// A command for a logical unit, and its number among those of its host.
#[derive(Clone, Copy)]
struct Command<'a> {
    number: u64,
    target: u32,
    lun: u32,
    cdb: &'a Cdb,
}

/// Sends a command and waits for its outcome; data that comes in goes to `data_in`. `place` is left when it is sent, unless
/// it writes: who comes next may read that. `was_sent` is set when a driver has it.
async fn execute_once(
    handle: &Handle,
    command: Command<'_>,
    data_out: &[u8],
    data_in: &mut [u8],
    place: Option<&Place<'_>>,
    was_sent: &mut bool,
) -> Result<Outcome, ScsiError> {
    let begun = poll_fn(|context| {
        let mut domain = handle.lock();
        if !domain.is_alive() {
            return Poll::Ready(Err(ScsiError::NoDriver));
        }
        let Some(scsi) = domain.offered_mut::<Queues>() else { return Poll::Ready(Err(ScsiError::NoDriver)) };
        let data = match (data_out.is_empty(), data_in.is_empty()) {
            (false, _) => Data::Out(data_out),
            (true, false) => Data::In(data_in.len()),
            (true, true) => Data::None,
        };
        match scsi.begin(Some(command.number), command.target, command.lun, command.cdb, data) {
            Ok(Some(ticket)) => Poll::Ready(Ok(ticket)),
            Ok(None) => {
                scsi.wake_when_free(context.waker());
                Poll::Pending
            }
            Err(cause) => {
                domain.condemn(cause);
                end::quiesce(&mut domain);
                Poll::Ready(Err(ScsiError::NoDriver))
            }
        }
    });
    // While nothing becomes free, what fills the queue is stuck, and maybe nobody waits for it any more.
    let ticket = in_time(handle, begun).await?;
    *was_sent = true;
    if let Some(place) = place.filter(|_| data_out.is_empty()) {
        place.leave();
    }
    let mut waiting = Waiting { handle, ticket: Some(ticket) };
    poll::poll(handle, Events::QUEUE);
    let outcome = poll_fn(|context| {
        let mut domain = handle.lock();
        let Some(scsi) = domain.offered_mut::<Queues>() else { return Poll::Ready(Err(ScsiError::NoDriver)) };
        match scsi.finish(ticket, data_in, Some(context.waker())) {
            Some(outcome) => Poll::Ready(outcome.map_err(ScsiError::from)),
            None if !domain.is_alive() => Poll::Ready(Err(ScsiError::NoDriver)),
            None => Poll::Pending,
        }
    });
    let outcome = in_time(handle, outcome).await?;
    waiting.ticket = None;
    Ok(outcome)
}

/// Waits for what a driver is to do. One that has not done it in time, nor in a few turns since, is ended, with its device, and
/// both are begun anew, if the policy is to restart. One that rests is not to blame: its turns come later.
async fn in_time<T>(handle: &Handle, done: impl Future<Output = Result<T, ScsiError>>) -> Result<T, ScsiError> {
    // One to see the command, one when the device has done it, and one to spare.
    const TURNS: u64 = 3;
    const LOOK_AGAIN: Duration = Duration::from_millis(1);
    let mut done = pin!(done);
    let limit_ms = COMMAND_MS.get();
    if let Ok(done) = with_timeout(Duration::from_millis(limit_ms), done.as_mut()).await {
        return done;
    }
    let upcalls = handle.lock().upcalls;
    loop {
        poll::poll(handle, Events::QUEUE);
        let turns = handle.lock().upcalls - upcalls;
        if let Ok(done) = with_timeout(LOOK_AGAIN, done.as_mut()).await {
            return done;
        }
        if turns >= TURNS {
            end::condemn(handle, Cause::Stuck { what: "SCSI command", limit_ms });
            return Err(ScsiError::NoDriver);
        }
    }
}

/// What an outcome of `len_bytes` bytes of data means: how many were moved, or what went wrong.
pub fn check_outcome(outcome: &Outcome, command: &'static str, len_bytes: usize) -> Result<usize, ScsiError> {
    match outcome.host {
        HOST_OK => {}
        HOST_NO_DEVICE => return Err(ScsiError::NoDevice),
        HOST_RESET => return Err(ScsiError::Reset),
        code => return Err(ScsiError::Host(code)),
    }
    // The queue lets no other through.
    let status = u8::try_from(outcome.status).unwrap_or(u8::MAX);
    if status != sense::GOOD {
        let sense = outcome.sense.get(..outcome.sense_len as usize).and_then(Sense::parse);
        return Err(ScsiError::Status { command, status, sense });
    }
    len_bytes.checked_sub(outcome.residual as usize).ok_or(ScsiError::Residual)
}

/// Whether the device only wanted to mention something, and the command can be sent again.
fn is_mention(error: &ScsiError) -> bool {
    match error {
        ScsiError::Reset => true,
        ScsiError::Status { sense: Some(sense), .. } => sense.key == Sense::UNIT_ATTENTION,
        _ => false,
    }
}

/// Has looked at again what a device says has changed: its units, its capacity, or whatever a reset has brought.
fn note_mention(host: &Arc<Host>, target: u32, lun: u32, error: &ScsiError) {
    let ScsiError::Status { sense: Some(sense), .. } = error else { return };
    if sense.units_changed() {
        scan::look_at(host.clone());
    } else if sense.unit_changed() {
        scan::look_again(host, target, lun);
    }
}

/// Whether `data_out`, which a WRITE that was under way when its driver was ended is to write, is on the disk: its blocks
/// are read and compared. `false` if that cannot be found out; then it is written again, which does no harm.
async fn is_written(host: &Host, command: Command<'_>, data_out: &[u8]) -> bool {
    let Some(read) = command.cdb.read_back() else { return false };
    let mut found = Vec::new();
    if found.try_reserve_exact(data_out.len()).is_err() {
        return false;
    }
    found.resize(data_out.len(), 0);
    for _ in 0..TRIES {
        let command = Command { cdb: &read, ..command };
        let outcome = execute_once(&host.handle(), command, &[], &mut found, None, &mut false).await;
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
    host: &Arc<Host>,
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
    let command = Command { number, target, lun, cdb };
    let place = host.repeats.place(number);
    let mut tries = 0;
    // How often it was sent, and how long it has waited for drivers.
    let (mut sent, mut waited) = (0, Duration::MIN);
    let (mut again, mut was_sent) = (false, false);
    loop {
        if core::mem::take(&mut again) {
            place.come().await;
            if core::mem::take(&mut was_sent) && is_written(host, command, data_out).await {
                let source = Source::by_itself(&host.handle().lock().name);
                let text = format_args!("a {} was done before its driver was ended", cdb.name());
                console::say_about(&source, Level::Info, text);
                return Ok(data_out.len());
            }
        }
        let handle = host.handle();
        let outcome = execute_once(&handle, command, data_out, data_in, Some(&place), &mut was_sent).await;
        match outcome.and_then(|outcome| check_outcome(&outcome, cdb.name(), len_bytes)) {
            Err(ScsiError::NoDriver) => {
                // Those that were under way go again in the order in which they were first sent.
                place.join();
                again = true;
                sent += u64::from(was_sent);
                let since = Instant::now();
                let is_back = host.another_than(&handle).await;
                waited += since.elapsed();
                // A command that ends whatever driver has it comes to an end itself.
                if !is_back || waited.as_millis() > PAUSE_MS.get() || sent > RESTARTS.get() {
                    return Err(ScsiError::NoDriver);
                }
                // A fresh driver has reset the device, which mentions that.
                tries = 0;
            }
            Err(error) if is_mention(&error) && tries < TRIES => {
                note_mention(host, target, lun, &error);
                tries += 1;
            }
            // What cannot be true does not decide whether a write was done: the status does. How much was read nobody knows.
            Err(ScsiError::Residual) if data_in.is_empty() => return Ok(len_bytes),
            Err(ScsiError::Residual) => return Err(ScsiError::Short),
            result => return result,
        }
    }
}
