//! Tests on the host, with a simulated kernel. A driver with a device passes a model of the device
//! to it (`ringfence_sdk::fake::Device`).

use super::TYPE;
use ringfence_sdk::Driver;
use ringfence_sdk::fake::Kernel;

#[test]
fn it_counts_letters() {
    let mut kernel = Kernel::new(());
    let mut driver = kernel.run(TYPE::init).unwrap();
    assert_eq!(kernel.run(|| driver.command("four")), Ok(4));
}
