//! Tests of the driver with a model of the device. Unlike QEMU's device on its user network, this
//! one has several queues, completes and checks checksums, and lies.

use super::{HEADER_BYTES, IS_VALID, NEEDS_SUM, PAIRS, SET_PAIRS, STATUS_LINK_UP, VirtioNet, WANTED};
use ringfence_sdk::fake::{Device, Kernel, Register, dma_read, dma_write};
use ringfence_sdk::net::{FRAME_BYTES, Hearing, NicDriver, Sum};
use ringfence_sdk::{Driver, Events};
use std::cell::RefCell;
use std::rc::Rc;
use std::vec;
use std::vec::Vec;

const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
/// Offsets in BAR 0: the common configuration (VIRTIO 1.0, 4.1.4.3), the interrupt status, the
/// device's configuration, and the notifications.
const ISR: u64 = 0x100;
const CONFIG: u64 = 0x200;
const NOTIFY: u64 = 0x300;
const BAR_BYTES: u64 = 0x400;
/// Pairs of queues that the device has, and the number of its control queue.
const COUNT: usize = 3;
const CONTROL: usize = 2 * COUNT;
const QUEUE_SIZE: u16 = 256;

/// A virtqueue, as the device sees it.
#[derive(Clone, Copy, Default)]
struct Queue {
    size: u16,
    is_enabled: bool,
    /// The descriptor table, the available ring and the used ring.
    addresses: [u64; 3],
    taken: u16,
    used: u16,
}

struct Card {
    feature_select: u64,
    features: u64,
    status: u64,
    select: usize,
    queues: [Queue; CONTROL + 1],
    /// Queue, header and frame of each frame that was sent.
    sent: Vec<(usize, Vec<u8>, Vec<u8>)>,
    commands: Vec<Vec<u8>>,
}

fn word(address: u64) -> u16 {
    u16::from_le_bytes(dma_read(address, 2).try_into().unwrap())
}

impl Card {
    fn new(features: u32) -> Rc<RefCell<Card>> {
        Rc::new(RefCell::new(Card {
            feature_select: 0,
            features: features.into(),
            status: 0,
            select: 0,
            queues: [Queue { size: QUEUE_SIZE, ..Queue::default() }; CONTROL + 1],
            sent: Vec::new(),
            commands: Vec::new(),
        }))
    }

    /// Takes the next chain of queue `number`: its head, and address and length of each buffer.
    fn take(&mut self, number: usize) -> Option<(u16, Vec<(u64, usize)>)> {
        let queue = &mut self.queues[number];
        let [table, available, _] = queue.addresses;
        if !queue.is_enabled || queue.taken == word(available + 2) {
            return None;
        }
        let head = word(available + 4 + 2 * u64::from(queue.taken % queue.size));
        queue.taken = queue.taken.wrapping_add(1);
        let (mut chain, mut next) = (Vec::new(), Some(head));
        while let Some(index) = next {
            let descriptor = dma_read(table + 16 * u64::from(index), 16);
            let address = u64::from_le_bytes(descriptor[..8].try_into().unwrap());
            let len = u32::from_le_bytes(descriptor[8..12].try_into().unwrap());
            chain.push((address, len as usize));
            next = (descriptor[12] & 1 != 0).then(|| u16::from_le_bytes([descriptor[14], descriptor[15]]));
        }
        Some((head, chain))
    }

    /// Gives a chain back, with `written` bytes written.
    fn give(&mut self, number: usize, head: u16, written: usize) {
        let queue = &mut self.queues[number];
        let [_, _, used] = queue.addresses;
        let entry = used + 4 + 8 * u64::from(queue.used % queue.size);
        dma_write(entry, &[u32::from(head).to_le_bytes(), (written as u32).to_le_bytes()].concat());
        queue.used = queue.used.wrapping_add(1);
        dma_write(used + 2, &queue.used.to_le_bytes());
    }

    /// Receives a frame into pair `pair`, with these flags in its header.
    fn receive(&mut self, pair: usize, flags: u8, frame: &[u8]) {
        let (head, chain) = self.take(2 * pair).expect("the driver has given buffers");
        let [(header, HEADER_BYTES), (data, FRAME_BYTES)] = chain[..] else { panic!("{chain:x?}") };
        dma_write(header, &[&[flags][..], &[0; HEADER_BYTES - 1]].concat());
        dma_write(data, frame);
        self.give(2 * pair, head, HEADER_BYTES + frame.len());
    }

    /// Returns how many buffers pair `pair` has.
    fn buffers(&self, pair: usize) -> u16 {
        let queue = self.queues[2 * pair];
        word(queue.addresses[1] + 2) - queue.taken
    }

