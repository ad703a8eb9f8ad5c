//! Loaded modules: from a file to a running driver, and back to free memory.

use crate::arch::{cpu, watch};
use crate::domain::calls::{Call, CallLog};
use crate::domain::device::{self, Device};
use crate::domain::fault::{self, Cause};
use crate::domain::report;
use crate::domain::space::{Space, rights};
use crate::domain::upcall::UpcallError;
use crate::domain::{Domain, Handle, Ring};
use crate::limits::SS_LOADS;
use crate::memory::frames::{self, OutOfMemory};
use crate::pci::{self, Function};
use crate::trace::{self, What};
use crate::{poll, ramdisk, supervise};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use ringfence_abi::layout::{IMAGE, MAILBOX, PAGE_SIZE, STACK_TOP};
use ringfence_abi::manifest::{Kind, Manifest, Policy};
use ringfence_abi::service::Refusal;
use ringfence_abi::upcall::{EXIT, INIT};
use ringfence_core::extent::{Extent, align_up};
use ringfence_core::module::{Module, ModuleError, Value};
use spin::Mutex;

/// A module file.
#[derive(Debug, Clone)]
pub struct File {
    /// Its name without `.rfm`.
    pub name: String,
    /// Its content.
    pub bytes: Content,
}

/// The content of a module file.
#[derive(Debug, Clone)]
pub enum Content {
    /// As it is in the ramdisk.
    Ramdisk(&'static [u8]),
    /// Made by the kernel.
    Made(Arc<[u8]>),
}

impl core::ops::Deref for Content {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Content::Ramdisk(bytes) => bytes,
            Content::Made(bytes) => bytes,
        }
    }
}

static LOADED: Mutex<Vec<Handle>> = Mutex::new(Vec::new());

/// Why a module is not loaded, or not unloaded.
#[derive(Debug)]
pub enum LoadError {
    /// There is no such file in the ramdisk.
    NoFile(String),
    /// The file is refused.
    Refused(ModuleError),
    /// It says that it is called this, and its file is called otherwise.
    Misnamed(String),
    /// Its code could load SS at this place, which QEMU's TCG would take for ring 0.
    LoadsSs(String),
    /// All slots are taken.
    NoSlot,
    /// There is not enough memory.
    NoMemory,
    /// Its budgets come to so many frames, more than one module may have here.
    Budget(u64),
    /// No PCI function that it drives is free.
    NoDevice,
    /// Its `init` failed; the last call of a service that was refused it by then.
    Init(UpcallError, Option<Call>),
    /// The instruction to watch does not lie in the image.
    Outside,
    /// It does not offer what the driver before it offered.
    Different,
    /// No such module is loaded.
    NotLoaded(String),
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LoadError::NoFile(name) => write!(f, "there is no module '{name}' in the ramdisk"),
            LoadError::Refused(error) => write!(f, "refused: {error}"),
            LoadError::Misnamed(name) => {
                write!(
                    f,
                    "refused: the module in this file is called '{name}', and what is trusted goes by the file's name"
                )
            }
            LoadError::LoadsSs(place) => write!(
                f,
                "refused: it could load SS, which QEMU's TCG takes for ring 0 (limits {} lets it in)\n    at {place}",
                crate::limits::SS_LOADS.name
            ),
            LoadError::NoSlot => write!(f, "all {} slots are taken", ringfence_abi::layout::MAX_DOMAINS),
            LoadError::NoMemory => write!(f, "out of memory"),
            LoadError::Budget(frames) => {
                let [has, most] = [*frames, frames::most_of_one()].map(|frames| frames * PAGE_SIZE / 1024);
                write!(f, "refused: its budgets come to {has} KiB, and a module may have {most} KiB of this memory")
            }
            LoadError::NoDevice => write!(f, "no free device that it drives"),
            LoadError::Init(error, None) => write!(f, "init: {error}"),
            LoadError::Init(error, Some(call)) => write!(f, "init: {error}\n    after {call}"),
            LoadError::Outside => write!(f, "the instruction to watch does not lie in the image"),
            LoadError::Different => write!(f, "it does not offer what the driver before it offered"),
            LoadError::NotLoaded(name) => write!(f, "no module '{name}' is loaded"),
        }
    }
}

impl From<OutOfMemory> for LoadError {
    fn from(_: OutOfMemory) -> LoadError {
        LoadError::NoMemory
    }
}

/// All loaded modules.
pub fn loaded() -> Vec<Handle> {
    LOADED.lock().clone()
}

