//! `top`: the activity of the drivers, again and again.

use super::Outcome;
use alloc::format;
use alloc::string::String;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::future::poll_fn;
use core::task::Poll;
use embassy_futures::select::{Either, select};
use embassy_time::{Duration, Instant, Timer};
use host::domain::life::Activity;
use host::domain::{Domain, Handle, offer, registry, trust};
use host::ramdisk;
use hw::arch::{interrupts, time};
use hw::{console, link, println};
use ringfence_abi::manifest::{DomainKind, SEGMENTED_SUFFIX};
use ringfence_core::arguments::Arguments;
use ringfence_link::event;
use spin::Mutex;

/// The time between two tables if nobody says so, and the longest that a person can ask for, in
/// seconds.
const SECONDS: u64 = 1;
const MOST_SECONDS: u64 = 3600;

/// The activity of the drivers up to some moment.
pub struct Snapshot {
    at: u64,
    idle: u64,
    /// The drivers, which may be gone by now, and their activity up to that moment.
    drivers: Vec<(Weak<Mutex<Domain>>, Activity)>,
}

impl Snapshot {
    /// Returns the activity of the drivers until now.
    pub fn take() -> Snapshot {
        let drivers = registry::all().into_iter().map(|handle| (Arc::downgrade(&handle), handle.lock().activity()));
        Snapshot { at: time::tsc(), idle: interrupts::idle_ticks(), drivers: drivers.collect() }
    }

    /// Returns the activity of a driver up to that moment. A driver that has taken another one's
    /// place since had none.
    fn of(&self, handle: &Handle) -> Activity {
        let known = self.drivers.iter().find(|(known, _)| core::ptr::eq(known.as_ptr(), Arc::as_ptr(handle)));
        known.map(|(_, activity)| *activity).unwrap_or_default()
    }

    /// Returns the rates of the drivers' activity since that moment.
    pub fn rates(&self) -> event::Event<'static> {
        let ticks = time::tsc().saturating_sub(self.at).max(1);
        let seconds = time::nanoseconds(ticks) as f64 / 1e9;
        let percent = |part: u64| (100.0 * part as f64 / ticks as f64).min(100.0);
        let drivers = registry::all().into_iter().map(|handle| {
            let domain = handle.lock();
            let (before, now) = (self.of(&handle), domain.activity());
            let rate = |of: fn(&Activity) -> u64| of(&now).saturating_sub(of(&before)) as f64 / seconds;
            event::Activity {
                name: domain.name.clone().into(),
                kind: domain.manifest.kind().map(offer::kind_name).unwrap_or_default().into(),
                domain_kind: domain.space.kind().name().into(),
                ring: domain.ring() as u8,
                cpu_percent: percent(now.cpu_ticks.saturating_sub(before.cpu_ticks)),
                upcalls: rate(|activity| activity.upcalls),
                calls: rate(|activity| activity.calls),
                operations: rate(|activity| activity.operations),
                bytes: rate(|activity| activity.bytes),
                interrupts: rate(|activity| activity.interrupts),
                faults: trust::fault_count(&domain).into(),
                restarts: domain.restarts,
                memory_bytes: domain.memory_bytes(),
            }
        });
        event::Event::Activity {
            interval_us: time::nanoseconds(ticks) / 1000,
            idle_percent: percent(interrupts::idle_ticks().saturating_sub(self.idle)),
            drivers: drivers.collect(),
        }
    }
}

