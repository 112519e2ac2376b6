//! What the first bytes of a file say: a component, or one of the things that are handed in by mistake.
//!
//! Called before bytes are compiled, kept or pushed. **Invariant:** only components pass; machine code
//! from outside is never taken for anything but a mistake.

/// WebAssembly, binary.
const MAGIC: &[u8] = b"\0asm";
/// Version 13 of layer 1: a component. Specified: component model, `Binary.md`.
const COMPONENT: &[u8] = &[0x0d, 0, 1, 0];
/// Version 1 of layer 0: a core module.
const MODULE: &[u8] = &[1, 0, 0, 0];

/// Whether these bytes begin as a component does. Errors: what they are instead, and what would be right.
pub fn check_component(bytes: &[u8]) -> Result<(), String> {
    let what = match bytes.split_at_checked(4) {
        Some((MAGIC, rest)) if rest.starts_with(COMPONENT) => return Ok(()),
        Some((MAGIC, rest)) if rest.starts_with(MODULE) => {
            "they are a core module; link it with `wasm-component-ld`, or wrap it with `wasm-tools component new`"
        }
        Some((MAGIC, _)) => "they are WebAssembly of a version that this host does not know",
        Some((b"\x7fELF", _)) => {
            "they are precompiled machine code, which no host takes from outside; hand in the `.wasm` component"
        }
        None if bytes.is_empty() => "there are none",
        _ => "they do not begin with `\\0asm`; hand in a `.wasm` component",
    };
    Err(format!("these bytes are no component: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(bytes: &[u8], words: &str) {
        let error = check_component(bytes).expect_err("it is no component");
        assert!(error.contains(words), "`{words}` is missing in `{error}`");
    }

    #[test]
    fn only_components_pass() {
        assert_eq!(check_component(b"\0asm\x0d\0\x01\0"), Ok(()));
        refused(b"\0asm\x01\0\0\0", "core module");
        refused(b"\0asm\x0e\0\x01\0", "version");
        refused(b"\x7fELF\x02\x01\x01", "precompiled machine code");
        refused(b"(component)", "`.wasm` component");
        refused(b"\0as", "`.wasm` component");
        refused(b"", "there are none");
    }
}
