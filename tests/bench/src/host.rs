//! The host under test, in a process of its own: the same `main`, started from this binary.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::bare;

/// First argument of the child process.
pub(crate) const CHILD: &str = "host-under-test";

/// What the child runs: `pointsman serve` with a configuration file.
pub(crate) fn serve() -> anyhow::Result<()> {
    let config = std::env::args().nth(2).context("the parent names a configuration file")?;
    let args = ["pointsman", "serve", "--config", &config].map(Into::into);
    ensure!(serve::cli::main(args) == std::process::ExitCode::SUCCESS, "the host failed");
    Ok(())
}

/// Test guests as components, in the order asked for.
pub(crate) fn guests(packages: &[&str]) -> anyhow::Result<Vec<PathBuf>> {
    let root =
        Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).context("the crate lies in the project")?;
    let target =
        std::env::current_exe()?.ancestors().nth(2).context("a binary lies in a folder")?.join("plugins");
    let packages: Vec<String> = packages.iter().map(|name| (*name).to_owned()).collect();
    Ok(guest_build::build(root, &target, &packages, |line| eprintln!("{line}"))?)
}

/// A running host.
pub(crate) struct Host {
    child: Child,
    /// Address of the API.
    pub(crate) api: String,
    /// Address of the admin API.
    pub(crate) admin: String,
}

impl Host {
    /// Starts a host with a configuration file and waits until it listens.
    pub(crate) fn start(config: &Path) -> anyhow::Result<Self> {
        Self::run(Command::new(std::env::current_exe()?).arg(CHILD).arg(config))
    }

    /// Starts a server that does nothing.
    pub(crate) fn bare() -> anyhow::Result<Self> {
        Self::run(Command::new(std::env::current_exe()?).arg(bare::CHILD))
    }

    fn run(command: &mut Command) -> anyhow::Result<Self> {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let mut lines = BufReader::new(child.stdout.take().context("stdout is piped")?).lines();
        let mut address = |name: &str| -> anyhow::Result<String> {
            let line = lines
                .find_map(|l| l.ok().filter(|l| l.starts_with(name)))
                .context("the host did not start")?;
            let address = line.split("http://").nth(1).and_then(|a| a.split('/').next());
            Ok(address.context("an address is printed")?.to_owned())
        };
        let (api, admin) = (address("api")?, address("admin")?);
        Ok(Self { child, api, admin })
    }

    /// Its process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// CPU time that the host has used so far, all threads.
    pub(crate) fn cpu(&self) -> anyhow::Result<Duration> {
        cpu(self.child.id())
    }

    /// The host's metrics, as Prometheus reads them.
    pub(crate) fn metrics(&self) -> anyhow::Result<String> {
        let mut socket = std::net::TcpStream::connect(&self.api)?;
        socket.write_all(b"GET /metrics HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n")?;
        let mut text = String::new();
        socket.read_to_string(&mut text)?;
        Ok(text)
    }

    /// Resident memory in MiB.
    pub(crate) fn rss_mib(&self) -> anyhow::Result<f64> {
        rss_mib(self.child.id())
    }
}

/// CPU time that a process has used so far, all threads.
pub(crate) fn cpu(process: u32) -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    // Fields after the command's name, which may contain spaces; 14 and 15 of all are user and system time.
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    // Linux counts in hundredths of a second, whatever the kernel's own tick is.
    Ok(Duration::from_millis(ticks * 10))
}

/// Resident memory of a process in MiB.
pub(crate) fn rss_mib(process: u32) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).context("a process has a size")?;
    let kib: f64 = line.split_whitespace().nth(1).context("the size is a number")?.parse()?;
    Ok(kib / 1024.0)
}

impl Drop for Host {
    fn drop(&mut self) {
        // A benchmark that ends has nothing left to drain.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
