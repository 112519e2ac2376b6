use std::time::Duration;

use http::HeaderMap;
use serde_json::{Map, Value};

use super::*;
use crate::api::Api;
use crate::caller::Target;
use crate::conversation::Answers;
use crate::failure::Failure;
use crate::identity::Identity;
use crate::plan::{Bounds, Pauses, Slo, Warmup};

fn plan() -> Plan {
    let (base, headers) = ("http://x/v1".to_owned(), HeaderMap::new());
    let timeout = Duration::from_secs(9);
    Plan {
        target: Target { api: Api::Chat, base, headers, authorities: None, timeout },
        model: None,
        identity: Identity::Nobody,
        extra: Map::new(),
        shape: Shape::Closed { sessions: 2 },
        bounds: Bounds {
            warmup: Warmup::Requests(0),
            requests: 9,
            duration: None,
            grace: timeout,
            in_flight: 1,
        },
        answers: Answers::AsCame,
        pauses: Pauses::Ignored,
        output_max: None,
        tokens_per_word: None,
        slo: Slo { ttft_ms: Some(20.0), itl_ms: Some(5.0) },
        seed: 1,
        threads: 1,
        json: None,
        html: None,
    }
}

fn seen() -> Seen {
    Seen {
        ended: Ended::Sessions,
        stopped: None,
        took: Duration::from_secs(2),
        cpu: Duration::from_millis(1),
        unfinished: 0,
        in_flight_max: 2,
        calibrated: Calibrated { tokens_per_word: 1.0, how: Known::Given },
        model: "<m&m>".to_owned(),
    }
}

/// A request that was sent at a millisecond: first token, end, turn, and input tokens of which some were cached.
fn sample(at: u64, ttft: u64, end: u64, turn: u32, (input, cached): (u64, u64)) -> Sample {
    let ms = |ms: u64| Duration::from_millis(ms);
    Sample {
        from: ms(at),
        due: ms(at),
        sent: ms(at + 1),
        first: Some(ms(at + ttft)),
        last: Some(ms(at + end)),
        end: ms(at + end),
        turn,
        input_tokens: Some(input),
        cached_tokens: Some(cached),
        output_tokens: 11,
        is_output_told: true,
    }
}

fn tally() -> Tally {
    let samples = vec![
        sample(0, 10, 60, 0, (100, 0)),
        sample(100, 20, 120, 1, (200, 150)),
        sample(500, 30, 80, 1, (200, 100)),
        sample(900, 40, 100, 2, (300, 300)),
    ];
    let mut tally = Tally { samples, warm: 3, ..Tally::default() };
    (1..=100).for_each(|ms| tally.gaps.add(ms * 1000));
    tally.failures.add(&Failure::Status {
        status: 429,
        kind: "busy".to_owned(),
        message: "<later>".to_owned(),
    });
    tally
}

fn report() -> Value {
    let report = Report::of(&plan(), "made: up".to_owned(), &tally(), seen());
    serde_json::from_str(&report.json()).expect("it is JSON")
}

#[test]
fn figures_are_what_a_hand_computes() {
    let report = report();
    assert_eq!(report["window_s"], 1.0);
    assert_eq!(report["throughput"]["requests_per_s"], 4.0);
    assert_eq!(report["throughput"]["output_tokens_per_s"], 44.0);
    assert_eq!(report["throughput"]["input_tokens_per_s"], 800.0);
    assert_eq!(report["tokens"]["cached_share"], 550.0 / 800.0);
    let ttft = &report["ttft_ms"];
    assert_eq!([&ttft["min"], &ttft["p50"], &ttft["p90"], &ttft["max"]], [10.0, 20.0, 40.0, 40.0]);
    assert_eq!(ttft["mean"], 25.0);
    assert_eq!(report["e2e_ms"]["p50"], 80.0);
    // Ten gaps after the first of eleven tokens: 50, 100, 50 and 60 ms.
    assert_eq!(report["itl_mean_ms"]["p50"], 5.0);
    assert_eq!(report["itl_mean_ms"]["max"], 10.0);
    let p50 = report["itl_ms"]["p50"].as_f64().expect("it is a number");
    assert!((p50 - 50.0).abs() < 0.5, "{p50}");
    assert_eq!(
        report["in_flight"]["mean"], 0.356,
        "360 ms of requests in a second, less 1 ms each until they were sent"
    );
    assert_eq!(report["generator"]["lag_ms"]["p99"], 1.0);
    assert_eq!(
        report["generator"]["cpu_us_per_request"], 125.0,
        "three to warm up, four answered, one failed"
    );
}

