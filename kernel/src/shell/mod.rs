//! The shell: a line editor on the console, and the commands behind it.
//!
//! * [`commands`]: the table of commands and most of them
//! * [`arguments`]: what a command makes of its arguments, and what it says when they are wrong
//! * [`editor`]: history and completion
//!
//! Commands that the runner left in the ramdisk (`exec`) are run first and the machine is ended, so that a script sees
//! the same as a person.

use crate::arch::power::{self, Ending};
use crate::{console, module, print, println, ramdisk};
use alloc::string::{String, ToString};
use core::future::poll_fn;
use core::task::Poll;
use editor::{Line, LineEditor};
use embassy_futures::select::{Either, select};

pub mod arguments;
mod commands;
mod editor;

/// A command's end: nothing, or what went wrong, in words for a person.
pub type Outcome = Result<(), String>;

/// The line before each command.
pub const PROMPT: &str = "ringfence> ";
const CTRL_C: u8 = 3;

/// Loads drivers, then runs the commands in the ramdisk, or those that are typed.
pub async fn run() {
    let options = ramdisk::text("options").unwrap_or("");
    if !options.lines().any(|option| option == "no-autoload") {
        module::autoload();
    }
    if let Some(script) = ramdisk::text("exec") {
        let mut failed = 0;
        for command in script.split([';', '\n']).map(str::trim).filter(|command| !command.is_empty()) {
            println!("{PROMPT}{command}");
            failed += usize::from(!execute(command).await);
        }
        finish(failed);
    }
    println!("Type 'help' for the commands, 'shutdown' or Ctrl-A X to leave.");
    let mut editor = LineEditor::new();
    loop {
        print!("{PROMPT}");
        match editor.read_line().await {
            Line::Command(command) => {
                println!();
                if !command.is_empty() {
                    execute(&command).await;
                }
            }
            Line::Cancelled => println!("^C"),
        }
    }
}

/// Ends the machine in order, and says so in the last line.
pub fn finish(failed: usize) -> ! {
    module::unload_all();
    if failed == 0 {
        println!("ringfence: done");
        power::end(Ending::Done)
    }
    println!("ringfence: {failed} command{} failed", if failed == 1 { "" } else { "s" });
    power::end(Ending::CommandFailed)
}

/// Runs one command; Ctrl-C gives it up. Whether it succeeded.
async fn execute(line: &str) -> bool {
    let interrupted = poll_fn(|context| {
        while let Some(byte) = console::read_byte(Some(context.waker())) {
            if byte == CTRL_C {
                return Poll::Ready(());
            }
        }
        Poll::Pending
    });
    match select(commands::run(line), interrupted).await {
        Either::First(Ok(())) => true,
        Either::First(Err(reason)) => {
            println!("error: {reason}");
            false
        }
        Either::Second(()) => {
            println!("^C");
            false
        }
    }
}

/// What a failed operation says to a person.
fn said(error: impl ToString) -> String {
    error.to_string()
}
