//! Tests of the driver with a model of the card. Unlike QEMU's model, this one can be slow to send,
//! and damage frames.

use super::registers::{self as reg, cause, command, tx};
use super::{CHECK, HEADER, Rtl8139, SENDING};
use ringfence_sdk::fake::{Device, Kernel, Register, dma_read, dma_write, replay};
use ringfence_sdk::net::{Counter, Hearing, MAX_FRAME, MIN_FRAME, NicDriver};
use ringfence_sdk::{Driver, Events};
use std::cell::RefCell;
use std::rc::Rc;
use std::vec;
use std::vec::Vec;

const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];

/// A model of the card (*RTL8139C(L) Data Sheet*, 1.4, section 5).
struct Card {
    /// The registers as bytes, as far as they have no effect.
    bytes: [u8; 0x100],
    /// Where the card writes the next received frame, as an offset in the ring.
    at: usize,
    /// Whether the card sends a frame at once.
    is_quick: bool,
    sent: Vec<Vec<u8>>,
}

impl Card {
    fn new() -> Rc<RefCell<Card>> {
        let mut bytes = [0; 0x100];
        bytes[..6].copy_from_slice(&MAC);
        Rc::new(RefCell::new(Card { bytes, at: 0, is_quick: true, sent: Vec::new() }))
    }

    fn get(&self, offset: u32, width_bytes: usize) -> u64 {
        (0..width_bytes).rev().fold(0, |value, index| value << 8 | u64::from(self.bytes[offset as usize + index]))
    }

    fn set(&mut self, offset: u32, width_bytes: usize, value: u64) {
        self.bytes[offset as usize..][..width_bytes].copy_from_slice(&value.to_le_bytes()[..width_bytes]);
    }

    fn raise(&mut self, cause: u16) {
        let causes = self.get(reg::CAUSES.offset(), 2) | u64::from(cause);
        self.set(reg::CAUSES.offset(), 2, causes);
    }

    /// Puts a frame with status `status` into the ring, as a card does when it receives a frame.
    fn receive(&mut self, frame: &[u8], status: u16) {
        let ring = self.get(reg::RING.offset(), 4);
        let len = (frame.len() + CHECK) as u16;
        let whole = [&status.to_le_bytes()[..], &len.to_le_bytes(), frame, &[0xcc; CHECK]].concat();
        let (first, rest) = whole.split_at(whole.len().min(reg::RING_BYTES - self.at));
        dma_write(ring + self.at as u64, first);
        dma_write(ring, rest);
        self.at = (self.at + HEADER + frame.len() + CHECK).next_multiple_of(4) % reg::RING_BYTES;
        self.raise(cause::RECEIVED);
    }

    /// Ends the transmission in `slot`.
    fn finish(&mut self, slot: usize, status: u32) {
        let offset = reg::TX_STATUS.at(slot).offset();
        let value = self.get(offset, 4) | u64::from(tx::OWN | status);
        self.set(offset, 4, value);
        self.raise(cause::TRANSMITTED);
    }

    fn transmit(&mut self, slot: usize) {
        let len = self.get(reg::TX_STATUS.at(slot).offset(), 4) & 0x1fff;
        let address = self.get(reg::TX_ADDRESS.at(slot).offset(), 4);
        self.sent.push(dma_read(address, len as usize));
        if self.is_quick {
            self.finish(slot, tx::SENT);
        }
    }
}

impl Device for Card {
    fn read(&mut self, Register { offset, width_bytes, .. }: Register) -> u64 {
        let value = self.get(offset as u32, width_bytes);
        if offset as u32 != reg::COMMAND.offset() {
            return value;
        }
        let read = (self.get(reg::READ.offset(), 2) as usize + 16) & 0xffff;
        value | u64::from(if read == self.at { command::EMPTY } else { 0 })
    }

    fn write(&mut self, Register { offset, width_bytes, .. }: Register, value: u64) {
        let offset = offset as u32;
        if offset == reg::CAUSES.offset() {
            let left = self.get(offset, 2) & !value;
            return self.set(offset, 2, left);
        }
        // A reset ends at once.
        let value = if offset == reg::COMMAND.offset() { value & !u64::from(command::RESET) } else { value };
        self.set(offset, width_bytes, value);
        if offset == reg::RING.offset() {
            self.at = 0;
        }
        if let Some(slot) = (0..SENDING).find(|slot| reg::TX_STATUS.at(*slot).offset() == offset) {
            self.transmit(slot);
        }
    }

