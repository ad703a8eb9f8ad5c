//! The accesses of drivers to their devices' registers, noted in their traces.
//!
//! [`hw::space::watched`] lets the kernel see an access before and after its instruction. Here the
//! instruction gives the access's direction, width and value.

use super::hardware::Region;
use super::report::code;
use super::trace::{What, note};
use super::{Domain, Ring};
use hw::arch::frame::TrapFrame;
use hw::arch::handlers::Verdict;
use hw::space::watched::{Accesses, Place};
use ringfence_abi::layout::IMAGE;
use ringfence_core::access::{self, Access, Direction};
use ringfence_core::extent::Extent;
use ringfence_core::vector::{DEBUG, GENERAL_PROTECTION, PAGE_FAULT};

/// The bit of a page fault's error code for a page that is present but does not allow the access.
const PRESENT: u64 = 1;

/// Registers of a device that a trace watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Registers {
    /// Whether they are ports, and not in memory.
    pub are_ports: bool,
    /// Their region, if not all regions are watched.
    pub bar: Option<u8>,
    /// Their part of the region.
    pub part: Extent,
}

impl Domain {
    /// Has the accesses to the device's registers noted, if the domain's trace watches some, and no
    /// others.
    pub fn watch_registers(&mut self) {
        self.space.end_watch();
        if self.trace.as_ref().is_some_and(|trace| trace.registers().is_some()) {
            access::prepare();
        }
        let count = self.device.as_ref().map_or(0, |device| device.mapped.len());
        (0..count).for_each(|index| self.watch_region(index));
    }

    /// Has the accesses to region `index` noted, if the driver has mapped it and the domain's trace
    /// watches it.
    pub(super) fn watch_region(&mut self, index: usize) {
        let Some(wanted) = self.trace.as_ref().and_then(|trace| trace.registers()) else { return };
        let is_wanted = wanted.bar.is_none_or(|bar| usize::from(bar) == index);
        let (Some(start), Some(device)) = (self.region_start(index), &self.device) else { return };
        match device.region(index as u64) {
            Ok(Region::Memory(pages)) if is_wanted && !wanted.are_ports => {
                self.space.watch_registers(Extent::new(start - pages.offset(), pages.len_bytes()));
            }
            Ok(Region::Ports(ports)) if is_wanted && wanted.are_ports => self.space.watch_ports(ports),
            _ => {}
        }
    }

    /// Returns the region that a place is in, and the place's offset there.
    fn region_of(&self, place: Place) -> Option<(usize, u32)> {
        let address = match place {
            Place::Memory(address) => address,
            Place::Port(port) => port.into(),
        };
        let mapped = self.device.as_ref()?.mapped;
        mapped.into_iter().enumerate().find_map(|(index, start)| {
            let offset = address.checked_sub(start?)?;
            (offset < self.region_len(index as u64).ok()?).then_some((index, u32::try_from(offset).ok()?))
        })
    }
}

/// Decides about a driver that an exception has hit: an access that is watched is let through, and
/// noted behind its instruction.
pub fn judge(domain: &mut Domain, frame: &mut TrapFrame, address: Option<u64>) -> Verdict {
    let place = match (frame.vector, address) {
        (DEBUG, _) => return note_accesses(domain, frame),
        _ if !frame.is_in_driver() || domain.ring() == Ring::Trusted => None,
        (PAGE_FAULT, Some(address)) if frame.error_code & PRESENT == 0 => {
            let access = access::to_memory(&code(domain, frame.rip), frame.general(), address);
            Some((Place::Memory(address), access))
        }
        (GENERAL_PROTECTION, _) if frame.error_code == 0 => {
            let code = code(domain, frame.rip);
            let access = access::to_port(&code, frame.general());
            access.map(|(port, access)| (Place::Port(port), access.or_copied(domain, &code, frame.general())))
        }
        _ => None,
    };
    match place {
        Some((place, access)) if domain.space.let_through(place, access, frame) => Verdict::GoesOn,
        _ => Verdict::Ends,
    }
}

/// Notes the accesses of the instruction before this debug exception, if they were let through.
fn note_accesses(domain: &mut Domain, frame: &mut TrapFrame) -> Verdict {
    let Accesses { all, rip, registers, steps } = domain.space.accessed(frame);
    // A driver that steps by itself is ended, watched or not.
    let verdict = if steps || all.is_empty() { Verdict::Ends } else { Verdict::GoesOn };
    let code = code(domain, rip);
    if access::is_over(&code, registers) {
        return verdict;
    }
    for (place, before) in all {
        let value = match place {
            Place::Memory(address) => access::to_memory(&code, frame.general(), address).value,
            Place::Port(_) if before.direction == Direction::Reads => {
                let access = access::to_port(&code, frame.general()).map(|(_, access)| access);
                access.and_then(|access| access.or_copied(domain, &code, registers).value)
            }
            Place::Port(_) => None,
        };
        // The value that was read is in its register only now.
        let access = Access { value: value.or(before.value), ..before };
        let Some((bar, offset)) = domain.region_of(place) else { continue };
        let at = rip.wrapping_sub(domain.base() + IMAGE);
        let is_wanted = domain.trace.as_ref().and_then(|trace| trace.registers()).is_some_and(|wanted| {
            let accessed = Extent::new(offset.into(), access.width_bytes.max(1).into());
            wanted.part.overlaps(accessed)
        });
        if is_wanted {
            note(domain, || What::Register { at, bar: bar as u8, offset, access });
        }
    }
    verdict
}

/// Adds the value of an access that no register has.
trait OrCopied {
    /// Returns the access with the value in the memory that the instruction `code` copies from or
    /// to. `registers` are the general registers before it.
    fn or_copied(self, domain: &Domain, code: &[u8], registers: [u64; 16]) -> Access;
}

impl OrCopied for Access {
    fn or_copied(self, domain: &Domain, code: &[u8], registers: [u64; 16]) -> Access {
        let mut bytes = [0; 8];
        let read = access::copied(code, registers).filter(|start| {
            bytes.get_mut(..self.width_bytes.into()).is_some_and(|bytes| domain.space.read(*start, bytes))
        });
        Access { value: self.value.or(read.map(|_| u64::from_le_bytes(bytes))), ..self }
    }
}
