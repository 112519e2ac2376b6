//! `pointsman plugin push|pull|sign|keygen`: components to and from registries, and their signatures.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};

use crate::source::{
    self, Address, AskedBy, COMPONENT_BYTES_MAX, Signing, Supply, Verify, Wanted, beside, is_component,
};

#[derive(Debug, Subcommand)]
pub(super) enum SupplyCommand {
    /// Put a component into a registry, signed if there is a key.
    Push {
        /// The component.
        file: PathBuf,
        /// Where to: `oci://HOST[:PORT]/REPOSITORY[:TAG]`.
        to: String,
        /// Private key (PEM, P-256) to sign it with.
        #[arg(long)]
        key: Option<PathBuf>,
        #[command(flatten)]
        reach: Reach,
    },
    /// Get a component from a registry, and check its digests.
    Pull {
        /// Where from: `oci://HOST[:PORT]/REPOSITORY[:TAG][@sha256:DIGEST]`.
        from: String,
        /// Where to put it; the repository's last name with `.wasm` if nothing is said.
        #[arg(short, long)]
        output: Option<PathBuf>,
        /// Public key (PEM, P-256) that must have signed it.
        #[arg(long)]
        key: Option<PathBuf>,
        #[command(flatten)]
        reach: Reach,
    },
    /// Sign a component: writes FILE.sig, as `cosign sign-blob` does.
    Sign {
        /// The component.
        file: PathBuf,
        /// Private key (PEM, P-256).
        #[arg(long)]
        key: PathBuf,
    },
    /// Make a pair of keys: NAME.key to sign with, NAME.pub for `supply.keys`.
    Keygen {
        /// Path and name without an ending.
        name: PathBuf,
    },
}

/// How a registry is spoken to.
#[derive(Debug, Args)]
pub(super) struct Reach {
    /// Without TLS. Registries on this machine are spoken to so anyway.
    #[arg(long)]
    plain_http: bool,
    /// How long it may take.
    #[arg(long, default_value_t = 60)]
    timeout_seconds: u64,
}

impl Reach {
    fn supply(&self, address: &str) -> Supply {
        let host = address.strip_prefix(source::SCHEME).and_then(|rest| rest.split('/').next());
        let plain = host.filter(|_| self.plain_http).map(str::to_owned);
        Supply {
            plain_http_hosts: plain.into_iter().collect(),
            timeout_seconds: self.timeout_seconds.max(1),
            // What is asked for by hand is to come from the registry.
            cache_dir: "off".to_owned(),
            ..Supply::default()
        }
    }
}

pub(super) async fn run(command: SupplyCommand) -> anyhow::Result<()> {
    match command {
        SupplyCommand::Push { file, to, key, reach } => push(&file, &to, key.as_deref(), &reach).await,
        SupplyCommand::Pull { from, output, key, reach } => pull(&from, output, key, &reach),
        SupplyCommand::Sign { file, key } => sign(&file, &key),
        SupplyCommand::Keygen { name } => keygen(&name),
    }
}

async fn push(file: &Path, to: &str, key: Option<&Path>, reach: &Reach) -> anyhow::Result<()> {
    let address = Address::parse(to)?;
    if to.contains('@') {
        bail!("`{to}` names a digest; push to a tag, and the registry says the digest");
    }
    let component = source::read(file, COMPONENT_BYTES_MAX)?;
    let key = key.map(Signing::read).transpose()?;
    let manifest = source::push(&reach.supply(to), &address, &component, key.as_ref()).await?;
    println!("pushed  {address}@sha256:{manifest}");
    println!("sha256  {}", source::digest(&component));
    if key.is_some() {
        println!("signed  beside it, under the tag sha256-{manifest}.sig");
    }
    Ok(())
}

fn pull(from: &str, output: Option<PathBuf>, key: Option<PathBuf>, reach: &Reach) -> anyhow::Result<()> {
    Address::parse(from)?;
    let mut supply = reach.supply(from);
    if let Some(key) = key {
        supply.verify = Verify::Require;
        supply.keys = vec![key];
    }
    let wanted = Wanted { source: from, sha256: "", signature: "", asked_by: AskedBy::Config };
    let fetched = source::component(&supply, wanted)?;
    let output = output.unwrap_or_else(|| PathBuf::from(format!("{}.wasm", last_name(from))));
    std::fs::write(&output, &fetched.bytes).with_context(|| format!("cannot write {}", output.display()))?;
    println!("pulled  {}", fetched.origin);
    println!("sha256  {}", source::digest(&fetched.bytes));
    println!("file    {}", output.display());
    Ok(())
}

fn sign(file: &Path, key: &Path) -> anyhow::Result<()> {
    let component = source::read(file, COMPONENT_BYTES_MAX)?;
    is_component(&file.display().to_string(), &component)?;
    let signature = Signing::read(key)?.sign(&component);
    let path = beside(file);
    std::fs::write(&path, signature).with_context(|| format!("cannot write {}", path.display()))?;
    println!("signed  {}", path.display());
    Ok(())
}

fn keygen(name: &Path) -> anyhow::Result<()> {
    let (private, public) = Signing::generate().map_err(anyhow::Error::msg)?;
    for (ending, mode, pem) in [("key", 0o600, private), ("pub", 0o644, public)] {
        let path = PathBuf::from(format!("{}.{ending}", name.display()));
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&path)
            .with_context(|| format!("cannot make {}", path.display()))?;
        file.write_all(pem.as_bytes())?;
        println!("{:<7} {}", if ending == "key" { "private" } else { "public" }, path.display());
    }
    Ok(())
}

/// `score` of `oci://host/team/score:1.2@sha256:…`.
fn last_name(address: &str) -> &str {
    let repository = address.rsplit('/').next().unwrap_or(address);
    repository.split([':', '@']).next().unwrap_or(repository)
}
