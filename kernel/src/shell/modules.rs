//! Commands about modules and running drivers.

use super::earned::{into_ring_0, show_policy as show_policy_of_machine};
use super::files::read_whole;
use super::machine::{device_name, fence_in_words};
use super::settings::ask_person;
use super::{Outcome, said};
use crate::streams;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use host::domain::cause::Cause;
use host::domain::fault::{Fault, history};
use host::domain::trace::{self, Wish};
use host::domain::{Handle, Ring, debug, end, offer, registry, sleep, trust, whose};
use host::file::{Content, File};
use host::{evidence, module, poll, pushed, reload as replacing};
use hw::arch::time;
use hw::symbols::map;
use hw::{console, link, println};
use ringfence_abi::manifest::{DomainKind, Manifest, Policy, SEGMENTED_SUFFIX};
use ringfence_abi::register::RegisterName;
use ringfence_abi::service::SERVICES;
use ringfence_core::arguments::Arguments;
use ringfence_core::command_line;
use ringfence_core::evidence::grouped;
use ringfence_core::evidence::policy::Force;
use ringfence_core::evidence::record::faults_in_words;
use ringfence_core::limits;
use ringfence_core::module::{Module, file_name, kind_of, kind_of_name};
use ringfence_link::event::Event;

pub async fn lsmod(mut arguments: Arguments<'_>) -> Outcome {
    let in_full = match arguments.optional() {
        None => false,
        Some("-v") => true,
        Some(other) => return arguments.wrong(&format!("'{other}' is not known")),
    };
    arguments.end()?;
    println!(
        "{:<16} {:>4} {:>4} {:>9} {:>8} {:<12} {}",
        "DOMAIN", "RING", "SLOT", "UPCALLS", "CPU MS", "DEVICE", "STATE"
    );
    let drivers = registry::all();
    let locked: Vec<_> = drivers.iter().map(|handle| handle.lock()).collect();
    link::tell(&Event::Drivers(locked.iter().map(|domain| domain.event()).collect()));
    for domain in &locked {
        let device = domain.device.as_ref().map(|device| device.which().to_string());
        let kind = if domain.is_segmented() { ", segmented" } else { "" };
        let state = domain.state();
        println!(
            "{:<16} {:>4} {:>4} {:>9} {:>8} {:<12} {state}{kind}",
            domain.name,
            domain.ring(),
            domain.space.slot(),
            domain.upcalls,
            time::nanoseconds(domain.turn.all_ticks) / 1_000_000,
            device.as_deref().unwrap_or("-"),
        );
        if in_full {
            println!(
                "                 {}: {} restarts, {} faults, heap {} KiB, DMA {} KiB, image {} KiB",
                domain.file.label(),
                domain.restarts,
                trust::fault_count(domain),
                domain.heap_bytes / 1024,
                domain.dma_bytes() / 1024,
                domain.image_bytes / 1024,
            );
            if !domain.parameters.is_empty() {
                println!("                 {}", domain.parameters.join(" "));
            }
            if let Some(device) = &domain.device {
                println!("                 {}", fence_in_words(device));
            }
        }
    }
    Ok(())
}

