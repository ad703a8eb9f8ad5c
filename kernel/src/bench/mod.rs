//! Measures the cost of protection: on this machine, in this boot, with the same loaded drivers in
//! both rings.
//!
//! * [`calls`]: single crossings
//! * [`nic`], [`scsi`], [`files`]: whole operations
//! * [`recovery`]: how long a driver that was ended or reloaded is away
//! * [`kinds`]: reloads a driver for each kind of domain that it is measured in
//! * [`off`]: how long interrupts are off
//! * [`fence`]: mapping memory for a device, and taking it away
//!
//! Times are TSC ticks. Under QEMU with `-icount shift=0` a tick is an instruction, which repeats
//! exactly. The samples of the two rings alternate, so that a disturbance meets both. The two kinds
//! of domain alternate too, a few samples at a time: a driver is reloaded in between.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use embassy_futures::yield_now;
use host::domain::{Handle, Ring, registry, trust};
use host::poll;
use hw::arch::{interrupts, time};
use hw::{iommu, link, println};
use ringfence_abi::manifest::DomainKind;
use ringfence_core::limits::TURN_MS;
use ringfence_link::event::{self, Event};

mod calls;
mod fence;
mod files;
mod kinds;
mod nic;
mod off;
mod recovery;
mod scsi;

/// The CPU time in seconds that a wait may take: a device may interrupt for ever and never answer.
const BUSY_SECONDS: u64 = 2;
/// How many times as many samples a row in time has as one in instructions.
const TIMES_MORE: usize = 3;
/// A limit that is longer than any driver's budget.
const LONGEST_TURN_MS: u64 = 1_000_000;

/// One line of results.
#[derive(Clone)]
pub struct Row {
    name: &'static str,
    /// The number of the driver's ring.
    ring: Option<u8>,
    /// The kind of domain that the driver has in ring 1.
    kind: Option<DomainKind>,
    batch: Option<usize>,
    domains: usize,
    unit: &'static str,
    /// One value for each sample.
    samples: Vec<f64>,
    /// The loss against ring 0, in percent.
    loss: Option<f64>,
}

impl Row {
    fn new(name: &'static str, unit: &'static str) -> Row {
        let (domains, samples) = (registry::count(), Vec::new());
        Row { name, ring: None, kind: None, batch: None, domains, unit, samples, loss: None }
    }

    fn ring(mut self, ring: Ring, kind: DomainKind) -> Row {
        self.ring = Some(ring as u8);
        self.kind = (ring == Ring::Sandboxed).then_some(kind);
        self
    }

    /// Makes the row one about ring 3, in which no driver is otherwise.
    fn user(mut self) -> Row {
        self.ring = Some(3);
        self
    }

    /// Makes the row one about this driver in `ring`.
    fn driver(self, handle: &Handle, ring: Ring) -> Row {
        self.ring(ring, handle.lock().space.kind())
    }

    fn batch(mut self, batch: usize) -> Row {
        self.batch = Some(batch);
        self
    }

    /// Returns whether the row measures the same as `other`.
    fn is_same(&self, other: &Row) -> bool {
        let of = |row: &Row| (row.name, row.ring, row.kind, row.batch, row.domains, row.unit);
        of(self) == of(other)
    }

    /// Returns whether the row is that of ring 0 for `other`, with a sample beside each of its.
    fn is_ring_0_of(&self, other: &Row) -> bool {
        let of = |row: &Row| (row.name, row.batch, row.domains, row.unit, row.samples.len());
        self.ring == Some(0) && other.ring == Some(1) && of(self) == of(other)
    }

    /// Notes the loss against `trusted`: the median of the losses of the samples. A sample is
    /// compared with one that was taken at about the same time, so that both had the same host.
    fn lose_against(&mut self, trusted: &Row) {
        let is_rate = self.unit.ends_with("/s");
        let loss = |(of, against): (&f64, &f64)| if is_rate { 1.0 - of / against } else { of / against - 1.0 };
        let losses = self.samples.iter().zip(&trusted.samples).map(loss).collect();
        self.loss = Some(100.0 * percentile(losses, 50));
    }

    /// Returns the smallest sample that `percent` percent of all samples do not exceed.
    fn percentile(&self, percent: usize) -> f64 {
        percentile(self.samples.clone(), percent)
    }

    /// Returns the 99th percentile at the worse end of the samples; for rates this is the low end.
    fn p99(&self) -> f64 {
        self.percentile(if self.unit.ends_with("/s") { 1 } else { 99 })
    }

