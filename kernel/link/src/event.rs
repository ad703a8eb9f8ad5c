//! What the kernel tells of. **What a program decides by is a field**; sentences are for people
//! still.
//!
//! The kernel lends the text in an event, and who has received one owns it: [`Text`] is either.

use alloc::borrow::Cow;
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use serde::{Deserialize, Serialize, Serializer};

/// Text that is lent or owned.
pub type Text<'a> = Cow<'a, str>;

/// Something that happened in the kernel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event<'a> {
    /// The kernel is up, and loads drivers next.
    Started {
        /// Its version.
        version: Text<'a>,
        /// Version of the ABI for modules.
        abi_version: u32,
        /// Frames of memory in all.
        frames: u64,
    },
    /// A driver was loaded.
    Loaded(Driver<'a>),
    /// One was unloaded.
    Unloaded {
        /// Its name.
        name: Text<'a>,
    },
    /// One was moved to another ring.
    RingChanged {
        /// Its name.
        name: Text<'a>,
        /// The ring it runs in now.
        ring: u8,
    },
    /// One was ended.
    Fault(Box<Fault<'a>>),
    /// One has come in the place of one that was ended.
    Restarted {
        /// Its name.
        name: Text<'a>,
        /// How often that has happened in this place.
        number: u64,
        /// From the end of the other one, in microseconds.
        after_us: u64,
        /// How much of that stopping the device took, in microseconds.
        reset_us: u64,
    },
    /// None comes any more in the place of one that was ended.
    GivenUp {
        /// Its name.
        name: Text<'a>,
        /// Why, for a person.
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
    /// Whether the kernel is as it was, as `integrity` shows it.
    Integrity {
        /// Checksum of what of the kernel must never change.
        checksum: u64,
        /// Frames that were written to though nobody had them, since this was asked last.
        stray: u64,
    },
    /// Data that a command has read, written, copied or echoed.
    Data {
        /// How much, in bytes.
        bytes: u64,
        /// Its SHA-256.
        sha256: Sha256,
    },
    /// What a driver has answered to what a person told it.
    Answer {
        /// Its name.
        name: Text<'a>,
        /// The answer.
        value: u64,
        /// What it has said beside that.
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
    /// The link of an interface is up or down: its driver has said so.
    Link {
        /// The interface.
        name: Text<'a>,
        /// Whether it is up.
        is_up: bool,
    },
    /// An interface, as `ip` shows it.
    Interface(Interface<'a>),
    /// A row of `bench`.
    Bench(Row<'a>),
    /// Rows of `bench` that could not be measured.
    BenchFailed {
        /// Which.
        family: Text<'a>,
        /// Why, for a person.
        why: Text<'a>,
    },
    /// What became of a changed module.
    Trial(Trial<'a>),
    /// What became of a piece of made-up code.
    Snippet(Snippet<'a>),
    /// A command has ended.
    Command {
        /// The line that was typed.
        line: Text<'a>,
        /// What went wrong, for a person, if it failed.
        error: Option<Text<'a>>,
    },
    /// The kernel has panicked.
    Panic {
        /// Why, for a person.
        message: Text<'a>,
    },
    /// The machine ends in order.
    Ended {
        /// How many commands failed.
        failed: u64,
    },
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Interface<'a> {
    /// Its name.
    pub name: Text<'a>,
    /// The name of its driver; empty if it has none.
    pub driver: Text<'a>,
    /// Its addresses, with the lengths of their prefixes.
    pub addresses: Vec<Text<'a>>,
    /// The router that it has beyond its own network.
    pub router: Option<[u8; 4]>,
    /// Whether a person lets it be used.
    pub is_up: bool,
    /// Whether its link is up.
    pub has_link: bool,
    /// The longest IP packet that it sends, in bytes.
    pub mtu: u32,
    /// Frames handed to the driver.
    pub sent: u64,
    /// Frames that the driver delivered.
    pub received: u64,
    /// What the driver says of others: frames that the card had no room for, frames that came
    /// damaged, frames that were not sent, and collisions.
    pub errors: [u64; 4],
}

/// A driver.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Driver<'a> {
    /// Its name.
    pub name: Text<'a>,
    /// Name of the module that it was loaded from.
    pub module: Text<'a>,
    /// The ring it runs in.
    pub ring: u8,
    /// Its slot.
    pub slot: u64,
    /// What it drives, if that is a device: a PCI function's address, or a name.
    pub device: Option<Text<'a>>,
    /// Whether it runs, and what becomes of it if not: in words, as `lsmod` shows it.
    pub state: Text<'a>,
    /// How often it was entered.
    pub upcalls: u64,
    /// What it has had of the CPU, in milliseconds.
    pub cpu_ms: u64,
    /// How many came before it in its place.
    pub restarts: u64,
}

/// Why a driver was ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fault<'a> {
    /// Its name.
    pub driver: Text<'a>,
    /// Its module's, and the version of that.
    pub module: Text<'a>,
    /// See `module`.
    pub version: Text<'a>,
    /// The ring it ran in.
    pub ring: u8,
    /// Its slot.
    pub slot: u64,
    /// What it was, in one word.
    pub kind: Text<'a>,
    /// The report's first line: what and during what, for a person.
    pub headline: Text<'a>,
    /// The upcall that it was in, or that it was in last.
    pub upcall: Text<'a>,
    /// Whether it was in that.
    pub was_running: bool,
    /// How often it had been entered.
    pub upcalls: u64,
    /// When, in microseconds since boot.
    pub at_us: u64,
    /// The address that it was ended for, if it was for one.
    pub address: Option<u64>,
    /// The instruction that it was ended at, if it was at one.
    pub rip: Option<u64>,
    /// That as an offset in its image, and the function that it lies in.
    pub offset: Option<u64>,
    /// See `offset`.
    pub function: Option<Text<'a>>,
    /// The functions that it was in when it gave up, the last one first: where each was called, as
    /// offsets in its image.
    pub callers: Vec<u64>,
    /// Bytes from that instruction on.
    pub code: Vec<u8>,
    /// Words from the top of its stack.
    pub stack: Vec<u64>,
    /// The exception, if it was ended by one.
    pub exception: Option<Exception>,
    /// Its last calls of services, the last one last.
    pub calls: Vec<Call<'a>>,
    /// What becomes of it, for a person.
    pub then: Text<'a>,
}

/// A call of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call<'a> {
    /// Its name.
    pub service: Text<'a>,
    /// What it was called with.
    pub arguments: Vec<u64>,
    /// What it returned; `None` if it ended the driver.
    pub result: Option<i64>,
}

/// What the CPU says of an exception, and the registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exception {
    /// Its vector.
    pub vector: u64,
    /// Its error code, 0 if it has none.
    pub error_code: u64,
    /// RAX, RBX, RCX, RDX, RSI, RDI, RBP, RSP, and R8 to R15.
    pub registers: [u64; 16],
    /// RFLAGS.
    pub rflags: u64,
}

/// A SHA-256: bytes on the link, and digits for people.
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
    /// Its name.
    pub name: Text<'a>,
    /// The driver that it is behind.
    pub driver: Text<'a>,
    /// Target and unit, if it is a SCSI host's.
    pub place: Option<(u32, u32)>,
    /// How many blocks it has.
    pub blocks: u64,
    /// Length of each in bytes.
    pub block_bytes: u64,
    /// What it is called.
    pub model: Text<'a>,
}

/// A row of `bench`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row<'a> {
    /// What was measured.
    pub name: Text<'a>,
    /// The driver's ring.
    pub ring: Option<u8>,
    /// Operations handed over in one crossing.
    pub batch: Option<u64>,
    /// Loaded domains.
    pub domains: u64,
    /// Unit of the values.
    pub unit: Text<'a>,
    /// Samples.
    pub count: u64,
    /// Their median.
    pub median: f64,
    /// The value that 99 of 100 samples are no worse than.
    pub p99: f64,
}

/// What became of a changed module.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Trial<'a> {
    /// Whether the changed instruction was executed.
    pub activated: bool,
    /// The kind of the fault that ended it; `refused`, `init-failed`, `wrong` or `fine`.
    pub kind: Text<'a>,
    /// The fault's first line, or what failed, for a person.
    pub why: Text<'a>,
    /// Why the good module did not do the work afterwards, if it did not, for a person.
    pub not_restored: Option<Text<'a>>,
    /// From the fault until the good one had done all that it must do, in microseconds.
    pub restore_us: Option<u64>,
    /// Checksum of what of the kernel must never change.
    pub checksum: u64,
    /// Free frames.
    pub free: u64,
    /// Frames that were written to though nobody had them.
    pub stray: u64,
}

/// What became of a piece of made-up code.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Snippet<'a> {
    /// Its number.
    pub number: u64,
    /// The kind of the fault that ended it; `answered` or `refused` if none did.
    pub kind: Text<'a>,
    /// The exception, if it was ended by one.
    pub trap: Option<Trap>,
}

/// What the CPU has pushed at an exception.
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
    /// Writes it into `room`; how many bytes it takes, or `None` if there are not as many.
    pub fn write(&self, room: &mut [u8]) -> Option<usize> {
        Some(postcard::to_slice(self, room).ok()?.len())
    }
}

impl Event<'static> {
    /// The event that a payload is; `None` if it is none.
    pub fn read(payload: &[u8]) -> Option<Event<'static>> {
        // What is behind it would have no meaning.
        let (event, rest) = postcard::take_from_bytes(payload).ok()?;
        rest.is_empty().then_some(event)
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
            batch: None,
            domains: 2,
            unit: "ticks".into(),
            count: 100,
            median: 58.1,
            p99: 60.0,
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
