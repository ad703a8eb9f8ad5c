//! Tests on the host, with a simulated kernel. A driver with a device passes a model of the device
//! to it (`ringfence_sdk::fake::Device`).

use super::TYPE;
use ringfence_sdk::Driver;
use ringfence_sdk::fake::{Data, Kernel};
use ringfence_sdk::scsi::{HOST_NO_DEVICE, ScsiDriver};

#[test]
fn nobody_is_there() {
    let mut kernel = Kernel::new(());
    let mut driver = kernel.run(ScsiDriver::<TYPE>::init).unwrap();
    const INQUIRY: [u8; 6] = [0x12, 0, 0, 0, 36, 0];
    kernel.scsi.as_mut().unwrap().command(0, [0, 0], &INQUIRY, Data::In(36));
    kernel.poll(&mut driver);
    let completed = kernel.scsi.as_mut().unwrap().take_completed();
    assert_eq!(completed.iter().map(|(number, outcome)| (*number, outcome.host)).collect::<Vec<_>>(), [(0, HOST_NO_DEVICE)]);
}
