//! PCI functions: enumeration, and access to configuration space by the mechanism of ports 0xcf8
//! and 0xcfc (PCI Local Bus Specification 3.0, 3.2.2.3.2).

use crate::arch::port::IoPort;
use crate::memory::registers::Registers;
use alloc::vec::Vec;
use core::ops::RangeInclusive;
use pci_types::{
    Bar, CommandRegister, ConfigRegionAccess, EndpointHeader, HeaderType, MAX_BARS, PciAddress, PciHeader,
    PciPciBridgeHeader,
};
use ringfence_abi::manifest::PciId;
use ringfence_core::extent::Extent;
use ringfence_core::pci::{MsiX, capabilities, port_count};
use spin::{Mutex, Once};

/// Configuration space, through the two ports.
#[derive(Debug, Clone, Copy)]
pub struct ConfigSpace;

static PORTS: Mutex<(IoPort<u32>, IoPort<u32>)> = Mutex::new((IoPort::new(0xcf8), IoPort::new(0xcfc)));

impl ConfigSpace {
    /// Reads the 32 bits at `offset`, rounded down to a multiple of 4; reads ones if there is no
    /// function.
    fn read32(address: PciAddress, offset: u16) -> u32 {
        let ports = PORTS.lock();
        ports.0.write(selector(address, offset));
        ports.1.read()
    }

    /// Writes the 32 bits at `offset`, rounded down to a multiple of 4.
    fn write32(address: PciAddress, offset: u16, value: u32) {
        let ports = PORTS.lock();
        ports.0.write(selector(address, offset));
        ports.1.write(value);
    }
}

impl ConfigRegionAccess for ConfigSpace {
    unsafe fn read(&self, address: PciAddress, offset: u16) -> u32 {
        ConfigSpace::read32(address, offset)
    }

    unsafe fn write(&self, address: PciAddress, offset: u16, value: u32) {
        ConfigSpace::write32(address, offset, value);
    }
}

fn selector(address: PciAddress, offset: u16) -> u32 {
    1 << 31
        | u32::from(address.bus()) << 16
        | u32::from(address.device()) << 11
        | u32::from(address.function()) << 8
        | u32::from(offset & 0xfc)
}

/// A PCI function as it was found at boot.
///
/// Only [`init`] makes values of this type, so their BARs can be trusted to be where registers are
/// mapped.
#[derive(Debug)]
#[non_exhaustive]
pub struct Function {
    /// Bus, device and function number.
    pub address: PciAddress,
    /// Vendor and device id.
    pub id: PciId,
    /// Base class, sub-class, programming interface.
    pub class: (u8, u8, u8),
    /// Whether a driver can have the function: it is an endpoint, and no bridge of any kind.
    pub is_device: bool,
    /// Base address registers.
    pub bars: [Option<Bar>; MAX_BARS],
    /// How many ports an I/O BAR has; 0 for the other BARs.
    pub port_counts: [u32; MAX_BARS],
    /// The interrupt line to which firmware routed the function, if it has one.
    pub line: Option<u8>,
}

impl Function {
    /// Reads the 32 bits of configuration space at `offset`, rounded down to a multiple of 4.
    pub fn read(&self, offset: u16) -> u32 {
        ConfigSpace::read32(self.address, offset)
    }

    /// Sets the bits of `set` in the message control of the function's MSI-X capability, if it has
    /// one, and clears the other bits of `of`.
    pub fn control_messages(&self, of: u32, set: u32) {
        if let Some(MsiX { at, .. }) = MsiX::find(|offset| self.read(offset)) {
            ConfigSpace::write32(self.address, at, self.read(at) & !of | set);
        }
    }

    /// Returns the `len_bytes` bytes of registers at `offset` of memory BAR `bar`. `None` if the
    /// BAR does not have them, or the kernel does not have them mapped.
    pub fn registers(&self, bar: u8, offset: u64, len_bytes: u64) -> Option<Registers> {
        let (start, all_bytes) = self.bars.get(usize::from(bar))?.as_ref().and_then(memory_extent)?;
        let is_inside = offset.checked_add(len_bytes).is_some_and(|end| end <= all_bytes);
        is_inside.then(|| Registers::at(start.checked_add(offset)?, len_bytes)).flatten()
    }

