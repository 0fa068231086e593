//! Measuring live nodes: plausible figures, links of a known rate, nodes that do not respond.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};

use ds4_proto::pb::MeasureRequest;
use ds4_proto::security::Security;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use super::*;
use crate::calibrate::{self, CalibrateError, NodeReport};

const TIMEOUT: Duration = Duration::from_secs(60);

fn measure(
    cluster: &Cluster,
    addresses: &[String],
    timeout: Duration,
) -> Vec<Result<NodeReport, CalibrateError>> {
    let security = Security::Loopback;
    let nodes = calibrate::nodes(addresses, &security, timeout);
    cluster.runtime.block_on(nodes)
}

#[test]
fn live_nodes_are_measured() {
    let cluster = Cluster::whole(2);
    let addresses = cluster.addresses();
    let reports = measure(&cluster, &addresses, TIMEOUT);
    assert_eq!(reports.len(), 2);
    for (report, address) in reports.into_iter().zip(&addresses) {
        let report = report.expect("a report");
        assert_eq!(&report.address, address);
        assert!(report.round_trip > Duration::ZERO && report.round_trip < TIMEOUT);
        assert_eq!(report.threads, 1);
        let (rates, link) = report.measured.expect("rates");
        assert!((1_000_000..1 << 50).contains(&rates.read), "{rates:?}");
        assert!(rates.cores >= 1 && rates.memory.is_none_or(|bytes| bytes > 0));
        for rate in [link.up, link.down] {
            assert!(rate.is_finite() && rate > 1e5, "{link:?}");
        }
    }
}

/// Passes connections on to `to`, at most `rate` bytes per second each way.
fn relay(cluster: &Cluster, to: SocketAddr, rate: f64) -> String {
    cluster.runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listener");
        let address = listener.local_addr().expect("address").to_string();
        tokio::spawn(async move {
            while let Ok((inbound, _)) = listener.accept().await {
                let outbound = TcpStream::connect(to).await.expect("the node");
                let (from_client, to_client) = inbound.into_split();
                let (from_node, to_node) = outbound.into_split();
                tokio::spawn(pass(from_client, to_node, rate));
                tokio::spawn(pass(from_node, to_client, rate));
            }
        });
        address
    })
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, rate: f64) {
    // Sleeps that take too long are made up for.
    const CREDIT: Duration = Duration::from_millis(5);
    let mut buffer = vec![0; 64 << 10];
    // When the link has carried what was taken so far.
    let mut free = tokio::time::Instant::now();
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        let carried = Duration::from_secs_f64(n as f64 / rate);
        free = free.max(tokio::time::Instant::now() - CREDIT) + carried;
        tokio::time::sleep_until(free).await;
        if to.write_all(&buffer[..n]).await.is_err() {
            return;
        }
    }
}

#[test]
fn a_slow_link_is_measured_as_slow() {
    const RATE: f64 = 4e6;
    let cluster = Cluster::whole(1);
    let address = relay(&cluster, cluster.nodes[0].address(), RATE);
    let mut found = Vec::new();
    // Another process may occupy the machine for a while.
    for _ in 0..5 {
        let mut reports = measure(&cluster, std::slice::from_ref(&address), TIMEOUT);
        let report = reports.remove(0).expect("a report");
        let (_, link) = report.measured.expect("rates");
        let near = |rate: f64| (rate / RATE - 1.0).abs() < 0.3;
        if near(link.up) && near(link.down) {
            return;
        }
        found.push(link);
    }
    panic!("{RATE} bytes per second were measured as {found:?}");
}

#[test]
fn a_node_that_stalls_is_named_and_the_others_are_measured() {
    let cluster = Cluster::whole(1);
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("listener");
    let stalled = silent.local_addr().expect("address").to_string();
    let gone = {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").expect("listener");
        closed.local_addr().expect("address").to_string()
    };
    let addresses = [stalled.clone(), gone.clone(), cluster.addresses().remove(0)];
    let timeout = Duration::from_secs(10);
    let mut reports = measure(&cluster, &addresses, timeout);
    assert!(reports.pop().expect("three").is_ok());
    let error = reports.pop().expect("two").expect_err("no node is there");
    assert_eq!(error.node(), gone);
    let error = reports.pop().expect("one").expect_err("stalled");
    assert_eq!(error.node(), stalled);
    assert!(error.to_string().contains(&stalled), "{error}");
    let timeout = Duration::from_millis(300);
    let mut reports = measure(&cluster, &[stalled], timeout);
    let error = reports.remove(0).expect_err("stalled");
    assert!(
        matches!(error, CalibrateError::Late { limit, .. } if limit == timeout),
        "{error}"
    );
}

#[test]
fn measuring_changes_no_bits_of_running_calls() {
    let cluster = Cluster::whole(1);
    let backend = cluster.connect(None).expect("cluster");
    let address = cluster.addresses();
    let done = AtomicBool::new(false);
    let calls = std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let mut calls = 0;
            while !done.load(Ordering::SeqCst) {
                let batch = batch(calls % SHAPE.layers, 1 + calls % 9);
                let found = compute(&backend, &batch).expect("rows");
                assert_eq!(bits(&found), bits(&alone(&batch)), "call {calls}");
                calls += 1;
            }
            calls
        });
        let report = measure(&cluster, &address, TIMEOUT).remove(0);
        done.store(true, Ordering::SeqCst);
        report.expect("a report");
        worker.join().expect("calls")
    });
    assert!(calls > 0);
}

#[test]
fn a_second_measurement_at_once_is_refused() {
    let cluster = Cluster::whole(1);
    let address = cluster.addresses().remove(0);
    cluster.runtime.block_on(async {
        let endpoint = Security::Loopback.endpoint(&address).expect("endpoint");
        let channel = endpoint.connect().await.expect("channel");
        let ask = || {
            let mut client = ds4_proto::channel::probe_client(channel.clone());
            async move { client.measure(MeasureRequest { budget_ms: 500 }).await }
        };
        let start = Instant::now();
        let (one, two) = tokio::join!(ask(), ask());
        assert!(start.elapsed() < TIMEOUT);
        let refused = [one, two].into_iter().filter_map(Result::err);
        let codes: Vec<_> = refused.map(|status| status.code()).collect();
        assert_eq!(codes, [tonic::Code::ResourceExhausted]);
        let mut client = ds4_proto::channel::probe_client(channel.clone());
        let greedy = client.measure(MeasureRequest { budget_ms: 501 }).await;
        let status = greedy.expect_err("too long");
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
    });
}
