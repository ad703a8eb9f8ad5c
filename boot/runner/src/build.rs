//! Builds the loader, the kernel and the modules.
//!
//! The kernel is linked at fixed addresses in the top 2 GiB. A module is a shared object whose
//! undefined symbols are its requests for services. All code is optimized when the last crate of a
//! program is compiled. So the flags of that crate decide, and shared crates are compiled only
//! once.

use crate::check::{self, Finding};
use crate::toolchain::{BUILT_AS, TARGET, TARGET_32, Toolchain};
use crate::{holes, output, project, target};
use anyhow::{Context, Result, bail};
use ringfence_abi::layout::{IMAGE, STUB_BYTES, STUBS};
use ringfence_abi::manifest::{DomainKind, SEGMENTED_SUFFIX};
use ringfence_abi::service::SERVICES;
use std::ffi::OsString;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::SystemTime;

/// The files of a built system.
#[derive(Debug, Clone)]
pub struct System {
    /// The loader, for QEMU's `-kernel` or GRUB's `multiboot2`.
    pub loader: PathBuf,
    /// The kernel, with its symbols.
    pub kernel: PathBuf,
    /// The kernel as it is in the ramdisk, without debug information.
    pub packed_kernel: PathBuf,
    /// The modules.
    pub modules: Vec<Module>,
}

/// The files of a built module.
#[derive(Debug, Clone)]
pub struct Module {
    /// The module's name.
    pub name: String,
    /// The module with debug information, for gdb.
    pub debug: PathBuf,
    /// The module as it is in the ramdisk.
    pub packed: PathBuf,
}

/// Folders of `drivers/` that are not modules.
const NOT_MODULES: [&str; 1] = ["sdk"];
/// The modules that are built for paged domains only: their attacks are 64-bit code.
const PAGED_ONLY: [&str; 2] = ["rogue", "rogue-ss"];
/// The modules that are built for segmented domains only.
const SEGMENTED_ONLY: [&str; 1] = ["rogue-segment"];
/// Flags for the parts of a segmented module in C.
const C_FLAGS_32: [&str; 2] = ["-m32", "-ffunction-sections"];
/// Flags for loader and kernel. Modules use the target's defaults, with which code is
/// position-independent.
const KERNEL_FLAGS: [&str; 4] = ["-C", "relocation-model=static", "-C", "code-model=kernel"];
/// The debug information of the kernel: functions, inlined ones too, and lines. With that of
/// variables, few of which are left in optimized code, its last crate takes half as long again.
const KERNEL_DEBUG: &str = "limited";

/// Returns the folder for cargo's builds of the kernel.
fn bare() -> PathBuf {
    target().join("bare")
}

/// Returns the folder for cargo's builds of the loader and of modules, which run at the same time
/// as the kernel's. They have crates in common, and macros.
fn bare_modules() -> PathBuf {
    target().join("bare-modules")
}

/// Returns the place of a package's file below one of these folders.
fn built(dir: &Path, file: &str) -> PathBuf {
    dir.join(TARGET).join("release").join(file)
}

/// Returns the place of a package's archive for a kind of domain below one of these folders.
fn built_for(kind: DomainKind, dir: &Path, package: &str) -> PathBuf {
    let target = if kind == DomainKind::Segmented { TARGET_32 } else { TARGET };
    dir.join(target).join("release").join(format!("lib{}.a", package.replace('-', "_")))
}