pub async fn modinfo(mut arguments: Arguments<'_>) -> Outcome {
    let Some(name) = arguments.optional() else {
        println!("{:<16} {:>8}  {}", "FILE", "BYTES", "DRIVES");
        for file in module::files() {
            let drives = match Module::parse(&file.bytes) {
                Ok(module) => {
                    let ids = module.manifest.pci_ids().map(|id| format!("{:04x}:{:04x}", id.vendor, id.device));
                    let ports = module.manifest.fixed_ports().map(|port| format!("port {port:#x}"));
                    ids.chain(ports).collect::<Vec<String>>().join(" ")
                }
                Err(error) => format!("refused: {error}"),
            };
            println!("{:<16} {:>8}  {drives}", console::printable(&file.label().to_string()), file.bytes.len());
        }
        return Ok(());
    };
    arguments.end()?;
    let file = module::file(name).map_err(said)?;
    let module = Module::parse(&file.bytes).map_err(|error| format!("refused: {error}"))?;
    let manifest = &module.manifest;
    println!("name      {}", manifest.name());
    println!("version   {}", manifest.version());
    println!("kind      {}", module.domain);
    println!("file      {} bytes, {} bytes loaded", file.bytes.len(), module.len_bytes);
    for id in manifest.pci_ids() {
        println!("drives    {:04x}:{:04x}", id.vendor, id.device);
        println!("             {}", device_name(id.vendor, id.device));
    }
    for port in manifest.fixed_ports() {
        println!("drives    the device at port {port:#x}");
    }
    println!(
        "budget    heap {} KiB, DMA {} KiB, stack {} KiB, {} ms an upcall",
        manifest.heap_bytes / 1024,
        manifest.dma_bytes / 1024,
        manifest.stack_bytes / 1024,
        manifest.upcall_ms
    );
    for declared in &module.parameters {
        let parameter = &declared.parameter;
        println!("takes     {:<18} {}: {}", parameter.name(), parameter.what(), declared.range());
    }
    let registers: Vec<&str> = module.registers.iter().filter_map(RegisterName::name).collect();
    let mut line = String::new();
    for name in registers {
        if line.len() + name.len() > 68 {
            println!("registers{line}");
            line.clear();
        }
        line += &format!(" {name}");
    }
    if !line.is_empty() {
        println!("registers{line}");
    }
    for number in module.imports.iter() {
        if let Some(service) = SERVICES.get(number) {
            println!("asks for  {:<18} {}", service.symbol, service.what);
        }
    }
    show_evidence(&file, manifest);
    Ok(())
}

/// Prints the evidence for a module file, and whether that is enough for ring 0.
fn show_evidence(file: &File, manifest: &Manifest) {
    // The work of its drivers up to now counts as well.
    let loaded = registry::all().into_iter().filter(|handle| handle.lock().file.has_bytes_of(file));
    loaded.for_each(|handle| handle.lock().witness());
    let operations = offer::operations_noun(manifest);
    let shown = evidence::in_words(file);
    println!("sha256    {}", shown.hash);
    println!("signed    {}", shown.signed);
    let record = evidence::record_of(file);
    println!(
        "record    {} {operations} in {} s of ring 1 since its last fault{}",
        grouped(record.operations),
        grouped(record.ms / 1000),
        faults_in_words(&record)
    );
    shown.report.iter().zip(["report    ", "          "]).for_each(|(line, before)| println!("{before}{line}"));
    let decided = match kind_of(&file.bytes) {
        DomainKind::Paged => evidence::decide(file, &operations, Force::NotGiven),
        DomainKind::Segmented => Err("it is segmented, and ring 0 is for 64-bit code".into()),
    };
    match decided {
        Ok(admitted) => println!("ring 0    admitted: {admitted}"),
        Err(why) => println!("ring 0    refused: {why}"),
    }
}

pub fn parse_ring(arguments: &Arguments, word: &str) -> Result<Ring, String> {
    match word {
        "0" => Ok(Ring::Trusted),
        "1" => Ok(Ring::Sandboxed),
        other => arguments.wrong(&format!("the ring must be 0 or 1, not '{other}'")),
    }
}

/// Ends the trace of a driver that is not loaded in the end. The events that it has kept stay, as
/// they may show why.
struct UntilLoaded {
    name: String,
    is_loaded: bool,
}

impl Drop for UntilLoaded {
    fn drop(&mut self) {
        if !self.is_loaded {
            trace::end(&self.name);
        }
    }
}

/// Has a driver stand for the debugger at its first instruction. Dropped, the wish is forgotten if
/// the driver has not started.
pub struct Stopping(String);

