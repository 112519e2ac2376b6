use std::sync::atomic::Ordering::Relaxed;

use super::*;
use crate::prompt::Tokens;

fn names(names: &[u128]) -> Arc<[BlockName]> {
    names.iter().copied().map(BlockName).collect()
}

/// A session whose next prompt was handed to a worker.
fn given(speculation: &Speculation, session: u64, blocks: &[u128]) -> mpsc::Sender<Event> {
    let (events, received) = mpsc::channel(2);
    let mut kept = speculation.kept.lock();
    kept.put(session);
    let pending = kept.sessions.get_mut(&session).expect("it was put there");
    pending.given = Some(Given { blocks: names(blocks), events: received });
    events
}

fn prompt(blocks: &[u128]) -> Prompt {
    Prompt {
        tokens: Tokens::default(),
        blocks: names(blocks),
        salt: 0,
        adapter: None,
        guide: None,
        kept: None,
        in_reasoning: false,
        output_tokens_max: 0,
        segments: None,
    }
}

#[test]
fn what_the_next_request_found_is_counted_once_and_without_what_was_there_before() {
    let check = |known: u32, blocks: &[u128], cached: u32, expected: u64| {
        let speculation = Speculation::default();
        let events = given(&speculation, 7, &[1, 2, 3]);
        events.try_send(Event::Started { cached_tokens: known }).expect("there is room");
        let finish = crate::worker::Finish::Length;
        events.try_send(Event::Finished { finish, cached_tokens: known }).expect("there is room");
        let prepared = speculation.arrived(7).expect("it was started");
        assert!(speculation.arrived(7).is_none(), "it was taken");
        speculation.found(&prepared, &prompt(blocks), cached, 16);
        assert_eq!(speculation.counts.hit_tokens.load(Relaxed), expected);
        assert_eq!(speculation.counts.cancelled(Cancelled::NextTurn), 0);
    };
    check(16, &[1, 2, 3, 4], 48, 32);
    check(16, &[1, 2, 9, 4], 64, 16);
    check(16, &[9], 16, 0);
    check(48, &[1, 2, 3], 48, 0);
    check(0, &[1, 2, 3], 32, 32);
}

#[test]
fn the_next_request_ends_what_is_still_prepared() {
    let speculation = Speculation::default();
    let events = given(&speculation, 7, &[1]);
    assert!(speculation.arrived(7).is_none(), "nothing was started");
    assert!(events.is_closed(), "its worker is told");
    assert_eq!(speculation.counts.cancelled(Cancelled::NextTurn), 1);
    assert!(speculation.arrived(0).is_none());
}

#[test]
fn sessions_that_never_come_back_are_forgotten() {
    let speculation = Speculation::default();
    let events = given(&speculation, 1, &[1]);
    let again = given(&speculation, 2, &[1]);
    for session in 0..SESSIONS_MAX as u64 - 1 {
        drop(given(&speculation, session + 10, &[1]));
    }
    assert!(events.is_closed());
    assert!(!again.is_closed());
    assert_eq!(speculation.kept.lock().sessions.len(), SESSIONS_MAX);
}
