//! Model-specific registers (SDM vol. 4).

use x86_64::registers::model_specific::Msr;

/// A register that exists on every CPU which reports the feature it belongs to, and that no memory
/// safety depends on.
#[derive(Debug, Clone, Copy)]
pub struct Register(u32);

/// The local APIC's base address, and whether it is on (SDM vol. 3A, 11.4.4).
pub const APIC_BASE: Register = Register(0x1b);
/// Code segment of SYSENTER; 0 turns SYSENTER off.
pub const SYSENTER_CS: Register = Register(0x174);

/// Returns the local APIC's register at `offset` of its page, in x2APIC mode (SDM vol. 3A,
/// 11.12.1.2).
pub const fn x2apic(offset: u32) -> Register {
    Register(0x800 + (offset >> 4 & 0xff))
}

impl Register {
    /// Reads the register.
    pub fn read(self) -> u64 {
        // SAFETY: the register exists.
        unsafe { Msr::new(self.0).read() }
    }

    /// Writes the register.
    pub fn write(self, value: u64) {
        // SAFETY: the register exists, and moves no memory that is in use: the APIC's page stays
        // where firmware has put it.
        unsafe { Msr::new(self.0).write(value) };
    }
}
