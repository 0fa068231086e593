//! The flags that say which node gets which tiles.

use anyhow::{Result, ensure};
use clap::Args;
use ds4_common::slice::{SliceHead, WholeModel, file_name};
use ds4_common::tiles::{Holdings, TileSet};
use ds4_expert_node::tiles::{GridCut, TileChoice};

/// How a model is cut.
#[derive(Args, Clone, Debug)]
#[group(required = true, multiple = false)]
pub struct CutArgs {
    /// Cut into equal shares for N nodes, node-0 to node-(N-1)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub nodes: Option<u32>,

    /// Cut into equal shares, expert groups x block strips
    #[arg(long, value_name = "ExB")]
    pub grid: Option<GridCut>,

    /// One share with these tiles of every layer, like `experts=0..128,blocks=0..4` joined by `+`
    #[arg(long, value_name = "TILES")]
    pub tiles: Option<TileChoice>,
}

/// One node's share of a model.
#[derive(Clone, Debug)]
pub struct Share {
    pub node: String,
    pub head: SliceHead,
}

impl CutArgs {
    /// The share of every node.
    ///
    /// # Errors
    /// The cut does not fit the model, or a node's name cannot name a file.
    pub fn shares(&self, model: &WholeModel) -> Result<Vec<Share>> {
        let mut shares: Vec<Share> = Vec::new();
        for (node, holdings) in self.holdings(model)? {
            file_name(&node)?;
            let known = shares.iter().any(|share| share.node == node);
            ensure!(!known, "two nodes have the name {node}");
            let head = model.head(&holdings)?;
            shares.push(Share { node, head });
        }
        Ok(shares)
    }

    fn holdings(&self, model: &WholeModel) -> Result<Vec<(String, Holdings)>> {
        let grid = model.grid();
        let sets: Vec<TileSet> = if let Some(tiles) = &self.tiles {
            vec![tiles.resolve(grid)?]
        } else {
            let rects = match (self.grid, self.nodes) {
                (Some(cut), _) => grid.cut(cut.groups, cut.strips)?,
                (None, nodes) => grid.cut_for(nodes.unwrap_or(1))?,
            };
            let sets = rects.into_iter().map(|rect| TileSet::new(grid, vec![rect]));
            sets.collect::<Result<_, _>>()?
        };
        let uniform = |set| Holdings::uniform(grid, model.layers(), set);
        let named = |(i, set)| (format!("node-{i}"), uniform(set));
        Ok(sets.into_iter().enumerate().map(named).collect())
    }
}
