//! Broken drivers, made from good ones by changing one instruction at a time: whatever becomes of them in ring 1, the
//! kernel is as it was and the service comes back. `cargo run -- campaign` does more of the same.

use ringfence::campaign::report::KERNEL_DEATH;
use ringfence::campaign::{self, Options, Outcome};
use ringfence_tests::system;

fn outcomes(mutants: usize, ring: u8) -> Vec<Outcome> {
    let modules = ["e1000", "virtio-scsi"].map(String::from).to_vec();
    let options = Options { modules, mutants, seed: 1997, skip: 0, ring, out: None, json: true };
    campaign::outcomes(system(), &options).unwrap()
}

#[test]
fn three_hundred_broken_drivers_hurt_nobody() {
    let outcomes = outcomes(300, 1);
    let bad: Vec<&Outcome> = outcomes.iter().filter(|outcome| !outcome.is_good()).collect();
    assert!(bad.is_empty(), "{bad:#?}");
    // They were put to work: most kinds of outcome are there.
    for outcome in ["masked", "wrong result", "page fault", "driver panic", "gate refusal"] {
        assert!(outcomes.iter().any(|other| other.outcome == outcome), "there is no '{outcome}'");
    }
}

/// The control group: the same in ring 0 ends kernels, and the campaign notices that.
#[test]
fn in_ring_0_they_hurt_the_kernel() {
    let outcomes = outcomes(40, 0);
    assert!(outcomes.iter().any(|outcome| outcome.outcome == KERNEL_DEATH && !outcome.kernel_intact));
}
