//! The results of a campaign: a table for the terminal, and a page with a chart.

use super::{Options, Outcome};
use crate::{output, page};
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;

/// The outcome of a change that ended the kernel.
pub const KERNEL_DEATH: &str = "kernel death";

/// The outcomes of changes that ended no driver: the instruction was not executed, the work was
/// right, or it was not.
pub const NOT_ACTIVATED: &str = "not activated";
/// See [`NOT_ACTIVATED`].
pub const MASKED: &str = "masked";
/// See [`NOT_ACTIVATED`].
pub const WRONG_RESULT: &str = "wrong result";

/// All outcomes, from harmless to worst.
pub const OUTCOMES: [&str; 17] = [
    NOT_ACTIVATED,
    MASKED,
    WRONG_RESULT,
    "page fault",
    "#GP",
    "#UD",
    "other exception",
    "gate refusal",
    "init failed",
    "gate fault",
    "DMA fault",
    "watchdog",
    "driver panic",
    "device stuck",
    "killed",
    "unknown",
    KERNEL_DEATH,
];

/// Returns the outcome's name, from the kernel's description of a trial.
pub fn outcome(activated: bool, kind: &str) -> &'static str {
    match kind {
        "fine" if !activated => NOT_ACTIVATED,
        "fine" => MASKED,
        "wrong" => WRONG_RESULT,
        "page-fault" => "page fault",
        "general-protection" => "#GP",
        "invalid-opcode" => "#UD",
        "exception" => "other exception",
        "refused" => "gate refusal",
        "init-failed" => "init failed",
        "gate-fault" => "gate fault",
        "DMA-fault" => "DMA fault",
        "overrun" => "watchdog",
        "panic" => "driver panic",
        "stuck" => "device stuck",
        "killed" => "killed",
        _ => "unknown",
    }
}

/// The outcomes of this run, stored as they come, and the outcomes of an earlier run in the other
/// ring from the same folder.
pub struct Results {
    own: Option<(File, PathBuf)>,
    /// The outcomes of both rings; the outcomes of the other ring come first.
    all: Vec<Outcome>,
    others: usize,
}

impl Results {
    /// Makes the folder, if one was asked for, and reads the outcomes of the other ring if there
    /// are any.
    pub fn open(options: &Options) -> Result<Results> {
        let mut results = Results { own: None, all: Vec::new(), others: 0 };
        let Some(out) = &options.out else { return Ok(results) };
        std::fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
        let path = |ring: u8| out.join(format!("campaign-ring{ring}.json"));
        let other = path(1 - options.ring);
        if let Ok(text) = std::fs::read_to_string(&other) {
            for line in text.lines() {
                let outcome = serde_json::from_str(line)
                    .with_context(|| format!("{} is damaged, or of another version: remove it", other.display()))?;
                results.all.push(outcome);
            }
        }
        results.others = results.all.len();
        let own = path(options.ring);
        let file = File::create(&own).with_context(|| format!("cannot write {}", own.display()))?;
        results.own = Some((file, own));
        Ok(results)
    }

    /// Stores an outcome of this run.
    pub fn add(&mut self, outcome: &Outcome) -> Result<()> {
        if let Some((file, path)) = &mut self.own {
            let line = serde_json::to_string(outcome)?;
            writeln!(file, "{line}").with_context(|| format!("cannot write {}", path.display()))?;
        }
        self.all.push(outcome.clone());
        Ok(())
    }

    /// Returns the outcomes of this run.
    pub fn own(&self) -> &[Outcome] {
        self.all.get(self.others..).unwrap_or_default()
    }

    /// Returns the outcomes of both rings.
    pub fn all(&self) -> &[Outcome] {
        &self.all
    }

    /// Writes the page, if a folder was asked for.
    pub fn write_page(&self, options: &Options) -> Result<()> {
        let Some(out) = &options.out else { return Ok(()) };
        let page = out.join("campaign.html");
        std::fs::write(&page, html(&self.all, options)?).with_context(|| format!("cannot write {}", page.display()))?;
        output::complain(&format!("campaign: {}", page.display()));
        Ok(())
    }
}

