//! `watch`: each access of a driver to its device's registers.

use ringfence_link::event::Event;
use ringfence_tests::{assert_says, at_prompt, bare, boot_badly, boot_well, leave, machine, run_well};

/// Returns the accesses and upcalls that a watch has shown, without times and places.
fn seen(text: &str) -> Vec<&str> {
    text.lines().filter_map(|line| Some(line.split_once(" us  ")?.1.trim())).collect()
}

/// The e1000's `init` writes a table of 128 registers, one after the other: none is missed.
#[test]
fn each_access_to_memory_is_seen_with_its_value() {
    let text = boot_well(&machine(
        "ping 10.0.2.2 -c 1; watch e1000 mmio reload e1000; watch e1000 mmio 0:0x3818-0x3818 ping 10.0.2.2 -c 2; \
         ping 10.0.2.2 -c 1; trace e1000 ping 10.0.2.2 -c 1",
    ))
    .to_string();
    let (reload, pings) = text.split_once("ringfence> watch e1000 mmio 0:").unwrap();
    let seen_in_reload = seen(reload);
    let table: Vec<&&str> = seen_in_reload.iter().filter(|event| event.contains(" MTA.")).collect();
    let expected: Vec<String> = (0..128).map(|number| format!("* writes MTA.{number} 0x0")).collect();
    assert_eq!(table, expected.iter().map(|text| text.as_str()).collect::<Vec<_>>().iter().collect::<Vec<_>>());
    let position = |event: &str| seen_in_reload.iter().position(|seen| *seen == event);
    let [ended, init, masked] = ["! ended: killed", "> init()", "* writes IMC 0xffffffff"].map(position);
    assert!(ended.is_some() && ended < init && init < masked, "{reload}");
    // An `or` of the register: the CPU has no value of it in a general register.
    let changed = seen_in_reload.iter().find_map(|seen| seen.strip_prefix("* changes CTRL from ")).unwrap();
    let (before, after) = changed.split_once(" to ").unwrap();
    let number = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).unwrap();
    assert_eq!(number(after), number(before) | 1 << 26, "{reload}");
    assert_says(reload, "drivers/e1000/src/lib.rs:");
    // The card sends two frames; other registers are not shown.
    let (pings, after) = pings.split_once("ringfence> ping").unwrap();
    assert_says(pings, "2 sent, 2 answered");
    let sent: Vec<&str> = seen(pings).into_iter().filter(|event| event.starts_with('*')).collect();
    assert!(sent.len() == 2 && sent.iter().all(|event| event.starts_with("* writes TDT 0x")), "{pings}");
    assert!(seen(pings).iter().any(|event| event.starts_with("> poll(interrupt")), "{pings}");
    // The watch is over.
    assert!(after.contains("98 bytes: ICMP echo reply") && !after.contains(" * "), "{after}");
}

/// What a device does for which its driver is ended stands among the accesses that led there.
#[test]
fn an_access_of_the_device_is_in_the_list() {
    let mut machine = machine("insmod rogue-lsi; watch rogue-lsi mmio tell rogue-lsi read 0");
    (machine.nic, machine.hba) = ("none".into(), "lsi53c895a".into());
    machine.contents.autoload = false;
    let text = boot_well(&machine).to_string();
    let seen = seen(&text);
    let [started, ended] = ["* writes bar1+0x2c", "! ended: DMA-fault: its device reads 0x0"]
        .map(|start| seen.iter().rposition(|event| event.starts_with(start)));
    assert!(started.is_some() && started < ended, "{text}");
}

