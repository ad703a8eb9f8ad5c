//! The events that the kernel reports. **Every value that a program decides by is a field**;
//! sentences are for people only.
//!
//! The kernel borrows the text of the events that it sends, and a receiver owns the text of the
//! events that it has read: [`Text`] is either.

use alloc::borrow::Cow;
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use serde::{Deserialize, Serialize, Serializer};

/// Text that is borrowed or owned.
pub type Text<'a> = Cow<'a, str>;

/// An event in the kernel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event<'a> {
    /// The kernel is up, and loads drivers next.
    Started {
        /// The kernel's version.
        version: Text<'a>,
        /// Version of the ABI that modules are built for.
        abi_version: u32,
        /// Frames of memory in all.
        frames: u64,
    },
    /// A driver was loaded.
    Loaded(Driver<'a>),
    /// A driver was unloaded.
    Unloaded {
        /// The driver's name.
        name: Text<'a>,
    },
    /// A driver was moved to another ring.
    RingChanged {
        /// The driver's name.
        name: Text<'a>,
        /// The ring that the driver runs in now.
        ring: u8,
    },
    /// A driver has logged a line. Lines that the console does not show, because the driver says
    /// too much, are not reported either.
    Log {
        /// The driver's name.
        driver: Text<'a>,
        /// Name of the module that the driver was loaded from.
        module: Text<'a>,
        /// The line's level: `error`, `warn` or `info`.
        level: Text<'a>,
        /// The line.
        text: Text<'a>,
    },
    /// A driver was ended.
    Fault(Box<Fault<'a>>),
    /// A successor has taken the place of a driver that was ended.
    Restarted {
        /// The successor's name.
        name: Text<'a>,
        /// How many successors this place has had.
        number: u64,
        /// Time since the end of the driver before it, in microseconds.
        after_us: u64,
        /// The part of that time that was spent on stopping the device, in microseconds.
        reset_us: u64,
    },
    /// Another build has taken the place of a running driver.
    Reloaded {
        /// The driver.
        driver: Driver<'a>,
        /// The version of its module.
        version: Text<'a>,
        /// Time from the end of the build before it, in microseconds.
        away_us: u64,
    },
    /// A new build did not start, or faulted soon, and the build before it is in its place again.
    ReloadUndone {
        /// The driver's name.
        name: Text<'a>,
        /// The reason, for a person.
        why: Text<'a>,
    },
    /// No more successors are loaded for a driver that was ended.
    GivenUp {
        /// The driver's name.
        name: Text<'a>,
        /// The reason, for a person.
        why: Text<'a>,
    },
    /// The drivers that are loaded, as `lsmod` shows them.
    Drivers(Vec<Driver<'a>>),
    /// Memory, as `mem` shows it.
    Memory {
        /// Frames that are free.
        free: u64,
        /// Frames in all.
        frames: u64,
        /// Bytes of the kernel's heap that are in use.
        heap_used: u64,
    },
    /// Whether the kernel is unchanged, as `integrity` shows it.
    Integrity {
        /// Checksum of the parts of the kernel that must never change.
        checksum: u64,
        /// Free frames that were written to since the last time this was asked for.
        stray: u64,
    },
    /// Data that a command has read, written, copied or echoed.
    Data {
        /// Length of the data in bytes.
        bytes: u64,
        /// SHA-256 of the data.
        sha256: Sha256,
    },
    /// A driver's answer to a command that a person typed.
    Answer {
        /// The driver's name.
        name: Text<'a>,
        /// The value that the driver returned.
        value: u64,
        /// Text that the driver gave besides the value.
        text: Text<'a>,
    },
    /// A disk, as `lsblk` shows it.
    Disk(Disk<'a>),
    /// An interface has an address.
    Address {
        /// The interface.
        name: Text<'a>,
        /// The address, as four bytes.
        address: [u8; 4],
    },
    /// The link of an interface went up or down, as its driver has reported.
    Link {
        /// The interface.
        name: Text<'a>,
        /// Whether the link is up.
        is_up: bool,
    },
    /// An interface, as `ip` shows it.
    Interface(Interface<'a>),
    /// A row of `bench`.
    Bench(Row<'a>),
    /// Rows of `bench` that could not be measured.
    BenchFailed {
        /// The family of rows.
        family: Text<'a>,
        /// The reason, for a person.
        why: Text<'a>,
    },
    /// The result of a trial of a changed module.
    Trial(Trial<'a>),
    /// The result of a piece of made-up code.
    Snippet(Snippet<'a>),
    /// The activity of the drivers, as `top` shows it.
    Activity {
        /// The time that the rates are about, in microseconds.
        interval_us: u64,
        /// The share of it in which the CPU was halted, in percent.
        idle_percent: f64,
        /// The drivers.
        drivers: Vec<Activity<'a>>,
    },
    /// All events of a trace that a person wants saved were sent ([`crate::trace`]).
    TraceSaved {
        /// The driver's name.
        name: Text<'a>,
    },
    /// How long things took that went across a driver's boundary, as `stats` shows it.
    Times {
        /// The driver's name.
        name: Text<'a>,
        /// The times of each upcall and service, and of frames and requests.
        of: Vec<Times<'a>>,
    },
    /// A request was carried out ([`crate::request`]).
    Answered {
        /// The request's id.
        id: u64,
        /// The answer, or the reason why the request failed, for a person.
        result: Result<Text<'a>, Text<'a>>,
    },
    /// A command has ended.
    Command {
        /// The line that was typed.
        line: Text<'a>,
        /// The reason of the failure, for a person; `None` if the command succeeded.
        error: Option<Text<'a>>,
    },
    /// The kernel has panicked.
    Panic {
        /// The reason, for a person.
        message: Text<'a>,
    },
    /// The machine ends in order.
    Ended {
        /// How many commands failed.
        failed: u64,
    },
}

/// The activity of a driver.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Activity<'a> {
    /// The driver's name.
    pub name: Text<'a>,
    /// The driver's class: `nic`, `scsi`, `block` or `fs`, or `other` for none.
    pub kind: Text<'a>,
    /// The kind of its domain: `paged` or `segmented`.
    pub domain_kind: Text<'a>,
    /// The ring that it runs in.
    pub ring: u8,
    /// The share of the CPU that it uses, in percent.
    pub cpu_percent: f64,
    /// Upcalls a second.
    pub upcalls: f64,
    /// Calls of services a second.
    pub calls: f64,
    /// Frames or requests a second.
    pub operations: f64,
    /// Bytes of these a second.
    pub bytes: f64,
    /// Interrupts of its device a second.
    pub interrupts: f64,
    /// Faults of its module since boot.
    pub faults: u64,
    /// How many drivers came before it in the same place.
    pub restarts: u64,
    /// Its memory in bytes.
    pub memory_bytes: u64,
}

/// How long something took that happened several times.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Times<'a> {
    /// `upcall`, `service`, or `in hand`: a frame or a request, from when the driver got it until
    /// it gave it back.
    pub kind: Text<'a>,
    /// Its name.
    pub name: Text<'a>,
    /// How often it happened.
    pub count: u64,
    /// The sum of all times, in nanoseconds.
    pub total_ns: u64,
    /// Half of the times were no longer than this, to an eighth.
    pub median_ns: u64,
    /// 99 of 100 times were no longer than this, to an eighth.
    pub p99_ns: u64,
    /// The longest time.
    pub longest_ns: u64,
    /// The histogram: how many times were at least as long as the first number of nanoseconds, and
    /// shorter than the second. Steps without any are left out.
    pub steps: Vec<(u64, u64, u32)>,
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Interface<'a> {
    /// The interface's name.
    pub name: Text<'a>,
    /// The name of its driver; empty if it has none.
    pub driver: Text<'a>,
    /// The interface's addresses, with their prefix lengths.
    pub addresses: Vec<Text<'a>>,
    /// The router to addresses beyond the interface's own network.
    pub router: Option<[u8; 4]>,
    /// Whether a person has the interface switched on.
    pub is_up: bool,
    /// Whether the interface's link is up.
    pub has_link: bool,
    /// The longest IP packet that it sends, in bytes.
    pub mtu: u32,
    /// Frames handed to the driver.
    pub sent: u64,
    /// Frames that the driver delivered.
    pub received: u64,
    /// Counts that the driver reports: frames that the card had no room for, frames that arrived
    /// damaged, frames that were not sent, and collisions.
    pub errors: [u64; 4],
}

/// A driver.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Driver<'a> {
    /// The driver's name.
    pub name: Text<'a>,
    /// Name of the module that the driver was loaded from.
    pub module: Text<'a>,
    /// The number of the module's build, if it was pushed; 0 for a file of the ramdisk.
    pub build: u32,
    /// The kind of its domain: `paged` or `segmented`.
    pub kind: Text<'a>,
    /// The ring that the driver runs in.
    pub ring: u8,
    /// The driver's slot.
    pub slot: u64,
    /// The driver's device, if it has one: a PCI function's address, or a name.
    pub device: Option<Text<'a>>,
    /// Whether the driver runs, or its next step if it does not: in words, as `lsmod` shows it.
    pub state: Text<'a>,
    /// How often the driver was entered.
    pub upcalls: u64,
    /// CPU time that the driver has used, in milliseconds.
    pub cpu_ms: u64,
    /// How many drivers came before it in the same place.
    pub restarts: u64,
}

/// Why a driver was ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fault<'a> {
    /// The driver's name.
    pub driver: Text<'a>,
    /// The name of the driver's module, and in `version` the module's version.
    pub module: Text<'a>,
    /// See `module`.
    pub version: Text<'a>,
    /// The number of the module's build, if it was pushed; 0 for a file of the ramdisk.
    pub build: u32,
    /// The kind of its domain: `paged` or `segmented`.
    pub domain_kind: Text<'a>,
    /// The ring that the driver ran in.
    pub ring: u8,
    /// The driver's slot.
    pub slot: u64,
    /// The kind of fault, in one word.
    pub kind: Text<'a>,
    /// The report's first line, for a person: the fault, and the upcall during which it happened.
    pub headline: Text<'a>,
    /// The upcall that was under way, or the last one.
    pub upcall: Text<'a>,
    /// Whether that upcall was under way.
    pub was_running: bool,
    /// How often the driver had been entered.
    pub upcalls: u64,
    /// Time of the fault, in microseconds since boot.
    pub at_us: u64,
    /// The address that caused the fault, if an address did.
    pub address: Option<u64>,
    /// The instruction at which the driver was ended, if it is known.
    pub rip: Option<u64>,
    /// That instruction as an offset in the image, and in `function` the name of its function.
    pub offset: Option<u64>,
    /// See `offset`.
    pub function: Option<Text<'a>>,
    /// The call chain at the driver's end, innermost call first: where each function was called, as
    /// offsets in the image.
    pub callers: Vec<u64>,
    /// Bytes of code from that instruction on.
    pub code: Vec<u8>,
    /// Words from the top of the driver's stack.
    pub stack: Vec<u64>,
    /// The exception, if one ended the driver.
    pub exception: Option<Exception>,
    /// The driver's last calls of services, oldest first.
    pub calls: Vec<Call<'a>>,
    /// The next step for the driver, for a person.
    pub then: Text<'a>,
}

/// A call of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call<'a> {
    /// The service's name.
    pub service: Text<'a>,
    /// The arguments of the call.
    pub arguments: Vec<u64>,
    /// The result of the call; `None` if the call ended the driver.
    pub result: Option<i64>,
}

/// The CPU's report of an exception, and the registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exception {
    /// The exception's vector.
    pub vector: u64,
    /// The exception's error code, 0 if it has none.
    pub error_code: u64,
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, and R8 to R15. 32-bit code has the first eight; RSP
    /// is then the kernel's address of its stack.
    pub registers: [u64; 16],
    /// RFLAGS.
    pub rflags: u64,
}

/// A SHA-256: bytes on the link, and hexadecimal digits for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Sha256(pub [u8; 32]);

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Serialize for Sha256 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { serializer.collect_str(self) } else { self.0.serialize(serializer) }
    }
}

