//! Names of a module's registers, by which a person refers to them when watching them.
//!
//! A module with named registers has a section [`SECTION`] of [`RegisterName`]s in its file. The
//! kernel uses the names only to show and watch registers, so a wrong name can do no harm: it names
//! another register of the driver's own device.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Name of the ELF section that holds the names, one after the other.
pub const SECTION: &str = ".ringfence.registers";
/// Most register names that a module can have.
pub const MAX_REGISTERS: usize = 256;

/// A register, or an array of registers with one name.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RegisterName {
    /// Capital letters, digits and `_`, in ASCII; ends with a zero.
    pub name: [u8; 24],
    /// Offset of the first register in the BAR, in bytes.
    pub offset: u32,
    /// Number of the memory BAR.
    pub bar: u8,
    /// Length of each register in bytes.
    pub width_bytes: u8,
    /// How many registers there are, one after the other.
    pub count: u16,
}

// The layout is part of the ABI.
const _: () = assert!(size_of::<RegisterName>() == 32 && align_of::<RegisterName>() == 4);

impl RegisterName {
    /// Returns the name; `None` if a field makes no sense.
    pub const fn name(&self) -> Option<&str> {
        let is_place = matches!(self.width_bytes, 1 | 2 | 4 | 8)
            && self.bar < 6
            && self.count > 0
            && self.offset.is_multiple_of(self.width_bytes as u32)
            && self.offset.checked_add(self.width_bytes as u32 * self.count as u32).is_some();
        let Some(name) = crate::manifest::text(&self.name) else { return None };
        let mut index = 0;
        while index < name.len() {
            if !matches!(name[index], b'A'..=b'Z' | b'0'..=b'9' | b'_') {
                return None;
            }
            index += 1;
        }
        match core::str::from_utf8(name) {
            Ok(name) if is_place && !name.is_empty() => Some(name),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::field;

    #[test]
    fn a_name_is_of_a_register_that_there_can_be() {
        let good = RegisterName { name: field("TX_ADDRESS"), offset: 8, bar: 5, width_bytes: 8, count: 16 };
        assert_eq!(good.name(), Some("TX_ADDRESS"));
        for wrong in [
            RegisterName { name: field(""), ..good },
            RegisterName { name: field("tx"), ..good },
            RegisterName { name: [b'A'; 24], ..good },
            RegisterName { offset: 4, ..good },
            RegisterName { offset: u32::MAX - 7, ..good },
            RegisterName { bar: 6, ..good },
            RegisterName { width_bytes: 3, ..good },
            RegisterName { count: 0, ..good },
        ] {
            assert_eq!(wrong.name(), None, "{wrong:?}");
        }
    }
}
