//! The kernel is a stack of layers: no file imports anything from a layer above its own, and few files import each other in a circle.

use petgraph::algo::tarjan_scc;
use petgraph::graph::DiGraph;
use proc_macro2::{TokenStream, TokenTree};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The folders and files right below `kernel/src`, from the bottom to the top; `docs/architecture.md` says what each is for.
const LAYERS: [&str; 23] = [
    "latency",
    "limits",
    "file",
    "memory",
    "arch",
    "pci",
    "iommu",
    "symbols",
    "console",
    "task",
    "ramdisk",
    "firmware",
    "domain",
    "service",
    "poll",
    "module",
    "supervise",
    "net",
    "scsi",
    "trial",
    "bench",
    "panic",
    "shell",
];

/// Most files that import each other in a circle.
const MOST_IN_A_CIRCLE: usize = 4;

/// A module's path from the crate's root.
type Module = Vec<String>;

/// Modules and their sources.
type Sources = BTreeMap<Module, String>;

/// All modules of the kernel.
fn kernel() -> Sources {
    fn add(folder: &Path, at: &Module, sources: &mut Sources) {
        for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            let name = entry.file_stem().unwrap().to_str().unwrap().to_string();
            let below = [at.clone(), vec![name.clone()]].concat();
            if entry.is_dir() {
                add(&entry, &below, sources);
            } else if entry.extension().is_some_and(|ending| ending == "rs") {
                let module = if name == "mod" { at.clone() } else { below };
                sources.insert(module, std::fs::read_to_string(&entry).unwrap());
            }
        }
    }
    let mut sources = Sources::new();
    add(&ringfence::project().join("kernel/src"), &Module::new(), &mut sources);
    // Everything meets there.
    sources.remove(&vec!["main".to_string()]).expect("the kernel has a main file");
    sources
}

/// All paths that `tokens` name, those of `use` with all that is between braces. `::` is two tokens.
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
            // The rest of a `use`.
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

/// The module that a path begins with that is in `module`, the longest one.
fn target(module: &Module, path: &[String], sources: &Sources) -> Option<Module> {
    let (first, rest) = path.split_first()?;
    let mut base = match first.as_str() {
        "crate" => Module::new(),
        "super" | "self" => module.clone(),
        _ => return None,
    };
    let mut rest = if first == "super" { path } else { rest };
    while let Some(("super", after)) = rest.split_first().map(|(first, after)| (first.as_str(), after)) {
        base.pop()?;
        rest = after;
    }
    let whole = [base, rest.to_vec()].concat();
    // Exported macros are at the root, wherever they are defined.
    if let [name] = whole.as_slice() {
        let defines = |text: &str| text.contains("#[macro_export]") && text.contains(&format!("macro_rules! {name} "));
        if let Some((module, _)) = sources.iter().find(|(_, text)| defines(text)) {
            return Some(module.clone());
        }
    }
    (1..=whole.len()).rev().map(|len| whole[..len].to_vec()).find(|module| sources.contains_key(module))
}

/// Who imports whom.
fn arrows(sources: &Sources) -> BTreeSet<(Module, Module)> {
    let mut arrows = BTreeSet::new();
    for (module, text) in sources {
        let tokens: TokenStream = text.parse().unwrap_or_else(|error| panic!("{}: {error}", module.join("::")));
        let targets = paths(tokens).into_iter().filter_map(|path| target(module, &path, sources));
        arrows.extend(targets.filter(|target| target != module).map(|target| (module.clone(), target)));
    }
    arrows
}

/// The arrows that lead to a layer above, or from or to what is no layer.
fn upward(arrows: &BTreeSet<(Module, Module)>) -> Vec<String> {
    let layer = |module: &Module| LAYERS.iter().position(|layer| Some(*layer) == module.first().map(String::as_str));
    let is_wrong = |(from, to): &&(Module, Module)| match (layer(from), layer(to)) {
        (Some(from), Some(to)) => to > from,
        _ => true,
    };
    arrows.iter().filter(is_wrong).map(|(from, to)| format!("{} -> {}", from.join("::"), to.join("::"))).collect()
}

/// Files that import each other in a circle, the longest first.
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
    let there: BTreeSet<String> = kernel().into_keys().map(|module| module[0].clone()).collect();
    assert_eq!(there, LAYERS.map(String::from).into(), "what is right below kernel/src are the layers");
}

/// The other tests would not see what is not found here.
#[test]
fn imports_are_found_however_they_are_written() {
    let module = |path: &str| path.split("::").map(String::from).collect::<Module>();
    let sources: Sources = [
        ("memory", "use crate::{limits::{self, Limit}, arch as cpu}; // crate::shell\n"),
        ("memory::frames", "fn f() { println!(\"{}\", crate::console::flood::of()); }"),
        ("memory::tables", "use super::frames; fn f(x: &super::super::scsi::Disk) {}"),
        ("console::flood", "const TEXT: &str = \"crate::shell\";"),
        ("limits", "use crate::shout;"),
        ("task", "#[macro_export]\nmacro_rules! shout { () => {} }"),
        ("arch", ""),
        ("scsi", ""),
        ("shell", "use self::deep::Thing;"),
        ("shell::deep", "use super::deep;"),
    ]
    .into_iter()
    .map(|(path, text)| (module(path), text.to_string()))
    .collect();
    let found = arrows(&sources);
    let expected = [
        ("limits", "task"),
        ("memory", "limits"),
        ("memory", "arch"),
        ("memory::frames", "console::flood"),
        ("memory::tables", "memory::frames"),
        ("memory::tables", "scsi"),
        ("shell", "shell::deep"),
    ];
    assert_eq!(found, expected.map(|(from, to)| (module(from), module(to))).into());
    assert_eq!(
        upward(&found),
        ["limits -> task", "memory -> arch", "memory::frames -> console::flood", "memory::tables -> scsi"],
        "those that go up"
    );
}