/// A disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Disk<'a> {
    /// The disk's name.
    pub name: Text<'a>,
    /// The driver that the disk belongs to.
    pub driver: Text<'a>,
    /// SCSI target and logical unit, if the disk is one of a SCSI host's.
    pub place: Option<(u32, u32)>,
    /// How many blocks the disk has.
    pub blocks: u64,
    /// Length of a block in bytes.
    pub block_bytes: u64,
    /// The disk's model name.
    pub model: Text<'a>,
}

/// A row of `bench`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row<'a> {
    /// Name of the measurement.
    pub name: Text<'a>,
    /// The driver's ring.
    pub ring: Option<u8>,
    /// The kind of domain that the driver has in ring 1: `paged` or `segmented`. `None` for
    /// other rings.
    pub kind: Option<Text<'a>>,
    /// Operations handed over in one crossing.
    pub batch: Option<u64>,
    /// Loaded domains.
    pub domains: u64,
    /// Unit of the values.
    pub unit: Text<'a>,
    /// Number of samples.
    pub count: u64,
    /// Median of the samples.
    pub median: f64,
    /// The 99th percentile: 99 of 100 samples are no worse than this value.
    pub p99: f64,
    /// The smallest and the largest sample.
    pub range: [f64; 2],
    /// The loss against ring 0, in percent: the median of the losses of the samples, each beside a
    /// sample of ring 0 that was taken at about the same time. `None` if there are none.
    pub loss: Option<f64>,
}

