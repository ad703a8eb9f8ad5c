//! The kernel is a stack of layers. No file imports from a layer above its own, and few files
//! import each other in a circle.

use petgraph::algo::tarjan_scc;
use petgraph::graph::DiGraph;
use proc_macro2::{TokenStream, TokenTree};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The crates of the kernel, from bottom to top, and the folders and files right below their roots,
/// also from bottom to top. Each class is one layer. `docs/architecture.md` describes the layers.
/// Cargo enforces the order of the crates; this test enforces the order within them.
const LAYERS: [(&str, &str, &[&str]); 7] = [
    (
        "hw",
        "kernel/hw/src",
        &[
            "latency", "memory", "arch", "lock", "pci", "fixed", "iommu", "symbols", "console", "link", "panic",
            "task", "firmware", "boot", "space", "upcall",
        ],
    ),
    (
        "host",
        "kernel/host/src",
        &[
            "file",
            "ramdisk",
            "pushed",
            "evidence",
            "domain",
            "service",
            "poll",
            "debugger",
            "requests",
            "promote",
            "module",
            "reload",
            "supervise",
        ],
    ),
    ("block", "kernel/classes/block/src", &[]),
    ("net", "kernel/classes/net/src", &[]),
    ("scsi", "kernel/classes/scsi/src", &[]),
    ("fs", "kernel/classes/fs/src", &[]),
    ("kernel", "kernel/src", &["trial", "bench", "panic", "traced", "streams", "shell", "page", "debugger", "remote"]),
];

/// Largest number of files that may import each other in a circle.
const MOST_IN_A_CIRCLE: usize = 4;

/// A module's path, which begins with its crate.
type Module = Vec<String>;

/// Modules, and their source text.
type Sources = BTreeMap<Module, String>;

/// Reads all modules of the kernel.
fn kernel() -> Sources {
    fn add(folder: &Path, at: &Module, sources: &mut Sources) {
        for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            let name = entry.file_stem().unwrap().to_str().unwrap().to_string();
            let below = [at.clone(), vec![name.clone()]].concat();
            // In crates with layers, the root file imports from all layers.
            let is_root = at.len() == 1 && ["lib", "main"].contains(&name.as_str());
            if is_root && has_layers(&at[0]) {
                continue;
            }
            if entry.is_dir() {
                add(&entry, &below, sources);
            } else if entry.extension().is_some_and(|ending| ending == "rs") {
                let module = if name == "mod" || is_root { at.clone() } else { below };
                sources.insert(module, std::fs::read_to_string(&entry).unwrap());
            }
        }
    }
    let mut sources = Sources::new();
    for (name, folder, _) in LAYERS {
        add(&ringfence::project().join(folder), &vec![name.to_string()], &mut sources);
    }
    sources
}

fn has_layers(name: &str) -> bool {
    LAYERS.iter().any(|(layer, _, below)| *layer == name && !below.is_empty())
}

/// Returns all paths in `tokens`, with every path between the braces of a `use`. `::` is two
/// tokens.
fn paths(tokens: TokenStream) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    collect(tokens, &[], &mut found);
    found
}

fn collect(tokens: TokenStream, prefix: &[String], found: &mut Vec<Vec<String>>) {
    let mut path: Vec<String> = prefix.to_vec();
    let mut colons = 0;
    for token in tokens {
        match token {
            TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
            TokenTree::Ident(ident) if colons == 2 || path.len() == prefix.len() => {
                path.push(ident.to_string());
                colons = 0;
            }
            // The braces of a `use`.
            TokenTree::Group(group) if colons == 2 && path.len() > prefix.len() => {
                collect(group.stream(), &path, found);
                (path, colons) = (prefix.to_vec(), 0);
            }
            other => {
                found.push(std::mem::replace(&mut path, prefix.to_vec()));
                colons = 0;
                match other {
                    TokenTree::Ident(ident) => path.push(ident.to_string()),
                    TokenTree::Group(group) => collect(group.stream(), &[], found),
                    _ => {}
                }
            }
        }
    }
    found.push(path);
}

