//! How fast stores are through the tier, and what the tier costs its caller. Printed, not judged.

use tokio::time::Instant;

use super::servers::{REDIS, S3, Server};
use super::*;

const MIB: usize = 1 << 20;
const BLOCKS: u32 = 128;

fn measure(what: &str, url: &str) {
    let config = Config { url: url.to_owned(), writes_max: BLOCKS as usize, ..Config::default() };
    let config =
        Config { fetch_timeout_ms: 60_000, write_timeout_ms: 60_000, read_timeout_ms: 60_000, ..config };
    let rig = Rig::with_slots(&config, Geometry { block_bytes: MIB, ..GEOMETRY }, BLOCKS);
    let blocks: Vec<(BlockName, Slot)> =
        (0..u128::from(BLOCKS)).map(|name| (BlockName(name), rig.block(name))).collect();
    let rate = |since: Instant| f64::from(BLOCKS) / since.elapsed().as_secs_f64();
    let started = Instant::now();
    for (name, block) in blocks {
        assert_eq!(rig.remote.put(name, block), Outcome::Accepted);
    }
    assert!(rig.remote.drain(PATIENCE * 4));
    let put = rate(started);
    rig.remote.forget();
    let names: Vec<BlockName> = (0..u128::from(BLOCKS)).map(BlockName).collect();
    let slots: Vec<SlotMut> = names.iter().filter_map(|_| rig.arena.take()).collect();
    let (told, done) = mpsc::channel();
    let started = Instant::now();
    rig.remote.fetch(&names, slots, move |fetched| told.send(fetched).expect("the test waits"));
    let fetched = done.recv_timeout(PATIENCE * 4).expect("it ends");
    let (get, end) = (rate(started), fetched.end);
    let (got, stats) = (fetched.blocks.len(), rig.remote.stats());
    println!("{what}: put {put:.0} MiB/s, fetch {get:.0} MiB/s ({got} blocks, {end:?}), {stats:?}");
    assert_eq!(got, BLOCKS as usize);
}

#[test]
#[ignore = "measures; needs `moto_server` and `redis-server`"]
fn stores_are_this_fast() {
    measure("memory", "memory:");
    let folder = tempfile::tempdir().expect("there is a place for temporary files");
    measure("files", &format!("file://{}", folder.path().display()));
    measure("redis", &Server::redis().url(REDIS));
    measure("s3", &Server::moto().url(S3));
}

#[test]
#[ignore = "measures"]
fn callers_pay_this_much() {
    const TIMES: u32 = 100_000;
    let rig = Rig::at("memory:");
    rig.put_all([1]);
    assert_eq!(rig.fetched([2]), (0, End::Miss));
    let each = |what: &str, act: &dyn Fn()| {
        let started = Instant::now();
        (0..TIMES).for_each(|_| act());
        println!("{what}: {:.0} ns", started.elapsed().as_nanos() as f64 / f64::from(TIMES));
    };
    let block = rig.block(1);
    each("known", &|| assert_eq!(rig.remote.known(BlockName(1)), Known::Present));
    each("put of what is there", &|| {
        assert_eq!(rig.remote.put(BlockName(1), block.clone()), Outcome::Needless)
    });
    let names: Vec<BlockName> = (2..130).map(BlockName).collect();
    each("fetch of 128 that are absent", &|| {
        let slot = rig.arena.take().expect("a slot is free");
        assert_eq!(rig.remote.fetch(&names, vec![slot], |_| ()), Outcome::Needless);
    });
    each("stats", &|| assert_eq!(rig.remote.stats().puts, 1));
    let started = Instant::now();
    let mut fetches = 0;
    while started.elapsed() < Duration::from_secs(1) {
        assert_eq!(rig.fetched([1]), (1, End::All));
        fetches += 1;
    }
    println!("fetch of one block of {BLOCK_BYTES} bytes from memory, to its end: {} us", 1_000_000 / fetches);
}
