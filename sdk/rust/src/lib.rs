//! Write Pointsman policies in Rust: implement the trait of a slot, name it in [`export!`], build.
//!
//! Each slot is a trait over a view; each view holds the clock, a seed, and the columns declared.
//! The same code runs natively in unit tests, where [`testing`] builds views and checks slot laws.
//! **Invariant:** a policy sees nothing but its configuration, its own state and the view.

#[doc(hidden)]
pub mod bindings;
mod columns;
#[doc(hidden)]
pub mod guest;
mod hints;
pub mod host;
mod random;
mod slot;
pub mod testing;
mod view;

pub use columns::{BUDGET, CANDIDATE, Columns, OUTCOME, REQUEST, SEQUENCE};
pub use hints::{Hints, Value};
pub use random::Random;
pub use slot::{Filter, Interpret, NoConfig, Observe, Pick, Policy, Schedule, Score};
pub use view::{Event, Frame, HintsView, ObserveView, RouteView, ScheduleView, Table};

/// Makes the component: `export!(MyPolicy: score, observe);` with any of
/// `hints`, `filter`, `score`, `pick`, `schedule`, `observe`.
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
                    ::std::vec![$($crate::guest::inputs::$slot::<$policy>()),+]
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
