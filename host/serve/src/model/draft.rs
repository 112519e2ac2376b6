//! The files of a draft model, and that it speaks of the same tokens as the served one.
//!
//! Called once at load. **Invariant:** a draft model with another vocabulary is refused, for it would guess nothing right.

use engine::ModelFiles;

use super::{ModelError, ServedModel, open};
use crate::config;
use crate::prompt::Tokenizer;

/// The weights of the draft model that the configuration names; `None` where it names none.
///
/// Errors: what is wrong with its files, or the first token of which the two models differ. Either may have more tokens
/// than the other.
pub fn draft_files(config: &config::Model, served: &ServedModel) -> Result<Option<ModelFiles>, ModelError> {
    if config.draft.source.is_empty() {
        return Ok(None);
    }
    let load = || {
        let (files, texts) = open(&config.draft.source)?;
        let tokenizer = Tokenizer::from_bytes(&texts.folder.join("tokenizer.json"), &texts.tokenizer)?;
        Ok((files, texts.folder, tokenizer))
    };
    let (files, path, draft) = load().map_err(|error| ModelError::Draft(Box::new(error)))?;
    match served.tokenizer.first_difference(&draft) {
        None => Ok(Some(files)),
        Some(token) => Err(ModelError::DraftVocabulary {
            path,
            token,
            draft: spelled(&draft, token),
            served: spelled(&served.tokenizer, token),
        }),
    }
}

fn spelled(tokenizer: &Tokenizer, token: u32) -> String {
    match tokenizer.special(token) {
        Some(text) => text.to_owned(),
        None => String::from_utf8_lossy(&tokenizer.token_bytes(token)).into_owned(),
    }
}
