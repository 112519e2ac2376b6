//! `middleware`: a request as it came, before anybody has read it.

use super::{Answer, Frame};

/// One header: its name in lower case and its bytes.
pub type Header = (String, Vec<u8>);

/// A request, after authentication.
#[derive(Clone, Copy, Debug)]
pub struct MiddlewareView<'a> {
    /// Clock and seed; a component of a contract without them does not see it.
    pub frame: Frame,
    /// In capitals.
    pub method: &'a str,
    /// Without the query.
    pub path: &'a str,
    /// Without the question mark.
    pub query: &'a str,
    /// Those on the allow-list.
    pub headers: &'a [Header],
    /// All of it.
    pub body: &'a [u8],
    /// The host's own id of the request.
    pub request_id: &'a str,
}

/// What becomes of the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// It goes on as it is.
    Continue,
    /// It is refused with this HTTP status.
    Reject(u16),
    /// It goes on changed.
    Modify(Changes),
}

/// Changes to a request: headers are removed, then set, then added.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Headers that replace what they are called like.
    pub set: Vec<Header>,
    /// Headers that come beside what they are called like.
    pub add: Vec<Header>,
    /// Names of headers to remove.
    pub remove: Vec<String>,
    /// The body that takes the place of the one that came.
    pub body: Option<Vec<u8>>,
}

/// Lets requests pass, changes or refuses them.
pub trait MiddlewarePolicy: Send {
    /// What becomes of the request.
    fn handle(&mut self, view: &MiddlewareView<'_>) -> Answer<Action>;
}