/// Builds everything. `quiet` hides the compiler's messages unless it fails.
pub fn system(quiet: bool) -> Result<System> {
    let toolchain = Toolchain::find()?;
    let dir = bare();
    // Each package is built by a command of its own. If the loader were built together with the
    // kernel, it would get the features that only the kernel's dependencies want.
    let build = |package: &str, dir: &Path, debug: &str| {
        let mut cargo = toolchain.cargo("rustc", dir);
        cargo.env("CARGO_PROFILE_RELEASE_DEBUG", debug);
        run(cargo.args(["--release", "-p", package, "--"]).args(KERNEL_FLAGS), quiet)
    };
    if !dir.exists() {
        output::complain("ringfence: the first build for the bare machine: loader, kernel and modules");
    }
    let kernel = built(&dir, "ringfence-kernel");
    let packed_kernel = target().join("kernel.packed");
    // The kernel's last crate uses one CPU, and takes as long as all the others. So the loader and
    // the modules are built at the same time.
    let modules = std::thread::scope(|scope| {
        let modules = scope.spawn(|| {
            build("ringfence-loader", &bare_modules(), "full")?;
            modules(&toolchain, quiet)
        });
        build("ringfence-kernel", &dir, KERNEL_DEBUG)?;
        strip(&kernel, &packed_kernel)?;
        modules.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    Ok(System { loader: built(&bare_modules(), "ringfence-loader"), kernel, packed_kernel, modules })
}

/// Builds the project's modules.
fn modules(toolchain: &Toolchain, quiet: bool) -> Result<Vec<Module>> {
    let sources = module_sources()?;
    let all_but = |names: &[&str]| sources.iter().filter(|(name, _)| !names.contains(&&**name)).collect::<Vec<_>>();
    let mut modules = some_modules(DomainKind::Paged, toolchain, &all_but(&SEGMENTED_ONLY), quiet)?;
    if toolchain.has_32() {
        modules.extend(some_modules(DomainKind::Segmented, toolchain, &all_but(&PAGED_ONLY), quiet)?);
    }
    Ok(modules)
}

/// Builds these modules of the project for a kind of domain.
fn some_modules(
    kind: DomainKind,
    toolchain: &Toolchain,
    names: &[&(String, Source)],
    quiet: bool,
) -> Result<Vec<Module>> {
    let (dir, otherwise) = (bare_modules(), target().join("modules-otherwise"));
    let objects_of_c = if kind == DomainKind::Segmented { segmented() } else { target() };
    let packages: Vec<&str> = names.iter().filter_map(|(_, source)| source.package()).collect();
    if !packages.is_empty() {
        let mut cargo = cargo_for(kind, toolchain, "build", &dir);
        run(cargo.arg("--release").args(packages.iter().flat_map(|package| ["-p", package])), quiet)?;
    }
    // The usual build of a module stays when it is compiled in another way. Its dependencies are
    // compiled once for all ways.
    let objects = |name: &str, source: &Source, way: Option<&Way>| match (source, way) {
        (Source::Package(package), None) => Ok(vec![built_for(kind, &dir, package)]),
        (Source::Package(package), Some(way)) => {
            let mut cargo = cargo_for(kind, toolchain, "rustc", &otherwise);
            run(cargo.args(["--release", "-p", package, "--", "-C", way.rust]), true)?;
            Ok(vec![built_for(kind, &otherwise, package)])
        }
        (Source::C(source), way) => compile_c_for(kind, name, source, &objects_of_c, way),
    };
    let module = |(name, source): &&(String, Source)| {
        let usual = objects(name, source, None)?;
        link(kind, toolchain, name, &target(), &usual, |way| objects(name, source, Some(way)))
    };
    names.iter().map(module).collect()
}

/// Returns a cargo command that builds for a kind of domain into `dir`.
fn cargo_for(kind: DomainKind, toolchain: &Toolchain, subcommand: &str, dir: &Path) -> Command {
    match kind {
        DomainKind::Paged => toolchain.cargo(subcommand, dir),
        DomainKind::Segmented => toolchain.cargo_32(subcommand, dir),
    }
}

/// Returns the folder for objects of segmented modules in C.
fn segmented() -> PathBuf {
    target().join("segmented")
}

/// Runs clippy over all packages that are built for the bare machine, with warnings denied.
pub fn lint() -> Result<()> {
    let toolchain = Toolchain::find()?;
    let packages = ["ringfence-loader", "ringfence-kernel"].map(String::from).into_iter();
    let sources = module_sources()?;
    let modules = sources.iter().filter_map(|(_, source)| source.package().map(String::from));
    // The kernel is also checked without the features for measurements and tests.
    let bare_kernel = ["ringfence-kernel", "--no-default-features"];
    // The SDK's examples are checked because its documentation shows them.
    let examples = ["ringfence-sdk", "--examples"];
    let recording = ["ringfence-sdk", "--features=record"];
    let each = packages.chain(modules).map(|package| vec![package]);
    for package in each.chain([bare_kernel, examples, recording].map(|package| package.map(String::from).to_vec())) {
        let mut cargo = toolchain.cargo("clippy", &bare());
        run(cargo.args(["--quiet", "--release", "-p"]).args(&package).args(["--", "-D", "warnings"]), false)?;
    }
    let peer = project().join("boot/peer/measure.c");
    run(Command::new("gcc").args(["-Wall", "-Wextra", "-Werror", "-fsyntax-only"]).arg(&peer), true)?;
    for (name, source) in &sources {
        if let Source::C(folder) = source {
            for file in folder.files()? {
                run(folder.compiler(&file)?.args(["-Werror", "-fsyntax-only"]), true)
                    .with_context(|| format!("module {name}"))?;
            }
        }
    }
    Ok(())
}

/// Checks the module in a folder outside the project's drivers as [`lint`] checks those of the
/// project: clippy's and the C compiler's warnings are errors.
pub fn lint_module(folder: &Path) -> Result<()> {
    let manifest = folder.join("Cargo.toml");
    if manifest.is_file() {
        let mut cargo = Toolchain::find()?.cargo("clippy", &outside().join("lint"));
        cargo.args(["--quiet", "--release", "--lib", "--manifest-path"]).arg(manifest.canonicalize()?);
        return run(cargo.args(["--", "-D", "warnings"]), false);
    }
    let source = CSource(folder.to_path_buf());
    for file in source.files()? {
        run(source.compiler(&file)?.args(["-Werror", "-fsyntax-only"]), false)?;
    }
    Ok(())
}

/// Returns the folder of a module's sources at `path`, and the kind of domain to build it for:
/// `.32` behind the folder's name stands for segmented domains. `None` if there is no folder.
fn folder_at(path: &Path) -> Option<(&Path, DomainKind)> {
    if path.is_dir() {
        return Some((path, DomainKind::Paged));
    }
    let folder = Path::new(path.to_str()?.strip_suffix(SEGMENTED_SUFFIX)?);
    folder.is_dir().then_some((folder, DomainKind::Segmented))
}

/// Returns whether there is a folder for [`module`].
pub fn is_folder(path: &Path) -> bool {
    folder_at(path).is_some()
}

/// Builds the module in a folder outside the project's drivers: a Rust package that depends on the
/// SDK by its path, or files in C and C++. With `.32` behind the folder's name, the module is built
/// for segmented domains.
pub fn module(path: &Path) -> Result<Module> {
    let (folder, kind) = folder_at(path).with_context(|| format!("there is no folder {}", path.display()))?;
    match folder.join("Cargo.toml").is_file() {
        true => module_in_rust(folder, kind, &outside(), &[], &[]),
        false => module_in_c_for(folder, kind),
    }
}

/// Finds the toolchain, which must build for this kind of domain.
fn toolchain_for(kind: DomainKind) -> Result<Toolchain> {
    let toolchain = Toolchain::find()?;
    if kind == DomainKind::Segmented && !toolchain.has_32() {
        bail!("the compiler has no target {TARGET_32}; 'make setup' adds it");
    }
    Ok(toolchain)
}

/// Builds the project's module called `source`, with `.32` behind the name for segmented domains,
/// or the module in the folder `source`, whose path has a `/`. Shows the compiler's messages.
pub fn one(source: &str) -> Result<Module> {
    if source.contains('/') {
        return module(Path::new(source));
    }
    let own = source.strip_suffix(SEGMENTED_SUFFIX).unwrap_or(source);
    let sources: Vec<_> = module_sources()?.into_iter().filter(|(name, _)| name == own).collect();
    let sources: Vec<_> = sources.iter().collect();
    let is_segmented = own != source || SEGMENTED_ONLY.contains(&source);
    let kind = if is_segmented { DomainKind::Segmented } else { DomainKind::Paged };
    if is_segmented && PAGED_ONLY.contains(&own) {
        bail!("{own} is for paged domains only: its attacks are 64-bit code");
    }
    let built = some_modules(kind, &toolchain_for(kind)?, &sources, false)?;
    built.into_iter().next().with_context(|| format!("there is no module '{source}' in drivers/"))
}

/// Builds the Rust module called `source`, or in the folder `source`, with the SDK's feature that
/// records the driver's run.
pub fn recording(source: &str) -> Result<Module> {
    let own = project().join("drivers").join(source);
    let folder = if own.is_dir() && !source.contains('/') { own } else { PathBuf::from(source) };
    if !folder.join("Cargo.toml").is_file() {
        bail!("{source} is neither a driver of this project in Rust nor a folder with one");
    }
    let features = ["--features", "ringfence-sdk/record"];
    module_in_rust(&folder, DomainKind::Paged, &target().join("recording"), &features, &[])
}

/// Builds the module called `source`, or in the folder `source`, without optimization, so that a
/// debugger finds all variables.
pub fn for_debugger(source: &str) -> Result<Module> {
    let own = project().join("drivers").join(source);
    let folder = if own.is_dir() && !source.contains('/') { own } else { PathBuf::from(source) };
    let to = target().join("debugger");
    if folder.join("Cargo.toml").is_file() {
        return module_in_rust(&folder, DomainKind::Paged, &to, &[], &[("OPT_LEVEL", "0"), ("LTO", "false")]);
    }
    if !folder.is_dir() {
        bail!("{source} is neither a driver of this project nor a folder with one");
    }
    let name = folder.file_stem().context("the folder has no name")?.to_string_lossy().into_owned();
    let way = Way { rust: "opt-level=0", c: "-Og" };
    let objects = compile_c(&name, &CSource(folder), &to, &[way.c])?;
    link(DomainKind::Paged, &Toolchain::find()?, &name, &to, &objects, |_| Ok(objects.clone()))
}

/// Builds the Rust module in `folder` for a kind of domain into the folder `to`, with these
/// arguments for cargo, and with these settings of the profile in the place of the usual ones.
fn module_in_rust(
    folder: &Path,
    kind: DomainKind,
    to: &Path,
    arguments: &[&str],
    settings: &[(&str, &str)],
) -> Result<Module> {
    let manifest = folder.join("Cargo.toml").canonicalize()?;
    let toolchain = toolchain_for(kind)?;
    let package = package_name(&manifest)?;
    let name = package.strip_prefix("rf-").unwrap_or(&package).to_string();
    // Cargo takes packages of the same name and version in two folders for one, and would not build
    // the second. It does where the arguments for the compiler differ.
    let mut hasher = DefaultHasher::new();
    manifest.hash(&mut hasher);
    let metadata = format!("metadata={:x}", hasher.finish());
    let compile = |way: Option<&Way>| {
        let dir = to.join(if way.is_none() { "usual" } else { "otherwise" });
        let mut cargo = cargo_for(kind, &toolchain, "rustc", &dir);
        // The same settings as for the project's own packages.
        for (setting, value) in [
            ("PANIC", "abort"),
            ("OPT_LEVEL", "3"),
            ("DEBUG", "full"),
            ("LTO", "true"),
            ("CODEGEN_UNITS", "1"),
            ("OVERFLOW_CHECKS", "true"),
        ]
        .into_iter()
        .chain(settings.iter().copied())
        {
            cargo.env(format!("CARGO_PROFILE_RELEASE_{setting}"), value);
        }
        cargo.args(["--release", "--lib", "--crate-type", "staticlib", "--manifest-path"]).arg(&manifest);
        cargo.args(arguments);
        cargo.args(["--", "-C", &metadata]).args(way.map_or(Vec::new(), |way| vec!["-C", way.rust]));
        run(&mut cargo, way.is_some())?;
        Ok(vec![built_for(kind, &dir, &package)])
    };
    link(kind, &toolchain, &name, to, &compile(None)?, |way| compile(Some(way)))
}

/// Returns the folder for modules from outside the project, whose names may equal those of the
/// project's.
fn outside() -> PathBuf {
    target().join("outside")
}

/// Returns the name of the package of a manifest.
fn package_name(manifest: &Path) -> Result<String> {
    let mut cargo = Command::new("cargo");
    cargo.args(["metadata", "--no-deps", "--format-version", "1", "--manifest-path"]).arg(manifest);
    let metadata: serde_json::Value = serde_json::from_slice(&output_of(&mut cargo)?.stdout)?;
    let packages = metadata["packages"].as_array().into_iter().flatten();
    let mut own = packages.filter(|package| package["manifest_path"].as_str() == manifest.to_str());
    let name = own.next().and_then(|package| package["name"].as_str());
    Ok(name.with_context(|| format!("{} has no package", manifest.display()))?.to_string())
}

/// The sources of a module.
enum Source {
    /// The package with this name.
    Package(String),
    /// Files in C and C++.
    C(CSource),
}

impl Source {
    fn package(&self) -> Option<&str> {
        match self {
            Source::Package(package) => Some(package),
            Source::C(_) => None,
        }
    }
}

/// Returns all modules and their sources, sorted by name.
fn module_sources() -> Result<Vec<(String, Source)>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(project().join("drivers"))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if NOT_MODULES.contains(&name.as_str()) || !path.is_dir() {
            continue;
        }
        let manifest = path.join("Cargo.toml");
        let package = manifest.is_file().then(|| format!("rf-{name}"));
        if let Some(package) = &package
            && !fs::read_to_string(&manifest)?.lines().any(|line| line.trim() == format!("name = \"{package}\""))
        {
            bail!("drivers/{name}/Cargo.toml must call the package {package}: a driver has its folder's name");
        }
        let source = package.map_or_else(|| Source::C(CSource(path)), Source::Package);
        names.push((name, source));
    }
    names.sort_by(|(one, _), (other, _)| one.cmp(other));
    Ok(names)
}