/// Returns the command line of this run.
fn command_line(options: &Options) -> String {
    let Options { modules, mutants, seed, ring, .. } = options;
    format!("cargo run -- campaign --modules {} --mutants {mutants} --seed {seed} --ring {ring}", modules.join(","))
}

/// A column of the table: all changes of one module in one ring.
struct Column<'a> {
    head: String,
    outcomes: Vec<&'a Outcome>,
}

impl Column<'_> {
    fn count(&self, outcome: &str) -> usize {
        self.outcomes.iter().filter(|other| other.outcome == outcome).count()
    }

    fn intact(&self) -> usize {
        self.outcomes.iter().filter(|outcome| outcome.kernel_intact).count()
    }

    fn restored(&self) -> usize {
        self.outcomes.iter().filter(|outcome| outcome.restored).count()
    }

    fn host_stopped(&self) -> usize {
        self.outcomes.iter().filter(|outcome| outcome.host_stopped).count()
    }

    fn stray(&self) -> usize {
        self.outcomes.iter().filter(|outcome| outcome.stray > 0).count()
    }

    /// Counts the changes after which the host's tools found a filesystem damaged.
    fn damaged(&self) -> usize {
        self.outcomes.iter().filter(|outcome| !outcome.damage.is_empty()).count()
    }

    /// Counts the changes after which the machine fell silent once.
    fn silent(&self) -> usize {
        self.outcomes.iter().filter(|outcome| outcome.fell_silent).count()
    }

    /// Returns the times from a fault until the good module had served, in microseconds, ascending.
    fn restore_us(&self) -> Vec<u64> {
        let restored = self.outcomes.iter().filter(|outcome| outcome.restored);
        let mut times: Vec<u64> = restored.filter_map(|outcome| outcome.restore_us).collect();
        times.sort_unstable();
        times
    }
}

fn columns(outcomes: &[Outcome]) -> Vec<Column<'_>> {
    let mut columns: BTreeMap<(u8, &str), Vec<&Outcome>> = BTreeMap::new();
    for outcome in outcomes {
        columns.entry((1 - outcome.ring, &outcome.module)).or_default().push(outcome);
    }
    let column = |((inverse, module), outcomes): ((u8, &str), Vec<_>)| Column {
        head: format!("{module}/{}", 1 - inverse),
        outcomes,
    };
    columns.into_iter().map(column).collect()
}

/// Returns the rows of the table: a name, and a cell for each column.
fn rows(columns: &[Column]) -> Vec<(String, Vec<String>)> {
    let mut rows = Vec::new();
    let mut row = |name: &str, cell: &dyn Fn(&Column) -> String| {
        rows.push((name.to_string(), columns.iter().map(cell).collect::<Vec<_>>()));
    };
    row("changes", &|column| column.outcomes.len().to_string());
    for outcome in OUTCOMES {
        if columns.iter().any(|column| column.count(outcome) > 0) || outcome == KERNEL_DEATH {
            row(outcome, &|column| column.count(outcome).to_string());
        }
    }
    row("kernel intact", &|column| percent(column.intact(), column.outcomes.len()));
    // In ring 1 the device wrote there, as its driver told it: the driver itself cannot.
    row("wrote to free memory", &|column| column.stray().to_string());
    row("QEMU network stopped", &|column| column.host_stopped().to_string());
    if columns.iter().any(|column| column.damaged() > 0) {
        row("filesystem damaged", &|column| column.damaged().to_string());
    }
    row("service restored", &|column| percent(column.restored(), column.outcomes.len()));
    if columns.iter().any(|column| column.silent() > 0) {
        row("silent at first", &|column| column.silent().to_string());
    }
    let us = |time: Option<&u64>| time.map_or("-".to_string(), u64::to_string);
    row("fault to served, us", &|column| us(column.restore_us().get(column.restore_us().len() / 2)));
    row("  longest of 99 %", &|column| us(column.restore_us().get(column.restore_us().len() * 99 / 100)));
    rows
}

