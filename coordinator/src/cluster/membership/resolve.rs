//! Follows the addresses of a DNS name.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::time::timeout;

/// Time for one lookup.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// Most nodes of one name.
const MAX_ADDRESSES: usize = 1024;

/// Looks up the addresses of names.
pub trait Resolver: Send + Sync + fmt::Debug {
    /// The addresses of `name` (`host:port`), each with the port.
    fn lookup<'a>(&'a self, name: &'a str) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>>;
}

/// The system's resolver.
#[derive(Clone, Copy, Debug)]
pub struct SystemResolver;

impl Resolver for SystemResolver {
    fn lookup<'a>(&'a self, name: &'a str) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>> {
        Box::pin(async move {
            Ok(tokio::net::lookup_host(name)
                .await?
                .take(MAX_ADDRESSES)
                .collect())
        })
    }
}

/// Looks up `name` (`host:port`) every `interval`, forever, and hands every result that differs
/// from the last to `found`. While the lookup fails, the last result stays in force.
pub(in crate::cluster) async fn follow(
    name: String,
    resolver: &dyn Resolver,
    interval: Duration,
    found: impl Fn(&BTreeSet<SocketAddr>),
) {
    let mut last = BTreeSet::new();
    let mut known_fault = None;
    loop {
        let answer = timeout(LOOKUP_TIMEOUT, resolver.lookup(&name)).await;
        let fault = match answer {
            Ok(Ok(addresses)) => {
                let addresses: BTreeSet<SocketAddr> =
                    addresses.into_iter().take(MAX_ADDRESSES).collect();
                if addresses != last {
                    found(&addresses);
                    last = addresses;
                }
                None
            }
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("no answer within {} s", LOOKUP_TIMEOUT.as_secs())),
        };
        if fault != known_fault {
            if let Some(reason) = &fault {
                tracing::warn!(name, %reason, "cannot resolve the name of the expert nodes");
            }
            known_fault = fault;
        }
        tokio::time::sleep(interval).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;
    use std::sync::Mutex;

    #[tokio::test]
    async fn the_system_knows_addresses() {
        let found = SystemResolver.lookup("127.0.0.1:7").await.expect("found");
        assert_eq!(found, ["127.0.0.1:7".parse().expect("address")]);
    }

    /// Returns its answers one after the other, the last one forever.
    #[derive(Debug)]
    struct Script(Mutex<VecDeque<Option<Vec<SocketAddr>>>>);

    impl Resolver for Script {
        fn lookup<'a>(&'a self, _: &'a str) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>> {
            let mut answers = self.0.lock().expect("lock");
            let answer = match answers.len() {
                1 => answers[0].clone(),
                _ => answers.pop_front().expect("an answer"),
            };
            Box::pin(async move { answer.ok_or_else(|| io::Error::other("no such name")) })
        }
    }

    #[tokio::test]
    async fn changes_are_reported_once_and_failures_change_nothing() {
        let [a, b]: [SocketAddr; 2] = ["10.0.0.1:7", "10.0.0.2:7"].map(|t| t.parse().expect("ip"));
        let answers = [
            None,
            Some(vec![a]),
            Some(vec![a]),
            None,
            Some(vec![b, a]),
            Some(vec![a, b, b]),
            Some(vec![b]),
        ];
        let script = Script(Mutex::new(answers.into()));
        let told = Mutex::new(Vec::new());
        let found = |addresses: &BTreeSet<SocketAddr>| {
            let addresses: Vec<SocketAddr> = addresses.iter().copied().collect();
            told.lock().expect("lock").push(addresses);
        };
        let following = follow(
            "nodes:7".to_owned(),
            &script,
            Duration::from_millis(1),
            found,
        );
        let all_told = async {
            while told.lock().expect("lock").len() < 3 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            // Time for reports that should not come.
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        let both = futures::future::select(Box::pin(following), Box::pin(all_told));
        assert!(timeout(Duration::from_secs(20), both).await.is_ok());
        assert_eq!(*told.lock().expect("lock"), [vec![a], vec![a, b], vec![b]]);
    }
}
