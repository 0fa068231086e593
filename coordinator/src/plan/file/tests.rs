use std::path::Path;

use ds4_common::quantity::{Bandwidth, BitRate, Bytes, Nanos, OpRate};
use ds4_common::tiles::{Span, TileSet};
use proptest::prelude::*;

use super::raw::MAX_BYTES;
use super::*;

const GRID: Grid = Grid {
    experts: 12,
    blocks: 5,
};

const EXAMPLE: &str = r#"
version = 1

[model]
name = "tiny"
layers = 4
experts = 12
blocks = 5

[coordinator]
bandwidth = "40GB/s"

[[node]]
name = "a"
address = "10.0.0.1:50051"
memory = "64G"
rtt = "0.2ms"

[[node]]
name = "b"

[[holding]]
node = "a"
layers = "0..4"
tiles = ["blocks=0..3"]

[[holding]]
node = "b"
layers = "0..2"
tiles = ["blocks=3..5"]

[[holding]]
node = "b"
layers = "2..4"
tiles = ["experts=0..6,blocks=3..5", "experts=6..12,blocks=3..5"]
"#;

fn parse(text: &str) -> Result<PlanFile, PlanFileError> {
    PlanFile::parse(text, Path::new("plan.toml"))
}

fn error(text: &str) -> String {
    parse(text).expect_err(text).to_string()
}

#[test]
fn an_example_is_read() {
    let plan = parse(EXAMPLE).expect("plan");
    assert_eq!(plan.coordinator.bandwidth, Some(Bandwidth(40_000_000_000)));
    let nodes = plan.nodes();
    assert_eq!(nodes[0].0, "a");
    assert_eq!(nodes[0].1.to_string(), "experts 0..12 blocks 0..3");
    assert_eq!(nodes[1].1.rects(2).len(), 2);
    let a = &plan.node("a").expect("a").machine;
    assert_eq!(a.memory, Some(Bytes(64_000_000_000)));
    assert_eq!(a.rtt, Some(Nanos(200_000)));
    assert!(plan.node("c").is_none());
}

#[test]
fn mistakes_name_their_place() {
    let with = |old: &str, new: &str| {
        assert!(EXAMPLE.contains(old), "{old}");
        error(&EXAMPLE.replacen(old, new, 1))
    };
    for (old, new, expected) in [
        ("version = 1", "version = 2", "version 2"),
        ("version = 1", "", "version"),
        ("experts = 12", "experts = 0", "model.experts: 0"),
        (
            "experts = 12",
            "experts = 13",
            "no node holds experts 12..13 blocks 3..5 of layer 2",
        ),
        ("layers = 4", "layers = 5", "of layer 4"),
        ("layers = 4", "layers = 40000", "model.layers"),
        (
            "name = \"tiny\"",
            "fingerprint = \"ab\"\nname = \"t\"",
            "model.fingerprint",
        ),
        ("name = \"tiny\"", "cut = \"2\"\nname = \"t\"", "model.cut"),
        (
            "name = \"tiny\"",
            "nam = \"tiny\"",
            "line 5: unknown field `nam`",
        ),
        (
            "name = \"b\"",
            "name = \"a\"",
            "node a: name: two nodes have this name",
        ),
        ("name = \"b\"", "name = \"../b\"", "node \"../b\": name"),
        (
            "memory = \"64G\"",
            "memory = \"much\"",
            "line 16: invalid memory size \"much\"",
        ),
        ("memory = \"64G\"", "memory = \"64\"", "write a unit"),
        ("memory = \"64G\"", "memory = 64", "write a unit"),
        ("memory = \"64G\"", "memory = -4", "line 16"),
        (
            "memory = \"64G\"",
            "memroy = \"64G\"",
            "line 16: unknown field `memroy`",
        ),
        ("node = \"b\"", "node = \"c\"", "holding of node \"c\""),
        (
            "layers = \"2..4\"",
            "layers = \"1..4\"",
            "node b, layers \"1..4\": layers: layer 1",
        ),
        (
            "layers = \"2..4\"",
            "layers = \"2..9\"",
            "layers: the model has layers 0..4",
        ),
        (
            "layers = \"2..4\"",
            "layers = \"all\"",
            "layers: expected START..END",
        ),
        (
            "experts=0..6",
            "experts=0..7",
            "node b, layers \"2..4\": tiles",
        ),
        (
            "blocks=0..3",
            "blocks=0..6",
            "node a, layers \"0..4\": tiles",
        ),
        ("[\"blocks=0..3\"]", "[]", "node a, layers \"0..4\": tiles"),
        (
            "blocks=0..3",
            "blocks=1..3",
            "no node holds experts 0..12 blocks 0..1 of layer 0",
        ),
    ] {
        let text = with(old, new);
        assert!(text.contains(expected), "{new}: {text}");
        assert!(text.contains("plan.toml") && !text.contains('\n'), "{text}");
    }
    let replica = "[[replica]]\nnode = \"b\"\nlayers = \"0..1\"\ntiles = [\"blocks=2..3\"]\n";
    let text = error(&format!("{EXAMPLE}\n{replica}"));
    assert!(
        text.contains("node b: replica: the node does not hold experts 0..12 blocks 2..3"),
        "{text}"
    );
    let twice = EXAMPLE.replace("name = \"b\"", "name = \"b\"\naddress = \"10.0.0.1:50051\"");
    assert!(error(&twice).contains("node b: address: another node also has"));
}

