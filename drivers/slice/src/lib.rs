//! A disk that is a part of another disk: the blocks of `disk0` from block 2048 on. The blocks
//! below, where partition tables and boot loaders are, cannot be reached through this disk.
//!
//! The driver has no device. It uses the disk of another driver, whichever driver that is, and
//! offers a disk itself.
#![no_std]
#![forbid(unsafe_code)]

use ringfence_sdk::block::{
    Asked, BLOCK_ERROR, BLOCK_FLUSH, BLOCK_READ, BLOCK_UNSUPPORTED, BLOCK_WRITE, Block, BlockDriver, BlockInfo,
    BlockRequest, Disk, Queues, Ticket, USED_REQUESTS,
};
use ringfence_sdk::class::Device;
use ringfence_sdk::{Events, Kind, Manifest, Refusal, Reply, Result, driver};
extern crate alloc;
use alloc::boxed::Box;

driver!(
    BlockDriver<Slice>,
    Manifest::new("slice", env!("CARGO_PKG_VERSION")).kind(Kind::Block).uses(Kind::Block).heap_kib(128).restart()
);

/// The disk below, and the first of its blocks that belongs to this disk.
const DISK: &str = "disk0";
const FIRST_BLOCK: u64 = 2048;
/// The largest number of bytes in a request.
const MOST_BYTES: usize = 65536;

struct Slice {
    disk: Disk,
    /// The requests in flight, indexed by the number of the request to the disk below.
    under_way: [Option<(Ticket, BlockRequest, Asked)>; USED_REQUESTS],
    /// Data on its way between the two disks.
    buffer: Box<[u8]>,
}

impl Device<Block> for Slice {
    fn init() -> Result<Slice> {
        let disk = Disk::open(DISK)?;
        if disk.info().blocks <= FIRST_BLOCK {
            log::error!("{DISK} has no more than {FIRST_BLOCK} blocks");
            return Err(Refusal::Invalid);
        }
        let under_way = [const { None }; USED_REQUESTS];
        Ok(Slice { disk, under_way, buffer: alloc::vec![0; MOST_BYTES].into_boxed_slice() })
    }

    fn info(&self) -> BlockInfo {
        // The model names the disk below.
        let below = self.disk.info();
        let mut model = [0; 24];
        let text = b"part of ".iter().chain(&below.model);
        model.iter_mut().zip(text).for_each(|(to, from)| *to = *from);
        BlockInfo { blocks: below.blocks - FIRST_BLOCK, model, ..below }
    }

    fn poll(&mut self, _: Events, queues: &mut Queues) -> Reply {
        while let Some(number) = self.disk.next_done() {
            let Some((ticket, request, asked)) = self.under_way.get_mut(number).and_then(Option::take) else {
                continue;
            };
            let data = &mut self.buffer[..request.data_len as usize];
            let status = self.disk.finish(asked, data);
            if request.operation == BLOCK_READ {
                queues.write_data(&ticket, 0, data);
            }
            queues.complete(ticket, &status);
        }
        while let Some((ticket, request)) = queues.take() {
            let len_bytes = request.data_len as usize;
            let lba = request.lba + FIRST_BLOCK;
            let asked = match request.operation {
                BLOCK_READ => self.disk.read(lba, len_bytes),
                BLOCK_WRITE => {
                    let data = &mut self.buffer[..len_bytes];
                    queues.read_data(&ticket, 0, data);
                    self.disk.write(lba, data)
                }
                BLOCK_FLUSH => self.disk.flush(),
                _ => {
                    queues.complete(ticket, &BLOCK_UNSUPPORTED);
                    continue;
                }
            };
            match asked {
                Some(asked) => {
                    let number = asked.number();
                    self.under_way[number] = Some((ticket, request, asked));
                }
                // This disk has the depth of the disk below, so this does not happen.
                None => queues.complete(ticket, &BLOCK_ERROR),
            }
        }
        Reply::ACKNOWLEDGED
    }

    fn exit(&mut self) {}
}