impl Stopping {
    /// Has the driver called `name` stand when it starts next.
    pub fn begin(name: String) -> Result<Stopping, String> {
        if !debug::stop_next(&name) {
            return Err("no debugger is there; 'cargo run -- gdb' starts one".into());
        }
        Ok(Stopping(name))
    }
}

impl Drop for Stopping {
    fn drop(&mut self) {
        debug::stop_next_no_more(&self.0);
    }
}

/// Returns a module file by its name, or by its path in a filesystem. A file from there is kept,
/// and hides others of its name, as if it was pushed. Of the files of a module in memory, it is the
/// one for domains of the kind that is `wanted` ([`module::choose`]).
async fn file_of(name: &str, wanted: Option<DomainKind>) -> Result<File, String> {
    let Some((_, last)) = name.rsplit_once('/') else { return module::choose(name, wanted).map_err(said) };
    let bytes = read_whole(name, pushed::MAX_BYTES).await?;
    let module = Module::parse(&bytes).map_err(|error| format!("{name}: refused: {error}"))?;
    let own = &*module.file_name();
    if last.strip_suffix(".rfm") != Some(own) {
        return Err(format!("{name}: the module is called '{own}': its file must be {own}.rfm"));
    }
    if wanted.is_some_and(|kind| kind != module.domain) {
        return Err(format!("{name} is for {} domains", module.domain));
    }
    pushed::check(own, bytes.len()).map_err(said)?;
    let file = File { name: own.to_string(), build: pushed::next_build(), bytes: Content::Made(Arc::new(bytes)) };
    pushed::keep(file.clone());
    Ok(file)
}

/// Why a segmented driver does not stop for a debugger.
const NOT_DEBUGGED: &str = "gdb knows 64-bit code: a debugger stops paged drivers only";

/// Reads a kind of domain.
pub fn parse_kind(arguments: &mut Arguments) -> Result<DomainKind, String> {
    let word = arguments.word("the kind of domain")?;
    DomainKind::named(word)
        .map_or_else(|| arguments.wrong(&format!("'{word}' is no kind; there are paged and segmented")), Ok)
}

pub async fn insmod(mut arguments: Arguments<'_>) -> Outcome {
    let name = arguments.word("the module's name")?;
    let mut kind = None;
    let (mut ring, mut parameters, mut is_traced, mut stops, mut forced) = (None, Vec::new(), false, false, false);
    while let Some(word) = arguments.optional() {
        match word {
            "--trace" => is_traced = true,
            "--debug" => stops = true,
            "--force" => forced = true,
            "--kind" => kind = Some(parse_kind(&mut arguments)?),
            "--ring" if ring.is_some() => return arguments.wrong("the ring is given twice"),
            "--ring" => {
                let word = arguments.word("the ring")?;
                ring = Some(parse_ring(&arguments, word)?);
            }
            word if word.contains('=') => parameters.push(word.to_string()),
            other => return arguments.wrong(&format!("'{other}' is not known")),
        }
    }
    let ring = ring.unwrap_or(Ring::Sandboxed);
    // A request that needs a paged driver chooses the kind, as a person would.
    let is_watched = trace::of(name).is_some_and(|trace| trace.registers().is_some());
    let needs_paged = stops || forced || ring == Ring::Trusted || is_watched;
    if kind.is_none() && !name.ends_with(SEGMENTED_SUFFIX) && needs_paged {
        kind = module::file(name).is_ok().then_some(DomainKind::Paged);
    }
    let file = file_of(name, kind).await?;
    // A person need not know of which build an error is.
    let name = if name.contains('/') { &*file.name } else { name };
    let is_segmented = kind_of(&file.bytes) == DomainKind::Segmented;
    if is_segmented && stops {
        return Err(NOT_DEBUGGED.into());
    }
    if is_segmented && ring == Ring::Trusted {
        return Err("ring 0 is for 64-bit code: a segmented driver runs in ring 1 only".into());
    }
    let stopping = if stops { Some(Stopping::begin(module::name_for(&file).map_err(said)?)?) } else { None };
    if stopping.is_some() && ring == Ring::Trusted {
        return Err("a debugger stops drivers in ring 1 only".into());
    }
    let mut tracing = None;
    if is_traced {
        let name = module::name_for(&file).map_err(said)?;
        trace::begin(&name, &Wish::default()).map_err(said)?;
        tracing = Some(UntilLoaded { name, is_loaded: false });
    }
    if forced && ring == Ring::Sandboxed {
        return arguments.wrong("--force is for --ring 0");
    }
    // It is not forced before it is loaded: what forces it is a person's word about this driver.
    let first = if forced { Ring::Sandboxed } else { ring };
    let handle = module::load(&file, first, &parameters).await;
    let handle = handle.map_err(|error| format!("{name}: {error}"))?;
    tracing.iter_mut().for_each(|tracing| tracing.is_loaded = true);
    block::disk::settled().await;
    if forced {
        let name = handle.lock().name.clone();
        into_ring_0(&name, true).await?;
    }
    println!("{}", in_place(&handle));
    Ok(())
}

