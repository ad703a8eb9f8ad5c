//! Runs machine code that the runner has made up (`drivers/snippets`), and says of each snippet how it ended, for programs.

use super::{Outcome, said};
use alloc::format;
use embassy_futures::yield_now;
use host::domain::Ring;
use host::domain::fault;
use host::module;
use hw::{console, println};
use ringfence_abi::manifest::Policy;
use ringfence_core::arguments::Arguments;

/// Tells a driver so many numbers, beginning with one, and puts a fresh instance in its place each time that ends it. One line each:
/// the number, and vector, error code, RIP, RSP, CS, SS and RFLAGS of the exception, or what else became of it. The checksum of what
/// must never change of the kernel comes last.
pub async fn snippets(mut arguments: Arguments<'_>) -> Outcome {
    let name = arguments.word("the driver's name")?;
    let (first, count): (u64, u64) = (arguments.number("the first snippet")?, arguments.number("the count")?);
    arguments.end()?;
    let mut handle = module::find(name).map_err(said)?;
    // Its report is not to be printed: that is for somebody who brings it back.
    handle.lock().life.set_policy(Policy::Restart);
    for number in first..first.saturating_add(count) {
        let muted = console::mute();
        let told = handle.lock().command(&format!("{number}"));
        let fault = handle.lock().life.fault().cloned();
        if fault.is_some() {
            fault::discard_pending();
            let file = handle.lock().file.clone();
            handle = module::replace(&handle, &file, Ring::Sandboxed, None).map_err(said)?;
        }
        drop(muted);
        match fault.as_ref().map(|fault| (fault.kind, fault.trap)) {
            Some((kind, Some(trap))) if kind != "overrun" => println!(
                "snippet {number} {:x} {:x} {:x} {:x} {:x} {:x} {:x}",
                trap.vector, trap.error_code, trap.rip, trap.rsp, trap.cs, trap.ss, trap.rflags
            ),
            Some((kind, _)) => println!("snippet {number} {kind}"),
            None if told.is_ok() => println!("snippet {number} answered"),
            None => println!("snippet {number} refused"),
        }
        yield_now().await;
    }
    println!("snippets {:016x}", hw::symbols::checksum());
    Ok(())
}