    /// Prints the row, and sends it to programs.
    fn print(&self) {
        let (median, p99) = (self.percentile(50), self.p99());
        // A segmented driver has the ending of its file's name, as in `top`.
        let ring = self.ring.map(|ring| format!("{ring}{}", self.kind.map_or("", DomainKind::suffix)));
        let batch = self.batch.map(|batch| batch.to_string());
        println!(
            "{:<20} {:>4} {:>5} {:>7} {median:>14.1} {p99:>14.1} {}",
            self.name,
            ring.as_deref().unwrap_or("-"),
            batch.as_deref().unwrap_or("-"),
            self.domains,
            self.unit
        );
        link::tell(&Event::Bench(event::Row {
            name: self.name.into(),
            ring: self.ring,
            kind: self.kind.map(|kind| kind.name().into()),
            batch: self.batch.map(|batch| batch as u64),
            domains: self.domains as u64,
            unit: self.unit.into(),
            count: self.samples.len() as u64,
            median,
            p99,
            range: [self.percentile(0), self.percentile(100)],
            loss: self.loss,
        }));
        // Send pending events now, so that they are not sent while the next row is measured.
        while link::pump() {}
    }
}

/// Returns the smallest value that `percent` percent of all do not exceed.
fn percentile(mut values: Vec<f64>, percent: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    let rank = (values.len() * percent).div_ceil(100);
    values.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
}

/// The rows to measure.
#[derive(Clone, Copy)]
pub struct Plan<'a> {
    /// The beginning of their names.
    pub prefix: &'a str,
    /// The unit of whole operations.
    pub mode: Mode,
    /// The only ring, if not both. Only rows of whole operations can do without the other one.
    pub ring: Option<Ring>,
    /// The only kind of domain, if not all kinds that the driver is built for.
    pub kind: Option<DomainKind>,
    /// The only batch of whole operations, if not all.
    pub batch: Option<usize>,
    /// The number of samples of whole operations, if not each row's own.
    pub samples: Option<usize>,
    /// The number of rounds that share the samples.
    pub rounds: usize,
    /// Whether each sample follows a discarded sample. The samples of two rings alternate, and the
    /// other ring's crossings empty QEMU's TLB. A kind of domain that is compared with them is
    /// measured in the same way.
    pub warms: bool,
}

impl Plan<'_> {
    /// Returns whether a row of whole operations is measured. A row's whole name does not stand for
    /// its variants: `nic/tx` is not `nic/tx-1514`.
    fn wants(&self, name: &str, batch: usize) -> bool {
        let rest = name.strip_prefix(self.prefix);
        rest.is_some_and(|rest| !rest.starts_with('-')) && self.batch.is_none_or(|only| only == batch)
    }

    /// Measures a row of whole operations in each ring. `count` is the number of samples of a row
    /// in instructions. Times differ more, by the host's speed, and have [`TIMES_MORE`] as many.
    fn measure(
        &self,
        handle: &Handle,
        count: usize,
        sample: impl FnMut() -> Result<f64, String>,
        row: impl Fn() -> Row,
    ) -> Result<Vec<Row>, String> {
        let rings: Vec<Ring> = self.rings().collect();
        let count = if self.mode == Mode::Time { count * TIMES_MORE } else { count };
        alternate_in(&rings, self.warms, handle, self.samples(count), sample, row)
    }

    /// Returns the number of samples to take now of a row that has `count` in all.
    fn samples(&self, count: usize) -> usize {
        self.samples.unwrap_or(count).div_ceil(self.rounds)
    }

    /// Returns the rings to measure, in the order in which samples alternate.
    fn rings(&self) -> impl Iterator<Item = Ring> + use<> {
        let only = self.ring;
        RINGS.into_iter().filter(move |ring| only.is_none_or(|only| only == *ring))
    }
}

