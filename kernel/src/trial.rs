//! Trials: a module with changed code takes the place of a running driver and is put to work. Then
//! the good module takes its place again. A fault-injection campaign consists of such trials, with
//! one change each.

use alloc::string::{String, ToString};
use core::pin::pin;
use core::task::Poll;
use embassy_futures::poll_once;
use embassy_futures::select::{Either, select};
use host::domain::cause::Cause;
use host::domain::cause::UpcallError;
use host::domain::fault;
use host::domain::{Handle, Ring, end};
use host::file::File;
use host::module::{self, LoadError};
use hw::arch::{time, watch};
use hw::memory::{frames, stray};
use hw::symbols;
use ringfence_abi::manifest::Policy;

/// The outcome of a trial with a changed module.
#[derive(Debug)]
pub struct Outcome {
    /// Whether the changed instruction was executed.
    pub activated: bool,
    /// One word. The kind of the fault that ended the changed module ([`fault::kind`]); `refused`:
    /// `init` failed after a service had refused a request; `init-failed`: `init` failed for
    /// another reason, or was not reached; `wrong`: the driver ran on, and the work failed; `fine`.
    pub kind: &'static str,
    /// The first line of the fault, or the error.
    pub why: String,
    /// Whether the good module did its work afterwards, or the reason why not.
    pub restored: Result<(), String>,
    /// Time from the fault of the changed module, if it had one, until the good module had done all
    /// of its work, in microseconds.
    pub restore_us: Option<u64>,
    /// The checksum of the kernel's memory that must never change.
    pub checksum: u64,
    /// The number of free frames.
    pub free: u64,
    /// The number of free frames that were written to. If the changed module is sandboxed, a device
    /// wrote there because the module told it to.
    pub stray: u64,
}

/// A changed module in the place of a good one. The good module takes its place again at the latest
/// when this is dropped: Ctrl-C drops a trial that is half done.
struct Mutant<'a> {
    handle: Handle,
    good: &'a File,
    /// The good module's policy for its end.
    policy: Policy,
    /// Whether the changed module is still in the good one's place.
    in_place: bool,
}

impl Mutant<'_> {
    /// Ends the changed module, and puts the good one in its place.
    async fn put_back(&mut self) -> Result<(), String> {
        self.handle.lock().end(Cause::Killed);
        self.handle = module::replace(&self.handle, self.good, Ring::Sandboxed, None).await.map_err(|error| {
            // The good module must be tried again, and not the changed one.
            self.leave_to_supervision();
            error.to_string()
        })?;
        self.in_place = false;
        self.handle.lock().life.set_policy(self.policy);
        Ok(())
    }

    /// Leaves it to the supervisor to put the good module in its place, if the policy says so.
    fn leave_to_supervision(&mut self) {
        self.in_place = false;
        let mut driver = self.handle.lock();
        driver.end(Cause::Killed);
        driver.file = self.good.clone();
        driver.life.set_policy(self.policy);
        end::note();
    }
}

impl Drop for Mutant<'_> {
    fn drop(&mut self) {
        if self.in_place {
            watch::take();
            let done = poll_once(pin!(self.put_back()));
            match done {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => log::error!("the driver that was changed has no successor: {error}"),
                // The good module sleeps in its `init`, and `drop` cannot wait for it.
                Poll::Pending => self.leave_to_supervision(),
            }
        }
    }
}

/// Puts `patched` in the place of the driver `handle`, does `work`, and puts `good` in its place.
/// That is done, too, if the future is dropped before it is ready.
///
/// `watched` is the offset in the image of the instruction that was changed. The lists of commands
/// are: the work for the changed module; the check of that work by the good module, if the work
/// seemed to succeed; and the work that the good module must do in the end. `run_all` runs a list.
pub async fn run(
    handle: Handle,
    good: &File,
    patched: &File,
    ring: Ring,
    watched: u64,
    [work, check, after]: [&str; 3],
    run_all: impl AsyncFn(&str) -> Result<(), String>,
) -> Outcome {
    let before = fault::count();
    let policy = {
        let mut driver = handle.lock();
        driver.end(Cause::Killed);
        // No other task may replace the changed module.
        driver.life.set_policy(Policy::Stop)
    };
    let mut mutant = Mutant { handle, good, policy, in_place: true };
    let replaced = match module::admit(patched) {
        Ok(()) => module::replace(&mutant.handle, patched, ring, Some(watched)).await,
        Err(error) => Err(error),
    };
    let (failed, mut why) = match replaced {
        Ok(handle) => {
            mutant.handle = handle;
            // If the changed module is ended, the rest of its work is left to the good module.
            let error = match select(run_all(work), end::of(&mutant.handle)).await {
                Either::First(done) => done.err(),
                Either::Second(()) => None,
            };
            (error.is_some().then_some("wrong"), error)
        }
        Err(error) => {
            let refused = matches!(error, LoadError::Init(UpcallError::Refused(_), Some(_)));
            (Some(if refused { "refused" } else { "init-failed" }), Some(error.to_string()))
        }
    };
    let activated = watch::take();
    let name = mutant.handle.lock().name.clone();
    let fault = fault::since(before, &name);
    let put_back = mutant.put_back().await;
    let mut kind = fault.as_ref().map(|fault| fault.kind).or(failed).unwrap_or("fine");
    // A result that looked right may have been wrong in the same way twice.
    if kind == "fine"
        && put_back.is_ok()
        && let Err(error) = run_all(check).await
    {
        (kind, why) = ("wrong", Some(error));
    }
    // A good module cannot come back if the changed one has destroyed data that it needs, such as a
    // filesystem on its disk. The last list may put that right.
    let restored = run_all(after).await.map_err(|error| put_back.err().unwrap_or(error));
    let restore_us = fault.as_ref().filter(|_| restored.is_ok()).map(|fault| (time::uptime_ns() - fault.at_ns) / 1000);
    let why = fault.map(|fault| fault.headline().to_string()).or(why).unwrap_or_default();
    // Free the driver's memory before the free frames are counted.
    drop(mutant);
    Outcome {
        activated,
        kind,
        why,
        restored,
        restore_us,
        checksum: symbols::checksum(),
        free: frames::count().0,
        stray: stray::count(),
    }
}
