//! `trace`: what passes a driver's boundary while a command runs.

use super::{Outcome, commands, said};
use crate::arch::time;
use crate::module;
use crate::println;
use crate::trace::{self, Event, What};
use alloc::boxed::Box;
use alloc::vec::Vec;
use ringfence_abi::upcall;
use ringfence_core::arguments::Arguments;

/// Ends the trace when the command ends, or when Ctrl-C drops it.
struct Tracing<'a>(&'a str);

impl Drop for Tracing<'_> {
    fn drop(&mut self) {
        trace::end();
        mark(self.0, false);
    }
}

/// Has a driver traced, or not; one that is not loaded (any more) is not.
fn mark(name: &str, traced: bool) {
    if let Ok(handle) = module::find(name) {
        handle.lock().traced = traced;
    }
}

pub async fn trace(mut arguments: Arguments<'_>) -> Outcome {
    let name = arguments.word("the driver's name")?;
    let usage = arguments.wrong("the command is missing");
    let command = arguments.rest();
    if command.is_empty() {
        return usage;
    }
    module::find(name).map_err(said)?;
    if !trace::begin(name) {
        return Err("a trace is under way already, or there is no memory for one".into());
    }
    let tracing = Tracing(name);
    mark(name, true);
    let outcome = Box::pin(commands::run(command)).await;
    let trace = trace::end();
    drop(tracing);
    if let Some(trace) = trace {
        if trace.lost > 0 {
            println!("{:>10}  {} earlier events were not kept", "", trace.lost);
        }
        // The same call over and over is one line.
        let same = |a: &Event, b: &Event| matches!((a.what, b.what), (What::Call(a), What::Call(b)) if a == b);
        let events: Vec<Event> = trace.events.iter().copied().collect();
        events.chunk_by(same).for_each(print);
        println!("{:>10}  {} events", "", trace.lost + trace.events.len() as u64);
    }
    outcome
}

/// Prints an event and when it was, in microseconds, or several that are the same and when the first one was.
fn print(same: &[Event]) {
    let Some(event) = same.first() else { return };
    let at = time::nanoseconds(event.at) / 1000;
    match event.what {
        What::Enter(operation, [a, b, c]) => {
            println!("{at:>7} us  > {}({a:#x}, {b:#x}, {c:#x})", upcall::name(operation));
        }
        What::Leave(result, ticks) => {
            let us = time::nanoseconds(ticks) / 1000;
            match result {
                Ok(value) => println!("{at:>7} us  < {value:#x}  after {us} us"),
                Err(error) => println!("{at:>7} us  < {error}  after {us} us"),
            }
        }
        What::Call(call) if same.len() > 1 => println!("{at:>7} us      {call}  {} times", same.len()),
        What::Call(call) => println!("{at:>7} us      {call}"),
        What::Ended(kind) => println!("{at:>7} us  ! ended: {kind}"),
        What::Replaced => println!("{at:>7} us  ! replaced"),
    }
}
