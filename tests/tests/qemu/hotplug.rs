//! Disks that come, go and grow while the machine runs, as QEMU's machine protocol (QMP) has them
//! do.

use crate::monitor::Monitor;
use ringfence_link::event::Event;
use ringfence_tests::{at_prompt, leave, machine};

#[test]
fn disks_come_grow_and_go() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("qmp");
    let mut machine = machine("");
    machine.scratch = true;
    machine.extra = vec!["-qmp".into(), format!("unix:{},server=on,wait=off", socket.display()).into()];
    let mut running = at_prompt(machine);
    running.type_line("blkread disk0 0 1").unwrap();
    let read = |event| matches!(event, Event::Data { bytes: 512, .. }).then_some(());
    running.wait_for_event("a block", read).unwrap();
    let mut monitor = Monitor::new(&socket);
    let path = folder.path().join("new.img");
    std::fs::write(&path, vec![0; 1 << 20]).unwrap();
    monitor.execute(&format!(
        r#"{{"execute": "blockdev-add", "arguments": {{"driver": "file", "node-name": "new", "filename": "{}"}}}}"#,
        path.display()
    ));
    let device = r#""driver": "scsi-hd", "drive": "new", "id": "hot", "bus": "hba0.0", "scsi-id": 5"#;
    monitor.execute(&format!(r#"{{"execute": "device_add", "arguments": {{{device}}}}}"#));
    running.wait_for("disk1: QEMU QEMU HARDDISK, 2048 blocks of 512 bytes").unwrap();
    running.type_line("blkcheck disk1 0 2048 1").unwrap();
    running.wait_for("2048 blocks were written and read back").unwrap();
    monitor.execute(r#"{"execute": "block_resize", "arguments": {"node-name": "new", "size": 2097152}}"#);
    running.wait_for("4096 blocks").unwrap();
    running.type_line("blkcheck disk1 2048 2048 1").unwrap();
    running.wait_for("2048 blocks were written and read back").unwrap();
    monitor.execute(r#"{"execute": "device_del", "arguments": {"id": "hot"}}"#);
    running.wait_for("disk1: it is gone").unwrap();
    running.type_line("blkread disk1 0 1").unwrap();
    running.wait_for("error: there is no disk 'disk1'").unwrap();
    leave(running);
}
