//! What wit-bindgen makes of the contract: one world a slot and one for `state`, so that a plugin
//! exports any subset.

/// The world of one slot, with the types that all slots share.
macro_rules! slot_world {
    ($module:ident, $world:literal) => {
        #[allow(missing_docs, reason = "generated from the contract, which is documented there")]
        #[allow(clippy::allow_attributes_without_reason, reason = "generated")]
        pub mod $module {
            wit_bindgen::generate!({
                path: "../../wit/v0.1.1",
                world: $world,
                pub_export_macro: true,
                generate_all,
            });
        }
    };
}

slot_world!(describe, "describe-only");
slot_world!(hints, "hints-only");
slot_world!(admit, "admit-only");
slot_world!(filter, "filter-only");
slot_world!(score, "score-only");
slot_world!(pick, "pick-only");
slot_world!(route, "route-only");
slot_world!(schedule, "schedule-only");
slot_world!(plan, "plan-only");
slot_world!(retain, "retain-only");
slot_world!(observe, "observe-only");
slot_world!(state, "state-only");
