//! Source lines for the addresses in fault reports, from the modules' debug information.
//!
//! The kernel has no debug information. It prints `function+0x12 (module+0x3456)`, and the address
//! in parentheses is looked up here.

use crate::output::printable;
use crate::project;
use crate::toolchain::BUILT_AS;
use addr2line::Loader;
use ringfence_abi::layout::IMAGE;
use ringfence_abi::manifest::SEGMENTED_SUFFIX;
use ringfence_core::lines::{address_in, table};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// The modules' debug information, read when it is first needed.
pub struct Sources {
    files: HashMap<String, PathBuf>,
    /// The folder with the debug information of modules that were pushed, each as `NAME#BUILD`.
    pushed: PathBuf,
    loaded: HashMap<String, Option<Loader>>,
}

impl Sources {
    /// Remembers the modules' files by the modules' names. A file without debug information does no
    /// harm.
    pub fn new(files: impl IntoIterator<Item = (String, PathBuf)>, pushed: PathBuf) -> Sources {
        Sources { files: files.into_iter().collect(), pushed, loaded: HashMap::new() }
    }

    /// Returns the text to add to a line of the console: `, FILE:LINE` if the line names an address
    /// in a module whose source is known.
    pub fn annotation(&mut self, line: &str) -> Option<String> {
        let (name, offset) = address_in(line)?;
        self.line(name, offset)
    }

    /// Returns the names of the modules whose files were [given](Sources::new).
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.files.keys().cloned().collect();
        names.sort_unstable();
        names
    }

    /// Returns the table of the source lines of the module called `name`
    /// ([`ringfence_core::lines`]), if it has debug information.
    pub fn table(&self, name: &str) -> Option<Vec<u8>> {
        let loader = Loader::new(self.files.get(name)?).ok()?;
        let ranges: Vec<(u64, Option<(String, u32)>)> = loader
            .find_location_range(0, u64::MAX)
            .ok()?
            .map(|(start, _, location)| {
                let file = location.file.and_then(source_file);
                (start.saturating_sub(linked_at(name)), file.zip(location.line))
            })
            .collect();
        Some(table(ranges.iter().map(|(at, place)| (*at, place.as_ref().map(|(file, line)| (file.as_str(), *line))))))
    }

    /// Returns `, FILE:LINE` of the instruction at `offset` in the module called `name`.
    pub fn line(&mut self, name: &str, offset: u64) -> Option<String> {
        let loader = match self.loaded.get(name) {
            Some(loaded) => loaded,
            None => {
                let pushed = || self.pushed.join(name.replace('/', "_"));
                let path = self.files.get(name).cloned().unwrap_or_else(pushed);
                let loader = Loader::new(path).ok();
                self.loaded.entry(name.to_string()).or_insert(loader)
            }
        };
        let frames = loader.as_ref()?.find_frames(linked_at(name) + offset).ok()?;
        // The frames go from the innermost function out to the function that contains all inlined
        // ones.
        let places = std::iter::from_fn({
            let mut frames = frames;
            move || frames.next().ok().flatten()
        });
        let places = places.filter_map(|frame| {
            let location = frame.location?;
            Some((source_file(location.file?)?, location.line?))
        });
        places_in_words(places)
    }
}

/// Returns the address that the module called `name` is linked for.
fn linked_at(name: &str) -> u64 {
    if name.ends_with(SEGMENTED_SUFFIX) { IMAGE } else { 0 }
}

/// Returns the file of a source line as a person knows it; `None` for a file of a library.
fn source_file(file: &str) -> Option<String> {
    let libraries = ["/rustc/", "/.cargo/registry/", "/rustlib/"];
    let path = Path::new(file);
    let own = path.strip_prefix(BUILT_AS).or_else(|_| path.strip_prefix(project())).ok();
    let is_library = own.is_none() && libraries.iter().any(|library| file.contains(library));
    (!is_library).then(|| printable(&own.unwrap_or(path).to_string_lossy()))
}

/// Describes the innermost of `places`. If it is in the SDK, adds the driver's line that led to it.
fn places_in_words(places: impl Iterator<Item = (String, u32)>) -> Option<String> {
    const SDK: &str = "drivers/sdk/";
    let mut words = String::new();
    for (file, line) in places {
        let in_sdk = file.starts_with(SDK);
        match words.is_empty() {
            true => words = format!(", {file}:{line}"),
            false if !in_sdk => words += &format!(", from {file}:{line}"),
            false => {}
        }
        if !in_sdk {
            break;
        }
    }
    (!words.is_empty()).then_some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_sdk_comes_with_the_driver_s() {
        let words =
            |places: &[(&str, u32)]| places_in_words(places.iter().map(|(file, line)| (file.to_string(), *line)));
        let (mmio, dma, lib) =
            (("drivers/sdk/src/mmio.rs", 4), ("drivers/sdk/src/dma.rs", 9), ("drivers/e1000/src/lib.rs", 7));
        assert_eq!(words(&[lib]).as_deref(), Some(", drivers/e1000/src/lib.rs:7"));
        let both = ", drivers/sdk/src/mmio.rs:4, from drivers/e1000/src/lib.rs:7";
        assert_eq!(words(&[mmio, dma, lib, ("x.rs", 1)]).as_deref(), Some(both));
        assert_eq!(words(&[mmio]).as_deref(), Some(", drivers/sdk/src/mmio.rs:4"));
        assert_eq!(words(&[]), None);
    }

    #[test]
    fn files_are_named_as_a_person_knows_them() {
        assert_eq!(source_file("/ringfence/drivers/null/src/lib.rs").as_deref(), Some("drivers/null/src/lib.rs"));
        assert_eq!(source_file("/home/me/my-driver/lib.rs").as_deref(), Some("/home/me/my-driver/lib.rs"));
        assert_eq!(source_file("/rustc/abc/library/core/src/ptr.rs"), None);
        assert_eq!(source_file("/root/.cargo/registry/src/x/y.rs"), None);
        assert_eq!(source_file("a\x1b[2J.c").as_deref(), Some("a?[2J.c"));
    }
}
