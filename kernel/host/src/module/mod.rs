//! Loading and unloading: from a file to a running driver, and back to free memory.

use crate::domain::calls::Call;
use crate::domain::cause::UpcallError;
use crate::domain::debug;
use crate::domain::device::Device;
use crate::domain::fault;
use crate::domain::hardware::{State, Which};
use crate::domain::offer::operations_noun;
use crate::domain::saved::SavedState;
use crate::domain::trace::{self, What};
use crate::domain::{Domain, Handle, Ring, end, registry, sleep, trust};
use crate::file::File;
use crate::{evidence, poll, pushed, ramdisk};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use embassy_time::{Duration, with_timeout};
use hw::arch::watch;
use hw::memory::{self, frames};
use hw::pci::Function;
use hw::{console, link};
use log::Level;
use ringfence_abi::layout::IMAGE;
use ringfence_abi::manifest::{BY_HAND, DomainKind, Manifest, NEEDS_FENCE, SEGMENTED_SUFFIX};
use ringfence_abi::service::Refusal;
use ringfence_abi::upcall::{EXIT, INIT};
use ringfence_core::evidence::policy::{Admitted, Force};
use ringfence_core::limits::SLEEP_MS;
use ringfence_core::module::{Module, file_name};
use ringfence_link::event::Event;
use spin::Mutex;

mod admission;
pub mod confinement;
mod error;
mod map;

pub use admission::{admit, admit_change, admit_for};
pub use error::LoadError;

/// Returns the loaded domain called `name`.
pub fn find(name: &str) -> Result<Handle, LoadError> {
    registry::find(name).ok_or_else(|| LoadError::NotLoaded(name.to_string()))
}

/// Returns the module file `name`: the file that was pushed last, or else the file of the ramdisk.
pub fn file(name: &str) -> Result<File, LoadError> {
    let of_ramdisk = || ramdisk::modules().find(|file| file.name == name);
    pushed::find(name).or_else(of_ramdisk).ok_or_else(|| LoadError::NoFile(name.to_string()))
}

/// Returns the file of module `name` for domains of this kind, if this machine has such domains.
pub fn build_for(name: &str, kind: DomainKind) -> Result<File, LoadError> {
    let file = file(&file_name(name, kind))?;
    match kind {
        DomainKind::Paged => Ok(file),
        DomainKind::Segmented => confinement::check().map(|()| file).map_err(LoadError::NotConfined),
    }
}

/// Returns the file of module `name` for domains of the kind that is `wanted`. If nobody wants one,
/// the file's name decides. Of two builds that can be loaded, a build that was pushed comes before
/// a build of the ramdisk, which may be older. Else the module's preference decides, and then the
/// policy.
pub fn choose(name: &str, wanted: Option<DomainKind>) -> Result<File, LoadError> {
    if let Some(kind) = wanted {
        return file(&file_name(name, kind));
    }
    if name.ends_with(SEGMENTED_SUFFIX) {
        return file(name);
    }
    let (paged, segmented) = match DomainKind::ALL.map(|kind| build_for(name, kind)) {
        [Ok(paged), Ok(segmented)] => (paged, segmented),
        [Ok(only), Err(_)] | [Err(_), Ok(only)] => return Ok(only),
        [Err(LoadError::NoFile(_)), Err(refused @ LoadError::NotConfined(_))] => return Err(refused),
        [Err(none), Err(_)] => return Err(none),
    };
    if (paged.build > 0) != (segmented.build > 0) {
        return Ok(if paged.build > 0 { paged } else { segmented });
    }
    let prefers = Module::parse(&paged.bytes).ok().and_then(|module| module.manifest.kind_preferred());
    Ok(match prefers.unwrap_or_else(evidence::usual_kind) {
        DomainKind::Paged => paged,
        DomainKind::Segmented => segmented,
    })
}

/// Returns the paged build of a segmented driver's module. The error names the driver.
pub fn paged_build(domain: &Domain) -> Result<File, String> {
    let paged = choose(&domain.file.name, Some(DomainKind::Paged));
    paged.map_err(|error| format!("{} is segmented, and has no paged build: {error}", domain.name))
}