    /// Sets the bits of `on` in the command register and clears those of `off`.
    pub fn change_command(&self, on: CommandRegister, off: CommandRegister) {
        PciHeader::new(self.address).update_command(ConfigSpace, |command| (command | on) - off);
    }
}

static FUNCTIONS: Once<Vec<Function>> = Once::new();
static BRIDGES: Once<Vec<Bridge>> = Once::new();

/// A PCI-PCI bridge as it was found at boot.
struct Bridge {
    address: PciAddress,
    /// The buses below the bridge.
    below: RangeInclusive<u8>,
    /// The bridge's type in PCI Express, if it belongs to it (device/port type, PCI Express Base
    /// Specification 3.0, 7.8.2).
    express: Option<u32>,
}

/// Types of root, upstream and downstream ports, which pass on the id of a requester; and the type
/// of bridges from PCI Express to PCI.
const EXPRESS_PORTS: RangeInclusive<u32> = 4..=6;
const EXPRESS_TO_PCI: u32 = 7;

/// Returns the buses below the bridge at `address`.
pub fn buses_below(address: PciAddress) -> Option<RangeInclusive<u8>> {
    BRIDGES.get()?.iter().find(|bridge| bridge.address == address).map(|bridge| bridge.below.clone())
}

/// Returns the requester of accesses by the function at `address`: the function itself, or a
/// conventional bridge above it. If there are several such bridges, the bridge nearest to the root
/// counts (PCI Express to PCI/PCI-X Bridge Specification 1.0, 2.3).
pub fn requester(address: PciAddress) -> PciAddress {
    let is_conventional = |bridge: &&Bridge| bridge.express.is_none_or(|kind| !EXPRESS_PORTS.contains(&kind));
    let above = BRIDGES.get().into_iter().flatten().filter(|bridge| bridge.below.contains(&address.bus()));
    match above.filter(is_conventional).max_by_key(|bridge| bridge.below.len()) {
        None => address,
        Some(bridge) if bridge.express == Some(EXPRESS_TO_PCI) => PciAddress::new(0, *bridge.below.start(), 0, 0),
        Some(bridge) => bridge.address,
    }
}

/// Looks for functions on the buses that firmware names, or on all possible buses if it names none.
/// **Each bus that is below no bridge is a root bus**: machines with several host bridges have
/// several.
pub fn init(named: &[RangeInclusive<u8>]) {
    let mut scan = Scan { found: Vec::new(), bridges: Vec::new(), seen: [false; BUSES] };
    let buses = if named.is_empty() { &[0..=u8::MAX] } else { named };
    buses.iter().cloned().flatten().for_each(|bus| scan.bus(bus));
    scan.found.sort_by_key(|function| function.address);
    FUNCTIONS.call_once(|| scan.found);
    BRIDGES.call_once(|| scan.bridges);
}

/// Returns all functions that were found at boot, in the order of their addresses.
pub fn functions() -> &'static [Function] {
    FUNCTIONS.get().map_or(&[], Vec::as_slice)
}

const BUSES: usize = 256;

/// The functions and bridges found so far, and the buses that were scanned.
struct Scan {
    found: Vec<Function>,
    bridges: Vec<Bridge>,
    seen: [bool; BUSES],
}

impl Scan {
    /// Scans `bus` and the buses below it, once.
    fn bus(&mut self, bus: u8) {
        if self.seen.get_mut(usize::from(bus)).is_none_or(|seen| core::mem::replace(seen, true)) {
            return;
        }
        for device in 0..32 {
            let first = PciHeader::new(PciAddress::new(0, bus, device, 0));
            if first.id(ConfigSpace).0 == PciId::NONE.vendor {
                continue;
            }
            let functions = if first.has_multiple_functions(ConfigSpace) { 8 } else { 1 };
            (0..functions).for_each(|function| self.function(PciAddress::new(0, bus, device, function)));
        }
    }

