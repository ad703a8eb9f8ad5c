//! Measures a driver in both kinds of domain, if it is built for both: it is reloaded as the other
//! kind, measured again, and reloaded as its own kind.

use super::Plan;
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

/// Calls `measure` for the driver that `find` returns, if there is one, in each kind of domain that
/// the plan asks for, with the rings that the driver can be in. Returns when the driver is of its
/// own kind again.
pub async fn each<'a>(
    plan: Plan<'a>,
    find: impl Fn() -> Option<Handle>,
    mut measure: impl AsyncFnMut(Plan<'a>, Handle) -> Result<(), String>,
) -> Result<(), String> {
    let Some(handle) = find() else { return Ok(()) };
    let (name, file, own, ring, probation) = {
        let domain = handle.lock();
        (domain.name.clone(), domain.file.clone(), domain.space.kind(), domain.ring(), domain.probation.clone())
    };
    let kinds = kinds(&plan, &file, own, ring)?;
    let mut back = Back { name: name.clone(), file: None };
    let mut measured = Ok(());
    for kind in kinds {
        measured = async {
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
        if measured.is_err() {
            break;
        }
    }
    let driver = || module::find(&name).map_err(|error| error.to_string());
    if let Some(file) = back.file.take() {
        become_of(&driver()?, file).await?;
        // It does not fall back on the build that was only measured.
        driver()?.lock().probation = probation;
    }
    measured
}

/// Returns the kinds to measure a driver in, its own first.
fn kinds(plan: &Plan, file: &File, own: DomainKind, ring: Ring) -> Result<Vec<DomainKind>, String> {
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
    let of = |handle: &Handle| {
        let domain = handle.lock();
        let (file, own, ring) = (domain.file.clone(), domain.space.kind(), domain.ring());
        drop(domain);
        kinds(plan, &file, own, ring)
    };
    let others = of(other)?;
    let both: Vec<DomainKind> = of(one)?.into_iter().filter(|kind| others.contains(kind)).collect();
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
