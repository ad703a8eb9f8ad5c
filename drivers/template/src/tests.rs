//! The driver is tested on the host, with a simulated kernel: `cargo test -p rf-template --lib`.

use super::Template;
use ringfence_sdk::Driver;
use ringfence_sdk::fake::Kernel;

#[test]
fn it_says_hello_and_counts_letters() {
    // This driver has no device. A driver with a device passes a model of the device, or a script
    // of the accesses to it.
    let mut kernel = Kernel::new(());
    let mut driver = kernel.run(Template::init).unwrap();
    assert_eq!(kernel.log, ["hello from a driver that does not know its ring"]);
    assert_eq!(kernel.run(|| driver.command("four")), Ok(4));
    kernel.run(|| driver.exit());
    assert_eq!(kernel.log[1..], ["was told 'four'", "good-bye"]);
}
