//! `trace` and `stats`: the events at a driver's boundary, and how long they take.

use super::modules::as_paged;
use super::{Outcome, commands, said};
use crate::streams;
use crate::traced::{in_words, noun};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use embassy_time::Timer;
use host::domain::calls::service_name;
use host::domain::report::before;
use host::domain::trace::{self, Event, Kept, Timed, Trace, What, Wish};
use host::domain::{Domain, Handle};
use host::module;
use hw::arch::time;
use hw::{link, memory, println};
use ringfence_abi::register::RegisterName;
use ringfence_abi::upcall;
use ringfence_core::access::Access;
use ringfence_core::arguments::Arguments;
use ringfence_core::command_line;
use ringfence_core::extent::Extent;
use ringfence_core::histogram::Histogram;
use ringfence_core::module::Module;
use ringfence_link::event;
use ringfence_link::trace as told;

/// Ends and drops a trace when its command ends, or when Ctrl-C drops this.
struct Tracing(Arc<Trace>);

impl Drop for Tracing {
    fn drop(&mut self) {
        trace::forget(&self.0);
    }
}

pub async fn trace(mut arguments: Arguments<'_>) -> Outcome {
    let name = arguments.word("the driver's name")?;
    let usage = arguments.wrong("the command is missing");
    let unknown = arguments.wrong("there is no such option");
    let mut command = arguments.rest();
    match command {
        "on" => {
            module::find(name).map_err(said)?;
            return trace::begin(name, &Wish::default()).map(|_| ()).map_err(said);
        }
        "off" if trace::end(name) => return Ok(()),
        "off" => return Err(format!("{name} is not traced")),
        "show" => {
            let trace = known(name)?;
            return show(&trace, None);
        }
        "save" => {
            let trace = known(name)?;
            let count = streams::save(&trace).await?;
            println!("{name}: {count} events; the runner saves them as traces/{name}.pftrace");
            return Ok(());
        }
        _ => {}
    }
    let mut handle = module::find(name).map_err(said)?;
    let (mut watched, mut register, mut counts) = (None, None, false);
    while let Some(rest) = command.strip_prefix('-') {
        let (option, rest) = rest.split_once(' ').unwrap_or((rest, ""));
        command = rest.trim_start();
        match option {
            "c" => counts = true,
            "-watch" => {
                let (word, rest) = command.split_once(' ').unwrap_or((command, ""));
                command = rest.trim_start();
                watched = Some(parse_watched(word, &handle.lock())?);
                register = Some(word).filter(|word| is_register(word));
                let is_segmented = handle.lock().is_segmented();
                if is_segmented && !command.is_empty() {
                    let paged = watched_as_paged(&handle, word).await?;
                    (handle, watched) = (paged.0, Some(paged.1));
                }
            }
            _ => return unknown,
        }
    }
    if command.is_empty() {
        return usage;
    }
    drop(handle);
    let wish = Wish { watched, times: counts, ..Wish::default() };
    let Tracing(trace) = &Tracing(trace::begin(name, &wish).map_err(said)?);
    let outcome = Box::pin(commands::run(command)).await;
    // The output of the trace is not traced.
    trace::end(name);
    match counts {
        true => print_counts(&trace.kept()),
        false => show(trace, register)?,
    }
    outcome
}

/// Returns the last trace of a driver.
fn known(name: &str) -> Result<Arc<Trace>, String> {
    trace::of(name).ok_or_else(|| match module::find(name) {
        Ok(_) => format!("{name} was not traced; 'trace {name} on' begins that"),
        Err(error) => error.to_string(),
    })
}

/// Measures how long things take, until this is dropped: in the trace that is under way, or in one
/// of its own.
struct Measuring {
    trace: Arc<Trace>,
    is_own: bool,
}

impl Measuring {
    fn begin(name: &str) -> Result<Measuring, String> {
        module::find(name).map_err(said)?;
        if let Some(trace) = trace::of(name).filter(|trace| trace.is_on()) {
            trace.kept().measure().map_err(said)?;
            return Ok(Measuring { trace, is_own: false });
        }
        let trace = trace::begin(name, &Wish { times: true, ..Wish::default() }).map_err(said)?;
        Ok(Measuring { trace, is_own: true })
    }
}

impl Drop for Measuring {
    fn drop(&mut self) {
        match self.is_own {
            true => trace::forget(&self.trace),
            false => self.trace.kept().end_measure(),
        }
    }
}

/// How long times are measured if nobody says how long, in seconds.
const SHORT: u64 = 1;
/// The longest that a person can ask for.
const LONGEST: u64 = 86_400;

