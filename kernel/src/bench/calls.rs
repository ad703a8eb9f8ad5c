//! The cost of single crossings.

use super::{Row, alternate};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use host::domain::{Handle, Ring, registry};
use host::module;
use hw::arch::bench::Crossing;
use hw::arch::time;
use ringfence_abi::layout::MAX_DOMAINS;
use ringfence_abi::upcall::NULL;

/// The number of crossings in one sample, and the number of samples.
const EACH: u64 = 200;
const SAMPLES: usize = 51;
/// The service that does nothing.
const NULL_SERVICE: usize = 0;
/// The module that does nothing.
const MODULE: &str = "null";

/// Measures crossings with one domain loaded for the measurement, and with all slots taken.
pub async fn run(unit: &'static str, print: &mut impl FnMut(&Row)) -> Result<(), String> {
    print(&near_call(unit));
    print(&cr3_write(unit));
    let handle = load().await?;
    let result = measure(&handle, unit, print).await;
    let name = handle.lock().name.clone();
    drop(handle);
    module::unload(&name).await.map_err(|error| error.to_string())?;
    result
}

async fn load() -> Result<Handle, String> {
    let file = module::file(MODULE).map_err(|error| error.to_string())?;
    module::load(&file, Ring::Sandboxed, &[]).await.map_err(|error| error.to_string())
}

async fn measure(handle: &Handle, unit: &'static str, print: &mut impl FnMut(&Row)) -> Result<(), String> {
    let gates = |print: &mut dyn FnMut(&Row)| -> Result<(), String> {
        let [mut trusted, mut gate] = alternate(handle, SAMPLES, || calls(handle), || Row::new("call/gate", unit))?;
        trusted.name = "call/trusted";
        let mut bare = Row::new("call/bare", unit).ring(Ring::Sandboxed);
        // The two rows are compared, so their samples alternate.
        gate.samples.clear();
        for number in 0..=SAMPLES {
            let ours = calls(handle)?;
            let theirs = calls_by(handle, Crossing::Bare)?;
            if number > 0 {
                gate.samples.push(ours);
                bare.samples.push(theirs);
            }
        }
        [trusted, gate, bare].iter().for_each(print);
        Ok(())
    };
    gates(print)?;

    let mut shared = Row::new("call/gate-shared", unit).ring(Ring::Sandboxed);
    for _ in 0..SAMPLES {
        shared.samples.push(calls_by(handle, Crossing::SharedRoot)?);
    }
    print(&shared);

    let mut interrupt = Row::new("call/int", unit).ring(Ring::Sandboxed);
    for _ in 0..SAMPLES {
        interrupt.samples.push(calls_by(handle, Crossing::Interrupt)?);
    }
    print(&interrupt);

    let upcalls = |print: &mut dyn FnMut(&Row)| -> Result<(), String> {
        let rows = alternate(handle, SAMPLES, || upcalls(handle), || Row::new("upcall", unit))?;
        rows.iter().for_each(print);
        Ok(())
    };
    upcalls(print)?;

    // Measure the same crossings with every slot taken.
    let mut others = Vec::new();
    while registry::count() < MAX_DOMAINS {
        others.push(load().await?);
    }
    let result = gates(print).and_then(|()| upcalls(print));
    for other in others {
        let name = other.lock().name.clone();
        module::unload(&name).await.map_err(|error| error.to_string())?;
    }
    result
}

/// Returns the TSC ticks of one call of the empty service by the driver.
fn calls(handle: &Handle) -> Result<f64, String> {
    let ticks = handle.lock().command(&format!("calls {EACH}")).map_err(|error| error.to_string())?;
    Ok(ticks as f64 / EACH as f64)
}

/// Returns the TSC ticks of the same call when it crosses by another way.
fn calls_by(handle: &Handle, crossing: Crossing) -> Result<f64, String> {
    let changed = handle.lock().space.cross_by(NULL_SERVICE, crossing).map_err(|error| error.to_string())?;
    let ticks = calls(handle);
    let mut domain = handle.lock();
    let imports = domain.imports;
    domain.space.cross_as_usual(changed, imports);
    ticks
}

/// Returns the TSC ticks of one empty upcall.
fn upcalls(handle: &Handle) -> Result<f64, String> {
    let mut domain = handle.lock();
    let start = time::tsc();
    for _ in 0..EACH {
        domain.upcall(NULL, [0; 3]).map_err(|error| error.to_string())?;
    }
    Ok((time::tsc() - start) as f64 / EACH as f64)
}

#[inline(never)]
extern "C" fn nothing() {
    core::hint::black_box(());
}

fn near_call(unit: &'static str) -> Row {
    let mut row = Row::new("call/near", unit).ring(Ring::Trusted);
    let call: extern "C" fn() = core::hint::black_box(nothing);
    for _ in 0..SAMPLES {
        let start = time::tsc();
        (0..EACH).for_each(|_| call());
        row.samples.push((time::tsc() - start) as f64 / EACH as f64);
    }
    row
}

fn cr3_write(unit: &'static str) -> Row {
    let mut row = Row::new("call/cr3", unit).ring(Ring::Trusted);
    for _ in 0..SAMPLES {
        let start = time::tsc();
        (0..EACH).for_each(|_| x86_64::instructions::tlb::flush_all());
        row.samples.push((time::tsc() - start) as f64 / EACH as f64);
    }
    row
}