/// Builds a module from a file in C or C++, or from all such files in a folder. The module has the
/// name of the file or the folder.
pub fn module_in_c(source: &Path) -> Result<Module> {
    module_in_c_for(source, DomainKind::Paged)
}

fn module_in_c_for(source: &Path, kind: DomainKind) -> Result<Module> {
    let toolchain = toolchain_for(kind)?;
    let name = source.file_stem().context("the file has no name")?.to_string_lossy().into_owned();
    let source = CSource(source.to_path_buf());
    // The objects of both kinds have the same names.
    let objects = outside().join(kind.name());
    let compile = |way: Option<&Way>| compile_c_for(kind, &name, &source, &objects, way);
    link(kind, &toolchain, &name, &outside(), &compile(None)?, |way| compile(Some(way)))
}

/// Compiles a module's C and C++ files for a kind of domain into folder `to`.
fn compile_c_for(kind: DomainKind, name: &str, source: &CSource, to: &Path, way: Option<&Way>) -> Result<Vec<PathBuf>> {
    let for_kind = if kind == DomainKind::Segmented { &C_FLAGS_32[..] } else { &[] };
    let flags: Vec<&str> = for_kind.iter().copied().chain(way.map(|way| way.c)).collect();
    // The usual build stays when a module is compiled in another way.
    let otherwise = to.join("otherwise");
    compile_c(name, source, if way.is_some() { &otherwise } else { to }, &flags)
}

