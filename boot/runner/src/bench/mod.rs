//! `cargo run -- bench`: measures the cost of protection, in time and in instructions, on this
//! machine at this moment.
//!
//! One boot measures crossings, frames and reads in both rings (`kernel/src/bench`). A second boot
//! with `-icount` counts their instructions. A third moves TCP streams between host and guest.
//! Values that are derived from other rows (losses, ratios) are rows as well.
//!
//! * [`peer`]: the same work by another system
//! * [`files`]: the filesystems that are measured
//! * [`model`]: the cost on hardware, from the executed instructions and from published cycles
//! * [`host`]: keeps the host's CPUs awake, so that a guest that waits does not lose time
//! * [`report`]: the tables, for the terminal and as a page

pub mod files;
mod host;
mod model;
mod peer;
mod report;

use crate::build::System;
use crate::drivers;
use crate::machine::{End, Machine, Protocol, Running, free_port, qemu};
use crate::output;
use anyhow::{Context, Result, bail};
use ringfence_abi::manifest::{DomainKind, Kind};
use ringfence_link::event::Event;
use serde::Serialize;
use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A result.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// The name of the measurement.
    pub name: String,
    /// The driver's ring.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ring: Option<u8>,
    /// The kind of domain that the driver has in ring 1: `paged` or `segmented`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Number of operations that one crossing hands over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch: Option<u64>,
    /// Number of loaded domains.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domains: Option<u64>,
    /// Unit of the values.
    pub unit: String,
    /// Number of samples.
    pub count: u64,
    /// The median of the samples.
    pub median: f64,
    /// The value that 99 of 100 samples reach or better.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p99: Option<f64>,
    /// The smallest and the largest sample.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub range: Option<[f64; 2]>,
    /// The loss against ring 0, in percent: the median of the losses of the samples.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
}

impl Row {
    fn of(name: &str, unit: &str, mut samples: Vec<f64>) -> Row {
        samples.sort_by(f64::total_cmp);
        // The smallest sample that is not exceeded by `percent` percent of all samples, as in the
        // kernel.
        let rank = |percent: usize| (samples.len() * percent).div_ceil(100).saturating_sub(1);
        let at = |percent: usize| samples.get(rank(percent)).copied().unwrap_or(0.0);
        let worst = if unit.ends_with("/s") { 1 } else { 99 };
        Row {
            name: name.to_string(),
            ring: None,
            kind: None,
            batch: None,
            domains: None,
            unit: unit.to_string(),
            count: samples.len() as u64,
            median: at(50),
            p99: Some(at(worst)),
            range: Some([at(0), at(100)]),
            loss: None,
        }
    }

    /// Returns the loss against ring 0 in percent: the missing part of a rate, or the added part of
    /// a cost. It is that of the medians, where no sample has another beside it.
    fn loss(&self, trusted: &Row) -> f64 {
        let ratio = self.median / trusted.median;
        self.loss.unwrap_or(100.0 * if self.unit.ends_with("/s") { 1.0 - ratio } else { ratio - 1.0 })
    }

    fn derived(name: &str, unit: &str, value: f64) -> Row {
        Row { count: 1, p99: None, range: None, ..Row::of(name, unit, vec![value]) }
    }
}

/// The kind of a benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// It measures Ringfence.
    Measure,
    /// It measures Linux beside Ringfence.
    BesideLinux,
    /// It counts the instructions that operations execute, and models their cost on hardware.
    Model,
}

/// The settings of a benchmark.
pub struct Options {
    /// The machine.
    pub machine: Machine,
    /// Measure only rows whose names begin like this.
    pub name: String,
    /// Whether to print each row as a JSON object.
    pub json: bool,
    /// The kind of the benchmark.
    pub way: Way,
    /// Folder for a page with tables and charts.
    pub out: Option<PathBuf>,
}

/// Longest time for one boot.
const TIME_LIMIT: Duration = Duration::from_secs(300);
/// Number of boots for the time to the prompt.
const BOOTS: usize = 5;
/// Length of a TCP stream in bytes, and number of streams in each ring.
const STREAM_BYTES: usize = 32 << 20;
const STREAMS: usize = 3;
/// Number of UDP round trips in each ring.
const ROUND_TRIPS: usize = 200;

/// The families of measurements that the kernel makes.
const IN_GUEST: [&str; 9] = ["call", "upcall", "off", "fence", "nic", "icmp", "scsi", "recovery", "reload"];