pub async fn top(mut arguments: Arguments<'_>) -> Outcome {
    let (mut seconds, mut count) = (SECONDS, None);
    while let Some(word) = arguments.optional() {
        match word {
            "-d" => seconds = arguments.number("the seconds between two tables")?,
            "-n" => count = Some(arguments.number("the number of tables")?),
            other => return arguments.wrong(&format!("'{other}' is not known")),
        }
    }
    if !(1..=MOST_SECONDS).contains(&seconds) {
        return Err(format!("the time between tables must be 1 to {MOST_SECONDS} seconds, not {seconds}"));
    }
    // A person sees as many tables as they like, and a script one, unless they say how many.
    let is_for_person = count.is_none() && ramdisk::text("exec").is_none() && !console::is_piped();
    let count: u64 = count.unwrap_or(if is_for_person { u64::MAX } else { 1 });
    if count == 0 {
        return Err("there must be one table at least".into());
    }
    let mut before = Snapshot::take();
    let mut next = Instant::now();
    for _ in 0..count {
        // After a stall there is one table, and the missed tables are left out.
        next = (next + Duration::from_secs(seconds)).max(Instant::now());
        let is_ended = match is_for_person {
            true => matches!(select(Timer::at(next), quit()).await, Either::Second(())),
            false => {
                Timer::at(next).await;
                false
            }
        };
        if is_ended {
            break;
        }
        let (rates, now) = (before.rates(), Snapshot::take());
        before = now;
        if is_for_person {
            console::clear();
        }
        print(&rates);
        if is_for_person {
            println!("q ends this");
        }
        link::tell(&rates);
    }
    Ok(())
}

/// Waits for a key that ends the table.
async fn quit() {
    poll_fn(|context| {
        console::wake_on_input(context.waker());
        while let Some(byte) = console::read_byte() {
            // Ctrl-C and Ctrl-D also end it. Esc does not: it begins a terminal's reports of
            // itself.
            if matches!(byte, b'q' | b'Q' | 3 | 4) {
                return Poll::Ready(());
            }
        }
        Poll::Pending
    })
    .await;
}

fn print(rates: &event::Event) {
    let event::Event::Activity { interval_us, idle_percent, drivers } = rates else { return };
    let by_drivers: f64 = drivers.iter().map(|driver| driver.cpu_percent).sum();
    let kernel = (100.0 - idle_percent - by_drivers).max(0.0);
    let seconds = *interval_us as f64 / 1e6;
    println!("{seconds:.1} s: CPU {by_drivers:.1} % drivers, {kernel:.1} % kernel, {idle_percent:.1} % idle");
    println!(
        "{:<15} {:<5} {:>4} {:>5} {:>5} {:>6} {:>5} {:>5} {:>5} {:>4} {:>4} {:>6}",
        "DOMAIN", "KIND", "RING", "CPU %", "UPC/S", "CALL/S", "OP/S", "KB/S", "IRQ/S", "FLTS", "RSTS", "KIB"
    );
    let mut sorted: Vec<&event::Activity> = drivers.iter().collect();
    sorted.sort_by(|a, b| b.cpu_percent.total_cmp(&a.cpu_percent).then_with(|| a.name.cmp(&b.name)));
    for driver in sorted {
        let event::Activity { name, kind, cpu_percent, faults, restarts, memory_bytes, .. } = driver;
        // A segmented driver has the ending of its file's name.
        let ending = if driver.domain_kind == DomainKind::Segmented.name() { SEGMENTED_SUFFIX } else { "" };
        let ring = format!("{}{ending}", driver.ring);
        let [upcalls, calls, operations, bytes, interrupts] =
            [driver.upcalls, driver.calls, driver.operations, driver.bytes / 1000.0, driver.interrupts].map(short);
        let kib = memory_bytes / 1024;
        println!(
            "{name:<15} {kind:<5} {ring:>4} {cpu_percent:>5.1} {upcalls:>5} {calls:>6} {operations:>5} {bytes:>5} \
             {interrupts:>5} {faults:>4} {restarts:>4} {kib:>6}"
        );
    }
}

/// Returns a number in at most five characters.
fn short(number: f64) -> String {
    // A number below the first limit is shown by itself, one below the second in thousands.
    const LIMITS: [f64; 2] = [99_999.5, 9_999_500.0];
    match number {
        _ if number < LIMITS[0] => format!("{number:.0}"),
        _ if number < LIMITS[1] => format!("{:.0}k", number / 1e3),
        _ => format!("{:.0}M", number / 1e6),
    }
}
