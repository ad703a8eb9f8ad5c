//! The commands: a table with the help of each, and those that are about the machine as a whole.

use super::Outcome;
use super::disks::{blkcheck, blkcopy, blkread, blkverify, blkwrite, lsblk, rescan};
use super::memory::{integrity, mem, vmmap};
use super::modules::{self, faults, insmod, kill, lsmod, modinfo, policy, ring, rmmod, tell};
use super::network::{echoed, ip, nslookup, ping, tcpecho};
use super::snippets::snippets;
use super::trace::trace;
use super::trials::{poke, trial};
use crate::arch::time;
use crate::bench::Mode;
use crate::console::{self, Wanted};
use crate::domain::device::{self, State};
use crate::symbols::Location;
use crate::{limits, module, pci, println, ramdisk, scsi};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::future::Future;
use core::pin::Pin;
use embassy_time::Timer;
use log::Level;
use pci_ids::FromId;
use ringfence_core::arguments::Arguments;
use ringfence_core::command_line;

type Running<'a> = Pin<Box<dyn Future<Output = Outcome> + 'a>>;

/// A command.
struct Command {
    name: &'static str,
    usage: &'static str,
    help: &'static str,
    run: for<'a> fn(Arguments<'a>) -> Running<'a>,
}

macro_rules! command {
    ($name:literal, $usage:literal, $help:literal, $run:path) => {
        Command { name: $name, usage: $usage, help: $help, run: |arguments| Box::pin($run(arguments)) }
    };
}

static COMMANDS: &[Command] = &[
    command!("help", "help [COMMAND]", "this list, or one command", help),
    command!("lsmod", "lsmod", "loaded modules", lsmod),
    command!("modinfo", "modinfo [NAME]", "what a module file says about itself, or all files", modinfo),
    command!("insmod", "insmod NAME [--ring 0|1]", "load a module, into ring 1 unless told otherwise", insmod),
    command!("rmmod", "rmmod NAME", "stop a driver and free all it had", rmmod),
    command!("ring", "ring NAME 0|1", "move a running driver to another ring", ring),
    command!("tell", "tell NAME TEXT", "hand a text to a driver; @PART stands for a part's address", tell),
    command!("kill", "kill NAME", "end a driver as a fault would", kill),
    command!(
        "policy",
        "policy NAME [restart|stop|ring0-never]",
        "what becomes of a driver that faulted; a new one forgives",
        policy
    ),
    command!("limits", "limits [NAME [VALUE]]", "how patient the kernel is with drivers: all, or one", modules::limits),
    command!("faults", "faults [NUMBER]", "why drivers were ended: a list, or one in full", faults),
    command!(
        "trace",
        "trace NAME [--watch ADDRESS[:BYTES]] COMMAND",
        "what a driver is asked and asks for while a command runs",
        trace
    ),
    command!("lspci", "lspci", "PCI functions", lspci),
    command!(
        "ip",
        "ip [addr add A/N dev ethX [via ROUTER] | addr del A dev ethX | link set ethX up|down]",
        "network interfaces; waits for an address; or changes one",
        ip
    ),
    command!("ping", "ping HOST [-c COUNT] [-i SECONDS] [-W MS] [-s BYTES]", "ICMP echo requests, one a second", ping),
    command!("nslookup", "nslookup NAME", "a host's addresses, from the name server", nslookup),
    command!("tcpecho", "tcpecho HOST PORT BYTES [-W MS]", "have a TCP server echo bytes, and compare", tcpecho),
    command!("echoed", "echoed", "length and SHA-256 of the last TCP stream that was echoed", echoed),
    command!("lsblk", "lsblk", "disks", lsblk),
    command!("rescan", "rescan", "look at all units of all SCSI hosts again", rescan),
    command!("blkread", "blkread DISK LBA COUNT", "read blocks and print their SHA-256", blkread),
    command!("blkwrite", "blkwrite DISK LBA COUNT SEED", "write blocks of a pattern and print its SHA-256", blkwrite),
    command!("blkcopy", "blkcopy FROM LBA TO LBA COUNT", "copy blocks", blkcopy),
    command!(
        "blkcheck",
        "blkcheck DISK LBA COUNT SEED",
        "write blocks of a pattern, read them back, compare",
        blkcheck
    ),
    command!("blkverify", "blkverify DISK LBA COUNT SEED", "compare blocks with the pattern", blkverify),
    command!(
        "dmesg",
        "dmesg [error|warning|info] [NAME] [-w]",
        "the kernel's log: all, as bad as that, or a driver's; -w goes on",
        dmesg
    ),
    command!("mem", "mem", "memory: free, kernel, domains", mem),
    command!("vmmap", "vmmap [NAME]", "what lies where in the kernel, or all that a driver can reach", vmmap),
    command!("irqs", "irqs", "where interrupts hit that came while a driver ran", irqs),
    command!("integrity", "integrity", "what must never change of the kernel, and stray writes", integrity),
    command!("repeat", "repeat COUNT COMMAND [, COMMAND...]", "run commands several times", repeat),
    command!("fails", "fails COMMAND", "run a command that is to fail, and say how it does", fails),
    command!("mute", "mute COMMAND", "run a command and print nothing meanwhile; the log goes on", mute),
    command!(
        "bench",
        "bench [NAME] [--json] [--instructions]",
        "what protection costs, in both rings: all, or names that begin so",
        bench
    ),
    command!("poke", "poke NAME OFFSET:BYTES", "change a running driver's image, to break it; both in hex", poke),
    command!(
        "trial",
        "trial NAME OFFSET:BYTES AT RING WORK | CHECK | AFTER",
        "put a module with a changed file to work, then the good one (JSON)",
        trial
    ),
    command!("snippets", "snippets NAME FIRST COUNT", "run made-up machine code of a module, a line each", snippets),
    command!("sleep", "sleep MILLISECONDS", "wait", sleep),
    command!("wait", "wait", "wait for commands that were started with & behind them", wait),
    command!("panic", "panic [ADDRESS]", "panic the kernel, or have it call an address, and see", panic),
    command!("shutdown", "shutdown", "stop all drivers and end", shutdown),
];

