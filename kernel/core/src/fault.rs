//! The reasons why drivers are ended, and their texts.

use crate::descriptor::{SelectorName, describe_selector};
use crate::disassembly;
use crate::requests::Wrong;
use crate::vector;
use core::fmt;
use ringfence_abi::net::Entry;
use ringfence_abi::queue::Lie;
use ringfence_abi::service::SERVICES;

/// The reason why a driver was ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The CPU refused an instruction.
    Exception {
        /// CR2, the address that was accessed, for a page fault.
        address: Option<u64>,
    },
    /// An upcall took longer than the driver's budget.
    Overrun,
    /// The driver slept too long in one upcall.
    Overslept {
        /// How long it may sleep, in milliseconds.
        limit_ms: u64,
    },
    /// A person ended the driver.
    Killed,
    /// The driver gave up, and has logged the reason.
    Panic,
    /// The driver passed a pointer that is not to its own memory.
    BadPointer {
        /// The pointer.
        address: u64,
        /// The length that went with it, in bytes.
        len_bytes: u64,
    },
    /// The driver did not finish a frame or request in time.
    Stuck {
        /// The name of the thing that it was given.
        what: &'static str,
        /// The time limit in milliseconds.
        limit_ms: u64,
    },
    /// The driver's position in a queue cannot be true.
    QueueLie {
        /// Name of the queue.
        queue: &'static str,
        /// The position that the driver claims.
        claimed: u64,
        /// The position that the kernel has counted.
        counted: u64,
    },
    /// The driver's device tried to reach memory that the driver was not given for it.
    Dma {
        /// The address, as the device sees it.
        address: u64,
        /// Whether the device tried to write.
        writes: bool,
        /// The fence's reason, by its number.
        reason: u8,
    },
    /// The driver put an entry into a queue that does not exist, or that is not its to give.
    QueueEntry {
        /// Name of the queue.
        queue: &'static str,
        /// The entry.
        entry: u64,
    },
}

impl Cause {
    /// Turns a lie about the position in `queue` into a cause.
    pub fn lie(queue: &'static str) -> impl Fn(Lie) -> Cause {
        move |lie| Cause::QueueLie { queue, claimed: lie.claimed, counted: lie.own }
    }
}

impl From<Wrong> for Cause {
    fn from(wrong: Wrong) -> Cause {
        match wrong {
            Wrong::Position(queue, lie) => Cause::lie(queue)(lie),
            Wrong::Entry(queue, entry) => Cause::QueueEntry { queue, entry },
        }
    }
}

/// The CPU's report of an exception.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exception {
    /// Its vector.
    pub vector: u64,
    /// Its error code, 0 if it has none.
    pub error_code: u64,
}

/// The facts of a fault that its text depends on.
#[derive(Debug, Clone, Copy)]
pub struct Happened<'a> {
    /// The reason why the driver was ended.
    pub cause: Cause,
    /// The CPU's report, if the CPU noticed the fault.
    pub exception: Option<Exception>,
    /// The address that the fault is about, and a description of the memory there.
    pub accused: Option<(u64, &'a str)>,
    /// The bytes of the instruction, if there was one.
    pub code: &'a [u8],
    /// The driver's budget for an upcall, in milliseconds.
    pub upcall_ms: u32,
    /// The number of the service that the driver called last.
    pub service: Option<usize>,
    /// The fence's reason, in words.
    pub reason: &'a str,
}

fn service_name(number: usize) -> &'static str {
    SERVICES.get(number).map_or("?", |service| service.symbol)
}

