//! The commands: a table with the help of each, and what they do.

use super::arguments::Arguments;
use super::{Outcome, said};
use crate::arch::time;
use crate::bench::Mode;
use crate::domain::Ring;
use crate::domain::device::{self, State};
use crate::domain::fault::{Cause, history};
use crate::scsi::disk::Disk;
use crate::{console, limits, memory, module, net, pci, println, ramdisk, scsi, shell, supervise};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::future::Future;
use core::pin::Pin;
use embassy_time::{Duration, Timer};
use pci_ids::FromId;
use ringfence_abi::manifest::Policy;
use ringfence_abi::service::SERVICES;
use ringfence_core::module::Module;
use sha2::{Digest, Sha256};

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
    command!("tell", "tell NAME TEXT", "hand a text to a driver's own command entry", tell),
    command!("kill", "kill NAME", "end a driver as a fault would", kill),
    command!(
        "policy",
        "policy NAME restart|stop|ring0-never",
        "what becomes of a driver that faulted; forgives what was",
        policy
    ),
    command!("limits", "limits [NAME VALUE]", "how patient the kernel is with drivers: all, or change one", limits),
    command!("faults", "faults [NUMBER]", "why drivers were ended: a list, or one in full", faults),
    command!("lspci", "lspci", "PCI functions", lspci),
    command!("ip", "ip", "network interfaces; waits for an address", ip),
    command!("ping", "ping HOST [-c COUNT]", "ICMP echo requests", ping),
    command!("lsblk", "lsblk", "disks", lsblk),
    command!("blkread", "blkread DISK LBA COUNT", "read blocks and print their SHA-256", blkread),
    command!("blkwrite", "blkwrite DISK LBA COUNT SEED", "write blocks of a pattern and print its SHA-256", blkwrite),
    command!("blkcopy", "blkcopy FROM LBA TO LBA COUNT", "copy blocks", blkcopy),
    command!("dmesg", "dmesg", "the kernel's log", dmesg),
    command!("mem", "mem", "memory: free, kernel, domains", mem),
    command!("irqs", "irqs", "where interrupts hit that came while a driver ran", irqs),
    command!("integrity", "integrity", "SHA-256 of what of the kernel must never change", integrity),
    command!("repeat", "repeat COUNT COMMAND [, COMMAND...]", "run commands several times", repeat),
    command!(
        "bench",
        "bench [NAME] [--json] [--instructions]",
        "what protection costs: all, or names that begin so",
        bench
    ),
    command!("sleep", "sleep MILLISECONDS", "wait", sleep),
    command!("wait", "wait", "wait for commands that were started with & behind them", wait),
    command!("panic", "panic", "panic the kernel, to see what that looks like", panic),
    command!("shutdown", "shutdown", "stop all drivers and end", shutdown),
];

/// Names of all commands.
pub fn names() -> Vec<String> {
    COMMANDS.iter().map(|command| command.name.to_string()).collect()
}

/// Runs one line.
pub async fn run(line: &str) -> Outcome {
    let (name, arguments) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let command = find(name)?;
    (command.run)(Arguments::new(arguments, command.usage)).await
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
                println!("{:<36} {}", command.usage, command.help);
            }
        }
    }
    arguments.end()
}

async fn lsmod(arguments: Arguments<'_>) -> Outcome {
    arguments.end()?;
    println!("{:<16} {:>4} {:>4} {:>9} {:<12} {}", "MODULE", "RING", "SLOT", "UPCALLS", "DEVICE", "STATE");
    for handle in module::loaded() {
        let domain = handle.lock();
        let device = domain.device.as_ref().map(|device| device.function().address.to_string());
        println!(
            "{:<16} {:>4} {:>4} {:>9} {:<12} {}",
            domain.name,
            domain.ring(),
            domain.space.slot(),
            domain.upcalls,
            device.as_deref().unwrap_or("-"),
            if domain.is_alive() { "running" } else { "ended by a fault" }
        );
    }
    Ok(())
}