/// A file in C or C++, or a folder with such files and, if they need flags, [`CSource::FLAGS`].
struct CSource(PathBuf);

impl CSource {
    /// The file with flags for the compiler, one per line, as clangd reads them.
    const FLAGS: &str = "compile_flags.txt";

    /// Returns the folder.
    fn folder(&self) -> &Path {
        if self.0.is_dir() { &self.0 } else { self.0.parent().unwrap_or(Path::new(".")) }
    }

    /// Returns the files in C and C++.
    fn files(&self) -> Result<Vec<PathBuf>> {
        if !self.0.is_dir() {
            return Ok(vec![self.0.clone()]);
        }
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.0)? {
            let path = entry?.path();
            if path.extension().is_some_and(|end| end == "c") || is_cpp(&path) {
                files.push(path);
            }
        }
        files.sort();
        if files.is_empty() {
            bail!("{} has neither a Cargo.toml nor a file in C or C++", self.0.display());
        }
        Ok(files)
    }

    /// Returns the compiler for a file, with all flags. The environment's `CC` or `CXX` may name
    /// it.
    fn compiler(&self, file: &Path) -> Result<Command> {
        let (variable, usual) = if is_cpp(file) { ("CXX", "g++") } else { ("CC", "gcc") };
        let mut compiler = Command::new(std::env::var_os(variable).unwrap_or(usual.into()));
        compiler.args(["-O2", "-g", "-Wall", "-Wextra", "-ffreestanding", "-fPIC"]);
        compiler.args(["-fno-stack-protector", "-fcf-protection=none", "-mgeneral-regs-only", "-mno-red-zone"]);
        if is_cpp(file) {
            compiler.args(["-std=c++17", "-fno-exceptions", "-fno-rtti", "-fno-threadsafe-statics"]);
            // As in C, fields that an initializer does not name are 0.
            compiler.arg("-Wno-missing-field-initializers");
        } else {
            compiler.arg("-std=c11");
        }
        compiler.arg(format!("-ffile-prefix-map={}={BUILT_AS}", project().display()));
        compiler.arg("-I").arg(crate::header::write()?);
        let flags = self.folder().join(CSource::FLAGS);
        if self.0.is_dir() && flags.is_file() {
            let flags = fs::read_to_string(&flags).with_context(|| format!("reading {}", flags.display()))?;
            compiler.args(flags.lines().map(str::trim).filter(|flag| !flag.is_empty()));
        }
        compiler.arg(file);
        Ok(compiler)
    }
}