/// The loaded module called `name`.
pub fn find(name: &str) -> Result<Handle, LoadError> {
    let found = loaded().into_iter().find(|handle| handle.lock().name == name);
    found.ok_or_else(|| LoadError::NotLoaded(name.to_string()))
}

/// The module file `name` in the ramdisk.
pub fn file(name: &str) -> Result<File, LoadError> {
    ramdisk::modules().find(|file| file.name == name).ok_or_else(|| LoadError::NoFile(name.to_string()))
}

/// Loads a module into `ring` and runs its `init`. On any error nothing of it stays.
pub fn load(file: &File, ring: Ring) -> Result<Handle, LoadError> {
    load_for(file, ring, None)
}

/// The same, for `function` if one is given: any that it drives otherwise.
fn load_for(file: &File, ring: Ring, function: Option<&'static Function>) -> Result<Handle, LoadError> {
    admit(file)?;
    // A driver that nobody knows yet is not restarted: its report is due now.
    let handle = start(file, ring, function, None, None).inspect_err(|_| fault::print_pending())?;
    LOADED.lock().push(handle.clone());
    crate::net::attach(&handle);
    crate::scsi::attach(&handle);
    Ok(handle)
}

/// Maps a module, in the place of a driver that was ended if one is given, and runs its `init`; nobody knows it yet. On
/// any error nothing of it stays.
fn start(
    file: &File,
    ring: Ring,
    function: Option<&'static Function>,
    dead: Option<&Handle>,
    watched: Option<u64>,
) -> Result<Handle, LoadError> {
    let module = Module::parse(&file.bytes).map_err(LoadError::Refused)?;
    let device = match function {
        Some(function) => Some(Device::take(function).ok_or(LoadError::NoDevice)?),
        None => take_device(&module.manifest)?,
    };
    let mut domain = map(file, module, device, dead.map(|dead| dead.lock()).as_deref_mut())?;
    match supervise::distrust(&domain).filter(|_| ring == Ring::Trusted) {
        Some(why) => log::warn!("{}: loaded into ring 1: {why}", domain.name),
        None => domain.set_ring(ring),
    }
    if let Some(offset) = watched {
        if offset >= domain.image_bytes {
            return Err(LoadError::Outside);
        }
        watch::set(domain.base() + IMAGE + offset);
    }
    domain.traced = trace::traces(&domain.name);
    domain.upcall(INIT, [0; 3]).map_err(|error| {
        let refused = |call: &&Call| call.result.is_some_and(|result| Refusal::from_result(result).is_some());
        LoadError::Init(error, domain.calls.iter().filter(refused).last().copied())
    })?;
    Ok(Arc::new(Mutex::new(domain)))
}

/// Refuses a file whose module has another name: two files could pass for one module, and one of them for trusted. And one that
/// could load SS at more places than a person allows, if the CPU is QEMU's TCG ([`ringfence_core::stack_segment`]). Every file is
/// asked for once, before it is loaded for the first time.
pub fn admit(file: &File) -> Result<(), LoadError> {
    let module = Module::parse(&file.bytes).map_err(LoadError::Refused)?;
    if module.manifest.name() != file.name {
        return Err(LoadError::Misnamed(module.manifest.name().to_string()));
    }
    if !cpu::is_tcg() {
        return Ok(());
    }
    let allowed = usize::try_from(SS_LOADS.get()).unwrap_or(usize::MAX);
    match module.loads_of_ss().nth(allowed) {
        Some(offset) => Err(LoadError::LoadsSs(report::place_in(file, offset))),
        None => Ok(()),
    }
}