async fn modinfo(mut arguments: Arguments<'_>) -> Outcome {
    let Some(name) = arguments.optional() else {
        println!("{:<16} {:>8}  {}", "FILE", "BYTES", "DRIVES");
        for file in ramdisk::modules() {
            let drives = match Module::parse(file.bytes) {
                Ok(module) => {
                    let ids: Vec<String> =
                        module.manifest.pci_ids().map(|id| format!("{:04x}:{:04x}", id.vendor, id.device)).collect();
                    ids.join(" ")
                }
                Err(error) => format!("refused: {error}"),
            };
            println!("{:<16} {:>8}  {drives}", file.name, file.bytes.len());
        }
        return Ok(());
    };
    arguments.end()?;
    let file = module::file(name).map_err(said)?;
    let module = Module::parse(file.bytes).map_err(|error| format!("refused: {error}"))?;
    let manifest = &module.manifest;
    println!("name      {}", manifest.name());
    println!("version   {}", manifest.version());
    println!("file      {} bytes, {} bytes loaded", file.bytes.len(), module.len_bytes);
    for id in manifest.pci_ids() {
        println!("drives    {:04x}:{:04x}  {}", id.vendor, id.device, device_name(id.vendor, id.device));
    }
    println!(
        "budget    heap {} KiB, DMA {} KiB, stack {} KiB, {} ms an upcall",
        manifest.heap_bytes / 1024,
        manifest.dma_bytes / 1024,
        manifest.stack_bytes / 1024,
        manifest.upcall_ms
    );
    for number in module.imports.iter() {
        if let Some(service) = SERVICES.get(number) {
            println!("asks for  {:<18} {}", service.symbol, service.what);
        }
    }
    Ok(())
}

fn parse_ring(arguments: &Arguments, word: &str) -> Result<Ring, String> {
    match word {
        "0" => Ok(Ring::Trusted),
        "1" => Ok(Ring::Sandboxed),
        other => arguments.wrong(&format!("the ring must be 0 or 1, not '{other}'")),
    }
}

async fn insmod(mut arguments: Arguments<'_>) -> Outcome {
    let name = arguments.word("the module's name")?;
    let mut ring = Ring::Sandboxed;
    match arguments.optional() {
        None => {}
        Some("--ring") => {
            let word = arguments.word("the ring")?;
            ring = parse_ring(&arguments, word)?;
        }
        Some(other) => return arguments.wrong(&format!("'{other}' is not known")),
    }
    arguments.end()?;
    let handle = module::load(&module::file(name).map_err(said)?, ring).map_err(|error| format!("{name}: {error}"))?;
    scsi::settled().await;
    let domain = handle.lock();
    println!("{}: loaded into ring {}, slot {}", domain.name, domain.ring(), domain.space.slot());
    Ok(())
}

async fn rmmod(mut arguments: Arguments<'_>) -> Outcome {
    let name = arguments.word("the module's name")?;
    arguments.end()?;
    module::unload(name).map_err(said)?;
    println!("{name}: unloaded");
    Ok(())
}

async fn ring(mut arguments: Arguments<'_>) -> Outcome {
    let name = arguments.word("the module's name")?;
    let word = arguments.word("the ring")?;
    let ring = parse_ring(&arguments, word)?;
    arguments.end()?;
    let handle = module::find(name).map_err(said)?;
    let mut domain = handle.lock();
    if !domain.is_alive() {
        return Err(format!("{name} was ended by a fault"));
    }
    if let Some(why) = supervise::distrust(&domain).filter(|_| ring == Ring::Trusted) {
        return Err(format!("{name} stays in ring 1: {why}"));
    }
    domain.set_ring(ring);
    println!("{name}: now in ring {ring}");
    Ok(())
}

async fn tell(mut arguments: Arguments<'_>) -> Outcome {
    let name = arguments.word("the module's name")?;
    let text = arguments.rest();
    let handle = module::find(name).map_err(said)?;
    let answer = handle.lock().command(text);
    let mut domain = handle.lock();
    module::collect(&mut domain);
    if !domain.is_alive() {
        module::quiesce(&mut domain);
    }
    let value = answer.map_err(|error| format!("{name}: {error}"))?;
    println!("{name}: {value} ({value:#x})");
    Ok(())
}

