//! The shell: a line editor on the console, and the commands behind it.
//!
//! * [`commands`]: the table of commands, and `help`; [`machine`], [`modules`], [`disks`],
//!   [`files`], [`memory`], [`network`], [`settings`], [`snippets`], [`top`], [`trace`], [`trials`]
//!   have the commands about these; [`scripting`] has the commands that run others
//! * [`editor`]: lines that are typed, and their completion; [`pager`]: output a page at a time
//! * [`jobs`]: commands that run beside others
//!
//! Commands that the runner left in the ramdisk (`exec`) are run first and the machine is ended, so
//! that a script sees the same as a person.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
pub use commands::run_all;
use editor::Line;
use host::domain::fault;
use host::{module, ramdisk};
use hw::arch::power::{self, Ending};
use hw::{console, link, println};
use jobs::{Jobs, let_drivers_return};
use ringfence_core::command_line;
use ringfence_link::event::{Event, Sha256};

pub mod commands;
mod disks;
pub mod earned;
mod editor;
mod files;
mod jobs;
pub mod machine;
mod memory;
pub mod modules;
mod network;
mod pager;
pub mod scripting;
mod settings;
#[cfg(feature = "campaign")]
mod snippets;
pub mod top;
mod trace;
#[cfg(feature = "campaign")]
mod trials;
mod watch;
pub mod web;

/// The end of a command: success, or an error in words for a person.
pub type Outcome = Result<(), String>;

/// The prompt before each command.
pub const PROMPT: &str = "ringfence> ";

/// Loads drivers, then runs the commands in the ramdisk, or the commands that a person types.
pub async fn run() {
    let options = ramdisk::text("options").unwrap_or("");
    if let Some(columns) = options.lines().find_map(|option| option.strip_prefix("columns ")?.parse().ok()) {
        console::set_columns(columns);
    }
    if options.lines().any(|option| option == "ask-columns") {
        console::ask_columns();
    }
    if options.lines().any(|option| option == "piped") {
        console::set_piped();
    }
    if let Some(http) = options.lines().find_map(|option| option.strip_prefix("http "))
        && let [port, host, token] = http.split(' ').collect::<Vec<_>>()[..]
    {
        web::turn_on(port.parse().unwrap_or(web::PORT), Some(token.into()), host);
    }
    // Before any module is loaded.
    if let Err(why) = module::confinement::check() {
        log::warn!("segmented domains are refused: {why}");
    }
    if !options.lines().any(|option| option == "no-autoload") {
        let first: Vec<&str> = options.lines().filter_map(|option| option.strip_prefix("first ")).collect();
        module::autoload(&first).await;
    }
    scripting::at_boot(options.lines().find_map(|option| option.strip_prefix("etc "))).await;
    if let Some(script) = ramdisk::text("exec") {
        let mut jobs = Jobs::new(true);
        for command in command_line::commands(script) {
            println!("{PROMPT}{command}");
            jobs.execute(command).await;
        }
        jobs.finish().await;
        finish(jobs.failed()).await;
    }
    let mut jobs = Jobs::new(false);
    println!("Type 'help' for the commands, 'exit', Ctrl-D or Ctrl-] X to leave.");
    loop {
        let line = jobs.beside(editor::read_line(PROMPT)).await;
        let refusal = line.refusal();
        match line {
            Line::Command(line) => {
                println!();
                for command in command_line::commands(&line) {
                    jobs.execute(command).await;
                }
            }
            Line::TooLong => {
                println!();
                jobs.count("", Err(refusal.unwrap_or_default()));
            }
            Line::Cancelled => println!("^C"),
            // Leaves as a person does at the end of the input: jobs that still run are waited for.
            Line::End => {
                println!();
                jobs.finish().await;
                finish(0).await;
            }
        }
    }
}

/// Saves the record, and takes all filesystems away.
async fn end_files() {
    if let Err(why) = earned::save_record().await {
        println!("the record is not saved: {why}");
    }
    files::umount_all().await;
}

/// Stops all drivers and reboots the machine.
async fn reboot() -> ! {
    end_files().await;
    module::unload_all().await;
    fault::print_pending();
    power::end(Ending::Reboot)
}

/// Stops all drivers and ends the machine. The last line says whether commands failed.
async fn finish(failed: usize) -> ! {
    end_files().await;
    module::unload_all().await;
    fault::print_pending();
    link::tell_last(&Event::Ended { failed: failed as u64 });
    if failed == 0 {
        println!("ringfence: done");
        power::end(Ending::Done)
    }
    println!("ringfence: {failed} command{} failed", if failed == 1 { "" } else { "s" });
    power::end(Ending::CommandFailed)
}

/// Prints a SHA-256 and the number of bytes that it covers.
fn print_sum(sum: &[u8; 32], bytes: u64) {
    let sha256 = Sha256(*sum);
    println!("{sha256}  {bytes} bytes");
    link::tell(&Event::Data { bytes, sha256 });
}

/// Returns the message of a failed operation for a person.
fn said(error: impl ToString) -> String {
    error.to_string()
}
