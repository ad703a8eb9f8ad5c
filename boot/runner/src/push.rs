//! `cargo run -- push NAME`: builds one module and has a running system load it, or put it in the
//! place of its running driver.

use crate::build;
use crate::output;
use crate::session::{Heard, Session};
use anyhow::{Context, Result};
use ringfence_link::event::Event;
use serde_json::json;
use std::time::Instant;

/// The settings of a push.
pub struct Options {
    /// The module, or a folder with its sources.
    pub name: String,
    /// Parameters for a module that is not loaded yet, each as `name=value`.
    pub parameters: Vec<String>,
    /// The system, if several run.
    pub system: Option<String>,
    /// Whether the driver's own code is not optimized, and the driver stands for the debugger at
    /// its first instruction.
    pub debug: bool,
    /// Whether to print JSON.
    pub json: bool,
}

/// Builds the module and pushes it. Returns whether the kernel has taken it.
pub fn run(options: &Options) -> Result<bool> {
    // Fail before the build if no system runs.
    let mut session = Session::find(options.system.as_deref())?;
    let started = Instant::now();
    let module = if options.debug { build::for_debugger(&options.name)? } else { build::one(&options.name)? };
    let built = started.elapsed();
    let bytes = std::fs::read(&module.packed).with_context(|| format!("cannot read {}", module.packed.display()))?;
    if options.debug {
        output::complain(&format!("{} stands at its first instruction; 'continue' in gdb lets it start", module.name));
    }
    let mut faults = Vec::new();
    let done =
        session.push(&module.name, &bytes, Some(&module.debug), &options.parameters, options.debug, |heard| {
            if let Heard::Event(Event::Fault(fault)) = heard
                && fault.module == module.name
            {
                faults.push(fault);
            }
        })?;
    let all = started.elapsed();
    if options.json {
        let (done, error) = (done.as_ref().ok(), done.as_ref().err());
        let times = json!({ "build_ms": built.as_millis() as u64, "all_ms": all.as_millis() as u64 });
        let object = json!({ "module": module.name, "done": done, "error": error, "faults": faults, "times": times });
        output::line(format_args!("{object}"));
    } else {
        for fault in &faults {
            output::line(format_args!("{}", fault.headline));
        }
        match &done {
            Ok(done) => {
                let [built, all] = [built, all].map(|time| time.as_secs_f64());
                output::line(format_args!("{done} ({all:.1} s in all, {built:.1} of them to build)"));
            }
            Err(why) => output::complain(&format!("ringfence: {why}")),
        }
    }
    Ok(done.is_ok())
}
