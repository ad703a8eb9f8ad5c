//! `cargo run`: builds Ringfence and boots it in QEMU.
#![forbid(unsafe_code)]

mod arguments;

use anyhow::{Context, Result, bail};
use arguments::{Cli, RunArguments, Verb};
use clap::Parser;
use ringfence::machine::{End, Machine, Said};
use ringfence::ramdisk::Contents;
use ringfence::{
    bench, build, campaign, check, conform, dev, gdb, iso, keys, lab, new, output, profile, push, ramdisk, record,
    snippets, soak, target, trace, verify,
};
use serde_json::json;
use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

/// Exit status if the runner could not run anything.
const MISTAKE: u8 = 4;

fn main() -> ExitCode {
    end_on_panic();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and the version are not errors. If they cannot be printed, there is nothing left
            // to do.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(MISTAKE) } else { ExitCode::SUCCESS };
        }
    };
    match run(cli) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            output::complain(&format!("ringfence: {error:#}"));
            ExitCode::from(MISTAKE)
        }
    }
}

/// Has a panic of any thread end the program. The profile for builds on the host could have panics
/// abort, but tests cannot be built that way: each crate would be compiled a second time for them.
fn end_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        print(panic);
        std::process::abort();
    }));
}

/// Returns the name of a module that was named, or whose folder was: a path, with a `/`. The module
/// in the folder is built, and put into the machine's ramdisk.
fn named(name: String, machine: &mut Machine) -> Result<String> {
    if !name.contains('/') {
        return Ok(name);
    }
    let module = build::module(Path::new(&name))?;
    machine.contents.modules.push(module.packed);
    Ok(module.name)
}

fn run(cli: Cli) -> Result<u8> {
    match cli.command {
        None => boot(cli.run),
        Some(Verb::Build { out }) => {
            let system = build::system(false)?;
            if let Some(out) = out {
                parts(&system, &out)?;
            }
            Ok(0)
        }
        Some(Verb::Conform { name, device, only, ring, json, machine }) => {
            let mut machine = machine.machine()?;
            let name = named(name, &mut machine)?;
            let options = conform::Options { name, device, only, ring, json, machine };
            Ok(u8::from(!conform::run(&build::system(true)?, &options)?))
        }
        Some(Verb::Profile { name, ring, kind, batch, outermost, json, machine }) => {
            let options = profile::Options { name, ring, kind, batch, outermost, json, machine: machine.machine()? };
            profile::run(&build::system(true)?, &options)?;
            Ok(0)
        }
        Some(Verb::Record { name, file, exec, device, machine }) => {
            let options = record::Options { name, file, exec, device, machine: machine.machine()? };
            record::run(&build::system(true)?, &options)?;
            Ok(0)
        }
        Some(Verb::New { name, kind, pci }) => {
            new::run(&new::Options { name, kind, pci })?;
            Ok(0)
        }
        Some(Verb::Dev { name, trace, system }) => {
            dev::run(&dev::Options { name, trace, system })?;
            Ok(0)
        }
        Some(Verb::Push { name, parameters, debug, system, json }) => {
            Ok(u8::from(!push::run(&push::Options { name, parameters, debug, system, json })?))
        }
        Some(Verb::Trace { names, out, pcap, seconds, system, json }) => {
            Ok(u8::from(!trace::run(&trace::Options { names, out, pcap, seconds, system, json })?))
        }
        Some(Verb::Gdb { name, system, pipe, print, core, arguments }) => {
            gdb::drivers::run(&gdb::drivers::Options { name, system, pipe, print, core, arguments })
        }
        Some(Verb::Lab { number, folder, start, only }) => {
            Ok(u8::from(!lab::run(&lab::Options { number, folder, start, only })?))
        }
        Some(Verb::Keygen { file }) => keys::keygen(&file).map(|()| 0),
        Some(Verb::Sign { file, key }) => keys::sign(&file, &key).map(|()| 0),
        Some(Verb::Verify { what, key, json, .. }) if Path::new(&what).is_file() => {
            Ok(u8::from(!keys::verify(Path::new(&what), &key, json)?))
        }
        Some(Verb::Verify { what, sign, changes, inputs, seed, device, out, json, machine, .. }) => {
            let mut machine = machine.machine()?;
            let name = named(what, &mut machine)?;
            let (changes, inputs) = (changes as usize, inputs as usize);
            let options = verify::Options { name, device, changes, inputs, seed, key: sign, out, json, machine };
            Ok(u8::from(!verify::run(&options)?))
        }
        Some(Verb::Check { files, json }) => Ok(u8::from(!check::run(&files, json)?)),
        Some(Verb::Lint { folders }) if folders.is_empty() => build::lint().map(|()| 0),
        Some(Verb::Lint { folders }) => {
            for folder in folders {
                if !folder.is_dir() {
                    bail!("there is no folder {}", folder.display());
                }
                build::lint_module(&folder).with_context(|| folder.display().to_string())?;
            }
            Ok(0)
        }
        Some(Verb::Bench { name, out, peer, model, json, machine }) => {
            let way = match (peer, model) {
                (Some(_), _) => bench::Way::BesideLinux,
                (None, true) => bench::Way::Model,
                (None, false) => bench::Way::Measure,
            };
            let options = bench::Options { name, json, way, out, machine: machine.machine()? };
            bench::run(&build::system(true)?, &options)?;
            Ok(0)
        }
        Some(Verb::Campaign { modules, mutants, seed, only, ring, kind, out, json, machine }) => {
            let (mutants, only) = (mutants as usize, only.map(|only| only as usize));
            let machine = machine.machine()?;
            let options = campaign::Options { modules, mutants, seed, only, ring, kind, out, json, machine };
            Ok(u8::from(!campaign::run(&build::system(true)?, &options)?))
        }
        Some(Verb::Soak { minutes, seed, kind, files, power_cuts, json, machine }) => {
            if !(0.0..=10_000.0).contains(&minutes) {
                bail!("--minutes must be 0 to 10000, not {minutes}");
            }
            let time = Duration::from_secs_f64(minutes * 60.0);
            let options = soak::Options { time, seed, kind, json, machine: machine.machine()? };
            let system = build::system(true)?;
            let is_good = match files {
                true => soak::files::run(&system, &options, power_cuts)?.is_good(),
                false => soak::copies::run(&system, &options)?.is_good(),
            };
            Ok(u8::from(!is_good))
        }
        Some(Verb::Snippets { count, seed, kind }) => {
            let options = snippets::Options { count: count as usize, seed, kind };
            Ok(u8::from(!snippets::run(&build::system(true)?, &options)?))
        }
        Some(Verb::Iso { image, exec }) => {
            let system = build::system(false)?;
            let contents = Contents { exec, autoload: true, ..Contents::default() };
            iso::make(&system, &contents, &image)?;
            output::line(format_args!("{}", image.display()));
            Ok(0)
        }
    }
}

