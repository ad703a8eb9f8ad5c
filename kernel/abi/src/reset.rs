//! How a device is stopped when it has no driver any more: by a recipe in the manifest, which the
//! kernel carries out.
//!
//! A driver that was ended cannot reset its device itself. A device that keeps running would write
//! into memory that by then belongs to another owner.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Number of base address registers of a PCI function.
const BARS: u32 = 6;
/// Stands for no register: see [`Reset::zero`].
pub const NO_REGISTER: u32 = u32::MAX;
/// Longest time that a reset may take, in microseconds: nothing else runs meanwhile.
pub const MAX_RESET_US: u32 = 100_000;

/// The ways to reset a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum ResetMethod {
    /// The manifest gives no way. A device that used DMA is set aside for good when its driver
    /// ends.
    Unknown = 0,
    /// By a register of the device, which the other fields of [`Reset`] describe.
    Register = 1,
    /// By the device status of virtio's PCI transport: 0 is written, and must be read back (VIRTIO
    /// 1.0, 4.1.4.3.1).
    Virtio = 2,
}

/// A recipe: sets bits in a register, and waits for some of its bits to have a value.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Reset {
    /// A [`ResetMethod`]. Only [`ResetMethod::Register`] uses the other fields, except that all
    /// methods use `limit_us`.
    pub method: u32,
    /// Number of the BAR that has the register.
    pub bar: u32,
    /// The register's offset in bytes, a multiple of its width.
    pub offset: u32,
    /// The register's width in bytes: 1, 2 or 4.
    pub width_bytes: u32,
    /// Bits that are set in the register.
    pub set: u32,
    /// Bits of the register that are waited for.
    pub wait_mask: u32,
    /// The value of the bits in `wait_mask` when the device has been reset.
    pub wait_value: u32,
    /// Offsets of 32-bit registers in the same BAR that are set to 0 first; [`NO_REGISTER`] stands
    /// for none.
    pub zero: [u32; 2],
    /// Longest time that the reset may take, in microseconds, at most [`MAX_RESET_US`].
    pub limit_us: u32,
}

impl Reset {
    /// No way to reset the device is known.
    pub const UNKNOWN: Reset = Reset {
        method: ResetMethod::Unknown as u32,
        bar: 0,
        offset: 0,
        width_bytes: 0,
        set: 0,
        wait_mask: 0,
        wait_value: 0,
        zero: [NO_REGISTER; 2],
        limit_us: 0,
    };

    /// Resets by a register of `width_bytes` bytes (1, 2 or 4) at `offset` of BAR `bar`, a memory
    /// or an I/O BAR. The kernel reads the register, writes it with the bits of [`Reset::sets`]
    /// set, and waits as [`Reset::waits_for`] says.
    pub const fn register(bar: u32, offset: u32, width_bytes: u32) -> Reset {
        Reset { method: ResetMethod::Register as u32, bar, offset, width_bytes, ..Reset::UNKNOWN }
    }

    /// Resets a virtio device on PCI, in the one way that its standard defines.
    pub const fn virtio() -> Reset {
        Reset { method: ResetMethod::Virtio as u32, ..Reset::UNKNOWN }
    }

    /// Names the bits that are set in the register.
    pub const fn sets(self, set: u32) -> Reset {
        Reset { set, ..self }
    }

    /// Names the bits to wait for: the device is reset when the bits `mask` of the register equal
    /// those of `value`.
    pub const fn waits_for(self, mask: u32, value: u32) -> Reset {
        Reset { wait_mask: mask, wait_value: value, ..self }
    }

    /// Names two 32-bit registers of the same BAR that are set to 0 first: the lengths of
    /// descriptor rings, for example, on devices that keep them over a reset. [`NO_REGISTER`]
    /// stands for none.
    pub const fn zeroes(self, zero: [u32; 2]) -> Reset {
        Reset { zero, ..self }
    }

    /// Limits the time that the reset may take, in microseconds, to at most [`MAX_RESET_US`].
    pub const fn within_us(self, limit_us: u32) -> Reset {
        Reset { limit_us, ..self }
    }

    /// Returns the method, if the recipe makes sense.
    pub const fn method(&self) -> Option<ResetMethod> {
        const fn is_aligned(offset: u32) -> bool {
            offset == NO_REGISTER || offset.is_multiple_of(4)
        }
        let [first, second] = self.zero;
        if self.limit_us > MAX_RESET_US || !is_aligned(first) || !is_aligned(second) {
            return None;
        }
        match self.method {
            0 => Some(ResetMethod::Unknown),
            1 => {
                let width_fits = matches!(self.width_bytes, 1 | 2 | 4) && self.offset.is_multiple_of(self.width_bytes);
                // Bits beyond the register's width would be cut off, and a value outside of the
                // mask can never be reached.
                let bits = self.set | self.wait_mask;
                let bits_fit = width_fits && (bits as u64) < 1 << (8 * self.width_bytes);
                let can_come = self.wait_value & !self.wait_mask == 0;
                if self.bar < BARS && bits_fit && can_come { Some(ResetMethod::Register) } else { None }
            }
            2 => Some(ResetMethod::Virtio),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_recipes_that_make_sense_have_a_method() {
        let good = Reset { method: 1, bar: 5, offset: 8, width_bytes: 4, limit_us: MAX_RESET_US, ..Reset::UNKNOWN };
        assert_eq!(good.method(), Some(ResetMethod::Register));
        assert_eq!(Reset::UNKNOWN.method(), Some(ResetMethod::Unknown));
        assert_eq!(Reset { method: 3, ..good }.method(), None);
        assert_eq!(Reset { bar: 6, ..good }.method(), None);
        assert_eq!(Reset { width_bytes: 8, ..good }.method(), None);
        assert_eq!(Reset { width_bytes: 0, ..good }.method(), None);
        for (width_bytes, first_too_many) in [(1, 0x100), (2, 0x1_0000)] {
            let narrow = Reset { width_bytes, ..good };
            assert_eq!(Reset { set: first_too_many - 1, ..narrow }.method(), Some(ResetMethod::Register));
            assert_eq!(Reset { set: first_too_many, ..narrow }.method(), None);
            assert_eq!(Reset { wait_mask: first_too_many, ..narrow }.method(), None);
            assert_eq!(Reset { wait_value: first_too_many, ..narrow }.method(), None);
        }
        assert_eq!(Reset { zero: [2, NO_REGISTER], ..good }.method(), None);
        assert_eq!(Reset { offset: 2, ..good }.method(), None);
        assert_eq!(Reset { limit_us: MAX_RESET_US + 1, ..good }.method(), None);
    }
}
