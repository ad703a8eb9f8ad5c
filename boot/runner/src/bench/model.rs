//! `cargo run -- bench --model`: models the cost of the rings, and of both kinds of domains, on
//! hardware, as ranges.
//!
//! Under TCG a time says nothing about that; the executed instructions do. QEMU logs the
//! instructions of an operation. Events that a CPU takes long for are counted, and each has its
//! cycles from published measurements.

use super::Row;
use crate::build::System;
use crate::machine::Machine;
use crate::output;
use crate::profile::{self, Executed, Instruction};
use anyhow::{Result, bail};
use iced_x86::{Code, Decoder, DecoderOptions, Mnemonic, Register};
use ringfence_abi::manifest::{DomainKind, SEGMENTED_SUFFIX};
use ringfence_core::module::file_name;
use std::fmt::Write;

/// An event that costs more than an ordinary instruction.
struct Event {
    /// Its name in rows and tables.
    name: &'static str,
    /// The fewest and the most cycles.
    cycles: [f64; 2],
    /// Where the cycles are from.
    source: &'static str,
    /// How `bench call` measures it.
    measured: Measured,
}

/// How the cycles of an event follow from a row of `bench call`.
enum Measured {
    /// No row has it.
    Not,
    /// The row is the event.
    Alone,
    /// The row is a way there and back with two writes of CR3. Without these, the event has this
    /// share of it.
    Share(&'static str, f64),
}
use Measured::{Alone, Not, Share};

/// The events, in the order of [`count`].
const EVENTS: [Event; 8] = [
    Event {
        name: "far calls",
        cycles: [51.0, 237.0],
        source: "half of a far call and return: 102 on a Zen 4 in one ring; 473 between rings, Intel (blitz, kernel_entry_benchmark)",
        measured: Share("call/bare", 0.5),
    },
    Event {
        name: "far returns",
        cycles: [51.0, 237.0],
        source: "the other half; 220 for both on a Skylake in one ring",
        measured: Share("call/bare", 0.5),
    },
    Event {
        name: "syscalls",
        cycles: [49.5, 99.0],
        source: "half to all of a SYSCALL and SYSRET of 64-bit code, Intel (blitz); for 32-bit code, which only AMD has, none is known",
        measured: Not,
    },
    Event {
        name: "interrupts",
        cycles: [497.0, 497.0],
        source: "610 for an interrupt gate and IRETQ between rings, Intel (blitz), without the IRETQ",
        measured: Share("call/int", 497.0 / 610.0),
    },
    Event { name: "iretq", cycles: [113.0, 113.0], source: "a Zen 4", measured: Share("call/int", 113.0 / 610.0) },
    Event {
        name: "cr3 writes",
        cycles: [100.0, 186.0],
        source: "Linux, Documentation/arch/x86/pti.rst; Skylake (SkyBridge, EuroSys 2019). Without PCID the TLB is refilled too",
        measured: Alone,
    },
    Event { name: "segment loads", cycles: [1.0, 118.0], source: "a null selector; 118 on a Zen 4", measured: Not },
    Event {
        name: "iotlb flushes",
        cycles: [2000.0, 2000.0],
        source: "queued, and waited for (rIOMMU, ASPLOS 2015)",
        measured: Not,
    },
];
/// The row of a write of CR3.
const CR3: &str = "call/cr3";
/// Indices in [`EVENTS`] of the events that are not instructions.
const INTERRUPTS: usize = 3;
const INVALIDATIONS: usize = 7;
/// Cycles of any other instruction: between four in a cycle and one.
const INSTRUCTION: [f64; 2] = [0.25, 1.0];

/// The rows of `bench` that are modelled, with their batches.
const OPERATIONS: [(&str, u16); 8] = [
    ("nic/tx", 1),
    ("nic/tx", 32),
    ("nic/rx", 1),
    ("nic/rx", 32),
    ("nic/rtt", 1),
    ("scsi/read4k/depth1", 1),
    ("scsi/read4k/depth32", 32),
    ("scsi/write4k/depth32", 32),
];

/// The ring that a driver runs in, and the kind of its domain.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Place {
    ring: u8,
    kind: DomainKind,
}

