//! The flags that say which node gets which tiles.

use anyhow::Result;
use clap::Args;
use ds4_common::slice::WholeModel;
use ds4_common::tiles::{Holdings, TileSet};
use ds4_expert_node::tiles::{GridCut, TileChoice};

use crate::share::Shares;

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

impl CutArgs {
    /// The share of every node.
    ///
    /// # Errors
    /// The cut does not fit the model.
    pub fn shares(&self, model: WholeModel) -> Result<Shares> {
        let nodes = self.holdings(&model)?;
        Ok(Shares::new(model, nodes, true)?)
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
