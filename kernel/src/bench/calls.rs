//! The cost of single crossings.

use super::{Plan, Row, alternate, alternate_in, check_trust};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use host::domain::{Handle, Ring, registry};
use host::file::File;
use host::module;
use hw::arch::bench::{Crossing, with_syscall};
use hw::arch::time;
use ringfence_abi::layout::MAX_DOMAINS;
use ringfence_abi::manifest::DomainKind;
use ringfence_abi::upcall::NULL;

/// The number of crossings in one sample, and the number of samples.
const EACH: u64 = 200;
const SAMPLES: usize = 51;
/// The service that does nothing.
const NULL_SERVICE: usize = 0;
/// The module that does nothing.
const MODULE: &str = "null";

/// Measures crossings with one domain loaded for the measurement, and with all slots taken, for
/// each kind of domain that the module is built for.
pub async fn run(plan: Plan<'_>, print: &mut impl FnMut(&Row)) -> Result<(), String> {
    let unit = plan.mode.unit("ticks");
    print(&near_call(unit));
    print(&cr3_write(unit));
    for kind in DomainKind::ALL.into_iter().filter(|kind| plan.kind.is_none_or(|only| only == *kind)) {
        let file = match module::build_for(MODULE, kind) {
            Ok(file) => file,
            Err(error) if plan.kind.is_some() => return Err(error.to_string()),
            Err(_) => continue,
        };
        let mut loaded = Loaded { file, handles: Vec::new() };
        let measured = match loaded.to(1).await {
            Ok(()) => measure(&mut loaded, unit, print).await,
            Err(error) => Err(error),
        };
        loaded.unload().await.and(measured)?;
    }
    Ok(())
}

/// The domains that are loaded for a measurement.
struct Loaded {
    file: File,
    handles: Vec<Handle>,
}

impl Loaded {
    /// Loads more domains until there are `count`, or no more slots.
    async fn to(&mut self, count: usize) -> Result<(), String> {
        while self.handles.len() < count && registry::count() < MAX_DOMAINS {
            let handle = module::load(&self.file, Ring::Sandboxed, &[]).await.map_err(|error| error.to_string())?;
            self.handles.push(handle);
        }
        Ok(())
    }

    fn first(&self) -> Result<&Handle, String> {
        self.handles.first().ok_or_else(|| "there is no slot for a domain".to_string())
    }

    async fn unload(self) -> Result<(), String> {
        for handle in self.handles {
            let name = handle.lock().name.clone();
            module::unload(&name).await.map_err(|error| error.to_string())?;
        }
        Ok(())
    }
}

async fn measure(loaded: &mut Loaded, unit: &'static str, print: &mut impl FnMut(&Row)) -> Result<(), String> {
    let handle = loaded.first()?.clone();
    crossings(&handle, unit, print)?;
    // Other ways to cross replace parts of a paged domain's way.
    if handle.lock().space.kind() == DomainKind::Paged {
        for (name, crossing) in [("call/gate-shared", Crossing::SharedRoot), ("call/int", Crossing::Interrupt)] {
            let mut row = Row::new(name, unit).driver(&handle, Ring::Sandboxed);
            for _ in 0..SAMPLES {
                row.samples.push(calls_by(&handle, crossing)?);
            }
            print(&row);
        }
        user_mode(&handle, unit)?.iter().for_each(&mut *print);
    }
    // Two drivers that are busy in turn.
    loaded.to(2).await?;
    print(&in_turn(&loaded.handles, unit)?);
    // The same crossings with every slot taken.
    loaded.to(MAX_DOMAINS).await?;
    crossings(&handle, unit, print)?;
    print(&in_turn(&loaded.handles, unit)?);
    Ok(())
}

/// Measures calls of a service and upcalls, in the rings that a domain of this kind can be in.
fn crossings(handle: &Handle, unit: &'static str, print: &mut impl FnMut(&Row)) -> Result<(), String> {
    if handle.lock().space.kind() == DomainKind::Segmented {
        let only = [Ring::Sandboxed];
        alternate_in(&only, true, handle, SAMPLES, || calls(handle), || Row::new("call/gate", unit))?
            .iter()
            .for_each(&mut *print);
        alternate_in(&only, true, handle, SAMPLES, || upcalls(handle), || Row::new("upcall", unit))?
            .iter()
            .for_each(print);
        return Ok(());
    }
    let [mut trusted, mut gate] = alternate(handle, SAMPLES, || calls(handle), || Row::new("call/gate", unit))?;
    trusted.name = "call/trusted";
    let mut bare = Row::new("call/bare", unit).driver(handle, Ring::Sandboxed);
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
    [trusted, gate, bare].iter().for_each(&mut *print);
    alternate(handle, SAMPLES, || upcalls(handle), || Row::new("upcall", unit))?.iter().for_each(print);
    Ok(())
}

/// Measures upcalls into all of these drivers, one after the other.
fn in_turn(handles: &[Handle], unit: &'static str) -> Result<Row, String> {
    let first = handles.first().ok_or("there is no slot for a domain")?;
    let mut row = Row::new("upcall/in-turn", unit).driver(first, Ring::Sandboxed);
    let count = EACH as usize / handles.len() * handles.len();
    for number in 0..=SAMPLES {
        let start = time::tsc();
        for handle in handles.iter().cycle().take(count) {
            handle.lock().upcall(NULL, [0; 3]).map_err(|error| error.to_string())?;
        }
        if number > 0 {
            row.samples.push((time::tsc() - start) as f64 / count as f64);
        }
    }
    Ok(row)
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

/// Measures calls and upcalls with the driver in ring 3 of the kernel's root: the other way to do
/// without loads of CR3.
fn user_mode(handle: &Handle, unit: &'static str) -> Result<[Row; 2], String> {
    check_trust(&[Ring::Trusted], handle)?;
    let mut rows = ["call/syscall", "upcall/syscall"].map(|name| Row::new(name, unit).user());
    let entry = {
        let mut domain = handle.lock();
        let (entry, imports) = (domain.entry, domain.imports);
        domain.entry = domain.space.to_user(entry, imports).map_err(|error| error.to_string())?;
        entry
    };
    let measured = (0..=SAMPLES).try_for_each(|number| {
        let samples = with_syscall(|| Ok::<_, String>([calls(handle)?, upcalls(handle)?]))?;
        for (row, sample) in rows.iter_mut().zip(samples).filter(|_| number > 0) {
            row.samples.push(sample);
        }
        Ok(())
    });
    let mut domain = handle.lock();
    domain.entry = entry;
    // Its upcalls in ring 3 are no evidence of its service in ring 1.
    domain.witness();
    let imports = domain.imports;
    domain.space.from_user(imports);
    measured.map(|()| rows)
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
    let mut row = Row::new("call/near", unit).ring(Ring::Trusted, DomainKind::Paged);
    let call: extern "C" fn() = core::hint::black_box(nothing);
    for _ in 0..SAMPLES {
        let start = time::tsc();
        (0..EACH).for_each(|_| call());
        row.samples.push((time::tsc() - start) as f64 / EACH as f64);
    }
    row
}

fn cr3_write(unit: &'static str) -> Row {
    let mut row = Row::new("call/cr3", unit).ring(Ring::Trusted, DomainKind::Paged);
    for _ in 0..SAMPLES {
        let start = time::tsc();
        (0..EACH).for_each(|_| x86_64::instructions::tlb::flush_all());
        row.samples.push((time::tsc() - start) as f64 / EACH as f64);
    }
    row
}