/// Names of all commands.
fn names() -> Vec<String> {
    COMMANDS.iter().map(|command| command.name.to_string()).collect()
}

/// What can come behind `before`: commands, or what the usage of the last command in it names.
pub fn words_behind(before: &str) -> Vec<String> {
    let Some(command) = before.split_whitespace().rev().find_map(|word| find(word).ok()) else { return names() };
    let mut words = Vec::new();
    for word in command.usage.split([' ', '|', '[', ']']).skip(1) {
        match word {
            "NAME" if ["insmod", "modinfo"].contains(&command.name) => {
                words.extend(ramdisk::modules().map(|file| file.name));
            }
            "NAME" if command.name == "limits" => words.extend(limits::ALL.map(|limit| limit.name.to_string())),
            "NAME" => words.extend(module::loaded().iter().map(|handle| handle.lock().name.clone())),
            "DISK" | "FROM" | "TO" => words.extend(scsi::scan::disks().iter().map(|disk| disk.name.clone())),
            "COMMAND" => words.extend(names()),
            _ if word.starts_with(|first: char| first == '-' || first.is_ascii_lowercase()) => {
                words.push(word.to_string())
            }
            _ => {}
        }
    }
    words.sort();
    words.dedup();
    words
}

/// Runs one line.
pub async fn run(line: &str) -> Outcome {
    let (name, arguments) = command_line::name_and_arguments(line);
    let command = find(name)?;
    (command.run)(Arguments::new(arguments, command.usage)).await
}

/// Runs commands with commas in between, up to the first that fails.
pub async fn run_all(commands: &str) -> Outcome {
    for command in command_line::list(commands) {
        Box::pin(run(command)).await?;
    }
    Ok(())
}

fn find(name: &str) -> Result<&'static Command, String> {
    let found = COMMANDS.iter().find(|command| command.name == name);
    found.ok_or_else(|| format!("there is no command '{name}'; 'help' lists them"))
}

async fn help(mut arguments: Arguments<'_>) -> Outcome {
    match arguments.optional() {
        Some(name) => {
            let command = find(name)?;
            println!("{}\n    {}", command.usage, command.help);
        }
        None => {
            for command in COMMANDS {
                println!("{:<12} {}", command.name, command.help);
            }
            println!("'help NAME' says how one is used.");
        }
    }
    arguments.end()
}

pub fn device_name(vendor: u16, device: u16) -> String {
    let vendor_name = pci_ids::Vendor::from_id(vendor).map_or("unknown vendor", pci_ids::Vendor::name);
    let device_name = pci_ids::Device::from_vid_pid(vendor, device).map_or("unknown device", pci_ids::Device::name);
    format!("{vendor_name} {device_name}")
}