impl Place {
    /// The places that are compared. The first one is what the others are compared to.
    const ALL: [Place; 3] = [
        Place { ring: 0, kind: DomainKind::Paged },
        Place { ring: 1, kind: DomainKind::Paged },
        Place { ring: 1, kind: DomainKind::Segmented },
    ];

    /// Returns the place as tables show it: that of a segmented driver is `1.32`.
    fn text(self) -> String {
        file_name(&self.ring.to_string(), self.kind)
    }
}

/// The instructions, events and register accesses of an operation.
pub struct Operation {
    name: String,
    place: Place,
    batch: u64,
    instructions: f64,
    events: [f64; EVENTS.len()],
    /// Accesses to registers of devices, which take as long as the device does.
    accesses: f64,
}

impl Operation {
    fn of(executed: &Executed, place: Place) -> Operation {
        let all: u64 = executed.instructions.values().map(|instruction| instruction.times).sum();
        // The first sample of a row is not in its median. Each count is scaled by an operation's
        // share of all executed instructions.
        let each = |count: u64| count as f64 * executed.total / all.max(1) as f64;
        Operation {
            name: executed.name.clone(),
            place,
            batch: executed.batch,
            instructions: executed.total,
            events: {
                let mut events = count(executed);
                (events[INTERRUPTS], events[INVALIDATIONS]) = (executed.interrupts, executed.invalidations);
                events.map(each)
            },
            accesses: each(executed.accesses),
        }
    }

    /// Returns the fewest and the most cycles.
    fn cycles(&self) -> [f64; 2] {
        let counted: f64 = self.events.iter().sum::<f64>() - self.events[INTERRUPTS] - self.events[INVALIDATIONS];
        let others = (self.instructions - counted).max(0.0);
        [0, 1].map(|end| {
            let events = EVENTS.iter().zip(self.events).map(|(event, count)| event.cycles[end] * count);
            others * INSTRUCTION[end] + events.sum::<f64>()
        })
    }
}

/// Counts the events among the executed instructions.
fn count(executed: &Executed) -> [u64; EVENTS.len()] {
    let mut counts = [0; EVENTS.len()];
    for (address, Instruction { bytes, times }) in &executed.instructions {
        let bits = if executed.is_in_segment(*address) { 32 } else { 64 };
        let instruction = Decoder::new(bits, bytes, DecoderOptions::NONE).decode();
        let is_segment = |register| matches!(register, Register::DS | Register::ES | Register::FS | Register::GS);
        let event = match (instruction.code(), instruction.mnemonic()) {
            (Code::Call_m1664 | Code::Call_m1632 | Code::Call_m1616 | Code::Call_ptr1632, _) => 0,
            (_, Mnemonic::Retf) => 1,
            (_, Mnemonic::Syscall) => 2,
            // Each interrupt ends with one; an upcall of a paged driver begins with one.
            (Code::Iretq, _) => 4,
            (Code::Mov_cr_r64, _) if instruction.op0_register() == Register::CR3 => 5,
            (_, Mnemonic::Mov) if is_segment(instruction.op0_register()) => 6,
            _ => continue,
        };
        counts[event] += times;
    }
    counts
}

