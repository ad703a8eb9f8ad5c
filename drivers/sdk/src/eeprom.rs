//! Serial EEPROMs with the Microwire interface, of the 93C46 family: many cards keep their Ethernet
//! address in one, and give the driver its four pins as bits of a register (*NM93C46* data sheet).

use crate::device::pause;
use core::time::Duration;

/// The pins that the driver sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pins {
    /// CS: the EEPROM listens.
    pub select: bool,
    /// SK: a rising edge moves one bit in or out.
    pub clock: bool,
    /// DI: the bit that goes to the EEPROM.
    pub data: bool,
}

impl Pins {
    /// Returns the bits of a card's register: `select`, `clock` and `data`, as far as the pins are
    /// set.
    pub fn bits(self, select: u32, clock: u32, data: u32) -> u32 {
        let bits = [(self.select, select), (self.clock, clock), (self.data, data)];
        bits.into_iter().filter(|(is_set, _)| *is_set).fold(0, |all, (_, bit)| all | bit)
    }
}

/// Half of a clock period, with which the clock has 250 kHz.
const HALF: Duration = Duration::from_micros(2);
/// READ: the start bit, and the operation.
const READ: u32 = 0b110;
const READ_BITS: u32 = 3;

/// Reads the 16-bit word at `address`. `set` sets the pins; `get` returns DO, the bit that comes
/// from the EEPROM. The address has `address_bits` bits: 6 in a 93C46, which has 64 words, and 8 in
/// a 93C56 or 93C66.
pub fn read(address: u16, address_bits: u32, mut set: impl FnMut(Pins), get: impl Fn() -> bool) -> u16 {
    let mut step = |data: bool| {
        for clock in [false, true] {
            set(Pins { select: true, clock, data });
            pause(HALF);
        }
        get()
    };
    let command = READ << address_bits | u32::from(address) & ((1 << address_bits) - 1);
    for bit in (0..READ_BITS + address_bits).rev() {
        step(command >> bit & 1 != 0);
    }
    // A zero precedes the word; it comes with the last bit of the address.
    let word = (0..u16::BITS).fold(0, |word, _| word << 1 | u16::from(step(false)));
    set(Pins { select: true, ..Pins::default() });
    pause(HALF);
    set(Pins::default());
    pause(HALF);
    word
}

/// Reads an Ethernet address: three words from `first` on, the low byte of each first. The other
/// arguments are those of [`read`].
pub fn ethernet_address(first: u16, address_bits: u32, mut set: impl FnMut(Pins), get: impl Fn() -> bool) -> [u8; 6] {
    let [[a, b], [c, d], [e, f]] = [0, 1, 2].map(|word| read(first + word, address_bits, &mut set, &get).to_le_bytes());
    [a, b, c, d, e, f]
}

#[cfg(all(test, feature = "fake"))]
mod tests {
    use super::*;
    use crate::fake::Kernel;
    use std::cell::RefCell;
    use std::vec::Vec;

    /// A 93C46 or 93C56, as its data sheet describes it.
    struct Eeprom {
        words: Vec<u16>,
        address_bits: usize,
        pins: Pins,
        command: Vec<bool>,
        out: bool,
    }

    impl Eeprom {
        fn set(&mut self, pins: Pins) {
            let rises = pins.select && pins.clock && !self.pins.clock;
            self.pins = pins;
            if !pins.select {
                self.command.clear();
            } else if rises && (pins.data || !self.command.is_empty()) {
                self.command.push(pins.data);
                let moved = (self.command.len()).checked_sub(3 + self.address_bits);
                let address = self.command.iter().skip(3).take(self.address_bits);
                let address = address.fold(0, |address, bit| address << 1 | usize::from(*bit));
                let word = self.words[address % self.words.len()];
                // The bit that a rising edge brings; the first is the zero in front of the word.
                self.out = moved.is_some_and(|moved| (1..17).contains(&moved) && word >> (16 - moved) & 1 != 0);
            }
        }
    }

    #[test]
    fn pins_are_bits_where_the_card_has_them() {
        let pins = |select, clock, data| Pins { select, clock, data }.bits(1, 0x10, 1 << 31);
        assert_eq!(pins(false, false, false), 0);
        assert_eq!([pins(true, false, false), pins(false, true, false), pins(false, false, true)], [1, 0x10, 1 << 31]);
        assert_eq!(pins(true, true, true), 0x8000_0011);
    }

    #[test]
    fn every_word_is_read() {
        for address_bits in [6, 8] {
            let words: Vec<u16> = (0..1 << address_bits).map(|word: u16| word.wrapping_mul(0x1235) ^ 0x8001).collect();
            let pins = Pins::default();
            let eeprom = Eeprom { words: words.clone(), address_bits, pins, command: Vec::new(), out: true };
            let eeprom = RefCell::new(eeprom);
            Kernel::new(()).run(|| {
                let read = |address| {
                    let set = |pins| eeprom.borrow_mut().set(pins);
                    read(address, address_bits as u32, set, || eeprom.borrow().out)
                };
                let found: Vec<u16> = (0..words.len() as u16).map(read).collect();
                assert_eq!(found, words);
                let set = |pins| eeprom.borrow_mut().set(pins);
                let address = ethernet_address(7, address_bits as u32, set, || eeprom.borrow().out);
                assert_eq!(
                    address.to_vec(),
                    words[7..10].iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>()
                );
            });
            assert_eq!(eeprom.borrow().pins, Pins::default());
        }
    }
}
