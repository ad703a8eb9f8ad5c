//! The time of day, from the real-time clock of the mainboard (Motorola MC146818A, at ports 70h and
//! 71h).

use super::port::IoPort;
use super::time;
use core::sync::atomic::{AtomicU64, Ordering};
use ringfence_core::date::unix_of_cmos;

const INDEX: IoPort<u8> = IoPort::new(0x70);
const DATA: IoPort<u8> = IoPort::new(0x71);
/// Second, minute, hour, day of the month, month, year; and the century, where PCs have it.
const REGISTERS: [u8; 7] = [0x00, 0x02, 0x04, 0x07, 0x08, 0x09, 0x32];
const STATUS_A: u8 = 0x0a;
const STATUS_B: u8 = 0x0b;
/// Status register A: the other registers change now.
const UPDATES: u8 = 1 << 7;
/// How often the clock is read at most until two readings agree.
const TRIES: usize = 1000;

/// The seconds since 1970 when the kernel started; 0 if nothing tells the time.
static AT_START: AtomicU64 = AtomicU64::new(0);

fn read(register: u8) -> u8 {
    INDEX.write(register);
    DATA.read()
}

/// Reads the clock, once [`time::init`] has run.
pub fn init() {
    let reading = || (read(STATUS_A) & UPDATES == 0).then(|| REGISTERS.map(read));
    // An update may begin between two registers, so two readings must agree.
    let agreed = (0..TRIES).find_map(|_| reading().filter(|first| reading().as_ref() == Some(first)));
    if let Some(seconds) = agreed.and_then(|registers| unix_of_cmos(registers, read(STATUS_B))) {
        AT_START.store(seconds.saturating_sub(time::uptime_ns() / 1_000_000_000), Ordering::Relaxed);
    }
}

/// Returns the seconds since the beginning of 1970, in UTC if the clock is set to that. Without a
/// clock the kernel starts in 1970.
pub fn unix_seconds() -> u64 {
    AT_START.load(Ordering::Relaxed).saturating_add(time::uptime_ns() / 1_000_000_000)
}