/// The result of a trial of a changed module.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Trial<'a> {
    /// Whether the changed instruction was executed.
    pub activated: bool,
    /// The kind of the fault that ended the module; or `refused`, `init-failed`, `wrong` or `fine`.
    pub kind: Text<'a>,
    /// The fault's first line, or the step that failed, for a person.
    pub why: Text<'a>,
    /// The reason why the unchanged module failed to do the work afterwards, for a person; `None`
    /// if it did the work.
    pub not_restored: Option<Text<'a>>,
    /// Time from the fault until the unchanged module had done all its work, in microseconds.
    pub restore_us: Option<u64>,
    /// Checksum of the parts of the kernel that must never change.
    pub checksum: u64,
    /// Number of free frames.
    pub free: u64,
    /// Free frames that were written to.
    pub stray: u64,
}

/// The result of a piece of made-up code.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Snippet<'a> {
    /// The piece's number.
    pub number: u64,
    /// The kind of the fault that ended it; `answered` or `refused` if no fault did.
    pub kind: Text<'a>,
    /// The exception, if one ended it.
    pub trap: Option<Trap>,
}

/// The values that the CPU pushes at an exception.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the fields are registers")]
pub struct Trap {
    pub vector: u64,
    pub error_code: u64,
    pub rip: u64,
    pub rsp: u64,
    pub cs: u64,
    pub ss: u64,
    pub rflags: u64,
}