#[test]
fn gaps_are_allowed_by_name_only() {
    let gap = EXAMPLE.replace("blocks=0..3", "blocks=1..3");
    let partial = gap.replace("version = 1", "version = 1\npartial = true");
    let plan = parse(&partial).expect("a partial plan");
    let (layer, rect) = plan.uncovered().expect("a gap");
    assert_eq!((layer, rect.blocks), (0, Span::new(0, 1)));
    assert!(parse(&plan.to_toml()).expect("again").partial);
}

#[test]
fn another_model_is_refused_with_both_values() {
    let mut plan = parse(EXAMPLE).expect("plan");
    let print = |byte: u8| Fingerprint::from([byte; 32]);
    plan.check_model(&print(1), 4, GRID).expect("any print");
    let error = plan.check_model(&print(1), 5, GRID).expect_err("layers");
    let text = error.to_string();
    assert!(
        text.contains("4 layers") && text.contains("5 layers"),
        "{text}"
    );
    plan.model.fingerprint = Some(print(2));
    plan.check_model(&print(2), 4, GRID).expect("its print");
    let error = plan.check_model(&print(1), 4, GRID).expect_err("print");
    assert!(error.to_string().contains(&"02".repeat(32)));
}

#[test]
fn a_file_is_replaced_and_read_back() {
    let dir = tempfile::tempdir().expect("folder");
    let path = dir.path().join("plan.toml");
    std::fs::write(&path, "old").expect("write");
    let plan = parse(EXAMPLE).expect("plan");
    plan.write(&path).expect("write");
    assert_eq!(PlanFile::read(&path).expect("read"), plan);
    assert_eq!(std::fs::read_dir(dir.path()).expect("list").count(), 1);
    let missing = PlanFile::read(&dir.path().join("none")).expect_err("missing");
    assert!(missing.to_string().contains("none"), "{missing}");
    std::fs::write(&path, vec![b'#'; MAX_BYTES as usize + 1]).expect("write");
    let large = PlanFile::read(&path).expect_err("large");
    assert!(matches!(large, PlanFileError::TooLarge { .. }));
}

