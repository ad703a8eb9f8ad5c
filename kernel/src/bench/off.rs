//! Measures how long interrupts are off while a service does the most that a driver can ask for.

use super::Row;
use alloc::string::{String, ToString};
use host::domain::Domain;
use host::domain::Ring;
use host::{module, service};
use hw::arch::time;
use hw::latency;
use hw::memory::frames;
use ringfence_abi::layout::PAGE_SIZE;
use ringfence_abi::net::NetInfo;
use ringfence_abi::scsi::{REQUESTS, ScsiInfo};

/// The services are called in the name of this module.
const MODULE: &str = "null";
/// The number of samples of each row.
const SAMPLES: usize = 5;

/// Makes the queues of a network interface and of a SCSI host.
fn make_queues(domain: &mut Domain) {
    let info = ScsiInfo { max_targets: 1, max_luns: 1, queue_depth: REQUESTS as u32, functions: 0 };
    let nic = net::queues::Queues::new(domain, NetInfo::new([2, 0, 0, 0, 0, 1]));
    let host = scsi::queues::Queues::new(domain, info);
    drop((nic, host));
}

/// Measures the longest time without interrupts for each service, and for all of them.
pub async fn run(unit: &'static str, print: &mut impl FnMut(&Row)) -> Result<(), String> {
    let file = module::file(MODULE).map_err(|error| error.to_string())?;
    // A quarter of the free memory: a module can have no more.
    let len_bytes = frames::most_of_one().min(frames::count().0 / 2) * PAGE_SIZE;
    let mut longest = Row::new("off/longest", unit);
    type Service = fn(&mut Domain, u64);
    let services: [(&'static str, Service); 3] = [
        ("off/dma", |domain, len_bytes| service::measured::dma(domain, len_bytes)),
        ("off/heap", |domain, len_bytes| service::measured::heap(domain, len_bytes)),
        ("off/queues", |domain, _| make_queues(domain)),
    ];
    for (name, service) in services {
        let mut row = Row::new(name, unit);
        for _ in 0..SAMPLES {
            let handle = module::load(&file, Ring::Sandboxed, &[]).await.map_err(|error| error.to_string())?;
            let mut domain = handle.lock();
            let ticks = latency::longest_off(|| service(&mut domain, len_bytes));
            row.samples.push(if unit == "us" { time::nanoseconds(ticks) as f64 / 1000.0 } else { ticks as f64 });
            let name = domain.name.clone();
            drop(domain);
            drop(handle);
            module::unload(&name).await.map_err(|error| error.to_string())?;
        }
        longest.samples.extend(row.samples.iter().copied().max_by(f64::total_cmp));
        print(&row);
    }
    let most = longest.samples.iter().copied().max_by(f64::total_cmp).unwrap_or(0.0);
    longest.samples = [most].to_vec();
    print(&longest);
    Ok(())
}
