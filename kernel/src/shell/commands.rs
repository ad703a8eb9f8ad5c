//! The table of commands with their help, and the functions that find and run a command.

use super::Outcome;
use super::disks::{blkcheck, blkcopy, blkread, blkreset, blkverify, blkwrite, lsblk, rescan};
use super::earned::{demote, promote, ring};
use super::files::{cat, cmp, cp, df, du, hexdump, ls, mkdir, mount, mv, rm, sha256sum, sync, truncate, umount};
#[cfg(feature = "bench")]
use super::machine::bench;
#[cfg(feature = "campaign")]
use super::machine::panic;
use super::machine::{dmesg, irqs, lspci};
use super::memory::{integrity, mem, vmmap};
use super::modules::{self, faults, insmod, kill, lsmod, modinfo, policy, reload, rmmod, tell};
use super::network::{echoed, ip, nslookup, ping, tcpecho};
use super::scripting::{alone, clear, echo, fails, into_file, mute, repeat, sleep, source};
use super::settings::save;
#[cfg(feature = "campaign")]
use super::snippets::snippets;
use super::top::top;
use super::trace::{stats, trace};
#[cfg(feature = "campaign")]
use super::trials::{poke, trial};
use super::watch::watch;
use super::web::{get, http};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::future::Future;
use core::pin::Pin;
use host::domain::registry;
use host::module;
use hw::println;
use ringfence_core::arguments::Arguments;
use ringfence_core::command_line;
use ringfence_core::limits;

type Running<'a> = Pin<Box<dyn Future<Output = Outcome> + 'a>>;

/// A command.
struct Command {
    name: &'static str,
    usage: &'static str,
    help: &'static str,
    example: &'static str,
    run: for<'a> fn(Arguments<'a>) -> Running<'a>,
}

/// A group of related commands.
struct Group {
    name: &'static str,
    commands: &'static [Command],
}

macro_rules! command {
    ($name:literal, $usage:literal, $help:literal, $example:literal, $run:path) => {
        Command {
            name: $name,
            usage: $usage,
            help: $help,
            example: $example,
            run: |arguments| Box::pin($run(arguments)),
        }
    };
}

/// The group that only `help --all` lists.
const FOR_TESTS: &str = "tests";

