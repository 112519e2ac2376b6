//! State as JSON, for policies that carry it over a swap: `serde` does the rest.
//!
//! ```
//! use pointsman_sdk::{NoConfig, Policy, State, state};
//!
//! struct Counting(u64);
//!
//! impl Policy for Counting {
//!     type Config = NoConfig;
//!     fn new(_: NoConfig) -> Result<Self, String> { Ok(Self(0)) }
//! }
//!
//! impl State for Counting {
//!     const SCHEMA: &'static str = "counting/1";
//!
//!     fn export_state(&self, schema: &str) -> Option<Vec<u8>> {
//!         state::expect::<Self>(schema).ok()?;
//!         state::to_bytes(&[self.0])
//!     }
//!
//!     fn import_state(&mut self, schema: &str, bytes: &[u8]) -> Result<(), String> {
//!         state::expect::<Self>(schema)?;
//!         [self.0] = state::from_bytes(bytes)?;
//!         Ok(())
//!     }
//! }
//! ```

use crate::slot::State;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A state as JSON. `None` where JSON cannot hold it: a map whose keys are neither texts nor integers.
///
/// Take a struct, a list or a map: nothing that begins like its JSON is JSON, so a state cut short is told from a whole.
pub fn to_bytes<T: Serialize>(state: &T) -> Option<Vec<u8>> {
    serde_json::to_vec(state).ok()
}

/// The state that [`to_bytes`] wrote, or why it is not one.
pub fn from_bytes<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    serde_json::from_slice(bytes).map_err(|error| format!("the state cannot be read: {error}"))
}

/// Refuses every form but the one that a policy reads and writes.
pub fn expect<P: State>(schema: &str) -> Result<(), String> {
    if schema == P::SCHEMA {
        Ok(())
    } else {
        Err(format!("the state is of the schema `{schema}`; this policy reads `{}`", P::SCHEMA))
    }
}
