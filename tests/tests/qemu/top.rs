//! `top`: the activity of the drivers.

use ringfence_link::event::{Activity, Event};
use ringfence_tests::{assert_says, at_prompt, bare, boot_badly, leave, machine, run_well};

/// Returns the interval of each table of `top` in microseconds, and the table's drivers.
fn tables<'a>(events: &'a [Event<'static>]) -> Vec<(u64, &'a [Activity<'static>])> {
    let table = |event: &'a Event<'static>| match event {
        Event::Activity { interval_us, drivers, idle_percent } if (0.0..=100.0).contains(idle_percent) => {
            Some((*interval_us, &drivers[..]))
        }
        _ => None,
    };
    events.iter().filter_map(table).collect()
}

/// The rates are those of the time between two tables, and no earlier work counts.
#[test]
fn the_rates_are_those_of_the_last_moment() {
    let mut machine = machine(
        "lsblk; ping 10.0.2.2 -c 1; repeat 20 blkread disk0 0 8; top; \
         repeat 20 blkread disk0 0 8 &; top -n 2 -d 1; kill virtio-scsi; top; top -d 0; top -n 0; top x; top &",
    );
    let disk = ringfence::machine::empty_disk().unwrap();
    machine.disks = vec![disk.path().to_path_buf().into()];
    let text = boot_badly(&machine, 4);
    let tables = tables(text.events());
    assert_eq!(tables.len(), 4, "{text}");
    let scsi = |table: usize| {
        let (interval_us, drivers) = tables[table];
        assert!(interval_us > 0 && drivers.len() == 2, "{text}");
        drivers.iter().find(|driver| driver.name == "virtio-scsi").unwrap()
    };
    let count = |rate: f64, table: usize| (rate * tables[table].0 as f64 / 1e6).round() as u64;
    // Reads before the table are not in it.
    assert_eq!(count(scsi(0).operations, 0), 0, "{text}");
    // On a busy host, some of the reads are in the next table.
    let both = |of: fn(&Activity) -> f64| count(of(scsi(1)), 1) + count(of(scsi(2)), 2);
    assert_eq!([both(|scsi| scsi.operations), both(|scsi| scsi.bytes)], [20, 20 * 4096], "{text}");
    assert!(both(|scsi| scsi.upcalls) >= 20 && both(|scsi| scsi.interrupts) > 0, "{text}");
    assert!(scsi(1).cpu_percent > 0.0, "{text}");
    assert_eq!((&*scsi(1).kind, scsi(1).ring, scsi(1).restarts, scsi(3).restarts), ("scsi", 1, 0, 1));
    assert!(scsi(1).memory_bytes > 0);
    assert_says(&text, "DOMAIN          KIND  RING CPU % UPC/S CALL/S  OP/S  KB/S IRQ/S FLTS RSTS    KIB");
    assert_says(&text, "error: the time between tables must be 1 to 3600 seconds, not 0");
    assert_says(&text, "error: there must be one table at least");
    assert_says(&text, "error: 'x' is not known");
    assert_says(&text, "error: top reads keys; with -n it runs beside other commands");
}

/// A person sees tables until they press a key, and goes on.
#[test]
fn a_key_ends_the_tables() {
    let mut running = at_prompt(bare(""));
    for key in ["q", "\x03"] {
        running.type_line("top").unwrap();
        running.wait_for("q ends this").unwrap();
        running.type_text(key).unwrap();
        let ended = running.wait_for_event("the end of top", |event| match event {
            Event::Command { line, error } if line == "top" => Some(error),
            _ => None,
        });
        assert_eq!(ended.unwrap(), None);
    }
    run_well(&mut running, "lsmod");
    leave(running);
}