impl fmt::Display for Happened<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.cause, self.exception) {
            (Cause::Exception { .. }, Some(exception)) => self.write_exception(f, exception),
            (Cause::Exception { .. }, None) => write!(f, "an exception"),
            (Cause::Overrun, _) => write!(f, "took longer than {} ms", self.upcall_ms),
            (Cause::Overslept { limit_ms }, _) => write!(f, "slept for more than {limit_ms} ms in one upcall"),
            (Cause::Stuck { what, limit_ms }, _) => write!(f, "left a {what} undone for {limit_ms} ms"),
            (Cause::Killed, _) => write!(f, "killed"),
            (Cause::Panic, _) => write!(f, "gave up"),
            (Cause::BadPointer { address, len_bytes }, _) => {
                write!(f, "bad pointer to {}: {len_bytes:#x} bytes at ", self.service.map_or("?", service_name))?;
                match self.accused {
                    Some((address, what)) => write!(f, "{address:#x} ({what})"),
                    None => write!(f, "{address:#x}"),
                }
            }
            (Cause::QueueLie { queue, claimed, counted }, _) => {
                write!(f, "lied about the {queue} queue: position {claimed:#x}, but {counted:#x} is counted")
            }
            (Cause::Dma { address, writes, .. }, _) => {
                let does = if writes { "writing" } else { "reading" };
                let what = self.accused.map_or("no address of its own", |(_, what)| what);
                write!(f, "DMA fault: its device {does} {address:#x} ({what}): {}", self.reason)
            }
            (Cause::QueueEntry { queue, entry }, _) => {
                write!(f, "bad entry {entry:#x} in the {queue} queue")?;
                let frame = Entry(entry);
                match queue {
                    "received" => {
                        write!(f, " (frame {}, {} bytes", frame.frame(), frame.len_bytes())?;
                        if frame.queue() != 0 {
                            write!(f, ", queue {}", frame.queue())?;
                        }
                        if entry >> 49 != 0 {
                            f.write_str(", and more than an entry has")?;
                        }
                        f.write_str(if frame.is_checked() { ", checked)" } else { ")" })
                    }
                    "transmitted" if entry <= u16::MAX.into() => write!(f, " (frame {entry})"),
                    _ => Ok(()),
                }
            }
        }
    }
}

impl Happened<'_> {
    fn write_exception(&self, f: &mut fmt::Formatter<'_>, exception: Exception) -> fmt::Result {
        let Exception { vector, error_code } = exception;
        let name = vector::name(vector);
        if let Some((address, what)) = self.accused {
            // Page-fault error code (SDM vol. 3A, 4.7): bit 1 write, bit 4 instruction fetch.
            let verb = match (error_code & 1 << 1 != 0, error_code & 1 << 4 != 0) {
                (_, true) => "executing",
                (true, _) => "writing",
                _ => "reading",
            };
            return match vector {
                vector::PAGE_FAULT => write!(f, "#PF {verb} {address:#x} ({what})"),
                _ => write!(f, "{name} at {address:#x} ({what})"),
            };
        }
        f.write_str(name)?;
        if !(vector::INVALID_TSS..=vector::GENERAL_PROTECTION).contains(&vector) || error_code == 0 {
            return Ok(());
        }
        match describe_selector(error_code) {
            SelectorName::Gate(number) => write!(f, " on the gate of {}", service_name(number)),
            SelectorName::ReturnGate => write!(f, " on the return gate"),
            SelectorName::Interrupt(vector) => {
                // The instruction itself is more reliable: QEMU shifts the vector by 4 instead of
                // 3.
                let vector = disassembly::raises(self.code).unwrap_or(vector);
                write!(f, " on int {vector:#x}")
            }
            SelectorName::Global(entry) => write!(f, " on entry {entry} of the GDT"),
            SelectorName::Local(entry) => write!(f, " on entry {entry} of the LDT"),
        }
    }
}

