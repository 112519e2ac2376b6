//! Every slot in one policy: what crosses, what the cases show, and what the laws catch.

use pointsman_sdk::bindings;
use pointsman_sdk::guest::Component;
use pointsman_sdk::host::store;
use pointsman_sdk::testing::{
    AdmitCase, RetainCase, RouteCase, ScheduleCase, clear_store, laws, policy, set_store_quota,
};
use pointsman_sdk::{
    Admit, AdmitView, CacheEvent, Clip, Columns, Event, Frame, Keep, Plan, Policy, Retain, RetainView, Role,
    Route, RouteDecision, RouteView, SchedulePlan, ScheduleView, State, Tier, Verdict, export, name_id,
    state,
};
use serde::Deserialize;

/// One fault a word, each of which breaks one law.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Config {
    fault: String,
}

/// Lets gold in, has others wait, and remembers how many came and what was clipped.
struct Everything {
    config: Config,
    seen: Vec<u64>,
    clipped: Vec<Clip>,
}

impl Policy for Everything {
    type Config = Config;

    fn new(config: Config) -> Result<Self, String> {
        Ok(Self { config, seen: vec![], clipped: vec![] })
    }
}

impl Everything {
    fn has(&self, fault: &str) -> bool {
        self.config.fault == fault
    }
}

impl Admit for Everything {
    const REQUEST: Columns = Columns::numbers(&["prompt_tokens", "attr.gold"]).ids(&["tenant", "attr.plan"]);
    const FLEET: Columns = Columns::numbers(&["tenant_running"]);

    fn admit(&mut self, view: &AdmitView<'_>) -> Option<Verdict> {
        self.seen.push(view.request.id("tenant"));
        if view.request.value("attr.gold") > 0.0 || view.request.id("attr.plan") == 3 {
            return Some(Verdict::Admit);
        }
        if self.has("shared") {
            let count = store::get("count").map_or(0, |value| value[0]);
            let _ = store::set("count", &[count.wrapping_add(1)]);
            return Some(Verdict::DeferUntil { ms: view.frame.now_ms + 1 + u64::from(count) });
        }
        let late = self.seen.len().is_multiple_of(2);
        Some(match late {
            _ if self.has("past") => Verdict::DeferUntil { ms: view.frame.now_ms },
            _ if self.has("seconds") => Verdict::DeferUntil { ms: view.frame.now_ms * 1000 },
            _ if self.has("talk") => Verdict::Reject { retry_after_ms: 1, reason: "no ".repeat(100) },
            true => Verdict::DeferUntil { ms: view.frame.now_ms + 500 },
            false => Verdict::Reject { retry_after_ms: 2_000, reason: "the house is full".to_owned() },
        })
    }
}

impl Route for Everything {
    const CANDIDATE: Columns = Columns::numbers(&["queue_len"]);

    fn decide(&mut self, view: &RouteView<'_>) -> Option<RouteDecision> {
        let queue = view.candidates.column("queue_len");
        let row = (0..queue.len()).min_by(|one, other| queue[*one].total_cmp(&queue[*other]))?;
        let beyond = if self.has("beyond") { queue.len() } else { row };
        Some(RouteDecision { candidate: beyond as u32, reason: Some("shortest queue".to_owned()) })
    }
}

impl Plan for Everything {
    const BUDGET: Columns = Columns::numbers(&["step_tokens"]);
    const SEQUENCE: Columns = Columns::numbers(&["output_tokens", "attr.gold"]).ids(&["tenant"]);

    fn plan(&mut self, view: &ScheduleView<'_>) -> Option<SchedulePlan> {
        let (waiting, running) = (view.waiting.rows() as u32, view.running.rows() as u32);
        let mut plan = SchedulePlan {
            order: (0..waiting).rev().collect(),
            chunk_tokens: vec![view.budget.value("step_tokens") as u32; (waiting + running) as usize],
            victims: (0..running).collect(),
        };
        match self.config.fault.as_str() {
            "order" => plan.order.fill(0),
            "chunks" => plan.chunk_tokens.push(1),
            "twice" => plan.victims.extend(0..running),
            "waits" => plan.victims.push(running),
            _ => {}
        }
        Some(plan)
    }
}