    fn bar(&self, bar: u64) -> (bool, u64) {
        (false, if bar == 1 { 0x100 } else { 0 })
    }
}

type Nic = NicDriver<Rtl8139>;

fn started(card: &Rc<RefCell<Card>>) -> (Kernel, Nic) {
    let mut kernel = Kernel::new(card.clone());
    let nic = kernel.run(Nic::init).unwrap();
    assert_eq!(kernel.log, ["RTL8139 at 52:54:00:12:34:56"]);
    assert!(kernel.has_interrupts && kernel.uses_dma);
    kernel.net.as_mut().unwrap().lend(0, 64);
    (kernel, nic)
}

#[test]
fn frames_are_sent_and_short_ones_filled_up() {
    let card = Card::new();
    let (mut kernel, mut nic) = started(&card);
    let frames = [vec![1; 43], vec![2; 101], vec![3; MAX_FRAME]];
    frames.iter().for_each(|frame| kernel.net.as_mut().unwrap().transmit(frame));
    kernel.poll(&mut nic);
    assert_eq!(kernel.net.as_mut().unwrap().take_transmitted(), 3);
    let short = [&[1; 43][..], &[0; MIN_FRAME - 43]].concat();
    assert_eq!(card.borrow().sent, [short, frames[1].clone(), frames[2].clone()]);
}

/// The card takes four frames at a time. The interrupt for sent frames is on until all are back.
#[test]
fn a_card_has_no_more_frames_than_it_takes() {
    let card = Card::new();
    card.borrow_mut().is_quick = false;
    let (mut kernel, mut nic) = started(&card);
    let masked = || card.borrow().get(reg::MASK.offset(), 2) as u16 & cause::TRANSMITTED != 0;
    (0..6).for_each(|byte| kernel.net.as_mut().unwrap().transmit(&[byte; 60]));
    kernel.poll(&mut nic);
    assert_eq!((kernel.net.as_mut().unwrap().take_transmitted(), card.borrow().sent.len(), masked()), (0, 4, true));
    card.borrow_mut().finish(0, tx::SENT);
    // A frame that was given up is counted, and comes back as well.
    card.borrow_mut().finish(1, tx::GIVEN_UP);
    kernel.poll(&mut nic);
    assert_eq!((kernel.net.as_mut().unwrap().take_transmitted(), card.borrow().sent.len(), masked()), (2, 6, true));
    assert_eq!(kernel.net.as_mut().unwrap().counted(Counter::TxErrors), 1);
    [2, 3, 0, 1].into_iter().for_each(|slot| card.borrow_mut().finish(slot, tx::SENT));
    kernel.poll(&mut nic);
    assert_eq!((kernel.net.as_mut().unwrap().take_transmitted(), masked()), (4, false));
    let sent: Vec<u8> = card.borrow().sent.iter().map(|frame| frame[0]).collect();
    assert_eq!(sent, [0, 1, 2, 3, 4, 5]);
}

#[test]
fn frames_come_out_of_the_ring_over_its_end() {
    let card = Card::new();
    let (mut kernel, mut nic) = started(&card);
    // The ring has room for 32 of them.
    for round in 0..40 {
        let frame: Vec<u8> = (0..1001 + round).map(|index| (index * 7) as u8).collect();
        card.borrow_mut().receive(&frame, reg::RECEIVED_WELL);
        kernel.poll(&mut nic);
        let net = kernel.net.as_mut().unwrap();
        assert_eq!(net.take_received(), [frame]);
        net.lend(round % 64, 1);
    }
}

/// Without an empty frame, a received frame stays in the ring.
#[test]
fn a_frame_waits_in_the_ring_for_room() {
    let card = Card::new();
    let mut kernel = Kernel::new(card.clone());
    let mut nic = kernel.run(Nic::init).unwrap();
    card.borrow_mut().receive(&[1; 60], reg::RECEIVED_WELL);
    kernel.poll(&mut nic);
    assert_eq!(kernel.net.as_mut().unwrap().take_received(), Vec::<Vec<u8>>::new());
    kernel.net.as_mut().unwrap().lend(0, 1);
    kernel.poll(&mut nic);
    assert_eq!(kernel.net.as_mut().unwrap().take_received(), [vec![1; 60]]);
}

