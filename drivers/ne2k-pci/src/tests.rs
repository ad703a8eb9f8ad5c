//! Tests of the driver with a model of the card. Unlike QEMU's model, this one can be slow to send,
//! let its ring overflow, and damage frames.

use super::registers::{self as reg, cause, command};
use super::{Ne2k, RING, RING_END};
use ringfence_sdk::class::Device as _;
use ringfence_sdk::fake::{Device, Kernel, Recorder, Register, Script};
use ringfence_sdk::net::{Counter, Hearing, MIN_FRAME, NicDriver};
use ringfence_sdk::register::RegisterArray;
use ringfence_sdk::{Driver, Events};
use std::cell::RefCell;
use std::rc::Rc;
use std::string::String;
use std::vec;
use std::vec::Vec;

const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];

/// A model of the card.
struct Card {
    memory: Vec<u8>,
    page_0: [u8; 16],
    page_1: [u8; 16],
    command: u8,
    causes: u8,
    remote: usize,
    /// Whether the card sends a frame at once.
    is_quick: bool,
    sent: Vec<Vec<u8>>,
}

const COMMAND: u32 = reg::COMMAND.offset();
const CAUSES: u32 = reg::CAUSES.offset();
const DATA: u32 = reg::DATA.offset();
const RESET: u32 = reg::RESET.offset();

impl Card {
    fn new() -> Rc<RefCell<Card>> {
        let mut memory = vec![0; 0x8000];
        for (index, byte) in MAC.into_iter().enumerate() {
            memory[2 * index..][..2].fill(byte);
        }
        let causes = cause::IN_RESET;
        let (page_0, page_1, sent) = ([0; 16], [0; 16], Vec::new());
        let card = Card { memory, page_0, page_1, command: 0, causes, remote: 0, is_quick: true, sent };
        Rc::new(RefCell::new(card))
    }

    /// Puts a frame with status `status` into the ring, as a card does when it receives a frame.
    fn receive(&mut self, frame: &[u8], status: u8) {
        let page = self.page_1[reg::CURRENT.offset() as usize];
        let pages = (frame.len() + 4).div_ceil(256) as u8;
        let next = if page + pages >= RING_END { page + pages - RING_END + RING } else { page + pages };
        let [low, high] = (frame.len() as u16 + 4).to_le_bytes();
        let bytes = [&[status, next, low, high][..], frame].concat();
        let (ring, end) = (usize::from(RING) * 256, usize::from(RING_END) * 256);
        for (index, byte) in bytes.into_iter().enumerate() {
            let at = usize::from(page) * 256 + index;
            self.memory[if at < end { at } else { at - end + ring }] = byte;
        }
        self.page_1[reg::CURRENT.offset() as usize] = next;
        self.causes |= cause::RECEIVED;
    }

    /// Returns the value in two registers of page 0, the low byte first.
    fn pair(&self, registers: RegisterArray<reg::Card, u8, 2>) -> u16 {
        u16::from_le_bytes([0, 1].map(|number| self.page_0[registers.at(number).offset() as usize]))
    }

    fn is_on_page_1(&self) -> bool {
        self.command & command::PAGE_1 != 0
    }
}

impl Device for Card {
    fn read(&mut self, Register { offset, .. }: Register) -> u64 {
        match offset as u32 {
            COMMAND => self.command.into(),
            DATA => {
                let pair = [self.memory[self.remote], self.memory[self.remote + 1]];
                self.remote += 2;
                u16::from_le_bytes(pair).into()
            }
            CAUSES if !self.is_on_page_1() => self.causes.into(),
            RESET => 0,
            port if self.is_on_page_1() => self.page_1[port as usize].into(),
            port => self.page_0[port as usize].into(),
        }
    }

