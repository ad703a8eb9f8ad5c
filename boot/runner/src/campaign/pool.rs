//! The changes that a campaign tries. Each one follows from the seed and its number, and from the
//! instructions that the work executes.

use super::mutate::{self, Kind, Site};
use crate::drivers::Driver;
use crate::output;
use anyhow::{Context, Result, bail};
use object::{Object, ObjectSegment, SegmentFlags, elf};
use ringfence_abi::layout::IMAGE;
use ringfence_abi::manifest::{self, DomainKind};
use ringfence_core::disassembly::bits;
use ringfence_core::tcg::{self, Hole, MAX_INSTRUCTION};
use std::collections::HashSet;

/// One changed instruction.
pub struct Mutant {
    /// The change's number, from 0.
    pub number: usize,
    /// The name of the module's file.
    pub module: String,
    /// The name of its driver.
    pub driver: String,
    /// The kind of device that the module offers.
    pub offers: manifest::Kind,
    /// The kind of change.
    pub kind: Kind,
    /// The instruction that is changed.
    pub site: Site,
    /// The bytes of the changed instruction.
    pub bytes: Vec<u8>,
    /// The offset of these bytes in the module's file.
    pub file_offset: u64,
}

impl Mutant {
    /// Formats the change as the kernel's `trial` and `poke` take it.
    pub fn patch(&self) -> String {
        let hex: String = self.bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{:x}:{hex}", self.file_offset)
    }
}

/// The instructions of one module that can be changed.
pub struct Pool {
    name: String,
    driver: String,
    offers: manifest::Kind,
    file: Vec<u8>,
    /// The instructions that the work executes, with their offsets in the file, grouped by the
    /// kinds of change that fit them.
    by_kind: Vec<Vec<(Site, u64)>>,
}

impl Pool {
    /// Collects the instructions at `executed` (offsets in the image, ascending) of the module of
    /// `driver`. `file` is the content of the module's file.
    pub fn new(driver: &Driver, file: Vec<u8>, executed: &[u64]) -> Result<Pool> {
        const LONGEST: usize = 15;
        let name = &driver.name;
        let elf = object::File::parse(&*file)?;
        // A segmented module is linked at its place.
        let base = if driver.domain == DomainKind::Segmented { IMAGE } else { 0 };
        let is_code = |segment: &object::Segment| matches!(segment.flags(), SegmentFlags::Elf { p_flags, .. } if p_flags.contains(elf::PF_X));
        let place = |segment: object::Segment| {
            let (at, len) = segment.file_range();
            (segment.address().wrapping_sub(base), len, at)
        };
        let segments: Vec<(u64, u64, u64)> = elf.segments().filter(is_code).map(place).collect();
        let in_file = |offset: u64| {
            let (address, _, at) =
                segments.iter().find(|(address, len, _)| (*address..address + len).contains(&offset))?;
            Some(at + (offset - address))
        };
        let bytes = |offset: u64| {
            let at = in_file(offset).unwrap_or(0) as usize;
            file[at..(at + LONGEST).min(file.len())].to_vec()
        };
        let offsets: Vec<u64> = executed.iter().copied().filter(|offset| in_file(*offset).is_some()).collect();
        if offsets.is_empty() {
            bail!("QEMU does not say what code of {name} it translated: is it built without a disassembler?");
        }
        output::complain(&format!("campaign: {name}: {} instructions executed", offsets.len()));
        let sites: Vec<(Site, u64)> = mutate::sites(bits(driver.domain), bytes, &offsets)
            .into_iter()
            .filter_map(|site| Some((in_file(site.offset)?, site)))
            .map(|(at, site)| (site, at))
            .collect();
        Ok(Pool::of([name, &driver.module], driver.kind, file, sites))
    }

    /// Groups the instructions in `sites` by the kinds of change that fit them.
    fn of([name, driver]: [&str; 2], offers: manifest::Kind, file: Vec<u8>, sites: Vec<(Site, u64)>) -> Pool {
        let has = |site: &Site, kind: Kind| {
            const TRIES: usize = 20;
            let mut random = fastrand::Rng::with_seed(site.offset);
            (0..TRIES).any(|_| mutate::mutate(site, kind, &mut random).is_some())
        };
        let of_kind = |kind| sites.iter().filter(|(site, _)| has(site, kind)).cloned().collect();
        let by_kind = Kind::ALL.into_iter().map(of_kind).collect();
        Pool { name: name.to_string(), driver: driver.to_string(), offers, file, by_kind }
    }
}