impl Retain for Everything {
    const CACHE: Columns = Columns::numbers(&["event", "pages_free"]).ids(&["worker"]);
    const SEGMENT: Columns = Columns::numbers(&["role", "attr.keep"]);

    fn retain(&mut self, view: &RetainView<'_>) -> Option<Vec<Keep>> {
        let keep = |(role, wish): (&f32, &f32)| match Role::of(*role) {
            Some(Role::Reasoning) => Keep { drop: true, ..Keep::default() },
            Some(Role::System) => {
                Keep { priority: 90, ttl_ms: 1000, tier_floor: Some(Tier::Host), drop: false }
            }
            _ if *wish > 0.0 => Keep { ttl_ms: *wish as u32, ..Keep::default() },
            _ => Keep::default(),
        };
        let wishes = view.segments.column("attr.keep");
        let mut answer: Vec<Keep> = view.segments.column("role").iter().zip(wishes).map(keep).collect();
        match self.config.fault.as_str() {
            "priority" => answer.iter_mut().for_each(|keep| keep.priority = 101),
            "short" => _ = answer.pop(),
            _ => {}
        }
        Some(answer)
    }

    fn clipped(&mut self, _: Frame, clips: &[Clip]) {
        assert!(!self.has("proud") || clips.is_empty(), "nobody clips me");
        self.clipped = clips.to_vec();
    }
}

impl State for Everything {
    const SCHEMA: &'static str = "everything/1";

    fn export_state(&self, schema: &str) -> Option<Vec<u8>> {
        state::expect::<Self>(schema).ok()?;
        state::to_bytes(&self.seen)
    }

    fn import_state(&mut self, schema: &str, bytes: &[u8]) -> Result<(), String> {
        if self.has("credulous") {
            self.seen = bytes.iter().map(|byte| u64::from(*byte)).collect();
        }
        if !self.has("any-schema") {
            state::expect::<Self>(schema)?;
        }
        if !self.has("forgetful") {
            self.seen = state::from_bytes(bytes)?;
        }
        Ok(())
    }
}

export!(Everything: admit, route, plan, retain, state);

fn it(fault: &str) -> Everything {
    policy(&config(fault))
}

