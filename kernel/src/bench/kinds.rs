//! Measures a driver in both kinds of domain, if it is built for both: it is reloaded as the other
//! kind, measured again, and reloaded as what it was.

use super::Plan;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use host::domain::{Handle, Ring};
use host::file::File;
use host::{module, reload};
use hw::console;
use ringfence_abi::manifest::DomainKind;
use ringfence_core::module::file_name;

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
/// the plan asks for, with the rings that the driver can be in. Returns when the driver is what it
/// was.
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
    let mut back = None;
    for kind in kinds(&plan, &file, own, ring)? {
        if kind != own {
            let other = module::file(&file_name(&file.name, kind)).map_err(|error| error.to_string())?;
            back = Some(Back { name: name.clone(), file: Some(file.clone()) });
            become_of(&handle, other).await?;
        }
        let handle = find().ok_or("the driver is gone")?;
        let only = match kind {
            DomainKind::Paged => plan.ring,
            DomainKind::Segmented => Some(Ring::Sandboxed),
        };
        measure(Plan { ring: only, warms: plan.ring.is_none(), ..plan }, handle).await?;
    }
    let driver = || module::find(&name).map_err(|error| error.to_string());
    if let Some(file) = back.as_mut().and_then(|back| back.file.take()) {
        become_of(&driver()?, file).await?;
        // It does not fall back on the build that was only measured.
        driver()?.lock().probation = probation;
    }
    Ok(())
}

/// Returns the kinds to measure a driver in, its own first.
fn kinds(plan: &Plan, file: &File, own: DomainKind, ring: Ring) -> Result<Vec<DomainKind>, String> {
    let is_built = |kind: DomainKind| kind == own || module::file(&file_name(&file.name, kind)).is_ok();
    if let Some(kind) = plan.kind {
        return match (is_built(kind), kind, plan.ring) {
            _ if kind != own && ring == Ring::Trusted => {
                Err(format!("{} is in ring 0, and would not be after a reload", file.name))
            }
            (false, ..) => Err(format!("{} is not built for {kind} domains", file.name)),
            (_, DomainKind::Segmented, Some(Ring::Trusted)) => Err("a segmented driver is not in ring 0".into()),
            _ => Ok([kind].into()),
        };
    }
    let others = DomainKind::ALL.into_iter().filter(|kind| *kind != own);
    // A driver that a person has moved to ring 0 stays there. One of no other kind is in ring 0.
    let wanted = others.filter(|kind| {
        let can_be = *kind == DomainKind::Paged || plan.ring != Some(Ring::Trusted);
        can_be && ring == Ring::Sandboxed && is_built(*kind)
    });
    Ok([own].into_iter().chain(wanted).collect())
}

/// Puts a build for the other kind in a driver's place.
async fn become_of(handle: &Handle, file: File) -> Result<(), String> {
    // What it says when it starts was said before.
    let mute = console::mute();
    let reloaded = reload::reload(handle, file).await;
    drop(mute);
    reloaded.map(drop).map_err(|error| error.to_string())
}