pub async fn reload(mut arguments: Arguments<'_>) -> Outcome {
    let name = arguments.word("the domain's name")?;
    let (mut file, mut kind) = (None, None);
    while let Some(word) = arguments.optional() {
        match word {
            "--kind" => kind = Some(parse_kind(&mut arguments)?),
            word if file.is_none() && !word.starts_with('-') => file = Some(word.to_string()),
            other => return arguments.wrong(&format!("'{other}' is not known")),
        }
    }
    let handle = module::find(name).map_err(said)?;
    let file = file.unwrap_or_else(|| handle.lock().file.name.clone());
    // A reload keeps the kind of the driver, unless a person says otherwise.
    let file = file_of(&file, kind.or_else(|| (!file.contains('/')).then(|| kind_of_name(&file)))).await?;
    println!("{}", reload_one(&handle, file).await?);
    Ok(())
}

/// Puts a build from `file` in the place of a driver. Returns a description of the result, for a
/// person.
async fn reload_one(handle: &Handle, file: File) -> Result<String, String> {
    let name = handle.lock().name.clone();
    let reloaded = replacing::reload(handle, file).await.map_err(|error| format!("{name}: {error}"))?;
    let handle = module::find(&name).map_err(said)?;
    let domain = handle.lock();
    let (file, version) = (domain.file.label(), domain.manifest.version());
    let away_us = time::nanoseconds(reloaded.away_ticks) / 1000;
    Ok(format!("{name}: {file} {version} serves in ring {}, after {away_us} us", domain.ring()))
}

/// Puts the paged build in the place of a segmented driver, for what knows 64-bit code only.
/// Returns a description of the result, for a person; `None` if the driver is paged.
pub async fn as_paged(handle: &Handle) -> Result<Option<String>, String> {
    let (name, paged) = {
        let domain = handle.lock();
        if !domain.is_segmented() {
            return Ok(None);
        }
        (domain.name.clone(), module::paged_build(&domain)?)
    };
    reload_one(handle, paged).await?;
    Ok(Some(format!("{name}: is paged now; 'reload {name} --kind segmented' takes it back")))
}