/// Returns the exported macros, and the module that each is defined in.
fn macros(sources: &Sources) -> BTreeMap<&str, &Module> {
    let exporting = sources.iter().filter(|(_, text)| text.contains("#[macro_export]"));
    let defined = exporting.flat_map(|(module, text)| text.split("macro_rules! ").skip(1).map(move |at| (at, module)));
    defined.filter_map(|(at, module)| Some((at.split_once(' ')?.0, module))).collect()
}

/// Returns the longest module that `path` begins with, when it is used in `module`.
fn target(module: &Module, path: &[String], sources: &Sources, macros: &BTreeMap<&str, &Module>) -> Option<Module> {
    let (first, rest) = path.split_first()?;
    let mut base = match first.as_str() {
        "crate" => module[..1].to_vec(),
        "super" | "self" => module.clone(),
        // Another crate; cargo makes sure that it is below.
        _ => return None,
    };
    let mut rest = if first == "super" { path } else { rest };
    while let Some(("super", after)) = rest.split_first().map(|(first, after)| (first.as_str(), after)) {
        base.pop()?;
        rest = after;
    }
    let whole = [base, rest.to_vec()].concat();
    // Exported macros are at the crate's root, wherever they are defined.
    if let [_, name] = whole.as_slice()
        && let Some(module) = macros.get(name.as_str())
    {
        return Some((*module).clone());
    }
    (1..=whole.len()).rev().map(|len| whole[..len].to_vec()).find(|module| sources.contains_key(module))
}

/// Returns all imports, as pairs of the importing and the imported module.
fn arrows(sources: &Sources) -> BTreeSet<(Module, Module)> {
    let mut arrows = BTreeSet::new();
    let macros = macros(sources);
    for (module, text) in sources {
        let tokens: TokenStream = text.parse().unwrap_or_else(|error| panic!("{}: {error}", module.join("::")));
        let targets = paths(tokens).into_iter().filter_map(|path| target(module, &path, sources, &macros));
        arrows.extend(targets.filter(|target| target != module).map(|target| (module.clone(), target)));
    }
    arrows
}

/// Returns all layers, from bottom to top.
fn units() -> Vec<Module> {
    let below = |name: &str, below: &[&str]| match below {
        [] => vec![vec![name.to_string()]],
        below => below.iter().map(|unit| vec![name.to_string(), unit.to_string()]).collect(),
    };
    LAYERS.iter().flat_map(|(name, _, names)| below(name, names)).collect()
}

/// Returns the layer that a module is in, or would be in.
fn unit_of(module: &Module) -> Module {
    let len = if has_layers(&module[0]) { 2 } else { 1 };
    module[..len.min(module.len())].to_vec()
}

/// Returns the imports from a layer above, and the imports from or to a module outside all layers.
fn upward(arrows: &BTreeSet<(Module, Module)>) -> Vec<String> {
    let units = units();
    let layer = |module: &Module| units.iter().position(|unit| *unit == unit_of(module));
    let is_wrong = |(from, to): &&(Module, Module)| match (layer(from), layer(to)) {
        (Some(from), Some(to)) => to > from,
        _ => true,
    };
    arrows.iter().filter(is_wrong).map(|(from, to)| format!("{} -> {}", from.join("::"), to.join("::"))).collect()
}

/// Returns the groups of files that import each other in a circle, the largest first.
fn circles(arrows: &BTreeSet<(Module, Module)>) -> Vec<Vec<String>> {
    let mut graph = DiGraph::<String, ()>::new();
    let mut nodes = BTreeMap::new();
    for (from, to) in arrows {
        let [from, to] = [from, to].map(|module| {
            let name = module.join("::");
            *nodes.entry(name.clone()).or_insert_with(|| graph.add_node(name))
        });
        graph.add_edge(from, to, ());
    }
    let mut circles: Vec<Vec<String>> = tarjan_scc(&graph)
        .into_iter()
        .map(|circle| circle.into_iter().map(|node| graph[node].clone()).collect())
        .collect();
    circles.sort_by_key(|circle: &Vec<String>| std::cmp::Reverse(circle.len()));
    circles
}

#[test]
fn no_import_goes_up_a_layer() {
    let arrows = arrows(&kernel());
    assert!(arrows.len() > 300, "only {} imports were found", arrows.len());
    let upward = upward(&arrows);
    assert!(upward.is_empty(), "these imports go up a layer:\n{}", upward.join("\n"));
}

