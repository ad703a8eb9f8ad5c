//! Tests that boot the whole system in QEMU.

mod bench;
mod boot;
mod gates;
mod lies;
mod modules;
mod network;
mod report;
mod restart;
mod sandbox;
mod scsi;
mod trace;
mod turns;
