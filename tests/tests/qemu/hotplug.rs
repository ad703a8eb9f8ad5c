//! Disks that are added, removed and resized while the machine runs, with QEMU's machine protocol
//! (QMP).

use ringfence::machine::Monitor;
use ringfence_tests::{at_prompt, leave, machine, outcome, run_well};

#[test]
fn disks_come_grow_and_go() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("qmp");
    let mut machine = machine("");
    machine.scratch = true;
    machine.extra = vec!["-qmp".into(), format!("unix:{},server=on,wait=off", socket.display()).into()];
    let mut running = at_prompt(machine);
    run_well(&mut running, "blkread disk0 0 1");
    let mut monitor = Monitor::new(&socket).unwrap();
    let path = folder.path().join("new.img");
    std::fs::write(&path, vec![0; 1 << 20]).unwrap();
    monitor
        .execute(&format!(
            r#"{{"execute": "blockdev-add", "arguments": {{"driver": "file", "node-name": "new", "filename": "{}"}}}}"#,
            path.display()
        ))
        .unwrap();
    let device = r#""driver": "scsi-hd", "drive": "new", "id": "hot", "bus": "hba0.0", "scsi-id": 5"#;
    monitor.execute(&format!(r#"{{"execute": "device_add", "arguments": {{{device}}}}}"#)).unwrap();
    running.wait_for("disk1: QEMU QEMU HARDDISK, 2048 blocks of 512 bytes").unwrap();
    run_well(&mut running, "blkcheck disk1 0 2048 1");
    monitor.execute(r#"{"execute": "block_resize", "arguments": {"node-name": "new", "size": 2097152}}"#).unwrap();
    running.wait_for("4096 blocks").unwrap();
    run_well(&mut running, "blkcheck disk1 2048 2048 1");
    monitor.execute(r#"{"execute": "device_del", "arguments": {"id": "hot"}}"#).unwrap();
    running.wait_for("disk1: it is gone").unwrap();
    assert_eq!(
        outcome(&mut running, "blkread disk1 0 1").as_deref(),
        Some("there is no disk 'disk1'; 'lsblk' lists them")
    );
    leave(running);
}
