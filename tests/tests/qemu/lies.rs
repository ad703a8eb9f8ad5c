//! A network driver that lies about its queues or asks for what is not its own: it is refused or ended, with the exact
//! reason, and the real driver can take its device afterwards.

use ringfence::machine::{End, Machine};
use ringfence_tests::{HEALTH, assert_says, assert_unharmed, bare, boot, boot_well, machine};

/// Verb, and the refusal that the service answers.
const REFUSED: &[(&str, u64)] = &[
    ("free-frames", 3),
    ("phys-frames", 3),
    ("register-twice", 4),
    ("register-group", 1),
    ("move-bar", 5),
    ("move-line", 5),
    ("beyond-config", 1),
    ("odd-config", 1),
    ("no-such-bar", 3),
    ("huge-bar", 3),
    ("dma-all", 1),
    // All of its budget of 64 KiB.
    ("dma-forever", 16),
    ("move-frames", 0),
];

/// Verb, and the fault that the driver ends with: at once, or when the kernel next looks.
const FAULTS: &[(&str, &str)] = &[
    ("log-registers", "bad pointer to rf_log: 0x10 bytes at 0x"),
    ("received-ahead", "lied about the received queue: position 0x3e8, but 0x0 is counted"),
    ("empty-ahead", "lied about the empty queue: position 0xffffffffffffffff, but 0x80 is counted"),
    ("transmitted-ahead", "lied about the transmitted queue: position 0xffffffffffffffff, but 0x0 is counted"),
    ("no-such-frame", "bad entry 0x3cffffffff in the received queue"),
    ("huge-frame", "bad entry 0xffffffff00000000 in the received queue"),
    ("frame-not-lent", "bad entry 0xc8 in the transmitted queue"),
    ("frame-twice", "bad entry 0x3c00000000 in the received queue"),
];

fn with_nic(script: &str) -> Machine {
    let mut machine = machine(script);
    machine.hba = "none".into();
    machine.contents.autoload = false;
    machine
}

#[test]
fn what_is_not_its_own_is_refused() {
    let verbs: Vec<String> = REFUSED.iter().map(|(verb, _)| format!("tell rogue-nic {verb}")).collect();
    let run = boot(&with_nic(&format!("insmod rogue-nic; {}; rmmod rogue-nic; insmod e1000; ip", verbs.join("; "))));
    assert_eq!(run.end, End::Done, "{}", run.text());
    for (verb, answer) in REFUSED {
        let mut lines = run.lines.iter().skip_while(|line| !line.ends_with(&format!("tell rogue-nic {verb}")));
        let said = lines.nth(1).expect("an answer");
        assert_eq!(said, &format!("rogue-nic: {answer} ({answer:#x})"), "{verb}");
    }
}