async fn kill(mut arguments: Arguments<'_>) -> Outcome {
    let name = arguments.word("the module's name")?;
    arguments.end()?;
    let handle = module::find(name).map_err(said)?;
    if !handle.lock().is_alive() {
        return Err(format!("{name} was ended already"));
    }
    module::condemn(&handle, Cause::Killed);
    Ok(())
}

async fn policy(mut arguments: Arguments<'_>) -> Outcome {
    let name = arguments.word("the module's name")?;
    let policy = match arguments.word("the policy")? {
        "restart" => Some(Policy::Restart),
        "stop" => Some(Policy::Stop),
        "ring0-never" => None,
        other => return arguments.wrong(&format!("'{other}' is no policy")),
    };
    arguments.end()?;
    let handle = module::find(name).map_err(said)?;
    let mut domain = handle.lock();
    match policy {
        Some(policy) => {
            domain.policy = policy;
            domain.given_up = false;
            domain.faults_at.clear();
            supervise::forgive(&domain);
        }
        None => {
            domain.ring1_only = true;
            domain.set_ring(Ring::Sandboxed);
        }
    }
    drop(domain);
    // One that was ended already is restarted now, or those who wait for that need not wait any longer.
    supervise::note();
    scsi::wake_waiting();
    Ok(())
}

async fn limits(mut arguments: Arguments<'_>) -> Outcome {
    let Some(name) = arguments.optional() else {
        for limit in limits::ALL {
            println!("{:<18} {:>8}  {}", limit.name, limit.get(), limit.what);
        }
        return Ok(());
    };
    let value = arguments.number("the value")?;
    arguments.end()?;
    let limit = limits::ALL.into_iter().find(|limit| limit.name == name);
    let limit = limit.ok_or_else(|| format!("there is no limit '{name}'; 'limits' lists them"))?;
    limit.set(value).map_err(|(least, most)| format!("{name} must be {least} to {most}, not {value}"))
}

async fn faults(mut arguments: Arguments<'_>) -> Outcome {
    let wanted = match arguments.optional() {
        Some(word) => Some(arguments.as_number::<usize>("the fault", word)?),
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
                fault.headline
            );
        }
        if kept.is_empty() {
            println!("none");
        }
        return Ok(());
    };
    let (_, fault) = kept.iter().find(|(number, _)| *number == wanted).ok_or(format!("fault {wanted} is not kept"))?;
    println!("{}", fault.in_full());
    Ok(())
}

