//! The output of `trace` about a driver's boundary. A traced driver cannot take more than its share
//! of memory.

use ringfence_link::event::{Event, Times};
use ringfence_tests::{
    HEALTH, assert_says, assert_unharmed, at_prompt, bare, boot_badly, boot_well, leave, machine, paged, run_well,
};

/// Returns the events of the traces in `text`, without their times.
fn events(text: &str) -> Vec<&str> {
    let events = text.lines().filter_map(|line| line.split_once(" us  ")).map(|(_, event)| event.trim());
    events
        .map(|event| ["  after ", "  in "].iter().fold(event, |event, end| event.split(end).next().unwrap()))
        .collect()
}

#[test]
fn a_trace_shows_upcalls_and_calls_in_both_rings() {
    let traced = "trace template tell template x";
    // The first command of a build has its heap grow.
    let text = boot_well(&bare(&format!(
        "insmod template; tell template x; {traced}; ring template 0; tell template x; {traced}"
    )));
    let events = events(&text);
    assert_eq!(events.len(), 6, "{text}");
    for ring in events.chunks(3) {
        assert_eq!(ring, ["> command(\"x\")", "rf_log(info, \"was told 'x'\") = 0x0", "< 0x1"]);
    }
}

/// A trace goes on from the first upcall until it is turned off. Its events can be shown after
/// that.
#[test]
fn a_trace_goes_on_until_it_is_turned_off() {
    let run = boot_badly(
        &bare(
            "insmod template --trace; tell template x; trace template off; tell template y; trace template show; \
             trace template off; trace template on; trace template show; trace template help; trace null show; \
             trace template off; trace template -x help; trace template on; rmmod template; trace template show; trace none show; trace none on",
        ),
        6,
    );
    let text = run.to_string();
    let log = |text: &str| format!("rf_log(info, \"{text}\") = 0x0");
    let hello = log("hello from a driver that does not know its ring");
    let shown = events(&text);
    let heap = "rf_heap_grow(0x4000) = 0x8004080000";
    let first = ["> init()", &hello, "< 0x0", "> command(\"x\")", heap, &log("was told 'x'"), "< 0x1"];
    assert_eq!(shown[..7], first, "{text}");
    // The second trace has only the end of the driver.
    assert_eq!(shown[7..], ["> exit()", &log("good-bye"), "< 0x0"], "{text}");
    for error in [
        "template is not traced",
        "a trace of it is under way already",
        "no domain 'null' is loaded",
        "no domain 'none' is loaded",
        "there is no such option; usage: trace NAME on|off|show|save | [-c]",
    ] {
        assert_says(&text, &format!("error: {error}"));
    }
}

/// The trace of a driver that does not start can be shown.
#[test]
fn the_trace_of_a_driver_that_does_not_start_is_there() {
    let script = "insmod e1000 --trace; insmod e1000 --trace; trace e1000 show; trace e1000 off";
    let text = boot_badly(&bare(script), 3).to_string();
    assert_says(&text, "           0 events");
    // It has ended, so that another one can begin.
    assert!(!text.contains("under way"), "{text}");
    assert_says(&text, "error: e1000 is not traced");
}

/// Frames and requests have numbers, and their contents are shown in words.
#[test]
fn a_trace_shows_what_is_passed() {
    let mut machine =
        machine("ping 10.0.2.2 -c 1; trace e1000 ping 10.0.2.2 -c 2; lsblk; trace virtio-scsi blkread disk0 8 16");
    let disk = ringfence::machine::empty_disk().unwrap();
    machine.disks = vec![disk.path().to_path_buf().into()];
    let text = boot_well(&machine).to_string();
    let shown = events(&text);
    let number = |event: &str| event.split_whitespace().find_map(|word| word.trim_end_matches(',').parse::<u64>().ok());
    let find = |part: &str| {
        let found = shown.iter().position(|event| event.contains(part));
        found.unwrap_or_else(|| panic!("no '{part}' in {text}"))
    };
    let sent = find("98 bytes: ICMP echo request, 10.0.2.15 to 10.0.2.2");
    let received = find("98 bytes: ICMP echo reply, 10.0.2.2 to 10.0.2.15");
    assert!(shown[sent].starts_with("gets frame ") && shown[received].starts_with("receives frame "));
    let done = find(&format!("has done frame {}", number(shown[sent]).unwrap()));
    // An interrupt may be due at the same time.
    let is_poll = ["> poll(queue)", "> poll(interrupt, queue)"].contains(&shown[sent + 1]);
    assert!(sent < done && is_poll, "{text}");
    let given = find("8192 bytes: READ(10) of 16 blocks from 8, to 0:0");
    let done = format!("has done SCSI command {} after ", number(shown[given]).unwrap());
    // The helper has cut the time off.
    assert!(text.lines().any(|line| line.contains(&done) && line.ends_with(" us: GOOD")), "{text}");
    // The second request is sent a second later: by then, the interrupt of the first answer is
    // served.
    assert!(shown.iter().any(|event| event.starts_with("> poll(interrupt")), "{text}");
    assert!(shown.contains(&"< acknowledged"), "{text}");
}

