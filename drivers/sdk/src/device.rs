//! The driver's own PCI function: configuration space, interrupts, registers.
//!
#![doc = "```rust,ignore"]
#![doc = include_str!("../examples/device.rs")]
#![doc = "```"]

use crate::Result;
use crate::service::{self, safe};
use crate::timer;
use core::ptr::NonNull;
use core::time::Duration;
use ringfence_abi::service::Refusal;
#[cfg(not(feature = "fake"))]
use volatile::VolatilePtr;

/// Reads `width_bytes` (1, 2 or 4) bytes of configuration space at `offset`.
pub fn pci_read(offset: u64, width_bytes: u64) -> Result<u32> {
    let value = safe::rf_pci_read(offset, width_bytes)?;
    #[cfg(feature = "record")]
    crate::record::line(format_args!("c {offset:x} {width_bytes:x} {value:x}"));
    Ok(value as u32)
}

/// Lets the device read and write memory.
pub fn enable_dma() -> Result<()> {
    const COMMAND: u64 = 4;
    const BUS_MASTER: u64 = 1 << 2;
    safe::rf_pci_write(COMMAND, 2, BUS_MASTER).map(|_| ())
}

/// Lets the device's interrupts through: from now on, each interrupt polls the driver.
pub fn enable_interrupts() -> Result<()> {
    safe::rf_irq_enable().map(|_| ())
}

/// Gives the device up to `wanted` interrupts of its own (MSI-X) in place of its line, at most
/// [`MAX_VECTORS`](ringfence_abi::upcall::MAX_VECTORS), and returns their number. The number is 0
/// if the device or the machine has no such interrupts; the device then uses its line. Call this
/// before [`enable_interrupts`]. The driver itself tells the device which interrupt serves which
/// purpose.
pub fn vectors(wanted: u64) -> Result<u64> {
    let given = safe::rf_irq_vectors(wanted)?;
    #[cfg(feature = "record")]
    crate::record::line(format_args!("vectors {wanted:x} {given:x}"));
    Ok(given)
}

/// Lets interrupts through again, for a driver whose reply to the poll did not acknowledge the
/// interrupt.
pub fn acknowledge_interrupt() -> Result<()> {
    safe::rf_irq_ack().map(|_| ())
}

/// The longest wait without sleeping: less than a tick of the kernel's clock, because a sleep takes
/// at least one tick.
const AT_ONCE: Duration = Duration::from_millis(1);

/// Waits until `is_done` returns `true`, at most for `limit`. Most devices finish at once; for a
/// slower one the driver sleeps between two checks ([`timer::sleep`]).
///
/// # Errors
/// [`Refusal::NoAnswer`] when `limit` has passed. The caller logs which step the device does not
/// finish.
pub fn wait_until(limit: Duration, mut is_done: impl FnMut() -> bool) -> Result<()> {
    let began = service::time_ns();
    let deadline = began.saturating_add(limit.as_nanos() as u64);
    while !is_done() {
        let now = service::time_ns();
        if now > deadline {
            return Err(Refusal::NoAnswer);
        }
        if now - began > AT_ONCE.as_nanos() as u64 {
            timer::sleep(AT_ONCE);
        }
    }
    Ok(())
}

/// Waits for `time`: asleep, unless `time` is so short that a sleep would take longer.
pub fn pause(time: Duration) {
    if time > AT_ONCE {
        timer::sleep(time);
    } else {
        // The condition is never true, so this waits for all of `time`.
        let _ = wait_until(time, || false);
    }
}

/// Returns the offset and the id of each capability in configuration space (PCI 3.0, 6.7).
pub fn capabilities() -> impl Iterator<Item = (u64, u8)> {
    const POINTER: u64 = 0x34;
    const MAX: usize = 48;
    let read = |offset: u64| pci_read(offset, 1).unwrap_or(0) as u8;
    let next = move |offset: u8| (offset & 0xfc != 0).then_some(u64::from(offset & 0xfc));
    let first = next(read(POINTER));
    // The iteration ends even if the list is circular.
    core::iter::successors(first, move |offset| next(read(offset + 1)))
        .take(MAX)
        .map(move |offset| (offset, read(offset)))
}