/// A frame that is damaged may have a wrong length, so that the next one cannot be found.
#[test]
fn a_damaged_frame_sets_the_ring_up_anew() {
    let card = Card::new();
    let (mut kernel, mut nic) = started(&card);
    card.borrow_mut().receive(&[1; 60], reg::RECEIVED_WELL);
    card.borrow_mut().receive(&[2; 60], 0);
    card.borrow_mut().receive(&[3; 60], reg::RECEIVED_WELL);
    kernel.poll(&mut nic);
    assert_eq!(kernel.net.as_mut().unwrap().take_received(), [vec![1; 60], Vec::new()]);
    assert_eq!(kernel.net.as_mut().unwrap().counted(Counter::RxErrors), 1);
    assert!(kernel.log[1].ends_with("the receive ring is set up anew"), "{:?}", kernel.log);
    card.borrow_mut().receive(&[4; 60], reg::RECEIVED_WELL);
    kernel.poll(&mut nic);
    assert_eq!(kernel.net.as_mut().unwrap().take_received(), [vec![4; 60]]);
}

#[test]
fn a_frame_that_is_too_long_is_delivered_empty() {
    let card = Card::new();
    let (mut kernel, mut nic) = started(&card);
    for (len, delivered) in [(MAX_FRAME, MAX_FRAME), (MAX_FRAME + 1, 0), (4000, 0), (60, 60)] {
        card.borrow_mut().receive(&vec![5; len], reg::RECEIVED_WELL);
        kernel.poll(&mut nic);
        assert_eq!(kernel.net.as_mut().unwrap().take_received(), [vec![5; delivered]], "{len}");
    }
}

#[test]
fn frames_without_room_are_counted_and_the_link_is_told() {
    let card = Card::new();
    let (mut kernel, mut nic) = started(&card);
    card.borrow_mut().set(reg::MISSED.offset(), 4, 7);
    card.borrow_mut().set(reg::MEDIA_STATUS.offset(), 1, reg::NO_LINK.into());
    card.borrow_mut().raise(cause::RING_FULL | cause::LINK);
    kernel.poll(&mut nic);
    assert_eq!(kernel.net.as_mut().unwrap().counted(Counter::RxMissed), 7);
    assert_eq!((card.borrow().get(reg::MISSED.offset(), 4), kernel.log[1].as_str()), (0, "link down"));
    assert_eq!(card.borrow().get(reg::CAUSES.offset(), 2), 0);
}

#[test]
fn a_driver_that_goes_stops_the_card() {
    let card = Card::new();
    let (mut kernel, mut nic) = started(&card);
    kernel.run(|| nic.exit());
    let card = card.borrow();
    assert_eq!((card.get(reg::MASK.offset(), 2), card.get(reg::COMMAND.offset(), 1)), (0, 0));
}

/// `ping.recording` is from a run on QEMU's card: `cargo run -- record rtl8139`.
#[test]
fn it_does_again_what_it_did_in_a_real_run() {
    assert_eq!(replay::<Nic>(include_str!("ping.recording")), 14);
}

/// A driver that does something else than in the recording does not pass.
#[test]
#[should_panic(expected = "is set to 0x10; the script has")]
fn a_replay_notices_another_value() {
    replay::<Nic>(&include_str!("ping.recording").replace("w 1 37 1 10", "w 1 37 1 11"));
}

#[test]
#[should_panic(expected = "the received frames of upcall 1")]
fn a_replay_notices_another_frame() {
    replay::<Nic>(&include_str!("ping.recording").replacen("\nreceived ", "\nreceived 1", 1));
}

/// A frame to a group passes the filter if the bit of the group's check sequence is set (5.8).
#[test]
fn the_filter_lets_groups_through_one_by_one() {
    const ONE: [u8; 6] = [0x01, 0, 0x5e, 0, 0, 0xfb];
    const ALL: u32 = u32::MAX;
    let card = Card::new();
    let (mut kernel, mut nic) = started(&card);
    for (hearing, takes, filter) in [
        (Hearing::empty(), 0, [ALL, ALL]),
        (Hearing::GROUPS, reg::RX_GROUPS, [1 << 15, 0]),
        (Hearing::GROUPS | Hearing::ALL_MULTICAST, reg::RX_GROUPS, [ALL, ALL]),
        (Hearing::PROMISCUOUS, reg::RX_GROUPS | reg::RX_ALL, [ALL, ALL]),
    ] {
        kernel.net.as_mut().unwrap().hear(hearing, &[ONE]);
        kernel.run(|| nic.poll(Events::HEARING));
        let get = |register: u32| card.borrow().get(register, 4) as u32;
        let multicast = reg::MULTICAST.at(0).offset();
        let told = (get(reg::RX_CONFIGURATION.offset()), [get(multicast), get(multicast + 4)]);
        assert_eq!(told, (reg::RX_NORMAL | takes, filter), "{hearing:?}");
    }
}