/// Measures everything, or only the rows that were asked for.
pub fn run(system: &System, options: &Options) -> Result<()> {
    if let Some(out) = &options.out {
        std::fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    }
    let awake = host::Awake::new();
    let progress = |what: &str| output::complain(&format!("bench: {what}"));
    let machine = Machine { scratch: true, timeout: Some(TIME_LIMIT), ..options.machine.clone() };
    match options.way {
        Way::Measure => {}
        Way::BesideLinux => {
            let rows = peer::rows(system, &machine, &awake)?;
            return print(options, &rows, || report::peer(&rows));
        }
        Way::Model => {
            let operations = model::operations(system, &machine, &options.name)?;
            return print(options, &model::rows(&operations), || model::text(&operations));
        }
    }

    // The kernel also takes only the beginning of a name.
    let is_wanted = |name: &str| name.starts_with(&options.name) || options.name.starts_with(name);
    let mut rows = Vec::new();
    // A failed measurement is reported at once, and the others are still made.
    let mut failures = 0;

    if IN_GUEST.into_iter().any(is_wanted) {
        progress("times, in one boot");
        let command = format!("bench {}", options.name);
        rows.extend(in_guest(system, &machine, &command, &mut |process| awake.pin(process), &mut failures)?);
        if machine.accel == "tcg" {
            progress("instructions, in a boot with -icount");
            let counting = Machine { icount: true, ..machine.clone() };
            rows.extend(in_guest(system, &counting, &(command + " --instructions"), &mut |_| (), &mut failures)?);
        } else {
            progress("no instructions: only TCG counts them");
        }
    }
    if is_wanted("fs") && machine.hba != "none" {
        progress("files on two filesystems");
        match of_files(system, &machine, &options.name, &awake, &mut failures) {
            Ok(found) => rows.extend(found),
            Err(error) => {
                output::complain(&format!("bench: failed: files: {error:#}"));
                failures += 1;
            }
        }
    }
    if ["tcp/in", "tcp/out", "udp/rtt"].into_iter().any(is_wanted) && machine.nic != "none" {
        progress("streams between host and guest");
        match streams(system, &machine) {
            Ok(streams) => rows.extend(streams),
            Err(error) => {
                output::complain(&format!("bench: failed: streams: {error:#}"));
                failures += 1;
            }
        }
    }
    if BOOT_ROWS.into_iter().any(is_wanted) {
        progress("boots to the prompt");
        rows.extend(boots(system, &machine)?);
    }
    rows.retain(|row| row.name.starts_with(&options.name));
    rows.extend(derive(&rows));
    if rows.is_empty() && failures == 0 {
        bail!("no row that is measured has a name that begins with '{}'", options.name);
    }

    print(options, &rows, || {
        // A tick of the TSC is about a cycle there, and the events of the model are measured.
        let events = if machine.accel == "tcg" { String::new() } else { format!("\n{}", model::events(&rows)) };
        report::text(&rows) + &events
    })?;
    if let Some(out) = &options.out {
        let page = out.join("bench.html");
        std::fs::write(&page, report::html(&rows, &conditions(options)?)?)
            .with_context(|| format!("cannot write {}", page.display()))?;
        output::complain(&format!("bench: {}", page.display()));
    }
    if failures > 0 {
        bail!("{failures} of the measurements failed");
    }
    Ok(())
}

/// Prints rows for programs, or `text` for a person.
fn print(options: &Options, rows: &[Row], text: impl FnOnce() -> String) -> Result<()> {
    if !options.json {
        output::text(format_args!("{}", text()));
        return Ok(());
    }
    for row in rows {
        output::line(format_args!("{}", serde_json::to_string(row)?));
    }
    Ok(())
}

/// Describes the conditions of the measurement, for a page that is read later.
fn conditions(options: &Options) -> Result<String> {
    let machine = &options.machine;
    let name = if options.name.is_empty() { String::new() } else { format!(" {}", options.name) };
    let date = Command::new("date").args(["-u", "+%Y-%m-%d %H:%M UTC"]).output().context("what day is it?")?;
    Ok(format!(
        "Ringfence {}, cargo run -- bench{name}, {}, QEMU {}, machine {}, {}, {} MiB, network card {}, SCSI adapter {}",
        env!("CARGO_PKG_VERSION"),
        String::from_utf8_lossy(&date.stdout).trim(),
        qemu::version()?,
        machine.board,
        machine.accel,
        machine.memory,
        machine.nic,
        machine.hba
    ))
}

