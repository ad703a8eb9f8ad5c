//! How a device is stopped when nobody drives it any more: a recipe in the manifest, which the
//! kernel carries out.
//!
//! A driver that was ended cannot reset its device itself, and a device that goes on would write
//! into memory that belongs to somebody else by then.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Number of base address registers of a PCI function.
const BARS: u32 = 6;
/// No register: see [`Reset::zero`].
pub const NO_REGISTER: u32 = u32::MAX;
/// Longest time that a reset may take, in microseconds: nothing else runs meanwhile.
pub const MAX_RESET_US: u32 = 100_000;

/// How a device is reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum ResetMethod {
    /// The kernel is not told. A device that used DMA is set aside for good when its driver ends.
    Unknown = 0,
    /// A register of the device, as the other fields of [`Reset`] say.
    Register = 1,
    /// The device status of virtio's PCI transport: 0 is written, and must be read back (VIRTIO
    /// 1.0, 4.1.4.3.1).
    Virtio = 2,
}

/// A recipe: sets bits in a register, and waits for some of its bits to have a value.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Reset {
    /// A [`ResetMethod`]. Only [`ResetMethod::Register`] uses the other fields, but all use
    /// `limit_us`.
    pub method: u32,
    /// Which BAR has the register.
    pub bar: u32,
    /// Its offset in bytes, a multiple of its width.
    pub offset: u32,
    /// Its width in bytes: 1, 2 or 4.
    pub width_bytes: u32,
    /// Bits that are set in it.
    pub set: u32,
    /// Bits of it that are waited for.
    pub wait_mask: u32,
    /// What those bits are when the device is reset.
    pub wait_value: u32,
    /// Offsets of 32-bit registers in the same BAR that are set to 0 before that; [`NO_REGISTER`]
    /// stands for none.
    pub zero: [u32; 2],
    /// Longest time that may take, in microseconds, at most [`MAX_RESET_US`].
    pub limit_us: u32,
}

impl Reset {
    /// The kernel is not told.
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

    /// Resets by a register of `width_bytes` bytes (1, 2 or 4) at `offset` of BAR `bar`, which may
    /// be of memory or of ports: reads it,
    /// writes it with the bits of [`Reset::sets`] set, and waits as [`Reset::waits_for`] says.
    pub const fn register(bar: u32, offset: u32, width_bytes: u32) -> Reset {
        Reset { method: ResetMethod::Register as u32, bar, offset, width_bytes, ..Reset::UNKNOWN }
    }

    /// Resets a virtio device on PCI, for which there is one way.
    pub const fn virtio() -> Reset {
        Reset { method: ResetMethod::Virtio as u32, ..Reset::UNKNOWN }
    }

    /// Bits that are set in the register.
    pub const fn sets(self, set: u32) -> Reset {
        Reset { set, ..self }
    }

    /// The device is reset when the bits `mask` of the register are those of `value`.
    pub const fn waits_for(self, mask: u32, value: u32) -> Reset {
        Reset { wait_mask: mask, wait_value: value, ..self }
    }

    /// Two 32-bit registers of the same BAR are set to 0 before: lengths of descriptor rings, say,
    /// for devices that keep them. [`NO_REGISTER`] stands for none.
    pub const fn zeroes(self, zero: [u32; 2]) -> Reset {
        Reset { zero, ..self }
    }

    /// How long that may take, in microseconds, at most [`MAX_RESET_US`].
    pub const fn within_us(self, limit_us: u32) -> Reset {
        Reset { limit_us, ..self }
    }

    /// The method, if the recipe makes sense.
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
                // Bits that the register does not have would be cut off, and bits that are not
                // waited for never are as they should be.
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
