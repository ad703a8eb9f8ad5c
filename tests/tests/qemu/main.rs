//! Tests that boot the whole system in QEMU. They take long, so all are in one program, which
//! decides how many run at the same time.

mod bench;
mod block;
mod boot;
mod campaign;
mod changed;
mod checkout;
mod conform;
mod devices;
mod fence;
mod gates;
mod hotplug;
mod lies;
mod link;
mod modules;
mod network;
mod peer;
mod policy;
mod push;
mod record;
mod repeat;
mod report;
mod reset;
mod restart;
mod runner;
mod sandbox;
mod screen;
mod scsi;
mod shell;
mod snippets;
mod soak;
mod top;
mod trace;
mod trial;
mod turns;
mod walk;