/// Runs the kernel's own benchmarks and returns the rows that the kernel reports.
fn in_guest(
    system: &System,
    machine: &Machine,
    command: &str,
    pin: &mut dyn FnMut(u32),
    failures: &mut usize,
) -> Result<Vec<Row>> {
    let mut machine = machine.clone();
    machine.contents.exec = Some(command.to_string());
    let running = machine.start(system)?;
    pin(running.process());
    let run = running.finish(|_| ())?;
    let failed: Vec<String> = run.events.iter().filter_map(failure).collect();
    if run.end != End::Done && (run.end != End::CommandFailed || failed.is_empty()) {
        bail!("the benchmark ended badly ({}):\n{}", run.end.description(), run.text());
    }
    for failure in &failed {
        output::complain(&format!("bench: failed: {failure}"));
    }
    *failures += failed.len();
    Ok(run.events.into_iter().filter_map(row).collect())
}

/// Measures files, in a boot of their own: their drivers would be among the domains of other rows.
fn of_files(
    system: &System,
    machine: &Machine,
    name: &str,
    awake: &host::Awake,
    failures: &mut usize,
) -> Result<Vec<Row>> {
    let directory = TempDir::new()?;
    let machine = files::add(machine, directory.path())?;
    let name = if name.starts_with("fs") { name } else { "fs" };
    let command = format!("{}; bench {name}", files::mount(&machine));
    let mut rows = in_guest(system, &machine, &command, &mut |process| awake.pin(process), failures)?;
    if machine.accel == "tcg" {
        let counting = Machine { icount: true, ..machine };
        rows.extend(in_guest(system, &counting, &(command + " --instructions"), &mut |_| (), failures)?);
    }
    Ok(rows)
}

fn failure(event: &Event) -> Option<String> {
    match event {
        Event::BenchFailed { family, why } => Some(format!("{family}: {why}")),
        _ => None,
    }
}

fn row(event: Event) -> Option<Row> {
    let Event::Bench(row) = event else { return None };
    // Rounded as on the console: further digits have no meaning.
    let tenths = |value: f64| (value * 10.0).round() / 10.0;
    Some(Row {
        name: row.name.into_owned(),
        ring: row.ring,
        kind: row.kind.map(|kind| kind.into_owned()),
        batch: row.batch,
        domains: Some(row.domains),
        unit: row.unit.into_owned(),
        count: row.count,
        median: tenths(row.median),
        p99: Some(tenths(row.p99)),
        range: Some(row.range.map(tenths)),
        loss: row.loss.map(tenths),
    })
}

/// Returns `Some` if the event says that an interface has an address.
pub fn has_address(event: Event) -> Option<()> {
    matches!(event, Event::Address { .. }).then_some(())
}

/// The rows of a boot until the shell's prompt: the time since QEMU was started, and the CPU time
/// of QEMU, which has the guest's in it.
const BOOT_ROWS: [&str; 2] = ["boot/prompt", "boot/cpu"];

/// Measures the boot to the shell's prompt.
fn boots(system: &System, machine: &Machine) -> Result<Vec<Row>> {
    let samples: Result<Vec<[f64; 2]>> = (0..BOOTS).map(|_| boot_to_prompt(system, machine)).collect();
    let samples = samples?;
    let row = |(index, name): (usize, &str)| Row::of(name, "ms", samples.iter().map(|times| times[index]).collect());
    Ok(BOOT_ROWS.into_iter().enumerate().map(row).collect())
}

/// Boots once; returns the times until the prompt.
fn boot_to_prompt(system: &System, machine: &Machine) -> Result<[f64; 2]> {
    let mut machine = machine.clone();
    machine.contents.exec = Some("help help".to_string());
    let start = Instant::now();
    let mut running = machine.start(system)?;
    running.wait_for("ringfence> ")?;
    boot_times(start, running.process())
}

/// Returns the times of a boot until now, in milliseconds, as [`BOOT_ROWS`] has them.
fn boot_times(start: Instant, process: u32) -> Result<[f64; 2]> {
    let cpu = host::cpu_time(process).context("/proc does not say how much CPU time QEMU has used")?;
    Ok([start.elapsed(), cpu].map(|time| time.as_secs_f64() * 1000.0))
}

