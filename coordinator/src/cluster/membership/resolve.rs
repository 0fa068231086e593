//! A DNS name's addresses, asked for again and again.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::timeout;

/// Time between two questions. A headless service's records change within seconds of a pod.
const INTERVAL: Duration = Duration::from_secs(3);

/// Time for an answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Nodes that one name may stand for.
const MOST: usize = 1024;

/// Asks for `name` (`host:port`) forever and hands every answer that differs from the last to
/// `found`. While the name does not resolve the last answer holds.
pub(in crate::cluster) async fn follow(name: String, found: impl Fn(&BTreeSet<SocketAddr>)) {
    let mut last = BTreeSet::new();
    let mut known_fault = None;
    loop {
        let answer = timeout(PATIENCE, tokio::net::lookup_host(name.as_str())).await;
        let fault = match answer {
            Ok(Ok(addresses)) => {
                let addresses: BTreeSet<SocketAddr> = addresses.take(MOST).collect();
                if addresses != last {
                    found(&addresses);
                    last = addresses;
                }
                None
            }
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some("no name server answers".to_owned()),
        };
        if fault != known_fault {
            if let Some(reason) = &fault {
                tracing::warn!(name, %reason, "the name of the expert nodes does not resolve");
            }
            known_fault = fault;
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn addresses_of_a_name_are_found() {
        let runtime = tokio::runtime::Runtime::new().expect("runtime");
        let (found, answers) = mpsc::channel();
        let task = runtime.spawn(follow("127.0.0.1:7".to_owned(), move |addresses| {
            found.send(addresses.clone()).expect("test waits");
        }));
        let answer = answers
            .recv_timeout(Duration::from_secs(10))
            .expect("an answer");
        assert_eq!(
            answer.into_iter().collect::<Vec<_>>(),
            ["127.0.0.1:7".parse().expect("address")]
        );
        task.abort();
    }
}
