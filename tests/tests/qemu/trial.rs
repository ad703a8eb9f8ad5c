//! `trial`: a changed driver in the place of a good one, and the state after a trial that is
//! interrupted or cannot be undone.

use crate::changed::*;
use object::{Object, ObjectSymbol};
use ringfence_tests::{assert_says, at_prompt, boot_badly, boot_well, leave, machine, paged, run_well, system};

/// If the good driver does not come back after a trial, the kernel tries it again, and never the
/// changed driver.
#[test]
fn a_trial_that_cannot_be_undone_leaves_no_changed_driver() {
    let (mut machine, _directory, latest) = with_late("");
    machine.contents.exec = Some(format!(
        "insmod late; policy late restart; trial late {latest:x}:ffffffffffffffff 0 1 sleep 1500 | help | tell late on; sleep 100; \
         policy late restart; sleep 100; lsmod"
    ));
    let run = boot_badly(&machine, 1);
    let [trial] = run.trials()[..] else { panic!("{run}") };
    let why = "init: refused: busy";
    assert_eq!((&*trial.kind, trial.not_restored.as_deref()), ("fine", Some(why)));
    assert_eq!(run.errors()[0].1, format!("late is not restored: {why}"));
    assert_says(&run, &format!("error: late: restart 1: {why}"));
    assert_eq!(run.restarts("late"), 0, "{run}");
    let state = &run.drivers("late")[0].state;
    assert!(state.starts_with("back in ") || state == "ended, to be back", "{state}");
}

/// A changed driver gave a wrong Ethernet address, and other hosts knew the interface by it. So the
/// good driver's interface must be announced again. This is change 2000 of `campaign --mutants 3000
/// --seed 2026`.
#[test]
fn an_interface_whose_ethernet_address_changed_is_announced() {
    let module = system().modules.iter().find(|module| module.name == "e1000").unwrap();
    let file = std::fs::read(&module.packed).unwrap();
    let elf = object::File::parse(&*file).unwrap();
    // The place where a word of the EEPROM is shifted out of its register: SHR EAX, 16.
    let symbol = elf.symbols().find(|symbol| symbol.name().is_ok_and(|name| name.contains("eeprom"))).unwrap();
    let code = &file[symbol.address() as usize..(symbol.address() + symbol.size()) as usize];
    let at = code.windows(3).position(|bytes| bytes == [0xc1, 0xe8, 16]).expect("it is shifted there");
    let at = symbol.address() + at as u64;
    let script = format!(
        "ip; trial e1000 {at:x}:909090 {at} 1 ip, ping 10.0.2.2 -c 1 -W 5000 | help help | ping 10.0.2.2 -c 1 -W 5000; ip"
    );
    let text = boot_well(&paged(machine(&script)));
    let [trial] = text.trials()[..] else { panic!("{text}") };
    assert_eq!((trial.activated, &*trial.kind, &*trial.why, &trial.not_restored), (true, "fine", "", &None));
    assert_says(&text, "52-54-00-12-34-56");
}

/// When Ctrl-C ends a trial early, the changed driver does not stay. The good driver stays, with
/// its policy.
#[test]
fn a_trial_given_up_leaves_the_good_driver() {
    let module = system().modules.iter().find(|module| module.name == "e1000").unwrap();
    let file = std::fs::read(&module.packed).unwrap();
    // The name in the manifest has 32 bytes; the version follows.
    let name = file.windows(32).position(|bytes| bytes.starts_with(b"e1000\0") && bytes.ends_with(&[0; 26])).unwrap();
    let version = &file[name + 32..];
    assert!(version.starts_with(env!("CARGO_PKG_VERSION").as_bytes()), "{version:?}");
    let mut running = at_prompt(machine(""));
    run_well(&mut running, "ip");
    // Nobody answers the ping, so it would last until its time limit. Ctrl-C follows the line at
    // once; the reader of the line must not swallow it.
    let patch = format!("trial e1000 {:x}:58 0 1 ping 10.0.2.99 -c 1000 | help | help\r\x03", name + 32);
    running.type_line(&patch).unwrap();
    running.wait_for("error: interrupted").unwrap();
    // The driver is restarted, as its policy says, and the report names the good driver's version.
    running.type_line("kill e1000").unwrap();
    running.wait_for(&format!("version {}, ring 1", env!("CARGO_PKG_VERSION"))).unwrap();
    running.wait_for("then: it was restarted in ring 1").unwrap();
    run_well(&mut running, "ping 10.0.2.2 -c 1 -W 5000");
    leave(running);
}
