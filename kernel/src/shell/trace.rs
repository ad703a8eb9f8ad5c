//! `trace`: shows the calls across a driver's boundary while a command runs.

use super::{Outcome, commands, said};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use host::domain::Domain;
use host::domain::report::before;
use host::domain::trace::{self, Event, What};
use host::module;
use hw::arch::time;
use hw::println;
use ringfence_abi::register::RegisterName;
use ringfence_abi::upcall;
use ringfence_core::arguments::Arguments;
use ringfence_core::command_line;
use ringfence_core::extent::Extent;
use ringfence_core::module::Module;

/// Ends the trace when the command ends, or when Ctrl-C drops it.
struct Tracing<'a>(&'a str);

impl Drop for Tracing<'_> {
    fn drop(&mut self) {
        trace::end();
        mark(self.0, false);
    }
}

/// Turns the trace of a driver on or off. A driver that is not loaded, or no longer, is not traced.
fn mark(name: &str, traced: bool) {
    if let Ok(handle) = module::find(name) {
        handle.lock().traced = traced;
    }
}

pub async fn trace(mut arguments: Arguments<'_>) -> Outcome {
    let name = arguments.word("the driver's name")?;
    let usage = arguments.wrong("the command is missing");
    let handle = module::find(name).map_err(said)?;
    let mut command = arguments.rest();
    let (mut watched, mut register) = (None, None);
    if let Some(rest) = command.strip_prefix("--watch ") {
        let (word, rest) = rest.trim_start().split_once(' ').unwrap_or((rest, ""));
        watched = Some(parse_watched(word, &handle.lock())?);
        register = Some(word).filter(|word| is_register(word));
        command = rest.trim_start();
    }
    if command.is_empty() {
        return usage;
    }
    if !trace::begin(name, watched) {
        return Err("a trace is under way already, or there is no memory for one".into());
    }
    drop(handle);
    let tracing = Tracing(name);
    mark(name, true);
    let outcome = Box::pin(commands::run(command)).await;
    let trace = trace::end();
    drop(tracing);
    if let Some(trace) = trace {
        if trace.record.lost > 0 {
            println!("{:>10}  {} earlier events were not kept", "", trace.record.lost);
        }
        // Repetitions of one call are printed as one line.
        let same = |a: &Event, b: &Event| matches!((a.what, b.what), (What::Call(a), What::Call(b)) if a == b);
        let events: Vec<Event> = trace.record.events().copied().collect();
        events.chunk_by(same).for_each(|same| print(name, register, same));
        println!("{:>10}  {} events", "", trace.record.lost + trace.record.events().len() as u64);
    }
    outcome
}

/// Returns the memory that `word` names: an address in the driver's slot, or a register's name,
/// with a number behind it if there are several (`MTA.3`).
fn parse_watched(word: &str, domain: &Domain) -> Result<Extent, String> {
    let slot = domain.slot_extent();
    if is_register(word) {
        return find_register(word, domain);
    }
    match command_line::watched(word) {
        None => Err(format!(
            "'{word}' is no address in hexadecimal with 0x, a multiple of what is behind it: :1, :2, :4 or :8"
        )),
        Some(watched) if slot.encloses(watched) => Ok(watched),
        Some(_) => Err(format!("{word} is not in the driver's slot")),
    }
}

/// Returns whether `word` is the name of a register, and not an address.
fn is_register(word: &str) -> bool {
    word.starts_with(|first: char| first.is_ascii_uppercase())
}

/// Returns the range at which a driver sees the register that its module calls `word`.
fn find_register(word: &str, domain: &Domain) -> Result<Extent, String> {
    let module = Module::parse(&domain.file.bytes).map_err(said)?;
    let (name, number) = word.split_once('.').unwrap_or((word, "0"));
    let Some(found) = module.registers.iter().find(|register| register.name() == Some(name)) else {
        let names = module.registers.iter().filter_map(RegisterName::name);
        let like = command_line::most_like(name, names).map(|like| format!("; did you mean {like}?"));
        return Err(format!("{} names no register {name}{}", domain.name, like.unwrap_or_default()));
    };
    let number: u16 = number.parse().map_err(said)?;
    if number >= found.count {
        return Err(format!("there are {} of {name}, from 0 on", found.count));
    }
    let width_bytes = u64::from(found.width_bytes);
    let mapped = domain.region_start(found.bar.into()).ok_or(format!("{} has not mapped {name}", domain.name))?;
    let start = mapped + u64::from(found.offset) + width_bytes * u64::from(number);
    let extent = Extent::new(start, width_bytes);
    // A port number is not an address.
    let is_memory = domain.slot_extent().encloses(extent) && start.is_multiple_of(width_bytes);
    is_memory.then_some(extent).ok_or(format!("{name} is a port, which the CPU does not watch"))
}

/// Prints an event and when it was, in microseconds, or several that are the same and when the
/// first one was. `register` is the name of the watched register, if a register is watched. Its
/// value is not read, because a read may have an effect.
fn print(name: &str, register: Option<&str>, same: &[Event]) {
    let Some(event) = same.first() else { return };
    let at_us = time::nanoseconds(event.at) / 1000;
    match event.what {
        What::Enter(operation, [a, b, c]) => {
            println!("{at_us:>7} us  > {}({a:#x}, {b:#x}, {c:#x})", upcall::name(operation));
        }
        What::Leave(result, ticks) => {
            let us = time::nanoseconds(ticks) / 1000;
            match result {
                Ok(value) => println!("{at_us:>7} us  < {value:#x}  after {us} us"),
                Err(error) => println!("{at_us:>7} us  < {error}  after {us} us"),
            }
        }
        What::Call(call) if same.len() > 1 => println!("{at_us:>7} us      {call}  {} times", same.len()),
        What::Call(call) => println!("{at_us:>7} us      {call}"),
        What::Ended(kind) => println!("{at_us:>7} us  ! ended: {kind}"),
        What::Access(rip, value) => {
            let what = match (register, value) {
                (Some(register), _) => register.to_string(),
                (None, Some(value)) => format!("{value:#x}"),
                (None, None) => "?".to_string(),
            };
            println!("{at_us:>7} us    * {what}");
            if let Ok(handle) = module::find(name) {
                println!("              {}", before(&handle.lock(), rip));
            }
        }
        What::Sleeps(events) => println!("{at_us:>7} us    sleeps; waits for poll({:#x})", events.bits()),
        What::Rests(events) => {
            println!("{at_us:>7} us    rests, as it has had too much of the CPU; waits for poll({:#x})", events.bits())
        }
        What::Replaced => println!("{at_us:>7} us  ! replaced"),
    }
}
