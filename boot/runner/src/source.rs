//! Source lines for the addresses in fault reports, from the modules' debug information.
//!
//! The kernel has none of that: it prints `function+0x12 (module+0x3456)`, and what is in parentheses is looked up here.

use crate::build::System;
use crate::project;
use addr2line::Loader;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// The modules' debug information, read when it is first needed.
pub struct Sources {
    files: HashMap<String, PathBuf>,
    loaded: HashMap<String, Option<Loader>>,
}

impl Sources {
    /// Those of the system's modules, and of other module files if they have debug information.
    pub fn new(system: &System, others: &[PathBuf]) -> Sources {
        let own = system.modules.iter().map(|module| (module.name.clone(), module.debug.clone()));
        let stem = |path: &PathBuf| path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let files = own.chain(others.iter().map(|path| (stem(path), path.clone()))).collect();
        Sources { files, loaded: HashMap::new() }
    }

    /// What to add to a line of the console: `, FILE:LINE` if it names an address in a module whose source is known.
    pub fn annotation(&mut self, line: &str) -> Option<String> {
        let (name, offset) = address_in(line)?;
        let loader = match self.loaded.get(name) {
            Some(loaded) => loaded,
            None => {
                let loader = self.files.get(name).and_then(|path| Loader::new(path).ok());
                self.loaded.entry(name.to_string()).or_insert(loader)
            }
        };
        // What a library's function was inlined into says more than the library does.
        let mut frames = loader.as_ref()?.find_frames(offset).ok()?;
        while let Ok(Some(frame)) = frames.next() {
            let location = frame.location.and_then(|location| Some((location.file?, location.line?)));
            if let Some((file, line)) = location
                && let Ok(file) = Path::new(file).strip_prefix(project())
            {
                return Some(format!(", {}:{line}", file.display()));
            }
        }
        None
    }
}

/// Module and offset that a line of a report ends with, as in `    at function+0x12 (module+0x3456)`.
fn address_in(line: &str) -> Option<(&str, u64)> {
    let (_, inner) = line.strip_prefix("    ")?.strip_suffix(')')?.rsplit_once('(')?;
    let (name, offset) = inner.rsplit_once("+0x")?;
    Some((name, u64::from_str_radix(offset, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_places_of_reports_are_looked_up() {
        assert_eq!(address_in("    at read+0x4 (rogue+0x3f84)"), Some(("rogue", 0x3f84)));
        assert_eq!(address_in("        a::b+0x4 (virtio-scsi+0x10)"), Some(("virtio-scsi", 0x10)));
        assert_eq!(address_in("at read+0x4 (rogue+0x3f84)"), None);
        assert_eq!(address_in("    at 0x0 (null)"), None);
        assert_eq!(address_in("    at 0x0 (null+0xzz)"), None);
    }
}