/// A ring, and the kind of domain that a driver has there.
type Place = (u8, Option<DomainKind>);

/// Measures TCP streams to and from the guest and UDP round trips, with the driver in each ring and
/// each kind of domain in turn.
fn streams(system: &System, machine: &Machine) -> Result<Vec<Row>> {
    let Some(driver) = drivers::loaded(system, machine)?.into_iter().find(|driver| driver.kind == Kind::Nic) else {
        return Ok(Vec::new());
    };
    let (discard, chargen, udp) = (free_port()?, free_port()?, free_port()?);
    let mut machine = machine.clone();
    machine.forwards = vec![(Protocol::Tcp, discard, 9), (Protocol::Tcp, chargen, 19), (Protocol::Udp, udp, 7)];
    let mut running = machine.start(system)?;
    running.wait_for_event("an address", has_address)?;
    let mut places: Vec<Place> = vec![(0, None), (1, Some(DomainKind::Paged))];
    let name = &*driver.module;
    // Where the driver has no such build, or the machine refuses that, there are no such rows.
    if driver.domain == DomainKind::Segmented || reload(&mut running, name, DomainKind::Segmented).is_ok() {
        places.push((1, Some(DomainKind::Segmented)));
        reload(&mut running, name, DomainKind::Paged)?;
    }
    let mut samples: Vec<[Vec<f64>; 3]> = vec![Default::default(); places.len()];
    for round in 0..=STREAMS {
        for ((ring, kind), samples) in places.iter().zip(&mut samples) {
            match kind {
                Some(DomainKind::Segmented) => reload(&mut running, name, DomainKind::Segmented)?,
                _ => change_ring(&mut running, name, (*ring).into())?,
            }
            let values = once([discard, chargen, udp])?;
            if round > 0 {
                samples.iter_mut().zip(values).for_each(|(samples, value)| samples.push(value));
            }
            if *kind == Some(DomainKind::Segmented) {
                reload(&mut running, name, DomainKind::Paged)?;
            }
        }
    }
    running.type_line("shutdown")?;
    let mut rows = Vec::new();
    for ((ring, kind), samples) in places.into_iter().zip(samples) {
        for ((name, unit), samples) in STREAM_ROWS.into_iter().zip(samples) {
            let kind = kind.map(|kind| kind.to_string());
            rows.push(Row { ring: Some(ring), kind, ..Row::of(name, unit, samples) });
        }
    }
    Ok(rows)
}

/// The names and units of streams.
const STREAM_ROWS: [(&str, &str); 3] = [("tcp/in", "MB/s"), ("tcp/out", "MB/s"), ("udp/rtt", "us")];

/// Moves a stream to the guest and one from it, and measures round trips, through these ports.
fn once([discard, chargen, udp]: [u16; 3]) -> Result<[f64; 3]> {
    Ok([to_guest(discard)?, from_guest(chargen)?, round_trip(udp)?])
}

/// Measures streams through these ports; returns names, units and medians.
fn streams_of(ports: [u16; 3]) -> Result<Vec<(&'static str, &'static str, f64)>> {
    let mut samples: [Vec<f64>; 3] = Default::default();
    for round in 0..=STREAMS {
        for (samples, value) in samples.iter_mut().zip(once(ports)?) {
            if round > 0 {
                samples.push(value);
            }
        }
    }
    let rows = STREAM_ROWS.into_iter().zip(samples);
    Ok(rows.map(|((name, unit), samples)| (name, unit, Row::of(name, unit, samples).median)).collect())
}

fn change_ring(running: &mut Running, name: &str, ring: usize) -> Result<()> {
    running.type_line(&format!("ring {name} {ring}"))?;
    running.wait_for_event("another ring", |event| match event {
        Event::RingChanged { name: moved, ring: to } if moved == name && usize::from(to) == ring => Some(()),
        _ => None,
    })
}

/// Has a driver reloaded as one of this kind.
fn reload(running: &mut Running, name: &str, kind: DomainKind) -> Result<()> {
    let line = format!("reload {name} --kind {kind}");
    match running.command(&line)? {
        None => Ok(()),
        Some(why) => bail!("'{line}': {why}"),
    }
}

fn connect(port: u16) -> Result<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    Ok(stream)
}

