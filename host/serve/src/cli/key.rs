//! `pointsman key new`: a fresh API key, and the lines of the configuration that let it in.

use anyhow::ensure;
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use clap::Subcommand;
use sha2::{Digest, Sha256};

use crate::auth::TENANT_BYTES_MAX;

/// Chosen: nobody guesses 256 bits, so that a plain hash of them is as good as a slow one.
const KEY_BYTES: usize = 32;
/// Chosen: what scanners of leaked secrets look for, and people recognise.
const PREFIX: &str = "sk-pm-";

#[derive(Debug, Subcommand)]
pub(super) enum KeyCommand {
    /// Print a fresh key once, and what to write into the configuration for it. Nothing of it is kept.
    New {
        /// What the key is called in logs and messages.
        #[arg(long)]
        name: String,
        /// Tenant of its requests; the name if left out.
        #[arg(long)]
        tenant: Option<String>,
    },
}

pub(super) fn key(command: KeyCommand) -> anyhow::Result<()> {
    let KeyCommand::New { name, tenant } = command;
    let tenant = tenant.unwrap_or_else(|| name.clone());
    for (flag, value) in [("--name", &name), ("--tenant", &tenant)] {
        let is_right = (1..=TENANT_BYTES_MAX).contains(&value.len()) && !value.chars().any(char::is_control);
        ensure!(is_right, "`{flag}` must be 1 to {TENANT_BYTES_MAX} bytes of text");
    }
    let key = fresh()?;
    let sha256: String = Sha256::digest(&key).iter().map(|byte| format!("{byte:02x}")).collect();
    println!("{key}");
    println!();
    println!(
        "# The key stands above, and nowhere else: hand it to who is to use it. These lines let it in, in the"
    );
    println!("# place of `keys = []`; for the admin API, `token_sha256` in `[admin]` takes the same hash.");
    println!("[[auth.keys]]");
    println!("name = {}", toml::Value::from(name));
    println!("sha256 = \"{sha256}\"");
    println!("tenant = {}", toml::Value::from(tenant));
    Ok(())
}

fn fresh() -> anyhow::Result<String> {
    let mut bytes = [0; KEY_BYTES];
    let mut filled = 0;
    // A signal may cut a call short; each call that returns gave at least one byte.
    while filled < KEY_BYTES {
        filled += rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())?;
    }
    Ok(format!("{PREFIX}{}", BASE64_URL_SAFE_NO_PAD.encode(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_keys_are_the_same() {
        let keys = [fresh().expect("there is randomness"), fresh().expect("there is randomness")];
        assert_ne!(keys[0], keys[1]);
        assert!(keys.iter().all(|key| key.starts_with(PREFIX) && key.len() == PREFIX.len() + 43), "{keys:?}");
    }
}
