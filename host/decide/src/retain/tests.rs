use kv::{BlockName, Fingerprint};
use policy::Attributes;

use super::*;

const BLOCK: usize = 4;

/// A pool that holds these prompts' blocks, given back.
fn pool(pages: u32, bounds: KeepBounds, prompts: &[&[u32]]) -> BlockPool {
    let mut pool = BlockPool::new(pages, BLOCK as u32).with_keep_bounds(bounds);
    for prompt in prompts {
        let names = names(prompt);
        let mut held = pool.pin_prefix(&names);
        let lent = held.len().saturating_sub(1);
        for at in held.len()..names.len() {
            let page = pool.allocate(1).expect("room");
            pool.seal(page[0], names[at], at.checked_sub(1).map(|up| names[up]));
            held.extend(page);
        }
        pool.release(&held[lent..]);
    }
    pool
}

fn names(tokens: &[u32]) -> Vec<BlockName> {
    BlockName::names(Fingerprint(1), 0, tokens, BLOCK)
}

fn conversation(session: u64, tokens: &[u32], parts: &[u32]) -> Conversation {
    let mut start = 0;
    let stretch = |&tokens: &u32| {
        let part = Stretch { role: Role::History, start, tokens, wish_ttl_ms: 0 };
        start += tokens;
        part
    };
    let stretches = parts.iter().map(stretch).collect();
    Conversation {
        session,
        parent: 0,
        class: 0,
        tenant: 0,
        live: true,
        used_ms: 0,
        wish_priority: 0,
        attributes: Attributes::default(),
        names: names(tokens),
        stretches,
        priorities: vec![],
    }
}

fn retainer() -> Retainer {
    Retainer::new((0, 1), RetainRules { block_tokens: BLOCK as u32, ttl_ms_max: 10_000, mark_pages: 8 })
}

fn keep(priority: u8, ttl_ms: u32) -> Keep {
    Keep { priority, ttl_ms, ..Keep::ORDINARY }
}

const DROP: Keep = Keep { drop: true, ..Keep::ORDINARY };

/// Asked at 1,000 ms: applies answers to a conversation; what its blocks are worth then, and what was clipped.
fn answer(
    pool: &mut BlockPool,
    of: &Conversation,
    occasion: Occasion,
    keeps: &[Keep],
    shared: &[u8],
) -> (Vec<Retention>, Vec<(u32, u32, String)>) {
    let mut clips = Clips { keeps, clips: BTreeMap::new() };
    let wanted = retainer().wanted(of, 0..keeps.len(), &mut clips, (1_000, Tier::Hbm));
    apply((of, shared), occasion, &wanted, (pool, None), &mut clips);
    let worth = of.names.iter().map(|name| pool.retention(name).expect("resident")).collect();
    (worth, clips.clips.into_values().map(|clip| (clip.row, clip.got.ttl_ms, clip.bound)).collect())
}

fn worth(priority: u8, until_ms: u64) -> Retention {
    Retention { priority, until_ms, drop: false }
}

const TWELVE: [u32; 12] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];

#[test]
fn a_block_in_two_segments_takes_the_larger() {
    let mut pool = pool(8, KeepBounds::NONE, &[&TWELVE]);
    let of = conversation(1, &TWELVE, &[6, 6]);
    let (worth_of, clips) = answer(&mut pool, &of, Occasion::TurnCommitted, &[keep(70, 0), keep(20, 0)], &[]);
    assert_eq!(worth_of, [worth(70, 0), worth(70, 0), worth(20, 0)]);
    assert!(clips.is_empty());
    let (worth_of, _) = answer(&mut pool, &of, Occasion::Pressure, &[DROP, keep(20, 0)], &[]);
    assert_eq!(worth_of, [Retention::DROPPED, worth(20, 0), worth(20, 0)]);
}

#[test]
fn what_stands_before_a_kept_segment_is_kept_as_long() {
    let mut pool = pool(8, KeepBounds::NONE, &[&TWELVE]);
    let of = conversation(1, &TWELVE, &[4, 4, 4]);
    let keeps = [DROP, keep(60, 9_000), keep(50, 5_000)];
    let (worth_of, clips) = answer(&mut pool, &of, Occasion::TurnCommitted, &keeps, &[]);
    assert_eq!(worth_of, [worth(60, 10_000), worth(60, 10_000), worth(50, 6_000)]);
    assert!(clips.is_empty());
}