fn config(fault: &str) -> String {
    format!(r#"{{"fault": "{fault}"}}"#)
}

/// How many it has seen is what its answers hang on.
fn state_law(fault: &str) {
    laws::state(&config(fault), |policy: &mut Everything, seed| {
        (policy.seen.len(), AdmitCase::random(seed).admit(policy))
    });
}

/// Whether a law fails, and says so in these words.
fn broken(law: impl FnOnce() + std::panic::UnwindSafe, words: &str) {
    let panic = std::panic::catch_unwind(law).expect_err("the law does not hold");
    let text = panic.downcast_ref::<String>().cloned();
    let text =
        text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default();
    assert!(text.contains(words), "{text}");
}

#[test]
fn it_keeps_the_laws_of_its_slots() {
    laws::admit::<Everything>("{}");
    laws::route::<Everything>("{}");
    laws::plan::<Everything>("{}");
    laws::retain::<Everything>("{}");
    state_law("");
}

#[test]
fn laws_catch_a_bad_verdict() {
    broken(|| laws::admit::<Everything>(&config("past")), "is over at");
    broken(|| laws::admit::<Everything>(&config("seconds")), "is too long");
    broken(|| laws::admit::<Everything>(&config("talk")), "at most 256 bytes");
}

#[test]
fn laws_catch_a_bad_route_and_a_bad_plan() {
    broken(|| laws::route::<Everything>(&config("beyond")), "is not a candidate");
    broken(|| laws::plan::<Everything>(&config("order")), "not a permutation");
    broken(|| laws::plan::<Everything>(&config("chunks")), "chunks for");
    broken(|| laws::plan::<Everything>(&config("twice")), "named twice");
    broken(|| laws::plan::<Everything>(&config("waits")), "that run");
}

#[test]
fn laws_catch_a_bad_retention() {
    broken(|| laws::retain::<Everything>(&config("priority")), "above 100");
    broken(|| laws::retain::<Everything>(&config("short")), "one answer a segment");
    broken(|| laws::retain::<Everything>(&config("proud")), "nobody clips me");
}

#[test]
fn laws_catch_a_state_that_is_lost_or_taken_from_anybody() {
    broken(|| state_law("forgetful"), "the state changed on the way");
    broken(|| state_law("any-schema"), "left their mark");
    broken(|| state_law("credulous"), "left their mark");
}

#[test]
fn two_instances_in_a_law_do_not_share_a_store() {
    clear_store();
    laws::admit::<Everything>(&config("shared"));
    assert_eq!(store::get("count"), None, "a law leaves the store of its thread alone");
}

#[test]
fn an_attribute_is_a_column_that_is_zero_until_it_is_said() {
    let admitted = |case: AdmitCase| case.admit(&mut it("")) == Some(Verdict::Admit);
    assert!(!admitted(AdmitCase::new()));
    assert!(admitted(AdmitCase::new().request("attr.gold", 1.0)));
    assert!(admitted(AdmitCase::new().request_id("attr.plan", 3)));

    let case = RetainCase::new(2).roles(&[Role::History; 2]).segments("attr.keep", &[0.0, 70.0]);
    let keeps = case.event(CacheEvent::Pressure).retain(&mut it("")).expect("it answers");
    assert_eq!((keeps[0], keeps[1].ttl_ms), (Keep::default(), 70));
    let case = ScheduleCase::new(1, 1).waiting("attr.gold", &[1.0]).running("attr.gold", &[0.0]);
    assert!(case.plan(&mut it("")).is_some());
}

#[test]
fn drawn_cases_say_attributes_now_and_then() {
    let said =
        (0..100).filter(|seed| AdmitCase::random(*seed).admit(&mut it("")) == Some(Verdict::Admit)).count();
    assert!((10..90).contains(&said), "{said} of 100");
}

#[test]
fn a_candidate_has_no_attributes_and_no_table_has_columns_without_a_name() {
    broken(|| _ = RouteCase::new(1).candidates("attr.gold", &[1.0]), "no host offers the column `attr.gold`");
    broken(|| _ = RouteCase::new(1).request("attr.", 1.0), "no host offers the column `attr.`");
    broken(|| _ = AdmitCase::new().fleet("attr.gold", 1.0), "no host offers");
}

#[test]
fn a_plan_is_declared_as_schedule_and_a_state_not_at_all() {
    use bindings::describe::exports::pointsman::policy::describe::Guest;
    let description = Component::<Everything>::describe();
    assert_eq!(description.slots, ["admit", "route", "schedule", "retain"]);
    let tables: Vec<(&str, &str)> =
        description.inputs.iter().map(|input| (input.slot.as_str(), input.table.as_str())).collect();
    let expected = [
        ("admit", "request"),
        ("admit", "fleet"),
        ("route", "request"),
        ("route", "candidate"),
        ("schedule", "budget"),
        ("schedule", "sequence"),
        ("retain", "cache"),
        ("retain", "segment"),
    ];
    assert_eq!(tables, expected);
    assert_eq!(description.inputs[0].numbers, ["prompt_tokens", "attr.gold"]);
}

/// The exported functions, called as a host calls them.
#[test]
fn answers_cross_as_the_contract_has_them() {
    use bindings::admit::exports::pointsman::policy::admit::{Frame, Guest as _, Rejection, Verdict};
    use bindings::describe::exports::pointsman::policy::describe::Guest as _;
    use bindings::plan::exports::pointsman::policy::plan::{Frame as PlanFrame, Guest as _};
    use bindings::retain::exports::pointsman::policy::retain;
    use bindings::route::exports::pointsman::policy::route::{Frame as RouteFrame, Guest as _};
    use bindings::state::exports::pointsman::policy::state::Guest as _;
    use retain::Guest as _;
    type It = Component<Everything>;

    let frame = Frame { now_ms: 1_000, seed: 1 };
    assert!(It::admit(frame, vec![0.0; 3], vec![7, 0]).is_none(), "before it is configured it abstains");
    assert!(It::import_state("everything/1".to_owned(), b"[]".to_vec()).is_err());
    It::configure("{}".to_owned()).expect("an empty object will do");

    let verdict = It::admit(frame, vec![0.0; 3], vec![7, 0]);
    let full = |it: &Rejection| it.retry_after_ms == 2_000 && it.reason == "the house is full";
    assert!(matches!(&verdict, Some(Verdict::Reject(it)) if full(it)), "{verdict:?}");
    let verdict = It::admit(frame, vec![0.0; 3], vec![8, 0]);
    assert!(matches!(verdict, Some(Verdict::DeferUntil(1_500))), "{verdict:?}");

    let chosen =
        It::decide(RouteFrame { now_ms: 0, seed: 0 }, 2, vec![4.0, 3.0], vec![]).expect("it answers");
    assert_eq!((chosen.candidate, chosen.reason.as_deref()), (1, Some("shortest queue")));
    let plan =
        It::plan(PlanFrame { now_ms: 0, seed: 0 }, 2, 1, [&[64.0][..], &[0.0; 6]].concat(), vec![0; 3]);
    let plan = plan.expect("it answers");
    assert_eq!((plan.order, plan.chunk_tokens, plan.victims), (vec![1, 0], vec![64; 3], vec![0]));

    let numbers =
        vec![CacheEvent::TurnCommitted.cell(), 9.0, Role::System.cell(), Role::Reasoning.cell(), 0.0, 0.0];
    let keeps = It::retain(retain::Frame { now_ms: 0, seed: 0 }, 2, numbers, vec![5]).expect("it answers");
    assert_eq!((keeps[0].priority, keeps[0].tier_floor), (90, Some(retain::Tier::Host)));
    assert!(keeps[1].drop && keeps[1].tier_floor.is_none());
    let clip = retain::Clip { row: 0, got: keeps[0], bound: "ttl".to_owned() };
    It::clipped(retain::Frame { now_ms: 0, seed: 0 }, vec![clip]);

    assert_eq!(It::schema(), "everything/1");
    assert_eq!(It::export_state("everything/1".to_owned()).as_deref(), Some(&b"[7,8]"[..]));
    assert_eq!(It::export_state("everything/2".to_owned()), None);
    let refusal = It::import_state("everything/2".to_owned(), b"[]".to_vec());
    assert_eq!(
        refusal,
        Err("the state is of the schema `everything/2`; this policy reads `everything/1`".to_owned())
    );
}

#[test]
fn a_store_refuses_what_exceeds_its_quota_and_keys_that_are_none() {
    clear_store();
    set_store_quota(10);
    assert_eq!(store::set("ab", b"12345678"), Ok(()));
    assert_eq!(store::set("c", b""), Err(store::Refusal::Quota));
    assert_eq!(store::set("ab", b"123456789"), Err(store::Refusal::Quota));
    assert_eq!(store::get("ab").as_deref(), Some(&b"12345678"[..]), "a refusal leaves what was there");
    assert_eq!(store::set("ab", b"1"), Ok(()));
    assert_eq!(store::set("aa", b"1"), Ok(()));
    assert_eq!(store::keys("a"), ["aa", "ab"]);
    store::remove("aa");
    assert_eq!((store::keys(""), store::get("aa")), (vec!["ab".to_owned()], None));
    set_store_quota(1 << 20);
    assert_eq!(store::set("", b"1"), Err(store::Refusal::Key));
    assert_eq!(store::set(&"k".repeat(257), b"1"), Err(store::Refusal::Key));
    assert_eq!(store::set(&"k".repeat(256), b"1"), Ok(()));
}

#[test]
fn a_cell_says_what_it_was_made_from() {
    assert_eq!(Role::of(Role::ToolResult.cell()), Some(Role::ToolResult));
    assert_eq!(Event::of(Event::Failed.cell()), Some(Event::Failed));
    assert_eq!(CacheEvent::of(1.0), Some(CacheEvent::SessionEnded));
    assert_eq!((Role::of(6.0), Role::of(0.5), CacheEvent::of(f32::NAN)), (None, None, None));
}

/// The values are part of the contract: hosts show them, and policies in other languages compare with them.
#[test]
fn a_name_has_the_same_id_everywhere() {
    const SUBAGENT: u64 = name_id("subagent");
    assert_eq!(SUBAGENT, 0xe115_21b4_d210_5589);
    assert_eq!(name_id("ü"), 0x772d_5ffd_bcb8_f81a);
    assert_eq!(name_id(""), 0);
}