pub async fn stats(mut arguments: Arguments<'_>) -> Outcome {
    let name = arguments.word("the driver's name")?;
    let command = arguments.rest();
    let measuring = Measuring::begin(name)?;
    let mut outcome = Ok(());
    match (command, command.parse()) {
        ("", _) => Timer::after_secs(SHORT).await,
        (_, Ok(seconds @ 1..=LONGEST)) => Timer::after_secs(seconds).await,
        (_, Ok(_)) => return Err(format!("the time must be 1 to {LONGEST} seconds, not {command}")),
        (command, Err(_)) => outcome = Box::pin(commands::run(command)).await,
    }
    let kept = measuring.trace.kept();
    kept.times().for_each(|(what, times)| print_histogram(&kept, what, times));
    if kept.times().next().is_none() {
        println!("{name}: nothing went across its boundary");
    }
    let of = kept.times().map(|one| times_event(&kept, one)).collect();
    drop(kept);
    link::tell(&event::Event::Times { name: name.into(), of });
    outcome
}

/// Returns the kind and the name of a timed event.
fn name_of(kept: &Kept, what: Timed) -> (&'static str, &'static str) {
    match what {
        Timed::Upcall(operation) => ("upcall", upcall::name(operation)),
        Timed::Service(service) => ("service", service_name(service)),
        Timed::Passed => ("in hand", noun(kept)),
    }
}

/// Returns a time in microseconds, with one decimal.
fn us(ticks: u64) -> String {
    us_of(time::nanoseconds(ticks))
}

fn us_of(ns: u64) -> String {
    format!("{}.{}", ns / 1000, ns % 1000 / 100)
}

/// Prints how often things happened, and how long they took.
fn print_counts(kept: &Kept) {
    println!("{:<8} {:<18} {:>9} {:>12} {:>10} {:>10}", "KIND", "NAME", "COUNT", "TOTAL US", "MEDIAN US", "LONGEST US");
    for (what, times) in kept.times() {
        let (kind, name) = name_of(kept, what);
        let [total, median, longest] = [times.total, times.percentile(50), times.longest].map(us);
        println!("{kind:<8} {name:<18} {:>9} {total:>12} {median:>10} {longest:>10}", times.count());
    }
}

/// Prints a histogram: a row for each range of times, with a bar as long as the number of times in
/// it.
fn print_histogram(kept: &Kept, what: Timed, times: &Histogram) {
    const ROWS: usize = 10;
    const WIDTH: u64 = 40;
    let (kind, name) = name_of(kept, what);
    let [median, p99, longest] = [times.percentile(50), times.percentile(99), times.longest].map(us);
    println!("{kind} {name}: {} in all; us: median {median}, 99 % {p99}, longest {longest}", times.count());
    let rows = times.rows(ROWS);
    let most = rows.iter().map(|(_, count)| *count).max().unwrap_or(1).max(1);
    for (range, count) in &rows {
        let bar = "#".repeat((count * WIDTH).div_ceil(most) as usize);
        let row = format!("{:>10} to {:<10} {count:>8} {bar}", us(*range.start()), us(*range.end() + 1));
        println!("{}", row.trim_end());
    }
}

/// Returns the times in the form for programs.
fn times_event(kept: &Kept, (what, times): (Timed, &Histogram)) -> event::Times<'static> {
    let (kind, name) = name_of(kept, what);
    let ns = time::nanoseconds;
    event::Times {
        kind: kind.into(),
        name: name.into(),
        count: times.count(),
        total_ns: ns(times.total),
        median_ns: ns(times.percentile(50)),
        p99_ns: ns(times.percentile(99)),
        longest_ns: ns(times.longest),
        steps: times.steps().map(|(range, count)| (ns(*range.start()), ns(*range.end() + 1), count)).collect(),
    }
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

