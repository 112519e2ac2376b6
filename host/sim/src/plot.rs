//! Pictures of simulations: one SVG with four panels, a line for each chain.

use std::fmt::Write as _;

use crate::series::Bin;

const WIDTH: f64 = 1100.0;
const PANEL: f64 = 190.0;
const LEFT: f64 = 80.0;
const RIGHT: f64 = 20.0;
const HEAD: f64 = 60.0;
/// Told apart by those who see colours differently, too. Source: M. Okabe, K. Ito, Color universal design, 2008.
const COLOURS: [&str; 8] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c8c00"];

/// A panel: its title, and what of a stretch it shows.
type Panel = (&'static str, fn(&Bin) -> f64);

const PANELS: [Panel; 4] = [
    ("time to first token, ms, 99 in a hundred are below", |bin| bin.ttft_ms_p99),
    ("time between tokens, ms, mean", |bin| bin.itl_ms),
    ("prompt tokens found in a cache, %", |bin| bin.reuse * 100.0),
    ("requests in the fleet, mean", |bin| bin.in_flight),
];

/// The picture. `chains`: names, and what happened.
pub fn plot(title: &str, chains: &[(&str, Vec<Bin>)]) -> String {
    let height = HEAD + PANELS.len() as f64 * PANEL + 20.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"22\" font-size=\"16\">{}</text>\n",
        escaped(title)
    );
    legend(&mut svg, chains);
    for (at, panel) in PANELS.iter().enumerate() {
        draw_panel(&mut svg, HEAD + at as f64 * PANEL, panel, chains);
    }
    svg.push_str("</svg>\n");
    svg
}

fn legend(svg: &mut String, chains: &[(&str, Vec<Bin>)]) {
    let mut x = LEFT;
    for ((name, _), colour) in chains.iter().zip(COLOURS.iter().cycle()) {
        let _ = writeln!(
            svg,
            "<rect x=\"{x}\" y=\"34\" width=\"14\" height=\"4\" fill=\"{colour}\"/>\
             <text x=\"{}\" y=\"41\">{}</text>",
            x + 20.0,
            escaped(name)
        );
        x += 36.0 + 7.5 * name.len() as f64;
    }
}

fn draw_panel(svg: &mut String, top: f64, (title, value): &Panel, chains: &[(&str, Vec<Bin>)]) {
    let (height, width) = (PANEL - 50.0, WIDTH - LEFT - RIGHT);
    let bins = || chains.iter().flat_map(|(_, bins)| bins);
    let highest = bins().map(value).fold(0.0, f64::max);
    let end_s = bins().map(|bin| bin.at_s).fold(0.0, f64::max).max(1e-9);
    let scale = nice(highest);
    let (base, right) = (top + 20.0 + height, LEFT + width);
    let _ = writeln!(svg, "<text x=\"{LEFT}\" y=\"{}\">{title}</text>", top + 12.0);
    for line in 0..=4 {
        let share = f64::from(line) / 4.0;
        let y = base - share * height;
        let _ = writeln!(
            svg,
            "<line x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{right}\" y2=\"{y:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 6.0,
            y + 4.0,
            number(scale * share)
        );
        let x = LEFT + share * width;
        let _ = writeln!(
            svg,
            "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{} s</text>",
            base + 16.0,
            number(end_s * share)
        );
    }
    for ((_, bins), colour) in chains.iter().zip(COLOURS.iter().cycle()) {
        let mut points = String::new();
        for bin in bins.iter().filter(|bin| bin.arrivals > 0 || bin.in_flight > 0.0) {
            let (x, y) = (LEFT + bin.at_s / end_s * width, base - value(bin) / scale * height);
            let _ = write!(points, "{x:.1},{y:.1} ");
        }
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.3\"/>",
            points.trim_end()
        );
    }
}

/// The next number of the form 1, 2 or 5 times a power of ten.
fn nice(highest: f64) -> f64 {
    if highest <= 0.0 {
        return 1.0;
    }
    let power = 10f64.powf(highest.log10().floor());
    [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|step| step * power)
        .find(|nice| *nice >= highest)
        .unwrap_or(highest)
}

fn number(value: f64) -> String {
    if value == 0.0 || value >= 100.0 {
        format!("{value:.0}")
    } else if value >= 1.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.3}")
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
