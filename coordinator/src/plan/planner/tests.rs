use std::path::Path;

use ds4_common::quantity::Bytes;
use proptest::prelude::*;

use super::*;
use crate::plan::cluster_spec::{Assumptions, ClusterFile};
use crate::plan::held_rects::held_rects;
use crate::plan::test_models::{flash, small};

/// Nodes as flags list them.
fn cluster(nodes: &[String], reserve: u64) -> ClusterSpec {
    let listed = ClusterFile {
        node: nodes.iter().map(|n| n.parse().expect("a node")).collect(),
        ..ClusterFile::default()
    };
    let reserve = Some(Bytes(reserve));
    listed
        .resolve(&Assumptions::default(), reserve)
        .expect("a cluster")
}

/// What must hold of every plan.
fn check(plan: &PlacementPlan) {
    let grid = plan.demand.grid;
    assert_eq!(plan.placement.len(), plan.demand.layers.len());
    for placed in &plan.placement {
        let rects: Vec<Vec<TileRect>> = placed.iter().map(|p| vec![p.rect]).collect();
        let rects: Vec<&[TileRect]> = rects.iter().map(Vec::as_slice).collect();
        for held in held_rects(grid, &rects) {
            assert_eq!(held.nodes.len(), 1, "{} is placed once", held.rect);
        }
        for PlacedRect { replicas, .. } in placed {
            let different: BTreeSet<usize> = replicas.iter().copied().collect();
            assert_eq!(
                different.len(),
                replicas.len(),
                "replicas are on different nodes"
            );
        }
    }
    for (share, node) in plan.nodes.iter().zip(&plan.cluster.nodes) {
        let bytes: u64 = plan
            .demand
            .layers
            .iter()
            .enumerate()
            .map(|(layer, demand)| {
                let rects = share.holdings.rects(layer).iter();
                rects
                    .map(|rect| demand.tiles.rect_bytes(*rect))
                    .sum::<u64>()
            })
            .sum();
        assert_eq!(bytes, share.primary_bytes + share.replica_bytes);
        assert!(bytes <= node.room, "{} has room", node.machine.name);
    }
    let file = plan.file();
    let read = PlanFile::parse(&file.to_toml(), Path::new("plan.toml")).expect("a plan file");
    assert_eq!(read, file);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn plans_hold_every_tile_within_the_nodes_memory(
        layers in 1_usize..4,
        experts in 1_usize..20,
        blocks in 1_usize..5,
        narrow in any::<bool>(),
        // Shares of the model in percent, and bandwidths.
        nodes in proptest::collection::vec((0_u64..160, 1_u64..100), 1..=32),
        extra in 0_usize..4,
    ) {
        let width = 256 * blocks - if narrow { 64 } else { 0 };
        let demand = small(layers, experts, width);
        let total = demand.routed_bytes();
        let list: Vec<String> = nodes
            .iter()
            .enumerate()
            .map(|(i, (percent, rate))| {
                let memory = 1 + total * percent / 100;
                format!("name=n{i},memory={memory}B,bandwidth={rate}G")
            })
            .collect();
        let cluster = cluster(&list, 0);
        let extra = if extra == 3 { ExtraReplicas::AsFit } else { ExtraReplicas::Exactly(extra) };
        match plan(demand.clone(), cluster.clone(), extra) {
            Ok(found) => {
                check(&found);
                if let ExtraReplicas::Exactly(count) = extra {
                    let mut placed = found.placement.iter().flatten();
                    prop_assert!(placed.all(|p| p.replicas.len() == count + 1));
                }
                let again = plan(demand, cluster, extra).expect("the same plan");
                prop_assert_eq!(again.file(), found.file());
            }
            Err(PlanError::NoFit(no_fit)) => {
                let room: u64 = cluster.nodes.iter().map(|n| n.room).sum();
                prop_assert_eq!(no_fit.room, room);
                // The advice is right: with these nodes the model fits.
                if let Some((more, memory)) = no_fit.more_nodes {
                    let mut more_nodes = list.clone();
                    let largest = cluster.nodes.iter().max_by_key(|n| n.room).expect("a node");
                    prop_assert_eq!(largest.memory, memory);
                    let bandwidth = largest.machine.bandwidth.expect("given").0;
                    more_nodes.extend((0..more).map(|i| {
                        format!("name=more{i},memory={memory}B,bandwidth={bandwidth}")
                    }));
                    let found = plan(demand, self::cluster(&more_nodes, 0), extra);
                    prop_assert!(found.is_ok());
                }
            }
            Err(error) => prop_assert!(false, "{error}"),
        }
    }
}

#[test]
fn four_machines_of_64_gb_take_flash_and_some_replicas() {
    let nodes: Vec<String> = (0..4).map(|i| format!("name=n{i},memory=64G")).collect();
    let plan = plan(
        flash(),
        cluster(&nodes, 3_000_000_000),
        ExtraReplicas::AsFit,
    )
    .expect("a plan");
    check(&plan);
    assert_eq!(
        plan.cut,
        Some(GridCut {
            groups: 1,
            strips: 4
        })
    );
    // Each node sends back one row for each layer, whatever the replicas.
    let rows = (4 * 43 * 4096 * 4) as f64;
    let replies = plan.decode.replies;
    assert!(replies >= rows && replies < 1.01 * rows, "{replies} bytes");
    let quarter = flash().routed_bytes() / 4;
    for share in &plan.nodes {
        assert_eq!(share.primary_bytes, quarter);
        assert!(share.replica_bytes > 0 && share.replica_bytes < quarter);
    }
    // A step cannot be faster than its weights are read at the assumed 40 GB/s of the coordinator
    // and of every node.
    let least = flash().dense_bytes as f64 / 40e9 * 0.5;
    assert!(plan.decode.seconds > least, "{} s", plan.decode.seconds);
    for loss in &plan.losses {
        assert!(!loss.successors.is_empty() && loss.uncovered > 0);
        assert!(loss.decode.seconds > plan.decode.seconds);
    }
}

#[test]
fn advice_tells_how_much_memory_is_missing() {
    let nodes = [
        "name=a,memory=64G".to_owned(),
        "name=b,memory=64G".to_owned(),
    ];
    let error = plan(
        flash(),
        cluster(&nodes, 3_000_000_000),
        ExtraReplicas::AsFit,
    )
    .expect_err("no room");
    let said = error.to_string();
    assert!(said.contains("the 2 nodes have room for"), "{said}");
    assert!(said.contains("GB short"), "{said}");
    assert!(said.contains("1 more node of 64.0 GB"), "{said}");
    assert!(said.contains("GB more on every node"), "{said}");
}
