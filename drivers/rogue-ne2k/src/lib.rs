//! Reaches for ports that do not belong to its card, an NE2000 on PCI: `tell rogue-ne2k VERB`. The
//! card has ports and nothing else, so that only the I/O permission bitmap stands between its
//! driver and other devices.
#![no_std]
#![allow(clippy::undocumented_unsafe_blocks, reason = "the services believe nothing, and the rest is what is tested")]

use core::arch::asm;
use ringfence_sdk::service::raw;
use ringfence_sdk::{Driver, Kind, Manifest, Refusal, Result, driver};

driver!(
    RogueNe2k,
    Manifest::new("rogue-ne2k", env!("CARGO_PKG_VERSION")).kind(Kind::Other).by_hand().pci(&[(0x10ec, 0x8029)])
);

/// The keyboard controller's data, and the address of PCI configuration space.
const KEYBOARD: u16 = 0x60;
const CONFIGURATION: u16 = 0xcf8;

struct RogueNe2k {
    first: u16,
    count: u16,
}

impl Driver for RogueNe2k {
    fn init() -> Result<RogueNe2k> {
        let (first, count) = unsafe { (raw::rf_bar_map(0), raw::rf_bar_len(0)) };
        match (u16::try_from(first), u16::try_from(count)) {
            (Ok(first), Ok(count)) => Ok(RogueNe2k { first, count }),
            _ => Err(Refusal::NotFound),
        }
    }

    fn command(&mut self, text: &str) -> Result<u64> {
        let end = self.first + self.count;
        Ok(match text {
            "own" => read8(self.first),
            "before" => read8(self.first - 1),
            "behind" => read8(end),
            // Four ports, of which the last is outside.
            "over-the-end" => read32(end - 3),
            "write-behind" => write8(end),
            "string-behind" => read_words(end),
            "keyboard" => read8(KEYBOARD),
            "configuration" => read32(CONFIGURATION),
            _ => return Err(Refusal::NotFound),
        })
    }
}

#[inline(never)]
fn read8(port: u16) -> u64 {
    let value: u8;
    unsafe { asm!("in al, dx", in("dx") port, out("al") value) };
    value.into()
}

#[inline(never)]
fn read32(port: u16) -> u64 {
    let value: u32;
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value) };
    value.into()
}

#[inline(never)]
fn write8(port: u16) -> u64 {
    unsafe { asm!("out dx, al", in("dx") port, in("al") 0u8) };
    0
}

#[inline(never)]
fn read_words(port: u16) -> u64 {
    let mut words = [0u16; 4];
    unsafe {
        asm!("rep insw", in("dx") port, inout("rdi") words.as_mut_ptr() => _, inout("rcx") words.len() => _);
    }
    words[0].into()
}
