//! NAME: a block device. It has no device yet: its blocks are memory of the driver.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

#[cfg(test)]
mod tests;

use alloc::vec::Vec;
use ringfence_sdk::block::{
    BLOCK_ERROR, BLOCK_FLUSH, BLOCK_OK, BLOCK_READ, BLOCK_UNSUPPORTED, BLOCK_WRITE, Block, BlockDriver, BlockInfo,
    BlockRequest, Queues, Ticket,
};
use ringfence_sdk::class::Device;
use ringfence_sdk::{Events, Kind, Manifest, Reply, Result, driver};

driver!(
    BlockDriver<TYPE>,
    Manifest::new("NAME", env!("CARGO_PKG_VERSION")).kind(Kind::Block).heap_kib(256).restart()
);

/// Bytes of a block, and number of blocks.
const BLOCK_BYTES: usize = 512;
const BLOCKS: usize = 256;

struct TYPE {
    memory: Vec<u8>,
}

impl Device<Block> for TYPE {
    /// Finds the device and resets it: `registers!`, `Registers::map`, `device::wait_until`.
    fn init() -> Result<TYPE> {
        log::info!("here");
        Ok(TYPE { memory: alloc::vec![0; BLOCKS * BLOCK_BYTES] })
    }

    fn info(&self) -> BlockInfo {
        let mut model = [0; 24];
        model.iter_mut().zip(b"NAME").for_each(|(to, from)| *to = *from);
        let (blocks, block_bytes) = (BLOCKS as u64, BLOCK_BYTES as u32);
        BlockInfo { blocks, block_bytes, queue_depth: 1, flags: 0, reserved: 0, model }
    }

    /// A driver with a device gives it the request here, and completes the request when an
    /// interrupt says that it is done.
    fn poll(&mut self, _events: Events, queues: &mut Queues) -> Reply {
        while let Some((ticket, request)) = queues.take() {
            let status = self.carry_out(&ticket, &request, queues);
            queues.complete(ticket, &status);
        }
        Reply::ACKNOWLEDGED
    }

    /// Stops the device.
    fn exit(&mut self) {}
}

impl TYPE {
    fn carry_out(&mut self, ticket: &Ticket, request: &BlockRequest, queues: &mut Queues) -> u32 {
        let start = request.lba as usize * BLOCK_BYTES;
        let Some(blocks) = self.memory.get_mut(start..start + request.data_len as usize) else { return BLOCK_ERROR };
        match request.operation {
            BLOCK_READ => queues.write_data(ticket, 0, blocks),
            BLOCK_WRITE => queues.read_data(ticket, 0, blocks),
            BLOCK_FLUSH => {}
            _ => return BLOCK_UNSUPPORTED,
        }
        BLOCK_OK
    }
}
