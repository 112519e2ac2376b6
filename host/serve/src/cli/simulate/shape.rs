//! Shapes of steps that are timed: chunks of prompts, answers, and both, over contexts of several lengths.
//!
//! **Invariant:** every shape fits into a step, a context and the pages of the worker.

use std::fmt;

use sim::Batch;

/// What a worker takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    /// Most tokens of a step.
    pub(super) tokens_max: u32,
    /// Most sequences of a step.
    pub(super) rows_max: u32,
    /// Most tokens of a sequence.
    pub(super) context_max: u32,
    /// Pages that there are.
    pub(super) pages: u32,
    /// Tokens of a page.
    pub(super) block_tokens: u32,
}

/// A step: a chunk of a prompt, or answers that get a token each, or both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Shape {
    /// Tokens of the chunk.
    pub(super) chunk: u32,
    /// Tokens of the prompt before it.
    pub(super) depth: u32,
    /// Answers.
    pub(super) rows: u32,
    /// Tokens that each of them holds before it gets one.
    pub(super) context: u32,
}

/// Longest context that is timed. Chosen: attention is most of a step by then, and what it costs goes on as it does.
const DEPTH_MAX: u32 = 8192;
/// Shortest chunk. Chosen: fewer tokens take as long.
const CHUNK_MIN: u32 = 16;
/// Shortest context of an answer. Chosen: it is next to none.
const CONTEXT_MIN: u32 = 16;

impl Limits {
    /// Tokens of context that there should be, for [`Limits::shapes`]: at least a block.
    pub(super) fn depth(&self) -> u32 {
        let room = u64::from(self.pages) * u64::from(self.block_tokens);
        let room = room.min(self.context_max.into()) / 4 * 3;
        u32::try_from(room).unwrap_or(u32::MAX).min(DEPTH_MAX).max(self.block_tokens)
    }

    /// Shapes for contexts of up to so many tokens, those with the fewest tokens first.
    pub(super) fn shapes(&self, depth: u32) -> Vec<Shape> {
        let mut shapes = Vec::new();
        for chunk in ladder(CHUNK_MIN, self.tokens_max) {
            let prompt = |depth| Shape { chunk, depth, ..Shape::default() };
            shapes.extend([0, depth / 4, depth].map(prompt));
        }
        let contexts = [CONTEXT_MIN.min(depth), depth / 4, depth];
        for rows in ladder(1, self.rows_max) {
            shapes.extend(contexts.map(|context| Shape { rows, context, ..Shape::default() }));
        }
        let beside = self.rows_max.saturating_sub(1);
        let full = (self.tokens_max.saturating_sub(beside), beside);
        for (chunk, rows) in [(CHUNK_MIN, 1), (64, 4), (256, 16), full] {
            shapes.extend([(0, contexts[0]), (depth / 4, depth / 4)].map(|(depth, context)| Shape {
                chunk,
                depth,
                rows,
                context,
            }));
        }
        shapes.retain(|shape| self.fits(shape));
        shapes.sort_by_key(|shape| (shape.tokens(), shape.depth.max(shape.context), shape.rows, shape.depth));
        shapes.dedup();
        shapes
    }

    fn fits(&self, shape: &Shape) -> bool {
        let longest = (shape.depth + shape.chunk).max(shape.context + 1);
        shape.tokens() > 0
            && shape.tokens() <= self.tokens_max
            && shape.rows + u32::from(shape.chunk > 0) <= self.rows_max
            && longest <= self.context_max
            && self.pages_of(shape) <= u64::from(self.pages)
    }

    /// Pages that it takes.
    pub(super) fn pages_of(&self, shape: &Shape) -> u64 {
        let of = |tokens: u32| u64::from(tokens.div_ceil(self.block_tokens));
        let chunk = if shape.chunk > 0 { of(shape.depth + shape.chunk) } else { 0 };
        chunk + u64::from(shape.rows) * of(shape.context + 1)
    }
}

/// From the least to the most, each four times the one before.
fn ladder(least: u32, most: u32) -> Vec<u32> {
    let steps = std::iter::successors(Some(least), |at| at.checked_mul(4)).take_while(|at| *at < most);
    steps.chain([most]).collect()
}

impl Shape {
    /// Tokens that it computes.
    pub(super) fn tokens(&self) -> u32 {
        self.chunk + self.rows
    }

    /// What a cost model knows of it: as a simulated worker says it of its own steps.
    pub(super) fn batch(&self) -> Batch {
        let [chunk, depth, rows] = [self.chunk, self.depth, self.rows].map(f64::from);
        Batch {
            prefill_tokens: chunk,
            prefill_pairs: chunk * (depth + chunk / 2.0),
            rows,
            context: rows * f64::from(self.context + 1),
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { chunk, depth, rows, context } = self;
        if *chunk > 0 {
            write!(f, "{chunk} tokens of a prompt after {depth}")?;
        }
        if *rows > 0 {
            let beside = if *chunk > 0 { ", and " } else { "" };
            let answers = if *rows == 1 { "answer" } else { "answers" };
            write!(f, "{beside}{rows} {answers} of {context} tokens")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// However small a worker is, each shape fits, and there is one.
        #[test]
        fn shapes_fit_the_worker(
            tokens_max in 1u32..9_000,
            rows_max in 1u32..300,
            context_max in 16u32..100_000,
            pages in 1u32..5_000,
            block_tokens in prop::sample::select(vec![1u32, 16, 64]),
        ) {
            let rows_max = rows_max.min(tokens_max);
            let context_max = context_max.min(pages * block_tokens).max(2);
            let limits = Limits { tokens_max, rows_max, context_max, pages, block_tokens };
            for depth in [block_tokens, limits.depth()] {
                let shapes = limits.shapes(depth);
                prop_assert!(pages < 2 || !shapes.is_empty(), "{limits:?}");
                for shape in &shapes {
                    prop_assert!(limits.fits(shape), "{limits:?} {shape:?}");
                    prop_assert!(shape.depth <= depth && shape.context <= depth, "{limits:?} {shape:?}");
                }
                prop_assert!(shapes.is_sorted_by_key(Shape::tokens));
            }
        }
    }

    #[test]
    fn a_usual_worker_has_shapes_of_every_kind() {
        let limits =
            Limits { tokens_max: 512, rows_max: 64, context_max: 65_536, pages: 65_536, block_tokens: 16 };
        assert_eq!(limits.depth(), 8192);
        let shapes = limits.shapes(8192);
        let count = |kind: &dyn Fn(&Shape) -> bool| shapes.iter().filter(|shape| kind(shape)).count();
        assert_eq!(count(&|shape| shape.rows == 0), 12);
        assert_eq!(count(&|shape| shape.chunk == 0), 12);
        assert_eq!(count(&|shape| shape.chunk > 0 && shape.rows > 0), 8);
        let last = shapes.last().expect("there are shapes");
        assert_eq!(last.to_string(), "512 tokens of a prompt after 8192");
        assert_eq!(shapes[0].to_string(), "1 answer of 16 tokens");
    }
}
