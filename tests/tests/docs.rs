//! The documents name tests, files and commands that are there.

use std::path::{Path, PathBuf};

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// What is between backticks in all documents, with the name of the document.
fn quoted() -> Vec<(String, String)> {
    let project = ringfence::project();
    let mut documents: Vec<PathBuf> =
        std::fs::read_dir(project.join("docs")).unwrap().map(|entry| entry.unwrap().path()).collect();
    documents.push(project.join("README.md"));
    let mut quoted = Vec::new();
    for document in documents {
        let text = read(&document);
        // Code blocks are no names.
        let prose: String = text.split("```").step_by(2).collect();
        let name = document.file_name().unwrap().to_string_lossy().into_owned();
        quoted.extend(prose.split('`').skip(1).step_by(2).map(|quote| (name.clone(), quote.to_string())));
    }
    quoted
}

/// What is no module of tests.
const OTHERS: [&str; 4] = ["bootloader_api", "device", "net", "ringfence_sdk"];

#[test]
fn tests_that_are_named_exist() {
    let tests = ringfence::project().join("tests/tests");
    let mut count = 0;
    for (document, quote) in quoted() {
        // Types begin otherwise.
        let is_type = |name: &str| name.starts_with(|first: char| first.is_uppercase());
        let is_test = |(module, name): &(&str, &str)| !is_type(module) && !is_type(name);
        let Some((module, name)) = quote.split_once("::").filter(is_test) else { continue };
        let file = [tests.join(format!("qemu/{module}.rs")), tests.join(format!("{module}.rs"))];
        if OTHERS.contains(&module) {
            continue;
        }
        let file = file.into_iter().find(|file| file.is_file());
        let text = read(&file.unwrap_or_else(|| panic!("{document} names {quote}")));
        count += 1;
        // A name may be cut short, and stand for all.
        let name = match name.strip_suffix("...").or(name.strip_suffix('*')) {
            Some(beginning) => beginning.to_string(),
            None => format!("{name}("),
        };
        assert!(text.contains(&format!("fn {name}")), "{document} names {quote}");
    }
    assert!(count > 20, "only {count} tests are named");
}

#[test]
fn files_that_are_named_exist() {
    let project = ringfence::project();
    let roots = [
        "",
        "docs",
        "kernel/src",
        "kernel/src/arch",
        "kernel/abi/src",
        "boot/runner/src",
        "boot/runner/src/campaign",
        "tests/tests/qemu",
        "tests/src",
    ];
    let mut count = 0;
    for (document, quote) in quoted() {
        let is_path = [".rs", ".S", ".md"].iter().any(|ending| quote.ends_with(ending)) && !quote.contains([' ', '*']);
        if !is_path {
            continue;
        }
        count += 1;
        // Those of the kernel's logic and of what it shares with drivers are named by crate.
        let inside = ["core", "abi"].iter().find_map(|name| {
            Some(project.join(format!("kernel/{name}/src")).join(quote.strip_prefix(&format!("{name}/"))?))
        });
        let places = roots.iter().map(|root| project.join(root).join(&quote)).chain(inside);
        let exists = places.into_iter().any(|place| place.is_file());
        assert!(exists, "{document} names {quote}");
    }
    assert!(count > 40, "only {count} files are named");
}
