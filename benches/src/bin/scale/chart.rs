//! A chart of lines: equal steps to the right, values upwards.

use std::path::Path;

use plotters::prelude::*;
use sandbox_benches::resident::Failure;

use crate::{Point, Series, Shown};

const WIDTH: i32 = 760;
const HEIGHT: i32 = 400;
const COLOURS: [RGBColor; 5] = [
    RGBColor(120, 120, 120),
    RGBColor(38, 110, 190),
    RGBColor(200, 130, 50),
    RGBColor(60, 150, 80),
    RGBColor(170, 70, 130),
];

fn value(shown: Shown, point: &Point) -> Option<f64> {
    match shown {
        Shown::Ratio => point.ratio,
        Shown::Rate => point.rate,
        Shown::P99 => point.p99_us,
        Shown::Max => point.max_us,
    }
}

const fn unit(shown: Shown) -> &'static str {
    match shown {
        Shown::Ratio => "times posix_spawn",
        Shown::Rate => "runs per second",
        Shown::P99 => "99th percentile, us",
        Shown::Max => "the last one, us",
    }
}

/// Where the sizes of all lines lie, in order.
fn steps(series: &Series) -> Vec<u64> {
    let mut steps: Vec<u64> = series.lines.iter().flat_map(|line| line.points.iter().map(|point| point.x)).collect();
    steps.sort_unstable();
    steps.dedup();
    steps
}

pub(crate) fn draw(series: &Series, path: &Path) -> Result<(), Failure> {
    let steps = steps(series);
    let points = series.lines.iter().flat_map(|line| &line.points);
    let most = points.filter_map(|point| value(series.shown, point)).fold(0.0, f64::max);
    let root = SVGBackend::new(path, (WIDTH.unsigned_abs(), HEIGHT.unsigned_abs())).into_drawing_area();
    root.fill(&WHITE)?;
    let text = |words: String, at: (i32, i32), size: i32| root.draw(&Text::new(words, at, ("sans-serif", size)));
    text(series.title.to_owned(), (10, 10), 18)?;
    text(unit(series.shown).to_owned(), (10, 38), 13)?;
    let (left, right, top, bottom) = (80, WIDTH - 150, 65, HEIGHT - 55);
    let across = |x: u64| {
        let at = steps.iter().position(|step| *step == x).unwrap_or(0);
        let share = (at as f64 + 0.5) / steps.len().max(1) as f64;
        left + pixels(share * f64::from(right - left))
    };
    let up = |value: f64| bottom - pixels(value / most.max(f64::MIN_POSITIVE) * f64::from(bottom - top));
    let places = if most < 20.0 { 1 } else { 0 };
    for quarter in 0..=4 {
        let height = most * f64::from(quarter) / 4.0;
        let y = up(height);
        root.draw(&PathElement::new([(left, y), (right, y)], RGBColor(220, 220, 220)))?;
        text(format!("{height:.places$}"), (10, y - 7), 13)?;
    }
    for &step in &steps {
        text(step.to_string(), (across(step) - 10, bottom + 8), 13)?;
    }
    text(series.x.to_owned(), (right - 60, bottom + 28), 13)?;
    for (line, colour) in series.lines.iter().zip(COLOURS.iter().cycle()) {
        let path: Vec<(i32, i32)> =
            line.points.iter().filter_map(|point| Some((across(point.x), up(value(series.shown, point)?)))).collect();
        for spot in &path {
            root.draw(&Circle::new(*spot, 3, colour.filled()))?;
        }
        root.draw(&PathElement::new(path, colour.stroke_width(2)))?;
    }
    for (row, (line, colour)) in (0..).zip(series.lines.iter().zip(COLOURS.iter().cycle())) {
        let y = top + row * 20;
        root.draw(&Rectangle::new([(right + 12, y), (right + 24, y + 12)], colour.filled()))?;
        text(line.name.clone(), (right + 30, y), 13)?;
    }
    root.present()?;
    Ok(())
}

#[allow(clippy::cast_possible_truncation, reason = "a length on a small drawing")]
fn pixels(length: f64) -> i32 {
    length.clamp(0.0, 10_000.0) as i32
}