static GROUPS: &[Group] = &[
    Group {
        name: "modules",
        commands: &[
            command!("lsmod", "lsmod [-v]", "loaded drivers; -v: with restarts, faults and memory", "lsmod -v", lsmod),
            command!(
                "modinfo",
                "modinfo [NAME]",
                "what a module file says about itself, or all files",
                "modinfo e1000",
                modinfo
            ),
            command!(
                "insmod",
                "insmod NAME [OPTIONS] [K=V]",
                "load a module with values for its keys (modinfo); --kind paged|segmented: into such a domain; --ring 0|1: into that ring, --force: in any case; --trace: from init on; --debug: gdb stops it there",
                "insmod e1000",
                insmod
            ),
            command!(
                "reload",
                "reload NAME [FILE] [OPTION]",
                "put its newest build, or another module, in a running driver's place; its users go on; --kind paged|segmented: the build for such a domain",
                "reload rtl8139 rtl8139-c",
                reload
            ),
            command!("rmmod", "rmmod NAME", "stop a driver and free all it had", "rmmod e1000", rmmod),
        ],
    },
    Group {
        name: "drivers",
        commands: &[
            command!(
                "promote",
                "promote NAME [--force] | --auto [on|off]",
                "move a running driver into ring 0, if it has earned it; --auto: each as soon as it has",
                "promote e1000",
                promote
            ),
            command!("demote", "demote NAME", "move a running driver into ring 1", "demote e1000", demote),
            command!("ring", "ring NAME 0|1", "move a running driver to another ring", "ring e1000 0", ring),
            command!(
                "tell",
                "tell NAME [TEXT]",
                "hand a text to a driver, or list what it understands; @PART stands for a part's address",
                "tell rogue read @kernel",
                tell
            ),
            command!(
                "kill",
                "kill NAME|%JOB",
                "end a driver as a fault would, or a command that was started with &",
                "kill e1000",
                kill
            ),
            command!(
                "policy",
                "policy [NAME [restart|stop|ring0-never]]",
                "who may run in ring 0; or what becomes of a driver that faulted, where a new one forgives",
                "policy e1000 stop",
                policy
            ),
            command!(
                "limits",
                "limits [NAME [VALUE]]",
                "how patient the kernel is with drivers: all, or one",
                "limits turn-ms 20",
                modules::limits
            ),
            command!(
                "faults",
                "faults [NUMBER [--core FILE]]",
                "why drivers were ended: a list, or one in full; --core: what stays of the driver, for gdb",
                "faults 1 --core wild-write",
                faults
            ),
            command!(
                "trace",
                "trace NAME on|off|show|save | [-c] [--watch ADDRESS[:BYTES]|REGISTER] COMMAND",
                "what a driver is asked and asks for, from on to off or while a command runs; -c: counts",
                "trace e1000 ping 10.0.2.2 -c 1",
                trace
            ),
            command!(
                "watch",
                "watch NAME mmio|ports [BAR[:FROM-TO]] [COMMAND]",
                "each access to its device's registers, until Ctrl-C or while a command runs",
                "watch e1000 mmio 0:0x0-0xff ping 10.0.2.2 -c 1",
                watch
            ),
            command!(
                "stats",
                "stats NAME [SECONDS|COMMAND]",
                "how long upcalls, services and requests take, for a time or while a command runs",
                "stats e1000 ping 10.0.2.2",
                stats
            ),
        ],
    },
    Group {
        name: "network",
        commands: &[
            command!(
                "ip",
                "ip [addr|maddr add|del A[/N] dev ethX [via R] | link set ethX WHAT]",
                "shows interfaces, or changes one: up, down, mtu 1400, promisc on, allmulticast off",
                "ip addr add 192.168.1.2/24 dev eth0 via 192.168.1.1",
                ip
            ),
            command!(
                "ping",
                "ping HOST [-c COUNT] [-i SECONDS] [-W MS] [-s BYTES]",
                "ICMP echo requests, one a second",
                "ping 10.0.2.2 -c 3",
                ping
            ),
            command!(
                "nslookup",
                "nslookup NAME",
                "a host's addresses, from the name server",
                "nslookup example.org",
                nslookup
            ),
            command!(
                "tcpecho",
                "tcpecho HOST PORT BYTES [-W MS]",
                "have a TCP server echo bytes, and compare",
                "tcpecho 10.0.2.100 7 100000",
                tcpecho
            ),
            command!(
                "get",
                "get URL [FILE]",
                "fetch by HTTP, and show it or keep it",
                "get http://10.0.2.2:8000/file /mnt/file",
                get
            ),
            command!(
                "http",
                "http on [PORT] | off",
                "serve the page that shows what the system does, and a token for its buttons",
                "http on",
                http
            ),
            command!("echoed", "echoed", "length and SHA-256 of the last TCP stream that was echoed", "echoed", echoed),
        ],
    },
    Group {
        name: "disks",
        commands: &[
            command!("lsblk", "lsblk", "disks", "lsblk", lsblk),
            command!("rescan", "rescan", "look at all units of all SCSI hosts again", "rescan", rescan),
            command!(
                "blkread",
                "blkread DISK LBA COUNT",
                "read blocks and print their SHA-256",
                "blkread disk0 0 8",
                blkread
            ),
            command!(
                "blkwrite",
                "blkwrite DISK LBA COUNT SEED",
                "write blocks of a pattern and print its SHA-256",
                "blkwrite disk0 0 8 1",
                blkwrite
            ),
            command!("blkcopy", "blkcopy FROM LBA TO LBA COUNT", "copy blocks", "blkcopy disk0 0 disk1 0 8", blkcopy),
            command!(
                "blkcheck",
                "blkcheck DISK LBA COUNT SEED",
                "write blocks of a pattern, read them back, compare",
                "blkcheck disk0 0 8 1",
                blkcheck
            ),
            command!(
                "blkverify",
                "blkverify DISK LBA COUNT SEED",
                "compare blocks with the pattern",
                "blkverify disk0 0 8 1",
                blkverify
            ),
            command!(
                "blkreset",
                "blkreset DISK",
                "have the device give up what it does, and do it again",
                "blkreset disk0",
                blkreset
            ),
        ],
    },
    Group {
        name: "mounts",
        commands: &[
            command!(
                "mount",
                "mount [DISK PATH [-t FORMAT] [-o ro]]",
                "put the filesystem on a disk at a path, by a driver of its own; or list them",
                "mount disk0 /mnt",
                mount
            ),
            command!(
                "umount",
                "umount [-f] PATH",
                "write all, and unload the filesystem's driver; -f: also if the disk is gone",
                "umount /mnt",
                umount
            ),
            command!("df", "df", "how full filesystems are", "df", df),
            command!("sync", "sync", "have all that was written put on the disks", "sync", sync),
        ],
    },
    Group {
        name: "files",
        commands: &[
            command!("ls", "ls [-l] [PATH]", "what is in a directory; -l: with lengths and dates", "ls -l /mnt", ls),
            command!("cat", "cat FILE", "print a file as text", "cat /mnt/readme.txt", cat),
            command!("hexdump", "hexdump FILE [COUNT]", "print a file's bytes", "hexdump /mnt/readme.txt 64", hexdump),
            command!("cmp", "cmp FILE FILE", "compare two files", "cmp /mnt/a /mnt/b", cmp),
            command!("sha256sum", "sha256sum FILE", "a file's SHA-256 and length", "sha256sum /mnt/a", sha256sum),
            command!("cp", "cp FROM TO", "copy a file", "cp /mnt/a /mnt/b", cp),
            command!("mv", "mv FROM TO", "give a file or a directory another path", "mv /mnt/a /mnt/b", mv),
            command!("rm", "rm [-r] PATH", "remove a file or an empty directory; -r: with all in it", "rm /mnt/a", rm),
            command!(
                "truncate",
                "truncate FILE BYTES",
                "make a file shorter, or longer by zeros",
                "truncate /mnt/a 100",
                truncate
            ),
            command!("mkdir", "mkdir PATH", "make a directory", "mkdir /mnt/d", mkdir),
            command!("du", "du PATH", "how much is in a directory and below", "du /mnt", du),
        ],
    },
    Group {
        name: "machine",
        commands: &[
            command!(
                "lspci",
                "lspci [-v]",
                "PCI functions; -v: with BARs, line, capabilities and driver",
                "lspci -v",
                lspci
            ),
            command!(
                "dmesg",
                "dmesg [error|warning|info] [NAME] [-w]",
                "the kernel's log: all, as bad as that, or a driver's; -w goes on",
                "dmesg warning e1000",
                dmesg
            ),
            command!(
                "top",
                "top [-d SECONDS] [-n COUNT]",
                "what each driver does and takes, a second; q ends it",
                "top -n 1",
                top
            ),
            command!("mem", "mem", "memory: free, kernel, domains", "mem", mem),
            command!(
                "vmmap",
                "vmmap [NAME]",
                "what lies where in the kernel, or all that a driver can reach",
                "vmmap e1000",
                vmmap
            ),
            command!(
                "irqs",
                "irqs",
                "interrupts by line, and where those hit that came while a driver ran",
                "irqs",
                irqs
            ),
            #[cfg(feature = "bench")]
            command!(
                "bench",
                "bench [NAME] [--instructions] [--ring 0|1] [--kind K] [--batch N] [--samples N]",
                "what protection costs, in both rings: all, or names that begin so",
                "bench gate",
                bench
            ),
            command!("reboot", "reboot", "stop all drivers and start the machine again", "reboot", alone),
            command!("shutdown", "shutdown", "stop all drivers and end", "shutdown", alone),
            command!("exit", "exit", "as shutdown", "exit", alone),
        ],
    },
    Group {
        name: "shell",
        commands: &[
            command!(
                "help",
                "help [COMMAND] [--all]",
                "the commands by group; one; or each in a line",
                "help ping",
                help
            ),
            command!(
                "repeat",
                "repeat COUNT COMMAND [, COMMAND...]",
                "run commands several times",
                "repeat 3 rmmod e1000, insmod e1000",
                repeat
            ),
            command!(
                "source",
                "source FILE",
                "run the commands in a file, up to the first that fails; # begins a comment",
                "source /mnt/setup",
                source
            ),
            command!(
                "save",
                "save [FILE]",
                "write limits, policies and addresses to a file, by default /etc/settings",
                "save /mnt/settings",
                save
            ),
            command!("echo", "echo [TEXT]", "print a text", "echo first", echo),
            command!("clear", "clear", "clear the screen", "clear", clear),
            command!("sleep", "sleep MILLISECONDS", "wait", "sleep 500", sleep),
            command!("jobs", "jobs", "commands that were started with & behind them", "jobs", alone),
            command!("wait", "wait", "wait for commands that were started with & behind them", "wait", alone),
        ],
    },
    Group {
        name: "tests",
        commands: &[
            command!(
                "integrity",
                "integrity",
                "what must never change of the kernel, and stray writes",
                "integrity",
                integrity
            ),
            command!(
                "fails",
                "fails COMMAND",
                "run a command that is to fail, and say how it does",
                "fails rmmod none",
                fails
            ),
            command!(
                "mute",
                "mute COMMAND",
                "run a command and print nothing meanwhile; the log goes on",
                "mute ping 10.0.2.2 -c 1",
                mute
            ),
            #[cfg(feature = "campaign")]
            command!(
                "poke",
                "poke NAME OFFSET:BYTES",
                "change a running driver's image, to break it; both in hex",
                "poke e1000 2000:90",
                poke
            ),
            #[cfg(feature = "campaign")]
            command!(
                "trial",
                "trial NAME OFFSET:BYTES AT RING WORK | CHECK | AFTER",
                "put a module with a changed file to work, then the good one",
                "trial null 1000:90 0 1 help | help | help",
                trial
            ),
            #[cfg(feature = "campaign")]
            command!(
                "snippets",
                "snippets NAME FIRST COUNT",
                "run made-up machine code of a module",
                "snippets snippets 0 8",
                snippets
            ),
            #[cfg(feature = "campaign")]
            command!(
                "panic",
                "panic [ADDRESS]",
                "panic the kernel, or have it call an address, and see",
                "panic",
                panic
            ),
        ],
    },
];

