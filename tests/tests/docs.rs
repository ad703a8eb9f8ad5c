//! The tests, files and commands that the documents name exist.

use ringfence_abi::manifest::Kind;
use std::path::{Path, PathBuf};

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Returns all documents below `docs`.
fn documents() -> Vec<PathBuf> {
    fn below(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() {
                below(&entry, found);
            } else if entry.extension().is_some_and(|ending| ending == "md") {
                found.push(entry);
            }
        }
    }
    let mut found = Vec::new();
    below(&ringfence::project().join("docs"), &mut found);
    found
}

/// Returns all text between backticks in the documents, with the names of the documents.
fn quoted() -> Vec<(String, String)> {
    let project = ringfence::project();
    let mut documents = documents();
    documents.extend(["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"].map(|name| project.join(name)));
    let mut quoted = Vec::new();
    for document in documents {
        let text = read(&document);
        // Code blocks contain no such names.
        let prose: String = text.split("```").step_by(2).collect();
        let name = document.file_name().unwrap().to_string_lossy().into_owned();
        quoted.extend(prose.split('`').skip(1).step_by(2).map(|quote| (name.clone(), quote.to_string())));
    }
    quoted
}

/// First parts of paths that are not modules of tests.
const OTHERS: [&str; 4] = ["bootloader_api", "device", "net", "ringfence_sdk"];

#[test]
fn tests_that_are_named_exist() {
    let tests = ringfence::project().join("tests/tests");
    let mut count = 0;
    for (document, quote) in quoted() {
        // Names of types begin with a capital letter.
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
        // A name may be cut short, and then stands for all names that begin like this.
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
        "kernel/hw/src/arch",
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
        // The kernel's files may be named by crate.
        let (name, rest) = quote.split_once('/').unwrap_or_default();
        let below = |folder: &str| project.join("kernel").join(folder).join(name).join("src").join(rest);
        let inside = ["", "classes"].map(below).into_iter().filter(|_| name != "kernel");
        let places = roots.iter().map(|root| project.join(root).join(&quote)).chain(inside);
        let exists = places.into_iter().any(|place| place.is_file());
        assert!(exists, "{document} names {quote}");
    }
    assert!(count > 40, "only {count} files are named");
}

/// The book contains only the documents that its summary lists.
#[test]
fn the_summary_lists_every_document() {
    let docs = ringfence::project().join("docs");
    let summary = read(&docs.join("SUMMARY.md"));
    for document in documents() {
        let path = document.strip_prefix(&docs).unwrap().to_string_lossy().into_owned();
        assert!(path == "SUMMARY.md" || summary.contains(&format!("]({path})")), "SUMMARY.md does not list {path}");
    }
}

/// The targets of links exist.
#[test]
fn links_lead_somewhere() {
    let project = ringfence::project();
    let mut documents = documents();
    documents.extend(["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"].map(|name| project.join(name)));
    let mut count = 0;
    for document in documents {
        let text = read(&document);
        let prose: String = text.split("```").step_by(2).collect();
        let targets = prose.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target);
        for target in targets.filter(|target| !target.contains("://")) {
            let (path, _) = target.split_once('#').unwrap_or((target, ""));
            count += 1;
            let is_there = path.is_empty() || document.parent().unwrap().join(path).exists();
            assert!(is_there, "{} links to {target}", document.display());
        }
    }
    assert!(count > 40, "only {count} links were found");
}

/// Each external crate that the kernel depends on has a reason in the document.
#[test]
fn every_dependency_of_the_kernel_has_a_reason() {
    let project = ringfence::project();
    let reasons = read(&project.join("docs/dependencies.md"));
    let ours = ["hw", "host", "block", "fs", "net", "scsi"];
    let mut count = 0;
    let classes = ["block", "fs", "net", "scsi"].map(|class| format!("kernel/classes/{class}"));
    for folder in ["kernel", "kernel/hw", "kernel/host"].into_iter().chain(classes.iter().map(String::as_str)) {
        let manifest = read(&project.join(folder).join("Cargo.toml"));
        let (_, after) = manifest.split_once("[dependencies]\n").unwrap();
        let names = after.lines().take_while(|line| !line.is_empty());
        let names = names.map(|line| line.split([' ', '.']).next().unwrap());
        for name in names.filter(|name| !name.starts_with("ringfence") && !ours.contains(name)) {
            count += 1;
            assert!(reasons.contains(&format!("`{name}`")), "docs/dependencies.md does not say what {name} is for");
        }
    }
    assert!(count > 20, "only {count} dependencies were found");
}

