//! Stop strings: an answer ends before the first of them.
//!
//! The match that ends first counts, and of those that end together the longest: what a reader of the text,
//! character by character, would stop at. Text that may be the beginning of a stop string waits.
//! Called for every piece of text of an answer.
//! **Invariant:** what comes out depends on the text alone, not on how it was cut into pieces; no part of the
//! stop string that matched comes out.

/// Text that may be given out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Safe {
    /// The text; it holds no part of a stop string.
    pub text: String,
    /// Whether the answer ends here.
    pub matched: bool,
}

/// Finds stop strings in the text of one sequence.
#[derive(Clone, Debug)]
pub struct StopMatcher {
    stops: Vec<String>,
    /// Text that waits: the beginning of a stop string, or nothing.
    held: String,
    matched: Option<usize>,
}

impl StopMatcher {
    /// For one sequence. Empty stop strings match nothing.
    pub fn new(stops: &[String]) -> Self {
        Self { stops: stops.to_vec(), held: String::new(), matched: None }
    }

    /// Adds text; what may be given out now. After a match, nothing is.
    ///
    /// Cost: linear in the text, for each stop string; nothing is copied twice.
    pub fn push(&mut self, text: &str) -> Safe {
        if self.matched() {
            return Safe { text: String::new(), matched: true };
        }
        self.held.push_str(text);
        let keep = match self.first_match() {
            Some((start, stop)) => {
                self.matched = Some(stop);
                self.held.truncate(start);
                0
            }
            None => self.waiting(),
        };
        let waiting = self.held.split_off(self.held.len() - keep);
        Safe { text: std::mem::replace(&mut self.held, waiting), matched: self.matched() }
    }

    /// What waited, when no text follows.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Whether a stop string has matched.
    pub fn matched(&self) -> bool {
        self.matched.is_some()
    }

    /// The stop string that matched.
    pub fn stopped_by(&self) -> Option<&str> {
        self.matched.map(|stop| self.stops[stop].as_str())
    }

    /// Start of the match that ends first, and its stop string.
    fn first_match(&self) -> Option<(usize, usize)> {
        let stops = self.stops.iter().enumerate().filter(|(_, stop)| !stop.is_empty());
        let found = stops.filter_map(|(i, stop)| Some((self.held.find(stop)?, i)));
        found.min_by_key(|&(start, i)| (start + self.stops[i].len(), start))
    }

    /// Bytes at the end that may be the beginning of a stop string.
    fn waiting(&self) -> usize {
        let held = self.held.as_bytes();
        let longest = |stop: &String| {
            let most = stop.len().saturating_sub(1).min(held.len());
            (1..=most).rev().find(|&len| held.ends_with(&stop.as_bytes()[..len])).unwrap_or(0)
        };
        self.stops.iter().map(longest).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (Vec<String>, Option<usize>) {
        let stops: Vec<String> = stops.iter().map(|stop| stop.to_string()).collect();
        let mut matcher = StopMatcher::new(&stops);
        let mut out: Vec<String> = pieces.iter().map(|piece| matcher.push(piece).text).collect();
        out.push(matcher.finish());
        assert_eq!(matcher.stopped_by(), matcher.matched.map(|stop| stops[stop].as_str()));
        (out, matcher.matched)
    }

    fn check(stops: &[&str], pieces: &[&str], expected: &[&str], matched: Option<usize>) {
        assert_eq!(run(stops, pieces), (expected.iter().map(|s| s.to_string()).collect(), matched));
    }

    #[test]
    fn text_before_the_stop_string_comes_out() {
        check(&["END"], &["a END b", "c"], &["a ", "", ""], Some(0));
    }

    #[test]
    fn a_beginning_waits_and_comes_out_when_it_was_none() {
        check(&["END"], &["aE", "N", "d", "E"], &["a", "", "ENd", "", "E"], None);
        check(&["aab"], &["aa", "ab"], &["", "a", ""], Some(0));
    }

    #[test]
    fn the_match_that_ends_first_counts() {
        check(&["abc", "b"], &["xabc"], &["xa", ""], Some(1));
        check(&["c", "abc"], &["xabc"], &["x", ""], Some(1));
    }

    #[test]
    fn without_stop_strings_nothing_waits() {
        check(&[], &["a", "b"], &["a", "b", ""], None);
        check(&[""], &["a"], &["a", ""], None);
    }

    #[test]
    fn characters_stay_whole() {
        check(&["é!"], &["é", "è", "é!"], &["", "éè", "", ""], Some(0));
    }

    proptest! {
        /// However the text is cut, the same comes out, and it is what a plain search would give.
        #[test]
        fn the_cut_does_not_matter(
            pieces in vec("[abé]{0,4}", 0..12), stops in vec("[abé]{1,4}", 0..4),
        ) {
            let whole = pieces.concat();
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let ends = (0..=whole.len()).filter(|&end| whole.is_char_boundary(end));
            let first = ends.clone().find(|&end| stops.iter().any(|stop| whole[..end].ends_with(stop)));
            let expected = match first {
                None => whole.clone(),
                Some(end) => {
                    let longest = stops.iter().filter(|stop| whole[..end].ends_with(**stop)).map(|s| s.len()).max();
                    whole[..end - longest.unwrap_or(0)].to_owned()
                }
            };
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            let (out, matched) = run(&stops, &pieces);
            prop_assert_eq!(out.concat(), expected);
            prop_assert_eq!(matched.is_some(), first.is_some());
        }
    }
}
