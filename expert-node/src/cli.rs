//! The command line of `ds4-expert`.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::LazyLock;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use ds4_common::kernels::Kernels;
use ds4_proto::security::Security;
use tracing_subscriber::EnvFilter;

use crate::bench::{self, BenchArgs};
use crate::embedded::NodeConfig;
use crate::lifecycle;
use crate::load::ModelConfig;
use crate::node::NodeSettings;
use crate::tls_args::TlsArgs;
use crate::weight_args::WeightArgs;

/// What `--version` prints: also the kernels, of which the CPU decides.
static VERSION: LazyLock<String> = LazyLock::new(|| {
    format!(
        "{}\nkernels {}",
        env!("CARGO_PKG_VERSION"),
        Kernels::summary()
    )
});

/// Expert node of a ds4 cluster: computes routed experts of a DeepSeek V4 model for coordinators.
#[derive(Debug, Parser)]
#[command(name = "ds4-expert", version, long_version = VERSION.as_str(), about)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    /// Log filter, for example `info` or `ds4_expert_node=debug`
    #[arg(long, env = "DS4_LOG", default_value = "info", global = true, value_name = "FILTER", value_parser = log_filter)]
    pub log: String,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve the tiles of a model until SIGTERM or ctrl-c
    Serve(Box<ServeArgs>),
    /// Print a model's shape, its tile grid or a slice's tiles, and the kernels of this machine
    Inspect(InspectArgs),
    /// Measure the expert function against this machine's memory and cores
    Bench(BenchArgs),
}

#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
pub struct InspectArgs {
    /// GGUF file of the model, one of its split files, or all of its layer shards,
    /// comma-separated; or a slice
    #[arg(value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// The same
    #[arg(
        short,
        long = "model",
        env = "DS4_MODEL",
        value_name = "FILE",
        num_args = 1..,
        value_delimiter = ','
    )]
    pub models: Vec<PathBuf>,
}

#[derive(Args, Debug)]
pub struct ServeArgs {
    #[command(flatten)]
    pub weights: WeightArgs,
    /// Address to listen on; port 0 takes a free one
    #[arg(
        long,
        env = "DS4_LISTEN",
        default_value = "127.0.0.1:50051",
        value_name = "IP:PORT"
    )]
    pub listen: SocketAddr,
    /// Address on which health alone is answered, in plain text, for probes that have no
    /// certificate; port 0 takes a free one [default: none]
    #[arg(long, env = "DS4_HEALTH_LISTEN", value_name = "IP:PORT")]
    pub health_listen: Option<SocketAddr>,
    #[command(flatten)]
    pub tls: TlsArgs,
    /// Compute threads; 0 takes one a core
    #[arg(long, env = "DS4_THREADS", default_value_t = 0, value_name = "N", value_parser = threads)]
    pub threads: usize,
    /// Keep each compute thread on a core of its own
    #[arg(long, env = "DS4_PIN")]
    pub pin: bool,
    /// Kernels to use: `auto`, or one that `inspect` lists
    #[arg(long, env = "DS4_ISA", default_value = "auto", value_name = "NAME", value_parser = kernels)]
    pub isa: Kernels,
    /// Work items that may wait, of all coordinators together
    #[arg(long, env = "DS4_QUEUE", default_value_t = 64, value_name = "N", value_parser = count)]
    pub queue: usize,
    /// Work items in flight for one coordinator
    #[arg(long, env = "DS4_IN_FLIGHT", default_value_t = 8, value_name = "N", value_parser = count)]
    pub in_flight: usize,
    /// Memory for inputs and unsent replies, of all coordinators together
    #[arg(
        long,
        env = "DS4_CALL_MEMORY",
        default_value_t = 1024,
        value_name = "MIB",
        value_parser = mebibytes
    )]
    pub call_memory: usize,
    /// Time in which a stopping node finishes the work that it has taken
    #[arg(
        long,
        env = "DS4_DRAIN_TIMEOUT",
        default_value_t = 30,
        value_name = "SECONDS",
        value_parser = clap::value_parser!(u64).range(0..=86_400)
    )]
    pub drain_timeout: u64,
    /// Leave the weights on the disk until calls need them. Otherwise a model's tiles are read
    /// before the node is ready, a slice's while it serves already
    #[arg(long, env = "DS4_NO_POPULATE")]
    pub no_populate: bool,
}

impl ServeArgs {
    /// What the flags ask for.
    ///
    /// # Errors
    /// The node's name cannot name a file, or plain text would be taken from other machines.
    pub fn config(&self, security: Security) -> Result<NodeConfig> {
        security.check_listen(self.listen)?;
        Ok(NodeConfig {
            model: ModelConfig {
                source: self.weights.source()?,
                kernels: self.isa,
                populate: !self.no_populate,
            },
            settings: NodeSettings {
                threads: self.threads,
                pin: self.pin,
                queue: self.queue,
                in_flight: self.in_flight,
                memory: self.call_memory << 20,
                drain_timeout: Duration::from_secs(self.drain_timeout),
                security,
            },
        })
    }
}

pub(crate) fn kernels(name: &str) -> Result<Kernels, String> {
    Kernels::named(name).map_err(|error| error.to_string())
}

