//! Tests on the host, with a simulated kernel. A driver with a device passes a model of the device
//! to it (`ringfence_sdk::fake::Device`).

use super::TYPE;
use ringfence_sdk::Driver;
use ringfence_sdk::fake::Kernel;
use ringfence_sdk::net::NicDriver;

#[test]
fn frames_come_back() {
    let mut kernel = Kernel::new(());
    let mut driver = kernel.run(NicDriver::<TYPE>::init).unwrap();
    (0..3).for_each(|byte| kernel.net.as_mut().unwrap().transmit(&[byte; 60]));
    kernel.poll(&mut driver);
    assert_eq!(kernel.net.as_mut().unwrap().take_transmitted(), 3);
}
