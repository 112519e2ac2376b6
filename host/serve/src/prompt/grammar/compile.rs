//! Grammars compiled, once each.
//!
//! The trie of the vocabulary is built at first use: a host that is never asked for structure does not pay for it.
//! **Invariant:** compiling is bounded in fuel, size and stack, and a grammar is compiled by one thread while others
//! that want the same wait for it.

use std::num::NonZeroUsize;
use std::sync::{Arc, OnceLock};

use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{InferenceCapabilities, TokEnv};
use llguidance::{Matcher, ParserFactory};
use lru::LruCache;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use super::constraint::first_line;
use super::lark::{Ask, Source};
use super::vocabulary::Vocabulary;
use super::{Constraint, PromptError, Reasoning, refused, schema};
use crate::prompt::Tokenizer;

/// Most grammars that are kept. Chosen: an agent has a handful; one takes some hundred KiB.
const GRAMMARS_MAX: NonZeroUsize = NonZeroUsize::new(64).expect("64 is not 0");
/// Longest grammar. Chosen: the largest tool sets of agents have a quarter of it; compiling takes time by length.
const TEXT_BYTES_MAX: usize = 512 << 10;
/// Longest grammar that a caller writes, and most brackets in it: both bound how deep it nests.
const LARK_BYTES_MAX: usize = 64 << 10;
const BRACKETS_MAX: usize = 4096;
/// Stack of a compilation. The compiler calls itself for each part of a schema along a chain of references, and takes
/// about 10 KiB each in a build without optimisation; memory that is not touched costs nothing.
pub(super) const STACK_BYTES: usize = 256 << 20;
/// Most states of a grammar's automaton. Chosen: large schemas take some thousands, of 1 to 2 KiB each.
const AUTOMATON_STATES_MAX: usize = 50_000;

type Key = [u8; 32];
type Cell = Arc<OnceLock<Result<Compiled, String>>>;
type Cache = Arc<Mutex<LruCache<Key, Cell>>>;

/// The grammars of one model.
pub struct Grammars {
    tokenizer: Arc<Tokenizer>,
    stop_tokens: Arc<[u32]>,
    engine: OnceLock<Result<Engine, String>>,
    cache: Cache,
}

/// What is shared by all grammars of a model.
struct Engine {
    vocabulary: Arc<Vocabulary>,
    factory: ParserFactory,
}

/// A compiled grammar, before its first token.
#[derive(Clone)]
pub struct Grammar {
    vocabulary: Arc<Vocabulary>,
    compiled: Compiled,
    kept: Kept,
}

/// A grammar, and where the prompt leaves the model.
#[derive(Clone, Debug)]
pub struct Guide {
    /// What the answer has to look like.
    pub grammar: Grammar,
    /// Whether reasoning goes before it.
    pub reasoning: Reasoning,
}

impl Guide {
    /// A sequence that is to follow it from its first token on.
    pub fn begin(&self) -> Constraint {
        self.grammar.begin(self.reasoning)
    }
}

/// Where the compiler left a grammar. A clone goes its own way through it, and shares what it learns of the automaton.
#[derive(Clone)]
struct Compiled(Matcher);

/// A grammar's place among those that are kept.
#[derive(Clone)]
pub(super) struct Kept {
    cache: Cache,
    key: Key,
}

impl Kept {
    /// Gives the place up.
    pub(super) fn forget(&self) {
        self.cache.lock().pop(&self.key);
    }
}

impl Grammars {
    /// For a model's tokens, of which some end an answer. Costs nothing yet.
    pub fn new(tokenizer: Arc<Tokenizer>, stop_tokens: Arc<[u32]>) -> Self {
        let cache = Arc::new(Mutex::new(LruCache::new(GRAMMARS_MAX)));
        Self { tokenizer, stop_tokens, engine: OnceLock::new(), cache }
    }

