//! Services with arguments that no driver would pass, and devices that interrupt for ever.

use ringfence_tests::attacks::{in_one_boot, lies};
use ringfence_tests::{assert_says, boot_well, listed, machine};

#[test]
fn every_argument_at_every_extreme() {
    in_one_boot().assert(&lies::extremes());
}

#[test]
fn random_calls_of_every_service() {
    in_one_boot().assert(&lies::random());
    in_one_boot().assert(&lies::random_panics());
}

#[test]
fn pointers_to_what_is_not_its_own_end_the_driver() {
    in_one_boot().assert(&lies::bad_pointers());
}

/// A device that is held back does not stop the others, and one whose driver says it is quiet when it is not costs time
/// but stops nobody either.
#[test]
fn interrupts_that_never_end_stop_nobody() {
    in_one_boot().assert(&lies::endless_interrupts());
    in_one_boot().assert(&[lies::endless_poll()]);
    for verb in ["interrupt", "interrupt-storm"] {
        let mut machine = machine(&format!(
            "insmod template; insmod rogue-nic; tell rogue-nic {verb}; sleep 300; tell template still there; lsmod; \
             rmmod rogue-nic; insmod e1000; ip; ping 10.0.2.2 -c 2"
        ));
        machine.contents.autoload = false;
        let text = boot_well(&machine);
        assert_says(&text, "template: 11 (0xb)");
        assert_says(&text, "2 sent, 2 answered");
        let upcalls = listed(&text, "rogue-nic")[0].upcalls;
        // Held back after the first, or polled again and again.
        assert!(if verb == "interrupt" { upcalls < 10 } else { upcalls > 10 }, "{verb}: {upcalls}");
    }
}