fn log_filter(text: &str) -> Result<String, String> {
    match EnvFilter::try_new(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// 0 to 1024.
pub(crate) fn threads(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n @ 0..=1024) => Ok(n),
        _ => Err("expected a number from 0 to 1024".to_owned()),
    }
}

/// 256, which the largest call fits into, to a TiB.
fn mebibytes(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n @ 256..=1_048_576) => Ok(n),
        _ => Err("expected a number from 256 to 1048576".to_owned()),
    }
}

/// 1 to 1024.
fn count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n @ 1..=1024) => Ok(n),
        _ => Err("expected a number from 1 to 1024".to_owned()),
    }
}

/// The whole process: flags, log, command, exit code.
#[must_use]
pub fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ds4-expert: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    let filter = EnvFilter::try_new(&cli.log).context("--log")?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    match &cli.command {
        Command::Inspect(args) => lifecycle::inspect(args),
        Command::Bench(args) => bench::run(args),
        Command::Serve(args) => {
            let runtime = tokio::runtime::Runtime::new().context("no async runtime")?;
            let result = runtime.block_on(lifecycle::serve(args));
            // Loading may still run on a blocking thread; the process does not wait for it.
            runtime.shutdown_background();
            result
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::WeightSource;
    use crate::tiles::{GridCut, TileChoice};
    use clap::CommandFactory;

    fn parse(args: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(["ds4-expert"].into_iter().chain(args.split_whitespace()))
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_of_the_node_is_an_environment_variable() {
        let mut cli = Cli::command();
        cli.build();
        let serve = cli.find_subcommand("serve").expect("a command");
        for arg in serve.get_arguments().filter(|arg| arg.get_id() != "help") {
            assert!(arg.get_env().is_some(), "{arg}");
        }
    }

    #[test]
    fn flags_become_a_config() {
        let cli = parse(
            "serve -m a.gguf --grid 2x4 --index 3 --threads 7 --pin --call-memory 300 --drain-timeout 5",
        );
        let Command::Serve(args) = cli.expect("valid").command else {
            panic!("another command");
        };
        let config = args.config(Security::Loopback).expect("config");
        let cut = GridCut {
            groups: 2,
            strips: 4,
        };
        assert_eq!(
            config.model.source,
            WeightSource::Model {
                paths: vec!["a.gguf".into()],
                tiles: TileChoice::Part { cut, index: 3 },
            }
        );
        assert_eq!(config.settings.threads, 7);
        assert!(config.settings.pin);
        assert_eq!(config.settings.memory, 300 << 20);
        assert_eq!(config.settings.drain_timeout, Duration::from_secs(5));
        assert!(config.model.populate);
    }

    fn serve(args: &str) -> ServeArgs {
        match parse(&format!("serve {args}")).expect(args).command {
            Command::Serve(args) => *args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_slice_comes_from_a_file_or_from_a_folder() {
        let slice = |path: &str, verify| WeightSource::Slice {
            path: path.into(),
            verify,
        };
        let file = serve("--slice a/b.gguf --verify").weights;
        assert_eq!(file.source().expect("slice"), slice("a/b.gguf", true));
        assert!(file.pull(&Security::Loopback).expect("no pull").is_none());
        let joins = serve("--data-dir /data --name n-1 --join coord:1 --join-timeout 9").weights;
        assert_eq!(
            joins.source().expect("slice"),
            slice("/data/n-1.gguf", false)
        );
        let pull = joins
            .pull(&Security::Insecure)
            .expect("pull")
            .expect("pull");
        let away = joins.pull(&Security::Loopback).expect_err("plain text");
        assert!(away.to_string().contains("--insecure"), "{away}");
        assert_eq!(
            (pull.coordinator.as_deref(), pull.node.as_str()),
            (Some("coord:1"), "n-1")
        );
        assert_eq!(pull.timeout, Duration::from_secs(9));
        assert!(serve("--data-dir d --name ../a").weights.source().is_err());
        // A node without a name has the machine's.
        assert!(serve("--data-dir d").weights.source().is_ok());
    }

    #[test]
    fn bad_flags_are_refused() {
        for bad in [
            "serve",
            "serve -m a --slice b",
            "serve -m a --data-dir b",
            "serve --slice a --data-dir b",
            "serve --slice a --tiles all",
            "serve --slice a --join c:1",
            "serve -m a --verify",
            "serve --data-dir d --name",
            "serve --data-dir d --grid 1x1 --index 0",
            "inspect",
            "inspect a -m b",
            "serve -m a --grid 2x4",
            "serve -m a --index 1",
            "serve -m a --grid 2x4 --index 0 --tiles all",
            "serve -m a --tiles experts=3",
            "serve -m a --listen nowhere",
            "serve -m a --isa abacus",
            "serve -m a --queue 0",
            "serve -m a --tls-ca ca.pem",
            "serve -m a --tls-cert n.pem --tls-key n.key",
            "serve -m a --call-memory 100",
            "serve -m a --log ==",
            "serve -m a --drain-timeout 86401",
            "serve -m a --drain-timeout 18446744073709551615",
            "bench --rounds 0",
            "bench --decode 1,none",
        ] {
            let error = parse(bad).expect_err(bad);
            assert_eq!(error.exit_code(), 2, "{bad}");
        }
    }
}
