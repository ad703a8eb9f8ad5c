//! The shell: a line editor on the console, and the commands behind it.
//!
//! * [`commands`]: the table of commands; [`modules`], [`disks`], [`memory`], [`network`], [`snippets`], [`trace`], [`trials`] have those that are about
//!   these
//! * [`editor`]: lines that are typed, and their completion
//!
//! Commands that the runner left in the ramdisk (`exec`) are run first and the machine is ended, so that a script sees
//! the same as a person.

use crate::arch::power::{self, Ending};
use crate::domain::fault;
use crate::memory::{has_room, heap_use};
use crate::{console, module, println, ramdisk};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
pub use commands::run_all;
use core::future::{Future, poll_fn};
use core::pin::Pin;
use core::task::{Context, Poll};
use editor::Line;
use embassy_futures::select::{Either, select};
use embassy_futures::yield_now;
use ringfence_core::command_line;

mod commands;
mod disks;
mod editor;
mod memory;
mod modules;
mod network;
mod snippets;
mod trace;
mod trials;

/// A command's end: nothing, or what went wrong, in words for a person.
pub type Outcome = Result<(), String>;

/// The line before each command.
pub const PROMPT: &str = "ringfence> ";

/// Loads drivers, then runs the commands in the ramdisk, or those that are typed.
pub async fn run() {
    let options = ramdisk::text("options").unwrap_or("");
    if let Some(columns) = options.lines().find_map(|option| option.strip_prefix("columns ")?.parse().ok()) {
        console::set_columns(columns);
    }
    if options.lines().any(|option| option == "ask-columns") {
        console::ask_columns();
    }
    if !options.lines().any(|option| option == "no-autoload") {
        module::autoload();
    }
    let mut jobs = Jobs::default();
    if let Some(script) = ramdisk::text("exec") {
        jobs.scripted = true;
        for command in command_line::commands(script) {
            println!("{PROMPT}{command}");
            jobs.execute(command).await;
        }
        jobs.finish().await;
        finish(jobs.failed);
    }
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
                jobs.count(Err(refusal.unwrap_or_default()));
            }
            Line::Cancelled => println!("^C"),
            // As a person leaves who has typed all there is; what still runs is waited for.
            Line::End => {
                println!();
                jobs.finish().await;
                finish(0);
            }
        }
    }
}

/// Ends the machine in order, and says so in the last line.
fn finish(failed: usize) -> ! {
    module::unload_all();
    fault::print_pending();
    if failed == 0 {
        println!("ringfence: done");
        power::end(Ending::Done)
    }
    println!("ringfence: {failed} command{} failed", if failed == 1 { "" } else { "s" });
    power::end(Ending::CommandFailed)
}

/// What a command takes of the kernel's heap at most, beside buffers that it asks for.
const COMMAND_BYTES: usize = 128 << 10;
/// Commands that can run beside others.
const MAX_JOBS: usize = 64;

/// Commands that were started with `&` and still run, and how many commands failed.
#[derive(Default)]
struct Jobs {
    running: Vec<Pin<Box<dyn Future<Output = Outcome>>>>,
    failed: usize,
    /// Whether nobody types them.
    scripted: bool,
}

impl Jobs {
    /// Runs one command; Ctrl-C gives it up. One that ends with `&` goes on beside those that follow.
    async fn execute(&mut self, line: &str) {
        if !has_room(COMMAND_BYTES) && line != "shutdown" && line != "wait" {
            let free_kib = {
                let (used, size) = heap_use();
                (size - used) / 1024
            };
            let text =
                format!("out of memory: {free_kib} KiB of the kernel's heap are left; 'wait' waits for what runs");
            self.count(Err(text));
            return;
        }
        if let Some(line) = command_line::in_background(line) {
            if self.running.len() >= MAX_JOBS {
                self.count(Err(format!("{MAX_JOBS} commands run already; 'wait' waits for them")));
                return;
            }
            let line = line.to_string();
            self.running.push(Box::pin(async move {
                let outcome = commands::run(&line).await;
                println!("{line} & {}", if outcome.is_ok() { "is done" } else { "failed" });
                outcome
            }));
            return;
        }
        if line == "shutdown" {
            // A person has seen what failed.
            finish(if self.scripted { self.failed } else { 0 });
        }
        if line == "wait" {
            let waited = self.finish_or_interrupted().await;
            if !waited {
                self.running.clear();
                self.count(Err("interrupted".to_string()));
            }
            return;
        }
        let interrupted = poll_fn(|context| match console::take_interrupt(context.waker()) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        });
        match self.beside(select(commands::run(line), interrupted)).await {
            Either::First(outcome) => self.count(outcome),
            Either::Second(()) => self.count(Err("interrupted".to_string())),
        }
        let_drivers_return().await;
    }

    /// Waits for all that run.
    async fn finish(&mut self) {
        poll_fn(|context| {
            self.poll(context);
            if self.running.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Waits for all that run; `false` if Ctrl-C came first.
    async fn finish_or_interrupted(&mut self) -> bool {
        poll_fn(|context| {
            self.poll(context);
            match (self.running.is_empty(), console::take_interrupt(context.waker())) {
                (true, _) => Poll::Ready(true),
                (_, true) => Poll::Ready(false),
                _ => Poll::Pending,
            }
        })
        .await
    }

    /// Waits for `future` while the others go on.
    async fn beside<T>(&mut self, future: impl Future<Output = T>) -> T {
        let mut future = core::pin::pin!(future);
        poll_fn(|context| {
            self.poll(context);
            future.as_mut().poll(context)
        })
        .await
    }

    fn poll(&mut self, context: &mut Context) {
        let mut ended = Vec::new();
        self.running.retain_mut(|job| match job.as_mut().poll(context) {
            Poll::Ready(outcome) => {
                ended.push(outcome);
                false
            }
            Poll::Pending => true,
        });
        ended.into_iter().for_each(|outcome| self.count(outcome));
    }

    fn count(&mut self, outcome: Outcome) {
        if let Err(reason) = outcome {
            println!("error: {reason}");
            self.failed += 1;
        }
    }
}

/// Between two commands: a driver that the first one ended is back before the next. Who became ready last is next
/// (embassy-executor's queue), which after one turn may be this task again.
async fn let_drivers_return() {
    yield_now().await;
    yield_now().await;
}

/// Prints a SHA-256 and of how many bytes it is.
fn print_sum(sum: &[u8; 32], bytes: u64) {
    let sum: String = sum.iter().map(|byte| alloc::format!("{byte:02x}")).collect();
    println!("{sum}  {bytes} bytes");
}

/// What a failed operation says to a person.
fn said(error: impl ToString) -> String {
    error.to_string()
}
