//! The output of `trace` about a driver's boundary. A traced driver cannot take more than its share
//! of memory.

use ringfence_tests::{
    HEALTH, assert_says, assert_unharmed, at_prompt, bare, boot_badly, boot_well, leave, machine, run_well,
};

/// Returns the events of the traces in `text`, without their times.
fn events(text: &str) -> Vec<&str> {
    text.lines().filter_map(|line| line.split_once(" us  ")).map(|(_, event)| event.trim()).collect()
}

#[test]
fn a_trace_shows_upcalls_and_calls_in_both_rings() {
    let traced = "trace template tell template x";
    let text = boot_well(&bare(&format!("insmod template; tell template x; {traced}; ring template 0; {traced}")));
    let events = events(&text);
    assert_eq!(events.len(), 6, "{text}");
    for ring in events.chunks(3) {
        assert_eq!(ring[0], "> command(0x1, 0x0, 0x0)");
        assert!(ring[1].starts_with("rf_log(info, 0x80017f") && ring[1].ends_with(", 0xc) = 0x0"), "{ring:?}");
        assert!(ring[2].starts_with("< 0x1  after "), "{ring:?}");
    }
}

#[test]
fn a_trace_goes_on_with_a_driver_that_comes_back() {
    let run = boot_badly(
        &machine(
            "trace e1000 repeat 1 kill e1000, sleep 100; trace e1000; trace nope help; trace e1000 trace e1000 help",
        ),
        3,
    );
    let text = run.to_string();
    let events = events(&text);
    assert_eq!(events[..2], ["! ended: killed", "> init(0x0, 0x0, 0x0)"], "{text}");
    assert!(events.contains(&"rf_irq_enable() = 0x0") && events.contains(&"! replaced"), "{text}");
    assert_says(&text, "error: the command is missing; usage: trace NAME [--watch ADDRESS[:BYTES]|REGISTER] COMMAND");
    assert_says(&text, "error: no domain 'nope' is loaded");
    assert_says(&text, "error: a trace is under way already");
}

/// The CPU's debug registers see each access, in both rings.
#[test]
fn a_trace_shows_who_touches_what_is_watched() {
    // The text of the command is in the mailbox.
    let traced = "trace template --watch 0x8001f00000:1 tell template x";
    let run = boot_badly(
        &bare(&format!(
            "insmod template; tell template x; {traced}; ring template 0; {traced}; trace template tell template y; \
         trace template --watch 0x8001f00001:2 help; trace template --watch 8 help; trace template --watch 0x10001f00000"
        )),
        3,
    );
    let text = run.to_string();
    let touched: Vec<&str> = text.lines().filter(|line| line.ends_with(" us    * 0x78")).collect();
    let places = text.lines().filter(|line| line.starts_with("              at ringfence_sdk::shared::mailbox+0x"));
    assert!(touched.len() >= 2 && places.count() == touched.len(), "{text}");
    // The watch has ended with the first trace.
    assert!(!text.contains("* 0x79"), "{text}");
    assert_says(
        &text,
        "error: '0x8001f00001:2' is no address in hexadecimal with 0x, a multiple of what is behind it: ",
    );
    assert_says(
        &text,
        "error: '8' is no address in hexadecimal with 0x, a multiple of what is behind it: :1, :2, :4 or :8",
    );
    assert_says(&text, "error: 0x10001f00000 is not in the driver's slot");
}

/// Registers have the names that the module gives them; one of several has a number as well.
#[test]
fn a_register_is_watched_by_its_name() {
    let wrong = [
        ("e1000 --watch TDTT help", "e1000 names no register TDTT; did you mean TDT?"),
        ("e1000 --watch MTA.128 help", "there are 128 of MTA, from 0 on"),
        ("template --watch TDT help", "template names no register TDT"),
    ];
    let lines: Vec<String> = wrong.iter().map(|(typed, _)| format!("; trace {typed}")).collect();
    let script = format!(
        "insmod template; modinfo e1000; trace e1000 --watch TDT ping 10.0.2.2 -c 1; \
         trace e1000 --watch MTA.127 repeat 1 kill e1000, sleep 100{}",
        lines.concat()
    );
    let text = boot_badly(&machine(&script), wrong.len());
    let found = events(&text);
    for register in ["* TDT", "* MTA.127"] {
        assert!(found.contains(&register), "{register}: {text}");
    }
    assert_says(&text, "registers CTRL STATUS EERD CTRL_EXT MDIC FCAL ");
    for (_, error) in wrong {
        assert_says(&text, &format!("error: {error}"));
    }
}

/// The kernel itself accesses a register when it resets the device of an ended driver. No upcall is
/// under way then.
#[test]
fn a_register_that_a_reset_touches_can_be_watched() {
    // virtio's device status, in the slot of the second driver.
    let text = boot_well(&machine(
        "lsblk; trace virtio-scsi --watch 0x100201a0014:1 repeat 1 kill virtio-scsi, sleep 50; lsmod",
    ));
    assert_says(&text, " us    * ?");
    assert!(text.restarts("virtio-scsi") > 0, "{text}");
}

/// A trusted driver's services run on its stack. They touch watched words there while they hold the
/// trace, and that must not stop anything.
#[test]
fn the_stack_of_a_trusted_driver_can_be_watched() {
    const STACK_TOP: u64 = 0x80_0180_0000;
    let words = (1..200).map(|word| format!("; trace template --watch {:#x} tell template x", STACK_TOP - 8 * word));
    let script: String = words.collect();
    let text = boot_well(&bare(&format!("insmod template; ring template 0{script}; tell template good-bye")));
    assert_says(&text, "template: 8 (0x8)");
}

/// Whatever a driver does, a trace keeps only the last events, and takes no memory for others.
#[test]
fn a_driver_that_floods_a_trace_takes_no_more_than_its_share() {
    let attack = format!("insmod rogue; trace rogue tell rogue gate-flood; rmmod rogue; {HEALTH}");
    let run = boot_badly(&bare(&format!("insmod template; tell template x; {attack}; {attack}; {attack}")), 3);
    let text = run.to_string();
    assert_eq!(text.matches(" earlier events were not kept").count(), 3, "{text}");
    let events = events(&text);
    assert_eq!(events, ["rf_null() = 0x0  511 times", "! ended: overrun"].repeat(3), "{text}");
    assert_unharmed(&text, 3);
    // The stored report stays in the kernel's heap, and the trace does not.
    let used = |line: &str| line.strip_prefix("heap ")?.split_whitespace().next()?.parse::<u64>().ok();
    let used: Vec<u64> = text.lines().filter_map(used).collect();
    assert!(used[2] - used[1] < 16 << 10, "{used:?}");
}

#[test]
fn a_trace_ends_with_its_command_even_if_that_is_given_up() {
    let mut running = at_prompt(bare(""));
    running.type_line("insmod template").unwrap();
    running.type_line("trace template sleep 1000000\r\x03").unwrap();
    running.wait_for("error: interrupted").unwrap();
    run_well(&mut running, "trace template tell template x");
    leave(running);
}
