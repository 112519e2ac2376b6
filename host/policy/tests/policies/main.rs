//! The sandbox from outside: real components, among them one that misbehaves in every way there is.

mod support;

mod faults;
mod generations;
mod plugins;
mod prepare;
mod record;
mod rollout;
mod state;
mod versions;