fn is_cpp(file: &Path) -> bool {
    file.extension().is_some_and(|end| end == "cpp" || end == "cc" || end == "cxx")
}

/// Compiles a module's C and C++ files into folder `to`, with more flags than the usual ones.
fn compile_c(name: &str, source: &CSource, to: &Path, flags: &[&str]) -> Result<Vec<PathBuf>> {
    fs::create_dir_all(to)?;
    let mut objects = Vec::new();
    for file in source.files()? {
        let object = to.join(format!("{name}-{}.o", file.file_name().unwrap_or_default().to_string_lossy()));
        let mut compiler = source.compiler(&file)?;
        compiler.arg("-c").args(flags);
        compile_file(compiler, &object)?;
        objects.push(object);
    }
    Ok(objects)
}

/// Runs a compiler that makes `object`, and shows its warnings even if it succeeds. Does nothing if
/// the same command has made the object without a warning, and no file that it read has changed.
fn compile_file(mut compiler: Command, object: &Path) -> Result<()> {
    let made = object.with_extension("made");
    let command = format!("{compiler:?}\n");
    let state = |path: &str| anyhow::Ok(format!("{} {path}\n", state_of(path)?.0));
    if object.is_file()
        && let Ok(before) = fs::read_to_string(&made)
        && let Some(files) = before.strip_prefix(&*command)
        && files.split_inclusive('\n').all(|line| {
            let path = line.trim_end().split_once(' ').map_or("", |(_, path)| path);
            state(path).is_ok_and(|now| now == line)
        })
    {
        return Ok(());
    }
    // Without this file, the object is made anew.
    let _ = fs::remove_file(&made);
    let began = SystemTime::now();
    let list = object.with_extension(format!("{}.d", std::process::id()));
    compiler.arg("-MD").arg("-MF").arg(&list);
    let warned = replace(object, |to| show_warnings(compiler.arg("-o").arg(to)));
    let files = made_from(&fs::read_to_string(&list).unwrap_or_default());
    let _ = fs::remove_file(&list);
    // A file that was saved meanwhile may have been read before.
    let is_as_read = |path: &String| state_of(path).is_ok_and(|(_, saved)| saved < began);
    if !warned? && !files.is_empty() && files.iter().all(is_as_read) {
        let states = files.iter().map(|path| state(path)).collect::<Result<String>>()?;
        replace(&made, |to| Ok(fs::write(to, command + &states)?))?;
    } else {
        // Another run may have written one, of another object.
        let _ = fs::remove_file(&made);
    }
    Ok(())
}