/// The registers of a memory BAR.
#[derive(Clone, Copy)]
pub struct Mmio {
    start: NonNull<u8>,
    len_bytes: usize,
    bar: u64,
}

macro_rules! mmio_access {
    ($read:ident, $write:ident, $read_inside:ident, $write_inside:ident, $type:ty) => {
        /// Reads the register at `offset`. Panics if the register is outside the BAR or not
        /// aligned.
        #[track_caller]
        pub fn $read(&self, offset: usize) -> $type {
            self.check::<$type>(offset);
            // SAFETY: `check` has verified the offset.
            unsafe { self.$read_inside(offset) }
        }

        /// Writes the register at `offset`. Panics if the register is outside the BAR or not
        /// aligned.
        #[track_caller]
        pub fn $write(&self, offset: usize, value: $type) {
            self.check::<$type>(offset);
            // SAFETY: `check` has verified the offset.
            unsafe { self.$write_inside(offset, value) }
        }

        /// Reads the register at `offset`.
        ///
        /// # Safety
        /// The register must be inside the BAR and aligned.
        #[inline(always)]
        pub(crate) unsafe fn $read_inside(&self, offset: usize) -> $type {
            // SAFETY: the register is inside the BAR.
            let register = unsafe { self.at(offset) }.cast::<$type>();
            #[cfg(feature = "fake")]
            return crate::fake::read(register.addr().get() as u64, size_of::<$type>()) as $type;
            #[cfg(not(feature = "fake"))]
            // SAFETY: the register is inside the BAR, which stays mapped; the access is volatile.
            let value = unsafe { VolatilePtr::new(register) }.read();
            #[cfg(all(feature = "record", not(feature = "fake")))]
            self.record('r', register.addr().get(), size_of::<$type>(), value.into());
            #[cfg(not(feature = "fake"))]
            value
        }

        /// Writes the register at `offset`.
        ///
        /// # Safety
        /// The register must be inside the BAR and aligned.
        #[inline(always)]
        pub(crate) unsafe fn $write_inside(&self, offset: usize, value: $type) {
            // SAFETY: the register is inside the BAR.
            let register = unsafe { self.at(offset) }.cast::<$type>();
            #[cfg(feature = "fake")]
            crate::fake::write(register.addr().get() as u64, size_of::<$type>(), value.into());
            #[cfg(not(feature = "fake"))]
            // SAFETY: as for the read.
            unsafe { VolatilePtr::new(register) }.write(value);
            #[cfg(feature = "record")]
            self.record('w', register.addr().get(), size_of::<$type>(), value.into());
        }
    };
}

impl Mmio {
    /// Maps memory BAR `bar`. The kernel refuses a BAR that shares a page with another device's
    /// BAR. If such a device offers its registers as ports too, use the ports.
    ///
    /// # Errors
    /// [`Refusal::Invalid`] if the BAR has ports, with a line in the log; and the refusals of
    /// `rf_bar_map`.
    pub fn map(bar: u64) -> Result<Mmio> {
        let (start, len) = (safe::rf_bar_map(bar)?, safe::rf_bar_len(bar)?);
        // For an I/O BAR, `rf_bar_map` returns the first port's number, which has at most 16 bits.
        let is_memory = start > u64::from(u16::MAX);
        if !is_memory {
            log::error!("BAR {bar} has ports: Ports::open is for those");
        }
        let start = NonNull::new(start as *mut u8).filter(|_| is_memory).ok_or(Refusal::Invalid)?;
        #[cfg(feature = "record")]
        crate::record::bar(bar, "memory", start.addr().get() as u64, len);
        Ok(Mmio { start, len_bytes: len as usize, bar })
    }

    /// Returns a part of these registers: `len_bytes` bytes from `offset` on.
    pub fn part(&self, offset: usize, len_bytes: usize) -> Result<Mmio> {
        match offset.checked_add(len_bytes) {
            Some(end) if end <= self.len_bytes => {
                // SAFETY: the part is inside the BAR.
                Ok(Mmio { start: unsafe { self.at(offset) }, len_bytes, bar: self.bar })
            }
            _ => Err(Refusal::Invalid),
        }
    }

