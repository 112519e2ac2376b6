//! Clients that keep a host busy, each in sessions of its own, and what they saw.
//!
//! **Invariant:** every request is counted once, by the generation that decided about it or as failed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use axum::http::Method;
use serde_json::json;
use serve::client::Client;
use serve::server::Server;
use tokio::task::JoinSet;

const CLIENTS: usize = 8;
/// Sessions of each client, in turn.
const SESSIONS: usize = 25;
/// Chosen: agents think between turns, and the example shares the machine with whoever runs it.
const PAUSE: Duration = Duration::from_millis(2);

/// What the clients saw.
#[derive(Default)]
pub(crate) struct Counted {
    generations: BTreeMap<u64, u64>,
    /// Requests that were not answered well.
    pub(crate) failed: u64,
    /// Sessions that came to an older generation after a newer one, but for a roll back of all.
    pub(crate) changed_sides: u64,
}

impl Counted {
    /// `1: 4000, 2: 300`.
    pub(crate) fn by_generation(&self) -> String {
        let each = self.generations.iter().map(|(generation, requests)| format!("{generation}: {requests}"));
        each.collect::<Vec<_>>().join(", ")
    }
}

/// Clients at work.
pub(crate) struct Load {
    done: Arc<AtomicBool>,
    clients: JoinSet<Counted>,
}

impl Load {
    /// Lets them begin.
    pub(crate) fn start(server: &Server) -> Self {
        let done = Arc::new(AtomicBool::new(false));
        let mut clients = JoinSet::new();
        for number in 0..CLIENTS {
            clients.spawn(client(format!("http://{}", server.api), number, Arc::clone(&done)));
        }
        Self { done, clients }
    }

    /// Lets them end, and adds up what they saw.
    pub(crate) async fn stop(mut self) -> Counted {
        self.done.store(true, Relaxed);
        let mut sum = Counted::default();
        while let Some(counted) = self.clients.join_next().await {
            let Ok(counted) = counted else {
                sum.failed += 1;
                continue;
            };
            sum.failed += counted.failed;
            sum.changed_sides += counted.changed_sides;
            for (generation, requests) in counted.generations {
                *sum.generations.entry(generation).or_default() += requests;
            }
        }
        sum
    }
}

/// Asks again and again; each answer says which generation decided about it.
async fn client(api: String, number: usize, done: Arc<AtomicBool>) -> Counted {
    let client = Client::new(api);
    let mut counted = Counted::default();
    let mut sides = [0u64; SESSIONS];
    let mut turn = 0;
    while !done.load(Relaxed) {
        let session = turn % SESSIONS;
        let name = format!("client-{number}-session-{session}");
        let body = json!({
            "model": "tiny-agent",
            "messages": [{ "role": "user", "content": format!("{name}: what is 17 * 23?") }],
            "max_tokens": 8,
        });
        let headers = [("content-type", "application/json"), ("x-session-id", name.as_str())];
        let reply = client.send_with(Method::POST, "/v1/chat/completions", &headers, body.to_string()).await;
        match reply {
            Ok(reply) if reply.status.is_success() => {
                let generation = reply.header("x-pointsman-generation").parse().unwrap_or(0);
                // The first two generations are the two sides; a session that went over does not come back.
                let changed = sides[session] == 2 && generation == 1;
                counted.changed_sides += u64::from(changed);
                sides[session] = generation;
                *counted.generations.entry(generation).or_default() += 1;
            }
            _ => counted.failed += 1,
        }
        turn += 1;
        tokio::time::sleep(PAUSE).await;
    }
    counted
}