impl Event<'_> {
    /// Writes the event into `room`. Returns the number of bytes written, or `None` if `room` is
    /// too small.
    pub fn write(&self, room: &mut [u8]) -> Option<usize> {
        crate::write(self, room)
    }
}

impl Event<'static> {
    /// Reads the event that a payload holds; `None` if it holds no event.
    pub fn read(payload: &[u8]) -> Option<Event<'static>> {
        crate::read(payload)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_written_is_read() {
        let fault = Fault {
            driver: "e1000".into(),
            module: "e1000".into(),
            version: "0.1.0".into(),
            build: 2,
            domain_kind: "segmented".into(),
            ring: 1,
            slot: 3,
            kind: "page-fault".into(),
            headline: "e1000: #PF reading 0x0 (null), in poll".into(),
            upcall: "poll".into(),
            was_running: true,
            upcalls: 7,
            at_us: 1_000_000,
            address: Some(0),
            rip: Some(0x80_0040_2000),
            offset: Some(0x2000),
            function: None,
            callers: [0x10].into(),
            code: [0x0f, 0x0b].into(),
            stack: [1, 2].into(),
            exception: Some(Exception { vector: 14, error_code: 4, registers: [u64::MAX; 16], rflags: 0x202 }),
            calls: [Call { service: "rf_log".into(), arguments: [3, 4].into(), result: Some(-1) }].into(),
            then: "it stays ended".into(),
        };
        let row = Row {
            name: "call/gate".into(),
            ring: Some(1),
            kind: Some("paged".into()),
            batch: None,
            domains: 2,
            unit: "ticks".into(),
            count: 100,
            median: 58.1,
            p99: 60.0,
            range: [57.0, 61.0],
            loss: Some(24.5),
        };
        let events = [
            Event::Fault(Box::new(fault)),
            Event::Bench(row),
            Event::Ended { failed: 0 },
            Event::Data { bytes: 5, sha256: Sha256([7; 32]) },
            Event::Command { line: "lsmod".into(), error: Some("no".into()) },
        ];
        for event in events {
            let mut room = [0; 1024];
            let len = event.write(&mut room).unwrap();
            assert!(event.write(&mut room[..len - 1]).is_none());
            let _ = event.write(&mut room);
            assert_eq!(Event::read(&room[..len]), Some(event));
            assert_eq!(Event::read(&room[..=len]), None, "one with something behind it");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Event::read(&bytes);
        }
    }
}