/// Each time is counted once, in words and for programs, also beside a trace that is under way.
#[test]
fn times_are_counted_by_kind() {
    let command = "tell template x";
    let run = boot_badly(
        &bare(&format!(
            "insmod template; {command}; stats template repeat 5 {command}; trace template on; stats template {command}; \
             trace template -c {command}; stats template 1; stats template 0; stats template stats template 1; \
             trace template off; trace template -c {command}; stats none"
        )),
        4,
    );
    let text = run.to_string();
    let told: Vec<(&str, &[Times])> = run
        .events()
        .iter()
        .filter_map(|event| match event {
            Event::Times { name, of } => Some((name.as_ref(), &of[..])),
            _ => None,
        })
        .collect();
    let counts = |of: &[Times]| -> Vec<(String, u64)> {
        of.iter().map(|times| (format!("{} {}", times.kind, times.name), times.count)).collect()
    };
    let calls = |count| [("upcall command".to_string(), count), ("service rf_log".to_string(), count)];
    let [("template", five), ("template", one), ("template", []), ("template", [])] = told[..] else {
        panic!("{told:?}\n{text}")
    };
    assert_eq!((counts(five), counts(one)), (calls(5).to_vec(), calls(1).to_vec()), "{text}");
    for times in five {
        assert_eq!(times.steps.iter().map(|(.., count)| u64::from(*count)).sum::<u64>(), times.count);
        assert!(
            times.median_ns <= times.p99_ns && times.p99_ns <= times.longest_ns && times.longest_ns <= times.total_ns
        );
        let (from, to, _) = times.steps.last().unwrap();
        assert!((from..to).contains(&&times.longest_ns), "{times:?}");
    }
    assert_says(&text, "upcall command: 5 in all; us: median ");
    assert_says(&text, "template: nothing went across its boundary");
    let row = |kind: &str| text.lines().any(|line| line.split_whitespace().take(3).eq(kind.split(' ')));
    assert!(row("upcall command 1") && row("service rf_log 1"), "{text}");
    assert_says(&text, "error: a trace of it is under way already");
    assert_says(&text, "error: its times are measured already");
    assert_says(&text, "error: the time must be 1 to 86400 seconds, not 0");
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
    assert_eq!(events[..2], ["! ended: killed", "> init()"], "{text}");
    assert!(events.contains(&"rf_irq_enable() = 0x0") && events.contains(&"! replaced"), "{text}");
    assert_says(
        &text,
        "error: the command is missing; usage: trace NAME on|off|show|save | [-c] [--watch ADDRESS[:BYTES]|REGISTER] COMMAND",
    );
    assert_says(&text, "error: no domain 'nope' is loaded");
    assert_says(&text, "error: a trace of it is under way already");
}

/// The CPU's debug registers see each access, in both rings.
#[test]
fn a_trace_shows_who_touches_what_is_watched() {
    // The text of the command is in the mailbox.
    let traced = "trace template --watch 0x8001f00000:1 tell template x";
    let run = boot_badly(
        &bare(&format!(
            "insmod template --kind paged; tell template x; {traced}; ring template 0; {traced}; trace template tell template y; \
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
    let text = boot_well(&paged(machine(
        "lsblk; trace virtio-scsi --watch 0x100201a0014:1 repeat 1 kill virtio-scsi, sleep 50; lsmod",
    )));
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

/// Even if a driver floods it, a trace keeps only the last events, and takes no memory for others.
#[test]
fn a_driver_that_floods_a_trace_takes_no_more_than_its_share() {
    let attack = format!("insmod rogue; trace rogue tell rogue gate-flood; rmmod rogue; {HEALTH}");
    // The kernel keeps the remains of the last four drivers that were ended, for core files.
    const TIMES: usize = 6;
    let script = vec![attack; TIMES].join("; ");
    let run = boot_badly(&bare(&format!("insmod template; tell template x; {script}")), TIMES);
    let text = run.to_string();
    assert_eq!(text.matches(" earlier events were not kept").count(), TIMES, "{text}");
    let events = events(&text);
    assert_eq!(events, ["rf_null() = 0x0  1023 times", "! ended: overrun"].repeat(TIMES), "{text}");
    assert_unharmed(&text, TIMES);
    // The stored report stays in the kernel's heap, and the trace does not.
    let used = |line: &str| line.strip_prefix("heap ")?.split_whitespace().next()?.parse::<u64>().ok();
    let used: Vec<u64> = text.lines().filter_map(used).collect();
    assert!(used[TIMES - 1].saturating_sub(used[TIMES - 2]) < 16 << 10, "{used:?}");
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