#[test]
fn what_ends_after_the_load_is_no_throughput() {
    let stopped = Some(Duration::from_millis(550));
    let seen = Seen { ended: Ended::Duration, stopped, ..seen() };
    let report = Report::of(&plan(), String::new(), &tally(), seen);
    assert_eq!(report.window_s, 0.55);
    assert_eq!(
        report.throughput.requests_per_s,
        2.0 / 0.55,
        "the third ended at 580 ms, the fourth at a second"
    );
    assert_eq!(report.ttft_ms.map(|ttft| ttft.count), Some(4), "their latencies are as good as others");
    assert!((report.in_flight.mean - (59.0 + 119.0 + 49.0) / 550.0).abs() < 1e-9);
}

#[test]
fn turns_are_told_apart() {
    let report = report();
    assert_eq!(report["first_turn"]["cached_share"], 0.0);
    assert_eq!(report["later_turns"]["requests"], 3);
    assert_eq!(report["later_turns"]["cached_share"], 550.0 / 700.0);
    let turns: Vec<(u64, f64)> = report["turns"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|t| (t["turn"].as_u64().unwrap(), t["input_tokens_mean"].as_f64().unwrap()))
        .collect();
    assert_eq!(turns, [(1, 100.0), (2, 200.0), (3, 300.0)]);
}

#[test]
fn goodput_counts_failures_as_bad() {
    let report = report();
    // Of five requests the first is within both limits; the second has gaps of 10 ms; the others begin too late.
    assert_eq!(report["goodput"]["share"], 0.2);
    assert_eq!(report["goodput"]["requests_per_s"], 1.0);
}

#[test]
fn a_run_in_which_nothing_was_answered_has_a_report_too() {
    let mut tally = Tally::default();
    tally.failures.add(&Failure::Connect("refused".to_owned()));
    let report =
        Report::of(&plan(), "made: up".to_owned(), &tally, Seen { ended: Ended::Unreachable, ..seen() });
    assert!(report.all_failed());
    assert_eq!(report.failure(), "every request failed, most by `connect`: refused");
    let table = report.table();
    assert!(table.contains("TTFT                    -"), "{table}");
    assert!(table.contains("1 by connect: refused") && table.contains("nobody listened"), "{table}");
    check_closed(&report.page());
    assert!(!Report::of(&plan(), String::new(), &self::tally(), seen()).all_failed());
}

/// Every tag is closed in its order, and there is nothing that a page would have to fetch.
fn check_closed(page: &str) {
    let body = page.strip_prefix("<!DOCTYPE html>\n").expect("it says what it is");
    let mut open: Vec<&str> = Vec::new();
    for rest in body.split('<').skip(1) {
        let (tag, _) = rest.split_once('>').expect("a tag ends");
        let name = tag.trim_start_matches('/').split([' ', '/']).next().expect("there is a first word");
        assert!(name.chars().all(|c| c.is_ascii_alphanumeric()) && !name.is_empty(), "<{tag}>");
        if tag.starts_with('/') {
            assert_eq!(open.pop(), Some(name));
        } else if !tag.ends_with('/') {
            open.push(name);
        }
        assert_eq!(tag.matches('"').count() % 2, 0, "<{tag}>");
    }
    assert!(open.is_empty(), "{open:?}");
    for foreign in ["<script", "<link", "src=", "url(", "@import"] {
        assert!(!page.contains(foreign), "{foreign}");
    }
}

#[test]
fn the_page_is_well_formed_whatever_a_server_says() {
    let report = Report::of(&plan(), "made: up".to_owned(), &tally(), seen());
    let page = report.page();
    check_closed(&page);
    assert_eq!(page.matches("<svg").count(), 6);
    assert!(page.contains("&lt;m&amp;m&gt;") && page.contains("&lt;later&gt;"));
}

#[test]
fn fields_of_the_json_keep_their_names() {
    let report = report();
    let names: Vec<&String> = report.as_object().expect("it is an object").keys().collect();
    let documented = include_str!("../../README.md");
    for name in &names {
        assert!(documented.contains(&format!("`{name}`")), "`{name}` is not in the README");
    }
    assert_eq!(report["schema"], 1);
    assert_eq!(report["timeline"].as_array().map(Vec::len), Some(10));
    assert_eq!(report["timeline"][0]["ttft_ms_p95"], 10.0);
}
