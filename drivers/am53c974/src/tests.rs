//! Tests of the driver with a recording of a real run, and with scripts of the adapter's answers.

use super::Am53c974;
use ringfence_sdk::Driver;
use ringfence_sdk::fake::{Data, Kernel, Script, replay};
use ringfence_sdk::scsi::{HOST_ERROR, HOST_NO_DEVICE};
use ringfence_sdk::scsi_bus::BusDriver;
use std::cell::RefCell;
use std::rc::Rc;
use std::string::String;

type Host = BusDriver<Am53c974>;

/// Of a run on QEMU's adapter: `cargo run -- record am53c974`.
const DISK: &str = include_str!("disk.recording");

#[test]
fn it_does_again_what_it_did_in_a_real_run() {
    assert_eq!(replay::<Host>(DISK), 21);
}

#[test]
#[should_panic(expected = "the completed requests of upcall 1")]
fn a_replay_notices_another_outcome() {
    replay::<Host>(&DISK.replacen("\ncompleted 0 00", "\ncompleted 0 01", 1));
}

#[test]
#[should_panic(expected = "is set to 0x100c0000; the script has")]
fn a_replay_notices_another_command() {
    replay::<Host>(&DISK.replacen("w 0 48 4 100c0000", "w 0 48 4 100c0004", 1));
}

/// Returns the recording up to the first `last`, which is in its first command, without the lines
/// of upcalls and requests.
fn until(last: &str) -> String {
    let at = DISK.find(last).unwrap() + last.len();
    DISK[..at]
        .lines()
        .filter(|line| !["init", "poll", "request"].contains(&line.split(' ').next().unwrap()))
        .fold(String::new(), |text, line| text + line + "\n")
}

const SELECTION: &str = "w 0 40 4 3\n";
const TRANSFER: &str = "w 0 40 4 83\n";
/// A reset of the chip and of the bus.
const RESET: &str = "w 0 40 4 2 0\nw 0 c 1 2 0\nw 0 20 1 47\nw 0 2c 1 40\nw 0 14 1 99\nw 0 c 1 3\nr 0 14 1 0\n";
/// The status of the core: an interrupt in the phase of data to the host, and no interrupt.
const INTERRUPT: &str = "r 0 10 1 91 91\n";
const NONE: &str = "r 0 10 1 7\n";
/// The cause of the interrupt: the target has gone.
const GONE: &str = "r 0 14 1 20\n";

/// Gives the driver the first command of the recording, and has the adapter go on with `then` after
/// `last`. Returns the outcome, and the driver's log.
fn ends(last: &str, then: &str) -> (u32, String) {
    let script = Rc::new(RefCell::new(Script::new(&(until(last) + then))));
    let mut kernel = Kernel::new(script.clone());
    let mut host = kernel.run(Host::init).unwrap();
    let scsi = kernel.scsi.as_mut().unwrap();
    let report_luns = [0xa0, 0, 0, 0, 0, 0, 0, 0, 8, 8, 0, 0];
    scsi.command(0, [0, 0], &report_luns, Data::In(0x808));
    kernel.poll(&mut host);
    let completed = kernel.scsi.as_mut().unwrap().take_completed();
    assert_eq!(script.borrow().left(), 0);
    assert_eq!(completed.len(), 1);
    (completed[0].1.host, kernel.log.join("\n"))
}

#[test]
fn where_no_target_answers_there_is_no_device() {
    let (host, _) = ends(SELECTION, &[INTERRUPT, GONE, NONE].concat());
    assert_eq!(host, HOST_NO_DEVICE);
}

/// The bus is in an unknown state then, so it is reset.
#[test]
fn a_target_that_goes_without_a_status_ends_the_command() {
    let (host, log) = ends(TRANSFER, &[INTERRUPT, GONE, RESET, NONE].concat());
    assert_eq!(host, HOST_ERROR);
    assert!(log.contains("the target is gone without a status; the bus is reset"), "{log}");
}

/// A target that wants data in place of a status, once it has had all.
#[test]
fn a_target_that_wants_more_than_there_is_ends_the_command() {
    let (host, log) = ends(TRANSFER, &[INTERRUPT, "r 0 14 1 10\nr 0 4c 4 0\n", RESET, NONE].concat());
    assert_eq!(host, HOST_ERROR);
    assert!(log.contains("the target wants phase 1, which has no place here"), "{log}");
}
