//! Ids of a response and of its items: derived, so that an item's id says which response it belongs to.
//!
//! ```text
//! resp_<32 digits>      msg_<32 digits><number>      call_<32 digits><number>
//! ```
//!
//! **Invariant:** ids are for callers; none reaches a prompt.

use crate::ctx::mix;

const DIGITS: usize = 32;
/// Numbers of input items begin here, so that they are never those of output items.
const INPUT: usize = 0x8000;

/// The ids of one response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ids(String);

impl Ids {
    /// From a seed that no other response has.
    pub(super) fn new(seed: u64) -> Self {
        Self(format!("{:016x}{seed:016x}", mix(seed)))
    }

    /// The id of the response.
    pub(super) fn response(&self) -> String {
        format!("resp_{}", self.0)
    }

    /// The id of an output item.
    pub(super) fn output(&self, prefix: &str, index: usize) -> String {
        format!("{prefix}_{}{index:04x}", self.0)
    }

    /// The id of an input item that came without one.
    pub(super) fn input(&self, prefix: &str, index: usize) -> String {
        self.output(prefix, INPUT + index)
    }

    /// The id by which a call is answered.
    pub(super) fn call(&self, index: usize) -> String {
        format!("call_{}{index:02x}", &self.0[..DIGITS - 8])
    }
}

/// The response that an item belongs to, if its id is one of ours.
pub(super) fn response_of(item: &str) -> Option<String> {
    let (_, digits) = item.split_once('_')?;
    let (response, number) = digits.split_at_checked(DIGITS)?;
    let ours = !number.is_empty() && digits.bytes().all(|b| b.is_ascii_hexdigit());
    ours.then(|| format!("resp_{response}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_items_id_says_whose_it_is() {
        let ids = Ids::new(7);
        assert_eq!(response_of(&ids.output("msg", 0)), Some(ids.response()));
        assert_eq!(response_of(&ids.input("fc", 70_000)), Some(ids.response()));
        for foreign in ["", "msg", "msg_1", "resp_0", &ids.response(), &format!("msg_{}é0", "0".repeat(31))]
        {
            assert_eq!(response_of(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn no_two_items_of_a_response_share_an_id() {
        let ids = Ids::new(1);
        let mut all: Vec<String> = (0..500).map(|i| ids.output("msg", i)).collect();
        all.extend((0..500).map(|i| ids.input("msg", i)));
        let count = all.len();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), count);
    }
}
