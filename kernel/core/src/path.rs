//! Paths of files, and names that come from disks.
//!
//! A path is absolute, and has no empty names, no `.` and no `..` once it is a [`Path`]. A name
//! from a disk may be anything: [`is_name`] says whether a path can have it, and [`shown`] makes it
//! harmless for a terminal.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use ringfence_abi::fs::{FS_MAX_NAME, FS_MAX_PATH};

/// The most names in a path.
pub const MOST_NAMES: usize = 64;

/// An absolute path in its shortest form: `/`, or `/` and names with `/` between them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Path(String);

/// The reason why a text is no path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadPath {
    /// It is empty.
    Empty,
    /// It is longer than [`FS_MAX_PATH`] bytes, or has a name of more than [`FS_MAX_NAME`].
    TooLong,
    /// It has more than [`MOST_NAMES`] names.
    TooDeep,
    /// It has a control character.
    Control,
}

impl fmt::Display for BadPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BadPath::Empty => f.write_str("the path is empty"),
            BadPath::TooLong => write!(f, "the path is too long: {FS_MAX_PATH} bytes, {FS_MAX_NAME} a name"),
            BadPath::TooDeep => write!(f, "the path has more than {MOST_NAMES} names"),
            BadPath::Control => f.write_str("the path has a control character"),
        }
    }
}

impl Path {
    /// Returns the path that `text` stands for. It begins at the root, with or without a `/`. `..`
    /// leaves the directory before it, as the text says; there is none above the root.
    pub fn new(text: &str) -> Result<Path, BadPath> {
        if text.is_empty() {
            return Err(BadPath::Empty);
        }
        if text.len() > FS_MAX_PATH {
            return Err(BadPath::TooLong);
        }
        if text.chars().any(is_control) {
            return Err(BadPath::Control);
        }
        let mut names: Vec<&str> = Vec::new();
        for name in text.split('/') {
            match name {
                "" | "." => {}
                ".." => {
                    names.pop();
                }
                name if name.len() > FS_MAX_NAME => return Err(BadPath::TooLong),
                name => names.push(name),
            }
        }
        if names.len() > MOST_NAMES {
            return Err(BadPath::TooDeep);
        }
        Ok(Path(alloc::format!("/{}", names.join("/"))))
    }

    /// Returns the path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns whether it is the root.
    pub fn is_root(&self) -> bool {
        self.0 == "/"
    }

    /// Returns the last name; empty for the root.
    pub fn name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or("")
    }

    /// Returns the directory that it is in; the root is in itself.
    pub fn parent(&self) -> Path {
        match self.0.rsplit_once('/') {
            Some(("", _)) | None => Path("/".into()),
            Some((parent, _)) => Path(parent.into()),
        }
    }

    /// Returns the path of `name` in this directory.
    pub fn join(&self, name: &str) -> Result<Path, BadPath> {
        Path::new(&alloc::format!("{}/{name}", self.0))
    }

    /// Returns this path as seen from `above`, if it is `above` or below it.
    pub fn below(&self, above: &Path) -> Option<Path> {
        self.text_below(above).map(|text| Path(text.into()))
    }

    /// Returns whether this path is `above` or below it.
    pub fn is_below(&self, above: &Path) -> bool {
        self.text_below(above).is_some()
    }

    fn text_below(&self, above: &Path) -> Option<&str> {
        if above.is_root() {
            return Some(&self.0);
        }
        match self.0.strip_prefix(&above.0)? {
            "" => Some("/"),
            rest => Some(rest).filter(|rest| rest.starts_with('/')),
        }
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Returns whether a character controls a terminal, or the direction of text, rather than being
/// shown (Unicode: Cc, and the formatting characters that hide or reorder others).
fn is_control(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// Returns whether a path can have this name.
pub fn is_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..")
        && name.len() <= FS_MAX_NAME
        && !name.contains('/')
        && !name.chars().any(is_control)
}

/// Returns a name for a terminal: characters that control one are question marks.
pub fn shown(name: &str) -> String {
    name.chars().map(|character| if is_control(character) { '?' } else { character }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn path(text: &str) -> String {
        Path::new(text).unwrap().as_str().into()
    }

    #[test]
    fn a_path_has_one_form() {
        for same in ["/mnt/a", "mnt/a", "//mnt//a/", "/mnt/./a/.", "/x/../mnt/b/../a", "/../../mnt/a"] {
            assert_eq!(path(same), "/mnt/a");
        }
        for root in ["/", "//", ".", "..", "/a/..", "./../.."] {
            assert_eq!(path(root), "/");
            assert!(Path::new(root).unwrap().is_root());
        }
    }

    #[test]
    fn a_bad_path_is_refused_with_the_reason() {
        assert_eq!(Path::new(""), Err(BadPath::Empty));
        assert_eq!(Path::new(&"a/".repeat(FS_MAX_PATH)), Err(BadPath::TooLong));
        assert_eq!(Path::new(&"a".repeat(FS_MAX_NAME + 1)), Err(BadPath::TooLong));
        assert_eq!(Path::new(&"a/".repeat(MOST_NAMES + 1)), Err(BadPath::TooDeep));
        assert!(Path::new(&"a/".repeat(MOST_NAMES)).is_ok());
        for bad in ["/a\n", "/\u{1b}[2J", "/a\0b", "/\u{202e}txt", "/\u{85}"] {
            assert_eq!(Path::new(bad), Err(BadPath::Control));
        }
    }

    #[test]
    fn parts_of_a_path() {
        let deep = Path::new("/mnt/a/b.txt").unwrap();
        assert_eq!((deep.name(), deep.parent().as_str()), ("b.txt", "/mnt/a"));
        let root = Path::new("/").unwrap();
        assert_eq!((root.name(), root.parent().as_str()), ("", "/"));
        assert_eq!(Path::new("/mnt").unwrap().parent(), root);
        assert_eq!(root.join("mnt").unwrap().join("a").unwrap().as_str(), "/mnt/a");
    }

    #[test]
    fn below_is_by_whole_names() {
        let below = |path: &str, above: &str| {
            Path::new(path).unwrap().below(&Path::new(above).unwrap()).map(|path| path.as_str().to_string())
        };
        assert_eq!(below("/mnt/a", "/mnt").as_deref(), Some("/a"));
        assert_eq!(below("/mnt", "/mnt").as_deref(), Some("/"));
        assert_eq!(below("/mnt/a", "/").as_deref(), Some("/mnt/a"));
        assert_eq!(below("/mntx", "/mnt"), None);
        assert_eq!(below("/mn", "/mnt"), None);
    }

    #[test]
    fn names_from_disks() {
        assert!(["a", "a b", ".x", "...", "Grüße", "日本"].into_iter().all(is_name));
        assert!(!["", ".", "..", "a/b", "a\n", "\u{1b}[31m", "x\u{202e}y"].into_iter().any(is_name));
        assert_eq!(shown("a\u{1b}[31m\r\u{202e}é"), "a?[31m??é");
    }

    proptest! {
        /// A path that was made stays the same when it is made again, and leads nowhere else.
        #[test]
        fn a_path_is_stable(text in "[a-c./]{0,40}") {
            if let Ok(path) = Path::new(&text) {
                prop_assert_eq!(Path::new(path.as_str()), Ok(path.clone()));
                prop_assert!(path.is_root() || path.as_str()[1..].split('/').all(is_name));
                prop_assert_eq!(path.is_root(), path.name().is_empty());
            }
        }
    }
}
