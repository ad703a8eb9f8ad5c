//! Parameters of a module, which a person gives when the module is loaded: `insmod NAME key=value`.
//!
//! A module with parameters has a section [`SECTION`] of [`Parameter`]s, in memory that the module
//! may write. The kernel checks the typed values against them, and writes the values there before
//! it enters the driver for the first time.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Name of the ELF section that holds a module's parameters, one after the other.
pub const SECTION: &str = ".ringfence.parameters";
/// Most parameters that a module can have.
pub const MAX_PARAMETERS: usize = 16;
/// Length of the field for a text, in bytes, including the zero that ends it.
pub const TEXT_BYTES: usize = 64;

/// The type of a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum ParameterKind {
    /// A number from `least` to `most`.
    Number = 0,
    /// On (1) or off (0).
    Flag = 1,
    /// Printable ASCII in `text`.
    Text = 2,
}

/// A parameter: it holds its default at first, and the given value later. Texts are ASCII and end
/// with a zero.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Parameter {
    /// The key that a person types before the `=`: lower-case letters, digits, `-` and `_`.
    pub name: [u8; 24],
    /// The parameter's purpose, in words.
    pub what: [u8; 72],
    /// A [`ParameterKind`].
    pub kind: u32,
    /// Must be zero.
    pub reserved: u32,
    /// Least value of a number.
    pub least: i64,
    /// Greatest value of a number.
    pub most: i64,
    /// The value of a number; 1 for a flag that is on, 0 for a flag that is off.
    pub value: i64,
    /// The value of a text.
    pub text: [u8; TEXT_BYTES],
}

// The layout is part of the ABI.
const _: () = assert!(size_of::<Parameter>() == 192 && align_of::<Parameter>() == align_of::<u64>());

impl Parameter {
    /// Returns the parameter's kind, if it is a known one.
    pub const fn kind(&self) -> Option<ParameterKind> {
        match self.kind {
            0 => Some(ParameterKind::Number),
            1 => Some(ParameterKind::Flag),
            2 => Some(ParameterKind::Text),
            _ => None,
        }
    }

    /// Returns whether every field makes sense, and the default is a value that the parameter can
    /// have.
    pub const fn is_sound(&self) -> bool {
        let (Some(name), Some(what)) = (crate::manifest::text(&self.name), crate::manifest::text(&self.what)) else {
            return false;
        };
        let value_fits = match self.kind() {
            Some(ParameterKind::Number) => self.least <= self.value && self.value <= self.most,
            Some(ParameterKind::Flag) => self.value == 0 || self.value == 1,
            Some(ParameterKind::Text) => crate::manifest::text(&self.text).is_some(),
            None => false,
        };
        crate::manifest::is_name(name) && !what.is_empty() && self.reserved == 0 && value_fits
    }

    /// Returns the parameter's name.
    pub fn name(&self) -> &str {
        crate::manifest::words(&self.name)
    }

    /// Returns the parameter's purpose.
    pub fn what(&self) -> &str {
        crate::manifest::words(&self.what)
    }

    /// Returns the value of a text.
    pub fn text(&self) -> &str {
        crate::manifest::words(&self.text)
    }
}