/// Returns the kind of a fault in one word, for programs.
pub fn kind(cause: Cause, exception: Option<Exception>) -> &'static str {
    const GATE: [u64; 2] = [vector::NOT_PRESENT, vector::GENERAL_PROTECTION];
    match (cause, exception) {
        (Cause::Exception { .. }, Some(Exception { vector, error_code })) => {
            match (vector, describe_selector(error_code)) {
                (vector, SelectorName::Gate(_) | SelectorName::ReturnGate) if GATE.contains(&vector) => "gate-fault",
                (vector::INVALID_OPCODE, _) => "invalid-opcode",
                (vector::GENERAL_PROTECTION, _) => "general-protection",
                (vector::PAGE_FAULT, _) => "page-fault",
                _ => "exception",
            }
        }
        (Cause::Exception { .. }, None) => "exception",
        (Cause::Overrun | Cause::Overslept { .. }, _) => "overrun",
        (Cause::Stuck { .. }, _) => "stuck",
        (Cause::Killed, _) => "killed",
        (Cause::Panic, _) => "panic",
        (Cause::Dma { .. }, _) => "DMA-fault",
        (Cause::BadPointer { .. } | Cause::QueueLie { .. } | Cause::QueueEntry { .. }, _) => "gate-fault",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::descriptor::gate_selector;
    use ringfence_abi::service::by_symbol;

    fn happened(cause: Cause) -> Happened<'static> {
        Happened { cause, exception: None, accused: None, code: &[], upcall_ms: 200, service: None, reason: "" }
    }

    fn exception(vector: u64, error_code: u64) -> Happened<'static> {
        let exception = Some(Exception { vector, error_code });
        Happened { exception, ..happened(Cause::Exception { address: None }) }
    }

    #[test]
    fn page_faults_say_what_was_done_and_what_lies_there() {
        let at = |error_code| Happened { accused: Some((0x1000, "kernel text")), ..exception(14, error_code) };
        assert_eq!(at(0).to_string(), "#PF reading 0x1000 (kernel text)");
        assert_eq!(at(2).to_string(), "#PF writing 0x1000 (kernel text)");
        assert_eq!(at(0x10).to_string(), "#PF executing 0x1000 (kernel text)");
        let not_canonical = Happened { accused: Some((1 << 63, "non-canonical")), ..exception(13, 0) };
        assert_eq!(not_canonical.to_string(), "#GP general protection at 0x8000000000000000 (non-canonical)");
    }

    #[test]
    fn selectors_are_named() {
        let log = by_symbol(b"rf_log").unwrap();
        let gate = u64::from(gate_selector(log)) & !3;
        assert_eq!(exception(11, gate).to_string(), "#NP segment not present on the gate of rf_log");
        assert_eq!(exception(13, 0).to_string(), "#GP general protection");
        assert_eq!(exception(6, gate).to_string(), "#UD invalid opcode");
        // Bit 1 says that the selector is of the IDT. The instruction `int 0x80` is more reliable.
        let wrong_vector = Happened { code: &[0xcd, 0x80], ..exception(13, 8 << 3 | 2) };
        assert_eq!(wrong_vector.to_string(), "#GP general protection on int 0x80");
        assert_eq!(
            kind(Cause::Exception { address: None }, Some(Exception { vector: 13, error_code: gate })),
            "gate-fault"
        );
    }

    #[test]
    fn queues_and_pointers_are_named() {
        let lie = Cause::lie("received")(Lie { claimed: 1000, own: 3 });
        assert_eq!(happened(lie).to_string(), "lied about the received queue: position 0x3e8, but 0x3 is counted");
        let entry = Cause::QueueEntry { queue: "received", entry: Entry::new(1, 60).0 };
        assert_eq!(happened(entry).to_string(), "bad entry 0x3c00000001 in the received queue (frame 1, 60 bytes)");
        let entry = Cause::QueueEntry { queue: "complete", entry: 7 };
        assert_eq!(happened(entry).to_string(), "bad entry 0x7 in the complete queue");
        let pointer = Cause::BadPointer { address: 0, len_bytes: 16 };
        let pointer = Happened { accused: Some((0, "null")), service: by_symbol(b"rf_log"), ..happened(pointer) };
        assert_eq!(pointer.to_string(), "bad pointer to rf_log: 0x10 bytes at 0x0 (null)");
        assert_eq!(kind(pointer.cause, None), "gate-fault");
    }

    #[test]
    fn the_others_are_said() {
        let dma = Cause::Dma { address: 0x2000, writes: true, reason: 5 };
        let dma = Happened { reason: "it may not write there", ..happened(dma) };
        assert_eq!(
            dma.to_string(),
            "DMA fault: its device writing 0x2000 (no address of its own): it may not write there"
        );
        assert_eq!(happened(Cause::Overrun).to_string(), "took longer than 200 ms");
        let overslept = Cause::Overslept { limit_ms: 5000 };
        assert_eq!(happened(overslept).to_string(), "slept for more than 5000 ms in one upcall");
        assert_eq!(kind(overslept, None), "overrun");
        let stuck = Cause::Stuck { what: "frame", limit_ms: 300 };
        assert_eq!(happened(stuck).to_string(), "left a frame undone for 300 ms");
        for (cause, words, word) in [(Cause::Killed, "killed", "killed"), (Cause::Panic, "gave up", "panic")] {
            assert_eq!((happened(cause).to_string().as_str(), kind(cause, None)), (words, word));
        }
    }
}
