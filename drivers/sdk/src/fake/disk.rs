//! A disk that the driver uses, and the kernel's end of the driver's requests to it.

use super::{Kernel, Memory, bytes};
use crate::block::Block;
use ringfence_abi::block::{
    BLOCK_ERROR, BLOCK_FLUSH, BLOCK_MAX_DATA, BLOCK_OK, BLOCK_READ, BlockInfo, BlockRequest, Order, USED_BYTES,
    USED_DATA, USED_REQUESTS, read_request, write_status, write_used,
};
use ringfence_abi::queue::{Complete, Consumer, Producer, Submit};
use std::ops::Range;
use std::vec::Vec;

/// A disk. Its kernel carries out a request when the driver waits for it.
pub struct Disk {
    /// The content of the disk.
    pub bytes: Vec<u8>,
    /// Blocks that cannot be read or written.
    pub bad: Vec<u64>,
    /// Whether a write has failed: no other is carried out until the next flush, which fails.
    pub has_failed: bool,
    /// Whether the disk is gone: the driver waits in vain.
    pub is_gone: bool,
    /// The requests that were carried out: the operation, the first block, and the length in bytes.
    pub requests: Vec<(u32, u64, usize)>,
    /// How many of them had their data in the requests to the driver.
    pub in_place: usize,
    /// How often the driver has waited.
    pub waits: usize,
    block_bytes: usize,
    memory: Memory,
    submit: Consumer<Submit<Block>>,
    complete: Producer<Complete<Block>>,
}

impl Disk {
    /// Returns a disk with this content, in blocks of `block_bytes` bytes.
    pub fn new(bytes: Vec<u8>, block_bytes: usize) -> Disk {
        let memory = Memory::new(Kernel::allocate(USED_BYTES as u64), USED_BYTES);
        let info = BlockInfo {
            blocks: (bytes.len() / block_bytes) as u64,
            block_bytes: block_bytes as u32,
            queue_depth: USED_REQUESTS as u32,
            flags: 0,
            reserved: 0,
            model: [0; 24],
        };
        write_used(&memory, &info);
        Disk {
            bytes,
            bad: Vec::new(),
            has_failed: false,
            is_gone: false,
            requests: Vec::new(),
            in_place: 0,
            waits: 0,
            block_bytes,
            memory,
            submit: Consumer::new(),
            complete: Producer::new(),
        }
    }

    pub(super) fn start(&self) -> i64 {
        self.memory.start as i64
    }

    /// Carries out the requests that the driver has made, in their order. Returns `false` if there
    /// are none.
    pub(super) fn wait(&mut self) -> bool {
        self.waits += 1;
        let mut is_any = false;
        while !self.is_gone
            && let Some(number) = self.submit.take(&self.memory).expect("a position that can be")
        {
            let number = number as usize;
            let request = read_request(&self.memory, number).expect("a request");
            let status = if self.carry_out(number, &request).is_some() { BLOCK_OK } else { BLOCK_ERROR };
            write_status(&self.memory, number, status);
            assert_eq!(self.complete.put(&self.memory, number as u64), Ok(true));
            is_any = true;
        }
        is_any
    }

    fn carry_out(&mut self, number: usize, request: &BlockRequest) -> Option<()> {
        let BlockRequest { operation, lba, data_len, data, .. } = *request;
        let len_bytes = data_len as usize;
        assert!(len_bytes <= BLOCK_MAX_DATA && len_bytes.is_multiple_of(self.block_bytes));
        self.requests.push((operation, lba, len_bytes));
        self.in_place += usize::from(data != 0);
        let blocks = lba..lba + (len_bytes / self.block_bytes) as u64;
        let is_bad = self.bad.iter().any(|bad| blocks.contains(bad));
        let was_failed = self.has_failed;
        let is_write = Order::of(operation).is_some();
        self.has_failed = operation != BLOCK_FLUSH && (was_failed || is_write && is_bad);
        if is_bad || was_failed && operation != BLOCK_READ {
            return None;
        }
        let start = lba as usize * self.block_bytes;
        let place: Range<usize> = start..start + len_bytes;
        let own = self.memory.start as u64 + (USED_DATA + number * BLOCK_MAX_DATA) as u64;
        let data = if data == 0 { own } else { data };
        match operation {
            BLOCK_READ => {
                for (index, byte) in self.bytes.get(place)?.iter().enumerate() {
                    // SAFETY: the data of request `number` is inside the memory, which is never
                    // freed, or where the driver waits for it.
                    unsafe { (data as *mut u8).add(index).write_volatile(*byte) };
                }
            }
            _ if is_write => self.bytes.get_mut(place)?.copy_from_slice(&bytes(data, len_bytes as u64)),
            BLOCK_FLUSH => {}
            _ => return None,
        }
        Some(())
    }
}
