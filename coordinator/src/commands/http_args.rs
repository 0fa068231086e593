//! The flags of the HTTP side, and the limits that follow from them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Args;
use ds4_cli::parse;
use ds4_common::memory_limit;
use ds4_common::open_files;
use ds4_common::quantity::Bytes;
use ds4_proto::tls::{ServerFiles, ServerIdentity, TlsError};

use crate::http::{ConnectionLimits, HttpSettings, default_body_memory, least_body_memory};

/// Files that the process has open besides connections of clients and nodes: standard streams, the
/// runtime's, listeners, a file that is being read, with some to spare.
const OWN_FILES: u64 = 24;

/// Files for a node that is called, and for one inside of this process.
const FILES_PER_NODE: u64 = 2;
const FILES_PER_EMBEDDED_NODE: u64 = 6;

/// Files for joining nodes, which fetch their slices.
const JOIN_FILES: u64 = 32;

/// How HTTP is served.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "HTTP")]
pub struct HttpArgs {
    /// Address to listen on; port 0 takes a free one
    #[arg(
        long,
        env = "DS4_LISTEN",
        default_value = "127.0.0.1:8080",
        value_name = "IP:PORT"
    )]
    pub listen: SocketAddr,

    /// Certificate for the API over TLS (PEM), intermediate ones behind it; read again when it
    /// changes [default: none, plain text]
    #[arg(
        long,
        env = "DS4_HTTP_TLS_CERT",
        value_name = "FILE",
        requires = "http_tls_key"
    )]
    pub http_tls_cert: Option<PathBuf>,

    /// Private key of --http-tls-cert (PEM) [default: none]
    #[arg(
        long,
        env = "DS4_HTTP_TLS_KEY",
        value_name = "FILE",
        requires = "http_tls_cert"
    )]
    pub http_tls_key: Option<PathBuf>,

    /// Name of the model in the API [default: the name in its file]
    #[arg(long, env = "DS4_MODEL_NAME", value_name = "NAME")]
    pub model_name: Option<String>,

    /// Origins whose web pages may use the API, comma-separated; * allows all [default: none]
    #[arg(long, env = "DS4_CORS", value_name = "ORIGIN", value_delimiter = ',')]
    pub cors: Vec<String>,

    /// Hosts that clients may call this server by, comma-separated; * stands for all [default: the
    /// names and addresses of this machine on a loopback address, else all]
    #[arg(
        long,
        env = "DS4_ALLOWED_HOSTS",
        value_name = "HOST",
        value_delimiter = ','
    )]
    pub allowed_hosts: Vec<String>,

    /// Address that answers /health, /ready, /live and /metrics only; port 0 takes a free one
    /// [default: none, --listen answers them too]
    #[arg(long, env = "DS4_HEALTH_LISTEN", value_name = "IP:PORT")]
    pub health_listen: Option<SocketAddr>,

    /// Largest request body
    #[arg(
        long,
        env = "DS4_BODY_LIMIT",
        default_value = "32MiB",
        value_name = "SIZE"
    )]
    pub body_limit: Bytes,

    /// Memory for the bodies of all requests together, and for reading them, until they are queued
    /// [default: 8 bodies and 32MiB, or less where memory is scarce]
    #[arg(long, env = "DS4_BODY_MEMORY", value_name = "SIZE")]
    pub body_memory: Option<Bytes>,

    /// Connections at the same time; a further one takes the place of one without a request, or may
    /// ask for health and metrics only
    #[arg(
        long,
        env = "DS4_MAX_CONNECTIONS",
        default_value_t = ConnectionLimits::default().connections,
        value_name = "N",
        value_parser = parse::count(1 << 20)
    )]
    pub max_connections: usize,

    /// Seconds in which a client may take no byte of its answer before its connection is closed
    #[arg(
        long,
        env = "DS4_WRITE_TIMEOUT",
        default_value_t = 20,
        value_name = "SECONDS",
        value_parser = parse::seconds(1..=86_400)
    )]
    pub write_timeout: u64,

    /// Idle seconds before a keep-alive comment is sent
    #[arg(
        long,
        env = "DS4_KEEP_ALIVE",
        default_value_t = 5,
        value_name = "SECONDS",
        value_parser = parse::seconds(1..=86_400)
    )]
    pub keep_alive: u64,

    /// Seconds in which a stopping server may finish running requests
    #[arg(
        long,
        env = "DS4_GRACE",
        default_value_t = 30,
        value_name = "SECONDS",
        value_parser = parse::seconds(0..=86_400)
    )]
    pub grace: u64,
}

