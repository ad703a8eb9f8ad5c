//! Parameters: values that a person gives a driver when it is loaded, `insmod NAME key=value`.
//!
//! The kernel checks the values before it enters the driver. `modinfo NAME` lists the parameters.
//! [`crate::timer`] has an example.

use crate::shared::text_of;
use core::cell::UnsafeCell;
use ringfence_abi::manifest::field;
use ringfence_abi::parameter::{Parameter as Raw, ParameterKind, TEXT_BYTES};

/// Memory that the kernel writes before the driver runs.
#[repr(transparent)]
struct Place(UnsafeCell<Raw>);

// SAFETY: the kernel writes the memory before it enters the driver for the first time; from then on
// it is only read.
unsafe impl Sync for Place {}

impl Place {
    const fn new(parameter: Raw) -> Place {
        assert!(parameter.is_sound(), "a parameter has a lower-case name, a purpose, and a default within its range");
        Place(UnsafeCell::new(parameter))
    }

    /// Returns the number. This read and the one below are volatile: the compiler does not know
    /// that the kernel writes the memory.
    fn value(&self) -> i64 {
        // SAFETY: see `Sync`.
        unsafe { (&raw const (*self.0.get()).value).read_volatile() }
    }

    /// Returns the text, padded with zeros.
    fn text(&self) -> [u8; TEXT_BYTES] {
        // SAFETY: see `Sync`. The text is eight words long and aligned to eight bytes. Reading it
        // byte by byte would take much more code.
        let words: [u64; TEXT_BYTES / 8] =
            unsafe { (&raw const (*self.0.get()).text).cast::<[u64; 8]>().read_volatile() };
        zerocopy::transmute!(words)
    }
}

// `Place::text` reads the text as aligned words.
const _: () = assert!(core::mem::offset_of!(Raw, text).is_multiple_of(8) && align_of::<Raw>() == align_of::<u64>());

const fn named(name: &str, what: &str, kind: ParameterKind) -> Raw {
    let (name, what) = (field(name), field(what));
    Raw { name, what, kind: kind as u32, reserved: 0, least: 0, most: 0, value: 0, text: [0; TEXT_BYTES] }
}

/// A numeric parameter.
#[repr(transparent)]
pub struct Number(Place);

impl Number {
    /// Declares a number from `least` to `most`, which is `default` if no value is given.
    pub const fn new(name: &str, what: &str, default: i64, least: i64, most: i64) -> Number {
        Number(Place::new(Raw { value: default, least, most, ..named(name, what, ParameterKind::Number) }))
    }

    /// Returns the value.
    pub fn get(&self) -> i64 {
        self.0.value()
    }
}

/// A parameter that is on or off.
#[repr(transparent)]
pub struct Flag(Place);

impl Flag {
    /// Declares a flag that is `default` if no value is given.
    pub const fn new(name: &str, what: &str, default: bool) -> Flag {
        Flag(Place::new(Raw { value: default as i64, ..named(name, what, ParameterKind::Flag) }))
    }

    /// Returns whether the flag is on.
    pub fn get(&self) -> bool {
        self.0.value() != 0
    }
}

/// A text parameter: printable ASCII, 63 characters at most.
#[repr(transparent)]
pub struct Text(Place);

impl Text {
    /// Declares a text that is `default` if no value is given.
    pub const fn new(name: &str, what: &str, default: &str) -> Text {
        Text(Place::new(Raw { text: field(default), ..named(name, what, ParameterKind::Text) }))
    }

    /// Returns the text.
    pub fn get(&self) -> alloc::string::String {
        let bytes = self.0.text();
        let len_bytes = bytes.iter().position(|byte| *byte == 0).unwrap_or(0);
        bytes.get(..len_bytes).and_then(text_of).unwrap_or_default()
    }

    /// Returns whether the value equals `text`.
    pub fn is(&self, text: &str) -> bool {
        let own = self.0.text();
        own.get(..text.len()) == Some(text.as_bytes()) && own.get(text.len()) == Some(&0)
    }
}

/// Declares the module's parameters, each with a name and a [`Number`](crate::parameter::Number), a
/// [`Flag`](crate::parameter::Flag) or a [`Text`](crate::parameter::Text).
#[macro_export]
macro_rules! parameters {
    ($($(#[$attribute:meta])* $name:ident: $kind:ident($($argument:expr),* $(,)?);)*) => {
        $(
            $(#[$attribute])*
            // A parameter that the driver does not read stays in the module all the same.
            #[used]
            #[unsafe(link_section = ".ringfence.parameters")]
            static $name: $crate::parameter::$kind = $crate::parameter::$kind::new($($argument),*);
        )*
    };
}
