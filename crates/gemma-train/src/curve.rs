//! The loss over the steps of a training, drawn.

use std::fmt::Write;

use crate::metric::Metric;

/// Width and height of the image, and the room around the drawing, in pixels.
const SIZE: (f64, f64) = (720.0, 360.0);
const MARGIN: f64 = 48.0;
/// The most points of a line; more steps are averaged.
const POINTS: usize = 400;

/// Steps and losses of a line.
type Line = Vec<(f64, f64)>;

/// An SVG with the loss of the steps and of the evaluations.
pub(crate) fn svg(metrics: &[Metric]) -> String {
    let steps = losses(metrics);
    let evaluations: Line = metrics
        .iter()
        .filter_map(|metric| match metric {
            Metric::Evaluation { after, eval_loss, .. } => Some((*after as f64, *eval_loss)),
            Metric::Step { .. } => None,
        })
        .collect();
    let steps = averaged(&steps, POINTS);
    let all = || steps.iter().chain(&evaluations).filter(|(_, loss)| loss.is_finite());
    let last = all().map(|(step, _)| *step).fold(1.0, f64::max);
    let (low, high) =
        all().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), (_, loss)| (low.min(*loss), high.max(*loss)));
    let (low, high) = if low < high { (low, high) } else { (low.min(0.0), low.max(0.0) + 1.0) };
    let place = |(step, loss): &(f64, f64)| {
        let x = MARGIN + step / last * (SIZE.0 - 2.0 * MARGIN);
        let y = SIZE.1 - MARGIN - (loss - low) / (high - low) * (SIZE.1 - 2.0 * MARGIN);
        format!("{x:.1},{y:.1}")
    };
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n",
        SIZE.0, SIZE.1
    );
    for part in 0..=4 {
        let loss = low + (high - low) * f64::from(part) / 4.0;
        let y = SIZE.1 - MARGIN - (SIZE.1 - 2.0 * MARGIN) * f64::from(part) / 4.0;
        // writing to a string does not fail
        let _ = writeln!(
            svg,
            "<line x1=\"{MARGIN}\" y1=\"{y:.1}\" x2=\"{}\" y2=\"{y:.1}\" stroke=\"#ddd\"/>\n\
             <text x=\"4\" y=\"{:.1}\" fill=\"#666\">{loss:.3}</text>",
            SIZE.0 - MARGIN,
            y + 4.0
        );
    }
    for (line, colour, name, at) in
        [(&steps, "#3a6ea5", "loss", MARGIN), (&evaluations, "#b5532a", "evaluation", MARGIN + 80.0)]
    {
        let points: Vec<String> = line.iter().filter(|(_, loss)| loss.is_finite()).map(place).collect();
        if !points.is_empty() {
            let _ = writeln!(
                svg,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"/>\n\
                 <text x=\"{at}\" y=\"24\" fill=\"{colour}\">{name}</text>",
                points.join(" ")
            );
        }
    }
    let _ = write!(
        svg,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"end\" fill=\"#666\">step {last}</text>\n</svg>\n",
        SIZE.0 - MARGIN,
        SIZE.1 - 16.0
    );
    svg
}

/// Steps and their losses.
fn losses(metrics: &[Metric]) -> Line {
    let loss = |metric: &Metric| match metric {
        Metric::Step { step, loss, .. } => Some((*step as f64, *loss)),
        Metric::Evaluation { .. } => None,
    };
    metrics.iter().filter_map(loss).collect()
}

