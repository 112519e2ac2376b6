//! What wasmtime makes of the contract, for the host's side.

wasmtime::component::bindgen!({ path: "../../wit/v0.1.1", world: "policy" });

/// The middleware contract of the vLLM router.
pub(crate) mod middleware {
    wasmtime::component::bindgen!({ path: "foreign", world: "middleware" });
}