/// Puts `file` in the place of all drivers of its module, of either kind, or loads it if there are
/// none. Then it is the file of that name. Returns a description of the result, for a person.
pub async fn load_or_reload(file: File, parameters: &[String], stops: bool) -> Result<String, String> {
    let name = file.name.clone();
    let module = |name: &str| file_name(name, DomainKind::Paged);
    let is_one = |handle: &Handle| module(&handle.lock().file.name) == module(&name);
    let loaded: Vec<Handle> = registry::all().into_iter().filter(is_one).collect();
    if !loaded.is_empty() && !parameters.is_empty() {
        return Err(format!("{name} is loaded, and a reload keeps its parameters; rmmod unloads it"));
    }
    let mut stopping = Vec::new();
    if stops && kind_of(&file.bytes) == DomainKind::Segmented {
        return Err(NOT_DEBUGGED.into());
    }
    if stops {
        let names: Vec<String> = loaded.iter().map(|handle| handle.lock().name.clone()).collect();
        let names = if names.is_empty() { [module::name_for(&file).map_err(said)?].into() } else { names };
        for name in names {
            stopping.push(Stopping::begin(name)?);
        }
    }
    let mut done = Vec::new();
    for handle in &loaded {
        done.push(reload_one(handle, file.clone()).await?);
    }
    if loaded.is_empty() {
        let handle = module::load(&file, Ring::Sandboxed, parameters).await;
        let handle = handle.map_err(|error| format!("{name}: {error}"))?;
        block::disk::settled().await;
        done.push(in_place(&handle));
    }
    pushed::keep(file);
    Ok(done.join("; "))
}

/// Returns where a driver was loaded to, for a person.
fn in_place(handle: &Handle) -> String {
    let domain = handle.lock();
    format!("{}: loaded into ring {}, slot {}", domain.name, domain.ring(), domain.space.slot())
}

pub async fn rmmod(mut arguments: Arguments<'_>) -> Outcome {
    let name = arguments.word("the domain's name")?;
    arguments.end()?;
    module::unload(name).await.map_err(said)?;
    println!("{name}: unloaded");
    Ok(())
}

/// The maximum number of lines that are shown of a driver's answer to a command.
const ANSWER_LINES: usize = 64;

pub async fn tell(mut arguments: Arguments<'_>) -> Outcome {
    let name = arguments.word("the domain's name")?;
    let find = |name: &str| map::find(name).map(|part| part.extent.start);
    let text = command_line::with_addresses(arguments.rest(), find, whose::physical)
        .map_err(|name| format!("the kernel has no part '{name}'; 'vmmap' lists them, with spaces for hyphens"))?;
    let handle = module::find(name).map_err(said)?;
    if !handle.lock().is_alive() {
        return Err(format!("{name} was ended before; 'faults' says why"));
    }
    if text.is_empty() && !handle.lock().commands.is_empty() {
        for (typed, what) in handle.lock().commands.iter().filter_map(|command| command.split_once('\t')) {
            println!("{name} {typed:<20} {what}");
        }
        return Ok(());
    }
    let (answer, text) = sleep::command(&handle, &text).await;
    poll::after(&mut handle.lock());
    // Show the text also if the driver was ended or refused.
    text.lines().take(ANSWER_LINES).for_each(|line| println!("{name}| {}", console::printable(line)));
    if let Some(more) = text.lines().count().checked_sub(ANSWER_LINES).filter(|more| *more > 0) {
        println!("{name}: {more} more lines are not shown");
    }
    let value = answer.map_err(|error| format!("{name}: {error}"))?;
    println!("{name}: {value} ({value:#x})");
    link::tell(&Event::Answer { name: name.into(), value, text: text.into() });
    Ok(())
}

pub async fn kill(mut arguments: Arguments<'_>) -> Outcome {
    let name = arguments.word("the domain's name")?;
    arguments.end()?;
    let handle = module::find(name).map_err(said)?;
    if !handle.lock().is_alive() {
        return Err(format!("{name} was ended already"));
    }
    end::condemn(&handle, Cause::Killed);
    Ok(())
}

