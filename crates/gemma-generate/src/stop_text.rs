//! Finds the text that ends an answer while the answer is still being written.
//!
//! Knows nothing of tokens: pieces of text go in, and what certainly belongs to the answer comes out. The end
//! of what has come so far is held back while it may be the beginning of a stop text.

/// Passes text on until a stop text is complete.
///
/// Stops at the first moment, character by character, at which some stop text is complete, and cuts where it
/// begins; if several are complete at that moment, where the longest begins. What comes out in total does not
/// depend on how the text was cut into pieces.
///
/// ```
/// use gemma_generate::StopText;
///
/// let mut stop = StopText::new(&["aab".to_string()]);
/// assert_eq!(stop.push("aa"), "");              // may become "aab"
/// assert_eq!(stop.push("a"), "a");              // "aa" still may
/// assert_eq!(stop.push("bc"), "");              // it did: "aaabc" is cut after its first letter
/// assert_eq!(stop.matched(), Some("aab"));
/// ```
#[derive(Clone, Debug)]
pub struct StopText {
    stops: Vec<String>,
    held: String,
    matched: Option<usize>,
}

impl StopText {
    /// Waits for any of `stops`; empty ones are ignored ([`GenerateOptions::check`](crate::GenerateOptions::check)
    /// refuses them).
    pub fn new(stops: &[String]) -> Self {
        let stops = stops.iter().filter(|stop| !stop.is_empty()).cloned().collect();
        Self { stops, held: String::new(), matched: None }
    }

    /// Takes the next piece and returns what can be passed on: nothing more once a stop text was complete.
    pub fn push(&mut self, text: &str) -> String {
        if self.matched.is_some() {
            return String::new();
        }
        self.held.push_str(text);
        if let Some((start, stop)) = self.first_complete() {
            self.matched = Some(stop);
            self.held.truncate(start);
            return std::mem::take(&mut self.held);
        }
        let keep = self.longest_beginning();
        let released = self.held.len() - keep;
        let rest = self.held.split_off(released);
        std::mem::replace(&mut self.held, rest)
    }

    /// The text is over: returns what was held back, since it did not become a stop text.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// The stop text that was found.
    pub fn matched(&self) -> Option<&str> {
        self.matched.map(|stop| self.stops[stop].as_str())
    }

    /// Where the stop text that is complete first begins, and which it is.
    fn first_complete(&self) -> Option<(usize, usize)> {
        let found = |(index, stop): (usize, &String)| {
            let start = self.held.find(stop)?;
            Some((start + stop.len(), start, index))
        };
        let (_end, start, index) = self.stops.iter().enumerate().filter_map(found).min()?;
        Some((start, index))
    }

    /// Bytes at the end of `held` that are the beginning of a stop text: the most for any of them.
    fn longest_beginning(&self) -> usize {
        let of_one = |stop: &String| {
            let begins = |&len: &usize| stop.is_char_boundary(len) && self.held.ends_with(&stop[..len]);
            (1..stop.len()).rev().find(begins).unwrap_or(0)
        };
        self.stops.iter().map(of_one).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stop_text(stops: &[&str]) -> StopText {
        StopText::new(&stops.iter().map(|stop| stop.to_string()).collect::<Vec<_>>())
    }

    /// All that comes out, and the stop text.
    fn run(stops: &[&str], pieces: &[&str]) -> (String, Option<String>) {
        let mut stop = stop_text(stops);
        let mut out: String = pieces.iter().map(|piece| stop.push(piece)).collect();
        out += &stop.finish();
        (out, stop.matched().map(str::to_string))
    }

    fn assert_cut(stops: &[&str], text: &str, answer: &str, matched: Option<&str>) {
        let expected = (answer.to_string(), matched.map(str::to_string));
        assert_eq!(run(stops, &[text]), expected, "{text:?} in one piece");
        let letters: Vec<String> = text.chars().map(String::from).collect();
        let letters: Vec<&str> = letters.iter().map(String::as_str).collect();
        assert_eq!(run(stops, &letters), expected, "{text:?} letter by letter");
        for (at, _) in text.char_indices() {
            let (left, right) = text.split_at(at);
            assert_eq!(run(stops, &[left, right]), expected, "{text:?} cut at {at}");
        }
    }

    #[test]
    fn without_stop_texts_all_passes_at_once() {
        let mut stop = stop_text(&[]);
        assert_eq!(stop.push("abc"), "abc");
        assert_eq!(stop.push(""), "");
        assert_eq!(stop.finish(), "");
        assert_eq!(stop.matched(), None);
    }

    #[test]
    fn the_answer_is_cut_before_the_stop_text_however_it_arrives() {
        assert_cut(&["END"], "one END two", "one ", Some("END"));
        assert_cut(&["END"], "END", "", Some("END"));
        assert_cut(&["END"], "one EN", "one EN", None);
        assert_cut(&["END"], "EEENDEND", "EE", Some("END"));
        assert_cut(&["\n\n"], "a\nb\n\nc", "a\nb", Some("\n\n"));
        assert_cut(&["x"], "", "", None);
    }

    #[test]
    fn a_stop_text_that_overlaps_its_own_beginning_is_found() {
        assert_cut(&["aab"], "aaab", "a", Some("aab"));
        assert_cut(&["abab"], "abaabab", "aba", Some("abab"));
        assert_cut(&["aaa"], "baaaa", "b", Some("aaa"));
    }

    #[test]
    fn of_several_the_one_complete_first_wins() {
        assert_cut(&["two", "one"], "zero one two", "zero ", Some("one"));
        // "bc" is complete while "abcd" is not.
        assert_cut(&["abcd", "bc"], "xabcd", "xa", Some("bc"));
        assert_cut(&["abcd", "bc"], "xabd", "xabd", None);
        // Both are complete with the same letter: the longer begins earlier.
        assert_cut(&["b", "ab"], "xab", "x", Some("ab"));
        // One is the beginning of the other.
        assert_cut(&["stopping", "stop"], "go stopping", "go ", Some("stop"));
    }

    #[test]
    fn letters_of_several_bytes_are_never_split() {
        assert_cut(&["→é"], "a→b→é", "a→b", Some("→é"));
        // "é" and "è" share their first byte: held back is a letter, not a byte.
        assert_cut(&["éa"], "xèa", "xèa", None);
        assert_cut(&["🦀🦀"], "🦀 🦀🦀!", "🦀 ", Some("🦀🦀"));
    }

    #[test]
    fn only_what_may_become_a_stop_text_is_held_back() {
        let mut stop = stop_text(&["</s>", "###"]);
        assert_eq!(stop.push("a <"), "a ");
        assert_eq!(stop.push("b"), "<b");
        assert_eq!(stop.push("##"), "");
        assert_eq!(stop.push(" ##"), "## ");
        assert_eq!(stop.finish(), "##");
    }

    #[test]
    fn after_the_stop_text_nothing_more_comes() {
        let mut stop = stop_text(&["."]);
        assert_eq!(stop.push("a.b"), "a");
        assert_eq!(stop.push("c"), "");
        assert_eq!(stop.finish(), "");
        assert_eq!(stop.matched(), Some("."));
    }

    #[test]
    fn an_empty_stop_text_stops_nothing() {
        assert_cut(&[""], "abc", "abc", None);
    }
}
