//! `watch`: each access of a driver to its device's registers.

use super::modules::as_paged;
use super::trace::{copied, print_some};
use super::{Outcome, commands, said};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use embassy_time::Timer;
use host::domain::accesses::Registers;
use host::domain::hardware::{MOST_REGIONS, Region};
use host::domain::trace::{self, Trace, What, Wish};
use host::domain::{Domain, Ring};
use host::{module, ramdisk};
use hw::{console, println};
use ringfence_core::arguments::Arguments;
use ringfence_core::command_line;

/// The events that a watch keeps until they are shown.
const EVENTS: usize = 8192;
/// How often new events are shown, in milliseconds.
const SHOW_MS: u64 = 100;
/// How long a script watches if it gives no command to run meanwhile, in seconds.
const SHORT: u64 = 1;

/// A watch, which ends when this is dropped.
struct Watching {
    trace: Arc<Trace>,
    /// Whether the trace was begun for it.
    is_own: bool,
}

impl Watching {
    fn begin(name: &str, registers: Registers) -> Result<Watching, String> {
        if let Some(trace) = trace::of(name).filter(|trace| trace.is_on()) {
            trace::watch(&trace, registers).map_err(said)?;
            return Ok(Watching { trace, is_own: false });
        }
        let wish = Wish { events: EVENTS, content_bytes: 0, registers: Some(registers), ..Wish::default() };
        Ok(Watching { trace: trace::begin(name, &wish).map_err(said)?, is_own: true })
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        match self.is_own {
            true => trace::forget(&self.trace),
            false => trace::end_watch(&self.trace),
        }
    }
}

pub async fn watch(mut arguments: Arguments<'_>) -> Outcome {
    let name = arguments.word("the driver's name")?;
    let what = arguments.word("what is watched: mmio or ports")?;
    let are_ports = match what {
        "mmio" => false,
        "ports" => true,
        other => return arguments.wrong(&format!("mmio or ports can be watched, not '{other}'")),
    };
    let rest = arguments.rest();
    let (word, after) = rest.split_once(' ').unwrap_or((rest, ""));
    let (bar, command) = match command_line::bar(word) {
        Some(bar) => (Some(bar?), after.trim_start()),
        None => (None, rest),
    };
    let registers = Registers {
        are_ports,
        bar: bar.map(|(bar, _)| bar),
        part: bar.map_or(command_line::WHOLE_BAR, |(_, part)| part),
    };
    match module::find(name) {
        Ok(handle) => {
            check(&handle.lock(), &registers)?;
            // The watch of registers knows paged domains only.
            let done = as_paged(&handle).await?;
            done.iter().for_each(|done| println!("{done}"));
        }
        // A command may load it.
        Err(_) if !command.is_empty() && module::file(name).is_ok() => {}
        Err(error) => return Err(said(error)),
    }
    let watching = Watching::begin(name, registers)?;
    let mut shown = watching.trace.kept().record.count();
    if !command.is_empty() {
        let outcome = Box::pin(commands::run(command)).await;
        show(&watching.trace, &mut shown);
        return outcome;
    }
    let is_for_person = ramdisk::text("exec").is_none() && !console::is_piped();
    if is_for_person {
        println!("watching {name}; Ctrl-C ends this");
    }
    let rounds = if is_for_person { u64::MAX } else { SHORT * 1000 / SHOW_MS };
    for _ in 0..rounds {
        Timer::after_millis(SHOW_MS).await;
        show(&watching.trace, &mut shown);
    }
    Ok(())
}

/// Refuses a watch of registers that the driver does not have.
fn check(domain: &Domain, registers: &Registers) -> Outcome {
    let name = &domain.name;
    if domain.ring() == Ring::Trusted {
        return Err(format!("{name} runs in ring 0, where nothing stops it; 'ring {name} 1' moves it to ring 1"));
    }
    let device = domain.device.as_ref().ok_or_else(|| format!("{name} has no device"))?;
    let bars = match registers.bar {
        Some(bar) => bar.into()..usize::from(bar) + 1,
        None => 0..MOST_REGIONS,
    };
    let what = if registers.are_ports { "ports" } else { "registers in memory" };
    let has = bars.into_iter().any(|bar| {
        let region = device.region(bar as u64);
        matches!((region, registers.are_ports), (Ok(Region::Ports(_)), true) | (Ok(Region::Memory(_)), false))
    });
    match (has, registers.bar) {
        (true, _) => Ok(()),
        (false, Some(bar)) => Err(format!("{name} has no {what} in BAR {bar}")),
        (false, None) => Err(format!("{name} has no {what}")),
    }
}

/// Shows the events after the first `shown`.
fn show(trace: &Trace, shown: &mut u64) {
    let kept = trace.kept();
    let lost = kept.record.lost().saturating_sub(*shown);
    if lost > 0 {
        println!("{:>10}  {lost} events were not kept", "");
    }
    let events = copied(&kept, *shown);
    let count = kept.record.count().saturating_sub(core::mem::replace(shown, kept.record.count()));
    let Some(events) = events else {
        println!("{:>10}  {count} events: there is no memory to show them", "");
        return;
    };
    print_some(trace, &kept, events, |what| {
        matches!(what, What::Register { .. } | What::Enter(..) | What::Woken | What::Ended(..) | What::Replaced)
    });
}
