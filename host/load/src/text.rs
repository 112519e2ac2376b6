//! Text for prompts of which only ids and lengths are known.
//!
//! **Invariant:** equal leading ids give equal leading text, whatever follows.

use trace::mix;

/// Common words: most tokenizers have a token for each, with the space before it.
const WORDS: &str = "\
about above across action after again agent air all along also always and animal answer any apple area \
arm around art ask away back ball bank base bear beautiful because bed before begin behind below best better \
between big bird black blue boat body book both bottom box boy bread bring brother brown build burn business but \
buy call can car care carry case cat catch cause center certain chair change child choose city class clean clear \
close cloud coat cold color come common company complete cook corn correct could count country course cover cross cry \
cut dance dark day dead deep desk different dinner direct do doctor dog door down draw dream dress drink drive drop \
dry during each early earth east easy eat egg eight else end enough even evening event ever every example eye face \
fact fall family far farm fast father feel few field figure file fill final find fine finger finish fire first fish \
five floor flower fly follow food foot for force form forward four free fresh friend from front fruit full game garden \
girl give glass go gold good great green ground group grow hair half hand happy hard have head hear heart heat heavy \
help here high hill hold home horse hot hour house how hundred idea inside iron island job join jump just keep key \
kind king know lake land language large last late laugh lead learn leave left leg letter level life light like line \
list listen little live long look lost love low machine make";

/// What text is made of.
#[derive(Clone, Debug)]
pub(crate) struct Writer {
    words: [&'static str; 256],
    words_per_token: f64,
}

/// A prompt of which the blocks are known.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Blocks<'a> {
    pub(crate) ids: &'a [u32],
    pub(crate) block_tokens: u64,
    /// Makes the text of equal ids another in another run.
    pub(crate) salt: u64,
    /// What text after the last block depends on instead of an id.
    pub(crate) tail: u64,
}

impl Blocks<'_> {
    fn seed(&self, index: u64) -> u64 {
        let known = usize::try_from(index).ok().and_then(|index| self.ids.get(index));
        known.map_or_else(|| nth(self.tail, index), |id| nth(self.salt, u64::from(*id)))
    }
}

/// A number that stands for the `index`th of something.
pub(crate) fn nth(of: u64, index: u64) -> u64 {
    mix(mix(of ^ 0x5bf0_3635) ^ mix(index.wrapping_add(0x9e37_79b9_7f4a_7c15)))
}

impl Writer {
    /// A writer for a tokenizer that makes so many tokens of a word.
    pub(crate) fn new(tokens_per_word: f64) -> Self {
        let mut words = [""; 256];
        // A byte chooses: of more words than that, the first 256 count.
        words.iter_mut().zip(WORDS.split(' ')).for_each(|(place, word)| *place = word);
        assert!(words.iter().all(|word| !word.is_empty()), "there are 256 words");
        Self { words, words_per_token: 1.0 / tokens_per_word }
    }

    /// Appends the tokens from one position of a prompt to another: at least one word, and none that needs escaping.
    ///
    /// Cost: about 2 ns a word.
    pub(crate) fn write(&self, text: &mut String, blocks: Blocks<'_>, tokens: std::ops::Range<u64>) {
        let word_at = |token: u64| (token as f64 * self.words_per_token) as u64;
        let mut word = word_at(tokens.start);
        let end = word_at(tokens.end).max(word + 1);
        let mut block = tokens.start / blocks.block_tokens;
        while word < end {
            let block_end = word_at((block + 1) * blocks.block_tokens).min(end);
            let start = word_at(block * blocks.block_tokens);
            self.block(text, blocks.seed(block), word.saturating_sub(start)..block_end.saturating_sub(start));
            word = word.max(block_end);
            block += 1;
        }
        // Each word has a space after it; the text has none.
        text.pop();
    }

    /// Words of one block, by their places in it.
    fn block(&self, text: &mut String, seed: u64, places: std::ops::Range<u64>) {
        let mut bytes = [0; 8];
        for place in places.clone() {
            if place == places.start || place.is_multiple_of(8) {
                bytes = mix(seed.wrapping_add(place / 8)).to_le_bytes();
            }
            text.push_str(self.words[usize::from(bytes[(place % 8) as usize])]);
            text.push(' ');
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn write(tokens_per_word: f64, ids: &[u32], tokens: std::ops::Range<u64>) -> String {
        let mut text = String::new();
        Writer::new(tokens_per_word).write(
            &mut text,
            Blocks { ids, block_tokens: 16, salt: 3, tail: 5 },
            tokens,
        );
        text
    }

    #[test]
    fn text_is_as_long_as_its_tokens() {
        assert_eq!(write(1.0, &[1, 2, 3], 0..40).split(' ').count(), 40);
        assert_eq!(write(2.0, &[1, 2, 3], 0..40).split(' ').count(), 20);
        assert_eq!(write(2.0, &[1, 2, 3], 40..41).split(' ').count(), 1, "never empty");
    }

    proptest! {
        /// Prompts with the same leading blocks have the same leading text, and text may be written in pieces.
        #[test]
        fn equal_leading_ids_are_equal_leading_text(
            ids in prop::collection::vec(any::<u32>(), 1..6), more in any::<u32>(), cut in 1_u64..80,
            tokens_per_word in 0.5_f64..3.0,
        ) {
            let known = ids.len() as u64 * 16;
            let longer: Vec<u32> = ids.iter().copied().chain([more]).collect();
            let (short, long) = (write(tokens_per_word, &ids, 0..known), write(tokens_per_word, &longer, 0..known + 16));
            prop_assert!(long.starts_with(&short));
            let cut = cut.min(known);
            // Where a piece would be shorter than a word it has one nevertheless.
            if (cut as f64 / tokens_per_word) as u64 >= 1 && ((known + 16 - cut) as f64 / tokens_per_word) > 2.0 {
                let pieces = [write(tokens_per_word, &longer, 0..cut), write(tokens_per_word, &longer, cut..known + 16)];
                prop_assert_eq!(pieces.join(" "), long);
            }
        }
    }
}