/// Reloads a segmented driver as paged, where the register that `word` names may be elsewhere.
/// Returns the driver and the register's place.
async fn watched_as_paged(handle: &Handle, word: &str) -> Result<(Handle, Extent), String> {
    let name = handle.lock().name.clone();
    if !is_register(word) {
        return Err(format!(
            "{name} is segmented, and its paged build has other addresses: 'reload {name} --kind paged'"
        ));
    }
    as_paged(handle).await?.iter().for_each(|done| println!("{done}"));
    let handle = module::find(&name).map_err(said)?;
    let place = parse_watched(word, &handle.lock())?;
    Ok((handle, place))
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

/// Returns whether two events are shown as one repeated event: equal calls, or accesses to a
/// register by the same instruction.
fn is_repeated(one: &Event, other: &Event) -> bool {
    match (one.what, other.what) {
        (What::Call(one, ..), What::Call(other, ..)) => one == other,
        (What::Register { at, bar, offset, .. }, What::Register { at: next, bar: b, offset: o, .. }) => {
            (at, bar, offset) == (next, b, o)
        }
        _ => false,
    }
}

/// Prints those of `events` that `is_shown` holds for. Repetitions are printed as one line.
pub fn print_some(trace: &Trace, kept: &Kept, mut events: Vec<Event>, is_shown: fn(&What) -> bool) {
    events.retain(|event| is_shown(&event.what));
    events.chunk_by(is_repeated).for_each(|same| print(trace, kept, None, same, None));
}

/// Copies the events after the first `before`, as far as they were kept; `None` if there is no
/// memory for them.
pub fn copied(kept: &Kept, before: u64) -> Option<Vec<Event>> {
    let count = kept.record.count().saturating_sub(before.max(kept.record.lost())) as usize;
    let mut events = Vec::new();
    if !memory::has_room(count * size_of::<Event>()) || events.try_reserve_exact(count).is_err() {
        return None;
    }
    events.extend(kept.record.after(before).take(count).copied());
    Some(events)
}

/// Prints the events of a trace. `register` is the name of the watched register, if a register is
/// watched.
fn show(trace: &Trace, register: Option<&str>) -> Outcome {
    let kept = trace.kept();
    let count = kept.record.count();
    let Some(events) = copied(&kept, 0) else {
        return Err("there is no memory to show the trace; save writes it".into());
    };
    if kept.record.lost() > 0 {
        println!("{:>10}  {} earlier events were not kept", "", kept.record.lost());
    }
    // When the driver was given the frames or requests that it still has, by number.
    let mut given = BTreeMap::new();
    for same in events.chunk_by(is_repeated) {
        let mut took = None;
        match same.first().map(|event| (event.at, event.what)) {
            Some((at, What::Given { number, .. })) => drop(given.insert(number, at)),
            Some((at, What::Done { number, .. })) => took = given.remove(&number).map(|given| at.saturating_sub(given)),
            // A successor begins to count anew.
            Some((_, What::Replaced)) => given.clear(),
            _ => {}
        }
        print(trace, &kept, register, same, took);
    }
    println!("{:>10}  {count} events", "");
    Ok(())
}

/// Prints an event and when it was, in microseconds, or several that are the same and when the
/// first one was. `took` is the time that the driver had the frame or request that it gives back.
fn print(trace: &Trace, kept: &Kept, register: Option<&str>, same: &[Event], took: Option<u64>) {
    let Some(event) = same.first() else { return };
    let at_us = time::nanoseconds(event.at) / 1000;
    if let What::Access(rip, value) = event.what {
        // The value of a register is not read, because a read may have an effect.
        let what = match (register, value) {
            (Some(register), _) => register.to_string(),
            (None, Some(value)) => format!("{value:#x}"),
            (None, None) => "?".to_string(),
        };
        println!("{at_us:>7} us    * {what}");
        if let Ok(handle) = module::find(&trace.name) {
            println!("              {}", before(&handle.lock(), rip));
        }
        return;
    }
    let noun = noun(kept);
    let what = match in_words(kept, &event.what) {
        told::What::Enter { upcall, words } => format!("> {upcall}({words})"),
        told::What::Leave { words, took_ns } => format!("< {words}  after {} us", us_of(took_ns)),
        told::What::Woken => "> goes on after its sleep".to_string(),
        told::What::Call { words, took_ns, .. } => match same.len() {
            1 => format!("    {words}  in {} us", us_of(took_ns)),
            times => format!("    {words}  {times} times"),
        },
        told::What::Given { number, len_bytes, words, .. } => {
            format!("  gets {noun} {number}, {len_bytes} bytes{}", after_colon(&words))
        }
        told::What::Received { number, len_bytes, words, .. } => {
            format!("  receives {noun} {number}, {len_bytes} bytes{}", after_colon(&words))
        }
        told::What::Done { number, words, .. } => {
            let after = took.map(|ticks| format!(" after {} us", us(ticks))).unwrap_or_default();
            format!("  has done {noun} {number}{after}{}", after_colon(&words))
        }
        told::What::Access { words, place, .. } if same.len() == 1 => {
            println!("{at_us:>7} us    * {words}");
            println!("              at {place}");
            return;
        }
        told::What::Access { register, reads, place, .. } => {
            let verb = if reads { "reads" } else { "writes" };
            println!("{at_us:>7} us    * {verb} {register}, {} times", same.len());
            print_values(same);
            println!("              at {place}");
            return;
        }
        told::What::Ended { kind, words } => format!("! ended: {kind}{}", after_colon(&words)),
        told::What::Replaced => "! replaced".to_string(),
        told::What::Note { words } => format!("  {words}"),
    };
    println!("{at_us:>7} us  {what}");
}

/// Prints the values of accesses to one register, in the order in which they came.
fn print_values(same: &[Event]) {
    const IN_A_LINE: usize = 8;
    for line in same.chunks(IN_A_LINE) {
        let value = |event: &Event| match event.what {
            What::Register { access: Access { value: Some(value), .. }, .. } => format!(" {value:#x}"),
            _ => " ?".to_string(),
        };
        println!("             {}", line.iter().map(value).collect::<String>());
    }
}

fn after_colon(words: &str) -> String {
    if words.is_empty() { String::new() } else { format!(": {words}") }
}
