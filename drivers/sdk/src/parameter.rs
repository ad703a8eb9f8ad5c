//! Parameters: what a person gives a driver when it is loaded, `insmod NAME key=value`.
//!
//! The kernel checks what is typed before it enters the driver, and `modinfo NAME` lists them.
//! [`crate::timer`] has an example.

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

    fn get(&self) -> Raw {
        // SAFETY: see `Sync`. Volatile, as the compiler does not see who writes it.
        unsafe { self.0.get().read_volatile() }
    }
}

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
        self.0.get().value
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
        self.0.get().value != 0
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
        let text = self.0.get().text;
        text.into_iter().take_while(|byte| *byte != 0).map(char::from).collect()
    }

    /// Whether it is this.
    pub fn is(&self, text: &str) -> bool {
        let own = self.0.get().text;
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
