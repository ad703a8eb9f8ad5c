//! `cargo run -- dev NAME`: pushes a module into a running system each time that its sources are
//! saved, and shows the outcome in one place: the compiler's errors, the driver's log, its faults
//! and restarts.

use crate::build;
use crate::output::{self, printable};
use crate::project;
use crate::session::{Heard, Session};
use crate::source::Sources;
use crate::trace::Source;
use anyhow::{Context, Result};
use ringfence_abi::manifest::SEGMENTED_SUFFIX;
use ringfence_link::event::{Driver, Event, Fault};
use ringfence_link::request::{TRACE_SECONDS, What};
use rustix::fs::inotify::Reader;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use std::collections::BTreeSet;
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// The settings.
pub struct Options {
    /// The module, or a folder with its sources.
    pub name: String,
    /// Whether to trace the module's drivers.
    pub trace: bool,
    /// The system, if several run.
    pub system: Option<String>,
}

/// The time without another save after which a build begins: editors write several files at once.
const QUIET: Duration = Duration::from_millis(30);
/// How long to wait for an event before looking for saves again.
const LOOK: Duration = Duration::from_millis(20);

/// Watches, builds and pushes until the system ends.
pub fn run(options: &Options) -> Result<()> {
    let mut session = Session::find(options.system.as_deref())?;
    let folder = folder(&options.name);
    let saves = watch(&folder)?;
    let name = printable(&folder.display().to_string());
    output::line(format_args!("watching {name}: each save is built and pushed; Ctrl-C ends"));
    let mut view = View {
        module: String::new(),
        drivers: BTreeSet::new(),
        traced: options.trace.then(BTreeSet::new),
        sources: None,
    };
    push(options, &mut session, &mut view)?;
    let mut asked = Instant::now();
    loop {
        if asked.elapsed() > AGAIN {
            asked = Instant::now();
            trace(&mut session, &mut view)?;
        }
        if saves.try_recv().is_ok() {
            while saves.recv_timeout(QUIET).is_ok() {}
            push(options, &mut session, &mut view)?;
        }
        if let Some(heard) = session.hear(LOOK)? {
            view.show(heard);
        }
    }
}

/// After this time the kernel is asked for the traces again.
const AGAIN: Duration = Duration::from_secs(TRACE_SECONDS / 3);

/// Asks for the traces of the module's drivers, if they are to be traced.
fn trace(session: &mut Session, view: &mut View) -> Result<()> {
    let Some(refused) = view.traced.take() else { return Ok(()) };
    let mut still = BTreeSet::new();
    for driver in view.drivers.clone() {
        let request = What::Trace { program: session.number(), driver: driver.as_str().into(), frame_bytes: 64 };
        if let Err(why) = session.request(request, |heard| view.show(heard))? {
            if !refused.contains(&driver) {
                output::complain(&printable(&format!("not traced: {why}")));
            }
            still.insert(driver);
        }
    }
    view.traced = Some(still);
    Ok(())
}

/// Returns the folder with the sources of a module.
fn folder(name: &str) -> PathBuf {
    let folder = if name.contains('/') { PathBuf::from(name) } else { project().join("drivers").join(name) };
    // Both kinds of modules have the same sources.
    let of_both = name.strip_suffix(SEGMENTED_SUFFIX).map(|_| folder.with_extension(""));
    of_both.filter(|of_both| of_both.is_dir()).unwrap_or(folder)
}

/// Builds the module, pushes it, and prints the outcome. Fails only if the system is gone.
fn push(options: &Options, session: &mut Session, view: &mut View) -> Result<()> {
    let began = Instant::now();
    let module = match build::one(&options.name) {
        Ok(module) => module,
        // The compiler has said where.
        Err(error) => {
            output::complain(&format!("not pushed: {error:#}"));
            return Ok(());
        }
    };
    let bytes = std::fs::read(&module.packed).with_context(|| format!("cannot read {}", module.packed.display()))?;
    view.module.clone_from(&module.name);
    let loaded = [(module.name.clone(), module.debug.clone())];
    view.sources = Some(Sources::new(loaded, session.folder().to_path_buf()));
    // The build may have taken longer than a trace goes on by itself.
    trace(session, view)?;
    let done = session.push(&module.name, &bytes, Some(&module.debug), &[], false, |heard| view.show(heard))?;
    // A driver that is new is traced from now on.
    trace(session, view)?;
    let time = began.elapsed().as_secs_f64();
    match done {
        Ok(done) => output::line(format_args!("{done} ({time:.1} s since the save)")),
        Err(why) => output::complain(&format!("not in place: {why}")),
    }
    Ok(())
}

/// The visible part of the system: the drivers of one module.
struct View {
    module: String,
    /// The drivers that were loaded from the module.
    drivers: BTreeSet<String>,
    /// If they are to be traced: those whose trace the kernel has refused, for which it was said
    /// why.
    traced: Option<BTreeSet<String>>,
    sources: Option<Sources>,
}