    /// The grammar of what is asked for; `None` where any text will do.
    ///
    /// Cost: some milliseconds for one that is not kept, and once for each model up to a second; `slowly` runs that
    /// part. Errors: [`PromptError::Refused`] with the field that cannot be met.
    pub fn grammar(
        &self,
        ask: &Ask<'_>,
        slowly: impl Fn(&mut dyn FnMut()),
    ) -> Result<Option<Grammar>, PromptError> {
        if ask.is_free() {
            return Ok(None);
        }
        if self.engine.get().is_none() {
            slowly(&mut || {
                let _ = self.engine();
            });
        }
        let engine = self.engine().map_err(|reason| {
            refused(
                ask.format.param(),
                format!("structured output is not possible with this model: {reason}"),
            )
        })?;
        let source = ask.source(&engine.vocabulary)?;
        check_size(&source)?;
        let key = Key::from(Sha256::digest(&source.lark));
        let cell = Arc::clone(self.cache.lock().get_or_insert(key, Cell::default));
        let compile = || engine.compile(&source.lark);
        if cell.get().is_none() {
            slowly(&mut || {
                let _ = cell.get_or_init(compile);
            });
        }
        match cell.get_or_init(compile) {
            Ok(compiled) => Ok(Some(Grammar {
                vocabulary: Arc::clone(&engine.vocabulary),
                compiled: compiled.clone(),
                kept: Kept { cache: Arc::clone(&self.cache), key },
            })),
            Err(reason) => Err(blame(&source, reason)),
        }
    }

    fn engine(&self) -> Result<&Engine, &String> {
        let build = || Engine::new(Arc::clone(&self.tokenizer), &self.stop_tokens);
        self.engine.get_or_init(build).as_ref()
    }
}

impl Grammar {
    pub(super) fn begin(&self, reasoning: Reasoning) -> Constraint {
        let matcher = self.compiled.0.clone();
        Constraint::new(Arc::clone(&self.vocabulary), matcher, reasoning, self.kept.clone())
    }
}

impl std::fmt::Debug for Grammar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Grammar").finish_non_exhaustive()
    }
}

impl Engine {
    fn new(tokenizer: Arc<Tokenizer>, stop_tokens: &[u32]) -> Result<Self, String> {
        let vocabulary = Arc::new(Vocabulary::new(tokenizer, stop_tokens)?);
        let env: TokEnv = Arc::clone(&vocabulary) as TokEnv;
        let slices = SlicedBiasComputer::json_slices();
        let factory = ParserFactory::new(&env, InferenceCapabilities::default(), &slices);
        let mut factory = factory.map_err(|error| first_line(&error.to_string()).to_owned())?;
        factory.quiet();
        *factory.limits_mut() = ParserLimits {
            max_lexer_states: AUTOMATON_STATES_MAX,
            // Errors would quote what was written so far.
            verbose_errors: false,
            ..ParserLimits::default()
        };
        Ok(Self { vocabulary, factory })
    }

    /// Compiles on a thread with stack for the deepest grammar that is let in.
    fn compile(&self, lark: &str) -> Result<Compiled, String> {
        let compile = || {
            let grammar = TopLevelGrammar::from_lark(lark.to_owned());
            let matcher = Matcher::new(self.factory.create_parser(grammar));
            match matcher.get_error() {
                Some(error) => Err(error),
                // The first mask shows a grammar that allows nothing, and what it costs is paid here.
                None => match matcher.clone().compute_mask() {
                    Ok(_) => Ok(Compiled(matcher)),
                    Err(error) => Err(error.to_string()),
                },
            }
        };
        let builder = std::thread::Builder::new().name("grammar".into()).stack_size(STACK_BYTES);
        std::thread::scope(|scope| {
            let thread = builder.spawn_scoped(scope, compile).map_err(|error| error.to_string())?;
            thread.join().unwrap_or_else(|_| Err("the compiler panicked".into()))
        })
    }
}

fn check_size(source: &Source) -> Result<(), PromptError> {
    let param = &source.param;
    let (len, max) = (source.lark.len(), if source.foreign { LARK_BYTES_MAX } else { TEXT_BYTES_MAX });
    if len > max {
        return Err(refused(
            param,
            format!("`{param}` is too large: {len} bytes of grammar, the limit is {max}"),
        ));
    }
    let brackets = source.lark.bytes().filter(|byte| matches!(byte, b'(' | b'[' | b'{')).count();
    if source.foreign && brackets > BRACKETS_MAX {
        return Err(refused(
            param,
            format!("`{param}` has {brackets} brackets, the limit is {BRACKETS_MAX}"),
        ));
    }
    Ok(())
}

/// The refusal for a grammar that does not compile.
fn blame(source: &Source, reason: &str) -> PromptError {
    let first = first_line(reason);
    // Positions are those of a text that the caller has not seen, unless it is theirs.
    let reason = match source.foreign {
        true => first,
        false => first.rsplit_once("failed to compile JSON schema: ").map_or(first, |(_, reason)| reason),
    };
    let param = match &source.schema {
        Some(schema) => schema::culprit(schema, &source.param, reason),
        None => source.param.clone(),
    };
    refused(param.as_str(), format!("`{param}` cannot be enforced: {reason}"))
}