#[test]
fn few_files_import_each_other() {
    let circles = circles(&arrows(&kernel()));
    assert!(circles[0].len() <= MOST_IN_A_CIRCLE, "these import each other in a circle: {}", circles[0].join(", "));
}

#[test]
fn every_layer_is_there() {
    let there: BTreeSet<Module> = kernel().keys().map(unit_of).collect();
    assert_eq!(there, units().into_iter().collect(), "what is right below the crates' roots are the layers");
}

/// The other tests see only imports that are found here.
#[test]
fn imports_are_found_however_they_are_written() {
    let module = |path: &str| path.split("::").map(String::from).collect::<Module>();
    let sources: Sources = [
        ("hw::memory", "use crate::{latency::{self, tsc}, arch as cpu}; // crate::console\n"),
        ("hw::memory::frames", "fn f() { println!(\"{}\", crate::console::flood::of()); }"),
        ("hw::memory::tables", "use super::frames; fn f(x: &super::super::task::Task) {}"),
        ("hw::console::flood", "const TEXT: &str = \"crate::task\";"),
        ("hw::latency", "use crate::shout;"),
        ("hw::task", "#[macro_export]\nmacro_rules! shout { () => {} }"),
        ("hw::arch", ""),
        ("net", "use hw::{arch::gates, print}; use self::client; use std::io; for net in list {}"),
        ("net::client", "use super::client; use crate::queues::Queues; use abi::scsi;"),
        ("net::queues", ""),
        ("kernel::shell", "use self::deep::Thing;"),
        ("kernel::shell::deep", "use super::deep;"),
    ]
    .into_iter()
    .map(|(path, text)| (module(path), text.to_string()))
    .collect();
    let found = arrows(&sources);
    let expected = [
        ("hw::latency", "hw::task"),
        ("hw::memory", "hw::latency"),
        ("hw::memory", "hw::arch"),
        ("hw::memory::frames", "hw::console::flood"),
        ("hw::memory::tables", "hw::memory::frames"),
        ("hw::memory::tables", "hw::task"),
        ("net", "net::client"),
        ("net::client", "net::queues"),
        ("kernel::shell", "kernel::shell::deep"),
    ];
    assert_eq!(found, expected.map(|(from, to)| (module(from), module(to))).into());
    assert_eq!(
        upward(&found),
        [
            "hw::latency -> hw::task",
            "hw::memory -> hw::arch",
            "hw::memory::frames -> hw::console::flood",
            "hw::memory::tables -> hw::task",
        ],
        "those that go up"
    );
}

/// Only few crates contain unsafe code. All others forbid it to the compiler.
#[test]
fn unsafe_code_is_in_few_crates() {
    /// Drivers whose names begin like this attack the kernel on purpose.
    const ATTACKERS: [&str; 2] = ["drivers/rogue", "drivers/snippets"];
    const MAY: [&str; 3] = ["kernel/hw", "boot/loader", "drivers/sdk"];
    let crates = ringfence::project().join("Cargo.toml");
    assert!(crates.is_file());
    let mut seen = 0;
    for root in
        ["kernel", "kernel/abi", "kernel/core", "kernel/hw", "kernel/host", "boot/runner", "boot/loader", "tests"]
            .into_iter()
            .map(String::from)
            .chain(folders("kernel/classes"))
            .chain(folders("drivers"))
    {
        let name = |file: &str| ringfence::project().join(&root).join("src").join(file);
        let Some(file) = ["lib.rs", "main.rs"].into_iter().map(name).find(|file| file.is_file()) else { continue };
        let forbids = std::fs::read_to_string(&file).unwrap().contains("#![forbid(unsafe_code)]");
        assert!(
            forbids || MAY.contains(&root.as_str()) || ATTACKERS.iter().any(|name| root.starts_with(name)),
            "{} does not forbid unsafe code",
            file.display()
        );
        seen += 1;
    }
    assert!(seen > 15, "only {seen} crates were found");
}

fn folders(of: &str) -> Vec<String> {
    let entries = std::fs::read_dir(ringfence::project().join(of)).unwrap().map(|entry| entry.unwrap());
    entries.map(|entry| format!("{of}/{}", entry.file_name().to_str().unwrap())).collect()
}