fn all() -> impl Iterator<Item = &'static Command> {
    GROUPS.iter().flat_map(|group| group.commands)
}

/// Returns the names of all commands.
fn names() -> Vec<String> {
    all().map(|command| command.name.to_string()).collect()
}

/// Returns the words that can follow `before`: commands, or the words that the usage of the last
/// command in it names.
pub fn words_behind(before: &str) -> Vec<String> {
    let typed: Vec<&str> = before.split_whitespace().collect();
    if let [.., "tell", name] = typed[..]
        && let Some(driver) = registry::find(name)
    {
        let first_word = |command: &String| command.split([' ', '\t']).next().map(ToString::to_string);
        return driver.lock().commands.iter().filter_map(first_word).collect();
    }
    let Some(command) = typed.into_iter().rev().find_map(|word| find(word).ok()) else { return names() };
    let files = || module::files().into_iter().map(|file| file.name);
    let mut words = Vec::new();
    for word in command.usage.split([' ', '|', '[', ']']).skip(1) {
        match word {
            "FILE" => words.extend(files()),
            "NAME" if ["insmod", "modinfo"].contains(&command.name) => words.extend(files()),
            "NAME" if command.name == "limits" => words.extend(limits::ALL.map(|limit| limit.name.to_string())),
            "NAME" => words.extend(registry::all().iter().map(|handle| handle.lock().name.clone())),
            "DISK" | "FROM" | "TO" => words.extend(block::disk::all().iter().map(|disk| disk.name().to_string())),
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
    if let Some((command, path, appends)) = command_line::into_file(line) {
        return Box::pin(into_file(command, path, appends)).await;
    }
    let (name, arguments) = command_line::name_and_arguments(line);
    let command = find(name)?;
    if arguments.split_whitespace().last().is_some_and(|last| ["--help", "-h"].contains(&last)) {
        explain(command);
        return Ok(());
    }
    (command.run)(Arguments::new(arguments, command.usage)).await
}

/// Runs a comma-separated list of commands, up to the first command that fails.
pub async fn run_all(commands: &str) -> Outcome {
    for command in command_line::list(commands) {
        Box::pin(run(command)).await?;
    }
    Ok(())
}

fn find(name: &str) -> Result<&'static Command, String> {
    all().find(|command| command.name == name).ok_or_else(|| {
        let meant = command_line::most_like(name, all().map(|command| command.name));
        let meant = meant.map(|meant| format!("; did you mean '{meant}'?")).unwrap_or_default();
        format!("there is no command '{name}'; 'help' lists them{meant}")
    })
}

fn explain(command: &Command) {
    println!("{}\n    {}\n    example: {}", command.usage, command.help, command.example);
}

async fn help(mut arguments: Arguments<'_>) -> Outcome {
    match arguments.optional() {
        Some("--all") => {
            for group in GROUPS {
                println!("{}:", group.name);
                group.commands.iter().for_each(|command| println!("  {:<10} {}", command.name, command.help));
            }
        }
        Some(name) => explain(find(name)?),
        None => {
            for group in GROUPS.iter().filter(|group| group.name != FOR_TESTS) {
                let names: Vec<&str> = group.commands.iter().map(|command| command.name).collect();
                println!("{:<9} {}", group.name, names.join(" "));
            }
            println!("'help NAME' says how one is used; 'help --all' has a line for each.");
            println!("'&' behind one runs it beside others, '| more' shows pages; ';' is between two.");
        }
    }
    arguments.end()
}
