//! Formats the results as a table for the terminal, and as a self-contained page with charts.

use super::Row;
use crate::page;
use anyhow::Result;
use ringfence_abi::manifest::{DomainKind, SEGMENTED_SUFFIX};
use std::fmt::Write;

/// The loss in percent that was feared in 1997, when this design was first proposed.
pub const FEARED: f64 = 25.0;

fn number(value: f64) -> String {
    if value.abs() >= 100.0 { format!("{value:.0}") } else { format!("{value:.1}") }
}

fn optional(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_string(), |value| value.to_string())
}

/// The rows of one operation in ring 0 and in ring 1.
struct Pair<'a> {
    trusted: &'a Row,
    sandboxed: &'a Row,
    /// The row of the same driver in a segmented domain, if it was measured.
    segmented: Option<&'a Row>,
}

fn is_segmented(row: &Row) -> bool {
    row.kind.as_deref() == Some(DomainKind::Segmented.name())
}

/// Pairs the rows of whole operations.
fn pairs(rows: &[Row]) -> Vec<Pair<'_>> {
    let operations = ["nic/", "icmp/", "scsi/", "fs/", "tcp/", "udp/"];
    let sandboxed = rows.iter().filter(|row| row.ring == Some(1) && !is_segmented(row));
    sandboxed
        .filter(|row| operations.iter().any(|prefix| row.name.starts_with(prefix)))
        .filter_map(|sandboxed| {
            let same =
                |row: &&Row| row.name == sandboxed.name && row.batch == sandboxed.batch && row.unit == sandboxed.unit;
            let trusted = rows.iter().find(|row| row.ring == Some(0) && same(row))?;
            let segmented = rows.iter().find(|row| is_segmented(row) && same(row));
            Some(Pair { trusted, sandboxed, segmented })
        })
        .collect()
}

const PAIR_HEAD: [&str; 8] = ["operation", "batch", "ring 0", "paged", "loss %", "segmented", "loss %", "unit"];
const ROW_HEAD: [&str; 7] = ["name", "ring", "batch", "domains", "median", "p99", "unit"];

fn pair_cells(pair: &Pair) -> [String; 8] {
    let loss = |of: &Row| format!("{:.1}", of.loss(pair.trusted));
    [
        pair.sandboxed.name.clone(),
        optional(pair.sandboxed.batch),
        number(pair.trusted.median),
        number(pair.sandboxed.median),
        loss(pair.sandboxed),
        optional(pair.segmented.map(|row| number(row.median))),
        optional(pair.segmented.map(loss)),
        pair.sandboxed.unit.clone(),
    ]
}

fn row_cells(row: &Row) -> [String; 7] {
    [
        row.name.clone(),
        optional(row.ring.map(|ring| format!("{ring}{}", if is_segmented(row) { SEGMENTED_SUFFIX } else { "" }))),
        optional(row.batch),
        optional(row.domains),
        if row.unit == "ratio" { format!("{:.2}", row.median) } else { number(row.median) },
        optional(row.p99.map(number)),
        row.unit.clone(),
    ]
}

/// Returns the rows that are not shown side by side.
fn singles(rows: &[Row]) -> Vec<&Row> {
    let single = |row: &&Row| {
        ["call/", "upcall", "off/", "fence/", "recovery/", "reload/", "boot/", "ratio/", "loss/", "crossings/"]
            .iter()
            .any(|prefix| row.name.starts_with(prefix))
    };
    rows.iter().filter(single).collect()
}

/// Formats the tables for a terminal of 80 columns.
pub fn text(rows: &[Row]) -> String {
    let mut out = String::new();
    let (pairs, singles) = (pairs(rows), singles(rows));
    if !pairs.is_empty() {
        let widths = [19, 5, 8, 8, 6, 9, 6, 12];
        out += &line(PAIR_HEAD.map(String::from), widths);
        pairs.iter().for_each(|pair| out += &line(pair_cells(pair), widths));
        out.push('\n');
    }
    let widths = [30, 4, 5, 7, 10, 10, 14];
    out += &line(ROW_HEAD.map(String::from), widths);
    singles.into_iter().for_each(|row| out += &line(row_cells(row), widths));
    if !pairs.is_empty() {
        let _ = writeln!(out, "\nThe loss that was feared in 1997: {FEARED} % or more.");
    }
    out
}