fn device_name(vendor: u16, device: u16) -> String {
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

async fn ip(arguments: Arguments<'_>) -> Outcome {
    const LIMIT: Duration = Duration::from_secs(10);
    arguments.end()?;
    let leased = net::wait_for_address(LIMIT).await;
    let interfaces = net::status();
    for interface in &interfaces {
        println!(
            "{}: {} via {}, {}, router {}, {} frames out, {} in",
            interface.name,
            interface.address.as_deref().unwrap_or("no address"),
            interface.driver,
            interface.mac,
            interface.router.as_deref().unwrap_or("none"),
            interface.counts.sent,
            interface.counts.received
        );
    }
    match (interfaces.is_empty(), leased) {
        (true, _) => Err("there is no network interface".to_string()),
        (_, false) => Err(format!("no address from DHCP within {} s", LIMIT.as_secs())),
        _ => Ok(()),
    }
}

async fn ping(mut arguments: Arguments<'_>) -> Outcome {
    const LIMIT: Duration = Duration::from_secs(2);
    let word = arguments.word("the host's address")?;
    let host = word.parse().or_else(|_| arguments.wrong(&format!("'{word}' is not an IPv4 address")))?;
    let count = match arguments.optional() {
        None => 4,
        Some("-c") => arguments.number::<u16>("the count")?,
        Some(other) => return arguments.wrong(&format!("'{other}' is not known")),
    };
    arguments.end()?;
    if !net::wait_for_address(Duration::from_secs(10)).await {
        return Err("the interface has no address".to_string());
    }
    let mut answered = 0;
    for sequence in 1..=count {
        match net::ping(host, sequence, LIMIT).await? {
            Some(time) => {
                answered += 1;
                println!("answer from {host}: seq={sequence} time={} us", time.as_micros());
            }
            None => println!("no answer: seq={sequence}"),
        }
    }
    println!("{count} sent, {answered} answered");
    if answered == count { Ok(()) } else { Err(format!("{} lost", count - answered)) }
}

async fn lsblk(arguments: Arguments<'_>) -> Outcome {
    arguments.end()?;
    scsi::settled().await;
    println!(
        "{:<8} {:<16} {:>6} {:>4} {:>10} {:>6}  {}",
        "DISK", "DRIVER", "TARGET", "UNIT", "BLOCKS", "BYTES", "MODEL"
    );
    for disk in scsi::disks() {
        println!(
            "{:<8} {:<16} {:>6} {:>4} {:>10} {:>6}  {} {} {}",
            disk.name,
            disk.handle().lock().name,
            disk.target,
            disk.lun,
            disk.capacity.blocks,
            disk.capacity.block_bytes,
            disk.identity.vendor,
            disk.identity.product,
            disk.identity.revision
        );
    }
    Ok(())
}

async fn find_disk(name: &str) -> Result<Arc<Disk>, String> {
    scsi::settled().await;
    let found = scsi::disks().into_iter().find(|disk| disk.name == name);
    found.ok_or_else(|| format!("there is no disk '{name}'; 'lsblk' lists them"))
}

/// Bytes that are moved at once.
const PIECE: usize = 256 << 10;

/// Calls for each piece of `blocks` blocks from `lba`: its first block, and its length in bytes.
fn pieces(disk: &Disk, lba: u64, blocks: u64) -> impl Iterator<Item = (u64, usize)> {
    let block_bytes = disk.block_bytes();
    let each = (PIECE / block_bytes) as u64;
    (0..blocks.div_ceil(each)).map(move |piece| {
        let first = piece * each;
        (lba + first, (blocks - first).min(each) as usize * block_bytes)
    })
}

fn check_range(disk: &Disk, lba: u64, blocks: u64) -> Outcome {
    match lba.checked_add(blocks) {
        Some(end) if end <= disk.capacity.blocks => Ok(()),
        _ => Err(format!("{} has only {} blocks", disk.name, disk.capacity.blocks)),
    }
}

fn print_sum(sum: Sha256, bytes: u64) {
    let sum: String = sum.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    println!("{sum}  {bytes} bytes");
}

async fn blkread(mut arguments: Arguments<'_>) -> Outcome {
    let disk = find_disk(arguments.word("the disk")?).await?;
    let (lba, blocks) = (arguments.number("the first block")?, arguments.number("the count")?);
    arguments.end()?;
    check_range(&disk, lba, blocks)?;
    let mut sum = Sha256::new();
    let mut buffer = vec![0; PIECE];
    for (lba, len_bytes) in pieces(&disk, lba, blocks) {
        let data = buffer.get_mut(..len_bytes).unwrap_or(&mut []);
        disk.read(lba, data).await.map_err(said)?;
        sum.update(data);
    }
    print_sum(sum, blocks * disk.block_bytes() as u64);
    Ok(())
}

/// Fills `data` with a pattern that differs with the seed and the block's address (xorshift64*).
fn fill(data: &mut [u8], lba: u64, seed: u64) {
    let mut state = (seed ^ lba.wrapping_mul(0x9e37_79b9_7f4a_7c15)) | 1;
    for word in data.chunks_mut(8) {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        let bytes = state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes();
        word.copy_from_slice(bytes.get(..word.len()).unwrap_or(&bytes));
    }
}

async fn blkwrite(mut arguments: Arguments<'_>) -> Outcome {
    let disk = find_disk(arguments.word("the disk")?).await?;
    let (lba, blocks) = (arguments.number("the first block")?, arguments.number("the count")?);
    let seed = arguments.number("the seed")?;
    arguments.end()?;
    check_range(&disk, lba, blocks)?;
    let mut sum = Sha256::new();
    let mut buffer = vec![0; PIECE];
    for (lba, len_bytes) in pieces(&disk, lba, blocks) {
        let data = buffer.get_mut(..len_bytes).unwrap_or(&mut []);
        fill(data, lba, seed);
        disk.write(lba, data).await.map_err(said)?;
        sum.update(data);
    }
    disk.flush().await.map_err(said)?;
    print_sum(sum, blocks * disk.block_bytes() as u64);
    Ok(())
}

async fn blkcopy(mut arguments: Arguments<'_>) -> Outcome {
    let from = find_disk(arguments.word("the disk to read")?).await?;
    let from_lba = arguments.number("the first block to read")?;
    let to = find_disk(arguments.word("the disk to write")?).await?;
    let to_lba = arguments.number("the first block to write")?;
    let blocks = arguments.number("the count")?;
    arguments.end()?;
    if from.block_bytes() != to.block_bytes() {
        return Err("the disks have blocks of different lengths".to_string());
    }
    check_range(&from, from_lba, blocks)?;
    check_range(&to, to_lba, blocks)?;
    let mut sum = Sha256::new();
    let mut buffer = vec![0; PIECE];
    for ((read, len_bytes), (write, _)) in pieces(&from, from_lba, blocks).zip(pieces(&to, to_lba, blocks)) {
        let data = buffer.get_mut(..len_bytes).unwrap_or(&mut []);
        from.read(read, data).await.map_err(said)?;
        to.write(write, data).await.map_err(said)?;
        sum.update(data);
    }
    to.flush().await.map_err(said)?;
    print_sum(sum, blocks * from.block_bytes() as u64);
    Ok(())
}

async fn dmesg(arguments: Arguments<'_>) -> Outcome {
    arguments.end()?;
    console::for_each_line(|line| println!("{line}"));
    Ok(())
}

async fn mem(arguments: Arguments<'_>) -> Outcome {
    arguments.end()?;
    let (free, total) = memory::frames::count();
    let (used, size) = memory::heap_use();
    println!("frames    {free} free of {total}");
    println!("heap      {used} bytes used of {size}");
    for handle in module::loaded() {
        let domain = handle.lock();
        println!(
            "{:<16} heap {} KiB, DMA {} KiB, image {} KiB",
            domain.name,
            domain.heap_bytes / 1024,
            domain.dma.iter().map(|region| region.extent.len_bytes).sum::<u64>() / 1024,
            domain.image_bytes / 1024
        );
    }
    Ok(())
}

async fn irqs(arguments: Arguments<'_>) -> Outcome {
    arguments.end()?;
    let (in_drivers, on_gates) = crate::arch::traps::interrupt_counts();
    println!("{in_drivers} in drivers, {on_gates} in entry code with a driver's root");
    Ok(())
}

async fn integrity(arguments: Arguments<'_>) -> Outcome {
    arguments.end()?;
    let mut sum = Sha256::new();
    for part in crate::symbols::constant_parts() {
        sum.update(part);
    }
    let mut entries = 0;
    memory::tables::for_each_kernel_entry(&mut |entry| {
        sum.update(entry.to_le_bytes());
        entries += 1;
    });
    let sum: String = sum.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    println!("{sum}  text, read-only data, descriptor tables, {entries} page-table entries");
    Ok(())
}

async fn repeat(mut arguments: Arguments<'_>) -> Outcome {
    let count: u32 = arguments.number("the count")?;
    let commands = arguments.rest();
    let started = time::uptime_ns();
    for _ in 0..count {
        for command in commands.split(',').map(str::trim) {
            Box::pin(run(command)).await?;
        }
        embassy_futures::yield_now().await;
    }
    println!("{count} times in {} ms", (time::uptime_ns() - started) / 1_000_000);
    Ok(())
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
    arguments.wrong("only a line of its own can wait")
}

async fn sleep(mut arguments: Arguments<'_>) -> Outcome {
    let milliseconds = arguments.number("the time")?;
    arguments.end()?;
    Timer::after_millis(milliseconds).await;
    Ok(())
}

async fn panic(arguments: Arguments<'_>) -> Outcome {
    arguments.end()?;
    panic!("as asked for");
}

async fn shutdown(arguments: Arguments<'_>) -> Outcome {
    arguments.end()?;
    shell::finish(0)
}
