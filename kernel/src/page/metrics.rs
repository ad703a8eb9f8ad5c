//! Counters and gauges in Prometheus' text format.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use host::domain::life::Activity;
use host::domain::{Domain, fault, offer, registry, trust};
use hw::arch::time;
use hw::memory::frames;
use ringfence_abi::layout::PAGE_SIZE;

/// The numbers of a driver.
struct Numbers {
    activity: Activity,
    ring: u8,
    faults: u32,
    restarts: u64,
    memory_bytes: u64,
}

/// A number: its name, its type, its help, and where it comes from.
type Metric<T> = (&'static str, &'static str, &'static str, fn(&T) -> f64);

const OF_MACHINE: [Metric<()>; 4] = [
    ("uptime_seconds", "gauge", "Time since the kernel started.", |()| time::uptime_ns() as f64 / 1e9),
    ("memory_free_bytes", "gauge", "Free memory.", |()| (frames::count().0 * PAGE_SIZE) as f64),
    ("memory_bytes", "gauge", "All memory that drivers and the kernel can be given.", |()| {
        (frames::count().1 * PAGE_SIZE) as f64
    }),
    ("faults_total", "counter", "Drivers that were ended.", |()| fault::count() as f64),
];

const OF_DRIVERS: [Metric<Numbers>; 10] = [
    ("upcalls_total", "counter", "Entries of the kernel into the driver.", |of| of.activity.upcalls as f64),
    ("service_calls_total", "counter", "Calls of services by the driver.", |of| of.activity.calls as f64),
    ("operations_total", "counter", "Frames or requests.", |of| of.activity.operations as f64),
    ("bytes_total", "counter", "Bytes of frames or of requests' data.", |of| of.activity.bytes as f64),
    ("interrupts_total", "counter", "Interrupts of the driver's device.", |of| of.activity.interrupts as f64),
    ("cpu_seconds_total", "counter", "CPU time.", |of| time::nanoseconds(of.activity.cpu_ticks) as f64 / 1e9),
    ("ring", "gauge", "The ring that the driver runs in.", |of| of.ring.into()),
    ("faults", "gauge", "Faults of its module since a person forgave them.", |of| of.faults.into()),
    ("restarts_total", "counter", "Instances that were in its place before.", |of| of.restarts as f64),
    ("memory_bytes", "gauge", "Memory of the driver.", |of| of.memory_bytes as f64),
];

/// Returns the labels and the numbers of a driver.
fn numbers(domain: &Domain) -> (String, Numbers) {
    let kind = domain.manifest.kind().map(offer::kind_name).unwrap_or_default();
    // The loader takes only names of characters that need no escape.
    let domain_kind = domain.space.kind();
    let labels = format!("{{driver=\"{}\",kind=\"{kind}\",domain_kind=\"{domain_kind}\"}}", domain.name);
    let numbers = Numbers {
        activity: domain.activity(),
        ring: domain.ring() as u8,
        faults: trust::fault_count(domain),
        restarts: domain.restarts,
        memory_bytes: domain.memory_bytes(),
    };
    (labels, numbers)
}

/// Returns all metrics.
pub fn text() -> String {
    let mut text = String::new();
    let head = |name: &str, kind, help| format!("# HELP ringfence_{name} {help}\n# TYPE ringfence_{name} {kind}\n");
    for (name, kind, help, of) in OF_MACHINE {
        text += &head(name, kind, help);
        text += &format!("ringfence_{name} {}\n", of(&()));
    }
    let drivers: Vec<_> = registry::all().iter().map(|handle| numbers(&handle.lock())).collect();
    for (name, kind, help, of) in OF_DRIVERS {
        text += &head(&format!("driver_{name}"), kind, help);
        for (labels, numbers) in &drivers {
            text += &format!("ringfence_driver_{name}{labels} {}\n", of(numbers));
        }
    }
    text
}