pub async fn policy(mut arguments: Arguments<'_>) -> Outcome {
    let Some(name) = arguments.optional() else {
        show_policy_of_machine();
        return Ok(());
    };
    let word = arguments.optional();
    let policy = match word {
        Some("restart") => Some(Policy::Restart),
        Some("stop") => Some(Policy::Stop),
        Some("ring0-never") | None => None,
        Some(other) => return arguments.wrong(&format!("'{other}' is no policy")),
    };
    arguments.end()?;
    let handle = module::find(name).map_err(said)?;
    match policy {
        None if word.is_none() => return show_policy(&handle),
        Some(policy) => {
            let mut domain = handle.lock();
            domain.life.set_policy(policy);
            if ask_person("forgiving").is_ok() {
                domain.life.forgive();
                module::forgive(&domain);
            }
        }
        None => trust::never_trust(&handle),
    }
    // Restart a driver that was ended already, or release the tasks that wait for its restart.
    end::note();
    offer::wake_waiting();
    show_policy(&handle)
}

fn show_policy(handle: &Handle) -> Outcome {
    let mut domain = handle.lock();
    let then = if domain.life.policy() == Policy::Restart { "is restarted" } else { "stays so" };
    let ring0 = match module::decide(&mut domain, false) {
        Ok(_) => "may run in ring 0".to_string(),
        Err(why) => format!("stays in ring 1: {why}"),
    };
    println!("{}: when it is ended it {then}; it {ring0}", domain.name);
    Ok(())
}

pub async fn limits(mut arguments: Arguments<'_>) -> Outcome {
    let Some(name) = arguments.optional() else {
        for limit in limits::ALL {
            println!("{:<18} {:>8}  {}", limit.name, limit.get(), limit.what);
        }
        return Ok(());
    };
    let limit = limits::ALL.into_iter().find(|limit| limit.name == name);
    let limit = limit.ok_or_else(|| format!("there is no limit '{name}'; 'limits' lists them"))?;
    let Some(word) = arguments.optional() else {
        println!("{:<18} {:>8}  {}", limit.name, limit.get(), limit.what);
        return Ok(());
    };
    let value = arguments.as_number("the value", word)?;
    arguments.end()?;
    if limits::PROTECTIVE.contains(&limit.name) {
        ask_person(limit.name)?;
    }
    limit.set(value).map_err(|(least, most)| format!("{name} must be {least} to {most}, not {value}"))
}

pub async fn faults(mut arguments: Arguments<'_>) -> Outcome {
    let wanted = match arguments.optional() {
        Some(word) => Some(arguments.as_number::<usize>("the fault", word)?),
        None => None,
    };
    let core = match arguments.optional() {
        Some("--core") => Some(arguments.word("the core file's name")?),
        Some(other) => return arguments.wrong(&format!("'{other}' is not known")),
        None => None,
    };
    arguments.end()?;
    let kept = history();
    let Some(wanted) = wanted else {
        for (number, fault) in &kept {
            println!(
                "{number:>4}  {:>5}.{:03} s  {:<18}  {}",
                fault.at_ns / 1_000_000_000,
                fault.at_ns / 1_000_000 % 1000,
                fault.kind,
                fault.headline()
            );
        }
        if kept.is_empty() {
            println!("none");
        }
        return Ok(());
    };
    let (_, fault) = kept.iter().find(|(number, _)| *number == wanted).ok_or(format!("fault {wanted} is not kept"))?;
    match core {
        Some(name) => save_core(fault, name).await,
        None => {
            println!("{}", fault.in_full());
            Ok(())
        }
    }
}

/// Sends the core file of a driver that was ended to the runner, which keeps it as `name`.
async fn save_core(fault: &Fault, name: &str) -> Outcome {
    const MOST_NAME: usize = 64;
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '#');
    if name.len() > MOST_NAME || name.starts_with('.') || !name.chars().all(is_plain) {
        return Err(format!(
            "a core file's name has up to {MOST_NAME} letters, digits, '.', '-', '_' and '#', not '{name}'"
        ));
    }
    let file = fault.core().ok_or("no memory of the driver is kept: it was ended between upcalls, or long ago")?;
    streams::send_file(name, &file).await?;
    println!("{} bytes; the runner saves them as cores/{name}", file.len());
    Ok(())
}
