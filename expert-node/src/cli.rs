//! The command line of `ds4-expert`.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use ds4_cli::{LogArg, block_on, exit_code, long_version};

use crate::bench::{self, BenchArgs};
use crate::inspect::{self, InspectArgs};
use crate::lifecycle::{self, ServeArgs};

/// Expert node of a ds4 cluster: computes routed experts of a DeepSeek V4 model for coordinators
#[derive(Debug, Parser)]
#[command(name = "ds4-expert", version, long_version = long_version(), about, after_help = EXAMPLES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,

    /// What to log.
    #[command(flatten)]
    pub log: LogArg,
}

const EXAMPLES: &str = "\
Examples:
  ds4-expert serve --data-dir /var/lib/ds4 --join 10.0.0.10:50050 --name node-0
  ds4-expert inspect /var/lib/ds4/node-0.gguf";

/// The commands of `ds4-expert`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve tiles of a model until SIGTERM or ctrl-c
    Serve(Box<ServeArgs>),
    /// Print a model's shape and tile grid, or a slice's tiles, and this machine's kernels
    Inspect(InspectArgs),
    /// Measure the expert function against this machine's memory and cores
    Bench(BenchArgs),
}

/// The whole process: flags, log, command, exit code.
#[must_use]
pub fn main() -> ExitCode {
    exit_code("ds4-expert", run(&Cli::parse()))
}

fn run(cli: &Cli) -> Result<()> {
    let log = cli.log.start("info")?;
    match &cli.command {
        Command::Inspect(args) => inspect::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Serve(args) => block_on(lifecycle::serve(args, log)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use crate::load::{VerifyWhen, WeightSource};
    use clap::CommandFactory;
    use ds4_common::tiles::{GridCut, TileChoice};
    use ds4_proto::security::Security;

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
            "serve -m a.gguf --grid 2x4 --index 3 --threads 7 --pin --call-memory 300MiB --drain-timeout 5",
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
        let slice = |path: &str| WeightSource::Slice { path: path.into() };
        let file = serve("--slice a/b.gguf --verify").weights;
        assert_eq!(file.source().expect("slice"), slice("a/b.gguf"));
        assert_eq!(file.verify().when, VerifyWhen::Start);
        let times = serve("--slice a --verify=off --verify-every 30m --verify-rate 2MiB").weights;
        let verify = times.verify();
        assert_eq!((verify.when, verify.rate), (VerifyWhen::Off, 2 << 20));
        assert_eq!(verify.every, Some(Duration::from_secs(1800)));
        let quiet = serve("--slice a --verify-every off").weights.verify();
        assert_eq!((quiet.when, quiet.every), (VerifyWhen::Use, None));
        assert!(file.pull(&Security::Loopback).expect("no pull").is_none());
        let joins = serve("--data-dir /data --name n-1 --join coord:1 --join-timeout 9").weights;
        assert_eq!(joins.source().expect("slice"), slice("/data/n-1.gguf"));
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
            "serve --slice a --verify=maybe",
            "serve --slice a --verify-every 5",
            "serve --slice a --verify-every 0s",
            "serve --slice a --verify-rate 5",
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
            "serve -m a --call-memory 100MiB",
            "serve -m a --call-memory 2TiB",
            "serve -m a --call-memory 1024",
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
