//! Measures a driver in both kinds of domain, if it is built for both: it is reloaded as the other
//! kind, measured again, and reloaded as its own kind.

use super::{Mode, Plan, Row, announce};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use host::domain::{Handle, Ring};
use host::file::File;
use host::{module, reload};
use hw::console;
use ringfence_abi::manifest::DomainKind;

/// Reloads a driver from its own file when it is dropped, unless that was done: a person may stop
/// the measurement.
struct Back {
    name: String,
    file: Option<File>,
}

impl Drop for Back {
    fn drop(&mut self) {
        if let Some(file) = self.file.take()
            && let Ok(handle) = module::find(&self.name)
        {
            // Nobody waits for it.
            let _ = reload::order(&handle, file);
        }
    }
}

/// The rows that were measured.
#[derive(Default)]
pub struct Done(Vec<Row>);

impl Done {
    /// Adds rows. The samples of a row that was measured before are added to those it has.
    pub fn add(&mut self, rows: Vec<Row>) {
        for mut row in rows {
            match self.0.iter_mut().find(|before| before.is_same(&row)) {
                Some(before) => before.samples.append(&mut row.samples),
                None => self.0.push(row),
            }
        }
    }

    /// Prints the rows, with the losses against those of ring 0.
    fn print(self, print: &mut impl FnMut(&Row)) {
        for mut row in self.0.iter().cloned() {
            if let Some(trusted) = self.0.iter().find(|trusted| trusted.is_ring_0_of(&row)) {
                row.lose_against(trusted);
            }
            print(&row);
        }
    }
}

/// The number of rounds in which times are measured by kind: the host's speed changes within
/// seconds, and must not differ between the kinds.
const ROUNDS: usize = 9;

/// Calls `measure` for the driver that `find` returns, if there is one, in each kind of domain that
/// the plan asks for, with the rings that the driver can be in. Prints the rows. Returns when the
/// driver is of its own kind again.
pub async fn each<'a>(
    plan: Plan<'a>,
    find: impl Fn() -> Option<Handle>,
    print: &mut impl FnMut(&Row),
    mut measure: impl AsyncFnMut(Plan<'a>, Handle, &mut Done) -> Result<(), String>,
) -> Result<(), String> {
    let Some(handle) = find() else { return Ok(()) };
    let kinds = kinds_of(&plan, &handle)?;
    announce(&plan, &kinds, &handle);
    let measure = async |plan: Plan<'a>, done: &mut Done| {
        of_one(plan, &find, async |plan, handle| measure(plan, handle, done).await).await
    };
    alternate(plan, &kinds, print, measure).await
}

/// Calls `measure` with a plan for each of `kinds`, in [`ROUNDS`], and prints the rows.
pub async fn alternate<'a>(
    plan: Plan<'a>,
    kinds: &[DomainKind],
    print: &mut impl FnMut(&Row),
    mut measure: impl AsyncFnMut(Plan<'a>, &mut Done) -> Result<(), String>,
) -> Result<(), String> {
    // Instructions do not depend on the host's speed.
    let is_in_rounds = kinds.len() > 1 && plan.mode == Mode::Time && plan.samples.is_none();
    let rounds = if is_in_rounds { ROUNDS } else { 1 };
    let mut done = Done::default();
    let mut measured = Ok(());
    for kind in kinds.iter().cycle().take(rounds * kinds.len()) {
        measured = measure(Plan { kind: Some(*kind), rounds, ..plan }, &mut done).await;
        if measured.is_err() {
            break;
        }
    }
    done.print(print);
    measured
}

/// Calls `measure` for the driver that `find` returns, if there is one, in the plan's kind of
/// domain. Returns when the driver is of its own kind again.
pub async fn of_one<'a>(
    plan: Plan<'a>,
    find: impl Fn() -> Option<Handle>,
    measure: impl AsyncFnOnce(Plan<'a>, Handle) -> Result<(), String>,
) -> Result<(), String> {
    let Some(handle) = find() else { return Ok(()) };
    let (name, file, own, probation) = {
        let domain = handle.lock();
        (domain.name.clone(), domain.file.clone(), domain.space.kind(), domain.probation.clone())
    };
    let kind = plan.kind.unwrap_or(own);
    let mut back = Back { name: name.clone(), file: None };
    let measured = async {
        if kind != own {
            let other = module::build_for(&file.name, kind).map_err(|error| error.to_string())?;
            back.file = Some(file.clone());
            become_of(&handle, other).await?;
        }
        let handle = find().ok_or("the driver is gone")?;
        let only = match kind {
            DomainKind::Paged => plan.ring,
            DomainKind::Segmented => Some(Ring::Sandboxed),
        };
        measure(Plan { ring: only, warms: plan.ring.is_none(), ..plan }, handle).await
    }
    .await;
    let driver = || module::find(&name).map_err(|error| error.to_string());
    if let Some(file) = back.file.take() {
        become_of(&driver()?, file).await?;
        // It does not fall back on the build that was only measured.
        driver()?.lock().probation = probation;
    }
    measured
}

/// Returns the kinds to measure a driver in, its own first.
fn kinds_of(plan: &Plan, handle: &Handle) -> Result<Vec<DomainKind>, String> {
    let (file, own, ring) = {
        let domain = handle.lock();
        (domain.file.clone(), domain.space.kind(), domain.ring())
    };
    let is_possible = |kind: DomainKind| -> Result<(), String> {
        if kind == DomainKind::Segmented && plan.ring == Some(Ring::Trusted) {
            return Err("a segmented driver is not in ring 0".into());
        }
        if kind != own && ring == Ring::Trusted {
            return Err(format!("{} is in ring 0, and would not be after a reload", file.name));
        }
        let built = if kind == own { Ok(()) } else { module::build_for(&file.name, kind).map(drop) };
        built.map_err(|error| error.to_string())
    };
    if let Some(kind) = plan.kind {
        return is_possible(kind).map(|()| [kind].into());
    }
    let others = DomainKind::ALL.into_iter().filter(|kind| *kind != own);
    let possible: Vec<DomainKind> = [own].into_iter().chain(others).filter(|kind| is_possible(*kind).is_ok()).collect();
    // The reason is that of the driver's own kind.
    if possible.is_empty() { is_possible(own).map(|()| possible) } else { Ok(possible) }
}

/// Returns the kinds that both of two drivers can be measured in.
pub fn of_both(plan: &Plan, one: &Handle, other: &Handle) -> Result<Vec<DomainKind>, String> {
    let others = kinds_of(plan, other)?;
    let both: Vec<DomainKind> = kinds_of(plan, one)?.into_iter().filter(|kind| others.contains(kind)).collect();
    let names = || [one, other].map(|handle| handle.lock().name.clone()).join(" and ");
    if both.is_empty() { Err(format!("{} cannot be of the same kind", names())) } else { Ok(both) }
}

/// Puts a build for one of the kinds in a driver's place.
async fn become_of(handle: &Handle, file: File) -> Result<(), String> {
    // Mute the driver's messages at its start: they were shown before.
    let mute = console::mute();
    let reloaded = reload::reload(handle, file).await;
    drop(mute);
    reloaded.map(drop).map_err(|error| error.to_string())
}