fn megabytes_a_second(start: Instant) -> f64 {
    STREAM_BYTES as f64 / 1e6 / start.elapsed().as_secs_f64()
}

fn to_guest(port: u16) -> Result<f64> {
    let mut stream = connect(port)?;
    let piece = vec![0x52; 1 << 16];
    let start = Instant::now();
    for _ in 0..STREAM_BYTES / piece.len() {
        stream.write_all(&piece)?;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    // The guest closes the connection when it has read everything.
    stream.read_to_end(&mut Vec::new())?;
    Ok(megabytes_a_second(start))
}

fn from_guest(port: u16) -> Result<f64> {
    let mut stream = connect(port)?;
    let mut piece = vec![0; 1 << 16];
    let start = Instant::now();
    for _ in 0..STREAM_BYTES / piece.len() {
        stream.read_exact(&mut piece)?;
    }
    Ok(megabytes_a_second(start))
}

/// Measures UDP round trips; returns their median in microseconds.
fn round_trip(port: u16) -> Result<f64> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect(("127.0.0.1", port))?;
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut samples = Vec::new();
    let mut back = [0; 64];
    for _ in 0..ROUND_TRIPS {
        let start = Instant::now();
        socket.send(&[0x52; 32])?;
        socket.recv(&mut back).context("the guest does not echo")?;
        samples.push(start.elapsed().as_secs_f64() * 1e6);
    }
    Ok(Row::of("", "us", samples).median)
}

/// Finds the row with these properties.
fn find<'a>(rows: &'a [Row], name: &str, ring: u8, batch: Option<u64>, instructions: bool) -> Option<&'a Row> {
    rows.iter().find(|row| {
        row.name == name && row.ring == Some(ring) && row.batch == batch && (row.unit == "instructions") == instructions
    })
}

/// Derives rows from others: the losses of ring 1 against ring 0 for each kind of domain, the ratio
/// of the kernel's gate to the bare crossing, and that of a segmented driver's gate to one in a
/// root that protects nothing.
fn derive(rows: &[Row]) -> Vec<Row> {
    let mut derived = Vec::new();
    let parts = [
        ("loss/nic", "nic/tx"),
        ("loss/nic-rx", "nic/rx"),
        ("loss/scsi", "scsi/read4k/depth32"),
        ("loss/scsi-depth1", "scsi/read4k/depth1"),
        ("loss/scsi-seq", "scsi/seq"),
        ("loss/tcp-in", "tcp/in"),
        ("loss/tcp-out", "tcp/out"),
    ];
    for (name, of) in parts {
        for sandboxed in rows.iter().filter(|row| row.name == of && row.ring == Some(1)) {
            let instructions = sandboxed.unit == "instructions";
            let Some(trusted) = find(rows, of, 0, sandboxed.batch, instructions) else { continue };
            let loss = sandboxed.loss(trusted);
            let unit = if instructions { "% instructions" } else { "%" };
            let (batch, kind) = (sandboxed.batch, &sandboxed.kind);
            derived.push(Row { batch, kind: kind.clone(), ..Row::derived(name, unit, loss) });
            if ["frames/s", "reads/s"].contains(&sandboxed.unit.as_str()) {
                // One upcall hands over one batch. Crossings for interrupts are not counted here.
                let crossings = sandboxed.median / sandboxed.batch.unwrap_or(1) as f64;
                let name = of.replace('/', "-");
                derived.push(Row {
                    batch,
                    kind: kind.clone(),
                    ..Row::derived(&format!("crossings/{name}"), "1/s", crossings)
                });
            }
        }
    }
    for gate in rows.iter().filter(|row| row.name == "call/gate" && row.unit == "ticks") {
        let is_paged = gate.kind.as_deref() == Some(DomainKind::Paged.name());
        // The other way was measured with as many domains, or with few only.
        let of =
            |name, domains| rows.iter().find(|row| row.name == name && row.unit == "ticks" && row.domains >= domains);
        let other = if is_paged { of("call/bare", gate.domains) } else { of("call/gate-shared", None) };
        if let Some(other) = other {
            let name = if is_paged { "ratio/gate-bare" } else { "ratio/gate-shared" };
            let (kind, ratio) = (gate.kind.clone(), gate.median / other.median);
            derived.push(Row { domains: gate.domains, kind, ..Row::derived(name, "ratio", ratio) });
        }
    }
    derived
}
