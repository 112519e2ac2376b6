//! Charts as inline SVG.
//!
//! **Invariant:** what is drawn is well-formed whatever the values: those that are not finite are left out.

use std::fmt::Write;

use super::page::escaped;

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 240.0;
/// Room for the axes: left, right, top, bottom.
const LEFT: f64 = 58.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 38.0;
/// Chosen: as many as can be told apart. Later series begin again with the first.
const COLORS: [&str; 3] = ["#2563eb", "#d97706", "#059669"];

/// A chart with lines.
#[derive(Clone, Debug)]
pub(super) struct Chart {
    pub(super) title: &'static str,
    pub(super) x: &'static str,
    pub(super) y: &'static str,
    pub(super) scale: Scale,
    pub(super) series: Vec<Series>,
}

/// How values become heights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scale {
    /// From 0 on.
    Linear,
    /// By their logarithm: for values whose tail is a hundred times their middle.
    Logarithmic,
}

#[derive(Clone, Debug)]
pub(super) struct Series {
    pub(super) name: &'static str,
    pub(super) points: Vec<(f64, f64)>,
}

/// Where values lie on an axis.
#[derive(Clone, Copy, Debug)]
struct Axis {
    low: f64,
    high: f64,
    scale: Scale,
}

impl Axis {
    fn of(values: impl Iterator<Item = f64>, scale: Scale) -> Option<Self> {
        let values: Vec<f64> = values.collect();
        let high = values.iter().copied().reduce(f64::max)?;
        let low = values.iter().copied().reduce(f64::min)?;
        Some(match scale {
            Scale::Linear => Self { low: 0.0, high: if high > 0.0 { high * 1.05 } else { 1.0 }, scale },
            // Whole decades.
            Scale::Logarithmic => {
                let (low, high) = (low.log10().floor(), high.log10().ceil());
                Self { low, high: high.max(low + 1.0), scale }
            }
        })
    }

    /// From 0 to 1.
    fn place(self, value: f64) -> f64 {
        let value = if self.scale == Scale::Logarithmic { value.log10() } else { value };
        ((value - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
    }

    /// Values with a line of their own: steps of 1, 2 or 5 times a power of ten, or whole decades.
    fn ticks(self) -> Vec<f64> {
        if self.scale == Scale::Logarithmic {
            return (self.low as i32..=self.high as i32).map(|power| 10_f64.powi(power)).collect();
        }
        let rough = (self.high - self.low) / 5.0;
        let power = 10_f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|by| by * power).find(|step| *step >= rough);
        let step = step.unwrap_or(rough);
        (0..=(self.high / step) as u32).map(|count| f64::from(count) * step).collect()
    }
}

impl Chart {
    /// The chart, or a line that says that there is nothing to be drawn.
    pub(super) fn svg(&self) -> String {
        let fits = |(x, y): &&(f64, f64)| {
            x.is_finite() && y.is_finite() && (self.scale == Scale::Linear || *y > 0.0)
        };
        let drawn = || self.series.iter().flat_map(|series| series.points.iter().filter(fits));
        let (x, y) = (
            Axis::of(drawn().map(|(x, _)| *x), Scale::Linear),
            Axis::of(drawn().map(|(_, y)| *y), self.scale),
        );
        let Some((x, y)) = x.zip(y) else {
            return format!("<figure><h2>{}</h2><p>no values</p></figure>", escaped(self.title));
        };
        let mut svg = String::new();
        // Writing into a string does not fail.
        let _ = self.frame(&mut svg, x, y);
        for (place, series) in self.series.iter().enumerate() {
            let points = series.points.iter().filter(fits);
            let points = points.map(|(a, b)| format!("{:.1},{:.1}", across(x.place(*a)), up(y.place(*b))));
            let points = points.collect::<Vec<_>>().join(" ");
            let color = COLORS[place % COLORS.len()];
            let _ = write!(
                svg,
                "<polyline points=\"{points}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"1.6\"/>"
            );
        }
        let legend: String = self
            .series
            .iter()
            .enumerate()
            .map(|(place, series)| {
                let color = COLORS[place % COLORS.len()];
                format!("<span><i style=\"background:{color}\"></i>{}</span>", escaped(series.name))
            })
            .collect();
        let title = escaped(self.title);
        format!(
            "<figure><h2>{title}</h2><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{title}\">{svg}</svg>\
             <figcaption>{legend}</figcaption></figure>"
        )
    }

    fn frame(&self, svg: &mut String, x: Axis, y: Axis) -> std::fmt::Result {
        let (left, right, bottom) = (across(0.0), across(1.0), up(0.0));
        for tick in y.ticks() {
            let at = up(y.place(tick));
            write!(svg, "<line class=\"grid\" x1=\"{left}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>")?;
            let (text_x, text_y) = (left - 6.0, at + 4.0);
            write!(
                svg,
                "<text x=\"{text_x}\" y=\"{text_y:.1}\" text-anchor=\"end\">{}</text>",
                number(tick)
            )?;
        }
        for tick in x.ticks() {
            let (at, below) = (across(x.place(tick)), bottom + 15.0);
            write!(svg, "<text x=\"{at:.1}\" y=\"{below}\" text-anchor=\"middle\">{}</text>", number(tick))?;
        }
        let label_y = HEIGHT - 4.0;
        write!(svg, "<text x=\"{right}\" y=\"{label_y}\" text-anchor=\"end\">{}</text>", escaped(self.x))?;
        write!(svg, "<text x=\"4\" y=\"{label_y}\">{}</text>", escaped(self.y))
    }
}

fn across(share: f64) -> f64 {
    LEFT + share * (WIDTH - LEFT - RIGHT)
}

fn up(share: f64) -> f64 {
    HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)
}

/// Short: no more digits than tell ticks apart.
fn number(value: f64) -> String {
    match value {
        v if v >= 1e6 => format!("{:.1}M", v / 1e6),
        v if v >= 1e4 => format!("{:.0}k", v / 1e3),
        v if v >= 10.0 || v == 0.0 => format!("{v:.0}"),
        v => format!("{v:.3}").trim_end_matches('0').trim_end_matches('.').to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(scale: Scale, points: &[(f64, f64)]) -> String {
        let series = vec![Series { name: "a < b", points: points.to_vec() }];
        Chart { title: "t", x: "s", y: "ms", scale, series }.svg()
    }

    #[test]
    fn values_that_cannot_be_drawn_are_left_out() {
        let svg = chart(Scale::Logarithmic, &[(0.0, 0.0), (1.0, f64::NAN), (2.0, 5.0), (3.0, 50.0)]);
        let line = svg.split("points=\"").nth(1).and_then(|rest| rest.split('"').next());
        assert_eq!(line.map(|points| points.split(' ').count()), Some(2), "{svg}");
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        assert!(svg.contains("a &lt; b"));
        assert!(chart(Scale::Linear, &[]).contains("no values"));
    }

    #[test]
    fn ticks_are_round_numbers() {
        let axis = |high, scale| Axis::of([1.0, high].into_iter(), scale).expect("there are values").ticks();
        assert_eq!(axis(9.0, Scale::Linear), [0.0, 2.0, 4.0, 6.0, 8.0]);
        assert_eq!(axis(900.0, Scale::Logarithmic), [1.0, 10.0, 100.0, 1000.0]);
        assert_eq!(
            ["0", "0.5", "2", "20", "30k", "1.5M"],
            [0.0, 0.5, 2.0, 20.0, 3e4, 1.5e6].map(number).each_ref().map(String::as_str)
        );
    }
}
