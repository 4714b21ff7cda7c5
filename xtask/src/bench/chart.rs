//! A chart of ratios as an SVG: bars from a line at 1, on a scale of doublings.

/// Height of a bar with its gap, and of the text, in pixels.
const ROW: f64 = 26.0;
const FONT: f64 = 13.0;
/// Where bars begin, and how wide a doubling is, in pixels.
const LABELS: f64 = 330.0;
const DOUBLING: f64 = 90.0;
/// Doublings on each side of 1.
const DOUBLINGS: i32 = 3;

/// Bars of (label, ratio). What is beyond the scale ends at its edge, with its number beside it.
pub(super) fn chart(title: &str, bars: &[(String, f64)]) -> String {
    let (width, height) = (LABELS + 2.0 * DOUBLINGS as f64 * DOUBLING + 80.0, ROW * (bars.len() as f64 + 2.5));
    let at = |ratio: f64| {
        let doublings = ratio.log2().clamp(-f64::from(DOUBLINGS), f64::from(DOUBLINGS));
        LABELS + (doublings + f64::from(DOUBLINGS)) * DOUBLING
    };
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" \
         font-size=\"{FONT}\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"8\" y=\"{}\" font-weight=\"bold\">{}</text>\n",
        ROW * 0.8,
        escaped(title)
    );
    for doubling in -DOUBLINGS..=DOUBLINGS {
        let ratio = f64::from(doubling).exp2();
        let (x, colour) = (at(ratio), if doubling == 0 { "#444" } else { "#ddd" });
        svg += &format!(
            "<line x1=\"{x}\" y1=\"{}\" x2=\"{x}\" y2=\"{}\" stroke=\"{colour}\"/>\n\
             <text x=\"{x}\" y=\"{}\" text-anchor=\"middle\" fill=\"#666\">{ratio}</text>\n",
            ROW * 1.2,
            height - ROW,
            height - ROW * 0.4
        );
    }
    for (index, (label, ratio)) in bars.iter().enumerate() {
        let (y, from, to) = (ROW * (index as f64 + 1.5), at(1.0), at(*ratio));
        let colour = if *ratio >= 1.0 { "#3a7d44" } else { "#b5532a" };
        svg += &format!(
            "<text x=\"8\" y=\"{}\">{}</text>\n\
             <rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" fill=\"{colour}\"/>\n\
             <text x=\"{}\" y=\"{}\" fill=\"#222\">{ratio:.2}</text>\n",
            y + FONT,
            escaped(label),
            from.min(to),
            y + 3.0,
            (to - from).abs().max(1.0),
            ROW - 8.0,
            from.max(to) + 6.0,
            y + FONT,
        );
    }
    svg + "</svg>\n"
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_go_right_where_we_are_faster_and_stay_on_the_paper() {
        let bars = [("a <b>".to_owned(), 2.0), ("slow".to_owned(), 0.5), ("far".to_owned(), 1e6)];
        let svg = chart("t", &bars);
        assert!(svg.contains("a &lt;b>") && svg.contains(">2.00<") && svg.contains(">0.50<"), "{svg}");
        assert_eq!(svg.matches("#3a7d44").count(), 2);
        let edge = LABELS + 2.0 * f64::from(DOUBLINGS) * DOUBLING;
        assert!(svg.contains(&format!("width=\"{}\"", edge - LABELS - f64::from(DOUBLINGS) * DOUBLING)), "{svg}");
    }
}