/// The text between two marks in `docs/abi.md` is generated from the ABI's tables.
/// `RINGFENCE_BLESS=1` writes it.
#[test]
fn the_tables_of_the_abi_are_current() {
    use ringfence_abi::manifest::Kind;
    use ringfence_abi::service::{self, Argument, SERVICES};
    let argument = |Argument { name, kind }: &Argument| match kind {
        service::Kind::GivenBack => format!("`{name}`: address, given back"),
        other => format!("`{name}`: {}", format!("{other:?}").to_lowercase()),
    };
    let mut services = String::from("| | service | arguments | what | value | refuses |\n|---|---|---|---|---|---|\n");
    for (number, service) in SERVICES.iter().enumerate() {
        let arguments: Vec<String> = service.arguments.iter().map(argument).collect();
        let row = [&arguments.join(", "), service.what, service.value, service.refuses].join(" | ");
        services += &format!("| {number} | `{}` | {row} |\n", service.symbol);
    }
    let mut classes = String::from("| | kind | offers | shares with the kernel, in bytes |\n|---|---|---|---|\n");
    for kind in Kind::ALL.iter().copied() {
        let offers = if kind.offers().is_empty() { String::new() } else { format!("`{}`", kind.offers()) };
        classes += &format!("| {} | `{kind:?}` | {offers} | {} |\n", kind as u32, kind.queue_bytes());
    }
    let path = ringfence::project().join("docs/abi.md");
    let mut page = read(&path);
    for (name, table) in [("services", services), ("classes", classes)] {
        let [start, end] = [format!("<!-- {name} -->\n"), format!("<!-- /{name} -->")];
        let from = page.find(&start).expect("the first mark") + start.len();
        let to = from + page[from..].find(&end).expect("the second mark");
        page.replace_range(from..to, &table);
    }
    if std::env::var_os("RINGFENCE_BLESS").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    assert!(read(&path) == page, "docs/abi.md is not what the ABI says");
}

/// A row of a table is one line: the next line would be a row of its own.
#[test]
fn each_row_of_a_table_ends() {
    let is_cut_off = |line: &&str| line.starts_with("| ") && !line.ends_with(" |");
    let broken = |path: PathBuf| {
        let text = read(&path);
        let prose = text.split("```").step_by(2).flat_map(str::lines);
        prose.filter(is_cut_off).map(|line| format!("{}: {line}", path.display())).collect::<Vec<_>>()
    };
    let documents = documents().into_iter().filter(|path| path.extension().is_some_and(|end| end == "md"));
    let broken: Vec<String> = documents.chain([ringfence::project().join("README.md")]).flat_map(broken).collect();
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// Prose has at most 100 columns: comments, and documents except for tables and pasted output.
#[test]
fn prose_fits_100_columns() {
    const COLUMNS: usize = 100;
    fn below(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            match entry.is_dir() {
                true if entry.ends_with("target") => {}
                true => below(&entry, found),
                false => found.push(entry),
            }
        }
    }
    let project = ringfence::project();
    let mut sources = Vec::new();
    for folder in ["boot", "drivers", "kernel", "tests"] {
        below(&project.join(folder), &mut sources);
    }
    let mut long: Vec<String> = Vec::new();
    let mut note = |path: &Path, line: &str| {
        if line.chars().count() > COLUMNS {
            long.push(format!("{}: {line}", path.display()));
        }
    };
    for path in sources.iter().filter(|path| path.extension().is_some_and(|end| end == "rs")) {
        read(path).lines().filter(|line| line.trim_start().starts_with("//")).for_each(|line| note(path, line));
    }
    let names = ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"];
    for path in documents().into_iter().chain(names.map(|name| project.join(name))) {
        // `docs/attacks.md` consists of tables.
        if path.ends_with("attacks.md") || path.extension().is_none_or(|end| end != "md") {
            continue;
        }
        let text = read(&path);
        let prose = text.split("```").step_by(2).flat_map(str::lines);
        prose.filter(|line| !line.starts_with(['|', '<'])).for_each(|line| note(&path, line));
    }
    assert!(long.is_empty(), "{}", long.join("\n"));
}

/// No file of the repository is large: neither a dump of memory nor the output of a build is
/// committed by mistake.
#[test]
fn no_file_of_the_repository_is_large() {
    const MOST_BYTES: u64 = 1 << 20;
    let project = ringfence::project();
    // The sources may be had without the repository.
    if !project.join(".git").exists() {
        return;
    }
    let listed = std::process::Command::new("git")
        .args(["-c", "safe.directory=*", "ls-files", "-z"])
        .current_dir(&project)
        .output()
        .unwrap();
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    let names = String::from_utf8(listed.stdout).unwrap();
    // A file that is about to be deleted is not there any more.
    let bytes = |name: &str| std::fs::metadata(project.join(name)).map_or(0, |metadata| metadata.len());
    let large: Vec<&str> = names.split_terminator('\0').filter(|name| bytes(name) > MOST_BYTES).collect();
    assert!(names.len() > 1000 && large.is_empty(), "{large:?}");
}

/// The oldest Rust that is allowed is the version with which everything is run.
#[test]
fn the_oldest_rust_is_the_one_that_is_tested() {
    let value = |file: &str, key: &str| {
        let text = read(&ringfence::project().join(file));
        let found = text.lines().find_map(|line| line.trim().strip_prefix(key));
        found.unwrap_or_else(|| panic!("{file} has no {key}")).trim_matches([' ', '"']).to_string()
    };
    let oldest = value("Cargo.toml", "rust-version =");
    let tested = value(".github/workflows/ci.yml", "RUSTUP_TOOLCHAIN:");
    assert_eq!(tested, format!("{oldest}.0"));
    assert_eq!(value("rust-toolchain.toml", "channel ="), tested);
}

/// docs/conformance.md lists each test of the suite with its meaning.
#[test]
fn the_conformance_suite_is_documented() {
    let document = read(&ringfence::project().join("docs/conformance.md"));
    for kind in [Kind::Nic, Kind::Scsi, Kind::Fs] {
        for (test, meaning) in ringfence::conform::meanings(kind) {
            assert!(document.contains(&format!("| `{test}` | {meaning} | ")), "{test}: {meaning}");
        }
    }
}