#[test]
fn a_time_beyond_the_bound_is_clipped_and_told() {
    let mut pool = pool(8, KeepBounds::NONE, &[&TWELVE]);
    let of = conversation(1, &TWELVE, &[4, 8]);
    let (worth_of, clips) =
        answer(&mut pool, &of, Occasion::TurnCommitted, &[keep(50, 99_000), keep(50, 10)], &[]);
    assert_eq!(worth_of[0], worth(50, 11_000));
    assert_eq!(clips, [(0, 10_000, "ttl".to_owned())]);
}

#[test]
fn a_full_share_keeps_the_beginning_and_tells_who_lost() {
    for (bounds, bound) in [
        (KeepBounds { pages_max: 2, tenant_pages_max: 9 }, "pinned-share"),
        (KeepBounds { pages_max: 9, tenant_pages_max: 2 }, "tenant-share"),
    ] {
        let mut pool = pool(8, bounds, &[&TWELVE]);
        let of = conversation(1, &TWELVE, &[4, 8]);
        let (worth_of, clips) =
            answer(&mut pool, &of, Occasion::TurnCommitted, &[keep(50, 9_000), keep(60, 5_000)], &[]);
        assert_eq!(worth_of, [worth(50, 10_000), worth(60, 6_000), worth(60, 0)]);
        assert_eq!(clips, [(1, 0, bound.to_owned())]);
    }
}

#[test]
fn what_other_sessions_have_too_loses_nothing() {
    let mut pool = pool(8, KeepBounds::NONE, &[&TWELVE]);
    let of = conversation(1, &TWELVE, &[12]);
    answer(&mut pool, &of, Occasion::TurnCommitted, &[keep(70, 5_000)], &[]);
    let (worth_of, _) = answer(&mut pool, &of, Occasion::SessionEnded, &[DROP], &[70]);
    assert_eq!(worth_of, [worth(70, 6_000), Retention::DROPPED, Retention::DROPPED]);
    let (worth_of, _) = answer(&mut pool, &of, Occasion::Pressure, &[keep(30, 0)], &[40]);
    assert_eq!(worth_of[0], worth(40, 6_000), "what the others say of it now, not what was said once");
}

#[test]
fn a_session_that_goes_another_way_leaves_its_old_way_to_go_first() {
    const OTHER: [u32; 8] = [1, 2, 3, 4, 99, 98, 97, 96];
    let mut pool = pool(8, KeepBounds::NONE, &[&TWELVE, &OTHER]);
    let before = conversation(1, &TWELVE, &[12]);
    answer(&mut pool, &before, Occasion::TurnCommitted, &[keep(70, 0)], &[]);
    let mut memory = Memory::default();
    memory.remember(before.clone(), 100);
    forsake(&conversation(1, &OTHER, &[8]), &memory, &mut pool);
    let worth_of: Vec<_> = before.names.iter().map(|name| pool.retention(name).expect("resident")).collect();
    assert_eq!(worth_of, [worth(70, 0), worth(0, 0), worth(0, 0)]);
}

#[test]
fn a_turn_without_a_wish_shortens_none_and_the_next_look_at_all_may() {
    let mut pool = pool(8, KeepBounds::NONE, &[&TWELVE]);
    let of = conversation(1, &TWELVE, &[12]);
    answer(&mut pool, &of, Occasion::TurnCommitted, &[keep(70, 5_000)], &[]);
    let (worth_of, _) = answer(&mut pool, &of, Occasion::TurnCommitted, &[keep(40, 0)], &[]);
    assert_eq!(worth_of, [worth(40, 6_000); 3]);
    let (worth_of, _) = answer(&mut pool, &of, Occasion::Pressure, &[keep(40, 0)], &[]);
    assert_eq!(worth_of, [worth(40, 0); 3]);
}

#[test]
fn reuse_is_that_of_the_first_block_of_a_segments_own() {
    let part = |start, tokens| Stretch { role: Role::History, start, tokens, wish_ttl_ms: 0 };
    let retainer = retainer();
    let firsts = [part(0, 8), part(3, 9), part(5, 2), part(6, 5)].map(|part| retainer.first_block(&part));
    assert_eq!(firsts, [0, 1, 1, 1]);
}
