//! Tests on the host, with a simulated kernel. A driver with a device passes a model of the device
//! to it (`ringfence_sdk::fake::Device`).

use super::{BLOCK_BYTES, TYPE};
use ringfence_sdk::Driver;
use ringfence_sdk::block::{BLOCK_OK, BlockDriver};
use ringfence_sdk::fake::Kernel;

#[test]
fn what_is_written_is_read() {
    let mut kernel = Kernel::new(());
    let mut driver = kernel.run(BlockDriver::<TYPE>::init).unwrap();
    let disk = kernel.block.as_mut().unwrap();
    disk.write(0, 7, &[0xa5; BLOCK_BYTES]);
    disk.read(1, 7, BLOCK_BYTES);
    kernel.poll(&mut driver);
    let disk = kernel.block.as_mut().unwrap();
    assert_eq!(disk.take_completed(), [(0, BLOCK_OK), (1, BLOCK_OK)]);
    assert_eq!(disk.data(1, 0, BLOCK_BYTES), [0xa5; BLOCK_BYTES]);
}