/// Puts an instance of `file` in place of a driver that was ended; what is above the old one is above the new one then. On an
/// error the old one stays where it was, with all it has but the pages that the successor had taken over.
/// `file` must have been admitted ([`admit`]). `watched` is the offset in the image of an instruction to watch from the start
/// ([`watch`]).
pub fn replace(dead: &Handle, file: &File, ring: Ring, watched: Option<u64>) -> Result<Handle, LoadError> {
    if !loaded().iter().any(|other| Arc::ptr_eq(other, dead)) {
        return Err(LoadError::NotLoaded(dead.lock().name.clone()));
    }
    let function = {
        let mut domain = dead.lock();
        quiesce(&mut domain);
        if !domain.space.is_set_aside() {
            frames::take_back_promise(core::mem::take(&mut domain.promised));
        }
        domain.function
    };
    let offers = |handle: &Handle| {
        let domain = handle.lock();
        (domain.net.is_some(), domain.scsi.is_some())
    };
    let fresh = start(file, ring, function, Some(dead), watched)
        .and_then(|fresh| if offers(dead) == offers(&fresh) { Ok(fresh) } else { Err(LoadError::Different) });
    let fresh = fresh.inspect_err(|_| {
        let mut domain = dead.lock();
        domain.space.return_to_slot();
        if domain.space.is_set_aside() {
            return;
        }
        // What was just taken back, and nobody else has asked for anything in between.
        let frames = budget(&domain.manifest, domain.image_bytes);
        domain.promised = frames::promise(frames).map_or(0, |()| frames);
    })?;
    {
        let (mut old, mut new) = (dead.lock(), fresh.lock());
        new.faults_at = core::mem::take(&mut old.faults_at);
        new.policy = old.policy;
        // It has been replaced: nobody is to do that again.
        old.stopped = true;
        trace::note(&new, || What::Replaced);
    }
    if let Some(place) = LOADED.lock().iter_mut().find(|other| Arc::ptr_eq(other, dead)) {
        *place = fresh.clone();
    }
    crate::net::replace(dead, &fresh);
    crate::scsi::replace(dead, &fresh);
    Ok(fresh)
}

/// Takes a free function that `manifest` names; none if it names none.
fn take_device(manifest: &Manifest) -> Result<Option<Device>, LoadError> {
    if manifest.pci_ids().next().is_none() {
        return Ok(None);
    }
    let drives = |function: &&Function| function.is_device && manifest.pci_ids().any(|id| id == function.id);
    let device = pci::functions().iter().filter(drives).find_map(Device::take);
    device.map(Some).ok_or(LoadError::NoDevice)
}

/// Maps a module: image, stack, mailbox, stubs and gates. Relocations are applied before anyone else sees it. It takes over
/// what it can of a driver that was ended, if one is given.
fn map(
    file: &File,
    module: Module,
    device: Option<Device>,
    mut dead: Option<&mut Domain>,
) -> Result<Domain, LoadError> {
    // The device is in the domain from the start, so that every early return releases it.
    let mut domain = Domain {
        name: dead.as_ref().map_or_else(|| free_name(module.manifest.name()), |dead| dead.name.clone()),
        file: file.clone(),
        manifest: module.manifest,
        imports: module.imports,
        space: match Space::new(dead.as_mut().map(|dead| &mut dead.space)) {
            Ok(Some(space)) => space,
            refused => {
                // It has not been a bus master, so it does stop.
                let _ = device.map(Device::stop);
                return Err(if refused.is_err() { LoadError::NoMemory } else { LoadError::NoSlot });
            }
        },
        entry: module.entry,
        image_bytes: module.len_bytes,
        function: device.as_ref().map(Device::function),
        device,
        heap_bytes: 0,
        dma: Vec::new(),
        dma_kept: Vec::new(),
        dma_next: 0,
        net: None,
        scsi: None,
        upcall: INIT,
        calls: CallLog::default(),
        traced: false,
        fault: None,
        upcalls: 0,
        turn: poll::Turn::default(),
        log_left: 0,
        log_dropped: 0,
        policy: module.manifest.policy().unwrap_or(Policy::Stop),
        stop_ticks: 0,
        faults_at: Vec::new(),
        restart_at: None,
        given_up: false,
        stopped: false,
        promised: 0,
    };
    let frames = budget(&domain.manifest, domain.image_bytes);
    if frames > frames::most_of_one() {
        return Err(LoadError::Budget(frames));
    }
    frames::promise(frames)?;
    domain.promised = frames;
    let slot = domain.base();
    let image = slot + IMAGE;
    let space = &mut domain.space;
    for segment in &module.segments {
        let flags = match (segment.writable, segment.executable) {
            (true, _) => rights::WRITE,
            (false, true) => rights::EXECUTE,
            (false, false) => rights::READ,
        };
        if !segment.writable
            && let Some(dead) = &mut dead
            && space.take_over(&mut dead.space, segment, flags)?
        {
            continue;
        }
        space.map_fresh(image + segment.pages.start, segment.pages.len_bytes, flags)?;
        space.write(image + segment.start, segment.bytes);
    }
    for relocation in &module.relocations {
        let value = match relocation.value {
            Value::Image(offset) => image + offset,
            Value::Stub(service) => space.stub(service),
        };
        space.write(image + relocation.at, &value.to_le_bytes());
    }
    if let Some(relro) = module.relro {
        space.protect(image + relro.start, relro.len_bytes, rights::READ);
    }
    let stack = align_up(u64::from(module.manifest.stack_bytes), PAGE_SIZE).ok_or(LoadError::NoMemory)?;
    domain.manifest.stack_bytes = stack as u32;
    space.map_fresh(slot + STACK_TOP - stack, stack, rights::WRITE)?;
    space.map_fresh(slot + MAILBOX, PAGE_SIZE, rights::WRITE)?;
    space.set_grants(module.imports);
    space.set_ring(Ring::Sandboxed, module.imports);
    Ok(domain)
}

