//! Random damage of a module's file, and random input for its driver in ring 1: frames, requests,
//! commands.

use super::Options;
use crate::build::System;
use crate::conform;
use crate::drivers::Driver;
use anyhow::Result;
use fastrand::Rng;
use ringfence_core::evidence::report::Fuzzing;
use ringfence_core::module::Module;

/// The most bytes of a file that are changed at once.
const MOST_CHANGES: usize = 8;
/// Damaged copies for each random input.
const FILES_PER_INPUT: usize = 2;

/// Damages the file `bytes`, and gives the driver random input.
pub fn run(system: &System, options: &Options, driver: &Driver, bytes: &[u8]) -> Result<Fuzzing> {
    let mut random = Rng::with_seed(options.seed);
    let files = options.inputs * FILES_PER_INPUT;
    let taken = (0..files).filter(|_| Module::parse(&damaged(bytes, &mut random)).is_ok()).count();
    let machine = options.machine.clone();
    let (name, device) = (options.name.clone(), options.device.clone());
    let conform = conform::Options { name, device, only: None, ring: Some(1), machine, json: false };
    let faults = conform::give_random(system, &conform, driver, options.inputs, options.seed)?;
    Ok(Fuzzing { files: files as u64, files_taken: taken as u64, inputs: options.inputs as u64, faults })
}

/// Returns a copy of `bytes` with some bytes changed, or its end cut off.
fn damaged(bytes: &[u8], random: &mut Rng) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    if random.u8(..8) == 0 {
        bytes.truncate(random.usize(..bytes.len().max(1)));
    }
    // The headers and tables decide, which are at the ends.
    const HEADERS: usize = 4096;
    for _ in 0..random.usize(1..=MOST_CHANGES) {
        let at = match random.u8(..3) {
            0 => random.usize(..bytes.len().clamp(1, HEADERS)),
            1 => bytes.len().saturating_sub(random.usize(1..HEADERS)),
            _ => random.usize(..bytes.len().max(1)),
        };
        if let Some(byte) = bytes.get_mut(at) {
            *byte = random.u8(..);
        }
    }
    bytes
}
