//! The cost of the fence around devices when memory is given to a device and taken away again.
//! Using the memory costs nothing.

use super::{Row, Stopwatch};
use alloc::string::{String, ToString};
use host::domain::hardware::{State, Which};
use hw::iommu::Fence;
use hw::memory::frames::Lent;
use hw::{iommu, pci};
use ringfence_abi::layout::{DMA, PAGE_SIZE};

/// The number of samples of each row.
const SAMPLES: usize = 200;
/// The numbers of pages in a batch.
const BATCHES: [u64; 2] = [1, 32];

/// Maps and unmaps pages for a device without a driver.
pub fn run(unit: &'static str, print: &mut impl FnMut(&Row)) -> Result<(), String> {
    if !iommu::is_on() {
        return Err("the machine has no IOMMU".to_string());
    }
    let is_free = |function: &&'static pci::Function| function.is_device && Which::Pci(function).state() == State::Free;
    let fence_of_one = || pci::functions().iter().filter(is_free).find_map(|function| Fence::new(function).ok());
    let mut fence = fence_of_one().ok_or("there is no device that nobody drives")?;
    let names = ["fence/map", "fence/unmap", "fence/invalidate"];
    let result = BATCHES.into_iter().try_for_each(|pages| {
        let mut rows = names.map(|name| Row::new(name, unit).batch(pages as usize));
        let len_bytes = pages * PAGE_SIZE;
        let memory = Lent::new(pages as usize).map_err(|error| error.to_string())?;
        for number in 0..=SAMPLES {
            let watch = Stopwatch::start();
            fence.map(DMA, &memory, true).map_err(|error| error.to_string())?;
            let mapped = watch.stop(1).ticks;
            let watch = Stopwatch::start();
            if !fence.unmap(DMA, len_bytes) {
                return Err("the IOMMU does not do as it is told".to_string());
            }
            let unmapped = watch.stop(1).ticks;
            let watch = Stopwatch::start();
            if !fence.flush() {
                return Err("the IOMMU does not do as it is told".to_string());
            }
            let invalidated = watch.stop(1).ticks;
            // Discard the first sample, in which tables are allocated.
            if number > 0 {
                rows.iter_mut()
                    .zip([mapped, unmapped, invalidated])
                    .for_each(|(row, ticks)| row.samples.push(ticks as f64));
            }
        }
        rows.iter().for_each(&mut *print);
        Ok(())
    });
    if !fence.remove() {
        return Err("the IOMMU does not do as it is told".to_string());
    }
    result?;
    let mut attach = Row::new("fence/attach", unit);
    for _ in 0..SAMPLES {
        let watch = Stopwatch::start();
        let fence = fence_of_one().ok_or("there is no device that nobody drives")?;
        if !fence.remove() {
            return Err("the IOMMU does not do as it is told".to_string());
        }
        attach.samples.push(watch.stop(1).ticks as f64);
    }
    print(&attach);
    Ok(())
}