/// Frames that a module can have: all that its manifest allows it, its kind's queues, and its image.
fn budget(manifest: &Manifest, image_bytes: u64) -> u64 {
    let queues = manifest.kind().map_or(0, Kind::queue_bytes);
    let bytes = [manifest.heap_bytes, manifest.dma_bytes, manifest.stack_bytes].map(u64::from);
    bytes.iter().chain(&[queues, image_bytes]).map(|bytes| bytes.div_ceil(PAGE_SIZE)).sum()
}

/// `name`, or `name.2`, `name.3`... if it is taken.
fn free_name(name: &str) -> String {
    let taken = |candidate: &str| loaded().iter().any(|handle| handle.lock().name == candidate);
    let numbered = (2..).map(|number| format!("{name}.{number}"));
    core::iter::once(name.to_string()).chain(numbered).find(|candidate| !taken(candidate)).unwrap_or_default()
}

/// Stops a driver and frees all it had.
pub fn unload(name: &str) -> Result<(), LoadError> {
    let handle = find(name)?;
    crate::net::detach(&handle);
    crate::scsi::detach(&handle);
    let mut domain = handle.lock();
    if domain.is_alive()
        && let Err(error) = domain.upcall(EXIT, [0; 3])
    {
        log::warn!("{name}: exit: {error}");
    }
    domain.stopped = true;
    quiesce(&mut domain);
    drop(domain);
    forget(&handle);
    Ok(())
}

/// Stops all drivers.
pub fn unload_all() {
    for handle in loaded() {
        let name = handle.lock().name.clone();
        if let Err(error) = unload(&name) {
            log::warn!("{error}");
        }
    }
}

fn forget(handle: &Handle) {
    LOADED.lock().retain(|other| !Arc::ptr_eq(other, handle));
}

/// Loads, into ring 1, a driver for each PCI function that a module in the ramdisk drives and no domain has.
pub fn autoload() {
    for function in pci::functions() {
        if device::state(function.address) != device::State::Free {
            continue;
        }
        let drives = |file: &File| {
            Module::parse(&file.bytes).is_ok_and(|module| module.manifest.pci_ids().any(|id| id == function.id))
        };
        let Some(file) = ramdisk::modules().find(drives) else { continue };
        match load_for(&file, Ring::Sandboxed, Some(function)) {
            Ok(handle) => log::info!("{}: loaded into ring 1 for {}", handle.lock().name, function.address),
            Err(error) => log::error!("{} for {}: {error}", file.name, function.address),
        }
    }
}

/// Stops the device of a driver that was ended, and tells those who wait for it.
pub fn quiesce(domain: &mut Domain) {
    domain.stop_device();
    if let Some(scsi) = &mut domain.scsi {
        scsi.fail_all();
    }
    crate::net::wake();
    crate::supervise::note();
}

/// Ends a driver that does not run right now: for what it left in a queue or undone, or because a person says so.
pub fn condemn(handle: &Handle, cause: Cause) {
    let mut domain = handle.lock();
    domain.condemn(cause);
    quiesce(&mut domain);
}

/// Which module an address belongs to, and where in its image it is, for a panic: it takes no locks that may be held.
pub struct Owner(pub u64);

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_in = |domain: &Domain| domain.slot_extent().encloses(Extent::new(self.0, 1));
        let write = |f: &mut fmt::Formatter<'_>, domain: &Domain| {
            write!(f, "{}+{:#x}", domain.file.name, self.0.wrapping_sub(domain.base() + IMAGE))
        };
        if let Some(loaded) = LOADED.try_lock() {
            for handle in loaded.iter() {
                // The one that runs is locked by who runs it.
                if let Some(domain) = handle.try_lock().filter(|domain| is_in(domain)) {
                    return write(f, &domain);
                }
            }
        }
        crate::domain::upcall::with_current(|domain| match is_in(domain) {
            true => write(f, domain),
            false => f.write_str("nobody's"),
        })
        .unwrap_or_else(|| f.write_str("nobody's"))
    }
}