/// Formats the comparison with another system: medians, and the ratio in which more is better.
pub fn peer(rows: &[Row]) -> String {
    let of_kind = |kind: DomainKind| peer_of(rows, kind);
    let head = |kind: DomainKind| format!("Ringfence's drivers in {kind} domains:\n");
    let tables = DomainKind::ALL.map(|kind| (head(kind), of_kind(kind)));
    tables
        .into_iter()
        .filter(|(_, table)| table.lines().count() > 1)
        .map(|(head, table)| head + &table + "\n")
        .collect()
}

/// Formats the comparison of Ringfence's drivers in domains of one kind.
fn peer_of(rows: &[Row], kind: DomainKind) -> String {
    let head = ["operation", "batch", "Ringfence", "Linux", "ratio", "from", "to", "unit"];
    let widths = [22, 6, 10, 10, 6, 6, 6, 12];
    let mut out = line(head.map(String::from), widths);
    let rows: Vec<&Row> = rows.iter().filter(|row| row.kind.as_deref().is_none_or(|of| of == kind.name())).collect();
    for ratio in rows.iter().filter(|row| row.kind.is_some()) {
        let Some((prefix, name)) = ratio.name.split_once('/').filter(|(prefix, _)| prefix.starts_with("peer")) else {
            continue;
        };
        let counts = prefix == "peer-instructions";
        let of = |system: &str| {
            let is_it = |row: &&&Row| {
                row.batch == ratio.batch
                    && (row.unit == "instructions") == counts
                    && row.name.strip_prefix(system).and_then(|rest| rest.strip_prefix('/')) == Some(name)
            };
            rows.iter().find(is_it)
        };
        let (Some(ours), Some(theirs)) = (of("ringfence"), of("linux")) else { continue };
        let times = |value: f64| format!("{value:.2}");
        // A count is of one boot.
        let [least, most] = match ratio.range.filter(|_| !counts) {
            Some(range) => range.map(times),
            None => ["", ""].map(String::from),
        };
        let cells = [
            name.to_string(),
            optional(ratio.batch),
            number(ours.median),
            number(theirs.median),
            times(ratio.median),
            least,
            most,
            ours.unit.clone(),
        ];
        out += &line(cells, widths);
    }
    out
}

/// Formats a row of a table: names and units to the left, numbers to the right.
fn line<const N: usize>(cells: [String; N], widths: [usize; N]) -> String {
    let cell = |(index, (cell, width)): (usize, (&String, usize))| match index == 0 || index == N - 1 {
        true => format!("{cell:<width$} "),
        false => format!("{cell:>width$} "),
    };
    let text: String = cells.iter().zip(widths).enumerate().map(cell).collect();
    format!("{}\n", text.trim_end())
}

/// Returns a page with the tables and bar charts; `conditions` describes the measurement.
pub fn html(rows: &[Row], conditions: &str) -> Result<String> {
    let mut page = page::head("Ringfence: what protection costs");
    page += &format!("<p>{conditions}</p>\n");
    page += "<p>The same loaded driver, trusted in ring 0 and sandboxed in ring 1, sample by sample in turn. Times under \
             QEMU's TCG: compare within this page only. Instructions repeat exactly.</p>\n";
    let pairs = pairs(rows);
    for (title, unit) in [("Loss of time in ring 1", "/s"), ("Added instructions in ring 1", "instructions")] {
        let bars: Vec<(String, Vec<f64>)> = pairs
            .iter()
            .filter(|pair| pair.sandboxed.unit.ends_with(unit))
            .map(|pair| {
                let batch = pair.sandboxed.batch.map(|batch| format!(" \u{d7}{batch}")).unwrap_or_default();
                let losses = [Some(pair.sandboxed), pair.segmented].into_iter().flatten();
                (format!("{}{batch}", pair.sandboxed.name), losses.map(|row| row.loss(pair.trusted)).collect())
            })
            .collect();
        if !bars.is_empty() {
            page += &format!("<h2>{title}</h2>\n");
            page += &page::bars(&DomainKind::ALL.map(|kind| format!("{title}, {kind}")), &bars, "%", Some(FEARED))?;
            page += &format!("<p>The red line: {FEARED} %, which was feared in 1997.</p>\n");
        }
    }
    page += "<h2>Operations</h2>\n";
    page += &table(PAIR_HEAD, pairs.iter().map(pair_cells));
    page += "<h2>Crossings and what follows</h2>\n";
    page += &table(ROW_HEAD, singles(rows).into_iter().map(row_cells));
    page += "</html>\n";
    Ok(page)
}

fn table<const N: usize>(head: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let rows = std::iter::once(head.map(String::from)).chain(rows);
    page::table(&rows.map(Vec::from).collect::<Vec<_>>())
}