impl HttpArgs {
    /// The certificate of the API, if it is served over TLS.
    ///
    /// # Errors
    /// Names the file that cannot be used.
    pub(super) fn tls(&self) -> Result<Option<ServerIdentity>, TlsError> {
        match (&self.http_tls_cert, &self.http_tls_key) {
            (Some(cert), Some(key)) => {
                let (cert, key) = (cert.clone(), key.clone());
                Ok(Some(ServerFiles { cert, key }.load()?))
            }
            _ => Ok(None),
        }
    }
}

/// What else needs files.
#[derive(Clone, Copy, Debug)]
pub(super) struct OtherFiles {
    /// Nodes that are called.
    pub(super) nodes: usize,
    /// Nodes inside of this process.
    pub(super) embedded: usize,
    /// Whether nodes fetch their slices here.
    pub(super) join: bool,
}

impl OtherFiles {
    fn count(self) -> u64 {
        OWN_FILES
            + FILES_PER_NODE * self.nodes as u64
            + FILES_PER_EMBEDDED_NODE * self.embedded as u64
            + if self.join { JOIN_FILES } else { 0 }
    }
}

impl HttpArgs {
    /// The limits on connections, cut to the files that the process may open, of which a warning
    /// tells.
    pub(super) fn connection_limits(&self, others: OtherFiles) -> ConnectionLimits {
        let wanted = ConnectionLimits {
            connections: self.max_connections,
            write_timeout: Duration::from_secs(self.write_timeout),
            ..ConnectionLimits::default()
        };
        let others = others.count();
        let needed = others + (wanted.connections + wanted.reserve) as u64;
        match open_files::raise_to(needed) {
            Some(files) if files < needed => {
                let limits = cut(wanted, files.saturating_sub(others));
                tracing::warn!(
                    max_connections = limits.connections,
                    wanted = wanted.connections,
                    open_files = files,
                    "--max-connections is cut to the files that this process may open (ulimit -n)"
                );
                limits
            }
            _ => wanted,
        }
    }

    /// The settings of the API.
    pub(super) fn settings(&self) -> Result<HttpSettings> {
        Ok(HttpSettings {
            body_limit: usize::try_from(self.body_limit.0).unwrap_or(usize::MAX),
            body_memory: self.body_memory()?,
            cors: self.cors.clone(),
            keep_alive: Duration::from_secs(self.keep_alive),
        })
    }

    /// The budget for bodies: what was asked for, if a body fits into it.
    fn body_memory(&self) -> Result<u64> {
        let limit = self.body_limit;
        let least = Bytes(least_body_memory(limit.0));
        let Some(bytes) = self.body_memory else {
            return Ok(default_body_memory(limit.0, memory_limit::available()));
        };
        ensure!(
            bytes.0 >= least.0,
            "--body-memory {bytes} is too small: a body of --body-limit {limit} needs {least}"
        );
        Ok(bytes.0)
    }
}

/// `wanted` with `files` for connections: an eighth of them for the reserve, as far as it needs
/// them.
fn cut(wanted: ConnectionLimits, files: u64) -> ConnectionLimits {
    let files = usize::try_from(files).unwrap_or(usize::MAX);
    let reserve = (files / 8).clamp(1, wanted.reserve.max(1));
    ConnectionLimits {
        connections: files.saturating_sub(reserve).clamp(1, wanted.connections),
        reserve,
        ..wanted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_leaves_connections_and_a_reserve() {
        let wanted = ConnectionLimits::default();
        for (files, connections, reserve) in [(0, 1, 1), (3, 2, 1), (40, 35, 5), (400, 368, 32)] {
            let limits = cut(wanted, files);
            assert_eq!(
                (limits.connections, limits.reserve),
                (connections, reserve),
                "{files}"
            );
        }
    }
}