/// Runs the benchmarks of a plan.
pub async fn run(plan: Plan<'_>) -> Result<(), String> {
    let Plan { prefix, mode, .. } = plan;
    let wanted = |family: &str| family.starts_with(prefix) || prefix.starts_with(family);
    let mut printed = false;
    let mut print = |row: &Row| {
        if !row.name.starts_with(prefix) {
            return;
        }
        if !printed {
            println!(
                "{:<20} {:>4} {:>5} {:>7} {:>14} {:>14} UNIT",
                "NAME", "RING", "BATCH", "DOMAINS", "MEDIAN", "P99"
            );
        }
        printed = true;
        row.print();
    };
    // A row that cannot be measured is reported, and the other rows are measured all the same.
    let mut failed: Vec<String> = Vec::new();
    let mut note = |family: &str, result: Result<(), String>| {
        if let Err(error) = result {
            println!("failed: {family}: {error}");
            link::tell(&Event::BenchFailed { family: family.into(), why: error.as_str().into() });
            failed.push(error);
        }
    };
    if wanted("call/") || wanted("upcall") {
        note("call, upcall", calls::run(plan, &mut print).await);
    }
    yield_now().await;
    // Rows that are not measured by kind are left out where a kind is asked for. These rows are
    // about the drivers as they are loaded.
    let of_any_kind = plan.kind.is_none();
    if of_any_kind && wanted("off/") {
        note("off", off::run(mode.unit("us"), &mut print).await);
    }
    yield_now().await;
    // A machine without an IOMMU is not a failure, unless the fence benchmark was asked for.
    if of_any_kind && wanted("fence/") && (iommu::is_on() || prefix.starts_with("fence")) {
        note("fence", fence::run(mode.unit("ticks"), &mut print));
    }
    yield_now().await;
    if wanted("nic/") {
        note("nic", nic::run(plan, &mut print).await);
    }
    yield_now().await;
    if wanted("icmp/") {
        note("icmp", nic::echo(plan, &mut print).await);
    }
    yield_now().await;
    if wanted("scsi/") {
        note("scsi", scsi::run(plan, &mut print).await);
    }
    yield_now().await;
    if of_any_kind && wanted("trace/") {
        note("trace", scsi::traced(plan, &mut print).await);
    }
    if wanted("fs/") {
        note("fs", files::run(plan, &mut print).await);
    }
    yield_now().await;
    if of_any_kind && wanted("recovery/") {
        note("recovery", recovery::run(mode, &mut print).await);
    }
    if of_any_kind && wanted("reload/") {
        note("reload", recovery::reloads(mode, &mut print).await);
    }
    match (failed.len(), printed) {
        (0, true) => Ok(()),
        (1, _) => Err(failed.remove(0)),
        (0, false) if let Some(batch) = plan.batch => {
            Err(format!("no row was measured whose name begins with '{prefix}' and whose batch is {batch}"))
        }
        (0, false) if let Some(kind) = plan.kind => {
            Err(format!("no row was measured in {kind} domains whose name begins with '{prefix}'"))
        }
        (0, false) => Err(format!("no row was measured whose name begins with '{prefix}': is its driver loaded?")),
        (failed, _) => Err(format!("{failed} of the measurements failed")),
    }
}

/// The rings in the order in which samples alternate.
const RINGS: [Ring; 2] = [Ring::Trusted, Ring::Sandboxed];

/// Logs that a driver is about to run in ring 0, where it is not confined: no person has said that
/// it is trusted.
fn announce(plan: &Plan<'_>, kinds: &[DomainKind], handle: &Handle) {
    let mut domain = handle.lock();
    let is_moved = kinds.contains(&DomainKind::Paged) && plan.ring != Some(Ring::Sandboxed);
    if is_moved && trust::distrust(&mut domain).is_none() {
        log::info!("{}: is in ring 0 for every other sample while it is measured", domain.name);
    }
}

/// Refuses to measure a driver in `rings` if it must not run in one of them.
fn check_trust(rings: &[Ring], handle: &Handle) -> Result<(), String> {
    if !rings.contains(&Ring::Trusted) {
        return Ok(());
    }
    let why = trust::distrust(&mut handle.lock());
    why.map_or(Ok(()), |why| Err(format!("the driver cannot be measured in ring 0: {why}")))
}

/// Takes `count` samples of `sample` in each ring, alternating, and returns a row for each.
fn alternate(
    handle: &Handle,
    count: usize,
    sample: impl FnMut() -> Result<f64, String>,
    row: impl Fn() -> Row,
) -> Result<[Row; 2], String> {
    let rows = alternate_in(&RINGS, true, handle, count, sample, row)?;
    rows.try_into().map_err(|_| "each ring has a row".to_string())
}

/// The runner's profile counts the instructions between these two functions, which it finds by
/// their names.
#[inline(never)]
fn sample_begins() {
    core::hint::black_box("begins");
}

#[inline(never)]
fn sample_ends() {
    core::hint::black_box("ends");
}