fn percent(count: usize, of: usize) -> String {
    format!("{:.2} %", 100.0 * count as f64 / of.max(1) as f64)
}

/// Returns the table for a terminal of 80 columns, and every change that harmed more than its
/// driver.
pub fn text(outcomes: &[Outcome], options: &Options) -> String {
    let columns = columns(outcomes);
    // Writing to a String does not fail.
    let mut out = format!("{:<22}", "module/ring");
    for column in &columns {
        let _ = write!(out, "{:>14}", column.head);
    }
    for (name, cells) in rows(&columns) {
        let _ = write!(out, "\n{name:<22}");
        for cell in cells {
            let _ = write!(out, "{cell:>14}");
        }
    }
    out.push('\n');
    for outcome in outcomes.iter().filter(|outcome| outcome.ring == 1 && !outcome.is_good()) {
        let Outcome { number, module, offset, change, before, after, outcome, why, command, .. } = outcome;
        let _ = writeln!(
            out,
            "\n#{number}, {module} at {offset:#x}: {change}: {before} -> {after}\n    {outcome}: {why}\n    again: {} --only \
             {number}\n    in the shell: {command}",
            command_line(options)
        );
    }
    out
}

/// Returns the page with the chart and the tables.
fn html(outcomes: &[Outcome], options: &Options) -> Result<String> {
    let columns = columns(outcomes);
    let mut out = page::head("Ringfence: what becomes of broken drivers");
    out += "<p>Each change is one instruction of a driver, as programmers or memory get it wrong. Each changed driver was put to \
            work in the place of the good one; then the good one took its place again. Of each driver, the share of outcomes in \
            percent:</p>\n";
    let _ = writeln!(out, "<p>Made by <code>{}</code>.</p>", command_line(options));
    let bars: Vec<(String, Vec<f64>)> = OUTCOMES
        .iter()
        .filter(|outcome| columns.iter().any(|column| column.count(outcome) > 0))
        .map(|outcome| {
            let share = |column: &Column| 100.0 * column.count(outcome) as f64 / column.outcomes.len() as f64;
            (outcome.to_string(), columns.iter().map(share).collect())
        })
        .collect();
    let heads: Vec<String> = columns.iter().map(|column| column.head.clone()).collect();
    out += &page::bars(&heads, &bars, "% of changes", None)?;
    let mut cells = vec![std::iter::once("outcome".to_string()).chain(heads).collect::<Vec<_>>()];
    cells.extend(rows(&columns).into_iter().map(|(name, row)| std::iter::once(name).chain(row).collect()));
    out += &page::table(&cells);
    out += "<h2>By kind of change</h2>\n";
    let mut kinds: BTreeMap<(&str, u8), (usize, usize, usize)> = BTreeMap::new();
    for outcome in outcomes {
        let entry = kinds.entry((&outcome.change, outcome.ring)).or_default();
        entry.0 += 1;
        entry.1 += usize::from(![NOT_ACTIVATED, MASKED].contains(&outcome.outcome.as_str()));
        entry.2 += usize::from(outcome.outcome == KERNEL_DEATH);
    }
    let mut cells = vec![["change", "ring", "changes", "with an effect", "kernel deaths"].map(String::from).to_vec()];
    for ((change, ring), (count, effects, deaths)) in kinds {
        cells.push(vec![change.into(), ring.to_string(), count.to_string(), effects.to_string(), deaths.to_string()]);
    }
    out += &page::table(&cells);
    out += page::END;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_fault_has_an_outcome() {
        let kinds = [
            "fine",
            "wrong",
            "page-fault",
            "general-protection",
            "invalid-opcode",
            "exception",
            "refused",
            "init-failed",
            "gate-fault",
            "DMA-fault",
            "overrun",
            "panic",
            "stuck",
            "killed",
        ];
        for kind in kinds {
            assert!(OUTCOMES.contains(&outcome(true, kind)) && outcome(true, kind) != "unknown", "{kind}");
        }
        assert_eq!(outcome(false, "fine"), "not activated");
    }
}