#[test]
fn each_lie_ends_it_with_the_exact_fault() {
    let once = |(verb, fault): &(&str, &str)| {
        // The kernel only asks for frames back when it has none left: the bench sends all it has.
        let then = if fault.contains("transmitted") { "bench nic" } else { "sleep 20" };
        format!("insmod rogue-nic; tell rogue-nic {verb}; {then}; rmmod rogue-nic; {HEALTH}")
    };
    let all: Vec<String> = FAULTS.iter().map(once).collect();
    let script = format!("insmod template; tell template x; {HEALTH}; {}; insmod e1000; ip", all.join("; "));
    let run = boot(&with_nic(&script));
    assert_eq!(run.end, End::CommandFailed, "{}", run.text());
    let mut wrong = Vec::new();
    for (verb, fault) in FAULTS {
        let text = run.text();
        let start = text.find(&format!("tell rogue-nic {verb}\n")).expect("it was run");
        let report = &text[start..];
        let report = &report[..report.find("> rmmod").expect("it goes on")];
        let said = report.lines().find(|line| line.contains("fault: rogue-nic: "));
        if !said.is_some_and(|line| line.contains(fault)) {
            wrong.push(format!("{verb}\n    should say {fault}\n    but says   {}", said.unwrap_or(report)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_says(&run.text(), "eth0: 10.0.2.15/24 via e1000");
    assert_unharmed(&run.text(), FAULTS.len() + 1);
}

#[test]
fn a_driver_that_floods_the_log_is_cut_short() {
    let run = boot(&bare("insmod null; tell null log 1000; insmod template; tell template a"));
    assert_eq!(run.end, End::Done, "{}", run.text());
    assert_says(&run.text(), "null: 936 more lines in one upcall were dropped");
    assert!(!run.text().contains("line 64"));
}

/// Verb of `rogue-scsi`, and what the next command that reads says.
const SCSI_ANSWERS: &[(&str, &str)] = &[
    ("residual", "error: the device moved too little data"),
    ("sense", "error: READ(10): CHECK CONDITION"),
    ("host", "error: the adapter failed (code 77)"),
    ("gone", "error: the driver is gone"),
];

/// Verb of `rogue-scsi`, and the fault that it ends with.
const SCSI_FAULTS: &[(&str, &str)] = &[
    ("lose", "left a SCSI command undone for 300 ms"),
    ("twice", "bad entry 0x0 in the complete queue"),
    ("another", "bad entry 0x7 in the complete queue"),
    ("beyond", "bad entry 0xffffffffffffffff in the complete queue"),
    ("ahead", "lied about the complete queue: position 0x3e8, but 0x"),
    ("read-ahead", "lied about the submit queue: position 0xffffffffffffffff, but 0x"),
    ("unasked", "bad entry 0x0 in the complete queue"),
];

#[test]
fn lies_about_commands_are_errors_or_faults() {
    let mut script = format!(
        "limits command-ms 300; insmod rogue-scsi; rmmod rogue-scsi; insmod template; tell template x; {HEALTH}; \
         insmod rogue-scsi"
    );
    for (verb, _) in SCSI_ANSWERS {
        script += &format!("; tell rogue-scsi {verb}; blkread disk0 0 4; blkread disk0 0 4");
    }
    script += "; tell rogue-scsi register-twice; tell rogue-scsi register-huge; rmmod rogue-scsi";
    for (verb, _) in SCSI_FAULTS {
        script += &format!(
            "; insmod rogue-scsi; tell rogue-scsi {verb}; repeat 40 blkread disk0 0 4; rmmod rogue-scsi; {HEALTH}"
        );
    }
    let run = boot(&bare(&(script + "; insmod rogue-scsi; blkread disk0 0 4; rmmod rogue-scsi")));
    assert_eq!(run.end, End::CommandFailed, "{}", run.text());
    let text = run.text();
    let after = |verb: &str| {
        let start = text.find(&format!("tell rogue-scsi {verb}\n")).expect("it was run");
        text[start..].lines().filter(|line| !line.contains("reads block"))
    };
    for (verb, answer) in SCSI_ANSWERS {
        // The command after that is as good as ever.
        let lines: Vec<&str> = after(verb).take(6).collect();
        assert_eq!(lines[3], *answer, "{verb}: {lines:?}");
        assert!(lines[5].ends_with("  2048 bytes"), "{verb}: {lines:?}");
    }
    assert!(after("register-twice").nth(1).unwrap().ends_with("4 (0x4)"));
    assert!(after("register-huge").nth(1).unwrap().ends_with("1 (0x1)"));
    let mut wrong = Vec::new();
    for (verb, fault) in SCSI_FAULTS {
        let said = after(verb).find(|line| line.contains("fault: rogue-scsi: ")).unwrap_or("nothing");
        if !said.contains(fault) {
            wrong.push(format!("{verb}\n    should say {fault}\n    but says   {said}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_unharmed(&text, SCSI_FAULTS.len() + 1);
}

/// Nothing fences a device yet, but what it writes to memory that nobody has is seen.
#[test]
fn what_a_device_writes_to_free_memory_is_counted() {
    // 40 MiB is in the middle of free memory.
    let text = boot_well(&with_nic(
        "integrity; insmod rogue-nic; integrity; tell rogue-nic device-writes 0x2800000; integrity; integrity",
    ));
    let counts: Vec<&str> =
        text.lines().filter_map(|line| line.split_once("  frames written to")).map(|(n, _)| n).collect();
    assert_eq!(counts.iter().map(|count| count.trim()).collect::<Vec<_>>(), ["0", "0", "1", "0"], "{text}");
}
