//! Self-contained HTML pages with tables and charts: no scripts, no other files.

use anyhow::{Result, anyhow};
use plotters::prelude::*;

/// Returns the beginning of a page, up to its title.
pub fn head(title: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>{0}</title>\n\
         <style>body{{font:16px/1.5 system-ui,sans-serif;max-width:62em;margin:2em auto;padding:0 1em}}\
         table{{border-collapse:collapse;margin:1em 0}}td,th{{padding:.15em .8em;border-bottom:1px solid #ddd;text-align:left}}\
         .number{{text-align:right}}svg{{max-width:100%;height:auto}}</style>\n\
         <h1>{0}</h1>\n",
        escape(title)
    )
}

/// The end of a page.
pub const END: &str = "</html>\n";

/// Returns a table; the first row is its head.
pub fn table(rows: &[Vec<String>]) -> String {
    let cells = |tag: &str, row: &[String]| -> String {
        let is_number = |cell: &str| cell.starts_with(|first: char| first.is_ascii_digit() || first == '-');
        let class = |cell: &str| if is_number(cell) { " class=\"number\"" } else { "" };
        row.iter().map(|cell| format!("<{tag}{}>{}</{tag}>", class(cell), escape(cell))).collect()
    };
    let line = |(index, row): (usize, &Vec<String>)| {
        format!("<tr>{}</tr>\n", cells(if index == 0 { "th" } else { "td" }, row))
    };
    format!("<table>{}</table>\n", rows.iter().enumerate().map(line).collect::<String>())
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Colours of a chart's series.
const COLOURS: [RGBColor; 4] =
    [RGBColor(70, 110, 180), RGBColor(220, 140, 50), RGBColor(150, 180, 220), RGBColor(240, 200, 140)];

/// Draws a chart of horizontal bars that start at zero, one bar per series for each name. `series`
/// has the names of the series, at least one. `line` is drawn in red across all bars.
pub fn bars(series: &[String], bars: &[(String, Vec<f64>)], unit: &str, line: Option<f64>) -> Result<String> {
    const WIDTH: u32 = 900;
    const BAR: u32 = 20;
    let failed = |error: &dyn std::fmt::Display| anyhow!("drawing the chart: {error}");
    let mut svg = String::new();
    {
        let height = 90 + (BAR * series.len() as u32 + 8) * bars.len() as u32;
        let area = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        let values = || bars.iter().flat_map(|(_, values)| values).copied();
        let most = values().fold(line.unwrap_or(1.0) * 1.2, f64::max);
        let least = values().fold(0.0, f64::min);
        let count = bars.len() as f64;
        let mut chart = ChartBuilder::on(&area)
            .margin(8)
            .x_label_area_size(40)
            .y_label_area_size(210)
            .build_cartesian_2d(least..most, 0.0..count)
            .map_err(|error| failed(&error))?;
        chart.configure_mesh().disable_y_mesh().y_labels(0).x_desc(unit).draw().map_err(|error| failed(&error))?;
        let each = 0.8 / series.len() as f64;
        for (number, name) in series.iter().enumerate() {
            let colour = COLOURS[number % COLOURS.len()];
            let bar = |(index, (_, values)): (usize, &(String, Vec<f64>))| {
                let top = count - index as f64 - 0.1 - number as f64 * each;
                let value = values.get(number).copied().unwrap_or(0.0);
                Rectangle::new([(0.0, top), (value, top - each * 0.9)], colour.filled())
            };
            let drawn = chart.draw_series(bars.iter().enumerate().map(bar)).map_err(|error| failed(&error))?;
            if series.len() > 1 {
                drawn.label(name).legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 14, y + 5)], colour.filled()));
            }
        }
        let names = bars.iter().enumerate().map(|(index, (name, values))| {
            let values: Vec<String> = values.iter().map(|value| format!("{value:.1}")).collect();
            let text = format!("{name}  {}", values.join(" | "));
            let place = count - index as f64 - 0.5;
            EmptyElement::at((least, place)) + Text::new(text, (-200, -7), ("sans-serif", 13))
        });
        chart.draw_series(names).map_err(|error| failed(&error))?;
        if let Some(line) = line {
            let path = PathElement::new(vec![(line, 0.0), (line, count)], RED.stroke_width(2));
            chart.draw_series([path]).map_err(|error| failed(&error))?;
        }
        if series.len() > 1 {
            let mut labels = chart.configure_series_labels();
            labels.position(SeriesLabelPosition::LowerRight).border_style(BLACK).background_style(WHITE);
            labels.label_font(("sans-serif", 13)).draw().map_err(|error| failed(&error))?;
        }
        area.present().map_err(|error| failed(&error))?;
    }
    Ok(svg)
}