    fn function(&mut self, address: PciAddress) {
        const BRIDGE: u8 = 6;
        let header = PciHeader::new(address);
        let (vendor, device) = header.id(ConfigSpace);
        if vendor == PciId::NONE.vendor {
            return;
        }
        let (_, base, sub, interface) = header.revision_and_class(ConfigSpace);
        let mut bars = [const { None }; MAX_BARS];
        let mut port_counts = [0; MAX_BARS];
        let mut line = None;
        let header_type = header.header_type(ConfigSpace);
        match header_type {
            HeaderType::Endpoint => {
                if let Some(endpoint) = EndpointHeader::from_header(header, ConfigSpace) {
                    (bars, port_counts) = read_bars(&endpoint);
                    let (pin, routed) = endpoint.interrupt(ConfigSpace);
                    line = (pin != 0 && routed < crate::arch::line::WIRES).then_some(routed);
                }
            }
            HeaderType::PciPciBridge => {
                if let Some(bridge) = PciPciBridgeHeader::from_header(header, ConfigSpace) {
                    let below = bridge.secondary_bus_number(ConfigSpace);
                    // Firmware numbers buses so; 0 means that it has not set up the bridge.
                    if below > address.bus() {
                        self.bridges.push(Bridge {
                            address,
                            below: below..=bridge.subordinate_bus_number(ConfigSpace),
                            express: express_kind(address),
                        });
                        self.bus(below);
                    }
                }
            }
            _ => {}
        }
        self.found.push(Function {
            address,
            id: PciId { vendor, device },
            class: (base, sub, interface),
            is_device: matches!(header_type, HeaderType::Endpoint) && base != BRIDGE,
            bars,
            port_counts,
            line,
        });
    }
}

/// Returns the type of the bridge at `address` in PCI Express.
fn express_kind(address: PciAddress) -> Option<u32> {
    const EXPRESS: u32 = 0x10;
    capabilities(|offset| ConfigSpace::read32(address, offset))
        .into_iter()
        .find(|(_, head)| head & 0xff == EXPRESS)
        .map(|(_, head)| head >> 20 & 0xf)
}

/// Reads the BARs. Their sizes must be probed, so decoding is off meanwhile.
fn read_bars(endpoint: &EndpointHeader) -> ([Option<Bar>; MAX_BARS], [u32; MAX_BARS]) {
    let mut header = endpoint.header();
    let decode = CommandRegister::IO_ENABLE | CommandRegister::MEMORY_ENABLE;
    let before = header.command(ConfigSpace);
    header.update_command(ConfigSpace, |command| command - decode);
    let mut bars = [const { None }; MAX_BARS];
    let mut port_counts = [0; MAX_BARS];
    let mut upper_half = false;
    for ((slot, bar), port_count) in (0u8..).zip(bars.iter_mut()).zip(port_counts.iter_mut()) {
        if core::mem::take(&mut upper_half) {
            continue;
        }
        *bar = endpoint.bar(slot, ConfigSpace);
        upper_half = matches!(bar, Some(Bar::Memory64 { .. }));
        if let Some(Bar::Io { .. }) = bar {
            *port_count = probe_ports(endpoint, slot);
        }
    }
    header.update_command(ConfigSpace, |_| before);
    (bars, port_counts)
}

/// Probes how many ports I/O BAR `slot` has (PCI 3.0, 6.2.5.1), which `pci_types` does not tell.
fn probe_ports(endpoint: &EndpointHeader, slot: u8) -> u32 {
    const FIRST_BAR: u16 = 0x10;
    let (address, offset) = (endpoint.header().address(), FIRST_BAR + 4 * u16::from(slot));
    // Decoding is off, so the register can hold any value for a moment.
    let before = ConfigSpace::read32(address, offset);
    ConfigSpace::write32(address, offset, u32::MAX);
    let mask = ConfigSpace::read32(address, offset);
    ConfigSpace::write32(address, offset, before);
    port_count(mask)
}

/// Returns whether `pa` lies in a memory BAR of `function`.
pub fn has_registers(function: &Function, pa: u64) -> bool {
    let mut extents = function.bars.iter().flatten().filter_map(memory_extent);
    extents.any(|(start, len_bytes)| Extent::new(start, len_bytes).contains(pa))
}

/// Returns the first address and the length in bytes of a memory BAR.
pub fn memory_extent(bar: &Bar) -> Option<(u64, u64)> {
    match *bar {
        Bar::Memory32 { address, size, .. } => Some((u64::from(address), u64::from(size))),
        Bar::Memory64 { address, size, .. } => Some((address, size)),
        Bar::Io { .. } => None,
    }
}