    /// Returns the length in bytes.
    pub fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    #[track_caller]
    fn check<T: Copy>(&self, offset: usize) {
        let Mmio { bar, len_bytes, .. } = *self;
        let is_inside = offset.checked_add(size_of::<T>()).is_some_and(|end| end <= len_bytes);
        assert!(is_inside, "register {offset:#x} outside BAR {bar} ({len_bytes:#x} bytes)");
        assert!(offset.is_multiple_of(size_of::<T>()), "register {offset:#x} of BAR {bar} is not aligned");
    }

    #[cfg(feature = "record")]
    fn record(&self, way: char, address: usize, width_bytes: usize, value: u64) {
        crate::record::access(way, self.bar, address as u64, width_bytes, value);
    }

    /// Returns the address of the register at `offset`.
    ///
    /// # Safety
    /// The register must be inside the BAR.
    #[inline(always)]
    unsafe fn at(&self, offset: usize) -> NonNull<u8> {
        // The registers of a test are addresses without memory.
        #[cfg(feature = "fake")]
        return self.start.map_addr(|start| start.saturating_add(offset));
        #[cfg(not(feature = "fake"))]
        // SAFETY: the register is inside the BAR, which is mapped.
        unsafe {
            self.start.add(offset)
        }
    }

    mmio_access!(read8, write8, read8_inside, write8_inside, u8);
    mmio_access!(read16, write16, read16_inside, write16_inside, u16);
    mmio_access!(read32, write32, read32_inside, write32_inside, u32);
    mmio_access!(read64, write64, read64_inside, write64_inside, u64);
}

/// The ports of an I/O BAR, or of one run of ports of a device at fixed ports.
#[derive(Clone, Copy)]
pub struct Ports {
    first: u16,
    count: u16,
    bar: u64,
}

macro_rules! port_access {
    ($read:ident, $write:ident, $type:ty, $register:tt) => {
        /// Reads port `offset`. Panics if the access is not inside the BAR.
        #[track_caller]
        pub fn $read(&self, offset: u16) -> $type {
            let port = self.port(offset, size_of::<$type>());
            #[cfg(feature = "fake")]
            return crate::fake::read_port(port, size_of::<$type>()) as $type;
            #[cfg(not(feature = "fake"))]
            let value: $type;
            #[cfg(not(feature = "fake"))]
            // SAFETY: the port belongs to the driver's own device.
            unsafe {
                core::arch::asm!(concat!("in ", $register, ", dx"), in("dx") port, out($register) value,
                    options(nomem, nostack, preserves_flags));
            }
            #[cfg(all(feature = "record", not(feature = "fake")))]
            self.record('r', port, size_of::<$type>(), value.into());
            #[cfg(not(feature = "fake"))]
            value
        }

        /// Writes port `offset`. Panics if the access is not inside the BAR.
        #[track_caller]
        pub fn $write(&self, offset: u16, value: $type) {
            let port = self.port(offset, size_of::<$type>());
            #[cfg(feature = "fake")]
            crate::fake::write_port(port, size_of::<$type>(), value.into());
            #[cfg(not(feature = "fake"))]
            // SAFETY: the port belongs to the driver's own device.
            unsafe {
                core::arch::asm!(concat!("out dx, ", $register), in("dx") port, in($register) value,
                    options(nostack, preserves_flags));
            }
            #[cfg(feature = "record")]
            self.record('w', port, size_of::<$type>(), value.into());
        }
    };
}

impl Ports {
    /// Opens the ports of I/O BAR `bar`. For a device at fixed ports, `bar` is the number of a run.
    ///
    /// # Errors
    /// [`Refusal::Invalid`] if the BAR has memory, with a line in the log; and the refusals of
    /// `rf_bar_map`.
    pub fn open(bar: u64) -> Result<Ports> {
        let (first, count) = (safe::rf_bar_map(bar)?, safe::rf_bar_len(bar)?);
        let first = u16::try_from(first).map_err(|_| {
            log::error!("BAR {bar} has memory: Mmio::map is for that");
            Refusal::Invalid
        })?;
        #[cfg(feature = "record")]
        crate::record::bar(bar, "ports", first.into(), count);
        Ok(Ports { first, count: count as u16, bar })
    }