    fn write(&mut self, Register { offset, .. }: Register, value: u64) {
        match offset as u32 {
            COMMAND => {
                self.command = value as u8;
                if value as u8 & (command::REMOTE_READ | command::REMOTE_WRITE) != 0 {
                    self.remote = self.pair(reg::REMOTE_ADDRESS).into();
                }
                if value as u8 & command::TRANSMIT != 0 {
                    let page = usize::from(self.page_0[reg::TRANSMIT_PAGE.offset() as usize]);
                    let len = self.pair(reg::TRANSMIT_BYTES);
                    self.sent.push(self.memory[page * 256..][..usize::from(len)].to_vec());
                    if self.is_quick {
                        self.command &= !command::TRANSMIT;
                        self.causes |= cause::TRANSMITTED;
                    }
                }
            }
            DATA => {
                self.memory[self.remote..][..2].copy_from_slice(&(value as u16).to_le_bytes());
                self.remote += 2;
            }
            CAUSES if !self.is_on_page_1() => self.causes &= !(value as u8),
            RESET => {}
            port if self.is_on_page_1() => self.page_1[port as usize] = value as u8,
            port => self.page_0[port as usize] = value as u8,
        }
    }

    fn bar(&self, bar: u64) -> (bool, u64) {
        (true, if bar == 0 { 0x100 } else { 0 })
    }
}

type Nic = NicDriver<Ne2k>;

fn started(card: &Rc<RefCell<Card>>) -> (Kernel, Nic) {
    let mut kernel = Kernel::new(card.clone());
    let nic = kernel.run(Nic::init).unwrap();
    assert_eq!(kernel.log, ["NE2000 at 52:54:00:12:34:56"]);
    assert!(kernel.has_interrupts && !kernel.uses_dma);
    kernel.net.as_mut().unwrap().lend(0, 64);
    (kernel, nic)
}

#[test]
fn frames_are_sent_and_short_ones_filled_up() {
    let card = Card::new();
    let (mut kernel, mut nic) = started(&card);
    let frames = [vec![1; 43], vec![2; 101], vec![3; 1514]];
    frames.iter().for_each(|frame| kernel.net.as_mut().unwrap().transmit(frame));
    kernel.poll(&mut nic);
    assert_eq!(kernel.net.as_mut().unwrap().take_transmitted(), 3);
    let short = [&[1; 43][..], &[0; MIN_FRAME - 43]].concat();
    assert_eq!(card.borrow().sent, [short, frames[1].clone(), frames[2].clone()]);
}

/// The driver gives the frame back after it was sent. The interrupt for sent frames is on only
/// until then.
#[test]
fn a_frame_that_takes_its_time_is_waited_for() {
    let card = Card::new();
    card.borrow_mut().is_quick = false;
    let (mut kernel, mut nic) = started(&card);
    let masked = || card.borrow().page_0[reg::MASK.offset() as usize] & cause::TRANSMITTED;
    kernel.net.as_mut().unwrap().transmit(&[1; 60]);
    kernel.net.as_mut().unwrap().transmit(&[2; 60]);
    kernel.poll(&mut nic);
    assert_eq!((kernel.net.as_mut().unwrap().take_transmitted(), card.borrow().sent.len(), masked()), (0, 1, 2));
    card.borrow_mut().command &= !command::TRANSMIT;
    kernel.poll(&mut nic);
    assert_eq!((kernel.net.as_mut().unwrap().take_transmitted(), card.borrow().sent.len(), masked()), (1, 2, 2));
    card.borrow_mut().command &= !command::TRANSMIT;
    kernel.poll(&mut nic);
    assert_eq!((kernel.net.as_mut().unwrap().take_transmitted(), masked()), (1, 0));
}

#[test]
fn frames_come_out_of_the_ring_over_its_end_and_damaged_ones_do_not() {
    let card = Card::new();
    let (mut kernel, mut nic) = started(&card);
    for round in 0..60 {
        let frame: Vec<u8> = (0..1001 + round).map(|index| (index * 7) as u8).collect();
        card.borrow_mut().receive(&frame, reg::RECEIVED_WELL);
        card.borrow_mut().receive(&frame, 0);
        kernel.poll(&mut nic);
        let net = kernel.net.as_mut().unwrap();
        assert_eq!(net.take_received(), [frame, Vec::new()]);
        net.lend(2 * round % 64, 2);
    }
}

/// The header in the ring names an impossible page for the next frame.
#[test]
fn a_ring_that_is_damaged_is_set_up_anew() {
    let card = Card::new();
    let (mut kernel, mut nic) = started(&card);
    card.borrow_mut().receive(&[1; 60], reg::RECEIVED_WELL);
    card.borrow_mut().memory[usize::from(RING + 1) * 256 + 1] = 0xff;
    kernel.poll(&mut nic);
    assert_eq!(kernel.net.as_mut().unwrap().take_received(), [Vec::new()]);
    assert!(kernel.log[1].contains("is damaged"), "{:?}", kernel.log);
    card.borrow_mut().receive(&[2; 60], reg::RECEIVED_WELL);
    kernel.poll(&mut nic);
    assert_eq!(kernel.net.as_mut().unwrap().take_received(), [vec![2; 60]]);
}