/// Returns what tells one state of a file from another, and when it was saved.
fn state_of(path: &str) -> Result<(String, SystemTime)> {
    let file = fs::metadata(path)?;
    let saved = file.modified()?;
    Ok((format!("{}:{}", file.len(), saved.duration_since(SystemTime::UNIX_EPOCH)?.as_nanos()), saved))
}

/// Returns the files in a rule for `make`, behind the target: they are divided by blanks, and a
/// backslash is before the end of a line that goes on, and before a blank in a name.
fn made_from(rule: &str) -> Vec<String> {
    let files = rule.split_once(": ").map_or("", |(_, files)| files).replace("\\\n", " ").replace("\\ ", "\0");
    files.split_whitespace().map(|file| file.replace('\0', " ")).collect()
}

/// Runs a compiler, and shows its warnings even if it succeeds. Returns whether there were any.
fn show_warnings(compiler: &mut Command) -> Result<bool> {
    let output = output_of(compiler)?;
    if !output.stderr.is_empty() {
        output::complain(String::from_utf8_lossy(&output.stderr).trim_end());
    }
    Ok(!output.stderr.is_empty())
}

/// Another way to compile a module: the code does the same, but has other displacements in its
/// functions.
struct Way {
    /// The flag for rustc's `-C`.
    rust: &'static str,
    /// The flag for gcc.
    c: &'static str,
}

/// Ways that make the code no slower come first.
const WAYS: [Way; 8] = [
    Way { rust: "llvm-args=-align-all-nofallthru-blocks=2", c: "-falign-jumps=4" },
    Way { rust: "llvm-args=-align-all-nofallthru-blocks=3", c: "-falign-jumps=8" },
    Way { rust: "llvm-args=-align-all-nofallthru-blocks=4", c: "-falign-jumps=16" },
    Way { rust: "llvm-args=-x86-branches-within-32B-boundaries", c: "-falign-labels=4" },
    Way { rust: "llvm-args=-inline-threshold=150", c: "-fno-tree-tail-merge" },
    Way { rust: "llvm-args=-inline-threshold=400", c: "-fno-reorder-blocks" },
    Way { rust: "opt-level=s", c: "-Os" },
    Way { rust: "opt-level=1", c: "-O1" },
];
/// Modules that keep their holes: one loads SS on purpose.
const LEFT_ALONE: [&str; 1] = ["rogue-ss"];

/// Links a module for a kind of domain in `folder`, unless it is linked already.
///
/// A hole that stays in every way to compile the module ([`WAYS`]) is an error: the kernel would
/// refuse the module.
fn link(
    kind: DomainKind,
    toolchain: &Toolchain,
    name: &str,
    folder: &Path,
    objects: &[PathBuf],
    compile_otherwise: impl Fn(&Way) -> Result<Vec<PathBuf>>,
) -> Result<Module> {
    fs::create_dir_all(folder)?;
    let name = format!("{name}{}", kind.suffix());
    let [packed, debug, stamp_file] = ["rfm", "debug", "linked"].map(|end| folder.join(format!("{name}.{end}")));
    let module = Module { name, debug, packed };
    let stamped = stamp(objects)?;
    let is_there = module.debug.is_file() && module.packed.is_file();
    // A module that the kernel would refuse gets no stamp.
    if is_there && fs::read_to_string(&stamp_file).is_ok_and(|old| old == stamped) {
        return Ok(module);
    }
    let _ = fs::remove_file(&stamp_file);
    link_without_holes(kind, toolchain, &module, objects, compile_otherwise)?;
    refuse_refused(&module)?;
    replace(&stamp_file, |to| Ok(fs::write(to, &stamped)?))?;
    Ok(module)
}