/// Models the operations whose names begin with `name`.
pub fn operations(system: &System, machine: &Machine, name: &str) -> Result<Vec<Operation>> {
    if machine.accel != "tcg" {
        bail!("only TCG tells what it executes: 'bench call --accel {}' measures the events", machine.accel);
    }
    let wanted: Vec<(&str, u16)> = OPERATIONS.into_iter().filter(|(row, _)| row.starts_with(name)).collect();
    if wanted.is_empty() {
        let names = OPERATIONS.map(|(row, _)| row).join(", ");
        bail!("no operation that is modelled has a name that begins with '{name}': {names}");
    }
    let mut places = Place::ALL.to_vec();
    if !system.modules.iter().any(|module| module.name.ends_with(SEGMENTED_SUFFIX)) {
        places.retain(|place| place.kind == DomainKind::Paged);
    }
    let mut operations = Vec::new();
    for (row, batch) in wanted {
        for place in places.clone() {
            output::complain(&format!("bench: what {row} executes in ring {}, batch {batch}", place.text()));
            let options = profile::Options {
                name: row.to_string(),
                ring: place.ring,
                kind: place.kind,
                batch: Some(batch),
                outermost: false,
                json: false,
                machine: machine.clone(),
            };
            match profile::execute(system, &options) {
                Ok(executed) => operations.push(Operation::of(&executed, place)),
                // A module of one's own may be for paged domains only, and a machine may not have
                // others.
                Err(error) if place.kind == DomainKind::Segmented => {
                    output::complain(&format!("bench: segmented domains are left out: {error}"));
                    places.retain(|place| place.kind == DomainKind::Paged);
                }
                Err(error) => return Err(error),
            }
        }
    }
    Ok(operations)
}

/// Returns the rows of operations, for programs.
pub fn rows(operations: &[Operation]) -> Vec<Row> {
    let mut rows = Vec::new();
    for operation in operations {
        let row = |what: &str, unit: &str, value: f64| Row {
            ring: Some(operation.place.ring),
            kind: (operation.place.ring > 0).then(|| operation.place.kind.to_string()),
            batch: Some(operation.batch),
            ..Row::derived(&format!("model/{}{what}", operation.name), unit, value)
        };
        let range = operation.cycles();
        rows.push(Row { range: Some(range), ..row("", "cycles", (range[0] + range[1]) / 2.0) });
        rows.push(row("/instructions", "instructions", operation.instructions));
        for (event, count) in EVENTS.iter().zip(operation.events) {
            rows.push(row(&format!("/{}", event.name.replace(' ', "-")), "events", count));
        }
        rows.push(row("/register-accesses", "events", operation.accesses));
    }
    rows
}

/// Formats the model for a terminal.
pub fn text(operations: &[Operation]) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "{:<20} {:>5} {:>4} {:>6} {:>5} {:>5} {:>5} {:>5} {:>5} {:>5} {:>5} {:>5} {:>5} {:>13}",
        "operation",
        "batch",
        "ring",
        "instr.",
        "calls",
        "rets",
        "sysc",
        "ints",
        "iretq",
        "cr3",
        "segs",
        "iotlb",
        "regs",
        "cycles"
    );
    for operation in operations {
        let [least, most] = operation.cycles();
        let _ = write!(out, "{:<20} {:>5} {:>4} ", operation.name, operation.batch, operation.place.text());
        let _ = write!(out, "{:>6.0} ", operation.instructions);
        operation.events.iter().for_each(|count| _ = write!(out, "{count:>5.2} "));
        let _ = writeln!(out, "{:>5.2} {:>13}", operation.accesses, format!("{least:.0} to {most:.0}"));
    }
    let _ = writeln!(out);
    let mut trusted = None;
    for sandboxed in operations {
        if sandboxed.place == Place::ALL[0] {
            trusted = Some(sandboxed.cycles());
            continue;
        }
        let (Some([a, b]), [c, d]) = (trusted, sandboxed.cycles()) else { continue };
        let added = [c - a, d - b];
        let _ = writeln!(
            out,
            "{:<20} {:>5}  ring {:<4} adds {:.0} to {:.0} cycles: {:.0} % to {:.0} %",
            sandboxed.name,
            sandboxed.batch,
            sandboxed.place.text(),
            added[0],
            added[1],
            100.0 * (added[0] / b).min(added[1] / b).max(0.0),
            100.0 * (added[1] / a).max(added[0] / a),
        );
    }
    out + "\n" + &events(&[])
}

