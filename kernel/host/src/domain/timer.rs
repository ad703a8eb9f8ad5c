//! Drivers' timers. [`crate::poll`] polls a driver when its timer goes off.

use super::Domain;
use core::future::poll_fn;
use core::sync::atomic::{AtomicBool, Ordering};
use core::task::Poll;
use embassy_sync::waitqueue::AtomicWaker;
use hw::arch::time;
use ringfence_abi::service::Refusal;

/// Whether a timer was set since the last wait.
static WAS_SET: AtomicBool = AtomicBool::new(false);
static ON_SET: AtomicWaker = AtomicWaker::new();

impl Domain {
    /// Sets the domain's timer ([`ringfence_core::timer::Timer::set`]).
    pub fn set_timer(&mut self, delay_ns: u64, period_ns: u64) -> Result<(), Refusal> {
        self.timer.set(time::uptime_ns(), delay_ns, period_ns).ok_or(Refusal::Invalid)?;
        WAS_SET.store(true, Ordering::Relaxed);
        ON_SET.wake();
        Ok(())
    }
}

/// Waits until a timer is set.
pub async fn until_set() {
    poll_fn(|context| {
        ON_SET.register(context.waker());
        if WAS_SET.swap(false, Ordering::Relaxed) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}