/// As section 7.0 of the data sheet requires, the driver stops the chip for 1.6 ms, empties the
/// ring and starts the chip.
#[test]
fn an_overflow_is_recovered_from() {
    let card = Card::new();
    let (mut kernel, mut nic) = started(&card);
    card.borrow_mut().receive(&[1; 60], reg::RECEIVED_WELL);
    card.borrow_mut().causes |= cause::OVERWRITE;
    let mask = std::mem::replace(&mut card.borrow_mut().page_0[reg::MISSED.offset() as usize], 3);
    let before = kernel.time_ns;
    kernel.poll(&mut nic);
    assert!(kernel.time_ns - before >= 1_600_000);
    assert_eq!(kernel.net.as_mut().unwrap().take_received(), [vec![1; 60]]);
    assert_eq!(kernel.net.as_mut().unwrap().counted(Counter::RxMissed), 3);
    card.borrow_mut().page_0[reg::MASK.offset() as usize] = mask;
    let card = card.borrow();
    assert_eq!((card.causes & cause::OVERWRITE, card.page_0[reg::TRANSMIT_CONFIG.offset() as usize]), (0, 0));
    assert_ne!(card.command & command::START, 0);
}

/// The accesses of `init` are recorded, and the same accesses must occur when the driver runs
/// against the recording.
#[test]
fn a_start_that_was_recorded_is_played_back() {
    let recorder = Rc::new(RefCell::new(Recorder::new(Card::new())));
    Kernel::new(recorder.clone()).run(Nic::init).unwrap();
    let script: String = recorder.borrow().script.clone();
    assert!(script.starts_with("w 0 0 1 21\nr 0 1f 1 0\nw 0 1f 1 0\nr 0 7 1 80\n"), "{script}");
    let script = Rc::new(RefCell::new(Script::new(&std::format!("bar 0 ports 100\n{script}"))));
    let nic = Kernel::new(script.clone()).run(Nic::init);
    assert!(nic.is_ok());
    assert_eq!(script.borrow().left(), 0);
}

/// An earlier driver may have been ended while page 1 was selected.
#[test]
fn a_card_that_was_left_on_another_page_is_driven() {
    let card = Card::new();
    card.borrow_mut().command = command::START | command::PAGE_1;
    started(&card);
}

#[test]
fn a_card_that_stays_in_reset_is_not_driven() {
    let card = Card::new();
    card.borrow_mut().causes = 0;
    let mut kernel = Kernel::new(card);
    assert!(kernel.run(Ne2k::init).is_err());
    assert_eq!(kernel.log, ["the card does not come out of reset"]);
}

/// A frame to a group passes the filter if the bit of the group's check sequence is set (10.4).
#[test]
fn the_filter_lets_groups_through_one_by_one() {
    const ONE: [u8; 6] = [0x01, 0, 0x5e, 0, 0, 0xfb];
    let card = Card::new();
    let (mut kernel, mut nic) = started(&card);
    for (hearing, takes, filter) in [
        (Hearing::empty(), 0, [0xff; 8]),
        (Hearing::GROUPS, reg::TAKE_GROUPS, [0, 0x80, 0, 0, 0, 0, 0, 0]),
        (Hearing::GROUPS | Hearing::ALL_MULTICAST, reg::TAKE_GROUPS, [0xff; 8]),
        (Hearing::PROMISCUOUS, reg::TAKE_GROUPS | reg::TAKE_ALL, [0xff; 8]),
    ] {
        kernel.net.as_mut().unwrap().hear(hearing, &[ONE]);
        kernel.run(|| nic.poll(Events::HEARING));
        let card = card.borrow();
        assert!(!card.is_on_page_1() && card.command & command::START != 0);
        assert_eq!(card.page_1[reg::MULTICAST.at(0).offset() as usize..], filter, "{hearing:?}");
        assert_eq!(card.page_0[reg::RECEIVE_CONFIG.offset() as usize], reg::TAKE_BROADCAST | takes, "{hearing:?}");
    }
}
