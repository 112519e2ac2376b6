//! Between the generated bindings and the slot traits: decodes views, keeps the one policy instance.
//!
//! Used by [`crate::export!`] only. **Invariant:** a call before `configure` abstains.

mod calls;
mod hints;
pub mod inputs;

use crate::bindings::describe::exports::pointsman::policy::describe as contract;
use crate::host::{self, Level};
use crate::slot::Policy;
pub use inputs::SlotInputs;
use std::cell::RefCell;
use std::marker::PhantomData;
use std::thread::LocalKey;

/// The policy of a plugin, with where its one instance lives.
pub trait Exported: Policy {
    /// Name of the package.
    const NAME: &'static str;
    /// Version of the package.
    const VERSION: &'static str;

    /// The slots exported, with the columns each declares.
    fn slots() -> Vec<SlotInputs>;

    /// The instance, once configured.
    fn cell() -> &'static LocalKey<RefCell<Option<Self>>>;
}

/// The component of a policy.
pub struct Component<P>(PhantomData<P>);

fn with<P: Exported, R>(call: impl FnOnce(&mut P) -> Option<R>) -> Option<R> {
    P::cell().with_borrow_mut(|policy| call(policy.as_mut()?))
}

fn strings(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

impl<P: Exported> contract::Guest for Component<P> {
    fn describe() -> contract::Description {
        let slots = P::slots();
        let inputs = slots.iter().flat_map(|SlotInputs { slot, tables }| {
            tables.iter().map(|(table, columns)| contract::Input {
                slot: (*slot).to_owned(),
                table: (*table).to_owned(),
                numbers: strings(columns.numbers),
                ids: strings(columns.ids),
            })
        });
        contract::Description {
            name: P::NAME.to_owned(),
            version: P::VERSION.to_owned(),
            slots: slots.iter().map(|inputs| inputs.slot.to_owned()).collect(),
            inputs: inputs.collect(),
            wishes: P::WISHES.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        }
    }

    fn configure(json: String) -> Result<(), String> {
        // A panic is a trap to the host; the hook is what tells it why.
        std::panic::set_hook(Box::new(|panic| host::log(Level::Error, &panic.to_string())));
        let config = serde_json::from_str(&json).map_err(|error| error.to_string())?;
        let policy = P::new(config)?;
        P::cell().set(Some(policy));
        Ok(())
    }
}
