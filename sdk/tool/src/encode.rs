//! From a core module, as a C compiler leaves it, to a component.
//!
//! **Invariant:** every export's signature is compared with the contract here, so a C file that does not fit it is
//! refused at build time.

use crate::error::{ToolError, at};
use std::path::Path;
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

/// The component of `module`, which implements the world `plugin` of `wit`.
fn component(mut module: Vec<u8>, wit: &Path) -> anyhow::Result<Vec<u8>> {
    let mut resolve = Resolve::default();
    let (package, _) = resolve.push_dir(wit)?;
    let world = resolve.select_world(&[package], Some("plugin"))?;
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8)?;
    ComponentEncoder::default().validate(true).module(&module)?.encode()
}

/// Reads a module and writes its component.
pub(crate) fn file(module: &Path, wit: &Path, output: &Path) -> Result<(), ToolError> {
    let bytes = std::fs::read(module).map_err(at(module))?;
    let component = component(bytes, wit).map_err(|error| ToolError::Encode(format!("{error:#}")))?;
    std::fs::write(output, component).map_err(at(output))
}
