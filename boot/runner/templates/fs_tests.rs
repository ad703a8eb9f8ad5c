//! Tests on the host, without a disk.

use super::TYPE;
use ringfence_sdk::fs::{Filesystem, FsError, How};

const EXISTING: How = How { create: false, truncate: false };

#[test]
fn its_file_is_read() {
    let mut filesystem = TYPE { first: vec![7; 512] };
    let (mut node, stat) = filesystem.open("/first", EXISTING).unwrap();
    let mut bytes = [0; 100];
    assert_eq!((stat.len_bytes, filesystem.read(&mut node, 480, &mut bytes)), (512, Ok(32)));
    assert_eq!((bytes[31], bytes[32]), (7, 0));
    assert_eq!(filesystem.stat("/other"), Err(FsError::NotFound));
    assert_eq!(filesystem.open("/first", How { create: false, truncate: true }).err(), Some(FsError::ReadOnly));
}