/// Links a module for paged domains: a shared object that exports only its entry point.
fn link_paged(toolchain: &Toolchain, objects: &[&Path], to: &Path) -> Result<()> {
    let exports = target().join("module.exports");
    write_if_changed(&exports, "{ global: rf_upcall; local: *; };\n")?;
    let mut linker = toolchain.linker();
    linker.args(["-shared", "-z", "now", "-z", "relro", "-z", "separate-code", "-z", "noexecstack"]);
    linker.args(["--gc-sections", "--undefined=rf_upcall", "--undefined=rf_manifest", "--build-id=none"]);
    linker.arg(entry_first()?).arg(holes::KEEP_ROOM).arg("--version-script").arg(exports).args(objects);
    run(linker.arg("-o").arg(to), true)
}

/// Returns the linker's flag that places the entry point at the start of the code's first page.
/// Most of a poll is inlined into it and lies in one page then: a paged driver finds the CPU's TLB
/// empty, and QEMU looks up the target of each jump from one page to another.
fn entry_first() -> Result<OsString> {
    let order = target().join("module.order");
    write_if_changed(&order, "rf_upcall\n")?;
    let mut flag = OsString::from("--symbol-ordering-file=");
    flag.push(order);
    Ok(flag)
}

/// Links a module for segmented domains: a 32-bit executable at its place in the slot. The
/// addresses of the services' stubs are known, so that nothing is left to relocate; a symbol of a
/// service is defined only if the module refers to it, and that is its request.
fn link_segmented(toolchain: &Toolchain, objects: &[&Path], to: &Path) -> Result<()> {
    let stubs = target().join("stubs.ld");
    let lines = SERVICES
        .iter()
        .enumerate()
        .map(|(number, service)| format!("PROVIDE({} = {:#x});\n", service.symbol, STUBS + number as u64 * STUB_BYTES));
    // `core` for this target can unwind, and no module does: a panic ends it.
    let unwinding = ["_Unwind_Resume", "rust_eh_personality"].map(|symbol| format!("PROVIDE({symbol} = 0);\n"));
    write_if_changed(&stubs, &lines.chain(unwinding).collect::<String>())?;
    let mut linker = toolchain.linker();
    linker.args(["-m", "elf_i386", "-static", "-z", "norelro", "-z", "separate-code", "-z", "noexecstack"]);
    linker.args(["--gc-sections", "--undefined=rf_manifest", holes::KEEP_ROOM, "--build-id=none", "-e", "rf_upcall"]);
    linker.arg(entry_first()?).arg(format!("--image-base={IMAGE:#x}")).args(objects).arg(&stubs);
    run(linker.arg("-o").arg(to), true)
}

/// Links a module so that the kernel takes its code.
///
/// The bytes of a displacement may happen to form code that the kernel refuses under QEMU's TCG,
/// above all a load of SS. Such an instruction is moved and encoded otherwise ([`holes`]). If one
/// cannot be moved, the module is compiled in another way (`compile_otherwise`).
fn link_without_holes(
    kind: DomainKind,
    toolchain: &Toolchain,
    module: &Module,
    objects: &[PathBuf],
    compile_otherwise: impl Fn(&Way) -> Result<Vec<PathBuf>>,
) -> Result<()> {
    let room = target().join(format!("moved{}.o", kind.suffix()));
    replace(&room, |to| Ok(fs::write(to, holes::room(kind)?)?))?;
    let link = match kind {
        DomainKind::Paged => link_paged,
        DomainKind::Segmented => link_segmented,
    };
    let is_clean = |objects: &[PathBuf]| {
        let mut objects: Vec<&Path> = objects.iter().map(PathBuf::as_path).collect();
        let mut left = 0;
        // The file has its name when it is complete: another run may be reading it.
        replace(&module.debug, |to| {
            link(toolchain, &objects, to)?;
            if holes::count(to)? > 0 && !LEFT_ALONE.contains(&&*module.name) {
                objects.push(&room);
                link(toolchain, &objects, to)?;
                left = holes::fill(to)?;
            }
            Ok(())
        })?;
        anyhow::Ok(left == 0)
    };
    if !is_clean(objects)? {
        for way in &WAYS {
            if is_clean(&compile_otherwise(way)?)? {
                output::complain(&format!(
                    "ringfence: {} is compiled with {}, or {} for C: code that QEMU misreads could not be moved",
                    module.name, way.rust, way.c
                ));
                break;
            }
        }
    }
    strip(&module.debug, &module.packed)
}

/// Fails if the kernel would refuse the module.
fn refuse_refused(module: &Module) -> Result<()> {
    let name = &*module.name;
    let findings = check::findings(&module.packed, &module.debug)?;
    let refused = findings.iter().filter(|finding| finding.is_refusal && !LEFT_ALONE.contains(&name));
    let refused: Vec<String> = refused.map(Finding::in_words).collect();
    if !refused.is_empty() {
        bail!("the kernel would not take the module {name}: {}", refused.join("\n"));
    }
    Ok(())
}