    fn notify(&mut self, number: usize) {
        while let Some((head, chain)) = if number % 2 == 1 || number == CONTROL { self.take(number) } else { None } {
            let [first, second] = chain[..] else { panic!("{chain:x?}") };
            let bytes = dma_read(first.0, first.1);
            if number == CONTROL {
                self.commands.push(bytes);
                dma_write(second.0, &[0]);
            } else {
                self.sent.push((number / 2, bytes, dma_read(second.0, second.1)));
            }
            self.give(number, head, 0);
        }
    }
}

impl Device for Card {
    fn read(&mut self, Register { offset, .. }: Register) -> u64 {
        match offset {
            // VIRTIO_F_VERSION_1 is in the upper half.
            4 if self.feature_select == 1 => 1,
            4 => self.features,
            20 => self.status,
            24 => self.queues.get(self.select).map_or(0, |queue| queue.size.into()),
            30 => self.select as u64,
            at @ CONFIG.. if at < CONFIG + 6 => MAC[(at - CONFIG) as usize].into(),
            at if at == CONFIG + 6 => STATUS_LINK_UP.into(),
            at if at == CONFIG + 8 => COUNT as u64,
            _ => 0,
        }
    }

    fn write(&mut self, Register { offset, .. }: Register, value: u64) {
        match offset {
            0 => self.feature_select = value,
            20 => self.status = value,
            22 => self.select = value as usize,
            24 => self.queues[self.select].size = value as u16,
            28 => self.queues[self.select].is_enabled = true,
            32..56 => {
                let at = (offset - 32) as usize;
                let address = &mut self.queues[self.select].addresses[at / 8];
                *address |= value << (8 * (at % 8));
            }
            NOTIFY.. => self.notify(value as usize),
            _ => {}
        }
    }

    fn bar(&self, bar: u64) -> (bool, u64) {
        (false, if bar == 0 { BAR_BYTES } else { 0 })
    }

    /// Four vendor capabilities (4.1.4); the notifications of all queues are at one place.
    fn configuration(&self, offset: u64, width_bytes: u64) -> u64 {
        const PLACES: [(u8, u64); 4] = [(1, 0), (2, NOTIFY), (3, ISR), (4, CONFIG)];
        let mut bytes = vec![0; 256];
        bytes[0x34] = 0x40;
        for (index, (kind, at)) in PLACES.into_iter().enumerate() {
            let first = 0x40 + 0x20 * index;
            let next = if index + 1 < PLACES.len() { first as u8 + 0x20 } else { 0 };
            bytes[first..first + 4].copy_from_slice(&[9, next, 20, kind]);
            bytes[first + 8..first + 12].copy_from_slice(&(at as u32).to_le_bytes());
            bytes[first + 12..first + 16].copy_from_slice(&0x100_u32.to_le_bytes());
        }
        (0..width_bytes).rev().fold(0, |value, index| value << 8 | u64::from(bytes[(offset + index) as usize]))
    }
}

type Nic = NicDriver<VirtioNet>;

fn started(card: &Rc<RefCell<Card>>) -> (Kernel, Nic) {
    let mut kernel = Kernel::new(card.clone());
    let mut nic = kernel.run(Nic::init).unwrap();
    assert_eq!(kernel.log, ["virtio network device at 52:54:00:12:34:56"]);
    assert!(kernel.has_interrupts && kernel.uses_dma);
    kernel.net.as_mut().unwrap().lend(0, 96);
    kernel.poll(&mut nic);
    (kernel, nic)
}

#[test]
fn frames_go_through_their_queue_with_their_sum() {
    let card = Card::new(WANTED);
    let (mut kernel, mut nic) = started(&card);
    assert!(card.borrow().commands.contains(&vec![PAIRS, SET_PAIRS, COUNT as u8, 0]));
    let net = kernel.net.as_mut().unwrap();
    net.transmit_as(&[1; 60], 2, None);
    net.transmit_as(&[2; 1514], 0, Some(Sum { start: 34, offset: 16 }));
    // The header of a frame says nothing of another frame that has had its place.
    net.transmit_as(&[3; 61], 0, None);
    kernel.poll(&mut nic);
    assert_eq!(kernel.net.as_mut().unwrap().take_transmitted(), 3);
    let plain = vec![0; HEADER_BYTES];
    let with_sum = vec![NEEDS_SUM, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0];
    let mut sent = card.borrow().sent.clone();
    sent.sort();
    assert_eq!(sent, [(0, plain.clone(), vec![3; 61]), (0, with_sum, vec![2; 1514]), (2, plain, vec![1; 60])]);
    kernel.net.as_mut().unwrap().transmit(&[4; 60]);
    kernel.poll(&mut nic);
    assert_eq!(card.borrow().sent[3], (0, vec![0; HEADER_BYTES], vec![4; 60]));
}

