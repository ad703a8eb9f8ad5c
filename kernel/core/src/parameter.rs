//! Reads the values that a person types for a module's parameters, and checks them against the
//! module's declarations.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use ringfence_abi::parameter::{Parameter, ParameterKind, TEXT_BYTES};

/// A parameter of a module file, and its place in the image.
#[derive(Debug, Clone, Copy)]
pub struct Declared {
    /// Offset into the image.
    pub at: u64,
    /// The module's declaration of it; its value is the default.
    pub parameter: Parameter,
}

impl Declared {
    /// Returns the allowed values and the default, in words for a person.
    pub fn range(&self) -> Range<'_> {
        Range(&self.parameter)
    }
}

/// See [`Declared::range`].
pub struct Range<'a>(&'a Parameter);

impl fmt::Display for Range<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Parameter { least, most, value, .. } = *self.0;
        match self.0.kind() {
            Some(ParameterKind::Number) => write!(f, "{least} to {most}, {value} if not given"),
            Some(ParameterKind::Flag) => write!(f, "on or off, {} if not given", if value == 0 { "off" } else { "on" }),
            Some(ParameterKind::Text) => write!(f, "a text, '{}' if not given", self.0.text()),
            None => Ok(()),
        }
    }
}

/// Returns the parameters for which `words` give values, each as `name=value`, with those values in
/// place of the defaults.
///
/// # Errors
/// The reason why a word is refused, for a person.
pub fn set<'a>(declared: &[Declared], words: impl Iterator<Item = &'a str>) -> Result<Vec<Declared>, String> {
    let mut set = Vec::new();
    for word in words {
        let (name, typed) = word.split_once('=').ok_or_else(|| format!("'{word}' is no parameter: NAME=VALUE is"))?;
        let found = declared.iter().find(|declared| declared.parameter.name() == name);
        let mut parameter = *found.ok_or_else(|| unknown(declared, name))?;
        if set.iter().any(|other: &Declared| other.at == parameter.at) {
            return Err(format!("parameter {name} is given twice"));
        }
        value(&mut parameter.parameter, typed).ok_or_else(|| {
            let range = parameter.range();
            format!("parameter {name} is {range}; it cannot be '{typed}'")
        })?;
        set.push(parameter);
    }
    Ok(set)
}

fn unknown(declared: &[Declared], name: &str) -> String {
    if declared.is_empty() {
        return format!("there is no parameter '{name}': the module has none");
    }
    let names: Vec<&str> = declared.iter().map(|declared| declared.parameter.name()).collect();
    format!("there is no parameter '{name}'; there are: {}", names.join(", "))
}

/// Puts the typed value into a parameter; `None` if the parameter cannot have it.
fn value(parameter: &mut Parameter, typed: &str) -> Option<()> {
    match parameter.kind()? {
        ParameterKind::Number => {
            let (digits, radix) = match typed.strip_prefix("0x") {
                Some(digits) => (digits, 16),
                None => (typed, 10),
            };
            let number = i64::from_str_radix(digits, radix).ok()?;
            parameter.value = Some(number).filter(|number| (parameter.least..=parameter.most).contains(number))?;
        }
        ParameterKind::Flag => {
            parameter.value = flag(typed)?.into();
        }
        ParameterKind::Text => {
            let typed = Some(typed).filter(|typed| typed.bytes().all(|byte| (0x20..0x7f).contains(&byte)))?;
            let mut text = [0; TEXT_BYTES];
            // A zero ends the text, so one byte is left for it.
            text.get_mut(..typed.len()).filter(|part| part.len() < TEXT_BYTES)?.copy_from_slice(typed.as_bytes());
            parameter.text = text;
        }
    }
    Some(())
}

/// Returns the value of a flag that a person means by a word; `None` if the word has no such
/// meaning.
pub fn flag(typed: &str) -> Option<bool> {
    match typed {
        "on" | "yes" | "true" | "1" => Some(true),
        "off" | "no" | "false" | "0" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use ringfence_abi::manifest::field;

    fn number(name: &str, value: i64, least: i64, most: i64) -> Parameter {
        let what = field("for a test");
        Parameter { name: field(name), what, kind: 0, reserved: 0, least, most, value, text: [0; TEXT_BYTES] }
    }

    fn declared() -> [Declared; 3] {
        let depth = number("depth", 64, 1, 128);
        let fast = Parameter { kind: 1, ..number("fast", 1, 0, 0) };
        let wire = Parameter { kind: 2, text: field("copper"), ..number("wire", 0, 0, 0) };
        [(0, depth), (200, fast), (400, wire)].map(|(at, parameter)| Declared { at, parameter })
    }

    fn set_all(line: &str) -> Result<Vec<Declared>, String> {
        set(&declared(), line.split_whitespace())
    }

    #[test]
    fn what_is_typed_takes_the_place_of_the_default() {
        let set = set_all("depth=0x20 fast=off wire=fibre").unwrap();
        assert_eq!((set[0].at, set[0].parameter.value), (0, 32));
        assert_eq!((set[1].at, set[1].parameter.value), (200, 0));
        assert_eq!((set[2].at, set[2].parameter.text()), (400, "fibre"));
        assert!(set_all("").unwrap().is_empty());
        assert_eq!(set_all("wire=").unwrap()[0].parameter.text(), "");
    }

    #[test]
    fn what_is_wrong_is_named() {
        fn wrong(line: &str) -> String {
            set_all(line).unwrap_err()
        }
        assert_eq!(wrong("depth"), "'depth' is no parameter: NAME=VALUE is");
        assert_eq!(wrong("deep=1"), "there is no parameter 'deep'; there are: depth, fast, wire");
        assert_eq!(wrong("depth=1 depth=2"), "parameter depth is given twice");
        for typed in ["0", "129", "x", "", "-1", "99999999999999999999", "0x"] {
            assert_eq!(
                wrong(&format!("depth={typed}")),
                format!("parameter depth is 1 to 128, 64 if not given; it cannot be '{typed}'")
            );
        }
        assert_eq!(wrong("fast=2"), "parameter fast is on or off, on if not given; it cannot be '2'");
        let long = "x".repeat(TEXT_BYTES);
        assert!(wrong(&format!("wire={long}")).starts_with("parameter wire is a text, 'copper' if not given; it"));
        assert!(set_all(&format!("wire={}", &long[1..])).is_ok());
        assert_eq!(set(&[], ["a=b"].into_iter()).unwrap_err(), "there is no parameter 'a': the module has none");
    }

    #[test]
    fn only_what_makes_sense_is_sound() {
        assert!(declared().iter().all(|declared| declared.parameter.is_sound()));
        let good = number("depth", 64, 1, 128);
        for bad in [
            Parameter { value: 129, ..good },
            Parameter { kind: 3, ..good },
            Parameter { kind: 1, ..good },
            Parameter { reserved: 1, ..good },
            Parameter { name: field(""), ..good },
            Parameter { name: field("A"), ..good },
            Parameter { what: [0; 72], ..good },
            Parameter { what: [b'x'; 72], ..good },
            Parameter { kind: 2, text: [b'x'; TEXT_BYTES], ..good },
        ] {
            assert!(!bad.is_sound(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_typed_is_in_range_or_refused(line: String) {
            for set in set_all(&line).into_iter().flatten() {
                prop_assert!(set.parameter.is_sound());
            }
        }
    }
}