/// Decides whether a driver may run in ring 0. If it is segmented, that is decided about its paged
/// build, which would take its place. The error is the reason why not.
pub fn decide(domain: &mut Domain, force: bool) -> Result<Admitted, String> {
    if !domain.is_segmented() {
        return trust::decide(domain, force);
    }
    let force = trust::force(force);
    domain.witness();
    let paged = paged_build(domain)?;
    let module = Module::parse(&paged.bytes).map_err(|error| format!("its paged build is refused: {error}"))?;
    let unforgiven = || if force == Force::Given { None } else { trust::unforgiven(domain) };
    if let Some(why) = trust::banned(domain, &module.manifest).or_else(unforgiven) {
        return Err(why);
    }
    evidence::decide(&paged, &operations_noun(&domain.manifest), force)
        .map_err(|why| format!("its paged build may not run in ring 0: {why}"))
}

/// Forgets the faults of a driver's module, of both builds.
pub fn forgive(domain: &Domain) {
    let other = DomainKind::ALL.into_iter().find(|kind| *kind != domain.space.kind());
    let other = other.and_then(|kind| file(&file_name(&domain.file.name, kind)).ok());
    trust::forgive(domain, other.as_ref());
}

/// Returns all module files, by name.
pub fn files() -> Vec<File> {
    let mut names: Vec<String> = ramdisk::modules().map(|file| file.name).chain(pushed::names()).collect();
    names.sort_unstable();
    names.dedup();
    names.iter().filter_map(|name| file(name).ok()).collect()
}

/// Loads a module into `ring` and runs its `init`. `parameters` come from a person, each as
/// `name=value`. On any error nothing of the module stays.
pub async fn load(file: &File, ring: Ring, parameters: &[String]) -> Result<Handle, LoadError> {
    load_for(file, ring, parameters, None).await
}

/// Returns the name that a driver will have that is loaded from `file` next.
pub fn name_for(file: &File) -> Result<String, LoadError> {
    let module = Module::parse(&file.bytes).map_err(LoadError::Refused)?;
    Ok(map::free_name(module.manifest.name()))
}

/// The maximum amount of the kernel's heap that loading a module and running it takes.
pub const HEAP_BYTES: usize = 1 << 20;

/// Loads a module as [`load`] does, for the device `which` if one is given, or else for any device
/// that the module drives.
async fn load_for(file: &File, ring: Ring, parameters: &[String], which: Option<Which>) -> Result<Handle, LoadError> {
    if !memory::has_room(HEAP_BYTES) {
        return Err(LoadError::NoMemory);
    }
    admit(file)?;
    // The file of a build for segmented domains has another name than the driver.
    fault::forget_last(&name_for(file)?);
    // No other task knows the driver yet, so it is not restarted: its report is due now.
    let started = start(file, ring, parameters, which, None, None).await;
    let handle = started.inspect_err(|_| fault::print_pending())?;
    registry::add(handle.clone());
    trace::keep_up(&mut handle.lock());
    let class = handle.lock().offered_class();
    if let Some(class) = class {
        class.attach(&handle);
        handle.lock().warn_of_omissions();
    }
    look_at(&handle);
    link::tell(&Event::Loaded(handle.lock().event()));
    Ok(handle)
}

/// Maps a module and runs its `init`. If `dead` is given, the module is mapped in the place of that
/// ended driver. The driver is not registered as loaded yet. Nothing of it stays after an error, or
/// if the future is dropped while the driver sleeps in `init`.
async fn start(
    file: &File,
    ring: Ring,
    parameters: &[String],
    which: Option<Which>,
    dead: Option<&Handle>,
    watched: Option<u64>,
) -> Result<Handle, LoadError> {
    let module = Module::parse(&file.bytes).map_err(LoadError::Refused)?;
    let device = match which {
        Some(which) => Some(which.take(needs_fence(&module.manifest)).ok_or(LoadError::NoDevice(None))?),
        None => take_device(&module.manifest)?,
    };
    let mut domain = map::map(file, module, parameters, device, dead.map(|dead| dead.lock()).as_deref_mut())?;
    domain.witness();
    if ring == Ring::Trusted
        && let Err(why) = trust::promote(&mut domain, false)
    {
        console::say_about(&domain.source(), Level::Warn, format_args!("loaded into ring 1: {why}"));
    }
    if let Some(offset) = watched {
        if offset >= domain.image_bytes {
            return Err(LoadError::Outside);
        }
        watch::set(domain.space.linear(domain.base() + IMAGE + offset));
    }
    trace::trace_from_start(&mut domain);
    let handle = Arc::new(Mutex::new(domain));
    handle.lock().sleep.this = Arc::downgrade(&handle);
    registry::begin(&handle);
    debug::adopt(&handle);
    let result = sleep::upcall(&handle, INIT).await;
    result.map_err(|error| {
        let domain = handle.lock();
        let refused = |call: &Call| call.result().is_some_and(|result| Refusal::from_result(result).is_some());
        let call = domain.calls.iter().filter(refused).last();
        match (error, domain.class(), &call) {
            (UpcallError::Refused(Refusal::Full), Some(class), Some(call)) if call.offers() => {
                LoadError::Full(class.full())
            }
            (error, ..) => LoadError::Init(error, call),
        }
    })?;
    Ok(handle)
}