async fn lspci(arguments: Arguments<'_>) -> Outcome {
    arguments.end()?;
    for function in pci::functions() {
        let (base, sub, _) = function.class;
        let class = pci_ids::Subclass::from_cid_sid(base, sub).map(pci_ids::Subclass::name);
        let class =
            class.or_else(|| pci_ids::Class::from_id(base).map(pci_ids::Class::name)).unwrap_or("unknown class");
        println!(
            "{} {:04x}:{:04x} {class}{}",
            function.address,
            function.id.vendor,
            function.id.device,
            match device::state(function.address) {
                State::Free => "",
                State::Driven => "  [driven]",
                State::SetAside => "  [set aside]",
            },
        );
        println!("             {}", device_name(function.id.vendor, function.id.device));
    }
    Ok(())
}

async fn dmesg(mut arguments: Arguments<'_>) -> Outcome {
    let (mut wanted, mut goes_on) = (Wanted::default(), false);
    while let Some(word) = arguments.optional() {
        match word {
            "-w" => goes_on = true,
            "error" => wanted.level = Some(Level::Error),
            "warning" => wanted.level = Some(Level::Warn),
            "info" => wanted.level = Some(Level::Info),
            name if wanted.driver.is_none() && !name.starts_with('-') => wanted.driver = Some(name.to_string()),
            other => return arguments.wrong(&format!("'{other}' is not known")),
        }
    }
    console::print_log(&wanted);
    if goes_on {
        // Lines appear as they come, until Ctrl-C ends this.
        let _watch = console::watch(wanted);
        core::future::pending::<()>().await;
    }
    Ok(())
}

async fn irqs(arguments: Arguments<'_>) -> Outcome {
    arguments.end()?;
    let (in_drivers, on_gates) = crate::arch::traps::interrupt_counts();
    let count: u64 = on_gates.values().sum();
    println!("{in_drivers} in drivers, {count} in entry code with a driver's root");
    let mut on_gates: Vec<(u64, u64)> = on_gates.into_iter().collect();
    on_gates.sort_unstable();
    for (at, count) in on_gates {
        println!("{count:>10} at {}", Location(at));
    }
    Ok(())
}

async fn repeat(mut arguments: Arguments<'_>) -> Outcome {
    let count: u32 = arguments.number("the count")?;
    let usage = arguments.wrong("the commands are missing");
    let commands = arguments.rest();
    if commands.is_empty() {
        return usage;
    }
    let started = time::uptime_ns();
    for _ in 0..count {
        run_all(commands).await?;
        super::let_drivers_return().await;
    }
    println!("{count} times in {} ms", (time::uptime_ns() - started) / 1_000_000);
    Ok(())
}

async fn fails(arguments: Arguments<'_>) -> Outcome {
    let usage = arguments.wrong("the command is missing");
    match arguments.rest() {
        "" => usage,
        command => match Box::pin(run(command)).await {
            Ok(()) => Err(format!("'{command}' did not fail")),
            Err(reason) => {
                println!("as expected: {reason}");
                Ok(())
            }
        },
    }
}

async fn mute(arguments: Arguments<'_>) -> Outcome {
    let usage = arguments.wrong("the command is missing");
    match arguments.rest() {
        "" => usage,
        command => {
            let _muted = console::mute();
            Box::pin(run(command)).await
        }
    }
}

async fn bench(mut arguments: Arguments<'_>) -> Outcome {
    let (mut prefix, mut json, mut mode) = ("", false, Mode::Time);
    while let Some(word) = arguments.optional() {
        match word {
            "--json" => json = true,
            "--instructions" => mode = Mode::Instructions,
            word => prefix = word,
        }
    }
    crate::bench::run(prefix, json, mode).await
}

/// Only the shell itself knows what it waits for: it never gets here unless `wait` is part of another command.
async fn wait(arguments: Arguments<'_>) -> Outcome {
    arguments.wrong("it takes nothing, and only a line of its own can wait")
}

async fn sleep(mut arguments: Arguments<'_>) -> Outcome {
    let milliseconds = arguments.milliseconds("the time")?;
    arguments.end()?;
    Timer::after_millis(milliseconds).await;
    Ok(())
}

async fn panic(mut arguments: Arguments<'_>) -> Outcome {
    let Some(word) = arguments.optional() else { panic!("as asked for") };
    let address = arguments.as_number("the address", word)?;
    arguments.end()?;
    crate::panic::call(address);
    println!("what is at {address:#x} returned");
    Ok(())
}

/// Only the shell itself knows what failed.
async fn shutdown(arguments: Arguments<'_>) -> Outcome {
    arguments.wrong("it takes nothing, and only a line of its own can end the machine")
}