/// Returns the first `count` changes that follow from `seed`, all of them different, from all
/// `pools` in turn.
///
/// Each change depends only on the seed and on its own number. If a later run executes one more
/// instruction, nearly all changes stay the same.
pub fn mutants(pools: &[Pool], seed: u64, count: usize) -> Result<Vec<Mutant>> {
    const MOST_TRIES: u64 = 10_000;
    let mut known = HashSet::new();
    let mut mutants = Vec::new();
    for number in 0..count {
        let pool = &pools[number % pools.len()];
        let found = (0..MOST_TRIES).find_map(|attempt| {
            let mut random = fastrand::Rng::with_seed(mixed([seed, number as u64, attempt]));
            // The kind is chosen before the place, because most kinds fit only few instructions.
            let kind = random.usize(..Kind::ALL.len());
            let salt = random.u64(..);
            let (site, file_offset) = pool.by_kind[kind].iter().min_by_key(|(site, _)| mixed([salt, site.offset]))?;
            let bytes = mutate::mutate(site, Kind::ALL[kind], &mut random)?;
            let is_new = !known.contains(&(&pool.name, *file_offset, bytes.clone()));
            // The kernel refuses a module with such a hole.
            (is_new && !makes_a_hole(&pool.file, *file_offset as usize, &bytes)).then_some((
                Kind::ALL[kind],
                site,
                *file_offset,
                bytes,
            ))
        });
        let (kind, site, file_offset, bytes) =
            found.with_context(|| format!("there are no more than some {number} different changes"))?;
        known.insert((&pool.name, file_offset, bytes.clone()));
        mutants.push(Mutant {
            number,
            module: pool.name.clone(),
            driver: pool.driver.clone(),
            offers: pool.offers,
            kind,
            site: site.clone(),
            bytes,
            file_offset,
        });
    }
    Ok(mutants)
}

/// Mixes `words` into one number, all bits of which depend on all words (with the finisher of
/// splitmix64).
fn mixed<const N: usize>(words: [u64; N]) -> u64 {
    words.into_iter().fold(0, |state: u64, word| {
        let state = (state ^ word).wrapping_add(0x9e37_79b9_7f4a_7c15);
        let state = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let state = (state ^ state >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        state ^ state >> 31
    })
}

/// Returns whether `bytes` at offset `at` of a file make a hole that was not there before.
fn makes_a_hole(file: &[u8], at: usize, bytes: &[u8]) -> bool {
    let start = at.saturating_sub(MAX_INSTRUCTION);
    let before = &file[start..(at + bytes.len() + MAX_INSTRUCTION).min(file.len())];
    let mut after = before.to_vec();
    after[at - start..at - start + bytes.len()].copy_from_slice(bytes);
    let old: Vec<(usize, Hole)> = tcg::holes(before).collect();
    tcg::holes(&after).any(|hole| !old.contains(&hole))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Instructions of a made-up module: stores, loads, compares and branches.
    fn pool(skipped: Option<usize>) -> Pool {
        let code: Vec<[u8; 4]> = (0..200u8)
            .map(|number| match number % 4 {
                0 => [0x48, 0x89, 0x43, number],
                1 => [0x48, 0x8b, 0x4e, number],
                2 => [0x48, 0x83, 0xf9, number],
                _ => [0x75, number, 0x90, 0x90],
            })
            .collect();
        let file = code.concat();
        let offsets: Vec<u64> =
            (0..code.len()).filter(|index| Some(*index) != skipped).map(|index| index as u64 * 4).collect();
        let bytes = |offset: u64| file[offset as usize..].to_vec();
        let sites: Vec<(Site, u64)> = mutate::sites(64, bytes, &offsets)
            .into_iter()
            .map(|site| (site.offset, site))
            .map(|(at, site)| (site, at))
            .collect();
        Pool::of(["made-up"; 2], manifest::Kind::Other, file, sites)
    }

    #[test]
    fn one_instruction_less_changes_few_of_the_others() {
        let all: Vec<String> = mutants(&[pool(None)], 7, 500).unwrap().iter().map(Mutant::patch).collect();
        let less: Vec<String> = mutants(&[pool(Some(20))], 7, 500).unwrap().iter().map(Mutant::patch).collect();
        let other: Vec<String> = mutants(&[pool(None)], 8, 500).unwrap().iter().map(Mutant::patch).collect();
        let same = |others: &[String]| all.iter().zip(others).filter(|(one, other)| one == other).count();
        assert!(same(&less) > 480 && same(&other) < 20, "{} and {} of 500", same(&less), same(&other));
        assert_eq!(all.iter().collect::<HashSet<_>>().len(), 500);
    }

    #[test]
    fn there_is_an_end_to_what_can_be_changed() {
        let error = mutants(&[pool(None)], 1, 1_000_000).map(|_| ()).unwrap_err().to_string();
        assert!(error.starts_with("there are no more than some "), "{error}");
    }
}