/// Returns a hash of the objects and of the rules for linking and for what the kernel refuses. It
/// tells whether a module must be linked again.
fn stamp(objects: &[PathBuf]) -> Result<String> {
    let mut hasher = DefaultHasher::new();
    let rules = [include_str!("build.rs"), include_str!("check.rs"), include_str!("holes.rs")];
    let kernels = [include_str!("../../../kernel/core/src/module.rs"), include_str!("../../../kernel/core/src/tcg.rs")];
    let manifests = [
        include_str!("../../../kernel/abi/src/manifest.rs"),
        include_str!("../../../kernel/abi/src/parameter.rs"),
        include_str!("../../../kernel/abi/src/register.rs"),
        include_str!("../../../kernel/core/src/evidence/signed.rs"),
    ];
    (rules, kernels, manifests).hash(&mut hasher);
    for object in objects {
        let file = fs::metadata(object).with_context(|| format!("reading {}", object.display()))?;
        (object, file.len(), file.modified()?).hash(&mut hasher);
    }
    Ok(format!("{:016x}", hasher.finish()))
}

/// Copies an ELF file without debug information. The symbols stay, because reports need them.
fn strip(from: &Path, to: &Path) -> Result<()> {
    replace(to, |to| run(Command::new("strip").arg("--strip-debug").arg("-o").arg(to).arg(from), true))
}

/// Writes a file, unless it already has this content.
pub fn write_if_changed(path: &Path, content: &str) -> Result<()> {
    if fs::read_to_string(path).is_ok_and(|old| old == content) {
        return Ok(());
    }
    fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
    replace(path, |to| fs::write(to, content).with_context(|| format!("writing {}", path.display())))
}

/// Has `make` make a file beside `path` and moves it to `path` in one step, because another run of
/// this program may be reading or making the same file.
fn replace<T>(path: &Path, make: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let part = path.with_file_name(format!(".{name}.{}", std::process::id()));
    let made = make(&part).and_then(|made| Ok(fs::rename(&part, path).map(|()| made)?));
    if made.is_err() {
        // The file may not exist.
        let _ = fs::remove_file(&part);
    }
    made
}

/// Runs a tool. Its output is shown as it comes or, if `quiet`, only if the tool fails.
pub(crate) fn run(command: &mut Command, quiet: bool) -> Result<()> {
    if quiet {
        return output_of(command).map(|_| ());
    }
    let status = command.status().with_context(|| is_missing(command))?;
    if !status.success() {
        bail!("{} failed", command.get_program().display());
    }
    Ok(())
}

/// Runs a tool and returns its output. If the tool fails, the output is the error.
pub(crate) fn output_of(command: &mut Command) -> Result<Output> {
    let output = command.output().with_context(|| is_missing(command))?;
    if !output.status.success() {
        let [said, complained] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
        bail!("{} failed:\n{said}{complained}", command.get_program().display());
    }
    Ok(output)
}

fn is_missing(command: &Command) -> String {
    let name = command.get_program().display();
    format!("cannot run {name}: is it installed? 'make setup' installs what is missing")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An object is compiled again when a file that it is made from or the command changes, and
    /// each time while the compiler warns.
    #[test]
    fn c_is_compiled_again_only_where_it_has_changed() {
        let folder = tempfile::tempdir().unwrap();
        let [file, header, object] = ["a b.c", "n.h", "a.o"].map(|name| folder.path().join(name));
        let save = |path: &Path, text: &str| {
            fs::write(path, text).unwrap();
            // A file that was saved just now would be compiled again.
            let file = fs::File::options().write(true).open(path).unwrap();
            file.set_modified(SystemTime::now() - std::time::Duration::from_secs(60)).unwrap();
        };
        save(&file, "#include \"n.h\"\nint of(void) { return N; }\n");
        let compile = |flag: &str| {
            // Where nothing is compiled, this stays.
            fs::write(&object, "old").unwrap();
            let mut compiler = Command::new("gcc");
            compiler.args(["-Wall", "-c", flag]).arg(&file);
            compile_file(compiler, &object).map(|()| fs::read(&object).unwrap() != b"old")
        };
        let compiles = |text: &str, flags: [&str; 2]| {
            save(&header, text);
            flags.map(|flag| compile(flag).ok())
        };
        assert_eq!(compiles("#define N 1\n", ["-O1", "-O1"]), [Some(true), Some(false)]);
        assert_eq!(compiles("#define N 12\n", ["-O1", "-O2"]), [Some(true), Some(true)]);
        assert_eq!(compiles("#define N (\n", ["-O2", "-O2"]), [None, None]);
        assert_eq!(compiles("#define N 1; int unused\n", ["-O2", "-O2"]), [Some(true), Some(true)]);
        assert_eq!(made_from("x.o: a.c \\\n  b\\ c.h d.h\n"), ["a.c", "b c.h", "d.h"]);
    }
}