    #[cfg(feature = "record")]
    fn record(&self, way: char, port: u16, width_bytes: usize, value: u64) {
        crate::record::access(way, self.bar, port.into(), width_bytes, value);
    }

    /// Records accesses of 16 bits, the low byte first.
    #[cfg(feature = "record")]
    fn record_words(&self, way: char, port: u16, bytes: &[u8]) {
        for pair in bytes.chunks_exact(2) {
            self.record(way, port, 2, u16::from_le_bytes([pair[0], pair[1]]).into());
        }
    }

    /// Returns the number of ports.
    pub fn count(&self) -> usize {
        self.count.into()
    }

    #[track_caller]
    fn port(&self, offset: u16, width_bytes: usize) -> u16 {
        let Ports { bar, count, .. } = *self;
        let is_inside = usize::from(offset) + width_bytes <= usize::from(count);
        assert!(is_inside, "port {offset:#x} outside BAR {bar} ({count:#x} ports)");
        self.first + offset
    }

    /// Fills `to` with 16-bit reads of port `offset`, the low byte first. If the length of `to` is
    /// odd, its last byte is left unchanged. Panics if the port is not inside the BAR.
    #[track_caller]
    pub fn read_words(&self, offset: u16, to: &mut [u8]) {
        let port = self.port(offset, size_of::<u16>());
        #[cfg(feature = "fake")]
        for pair in to.chunks_exact_mut(2) {
            pair.copy_from_slice(&(crate::fake::read_port(port, 2) as u16).to_le_bytes());
        }
        #[cfg(not(feature = "fake"))]
        // SAFETY: the port belongs to the driver's own device; the instruction writes only inside
        // `to`.
        unsafe {
            #[cfg(target_arch = "x86_64")]
            core::arch::asm!("rep insw", in("dx") port, inout("rdi") to.as_mut_ptr() => _,
                inout("rcx") to.len() / 2 => _, options(nostack, preserves_flags));
            #[cfg(target_arch = "x86")]
            core::arch::asm!("rep insw", in("dx") port, inout("edi") to.as_mut_ptr() => _,
                inout("ecx") to.len() / 2 => _, options(nostack, preserves_flags));
        }
        #[cfg(feature = "record")]
        self.record_words('r', port, to);
    }

    /// Writes `from` to port `offset` with 16-bit writes, the low byte first. If the length of
    /// `from` is odd, its last byte is not written. Panics if the port is not inside the BAR.
    #[track_caller]
    pub fn write_words(&self, offset: u16, from: &[u8]) {
        let port = self.port(offset, size_of::<u16>());
        #[cfg(feature = "fake")]
        for pair in from.chunks_exact(2) {
            crate::fake::write_port(port, 2, u16::from_le_bytes([pair[0], pair[1]]).into());
        }
        #[cfg(not(feature = "fake"))]
        // SAFETY: the port belongs to the driver's own device; the instruction reads only inside
        // `from`.
        unsafe {
            #[cfg(target_arch = "x86_64")]
            core::arch::asm!("rep outsw", in("dx") port, inout("rsi") from.as_ptr() => _,
                inout("rcx") from.len() / 2 => _, options(nostack, preserves_flags, readonly));
            // The compiler keeps ESI for itself.
            #[cfg(target_arch = "x86")]
            core::arch::asm!("xchg esi, {from}", "rep outsw", "mov esi, {from}", in("dx") port,
                from = inout(reg) from.as_ptr() => _, inout("ecx") from.len() / 2 => _,
                options(nostack, preserves_flags, readonly));
        }
        #[cfg(feature = "record")]
        self.record_words('w', port, from);
    }

    port_access!(read8, write8, u8, "al");
    port_access!(read16, write16, u16, "ax");
    port_access!(read32, write32, u32, "eax");
}