/// Puts an instance of `file` in place of a driver that was ended. The users of the old driver go
/// on with the new one. On an error the old driver stays where it was, with everything except the
/// pages that the successor took over.
///
/// `file` must have been admitted ([`admit`]). `watched` is the offset in the image of an
/// instruction to watch from the start ([`watch`]).
pub async fn replace(dead: &Handle, file: &File, ring: Ring, watched: Option<u64>) -> Result<Handle, LoadError> {
    replace_with(dead, file, ring, watched, None).await
}

/// Replaces a driver as [`replace`] does. The new one is given the `state` of the build before.
pub async fn replace_with(
    dead: &Handle,
    file: &File,
    ring: Ring,
    watched: Option<u64>,
    state: Option<&SavedState>,
) -> Result<Handle, LoadError> {
    if !registry::has(dead) {
        return Err(LoadError::NotLoaded(dead.lock().name.clone()));
    }
    let (drives, parameters) = {
        let mut domain = dead.lock();
        end::quiesce(&mut domain);
        if !domain.space.is_set_aside() {
            frames::take_back_promise(core::mem::take(&mut domain.promised));
        }
        (domain.drives, domain.parameters.clone())
    };
    let offers = |handle: &Handle| handle.lock().offered_class().map(|class| class.kind());
    let fresh = start(file, ring, &parameters, drives, Some(dead), watched).await.and_then(|fresh| {
        if !registry::has(dead) {
            // The driver was unloaded while its successor slept.
            return Err(LoadError::NotLoaded(dead.lock().name.clone()));
        }
        if offers(dead) == offers(&fresh) { Ok(fresh) } else { Err(LoadError::Different) }
    });
    let fresh = match (fresh, state) {
        (Ok(fresh), Some(state)) => state.restore(&fresh).await.map(|()| fresh).map_err(LoadError::Restore),
        (fresh, _) => fresh,
    };
    let fresh = fresh.inspect_err(|_| {
        let mut domain = dead.lock();
        domain.space.return_to_slot();
        if domain.space.is_set_aside() {
            return;
        }
        // Renew the promise that was taken back, unless other domains took the frames while the
        // successor slept.
        let frames = map::budget(&domain.manifest, domain.image_bytes);
        domain.promised = frames::promise(frames).map_or(0, |()| frames);
    })?;
    {
        let (mut old, mut new) = (dead.lock(), fresh.lock());
        new.restarts = old.restarts;
        new.witnessed.is_held = old.witnessed.is_held;
        // The first fault in a while is treated as an accident: the debt is not taken over.
        if new.life.succeed(&mut old.life) {
            poll::succeed(&mut new, &old);
        }
        trace::note(&new, || What::Replaced);
    }
    registry::replace(dead, &fresh);
    trace::keep_up(&mut fresh.lock());
    let class = fresh.lock().offered_class();
    if let Some(class) = class {
        class.replace(dead, &fresh);
    }
    look_at(&fresh);
    Ok(fresh)
}

/// Takes the entries that a driver has put into its queues in `init`, where it may already make
/// requests to the driver that it uses.
fn look_at(handle: &Handle) {
    poll::after(&mut handle.lock());
}

fn needs_fence(manifest: &Manifest) -> bool {
    manifest.flags & NEEDS_FENCE != 0
}

/// Takes a free device that `manifest` names. Returns `None` if it names none.
fn take_device(manifest: &Manifest) -> Result<Option<Device>, LoadError> {
    if !manifest.has_device() {
        return Ok(None);
    }
    let devices = || Which::all().filter(|which| which.is_driven_by(manifest));
    let taken = devices().find_map(|which| which.take(needs_fence(manifest)));
    taken.map(Some).ok_or_else(|| match devices().find(|which| which.state() == State::SetAside) {
        Some(which) => LoadError::SetAside(which),
        None => LoadError::NoDevice(driver_of(manifest).map(|driver| (driver, manifest.name().to_string()))),
    })
}

/// Returns the name of the first driver that has a device which `manifest` names.
fn driver_of(manifest: &Manifest) -> Option<String> {
    registry::all().into_iter().find_map(|handle| {
        let domain = handle.lock();
        domain.drives.filter(|which| which.is_driven_by(manifest)).map(|_| domain.name.clone())
    })
}

