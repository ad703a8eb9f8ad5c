//! Tests that boot the whole system in QEMU.

mod bench;
mod block;
mod boot;
mod changed;
mod devices;
mod fence;
mod gates;
mod hotplug;
mod lies;
mod link;
mod modules;
mod monitor;
mod network;
mod peer;
mod policy;
mod repeat;
mod report;
mod reset;
mod restart;
mod sandbox;
mod screen;
mod scsi;
mod shell;
mod trace;
mod trial;
mod turns;