fn any_rects() -> impl Strategy<Value = Vec<TileRect>> {
    let span = |total: u32| (0..total).prop_flat_map(move |start| (Just(start), start + 1..=total));
    prop::collection::vec((span(GRID.experts), span(GRID.blocks)), 0..4).prop_map(|raw| {
        let mut kept: Vec<TileRect> = Vec::new();
        for ((e0, e1), (b0, b1)) in raw {
            kept.push(TileRect {
                experts: Span::new(e0, e1),
                blocks: Span::new(b0, b1),
            });
            if TileSet::new(GRID, kept.clone()).is_err() {
                kept.pop();
            }
        }
        kept
    })
}

fn any_machine() -> impl Strategy<Value = NodeMachine> {
    let amount = || prop::option::of(0u64..1 << 45);
    let rest = (amount(), amount(), amount(), amount(), amount());
    (prop::option::of("[a-z]{1,5}:[0-9]{4}"), rest).prop_map(|(address, rest)| NodeMachine {
        name: String::new(),
        address,
        memory: rest.0.map(Bytes),
        bandwidth: rest.1.map(Bandwidth),
        link: rest.2.map(BitRate),
        rtt: rest.3.map(Nanos),
        compute: rest.4.map(OpRate),
    })
}

fn any_plan() -> impl Strategy<Value = PlanFile> {
    let layers = 5;
    let tiles = prop::collection::vec(any_rects(), layers);
    let nodes = prop::collection::vec((any_machine(), tiles), 1..5);
    let print = prop::option::of(any::<[u8; 32]>());
    let cut = prop::option::of((1u32..9, 1u32..9));
    (".{0,12}", nodes, print, cut).prop_map(move |(name, nodes, print, cut)| PlanFile {
        model: PlanModel {
            name,
            fingerprint: print.map(Fingerprint::from),
            layers,
            grid: GRID,
            cut: cut.map(|(groups, strips)| GridCut { groups, strips }),
        },
        coordinator: CoordinatorMachine::default(),
        nodes: nodes
            .into_iter()
            .enumerate()
            .map(|(i, (mut machine, tiles))| {
                machine.name = format!("node-{i}");
                machine.address = machine.address.map(|a| format!("{i}{a}"));
                let holdings = Holdings::new(GRID, tiles).expect("holdings");
                let copies: Vec<Vec<TileRect>> = (0..layers)
                    .map(|l| holdings.rects(l).iter().copied().take(l % 3).collect())
                    .collect();
                PlanNode {
                    machine,
                    replicas: Holdings::new(GRID, copies).expect("replicas"),
                    holdings,
                }
            })
            .collect(),
        partial: true,
    })
}

proptest! {
    #[test]
    fn what_is_written_reads_back(plan in any_plan()) {
        let text = plan.to_toml();
        prop_assert_eq!(parse(&text).expect(&text), plan);
    }

    #[test]
    fn coverage_is_checked_tile_by_tile(plan in any_plan()) {
        let held = |layer: usize, e: u32, b: u32| {
            let tile = TileRect {
                experts: Span::new(e, e + 1),
                blocks: Span::new(b, b + 1),
            };
            plan.nodes.iter().any(|n| n.holdings.covers(layer, tile))
        };
        let first = (0..plan.model.layers).find(|&l| {
            (0..GRID.experts).any(|e| (0..GRID.blocks).any(|b| !held(l, e, b)))
        });
        let found = plan.uncovered();
        prop_assert_eq!(found.map(|(layer, _)| layer), first);
        if let Some((layer, rect)) = found {
            prop_assert!(!held(layer, rect.experts.start, rect.blocks.start));
        }
        let strict = PlanFile { partial: false, ..plan.clone() };
        prop_assert_eq!(parse(&strict.to_toml()).is_ok(), first.is_none());
    }

    #[test]
    fn no_text_makes_it_panic(
        at in 0..EXAMPLE.len(),
        cut in 0..20usize,
        insert in "[a-z0-9=\\[\\]\".\n]{0,6}",
    ) {
        let end = (at + cut).min(EXAMPLE.len());
        let text = format!("{}{insert}{}", &EXAMPLE[..at], &EXAMPLE[end..]);
        let _ = parse(&text);
    }
}
