//! Parameters: what a person gives a driver when it is loaded, `insmod NAME key=value`.
//!
//! The kernel checks what is typed before it enters the driver, and `modinfo NAME` lists them.
//! [`crate::timer`] has an example.

use crate::shared::text_of;
use core::cell::UnsafeCell;
use ringfence_abi::manifest::field;
use ringfence_abi::parameter::{Parameter as Raw, ParameterKind, TEXT_BYTES};

/// Memory that the kernel writes before the driver runs.
#[repr(transparent)]
struct Place(UnsafeCell<Raw>);

// SAFETY: it is written before the driver is entered for the first time, and only read from then
// on.
unsafe impl Sync for Place {}

impl Place {
    const fn new(parameter: Raw) -> Place {
        assert!(parameter.is_sound(), "a parameter has a lower-case name, a purpose, and a default within its range");
        Place(UnsafeCell::new(parameter))
    }

    /// The number. Volatile, here and below, as the compiler does not see who writes it.
    fn value(&self) -> i64 {
        // SAFETY: see `Sync`.
        unsafe { (&raw const (*self.0.get()).value).read_volatile() }
    }

    /// The text, with zeros behind it.
    fn text(&self) -> [u8; TEXT_BYTES] {
        // SAFETY: see `Sync`. It is as long as eight words, and lies at a multiple of eight: byte
        // for byte it would be much code.
        let words: [u64; TEXT_BYTES / 8] =
            unsafe { (&raw const (*self.0.get()).text).cast::<[u64; 8]>().read_volatile() };
        zerocopy::transmute!(words)
    }
}

// The words of a text.
const _: () = assert!(core::mem::offset_of!(Raw, text).is_multiple_of(8) && align_of::<Raw>() == 8);

const fn named(name: &str, what: &str, kind: ParameterKind) -> Raw {
    let (name, what) = (field(name), field(what));
    Raw { name, what, kind: kind as u32, reserved: 0, least: 0, most: 0, value: 0, text: [0; TEXT_BYTES] }
}

/// A number.
#[repr(transparent)]
pub struct Number(Place);

impl Number {
    /// One from `least` to `most`, which is `default` if it is not given.
    pub const fn new(name: &str, what: &str, default: i64, least: i64, most: i64) -> Number {
        Number(Place::new(Raw { value: default, least, most, ..named(name, what, ParameterKind::Number) }))
    }

    /// What it is.
    pub fn get(&self) -> i64 {
        self.0.value()
    }
}

/// On or off.
#[repr(transparent)]
pub struct Flag(Place);

impl Flag {
    /// One that is `default` if it is not given.
    pub const fn new(name: &str, what: &str, default: bool) -> Flag {
        Flag(Place::new(Raw { value: default as i64, ..named(name, what, ParameterKind::Flag) }))
    }

    /// Whether it is on.
    pub fn get(&self) -> bool {
        self.0.value() != 0
    }
}

/// Printable ASCII, 63 characters at most.
#[repr(transparent)]
pub struct Text(Place);

impl Text {
    /// One that is `default` if it is not given.
    pub const fn new(name: &str, what: &str, default: &str) -> Text {
        Text(Place::new(Raw { text: field(default), ..named(name, what, ParameterKind::Text) }))
    }

    /// What it is.
    pub fn get(&self) -> alloc::string::String {
        let bytes = self.0.text();
        let len_bytes = bytes.iter().position(|byte| *byte == 0).unwrap_or(0);
        bytes.get(..len_bytes).and_then(text_of).unwrap_or_default()
    }

    /// Whether it is this.
    pub fn is(&self, text: &str) -> bool {
        let own = self.0.text();
        own.get(..text.len()) == Some(text.as_bytes()) && own.get(text.len()) == Some(&0)
    }
}

/// Declares parameters of the module: a name, and a [`Number`](crate::parameter::Number), a
/// [`Flag`](crate::parameter::Flag) or a [`Text`](crate::parameter::Text) each.
#[macro_export]
macro_rules! parameters {
    ($($(#[$attribute:meta])* $name:ident: $kind:ident($($argument:expr),* $(,)?);)*) => {
        $(
            $(#[$attribute])*
            #[unsafe(link_section = ".ringfence.parameters")]
            static $name: $crate::parameter::$kind = $crate::parameter::$kind::new($($argument),*);
        )*
    };
}