/// Words, by `rep insw` and `rep outsw`, carry the frames.
#[test]
fn each_access_to_a_port_is_seen_with_its_value() {
    let mut machine = machine("ping 10.0.2.2 -c 1; watch ne2k-pci ports ping 10.0.2.2 -c 1");
    machine.nic = "ne2k_pci".to_string();
    let text = boot_well(&machine).to_string();
    let seen = seen(text.split_once("watch ne2k-pci ports ping").unwrap().1);
    let all = |start: &str| seen.iter().filter(|event| event.starts_with(start)).count();
    assert_eq!(all("* writes TRANSMIT_PAGE 0x40"), 1, "{text}");
    assert_eq!((all("* writes TRANSMIT_BYTES.0 0x62"), all("* writes TRANSMIT_BYTES.1 0x0")), (1, 1), "{text}");
    assert!(all("* reads CAUSES 0x") > 0, "{text}");
    // 98 bytes in words: from and to the addresses of the card and of QEMU's network, in IPv4.
    let [sent, received] = ["* writes DATA, 49 times", "* reads DATA, 49 times"].map(|event| {
        let lines = text.lines().skip_while(|line| !line.ends_with(event)).skip(1);
        lines.take_while(|line| line.trim().starts_with("0x")).collect::<String>()
    });
    let words = |text: &str| text.split_whitespace().map(str::to_string).collect::<Vec<_>>();
    assert_eq!(words(&sent)[3..8], ["0x5452", "0x1200", "0x5634", "0x8", "0x45"], "{text}");
    assert_eq!(words(&received)[..3], ["0x5452", "0x1200", "0x5634"], "{text}");
    assert_eq!([words(&sent).len(), words(&received).len()], [49, 49]);
}

/// A watch goes on over the end of its driver, and shows it.
#[test]
fn a_watch_goes_on_with_the_successor() {
    let text = boot_well(&machine(
        "ping 10.0.2.2 -c 1; watch e1000 mmio repeat 1 kill e1000, ping 10.0.2.2 -c 1; ring e1000 0; ring e1000 1",
    ))
    .to_string();
    let seen = seen(&text);
    let position = |event: &str| seen.iter().rposition(|seen| seen.starts_with(event)).unwrap_or(usize::MAX);
    let order = ["! ended: killed", "> init()", "* writes MTA.0 0x0", "! replaced", "* writes TDT 0x"];
    let found = order.map(position);
    assert!(found.is_sorted() && found[4] < usize::MAX, "{found:?} {text}");
}

/// A driver that is moved to ring 0 is watched no more, and again when it is back.
#[test]
fn a_driver_in_ring_0_is_not_watched() {
    let script = "ping 10.0.2.2 -c 1; watch e1000 mmio repeat 1 ring e1000 0, ping 10.0.2.2 -c 1, ring e1000 1, \
                  ping 10.0.2.2 -c 2; ring e1000 0; watch e1000 mmio lsmod; kill e1000; ping 10.0.2.2 -c 1";
    let text = boot_badly(&machine(script), 1).to_string();
    assert_says(&text, "error: e1000 runs in ring 0, where nothing stops it; 'ring e1000 1' moves it to ring 1");
    let seen = seen(&text);
    let sent = seen.iter().filter(|event| event.starts_with("* writes TDT 0x")).count();
    assert_eq!(sent, 2, "the frames that were sent from ring 1: {text}");
}

#[test]
fn what_cannot_be_watched_is_said() {
    let script = "watch nope mmio; watch nope mmio lsmod; watch template ports; insmod template; watch template mmio; \
                  watch template; watch template all; watch template mmio 6; watch template mmio 0:1-2; \
                  watch template mmio 0:0x8-0x4; watch template mmio insmod nope";
    let text = boot_badly(&bare(script), 10).to_string();
    for error in [
        "no domain 'nope' is loaded",
        "no domain 'template' is loaded",
        "template has no device",
        "what is watched: mmio or ports is missing; usage: watch NAME mmio|ports",
        "mmio or ports can be watched, not 'all'; usage: watch NAME",
        "there are BARs 0 to 5, and not 6",
        "'1-2' is no first and last offset, as in 0x0-0x1f",
        "'0x8-0x4' is no first and last offset",
    ] {
        assert_says(&text, &format!("error: {error}"));
    }
}

/// Without a command a watch goes on until Ctrl-C, and shows new accesses.
#[test]
fn a_watch_shows_what_comes_until_it_is_ended() {
    let mut running = at_prompt(machine(""));
    running.type_line("ping 10.0.2.2 -c 3 &").unwrap();
    running.type_line("watch e1000 mmio").unwrap();
    running.wait_for("watching e1000; Ctrl-C ends this").unwrap();
    running.wait_for("* writes TDT 0x").unwrap();
    running.type_text("\x03").unwrap();
    let ended = running.wait_for_event("the end of the watch", |event| match event {
        Event::Command { line, error } if line == "watch e1000 mmio" => Some(error),
        _ => None,
    });
    assert_eq!(ended.unwrap().as_deref(), Some("interrupted"));
    run_well(&mut running, "watch e1000 mmio ping 10.0.2.2 -c 1");
    leave(running);
}
