//! Keys and values that outlive an instance: the plugin's own, within a quota, on disk now and then.
//!
//! All instances of a plugin share them. Natively they are a map a thread, with the quota of
//! [`crate::testing::set_store_quota`].

pub use crate::bindings::describe::pointsman::policy::store::Refusal;

#[cfg(target_arch = "wasm32")]
use crate::bindings::describe::pointsman::policy::store as held;
#[cfg(not(target_arch = "wasm32"))]
use crate::testing::store as held;

/// The value of a key.
pub fn get(key: &str) -> Option<Vec<u8>> {
    held::get(key)
}

/// Sets a key of at most 256 bytes. A refusal leaves it as it was.
pub fn set(key: &str, value: &[u8]) -> Result<(), Refusal> {
    held::set(key, value)
}

/// Removes a key, if it is there.
pub fn remove(key: &str) {
    held::remove(key);
}

/// All keys that begin so, in order.
pub fn keys(prefix: &str) -> Vec<String> {
    held::keys(prefix)
}