#[test]
fn received_frames_have_their_queue_and_what_was_checked() {
    let card = Card::new(WANTED);
    let (mut kernel, mut nic) = started(&card);
    assert_eq!([0, 1, 2].map(|pair| card.borrow().buffers(pair)), [32; 3]);
    for (pair, flags) in [(1, 0), (2, IS_VALID), (0, NEEDS_SUM)] {
        card.borrow_mut().receive(pair, flags, &[pair as u8; 60]);
    }
    kernel.poll(&mut nic);
    let entries = kernel.net.as_mut().unwrap().take_entries();
    let said: Vec<_> =
        entries.iter().map(|(entry, frame)| (entry.queue(), entry.is_checked(), frame[0], frame.len())).collect();
    assert_eq!(said, [(0, true, 0, 60), (1, false, 1, 60), (2, true, 2, 60)]);
}

/// The queue that has lost buffers gets the next ones.
#[test]
fn empty_frames_go_where_they_are_missing() {
    let card = Card::new(WANTED);
    let (mut kernel, mut nic) = started(&card);
    (0..20).for_each(|_| card.borrow_mut().receive(1, 0, &[5; 60]));
    kernel.poll(&mut nic);
    assert_eq!([0, 1, 2].map(|pair| card.borrow().buffers(pair)), [32, 12, 32]);
    let net = kernel.net.as_mut().unwrap();
    let numbers: Vec<usize> = net.take_entries().iter().map(|(entry, _)| entry.frame()).collect();
    numbers.into_iter().for_each(|number| net.lend(number, 1));
    kernel.poll(&mut nic);
    assert_eq!([0, 1, 2].map(|pair| card.borrow().buffers(pair)), [32; 3]);
}

/// A device without these features has one pair, and headers that say nothing.
#[test]
fn a_simple_device_has_one_pair_and_no_sums() {
    const HAS_MAC: u32 = 1 << 5;
    let card = Card::new(HAS_MAC);
    let (mut kernel, mut nic) = started(&card);
    assert!(card.borrow().commands.is_empty());
    assert_eq!((card.borrow().buffers(0), card.borrow().queues[2].is_enabled), (96, false));
    kernel.net.as_mut().unwrap().transmit(&[1; 60]);
    card.borrow_mut().receive(0, IS_VALID, &[2; 60]);
    kernel.poll(&mut nic);
    assert_eq!(card.borrow().sent, [(0, vec![0; HEADER_BYTES], vec![1; 60])]);
    let entries = kernel.net.as_mut().unwrap().take_entries();
    assert_eq!(entries.iter().map(|(entry, _)| entry.is_checked()).collect::<Vec<_>>(), [false]);
}

/// The device claims to have written more than there is room for, and to have finished a chain that
/// it was not given.
#[test]
fn a_device_that_lies_is_not_believed() {
    let card = Card::new(WANTED);
    let (mut kernel, mut nic) = started(&card);
    let (head, _) = card.borrow_mut().take(0).unwrap();
    card.borrow_mut().give(0, head, HEADER_BYTES + FRAME_BYTES + 1);
    card.borrow_mut().give(0, head, 100);
    card.borrow_mut().give(0, u16::MAX, 100);
    kernel.poll(&mut nic);
    let entries = kernel.net.as_mut().unwrap().take_entries();
    assert_eq!(entries.iter().map(|(_, frame)| frame.len()).collect::<Vec<_>>(), [0]);
}

#[test]
fn a_device_without_an_address_is_not_driven() {
    let mut kernel = Kernel::new(Card::new(0));
    assert!(kernel.run(Nic::init).is_err());
    assert_eq!(kernel.log, ["the device has no address"]);
}

/// The device is told two tables, each behind its length (5.1.6.5.2): no other hosts, and the
/// groups.
#[test]
fn the_filter_lets_groups_through_one_by_one() {
    const GROUPS: [[u8; 6]; 2] = [[0x01, 0, 0x5e, 0, 0, 0xfb], [0x01, 0, 0x5e, 1, 2, 3]];
    let card = Card::new(WANTED);
    let (mut kernel, mut nic) = started(&card);
    card.borrow_mut().commands.clear();
    kernel.net.as_mut().unwrap().hear(Hearing::GROUPS, &GROUPS);
    kernel.run(|| nic.poll(Events::HEARING));
    let table = [&[1, 0][..], &[0; 4], &[2, 0, 0, 0], GROUPS.as_flattened()].concat();
    assert_eq!(card.borrow().commands, [table, vec![0, 0, 0], vec![0, 1, 0]]);
}
