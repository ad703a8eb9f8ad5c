//! From a module's file to a domain that is mapped and has not run yet.

use super::error::LoadError;
use crate::domain::calls::CallLog;
use crate::domain::device::Device;
use crate::domain::sleep::Sleep;
use crate::domain::turn::Turn;
use crate::domain::upcall::budget_ticks;
use crate::domain::witness::Witnessed;
use crate::domain::{Domain, Ring, registry};
use crate::file::File;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use hw::memory::frames;
use hw::space::{Space, rights};
use ringfence_abi::layout::{IMAGE, MAILBOX, PAGE_SIZE, slot_base};
use ringfence_abi::manifest::{Kind, Manifest, Policy};
use ringfence_abi::upcall::{Events, INIT};
use ringfence_core::extent::align_up;
use ringfence_core::life::Life;
use ringfence_core::module::{Module, Value};
use ringfence_core::parameter::{self, Declared};
use ringfence_core::timer::Timer;
use zerocopy::IntoBytes;

/// Maps a module: image, stack, mailbox, stubs and gates. If `dead` is given, the domain takes over
/// the name, the slot and the read-only pages of that ended driver. `parameters` come from a
/// person, each as `name=value`.
pub fn map(
    file: &File,
    module: Module,
    parameters: &[String],
    device: Option<Device>,
    mut dead: Option<&mut Domain>,
) -> Result<Domain, LoadError> {
    // The device is in the domain from the start, so that every early return releases it.
    let mut domain = Domain {
        name: dead.as_ref().map_or_else(|| free_name(module.manifest.name()), |dead| dead.name.clone()),
        file: file.clone(),
        manifest: module.manifest,
        parameters: parameters.to_vec(),
        imports: module.imports,
        space: match Space::new(module.domain, dead.as_mut().map(|dead| &mut dead.space)) {
            Ok(Some(space)) => space,
            refused => {
                // The device has not been a bus master, so it does stop.
                let _ = device.map(|device| device.stop(None));
                return Err(if refused.is_err() { LoadError::NoMemory } else { LoadError::NoSlot });
            }
        },
        entry: 0,
        budget: budget_ticks(module.manifest.upcall_ms),
        image_bytes: module.len_bytes,
        drives: device.as_ref().map(Device::which),
        device,
        heap_bytes: 0,
        dma: Vec::new(),
        dma_kept: Vec::new(),
        budget_blamed: false,
        recipe_blamed: false,
        dma_next: 0,
        offer: None,
        used: None,
        upcall: INIT,
        events: Events::empty(),
        calls: CallLog::default(),
        trace: None,
        upcalls: 0,
        restarts: 0,
        probation: None,
        last_words: String::new(),
        debugged: Default::default(),
        lies_there: String::new(),
        turn: Turn::default(),
        timer: Timer::default(),
        sleep: Sleep::default(),
        answer: String::new(),
        commands: Vec::new(),
        log_left: 0,
        log_dropped: 0,
        life: Life::new(module.manifest.policy().unwrap_or(Policy::Stop)),
        stop_ticks: 0,
        promised: 0,
        witnessed: Witnessed::default(),
    };
    domain.entry = domain.base() + IMAGE + module.entry;
    let frames = budget(&domain.manifest, domain.image_bytes);
    if frames > frames::most_of_one() {
        return Err(LoadError::Budget(frames));
    }
    frames::promise(frames)?;
    domain.promised = frames;
    let given = parameter::set(&module.parameters, parameters.iter().map(String::as_str));
    let given = given.map_err(LoadError::Parameter)?;
    fill(&mut domain.space, &module, dead.map(|dead| &mut dead.space))?;
    for Declared { at, parameter } in given {
        domain.space.write(domain.base() + IMAGE + at, parameter.as_bytes());
    }
    let stack = align_up(u64::from(module.manifest.stack_bytes), PAGE_SIZE).ok_or(LoadError::NoMemory)?;
    domain.manifest.stack_bytes = stack as u32;
    let (slot, space) = (domain.base(), &mut domain.space);
    space.map_stack(stack)?;
    space.map_fresh(slot + MAILBOX, PAGE_SIZE, rights::WRITE)?;
    space.set_grants(module.imports);
    space.set_ring(Ring::Sandboxed, module.imports);
    Ok(domain)
}

/// Maps the image and relocates it. Segments that are never written are taken over from a driver
/// that was ended, if it still has them.
fn fill(space: &mut Space, module: &Module, mut dead: Option<&mut Space>) -> Result<(), LoadError> {
    let image = slot_base(space.slot()) + IMAGE;
    for segment in &module.segments {
        let flags = match (segment.writable, segment.executable) {
            (true, _) => rights::WRITE,
            (false, true) => rights::EXECUTE,
            (false, false) => rights::READ,
        };
        if !segment.writable
            && let Some(dead) = &mut dead
            && space.take_over(dead, segment, flags)?
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
    for place in &module.zeros {
        space.write(image + place, &0u64.to_le_bytes());
    }
    if let Some(relro) = module.relro {
        space.protect(image + relro.start, relro.len_bytes, rights::READ);
    }
    Ok(())
}

/// Returns the number of frames that a module can have: for its manifest's budgets, its kind's
/// queues, and its image.
pub fn budget(manifest: &Manifest, image_bytes: u64) -> u64 {
    let queues = manifest.kind().map_or(0, Kind::queue_bytes) + manifest.uses().map_or(0, Kind::used_bytes);
    let bytes = [manifest.heap_bytes, manifest.dma_bytes, manifest.stack_bytes].map(u64::from);
    bytes.iter().chain(&[queues, image_bytes]).map(|bytes| bytes.div_ceil(PAGE_SIZE)).sum()
}

/// Returns `name`, or `name.2`, `name.3`... if that is taken.
pub(super) fn free_name(name: &str) -> String {
    let numbered = (2..).map(|number| format!("{name}.{number}"));
    core::iter::once(name.to_string())
        .chain(numbered)
        .find(|candidate| !registry::is_taken(candidate))
        .unwrap_or_default()
}