/// Stops a driver and frees all of its resources.
pub async fn unload(name: &str) -> Result<(), LoadError> {
    let handle = find(name)?;
    // Let a sleeping driver finish its upcall first, unless it falls asleep again and again.
    let limit = Duration::from_millis(SLEEP_MS.get());
    let _ = with_timeout(limit, sleep::awake(&handle)).await;
    // Look the name up again: a successor may be in the driver's place by now.
    let handle = find(name)?;
    let class = handle.lock().offered_class();
    if let Some(class) = class {
        class.detach(&handle);
    }
    let (is_alive, sleeps) = {
        let domain = handle.lock();
        (domain.is_alive(), domain.life.asleep_until().is_some())
    };
    if sleeps {
        log::warn!("{name}: exit is left out: it sleeps again and again");
    } else if is_alive {
        let exit = sleep::finish(&handle, |domain| {
            domain.upcall(EXIT, [0; 3]).inspect_err(|error| {
                // Remove it now, so that no other task unloads it while it sleeps.
                if *error == UpcallError::Asleep {
                    registry::remove(&handle);
                    // A debugger still finds it, if it stands.
                    registry::begin(&handle);
                }
            })
        });
        if let (Err(error), _) = exit.await {
            log::warn!("{name}: exit: {error}");
        }
    }
    let mut domain = handle.lock();
    domain.witness();
    domain.life.retire();
    end::quiesce(&mut domain);
    drop(domain);
    registry::remove(&handle);
    link::tell(&Event::Unloaded { name: name.into() });
    Ok(())
}

/// Stops all drivers, the last that was loaded first: it may use the device of one before.
pub async fn unload_all() {
    for handle in registry::all().into_iter().rev() {
        let name = handle.lock().name.clone();
        if let Err(error) = unload(&name).await {
            log::warn!("{error}");
        }
    }
}

/// Loads a driver into ring 1 for each free device that a module in the ramdisk drives. If several
/// modules drive the device, it takes the first by name, and prefers the modules called `first`.
/// Modules that only a person loads are left out. Logs the files that are not modules, and the
/// devices of known kinds that no module drives.
pub async fn autoload(first: &[&str]) {
    let mut files: Vec<(Manifest, File)> = Vec::new();
    for file in ramdisk::modules() {
        match Module::parse(&file.bytes) {
            Ok(module) if module.manifest.flags & BY_HAND != 0 => {}
            Ok(module) if module.file_name() != file.name => {
                let error = LoadError::Misnamed(module.file_name());
                log::warn!("{}.rfm is refused: {error}", console::printable(&file.name));
            }
            // Of two files of a module, the one for the right kind of domain is taken.
            Ok(module) => {
                if choose(module.manifest.name(), None).is_ok_and(|chosen| chosen.name == file.name) {
                    files.push((module.manifest, file));
                }
            }
            Err(error) => log::warn!("{}.rfm is refused: {error}", console::printable(&file.name)),
        }
    }
    let place = |manifest: &Manifest| (!first.contains(&manifest.name()), manifest.name().to_string());
    files.sort_by_cached_key(|(manifest, _)| place(manifest));
    for which in Which::all() {
        let can_be_had = which.function().is_none_or(|function| function.is_device);
        if !can_be_had || which.state() != State::Free {
            continue;
        }
        let Some((manifest, file)) = files.iter().find(|(manifest, _)| which.is_driven_by(manifest)) else {
            if let Some((function, what)) = which.function().and_then(|function| Some((function, kind_of(function)?))) {
                let id = function.id;
                log::info!("{}: no module drives {what} ({:04x}:{:04x})", function.address, id.vendor, id.device);
            }
            continue;
        };
        match load_for(file, Ring::Sandboxed, &[], Some(which)).await {
            Ok(handle) => log::info!("{}: loaded into ring 1 for {which}", handle.lock().name),
            // Not an error: no bus reports such a device. For example, only the driver can find out
            // that a channel has no disk.
            Err(LoadError::Init(UpcallError::Refused(Refusal::NotFound), _)) if which.function().is_none() => {}
            Err(error) => log::error!("{} for {which}: {error}", console::printable(manifest.name())),
        }
    }
}

/// Returns the kind of a function, if drivers exist for that kind (PCI Code and ID Assignment 1.11,
/// 1.2 and 1.3).
fn kind_of(function: &Function) -> Option<&'static str> {
    match function.class {
        (0x02, ..) => Some("the network card"),
        (0x01, 0x00, _) => Some("the SCSI adapter"),
        _ => None,
    }
}