/// Columns and rows of a plot in a terminal.
const COLUMNS: usize = 60;
const ROWS: usize = 8;
/// The eighths of a cell, from below.
const EIGHTHS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// The loss of the steps as lines of text, at most 72 characters wide; empty for fewer than two steps.
pub fn plot(metrics: &[Metric]) -> String {
    let all: Line = losses(metrics).into_iter().filter(|(_, loss)| loss.is_finite()).collect();
    let (Some((first, _)), Some((last, _))) = (all.first().copied(), all.last().copied()) else { return String::new() };
    if all.len() < 2 {
        return String::new();
    }
    let line = averaged(&all, COLUMNS);
    let bounds = |(low, high): (f64, f64), (_, loss): &(f64, f64)| (low.min(*loss), high.max(*loss));
    let (low, high) = line.iter().fold((f64::INFINITY, f64::NEG_INFINITY), bounds);
    let room = if high > low { high - low } else { 1.0 };
    // the lowest loss still shows: one eighth of a cell
    let height = |loss: f64| 1 + ((loss - low) / room * (ROWS * 8 - 1) as f64).round() as usize;
    let mut text = String::new();
    for row in (0..ROWS).rev() {
        let label = match row {
            0 => format!("{low:9.4}"),
            row if row == ROWS - 1 => format!("{high:9.4}"),
            _ => " ".repeat(9),
        };
        let cells = line.iter().map(|(_, loss)| EIGHTHS[height(*loss).saturating_sub(row * 8).min(8)]);
        let cells: String = cells.collect();
        let _ = writeln!(text, "{label} │{}", cells.trim_end());
    }
    let _ = writeln!(text, "     loss └ step {} to {}", first + 1.0, last + 1.0);
    text
}

/// The line in at most `points` points.
fn averaged(line: &[(f64, f64)], points: usize) -> Line {
    let mean = |part: &[(f64, f64)]| {
        let count = part.len() as f64;
        (part.iter().map(|(step, _)| step).sum::<f64>() / count, part.iter().map(|(_, loss)| loss).sum::<f64>() / count)
    };
    line.chunks(line.len().div_ceil(points).max(1)).map(mean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metric::Evaluation;

    fn step(step: usize, loss: f64) -> Metric {
        let (learning_rate, gradient_norm, tokens, seconds) = (0.1, 1.0, 10, 1.0);
        Metric::Step { step, time: 0, loss, learning_rate, gradient_norm, tokens, seconds }
    }

    #[test]
    fn a_plot_falls_where_the_loss_does() {
        let falling: Vec<Metric> = (0..120).map(|number| step(number, 3.0 - number as f64 / 60.0)).collect();
        let text = plot(&falling);
        let rows: Vec<&str> = text.lines().collect();
        assert_eq!(rows.len(), ROWS + 1);
        assert!(rows.iter().all(|row| row.chars().count() <= 72), "{text}");
        let filled: Vec<usize> = rows[..ROWS].iter().map(|row| row.chars().filter(|c| *c == '█').count()).collect();
        assert!(filled.windows(2).all(|pair| pair[0] < pair[1]), "{text}");
        assert!(rows[0].contains("2.99") && rows[ROWS - 1].contains("1.02"), "{text}");
        assert!(rows[ROWS].contains("step 1 to 120"), "{text}");
        let flat = plot(&[step(0, 1.0), step(1, 1.0)]);
        assert!(flat.contains("▁▁"), "{flat}");
        assert_eq!(plot(&[step(0, 1.0)]) + &plot(&[]) + &plot(&[step(0, f64::NAN), step(1, f64::NAN)]), "");
    }

    #[test]
    fn every_line_stays_on_the_paper() {
        let mut metrics: Vec<Metric> = (0..1000).map(|number| step(number, 3.0 - number as f64 / 1000.0)).collect();
        metrics.push(Metric::evaluation(1000, "x".into(), Evaluation::of_texts(2.5, None)));
        let image = svg(&metrics);
        assert_eq!(image.matches("<polyline").count(), 2);
        let points = image.split("points=\"").nth(1).and_then(|rest| rest.split('"').next()).expect("a line");
        assert!(points.split(' ').count() <= POINTS);
        for point in points.split(' ') {
            let (x, y) = point.split_once(',').expect("two numbers");
            let (x, y): (f64, f64) = (x.parse().expect("a number"), y.parse().expect("a number"));
            assert!((0.0..=SIZE.0).contains(&x) && (0.0..=SIZE.1).contains(&y), "{point}");
        }
        assert!(svg(&[]).ends_with("</svg>\n"), "nothing yet is an empty drawing");
    }
}
