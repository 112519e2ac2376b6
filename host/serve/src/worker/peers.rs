//! The workers of a host as one of them sees the others: who could go on with its sequences.
//!
//! **Invariant:** a sequence is handed to one worker, with the channel of its events, or comes back.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;

use super::sequence::Sequence;
use super::{Load, Message, Sender};
use crate::config::Role;

/// The workers of a host, as far as they have started.
#[derive(Default)]
pub struct Peers(Mutex<Vec<Peer>>);

/// One of them.
pub(super) struct Peer {
    pub(super) index: usize,
    pub(super) role: Role,
    pub(super) load: Arc<Load>,
    pub(super) sender: Sender,
}

impl Peers {
    pub(super) fn join(&self, peer: Peer) {
        self.0.lock().push(peer);
    }

    /// Has another worker go on with a sequence that holds nothing of this one: of those that are well and answer, the one
    /// with the least to do. The sequence comes back if there is none.
    pub(super) fn take_over(&self, from: usize, s: Sequence) -> Option<Sequence> {
        let peers = self.0.lock();
        let mut able: Vec<&Peer> = peers
            .iter()
            .filter(|peer| peer.index != from && peer.role.decodes() && peer.load.is_healthy())
            .collect();
        able.sort_by(|a, b| a.work().total_cmp(&b.work()));
        let mut left = Some(s);
        for peer in able {
            left = peer.send(left?);
        }
        left
    }
}

impl Peer {
    /// Tokens that it would work through first.
    fn work(&self) -> f32 {
        let load = self.load.read();
        load.queued_tokens + load.active_tokens
    }

    /// Hands a sequence over; it comes back from one that has stopped.
    fn send(&self, s: Sequence) -> Option<Sequence> {
        let sender = self.sender.lock();
        let Some(sender) = sender.as_ref() else { return Some(s) };
        let tokens = s.prompt_len() as u64;
        self.load.in_transit.fetch_add(1, Ordering::Relaxed);
        self.load.in_transit_tokens.fetch_add(tokens, Ordering::Relaxed);
        let Err(returned) = sender.send(Message::TakeOver(Box::new(s))) else { return None };
        self.load.in_transit.fetch_sub(1, Ordering::Relaxed);
        self.load.in_transit_tokens.fetch_sub(tokens, Ordering::Relaxed);
        match returned.0 {
            Message::TakeOver(s) => Some(*s),
            _ => None,
        }
    }
}
