//! Runs machine code that the runner has made up (`drivers/snippets`), and sends programs the
//! result of each snippet.

use super::{Outcome, said};
use alloc::format;
use embassy_futures::yield_now;
use host::domain::Ring;
use host::domain::fault;
use host::domain::sleep;
use host::module;
use hw::arch::frame::TrapFrame;
use hw::memory::stray;
use hw::{console, link, println};
use ringfence_abi::manifest::Policy;
use ringfence_core::arguments::Arguments;
use ringfence_link::event::{Event, Snippet, Trap};

/// Tells a driver the numbers of `count` snippets, beginning with `first`. When a snippet ends the
/// driver, puts a fresh instance in its place. Sends the result of each snippet over the link, and
/// finally the kernel's checksum and count of stray writes.
pub async fn snippets(mut arguments: Arguments<'_>) -> Outcome {
    let name = arguments.word("the driver's name")?;
    let (first, count): (u64, u64) = (arguments.number("the first snippet")?, arguments.number("the count")?);
    arguments.end()?;
    let mut handle = module::find(name).map_err(said)?;
    // With this policy the report is not printed at once: it is left to the code that restarts the
    // driver.
    handle.lock().life.set_policy(Policy::Restart);
    let mut ended = 0_u64;
    for number in first..first.saturating_add(count) {
        let muted = console::mute();
        let (told, _) = sleep::command(&handle, &format!("{number}")).await;
        let fault = handle.lock().life.fault().cloned();
        if fault.is_some() {
            fault::discard_pending();
            let file = handle.lock().file.clone();
            handle = module::replace(&handle, &file, Ring::Sandboxed, None).await.map_err(said)?;
        }
        drop(muted);
        ended += u64::from(fault.is_some());
        let tell = |kind: &str, trap| link::tell(&Event::Snippet(Snippet { number, kind: kind.into(), trap }));
        match fault.as_ref().map(|fault| (fault.kind, fault.trap)) {
            Some((kind, Some(frame))) if kind != "overrun" => {
                let TrapFrame { vector, error_code, rip, rsp, cs, ss, rflags, .. } = frame;
                tell(kind, Some(Trap { vector, error_code, rip, rsp, cs, ss, rflags }));
            }
            Some((kind, _)) => tell(kind, None),
            None => tell(if told.is_ok() { "answered" } else { "refused" }, None),
        }
        yield_now().await;
    }
    println!("{count} snippets, of which {ended} ended the driver");
    link::tell(&Event::Integrity { checksum: hw::symbols::checksum(), stray: stray::count() });
    Ok(())
}