impl View {
    fn show(&mut self, heard: Heard) {
        match heard {
            Heard::Event(event) => self.show_event(event),
            Heard::Piece(piece)
                if self.traced.is_some() && !piece.is_saved && self.drivers.contains(&*piece.driver) =>
            {
                if piece.lost > 0 {
                    output::complain(&format!("{}: {} events are missing", printable(&piece.driver), piece.lost));
                }
                let source = Source { driver: piece.driver.into_owned(), kind: piece.kind.into_owned() };
                piece.events.iter().for_each(|event| crate::trace::show(&source, event, false));
            }
            Heard::Piece(_) | Heard::Debugger(..) => {}
        }
    }

    fn show_event(&mut self, event: Event) {
        match event {
            Event::Loaded(driver) | Event::Reloaded { driver, .. } => self.note(&driver),
            Event::Drivers(drivers) => drivers.iter().for_each(|driver| self.note(driver)),
            Event::Log { driver, module, level, text } if module == self.module => {
                let level = if level == "info" { String::new() } else { format!("{level}: ") };
                output::line(format_args!("{driver}| {level}{text}"));
            }
            Event::Fault(fault) if fault.module == self.module => self.show_fault(&fault),
            Event::Restarted { name, after_us, .. } if self.drivers.contains(&*name) => {
                output::line(format_args!("{name}: restarted after {after_us} us"));
            }
            Event::ReloadUndone { name, .. } if self.drivers.contains(&*name) => {
                output::line(format_args!("{name}: the reload is undone"));
            }
            Event::GivenUp { name, why } if self.drivers.contains(&*name) => {
                output::line(format_args!("{name}: {why}"));
            }
            Event::RingChanged { name, ring } if self.drivers.contains(&*name) => {
                output::line(format_args!("{name}: now in ring {ring}"));
            }
            Event::Unloaded { name } if self.drivers.remove(&*name) => {
                output::line(format_args!("{name}: unloaded"));
            }
            _ => {}
        }
    }

    fn note(&mut self, driver: &Driver) {
        if driver.module == self.module {
            self.drivers.insert(driver.name.to_string());
        }
    }

    fn show_fault(&mut self, fault: &Fault) {
        self.drivers.insert(fault.driver.to_string());
        output::line(format_args!("fault: {}", fault.headline));
        let label = match fault.build {
            0 => fault.module.to_string(),
            build => format!("{}#{build}", fault.module),
        };
        for (index, offset) in fault.offset.iter().chain(&fault.callers).enumerate() {
            let line = self.sources.as_mut().and_then(|sources| sources.line(&label, *offset)).unwrap_or_default();
            let function = fault.function.as_deref().filter(|_| index == 0 && fault.offset.is_some());
            let place = format!("{label}+{offset:#x}");
            match function {
                Some(function) => output::line(format_args!("    at {function} ({place}){line}")),
                None => output::line(format_args!("    from {place}{line}")),
            }
        }
    }
}

/// Watches a folder and those below it. The channel gets a message when a source was written,
/// moved or removed.
fn watch(folder: &Path) -> Result<mpsc::Receiver<()>> {
    let failed = || format!("cannot watch {}", folder.display());
    let watcher = inotify::init(CreateFlags::CLOEXEC).with_context(failed)?;
    let flags = WatchFlags::CLOSE_WRITE | WatchFlags::MOVED_TO | WatchFlags::MOVED_FROM | WatchFlags::DELETE;
    for folder in folders(folder) {
        inotify::add_watch(&watcher, &folder, flags).with_context(|| format!("cannot watch {}", folder.display()))?;
    }
    let (sender, saves) = mpsc::channel();
    std::thread::spawn(move || {
        let mut room = [MaybeUninit::uninit(); 4096];
        let mut reader = Reader::new(&watcher, &mut room);
        while let Ok(event) = reader.next() {
            let name = event.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let is_lost = event.events().contains(ReadFlags::QUEUE_OVERFLOW);
            if (is_lost || is_source(Path::new(&name))) && sender.send(()).is_err() {
                return;
            }
        }
    });
    Ok(saves)
}

/// Returns whether a build depends on the file.
fn is_source(file: &Path) -> bool {
    let endings = ["rs", "c", "h", "cc", "cpp", "hpp", "toml", "txt", "s", "S"];
    let is_hidden = file.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.'));
    !is_hidden && file.extension().is_some_and(|ending| endings.iter().any(|known| ending == *known))
}

/// Returns a folder and all folders below it, except those of build outputs and hidden ones.
fn folders(folder: &Path) -> Vec<PathBuf> {
    let mut found = vec![folder.to_path_buf()];
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let is_left_out = name == "target" || name.to_string_lossy().starts_with('.');
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) && !is_left_out {
            found.extend(folders(&entry.path()));
        }
    }
    found
}
