//! A disk in memory, to show how a driver of a class uses its channel.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

use alloc::boxed::Box;
use ringfence_sdk::block::{
    BLOCK_ERROR, BLOCK_FLUSH, BLOCK_OK, BLOCK_READ, BLOCK_WRITE, Block, BlockDriver, BlockInfo, Queues,
};
use ringfence_sdk::class::Device;
use ringfence_sdk::{Events, Kind, Manifest, Reply, Result, driver};

driver!(BlockDriver<Memory>, Manifest::new("memory", "0.1.0").kind(Kind::Block).heap_kib(256));

const BLOCKS: usize = 256;
const BLOCK_BYTES: usize = 512;

struct Memory {
    bytes: Box<[u8]>,
}

impl Device<Block> for Memory {
    fn init() -> Result<Memory> {
        Ok(Memory { bytes: alloc::vec![0; BLOCKS * BLOCK_BYTES].into_boxed_slice() })
    }

    fn info(&self) -> BlockInfo {
        BlockInfo {
            blocks: BLOCKS as u64,
            block_bytes: BLOCK_BYTES as u32,
            queue_depth: 8,
            flags: 0,
            reserved: 0,
            model: [0; 24],
        }
    }

    fn poll(&mut self, _: Events, queues: &mut Queues) -> Reply {
        // One poll carries out all waiting requests, so that one crossing serves a batch.
        while let Some((ticket, request)) = queues.take() {
            let first = (request.lba as usize).saturating_mul(BLOCK_BYTES);
            let end = first.saturating_add(request.data_len as usize);
            let status = match (request.operation, self.bytes.get_mut(first..end)) {
                (BLOCK_FLUSH, _) => BLOCK_OK,
                (BLOCK_READ, Some(bytes)) => {
                    queues.write_data(&ticket, 0, bytes);
                    BLOCK_OK
                }
                (BLOCK_WRITE, Some(bytes)) => {
                    queues.read_data(&ticket, 0, bytes);
                    BLOCK_OK
                }
                _ => BLOCK_ERROR,
            };
            // `complete` takes the ticket, so no request can be completed twice.
            queues.complete(ticket, &status);
        }
        Reply::ACKNOWLEDGED
    }

    fn exit(&mut self) {}
}
