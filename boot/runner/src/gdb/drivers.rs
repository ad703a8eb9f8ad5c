//! `cargo run -- gdb [NAME]`: starts gdb, connected to the stub in the kernel of a system that
//! runs. Only the driver stands that meets a breakpoint.
//!
//! gdb speaks with a second runner (`gdb --pipe`) on that runner's standard input and output, which
//! passes the bytes on over the link. The folder of the system's run has a file with symbols for
//! each module, by the names under which the kernel lists them.

use crate::project;
use crate::session::{Heard, Session};
use crate::toolchain::BUILT_AS;
use anyhow::{Context, Result, bail};
use ringfence_link::request::{DEBUG_SECONDS, MAX_PIECE, What};
use std::ffi::OsString;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

/// The settings.
pub struct Options {
    /// The driver that gdb looks at first. Of all drivers, only this driver stands when it faults.
    pub name: Option<String>,
    /// The system, if several run.
    pub system: Option<String>,
    /// Whether to pass gdb's bytes on, and not to start gdb.
    pub pipe: bool,
    /// Whether to print the commands for gdb, and not to start it.
    pub print: bool,
    /// The core file of a driver that was ended, instead of a system.
    pub core: Option<PathBuf>,
    /// Further arguments for gdb.
    pub arguments: Vec<OsString>,
}

/// Starts gdb and waits for its end, or does its part for a gdb that runs. Returns gdb's exit
/// status.
pub fn run(options: &Options) -> Result<u8> {
    if let Some(core) = &options.core {
        return super::core::run(core, &options.arguments);
    }
    // Fail before gdb starts if no system runs.
    let session = Session::find(options.system.as_deref())?;
    if options.pipe {
        return pipe(session, options.name.as_deref()).map(|()| 0);
    }
    let script = script(session.folder(), options)?;
    drop(session);
    if options.print {
        crate::output::line(format_args!("{}", script.join("\n")));
        return Ok(0);
    }
    let mut gdb = Command::new("gdb");
    gdb.arg("-q");
    script.iter().for_each(|line| _ = gdb.arg("-ex").arg(line));
    gdb.args(&options.arguments);
    // Ctrl-C is for gdb, which is in the same group of processes.
    let _ = ctrlc::set_handler(|| ());
    let status = gdb.status().context("cannot start gdb: is it installed?")?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

/// Returns the command by which gdb finds the sources.
pub fn sources() -> String {
    format!("set substitute-path {BUILT_AS} {}", project().display())
}

/// Returns the commands that connect gdb.
fn script(folder: &Path, options: &Options) -> Result<Vec<String>> {
    let runner = std::env::current_exe().context("cannot find this program")?;
    let quoted = |text: &str| format!("'{}'", text.replace('\'', "'\\''"));
    let mut pipe = format!("{} gdb --pipe", quoted(&runner.to_string_lossy()));
    let system = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    pipe += &format!(" --system {}", quoted(&system));
    if let Some(name) = &options.name {
        pipe += &format!(" {}", quoted(name));
    }
    Ok(vec![
        // Libraries are listed by the kernel, and not found in the memory of a program.
        "set osabi none".to_string(),
        "set architecture i386:x86-64".to_string(),
        "set sysroot".to_string(),
        format!("set solib-search-path {}", folder.display()),
        sources(),
        // Other drivers run while one stands, and are to meet their breakpoints.
        "set breakpoint always-inserted on".to_string(),
        // The new code of a driver that was pushed has another place.
        "set breakpoint pending on".to_string(),
        "set remotetimeout 30".to_string(),
        format!("target remote | {pipe}"),
        "sharedlibrary".to_string(),
    ])
}

/// How often the kernel is told that gdb is still there.
const ALIVE: Duration = Duration::from_secs(DEBUG_SECONDS / 4);
/// How often the system's answers are looked at while gdb says nothing.
const LOOK: Duration = Duration::from_millis(2);

/// Passes bytes on between gdb, on standard input and output, and the kernel.
fn pipe(mut session: Session, name: Option<&str>) -> Result<()> {
    let number = fastrand::u64(..);
    // Ctrl-C in gdb's terminal is for gdb, which sends it as a byte.
    let _ = ctrlc::set_handler(|| ());
    let (sender, said) = mpsc::channel::<Vec<u8>>();
    std::thread::spawn(move || {
        let mut bytes = [0; MAX_PIECE];
        while let Ok(count @ 1..) = std::io::stdin().lock().read(&mut bytes) {
            if sender.send(bytes[..count].to_vec()).is_err() {
                return;
            }
        }
    });
    let mut last = Instant::now();
    send(&mut session, number, name, &[])?;
    loop {
        match said.recv_timeout(LOOK) {
            Ok(bytes) => {
                send(&mut session, number, name, &bytes)?;
                last = Instant::now();
            }
            Err(RecvTimeoutError::Timeout) if last.elapsed() >= ALIVE => {
                send(&mut session, number, name, &[])?;
                last = Instant::now();
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                let ended = session.request(What::EndDebug { session: number }, |heard| show(heard, number));
                return ended.map(|_| ());
            }
        }
        while let Some(heard) = session.hear(Duration::ZERO)? {
            show(heard, number);
        }
    }
}

/// Sends bytes of gdb to the kernel.
fn send(session: &mut Session, number: u64, name: Option<&str>, bytes: &[u8]) -> Result<()> {
    let what = What::Debug { session: number, driver: name.map(Into::into), bytes: bytes.into() };
    if let Err(why) = session.request(what, |heard| show(heard, number))? {
        bail!("{why}");
    }
    Ok(())
}

/// Writes the kernel's bytes for gdb to standard output.
fn show(heard: Heard, number: u64) {
    if let Heard::Debugger(session, bytes) = heard
        && session == number
    {
        // If gdb is gone, standard input says so.
        let mut out = std::io::stdout().lock();
        let _ = out.write_all(&bytes).and_then(|()| out.flush());
    }
}
