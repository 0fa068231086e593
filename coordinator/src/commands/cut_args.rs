//! The flags that say which node holds which tiles.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use ds4_common::quant::Layout;
use ds4_common::slice::WholeModel;
use ds4_common::tiles::{GridCut, Holdings, TileChoice, TileSet};

use crate::plan::PlanFile;
use crate::share::Shares;

/// The layout of weights in slices.
#[derive(Args, Clone, Copy, Debug)]
pub struct LayoutArg {
    /// Layout of weights in slices: panels (sixteen rows side by side, which kernels read faster) or
    /// plain (as in the model)
    #[arg(long, default_value_t = Layout::Panels, value_name = "LAYOUT")]
    pub layout: Layout,
}

/// How a model is cut.
#[derive(Args, Clone, Debug)]
#[group(required = true, multiple = false)]
#[command(next_help_heading = "Cut")]
pub struct CutArgs {
    /// Cut by a plan, as written by `ds4-coord plan`
    #[arg(long, value_name = "PLAN.toml")]
    pub plan: Option<PathBuf>,

    /// Cut into equal slices for N nodes, node-0 to node-(N-1)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub nodes: Option<u32>,

    /// Cut into equal slices: expert groups x block strips
    #[arg(long, value_name = "ExB")]
    pub grid: Option<GridCut>,

    /// Cut one slice with these tiles of every layer: rectangles like `experts=0..128,blocks=0..4`
    /// joined by `+`
    #[arg(long, value_name = "TILES")]
    pub tiles: Option<TileChoice>,
}

impl CutArgs {
    /// The share of every node, with tensors laid out as `layout` where their type has it.
    ///
    /// # Errors
    /// The cut does not fit the model.
    pub fn shares(&self, model: WholeModel, layout: Layout) -> Result<Shares> {
        let nodes = self.holdings(&model)?;
        let numbered = self.plan.is_none();
        Ok(Shares::new(model, nodes, numbered, layout)?)
    }

    fn holdings(&self, model: &WholeModel) -> Result<Vec<(String, Holdings)>> {
        let grid = model.grid();
        if let Some(path) = &self.plan {
            let plan = PlanFile::read(path)?;
            plan.check_model(&model.fingerprint(), model.layers(), grid)?;
            // A node that holds nothing needs no slice.
            let mut nodes = plan.nodes();
            nodes.retain(|(_, holdings)| !holdings.is_empty());
            return Ok(nodes);
        }
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