/// Moves a driver into `ring`, unless it is there: a move writes its stubs anew, and empties the
/// TLB.
fn put_into(handle: &Handle, ring: Ring) {
    let mut domain = handle.lock();
    if domain.ring() != ring {
        domain.set_ring(ring);
    }
}

/// Prepares for samples between which no other task runs. The returned guard must live as long as
/// they are taken.
fn alone() -> impl Drop {
    // Serve the lines that have fired now: the task that was about to do so does not run while this
    // one waits for interrupts, and each poll would look at them.
    poll::lines();
    // Suspend throttling: no other task runs that a driver could starve.
    TURN_MS.for_now(LONGEST_TURN_MS)
}

/// Takes `count` samples of `sample` in each of `rings`, alternating, and returns a row for each.
/// If it `warms`, each follows a sample that is discarded.
fn alternate_in(
    rings: &[Ring],
    warms: bool,
    handle: &Handle,
    count: usize,
    mut sample: impl FnMut() -> Result<f64, String>,
    row: impl Fn() -> Row,
) -> Result<Vec<Row>, String> {
    let before = handle.lock().ring();
    check_trust(rings, handle)?;
    let _alone = alone();
    let mut rows: Vec<Row> = rings.iter().map(|ring| row().driver(handle, *ring)).collect();
    // Discard the first sample of each ring: it fills caches, among them QEMU's cache of translated
    // code.
    for number in 0..=count {
        for (ring, row) in rings.iter().zip(&mut rows) {
            put_into(handle, *ring);
            // Another device's line may have fired, at which each poll would look.
            poll::lines();
            if warms {
                sample().inspect_err(|_| put_into(handle, before))?;
            }
            sample_begins();
            let value = sample().inspect_err(|_| put_into(handle, before))?;
            sample_ends();
            if number > 0 {
                row.samples.push(value);
            }
        }
    }
    put_into(handle, before);
    Ok(rows)
}

/// Waits for a device's interrupt, and polls its driver unless that was done since. Returns `false`
/// if the time since `since` is longer than the mode allows, however many interrupts came.
fn wait_for_interrupt(mode: Mode, since: &Stopwatch) -> bool {
    loop {
        let Cost { ticks, busy, .. } = since.stop(1);
        let second = time::tsc_per_second();
        if ticks > mode.patience_seconds() * second || busy > BUSY_SECONDS * second {
            return false;
        }
        if poll::lines() {
            return true;
        }
        interrupts::halt_unless_fired();
    }
}

/// The values in a row of whole operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Operations a second, or the unit of one operation.
    Time,
    /// TSC ticks per operation in which the CPU was not halted. Under `-icount shift=0` these are
    /// instructions.
    Instructions,
}

impl Mode {
    /// Returns the unit of a row, which is `unit` if the mode is [`Mode::Time`].
    fn unit(self, unit: &'static str) -> &'static str {
        match self {
            Mode::Time => unit,
            Mode::Instructions => "instructions",
        }
    }

    /// Returns how long a device may take to answer, in seconds of the guest's clock. With
    /// `-icount`, QEMU skips the time in which the CPU is halted. An hour is then over in seconds,
    /// while a disk still answers only when the host has read its data.
    fn patience_seconds(self) -> u64 {
        match self {
            Mode::Time => 10,
            Mode::Instructions => 3600,
        }
    }
}

/// The cost of a number of operations.
struct Cost {
    count: usize,
    ticks: u64,
    busy: u64,
}

impl Cost {
    /// Returns the value for a row: `factor` times the operations per second, or the instructions
    /// per operation.
    fn value(&self, mode: Mode, factor: f64) -> f64 {
        match mode {
            Mode::Time => factor * self.count as f64 * time::tsc_per_second() as f64 / self.ticks.max(1) as f64,
            Mode::Instructions => self.busy as f64 / self.count.max(1) as f64,
        }
    }
}

/// A stopwatch for the cost of operations.
struct Stopwatch {
    tsc: u64,
    idle: u64,
}

impl Stopwatch {
    fn start() -> Stopwatch {
        Stopwatch { tsc: time::tsc(), idle: interrupts::idle_ticks() }
    }

    fn stop(&self, count: usize) -> Cost {
        let ticks = time::tsc() - self.tsc;
        Cost { count, ticks, busy: ticks.saturating_sub(interrupts::idle_ticks() - self.idle) }
    }
}