/// Writes the files that a bootloader needs to the folder `out`.
fn parts(system: &build::System, out: &Path) -> Result<()> {
    std::fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    let contents = Contents { autoload: true, ..Contents::default() };
    let parts = [
        ("kernel", std::fs::read(&system.packed_kernel)?),
        ("ramdisk.tar", ramdisk::pack(system, &contents)?),
        ("loader", std::fs::read(&system.loader)?),
    ];
    for (name, bytes) in parts {
        let path = out.join(name);
        std::fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
        output::line(format_args!("{}", path.display()));
    }
    Ok(())
}

fn boot(arguments: RunArguments) -> Result<u8> {
    let (is_script, json) = (arguments.exec.is_some(), arguments.json);
    let machine = arguments.machine(terminal_size::terminal_size().map(|(width, _)| width.0))?;
    let system = build::system(is_script)?;
    if machine.gdb {
        explain_gdb(&system)?;
    }
    if is_script {
        return script(&machine, &system, json);
    }
    let end = loop {
        match machine.run_interactively(&system)? {
            // If the input was piped, all of it has been read: there is no input for another boot.
            End::Reboot if std::io::stdin().is_terminal() => {}
            end => break end,
        }
    };
    if end.status() != 0 {
        output::complain(&format!("ringfence: {}", end.description()));
    }
    Ok(end.status())
}

/// Runs the machine's commands and prints the output of the machine.
fn script(machine: &Machine, system: &build::System, json: bool) -> Result<u8> {
    let object = |object: serde_json::Value| output::line(format_args!("{object}"));
    let show = |said: &Said| match (said, json) {
        (Said::Line(line), true) => object(json!({ "console": line })),
        (Said::Event(event), true) => object(json!(event)),
        (Said::Line(line), false) => output::line(format_args!("{line}")),
        (Said::Event(_), false) => {}
    };
    let run = machine.run(system, show)?;
    if json {
        object(json!({ "end": run.end.description(), "status": run.end.status(), "lost": run.lost }));
    } else if run.end.status() > 1 {
        output::complain(&format!("ringfence: {}", run.end.description()));
    }
    Ok(run.end.status())
}

/// Prints the command that connects gdb with the kernel's symbols, and the gdb command that adds a
/// loaded module's symbols.
fn explain_gdb(system: &build::System) -> Result<()> {
    let path = target().join("gdb.script");
    build::write_if_changed(&path, &gdb::machine::script(system))?;
    output::line(format_args!("gdb -x {}", path.display()));
    output::line(format_args!("then, once a module is loaded: rf-symbols {}/NAME.debug SLOT", target().display()));
    Ok(())
}