/// Formats the events: their published cycles, and the cycles that were measured here, if any.
pub fn events(measured: &[Row]) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "{:<14} {:>10} {:>9}  from", "event", "cycles", "here");
    let of = |name: &str| measured.iter().find(|row| row.name == name && row.unit == "ticks").map(|row| row.median);
    for event in &EVENTS {
        let here = match event.measured {
            Not => None,
            Alone => of(CR3),
            Share(row, share) => of(row).zip(of(CR3)).map(|(row, cr3)| (row - 2.0 * cr3) * share),
        };
        let [least, most] = event.cycles;
        let range = if least == most { format!("{least:.0}") } else { format!("{least:.0} to {most:.0}") };
        let here = here.map_or("-".to_string(), |cycles| format!("{cycles:.0}"));
        let _ = writeln!(out, "{:<14} {range:>10} {here:>9}  {}", event.name, event.source);
    }
    let [least, most] = INSTRUCTION;
    let _ =
        writeln!(out, "{:<14} {:>10} {:>9}  four in a cycle to one", "instructions", format!("{least} to {most}"), "-");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_known_by_their_bytes() {
        let executed: [(&[u8], u64); 11] = [
            // call far qword [rax], retfq, iretq, mov cr3, rax, mov ds, eax, mov gs, eax
            (&[0x48, 0xff, 0x18], 1),
            (&[0x48, 0xcb], 2),
            (&[0x48, 0xcf], 3),
            (&[0x0f, 0x22, 0xd8], 4),
            (&[0x8e, 0xd8], 5),
            (&[0x8e, 0xe8], 6),
            // mov cr0, rax; call qword [rax]; ret; mov eax, ds; nothing
            (&[0x0f, 0x22, 0xc0], 100),
            (&[0xff, 0x10], 100),
            (&[0xc3], 100),
            (&[0x8c, 0xd8], 100),
            (&[], 100),
        ];
        assert_eq!(count(&Executed::made_up(1.0, None, &executed)), [1, 2, 0, 0, 3, 4, 11, 0]);
        // lcall $0x35, $0; syscall; dec eax, which is a prefix in 64-bit code, and retf
        let executed: [(&[u8], u64); 4] =
            [(&[0x9a, 0, 0, 0, 0, 0x35, 0], 1), (&[0x0f, 0x05], 2), (&[0x48], 100), (&[0xcb], 3)];
        assert_eq!(count(&Executed::made_up(1.0, Some(2), &executed)), [1, 3, 2, 0, 0, 0, 0, 0]);
    }

    /// As with `--accel kvm`: 300 ticks for a gate with two writes of CR3 that take 100 each.
    #[test]
    fn events_are_measured_where_a_tick_is_a_cycle() {
        let ticks = |name, value| Row::derived(name, "ticks", value);
        let table = events(&[ticks(CR3, 100.0), ticks("call/bare", 300.0), ticks("call/int", 810.0)]);
        for line in ["far calls|51 to 237|50", "interrupts|497|497", "iretq|113|113", "cr3 writes|100 to 186|100"] {
            let cells: Vec<&str> = line.split('|').collect();
            let start = format!("{:<14} {:>10} {:>9}  ", cells[0], cells[1], cells[2]);
            assert!(table.contains(&start), "{start}\n{table}");
        }
        assert!(!events(&[]).lines().any(|line| line.starts_with("far calls") && line.contains(" 50 ")));
    }

    #[test]
    fn an_operation_costs_its_events_and_its_other_instructions() {
        let executed = Executed::made_up(100.0, None, &[(&[0x0f, 0x22, 0xd8], 2), (&[0x90], 98)]);
        let operation = Operation::of(&executed, Place::ALL[1]);
        assert_eq!(operation.events[5], 2.0);
        assert_eq!(operation.cycles(), [98.0 * 0.25 + 200.0, 98.0 + 372.0]);
    }
}
