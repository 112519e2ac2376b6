//! Write Pointsman policies in Rust: implement the trait of a slot, name it in [`export!`], build.
//!
//! Each slot is a trait over a view; each view holds the clock, a seed, and the columns declared.
//! The same code runs natively in unit tests, where [`testing`] builds views and checks slot laws.
//! **Invariant:** a policy sees nothing but its configuration, its own state and the view.

#[doc(hidden)]
pub mod bindings;
mod bounds;
mod columns;
#[doc(hidden)]
pub mod guest;
mod hints;
pub mod host;
mod random;
mod slot;
pub mod state;
pub mod testing;
mod view;

pub use bounds::within;
pub use columns::{
    ATTRIBUTE, BUDGET, CACHE, CANDIDATE, Columns, FLEET, OUTCOME, REQUEST, SEGMENT, SEQUENCE, name_id,
};
pub use hints::{Hints, Value};
pub use random::Random;
pub use slot::{
    Admit, Clip, Filter, Interpret, Keep, NoConfig, Observe, Pick, Plan, Policy, Retain, Route,
    RouteDecision, Schedule, SchedulePlan, Score, State, Tier, Verdict,
};
pub use view::{
    AdmitView, CacheEvent, Event, Frame, HintsView, ObserveView, RetainView, Role, RouteView, ScheduleView,
    Table,
};

/// Makes the component: `export!(MyPolicy: score, observe);` with any of
/// `hints`, `admit`, `filter`, `score`, `pick`, `route`, `schedule` or `plan`, `retain`, `observe`, `state`.
///
/// Name and version are those of the package. Natively it only checks that the traits are there.
#[macro_export]
macro_rules! export {
    ($policy:ident: $($slot:ident),+ $(,)?) => {
        const _: () = {
            impl $crate::guest::Exported for $policy {
                const NAME: &'static str = env!("CARGO_PKG_NAME");
                const VERSION: &'static str = env!("CARGO_PKG_VERSION");

                fn slots() -> ::std::vec::Vec<$crate::guest::SlotInputs> {
                    [$($crate::guest::inputs::$slot::<$policy>()),+].into_iter().flatten().collect()
                }

                fn cell() -> &'static ::std::thread::LocalKey<::std::cell::RefCell<::std::option::Option<Self>>> {
                    ::std::thread_local! {
                        static POLICY: ::std::cell::RefCell<::std::option::Option<$policy>> =
                            const { ::std::cell::RefCell::new(::std::option::Option::None) };
                    }
                    &POLICY
                }
            }

            #[cfg(target_arch = "wasm32")]
            type PointsmanComponent = $crate::guest::Component<$policy>;
            #[cfg(target_arch = "wasm32")]
            $crate::bindings::describe::export!(PointsmanComponent with_types_in $crate::bindings::describe);
            $(
                #[cfg(target_arch = "wasm32")]
                $crate::bindings::$slot::export!(PointsmanComponent with_types_in $crate::bindings::$slot);
            )+
        };
    };
}
