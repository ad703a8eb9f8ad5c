//! Services with arguments that no driver would pass, and devices that interrupt for ever.

use ringfence_tests::attacks::{assert_all, lies};
use ringfence_tests::{TIME_LIMIT, assert_says, at_prompt, bare, boot_well, machine, run_well, times, usual_kind};

#[test]
fn every_argument_at_every_extreme() {
    assert_all(&lies::extremes(usual_kind()));
}

#[test]
fn random_calls_of_every_service() {
    assert_all(&lies::random());
    assert_all(&lies::random_panics());
}

/// 10,000 calls, or 2,000, of the one service that ends its caller. For ten million, use `mute
/// repeat 20000 ...` in the second round. `turn-ms` is raised so that no driver is throttled: a
/// stalled host may add to a driver's debt, and then a command would find the driver away and not
/// count.
#[test]
fn random_calls_of_rf_panic() {
    let round = |count| {
        format!("mute repeat {count} repeat 500 fails tell rogue panic-random, policy rogue restart; mem; integrity; ")
    };
    let mut machine = bare(&format!(
        "limits restarts 1000; limits restart-wait-ms 0; limits restart-window-s 1; limits turn-ms 1000; insmod rogue; policy rogue restart; \
         {}{}faults",
        round(times(4, 1)),
        round(times(16, 3))
    ));
    machine.timeout = Some(2 * TIME_LIMIT);
    let text = boot_well(&machine);
    let (free, heap) = (text.free_frames(), text.heap_used());
    assert!(free.len() == 2 && free[0] == free[1], "{text}");
    // Stored reports of faults differ in length.
    assert!(heap.len() == 2 && heap[0].abs_diff(heap[1]) < 64 << 10, "{text}");
    let integrity = text.integrity();
    assert!(integrity.len() == 2 && integrity[0] == integrity[1] && integrity[0].1 == 0, "{integrity:x?}");
    assert!(text.lines().any(|line| line.starts_with(times("10000 ", "2000 "))), "{text}");
}

#[test]
fn pointers_to_what_is_not_its_own_end_the_driver() {
    assert_all(&lies::bad_pointers(usual_kind()));
}

/// A masked device does not stop the others. A device whose driver wrongly says that it is quiet
/// costs time, but it does not stop the other drivers either.
#[test]
fn interrupts_that_never_end_stop_nobody() {
    assert_all(&lies::endless_interrupts());
    assert_all(&[lies::endless_poll()]);
    for verb in ["interrupt", "interrupt-storm"] {
        let mut machine = machine(&format!(
            "insmod template; insmod rogue-nic; tell rogue-nic {verb}; sleep 300; tell template still there; lsmod; \
             rmmod rogue-nic; insmod e1000; ip; ping 10.0.2.2 -c 2"
        ));
        machine.contents.autoload = false;
        let text = boot_well(&machine);
        assert_says(&text, "template: 11 (0xb)");
        assert_says(&text, "2 sent, 2 answered");
        let upcalls = text.drivers("rogue-nic")[0].upcalls;
        // The device was masked after the first interrupt, or its driver was polled again and
        // again.
        assert!(if verb == "interrupt" { upcalls < 10 } else { upcalls > 10 }, "{verb}: {upcalls}");
        assert!(verb != "interrupt" || !text.contains(STAYS_RAISED), "{verb}: {text}");
    }
}

const STAYS_RAISED: &str = "rogue-nic: acknowledges its interrupts, and its device's line stays raised";

/// The author of a driver that leaves a cause set is told.
#[test]
fn a_line_that_stays_raised_is_named() {
    let mut machine = machine("");
    machine.contents.autoload = false;
    let mut running = at_prompt(machine);
    run_well(&mut running, "insmod rogue-nic");
    running.type_line("tell rogue-nic interrupt-storm").unwrap();
    running.wait_for(STAYS_RAISED).unwrap();
}
